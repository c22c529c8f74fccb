"""What a snapshot may consist of: the classes of the declared model, and plain values.

A model makes other objects while it learns: a tree its nodes, an ensemble its detectors. So River's classes are those
that the declared model has, and those that their modules name, and so on; all of them out of `river_parts`. Of the
pipeline's own classes they are those that the declared model has, and those of the same file that these name.
"""

from __future__ import annotations

import collections
import copy
import datetime
import decimal
import functools
import importlib
import importlib.util
import inspect
import io
import math
import pickle
import statistics
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tidemill.errors import ArtifactError
from tidemill.registry import pickles, river_parts, values
from tidemill.registry.pickles import Name


def _named(things: Iterable[Any]) -> dict[Name, Any]:
    return {(thing.__module__, thing.__qualname__): thing for thing in things}


def _split(listed: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    return {module: tuple(names.split()) for module, names in listed.items()}


_CLASSES, _FUNCTIONS = _split(river_parts.CLASSES), _split(river_parts.FUNCTIONS)
#: Classes of River's by their last name, as code names them.
_BY_LAST_NAME: dict[str, set[Name]] = {}
for _module, _listed in _CLASSES.items():
    for _name in _listed:
        _BY_LAST_NAME.setdefault(_name.rpartition(".")[2], set()).add((_module, _name))

#: River's deques, which are made by a call and filled afterwards.
_RIVER_QUEUES = frozenset(
    ("river.time_series.holt_winters", name)
    for name in ("AdditiveLevel", "MultiplicativeLevel", "Trend", "AdditiveSeason", "MultiplicativeSeason")
)
#: Data types of the standard library's that are made by a call with plain values.
_DATA_TYPES = (
    datetime.datetime,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    datetime.timezone,
    complex,
    decimal.Decimal,
)
_NUMPY_FUNCTIONS: tuple[Any, ...] = (np.ones, np.array, np.mean, np.median)
#: What a model may keep as a value, as the default of a `defaultdict`; called once it is used, with few arguments.
_KEPT: dict[Name, Any] = {
    **_named((float, int, str, bool, dict, list, set, tuple, frozenset, copy.deepcopy, min, max, sum, abs, len)),
    **_named((math.log, math.log2, math.log10, math.log1p, math.exp, math.sqrt)),
    **_named((statistics.mean, statistics.median, collections.Counter, collections.deque, collections.defaultdict)),
    **_named((np.float64, np.float32, np.int64, np.int32)),
    **{("numpy", function.__name__): function for function in _NUMPY_FUNCTIONS},
}


#: Types of values that have nothing inside that could be a stand-in.
_PLAIN = (int, float, str, bytes, type(None), datetime.date, datetime.timedelta, datetime.tzinfo)
_FLAT = frozenset((int, float, str, bytes, bool, type(None)))


def _plain(arguments: Sequence[Any]) -> bool:
    """Whether values have nothing inside that is a stand-in.

    A tuple may be in itself many times, by the memo: each time is counted.
    """
    waiting = [*arguments]
    while waiting:
        value = waiting.pop()
        if isinstance(value, (tuple, list)):
            pickles.spend(len(value) + 1)
            waiting += value
        elif not isinstance(value, _PLAIN):
            return False
    return True


def _is_made_plain(value: Any) -> bool:
    """Whether a function has made a plain value, as the timezone of a time."""
    return isinstance(value, pickles.Made) and isinstance(value.real, _PLAIN)


def _called(function: Any) -> Any:
    """Return how a type looks at plain arguments: it is called."""
    return lambda *arguments: pickles.Made(function(*_checked(function, arguments)))


def _made(function: Any) -> Any:
    """Return how a function of ours looks at plain arguments: it is called, once and for all."""
    return lambda *arguments: pickles.make(function, _checked(function, arguments))


def _checked(function: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    if _FLAT.issuperset(map(type, arguments)):
        return arguments
    arguments = tuple([one.real if _is_made_plain(one) else one for one in arguments])
    if not _plain(arguments):
        raise ArtifactError(f"a snapshot may not call {function.__name__} with anything but plain values")
    return arguments


def _real(value: Any) -> Any:
    return value.real if isinstance(value, (pickles.Held, pickles.EmptyType)) else value


def _look_at_method(owner: Any, name: Any) -> pickles.Made:
    kind = owner.real if isinstance(owner, (pickles.Held, pickles.EmptyType)) else getattr(type(owner), "real", None)
    if isinstance(owner, pickles.Made):
        kind = type(owner.real)
    values.check_method(kind, name)
    return pickles.MadeFunction(values.method)


def _callable(value: Any) -> Any:
    """Return what a default or a partial calls: a function, a class, a method, or an object that is one."""
    if isinstance(value, pickles.Empty):
        return type(value).real
    return _real(value) if not isinstance(value, pickles.Made) else value.real


def _look_at_partial(function: Any, arguments: Any, named: Any) -> pickles.Made:
    values.check_partial(_callable(function), arguments, named)
    if (size := len(arguments) + len(named)) > pickles.FREE_SIZE:
        pickles.spend(size)
    return pickles.MadeFunction(functools.partial)


def _look_at_vector_dict(given: Any, default_factory: Any, mask: Any) -> pickles.Made:
    values.vector_dict(given if type(given) is not dict else {}, _callable(default_factory), None if mask else mask)
    return pickles.Made()


def _look_at_queue(size: Any) -> list[Any]:
    values.queue(size)
    return []


def _look_at_counter(counts: Any) -> pickles.Made:
    values.counter(counts)
    return pickles.Made()


def _look_at_iterator(given: Any, position: Any) -> pickles.Made:
    values.iterator(given if type(given) is not list else [], position)
    return pickles.Made()


def _look_at_river_queue(*arguments: Any) -> list[Any]:
    if not all(type(argument) in (int, float) for argument in arguments):
        raise ArtifactError("a snapshot may not make a level, a trend or a season of anything but numbers")
    return []


#: What may be called while a snapshot is opened: how a trial looks at its arguments, and what is called afterwards.
#: Then they need no second look.
_LOOKS: tuple[tuple[Callable[[Any, Any], pickles.Held], Any, Any, Any], ...] = (
    *((pickles.Call, function, _made(function), pickles.replay) for function in values.PLAIN_CALLS),
    (pickles.Call, values.array, lambda *arguments: pickles.make(values.array, arguments), pickles.replay),
    *((pickles.Call, kind, _called(kind), kind) for kind in _DATA_TYPES),
    (pickles.Call, collections.OrderedDict, dict, collections.OrderedDict),
    (pickles.free_call, values.partial, _look_at_partial, values.partial),
    (pickles.Call, values.vector_dict, _look_at_vector_dict, values.vector_dict),
    (pickles.Call, values.counter, _look_at_counter, values.counter),
    (pickles.free_call, values.iterator, _look_at_iterator, values.iterator),
    (pickles.free_call, values.method, _look_at_method, getattr),
    (pickles.free_call, values.default_dict, values.default_dict, collections.defaultdict),
    (pickles.free_call, values.queue, _look_at_queue, functools.partial(collections.deque, ())),
)
_CALLED: dict[Name, tuple[pickles.Held, Any]] = {
    (function.__module__, function.__qualname__): (call(function, look), real) for call, function, look, real in _LOOKS
}


class Parts:
    """What a snapshot may name.

    Parameters
    ----------
    real
        What stands behind each name: module and qualified name.
    """

    def __init__(self, real: Mapping[Name, Any]) -> None:
        self.real = {**_KEPT, **real, **{name: function for name, (_, function) in _CALLED.items()}}
        calls = {name: call for name, (call, _) in _CALLED.items()}
        held = {name: pickles.Held(value) for name, value in self.real.items() if name not in calls}
        queues = {name: pickles.Call(real[name], _look_at_river_queue) for name in _RIVER_QUEUES & set(real)}
        self.unpickler = pickles.unpickler(self.real)
        self._trials = []
        for stand_in in (pickles.quick_stand_in, pickles.stand_in):
            classes = {name: stand_in(name, value) for name, value in real.items() if isinstance(value, type)}
            self._trials.append(pickles.unpickler({**held, **classes, **calls, **queues}))

    def trial(self, data: bytes) -> type[pickles.Unpickler]:
        """Return what reads a snapshot with stand-ins."""
        return self._trials[b"__setstate__" in data]


def _resolve(name: Name) -> Any:
    thing: Any = importlib.import_module(name[0])
    for part in name[1].split("."):
        thing = getattr(thing, part)
    return thing


@functools.cache
def all_parts() -> Parts:
    """Return all that any model of River's may consist of, for where no declaration is known."""
    return Parts({name: _resolve(name) for name in (*_names(_CLASSES), *_names(_FUNCTIONS))})


def _names(listed: Mapping[str, tuple[str, ...]]) -> list[Name]:
    return [(module, name) for module, names in listed.items() for name in names]


def parts_of(*declared: Any) -> Parts:
    """Return what a snapshot of the declared models and metrics may consist of. Raises ArtifactError for a lambda."""
    river, own = set[Name](), dict[Name, Any]()
    for name, value in sorted(_used(declared).items()):
        if name[0].split(".")[0] == "river":
            river.add(name)
        elif name not in _CALLED and name not in _KEPT:
            own[name] = value
            if isinstance(value, type):
                for near_name, near in _named_by(value):
                    (own if near_name[0].split(".")[0] != "river" else {}).setdefault(near_name, near)
                    river |= {near_name} if near_name[0].split(".")[0] == "river" else set()
    return _of_river(frozenset(river), tuple(own.items()))


@functools.lru_cache(maxsize=256)
def _of_river(used: frozenset[Name], own: tuple[tuple[Name, Any], ...]) -> Parts:
    modules = _reached(module for module, _ in used)
    classes = {name for name in used if name[1] in _CLASSES.get(name[0], ())}
    for module in modules:
        classes |= {(module, name) for name in _CLASSES.get(module, ())}
        for name in _code_names(module):
            classes |= _BY_LAST_NAME.get(name, set())
    functions = [name for name in _names(_FUNCTIONS) if name[0] in modules or name in used or "rust" in name[0]]
    return Parts({**{name: _resolve(name) for name in (*sorted(classes), *functions)}, **dict(own)})


def _reached(modules: Iterable[str]) -> set[str]:
    """Return River's modules, those that define what is named in one of them or an ancestor of it, and so on."""
    reached, waiting = set[str](), set(modules)
    while waiting:
        module = waiting.pop()
        reached.add(module)
        waiting |= _neighbours(module) - reached
    return reached


@functools.cache
def _neighbours(module: str) -> frozenset[str]:
    names, inside = _code_names(module), vars(importlib.import_module(module))
    near = {name[0] for last in names for name in _BY_LAST_NAME.get(last, ())}
    for name in names:
        thing = inside.get(name)
        ancestors = thing.__mro__ if isinstance(thing, type) else (thing,)
        near |= {getattr(one, "__module__", "") for one in ancestors if callable(one)}
    return frozenset(name for name in near if name and name.startswith("river."))


@functools.cache
def _code_names(module: str) -> frozenset[str]:
    """Return all names in a module's code, but those of what River makes for its own tests."""
    loader: Any = getattr(importlib.import_module(module).__spec__, "loader", None)
    code = loader.get_code(module) if hasattr(loader, "get_code") else None
    return frozenset(_in_code(code)) if code else frozenset()


def _in_code(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType) and inner.co_name != "_unit_test_params":
            yield from _in_code(inner)


def _named_by(one: type) -> Iterator[tuple[Name, Any]]:
    """Yield the classes that a pipeline's own class names, in its methods: of the same file, and of River's."""
    module = sys.modules.get(one.__module__)
    waiting, seen = [one], {one}
    while waiting:
        current = waiting.pop()
        for function in vars(current).values():
            function = inspect.unwrap(getattr(function, "__func__", function))
            if not isinstance(function, types.FunctionType):
                continue
            for name in _in_code(function.__code__):
                yield from ((near, None) for near in _BY_LAST_NAME.get(name, ()))
                thing = getattr(module, name, None)
                if isinstance(thing, type) and thing.__module__ == one.__module__ and thing not in seen:
                    seen.add(thing)
                    waiting.append(thing)
                    yield (thing.__module__, thing.__qualname__), thing


class _Recorder(pickle.Unpickler):
    """Reads what this process has just saved, to see what it names."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.used: dict[Name, Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        self.used[module, name] = value = super().find_class(module, name)
        return value


def _used(declared: Any) -> dict[Name, Any]:
    from tidemill.registry import snapshots  # which reads with what is found here

    recorder = _Recorder(snapshots.dump(copy.deepcopy(declared)))
    try:
        recorder.load()
    except Exception as error:  # it calls into the model's own classes
        raise ArtifactError(f"the model can't be opened again: {type(error).__name__}: {error}") from error
    return recorder.used
