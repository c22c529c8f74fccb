"""A model as text, with its hyperparameters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


def stable_repr(thing: Any) -> str:
    """Return repr(thing), also where River's own fails (SelectType of two types); the same in every process."""
    try:
        return repr(thing)
    except Exception:
        if isinstance(thing, Mapping):
            parts = [f"{key}: {stable_repr(value)}" for key, value in thing.items()]
        elif isinstance(thing, (set, frozenset)):
            parts = sorted(map(stable_repr, thing))
        elif isinstance(thing, (list, tuple)):
            parts = [stable_repr(value) for value in thing]
        else:
            parts = [f"{key}={stable_repr(value)}" for key, value in sorted(vars(thing).items())]
        return f"{type(thing).__name__}({', '.join(parts)})"


def model_text(printed: str) -> str:
    """Return River's text of a model on one line, without the blanks inside its parentheses."""
    return re.sub(r" ?\( ", "(", " ".join(printed.split())).replace(" )", ")").replace(" ()", "()")
