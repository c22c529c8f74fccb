"""Snapshots: a learned model as bytes and back.

They are pickles, because River's models are Python objects and no other format keeps their scores to the last digit.
A pickle can run anything, so one is opened only after its hash was found in a manifest with a valid signature, and
then by an unpickler that makes instances of a closed set of classes.
"""

from __future__ import annotations

import gc
import io
import pickle
import time
from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType
from typing import Any

from tidemill.errors import ArtifactError

_ALLOWED = {
    "builtins": {
        "set",
        "frozenset",
        "complex",
        "slice",
        "range",
        "bytearray",
        "object",
        "dict",
        "list",
        "tuple",
        "int",
        "float",
        "str",
        "bool",
        "bytes",
        "type(None)",
    },
    "collections": {"defaultdict", "Counter", "deque", "OrderedDict"},
    # SoftmaxRegression copies its optimizer for each class; deepcopy calls nothing that isn't allowed.
    "copy": {"deepcopy"},
    "copyreg": {"_reconstructor"},
    "datetime": {"datetime", "date", "time", "timedelta", "timezone"},
    "functools": {"partial"},
    "random": {"Random"},
    "math": {"log", "log2", "exp", "sqrt"},
    "numpy": {"ndarray", "dtype", "float64", "int64", "bool_"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.numeric": {"_frombuffer"},
    "numpy.random._pickle": {"__randomstate_ctor", "__generator_ctor", "__bit_generator_ctor"},
    "numpy.random._mt19937": {"MT19937"},
    "numpy.random._pcg64": {"PCG64"},
}


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
            gc.collect(0)
            self._sleep(self._pause)
        return self._data.read(size)

    def readline(self) -> bytes:
        return self._data.readline()


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in _ALLOWED.get(module, ()):
            return super().find_class(module, name)
        if module == "river" or module.startswith("river."):
            value = super().find_class(module, name)
            # A River module also has names that it imported from others; only River's own are allowed.
            own = str(getattr(value, "__module__", "")).startswith("river.")
            if own and isinstance(value, (type, FunctionType, BuiltinFunctionType)):
                return value
        raise ArtifactError(
            f"a snapshot may not contain {module}.{name}; only River's classes and plain values are allowed"
        )


def dump(model: Any) -> bytes:
    """Return a model's snapshot. Raises ArtifactError where it can't be one, such as for a lambda inside it."""
    try:
        return pickle.dumps(model, protocol=5)
    except Exception as error:  # pickling calls into the model's own classes
        raise ArtifactError(f"the model can't be saved: {error}; use named functions of River, no lambdas") from error


def load(data: bytes, pause: float = 0.0, sleep: Callable[[float], None] = time.sleep) -> Any:
    """Return the model of a snapshot whose hash was verified. Raises ArtifactError where it has anything not allowed.

    `pause`: seconds before every 64 kB, so that other threads run meanwhile.
    """
    try:
        return _Unpickler(_Pieces(data, pause, sleep) if pause else io.BytesIO(data)).load()
    except ArtifactError:
        raise
    except Exception as error:  # a pickle may raise anything
        raise ArtifactError(f"the snapshot can't be read: {type(error).__name__}: {error}") from error
