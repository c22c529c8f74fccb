"""Frees a large model without making others wait: object by object, with pauses, in a thread of its own.

A model is a tree of some hundred thousand objects. Dropped at once, it is freed at once, in whatever thread, and the
interpreter's lock is held until all of it is gone. In a list, from the outside in, each object is freed alone.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

#: Objects between two pauses: some 0.3 ms.
PIECE_OBJECTS = 500

#: Objects that models refer to and do not own; following them would reach all of the interpreter.
_SHARED = (type, ModuleType, FunctionType, BuiltinFunctionType)


def release(parts: list[Any], pause: float, sleep: Callable[[float], None] = time.sleep) -> None:
    """Free the objects in `parts`, and all objects within them that have no other reference; empties `parts`.

    The caller must have no reference to the objects but this list. `pause`: seconds between two pieces.
    """
    seen = set(map(id, parts))
    part = inner = None
    for number, part in enumerate(parts):  # the list grows meanwhile
        for inner in gc.get_referents(part):
            if gc.is_tracked(inner) and id(inner) not in seen and not isinstance(inner, _SHARED):
                seen.add(id(inner))
                parts.append(inner)
        if number % PIECE_OBJECTS == PIECE_OBJECTS - 1:
            sleep(pause)
    del part, inner
    parts.reverse()
    while parts:
        parts.pop()
        if not len(parts) % PIECE_OBJECTS:
            sleep(pause)
