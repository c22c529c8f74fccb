"""Models that draw at random are seeded, so that a version that is folded again is the same version."""

from __future__ import annotations

import functools
import hashlib
import types
from collections.abc import Iterator
from typing import Any

from river.base import Base

from tidemill.declare.stable_repr import parameters


def seed(model: Any, *content: str) -> list[str]:
    """Seed every part of a model that has a `seed` and was given none, in place; return the classes of those parts.

    The seeds are made of `content`, and differ by part.
    """
    seeded: list[str] = []
    for part in _parts(model):
        given = parameters(part)
        if "seed" in given and given["seed"] is None:
            digest = hashlib.sha256("\0".join([*content, str(len(seeded))]).encode()).digest()
            # Made again: some draw from the seed when they are made, and keep what they drew. In its place: some keep a
            # method of their own, which would be that of another object.
            part.__dict__.clear()
            part.__init__(**given | {"seed": int.from_bytes(digest[:4], "big") >> 1})
            seeded.append(type(part).__name__)
    return seeded


def _parts(model: Any) -> Iterator[Any]:
    """Yield a model and the models and the like within it, each before what is within it, and once."""
    waiting, seen = [model], dict[int, Any]()  # which keeps them: a part that is gone may leave its id to another
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen[id(one)] = one
        if isinstance(one, Base):
            yield one
        if isinstance(one, dict):
            waiting += reversed(list(one.values()))
        elif isinstance(one, (list, tuple)):
            waiting += reversed(one)
        elif isinstance(one, functools.partial):
            waiting += [one.keywords, one.args]
        elif not isinstance(one, (type, types.FunctionType, types.MethodType, types.ModuleType)):
            waiting += reversed(list(getattr(one, "__dict__", {}).values()))
