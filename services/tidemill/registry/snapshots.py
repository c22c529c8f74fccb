"""Snapshots: a learned model as bytes and back.

They are pickles, because River's models are Python objects and no other format keeps their scores to the last digit.
A pickle can run anything, so one is opened only after its hash was found in a manifest with a valid signature; then it
is tried to its end with stand-ins (`pickles`), and only then read, by an unpickler that looks names up in a table and
makes nothing but the declared model's classes (`parts`) and plain values (`values`).
"""

from __future__ import annotations

import gc
import io
import pickle
import time
from collections.abc import Callable
from typing import Any

from tidemill.errors import ArtifactError
from tidemill.registry import pickles
from tidemill.registry.parts import Parts, all_parts
from tidemill.registry.values import REDUCERS

#: There is no pause before smaller reads: a pickle's frames have some 64 kB, and a head of a few bytes each.
MIN_PIECE_BYTES = 1024


class _Pieces:
    """A pickle, read frame by frame with a pause before each.

    A C unpickler never lets go of the interpreter's lock by itself. Nor does the cycle collector, so it is run on each
    piece: later it would run on all of them at once.
    """

    def __init__(self, data: bytes, pause: float, sleep: Callable[[float], None]) -> None:
        self._data, self._pause, self._sleep = io.BytesIO(data), pause, sleep

    def read(self, size: int) -> bytes:
        if size >= MIN_PIECE_BYTES:
            gc.collect(1)
            self._sleep(self._pause)
        return self._data.read(size)

    def readline(self) -> bytes:
        return self._data.readline()


class _Pickler(pickle.Pickler):
    dispatch_table = REDUCERS


def dump(model: Any) -> bytes:
    """Return a model's snapshot. Raises ArtifactError where it can't be one, such as for a lambda inside it."""
    file = io.BytesIO()
    try:
        _Pickler(file, protocol=5).dump(model)
    except Exception as error:  # pickling calls into the model's own classes
        raise ArtifactError(f"the model can't be saved: {error}; use named functions of River, no lambdas") from error
    return file.getvalue()


def load(
    data: bytes, pause: float = 0.0, sleep: Callable[[float], None] = time.sleep, *, parts: Parts | None = None
) -> Any:
    """Return the model of a snapshot whose hash was verified. Raises ArtifactError where it has anything not allowed.

    `pause`: seconds before every 64 kB, so that other threads run meanwhile. `parts`: what it may consist of, by
    default all that any of River's models may.
    """
    allowed = parts or all_parts()
    pickles.check_opcodes(data)
    collects = gc.isenabled()
    gc.disable()  # it would walk all that was read, again and again
    try:
        trial = allowed.trial(data)(_file(data, pause, sleep))
        made = pickles.tried(trial, len(data))
        if pause:
            pickles.release(trial)
        del trial
        return pickles.read(allowed.unpickler(_file(data, pause, sleep)), made)
    finally:
        if collects:
            gc.enable()


def _file(data: bytes, pause: float, sleep: Callable[[float], None]) -> Any:
    return _Pieces(data, pause, sleep) if pause else io.BytesIO(data)
