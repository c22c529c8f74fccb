"""What a snapshot makes by a call: arrays, random states, methods of River's objects and the like.

Each function here looks at all that it is given before it makes anything, so a snapshot may call it with any arguments.
`REDUCERS` says how these values are saved: by these functions, not by numpy's, River's or `getattr`, which trust what
they are given.
"""

from __future__ import annotations

import collections
import fractions
import functools
import operator
import random
import statistics
import struct
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import numpy as np
from river._river_rust import drift as _rust_drift
from river._river_rust import stats as _rust_stats
from river._river_rust.vectordict import VectorDict

from tidemill.errors import ArtifactError
from tidemill.limits import SNAPSHOT_BITS, SNAPSHOT_ITEMS
from tidemill.registry import river_parts

#: Types of an array's numbers, as numpy writes them.
ARRAY_TYPES = {
    kind: np.dtype(kind)
    for kind in ("|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f4", "<f8", "<c8", "<c16")
}
_RUST: Mapping[str, tuple[Callable[..., Any], tuple[Any, ...], tuple[Any, ...]]] = {
    "RsQuantile": (_rust_stats.RsQuantile, (0.5,), (0.5,)),
    "RsEWMean": (_rust_stats.RsEWMean, (0.5,), (0.5,)),
    "RsEWVar": (_rust_stats.RsEWVar, (0.5,), (0.5,)),
    "RsIQR": (_rust_stats.RsIQR, (0.2, 0.8), (0.5,)),
    "RsKurtosis": (_rust_stats.RsKurtosis, (False,), (0.5,)),
    "RsPeakToPeak": (_rust_stats.RsPeakToPeak, (), (0.5,)),
    "RsSkew": (_rust_stats.RsSkew, (False,), (0.5,)),
    "RsRollingQuantile": (_rust_stats.RsRollingQuantile, (0.5, 2), (0.5,)),
    "RsRollingIQR": (_rust_stats.RsRollingIQR, (0.2, 0.8, 2), (0.5,)),
    "RsRollingROCAUC": (_rust_stats.RsRollingROCAUC, (1, 2), (1, 0.5)),
    "RsRollingPRAUC": (_rust_stats.RsRollingPRAUC, (1, 2), (1, 0.5)),
    "AdaptiveWindowing": (_rust_drift.AdaptiveWindowing, (), (0.5,)),
}
#: How often a copy of a rust object is updated, to see that its state holds together.
PROBE_UPDATES = 50
#: Those that are floats and flags, without a length or a place in something: there is nothing to hold together.
_NUMBERS_ALONE = frozenset(("RsEWMean", "RsEWVar", "RsKurtosis", "RsPeakToPeak", "RsSkew"))
_MT19937_WORDS = 624
_WORDS = struct.Struct(f"<{_MT19937_WORDS}I")


def _refuse(what: str) -> NoReturn:
    raise ArtifactError(f"a snapshot may not contain {what}")


def check_method(kind: Any, name: Any) -> None:
    """Raise ArtifactError for what is no method of a class that River's models keep as a value."""
    if type(name) is not str or not isinstance(kind, type):
        _refuse("a method without a name")
    for ancestor in kind.__mro__:
        if name in vars(ancestor):
            if f"{ancestor.__module__}.{ancestor.__qualname__}.{name}" in river_parts.METHODS:
                return
            break
    _refuse(f"the attribute {name!r} of {kind.__module__}.{kind.__qualname__}")


def method(owner: Any, name: str) -> Any:
    """Return a method of River's that its models keep as a value, as `PARegressor.calc_tau`; no other attribute."""
    check_method(owner if isinstance(owner, type) else type(owner), name)
    return getattr(owner, name)


def partial(function: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Return a `functools.partial` of a function that a snapshot may hold."""
    check_partial(function, arguments, named)
    return functools.partial(function, *arguments, **named)


def check_partial(function: Any, arguments: Any, named: Any) -> None:
    """Raise ArtifactError for what is no partial, or one that makes too much."""
    if type(arguments) is not tuple or type(named) is not dict or not callable(function):
        _refuse("a partial of anything but a function, a tuple and a dict")
    if function is np.ones and not (
        len(arguments) == 1 and type(arguments[0]) is int and 0 <= arguments[0] <= SNAPSHOT_ITEMS.max and not named
    ):
        _refuse(f"ones of more than {SNAPSHOT_ITEMS.max:,} numbers")


def array(kind: str, shape: tuple[int, ...], data: bytes, order: str) -> Any:
    """Return an array of numbers; `data` has exactly as many as `shape` says."""
    dtype = _dtype(kind)
    if type(data) is not bytes or type(shape) is not tuple or order not in ("C", "F"):
        _refuse("an array of anything but bytes")
    if len(shape) > 8:
        _refuse("an array of such a shape")
    expected = dtype.itemsize
    for size in shape:
        if type(size) is not int or not 0 <= size <= 2**40:
            _refuse("an array of such a shape")
        expected *= size
    if expected != len(data):
        _refuse(f"an array of {len(data)} bytes where its shape says {expected}")
    return np.frombuffer(bytearray(data), dtype=dtype).reshape(shape, order=order)  # type: ignore[call-overload]


def _dtype(kind: str) -> Any:
    if type(kind) is not str:  # printing it may have no end
        _refuse("an array whose type is no text")
    if kind not in ARRAY_TYPES:
        _refuse(f"an array of {kind!r}: numbers and flags alone are allowed")
    return ARRAY_TYPES[kind]


def number(kind: str, data: bytes) -> Any:
    """Return a numpy scalar."""
    dtype = _dtype(kind)
    if type(data) is not bytes or len(data) != dtype.itemsize:
        _refuse("a number of another size than its type's")
    return np.frombuffer(data, dtype=dtype)[0]


def random_state(key: bytes, position: int, has_gauss: int, cached: float) -> Any:
    """Return a numpy RandomState, whose place in its numbers is inside of them."""
    if type(key) is not bytes or len(key) != 4 * _MT19937_WORDS:
        _refuse("a random state of another size")
    if type(position) is not int or not 0 <= position <= _MT19937_WORDS or has_gauss not in (0, 1):
        _refuse(f"a random state at position {position!r}")
    state = np.random.RandomState(0)
    state.set_state(("MT19937", np.frombuffer(key, dtype="<u4"), position, int(has_gauss), float(cached)))
    return state


def random_numbers(version: int, words: bytes, position: int, gauss: float | None) -> random.Random:
    """Return Python's own random numbers, at a place in them."""
    if version != 3 or type(words) is not bytes or len(words) != 4 * _MT19937_WORDS or type(position) is not int:
        _refuse("random numbers of another size")
    if not (0 <= position <= _MT19937_WORDS and (gauss is None or type(gauss) is float)):
        _refuse(f"random numbers at position {position!r}")
    made = random.Random.__new__(random.Random)
    made.setstate((3, (*_WORDS.unpack(words), position), gauss))
    return made


def generator(state: int, increment: int, has_uint32: int, uinteger: int) -> Any:
    """Return a numpy Generator of PCG64."""
    limits = (2**128, 2**128, 2, 2**32)
    if not all(
        type(value) is int and 0 <= value < limit
        for value, limit in zip((state, increment, has_uint32, uinteger), limits, strict=True)
    ):
        _refuse("a random generator of such a state")
    made = np.random.PCG64(0)
    made.state = {
        "bit_generator": "PCG64",
        "state": {"state": state, "inc": increment},
        "has_uint32": has_uint32,
        "uinteger": uinteger,
    }
    return np.random.Generator(made)


def normal(mean: float, deviation: float) -> statistics.NormalDist:
    """Return a normal distribution."""
    return statistics.NormalDist(float(mean), float(deviation))


def iterator(values: list[Any], position: int) -> Any:
    """Return an iterator of a list, at a position."""
    if type(values) is not list or type(position) is not int or position < 0:
        _refuse("an iterator of anything but a list")
    made = iter(values)
    made.__setstate__(position)  # type: ignore[attr-defined]
    return made


def span(start: int, stop: int, step: int) -> range:
    """Return a range of at most so many numbers that a default value may have."""
    if not all(type(value) is int for value in (start, stop, step)):
        _refuse("a range of anything but integers")
    made = range(start, stop, step)
    if made and (items := abs(made[-1] - made[0]) // abs(step) + 1) > SNAPSHOT_ITEMS.max:  # models have few n-grams
        raise ArtifactError(SNAPSHOT_ITEMS.excess(items))
    return made


def fraction(numerator: int, denominator: int) -> fractions.Fraction:
    """Return a fraction. Python's own is made of a text, and `1e999999999` is one."""
    if not type(numerator) is type(denominator) is int:
        _refuse("a fraction of anything but integers")
    if (bits := max(numerator.bit_length(), denominator.bit_length())) > SNAPSHOT_BITS.max:
        raise ArtifactError(SNAPSHOT_BITS.excess(bits))  # reducing it would take time by the square
    return fractions.Fraction(numerator, denominator)


def item_getter(*names: Any) -> Any:
    """Return a function that takes items by name, as a text model's `on`."""
    if not names or not all(type(name) in (str, int) for name in names):
        _refuse("an item getter of anything but names")
    return operator.itemgetter(*names)


def vector_dict(values: dict[Any, Any], default_factory: Any, mask: Any) -> Any:
    """Return River's VectorDict."""
    if type(values) is not dict or not (default_factory is None or callable(default_factory)):
        _refuse("a VectorDict of anything but a dict")
    if not (mask is None or isinstance(mask, (set, frozenset, dict, VectorDict))):
        _refuse("a VectorDict with such a mask")
    return VectorDict(values, default_factory, mask, False)


def default_dict(default_factory: Any) -> Any:
    """Return an empty `defaultdict`."""
    if not (default_factory is None or callable(default_factory)):
        _refuse("a defaultdict of anything but a function")
    return collections.defaultdict(default_factory)


def queue(size: int | None) -> Any:
    """Return an empty `deque` of at most so many."""
    if not (size is None or (type(size) is int and size >= 0)):
        _refuse("a deque of such a size")
    return collections.deque(maxlen=size)


def counter(counts: dict[Any, Any]) -> Any:
    """Return a `Counter`."""
    if type(counts) is not dict:
        _refuse("a Counter of anything but a dict")
    made: Any = collections.Counter()
    dict.update(made, counts)
    return made


def rust(name: str, state: bytes) -> Any:
    """Return one of River's statistics in rust, of the bytes that it gave; a copy is tried first.

    Bytes that no such object gave make it panic, which is no `Exception`: at once, or at the first update.
    """
    if type(name) is not str or name not in _RUST or type(state) is not bytes:
        _refuse(f"{name!r} where one of River's own statistics was expected")
    kind, arguments, given = _RUST[name]
    try:
        made, probe = kind(*arguments), kind(*arguments)
        probe.__setstate__(state)
        made.__setstate__(state)
        update = probe.update
        for _ in range(1 if name in _NUMBERS_ALONE else PROBE_UPDATES):
            update(*given)
        if name != "AdaptiveWindowing":
            probe.get()
        return made
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise ArtifactError(f"the state of a {name} can't be read: {type(error).__name__}") from None


# How they are saved ---------------------------------------------------------------------------------------------------


def _save_method(bound: Any) -> tuple[Any, ...]:
    return method, (bound.__self__, bound.__func__.__name__)


def _save_descriptor(descriptor: Any) -> tuple[Any, ...]:
    return method, (descriptor.__objclass__, descriptor.__name__)


def _save_partial(bound: functools.partial[Any]) -> tuple[Any, ...]:
    return partial, (bound.func, bound.args, bound.keywords)


def _save_array(values: Any) -> Any:
    kind = values.dtype.newbyteorder("<").str
    if kind not in ARRAY_TYPES:
        raise ArtifactError(f"an array of {values.dtype} can't be part of a snapshot: numbers and flags alone can")
    order = "F" if values.flags.f_contiguous and not values.flags.c_contiguous else "C"
    return array, (kind, values.shape, values.astype(kind, copy=False).tobytes(order), order)


def _save_number(value: Any) -> Any:
    kind = value.dtype.newbyteorder("<").str
    if kind not in ARRAY_TYPES:
        raise ArtifactError(f"a {type(value).__name__} can't be part of a snapshot: numbers and flags alone can")
    return number, (kind, value.tobytes())


def _save_random_state(state: Any) -> tuple[Any, ...]:
    _, key, position, has_gauss, cached = state.get_state(legacy=True)
    return random_state, (key.astype("<u4").tobytes(), int(position), int(has_gauss), float(cached))


def _save_random(made: random.Random) -> tuple[Any, ...]:
    version, words, gauss = made.getstate()
    return random_numbers, (version, _WORDS.pack(*words[:-1]), words[-1], gauss)


def _save_generator(made: Any) -> tuple[Any, ...]:
    state = made.bit_generator.state
    if state["bit_generator"] != "PCG64":
        raise ArtifactError(f"a random generator of {state['bit_generator']} can't be part of a snapshot: use PCG64")
    return generator, (state["state"]["state"], state["state"]["inc"], state["has_uint32"], state["uinteger"])


def _save_iterator(values: Iterator[Any]) -> tuple[Any, ...]:
    reduced: Any = values.__reduce__()
    return iterator, (list(reduced[1][0]), reduced[2] if len(reduced) > 2 else 0)


def _save_vector_dict(values: Any) -> tuple[Any, ...]:
    data, default_factory, mask, _ = values.__reduce__()[1]
    return vector_dict, (data, default_factory, mask)


def _save_rust(made: Any) -> tuple[Any, ...]:
    return rust, (type(made).__name__, bytes(made.__getstate__()))


REDUCERS: Mapping[type, Callable[[Any], Any]] = {
    types.MethodType: _save_method,
    types.MethodDescriptorType: _save_descriptor,
    functools.partial: _save_partial,
    np.ndarray: _save_array,
    **{np.dtype(kind).type: _save_number for kind in sorted(ARRAY_TYPES)},
    np.longlong: _save_number,
    np.ulonglong: _save_number,
    random.Random: _save_random,
    np.random.RandomState: _save_random_state,
    np.random.Generator: _save_generator,
    statistics.NormalDist: lambda made: (normal, (made.mean, made.stdev)),
    type(iter([])): _save_iterator,
    fractions.Fraction: lambda made: (fraction, (made.numerator, made.denominator)),
    range: lambda made: (span, (made.start, made.stop, made.step)),
    operator.itemgetter: lambda made: (item_getter, made.__reduce__()[1]),
    VectorDict: _save_vector_dict,
    collections.Counter: lambda made: (counter, (dict(made),)),
    collections.deque: lambda made: (queue, (made.maxlen,), None, iter(made)),
    collections.defaultdict: lambda made: (default_dict, (made.default_factory,), None, None, iter(made.items())),
    **{kind: _save_rust for kind, _, _ in _RUST.values()},  # type: ignore[misc]
}
#: The functions that take plain values alone, so that a trial can call them.
PLAIN_CALLS = (number, random_state, random_numbers, generator, normal, fraction, span, item_getter, rust)
