"""Models that draw at random are seeded, so that a version that is folded again is the same version."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from river.base import Base


def seed(model: Any, *content: str) -> list[str]:
    """Seed every part of a model that has a `seed` and was given none, in place; return the classes of those parts.

    The seeds are made of `content`, and differ by part.
    """
    seeded: list[str] = []
    for part in _parts(model):
        if "seed" in part._get_params() and part.seed is None:
            digest = hashlib.sha256("\0".join([*content, str(len(seeded))]).encode()).digest()
            # Made again: some draw from the seed when they are made, and keep what they drew.
            made = part.clone({"seed": int.from_bytes(digest[:4], "big") >> 1})
            part.__dict__.clear()
            part.__dict__.update(made.__dict__)
            seeded.append(type(part).__name__)
    return seeded


def _parts(model: Any) -> Iterator[Any]:
    """Yield a model and the models and the like within it, each before what is within it, and once."""
    waiting, seen = [model], set()
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, Base):
            yield one
            waiting += reversed(list(getattr(one, "__dict__", {}).values()))
        elif isinstance(one, dict):
            waiting += reversed(list(one.values()))
        elif isinstance(one, (list, tuple)):
            waiting += reversed(one)
