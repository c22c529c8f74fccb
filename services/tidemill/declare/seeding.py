"""Models that draw at random are seeded, so that a version that is folded again is the same version."""

from __future__ import annotations

import collections
import functools
import hashlib
import types
from collections.abc import Iterator
from typing import Any

from river.base import Base

from tidemill.declare.stable_repr import parameters

#: Modules of which nothing draws at random by itself, or goes by a hash that is another in each process.
_SAME_EVERYWHERE = {
    "builtins",
    "collections",
    "datetime",
    "functools",
    "math",
    "numpy",
    "operator",
    "random",
    "re",
    "river",
    "statistics",
}


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


def is_rivers(model: Any) -> bool:
    """Whether all of a model is River's or Python's own: once it is seeded, it is the same in every process."""
    return all(_module_of(one).partition(".")[0] in _SAME_EVERYWHERE for one in _objects(model))


def _module_of(one: Any) -> str:
    is_named = isinstance(one, (type, types.FunctionType, types.BuiltinFunctionType, types.MethodType))
    return str(getattr(one if is_named else type(one), "__module__", None))


def _parts(model: Any) -> Iterator[Any]:
    """Yield the models and the like within a model."""
    return (one for one in _objects(model) if isinstance(one, Base))


def _objects(model: Any) -> Iterator[Any]:
    """Yield a model and what is within it, each before what is within it, and once."""
    waiting, seen = [model], dict[int, Any]()  # which keeps them: a part that is gone may leave its id to another
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen[id(one)] = one
        yield one
        if isinstance(one, dict):
            waiting += reversed(list(one.values()))
        elif isinstance(one, (list, tuple, collections.deque)):
            waiting += reversed(one)
        elif isinstance(one, functools.partial):
            waiting += [one.keywords, one.args]
        elif not isinstance(one, (type, types.FunctionType, types.MethodType, types.ModuleType)):
            waiting += _in_slots(one)
            waiting += reversed(list(getattr(one, "__dict__", {}).values()))


def _in_slots(one: Any) -> list[Any]:
    slots = [vars(kind).get("__slots__", ()) for kind in type(one).__mro__]
    names = [name for some in slots for name in ((some,) if isinstance(some, str) else some)]
    return [getattr(one, name) for name in reversed(names) if hasattr(one, name)]
