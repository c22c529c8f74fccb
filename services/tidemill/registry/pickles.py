"""A pickle is tried before it is read: nothing that it names is made, called or changed while it is.

opcodes  are walked first, by a regular expression. Those that our own pickles don't have are refused: they look up
         extensions and persistent ids, call by other ways, or put a value at any place of the memo, which makes room
         for all places before it. So are texts and bytes that are longer than the pickle.
trial    Then Python's own unpickler reads the pickle with stand-ins. A class is a stand-in that makes empty objects
         and can neither be called nor changed; a function is one that looks at what it is given. Since it is the same
         unpickler that reads the pickle afterwards, it does the same then, with the real things.

What is left by the trial: names of the given parts, calls of functions that may be called, and states that are set on
objects of classes.
"""

from __future__ import annotations

import collections
import functools
import inspect
import pickle
import re
import threading
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from tidemill.errors import ArtifactError

Name = tuple[str, str]

#: Texts of at most so many bytes are walked by the expression itself, longer ones one by one.
_SHORT_TEXT_BYTES = 48


def _sized(opcode: int, sizes: Iterable[int]) -> bytes:
    """Return a pattern of an opcode, one byte that says a size, and so many bytes."""
    return rb"\x%02x(?:%s)" % (opcode, b"|".join(rb"\x%02x.{%d}" % (size, size) for size in sizes))


#: Opcodes of one byte: marks, containers, tuples, MEMOIZE, what is done with them, None and flags.
_PLAIN = rb"[(}\]\x8f)\x85\x86\x87t\x91\x94ueas\x90bR\x81\x93N\x88\x89]"
#: A token is taken with what often follows it, as a name with its value: it saves two fifths of the time. The commonest
#: is the first, runs of one kind are taken by four, and dots are spelt out, since a counted one costs five of them.
_TOKENS = re.compile(
    rb"(?:h.(?:G........(?:h.G........)*+|K.|h.|J....|)%(plain)s*+|j....(?:G........|K.|j....|)%(plain)s*+|%(plain)s++"
    rb"|%(text)s(?:\x94(?:G........|K.|)%(plain)s*+|)|G........"
    rb"|K.(?:K.K.K.(?:K.K.K.K.)*+|G........(?:K.G........)*+|K.|M..|)%(plain)s*+"
    rb"|M..(?:G........(?:M..G........)*+|M..|K.|)%(plain)s*+|J....|%(number)s)*+"
    % {
        b"plain": _PLAIN,
        b"text": _sized(0x8C, range(_SHORT_TEXT_BYTES + 1)),
        b"number": _sized(0x8A, range(10)),
    },
    re.DOTALL,
)
#: How many bytes say the length of a text, bytes or a number, by opcode.
_LENGTH_BYTES = {0x8C: 1, 0x58: 4, 0x8D: 8, 0x43: 1, 0x42: 4, 0x8E: 8, 0x8A: 1, 0x8B: 4}
_FRAME, _STOP, _GLOBAL = 0x95, 0x2E, 0x63


def check_opcodes(data: bytes) -> None:
    """Raise ArtifactError where a pickle has opcodes that ours don't have, is cut off, or goes on after its end."""
    position, end = 2, len(data)
    if data[:1] != b"\x80" or data[1:2] not in (b"\x04", b"\x05"):
        _refuse_opcode(data, 0)
    while True:
        position = _TOKENS.match(data, position).end()  # type: ignore[union-attr]
        opcode = data[position] if position < end else -1
        if opcode == _STOP and position + 1 == end:
            return
        if opcode == _FRAME:
            size, begin = 0, position + 9
        elif opcode in _LENGTH_BYTES:
            begin = position + 1 + _LENGTH_BYTES[opcode]
            size = int.from_bytes(data[position + 1 : begin], "little")
        else:
            _refuse_opcode(data, position)
        position = begin + size
        if position > end:
            raise ArtifactError("the snapshot can't be read: it is cut off")


def _refuse_opcode(data: bytes, position: int) -> NoReturn:
    if position >= len(data):
        raise ArtifactError("the snapshot can't be read: it is cut off")
    if data[position] == _GLOBAL:  # a name, in protocols before 4
        module, name = [*data[position + 1 :].split(b"\n"), b""][:2]
        refuse_name((module.decode(errors="replace"), name.decode(errors="replace")))
    raise ArtifactError(
        f"a snapshot may not contain the pickle opcode 0x{data[position]:02x} (at byte {position:,}): no learner of "
        f"this Tidemill wrote it"
    )


def refuse_name(name: Name) -> NoReturn:
    """Raise ArtifactError for a name that is not among the parts."""
    raise ArtifactError(
        f"a snapshot may not contain {'.'.join(name)}; only the declared model's classes and plain values are allowed"
    )


# Stand-ins ------------------------------------------------------------------------------------------------------------


class EmptyType(type):
    """The type of stand-ins for classes. Its `__setstate__` is a property, so that none of a class goes before it."""

    real: Any

    def __call__(cls, *_: Any, **__: Any) -> NoReturn:
        raise ArtifactError(f"a snapshot may not call {cls.__name__}")

    def __setattr__(cls, name: str, _: Any) -> NoReturn:
        raise ArtifactError(f"a snapshot may not set {name!r} on the class {cls.__name__}")

    @property
    def __setstate__(cls) -> NoReturn:
        raise ArtifactError(f"a snapshot may not set a state on the class {cls.__name__}")


class Empty(metaclass=EmptyType):
    """A stand-in for an object. It is given one state, as our own pickles do it: a dict of names, and one of slots.

    A second state would go to what the first has put in the place of `__setstate__`, and an item to what it has put in
    the place of `append`. A slot that is a property would call that property's function.
    """

    __slots__ = ()
    #: Names that no state may have, and no slots; and whether the class takes other states, by its own function.
    refused: frozenset[str] = frozenset()
    refused_slots: frozenset[str] = frozenset()
    takes_any = False

    def _look(self, state: Any) -> None:
        if self.takes_any:
            return
        cls = type(self)
        names, slots = state if type(state) is tuple and len(state) == 2 else (state, {})
        if not ((names is None or type(names) is dict) and (slots is None or type(slots) is dict)):
            raise ArtifactError(f"a snapshot may not set anything but names and values on a {cls.__name__}")
        for given, refused in ((names, cls.refused), (slots, cls.refused_slots)):
            if given and not refused.isdisjoint(given):
                raise ArtifactError(f"a snapshot may not set {min(refused.intersection(given))!r} on a {cls.__name__}")


def _refuse_state(self: Empty, _: Any) -> NoReturn:
    raise ArtifactError(f"a snapshot may not set a state twice on a {type(self).__name__}")


class _EmptyTuple(Empty):
    __slots__ = ()

    def __new__(cls, *_: Any) -> _EmptyTuple:
        return object.__new__(cls)


class _EmptyDict(Empty, dict):  # type: ignore[type-arg]
    __slots__ = ()
    __hash__ = object.__hash__  # type: ignore[assignment]


class _EmptyList(Empty, list):  # type: ignore[type-arg]
    __slots__ = ()
    __hash__ = object.__hash__  # type: ignore[assignment]


#: By these the unpickler adds to an object that is no list itself.
_FILLS = frozenset(("append", "extend"))
_BASES: Mapping[type, type] = {
    dict: _EmptyDict,
    list: _EmptyList,
    collections.deque: _EmptyList,
    tuple: _EmptyTuple,
}


@functools.lru_cache(maxsize=4096)  # looking at a class takes longer than all else; its stand-in has no state
def stand_in(name: Name, real: type) -> type:
    """Return a stand-in for a class, whose objects are filled as those of the class are."""
    base = next((empty for plain, empty in _BASES.items() if issubclass(real, plain)), Empty)
    fills = _FILLS if base is _EmptyList else frozenset[str]()
    set_state = inspect.getattr_static(real, "__setstate__", None)

    def take_state(self: Empty, state: Any) -> None:
        if fills or type(state) is not dict:  # nearly all states are such dicts
            self._look(state)
        self.__class__ = filled  # which takes no other one

    looks = {
        "refused": fills,
        "refused_slots": fills | {name for name in dir(real) if _calls(inspect.getattr_static(real, name, None))},
        "takes_any": isinstance(set_state, types.FunctionType) and not set_state.__module__.startswith("river."),
    }
    inside = {"__slots__": (), "real": real, "__setstate__": take_state, **_refused_calls(real)}
    empty: type = EmptyType.__new__(EmptyType, ".".join(name), (base,), inside | looks)
    inside["__setstate__"] = _refuse_state
    filled: Any = EmptyType.__new__(EmptyType, empty.__name__, (empty,), inside)
    return empty


#: Special methods by which a class takes a state, or part of one, in its own way.
_OWN_WAYS = ("__setstate__", "__getattr__", "__getattribute__", "__setattr__")


@functools.lru_cache(maxsize=4096)
def quick_stand_in(name: Name, real: type) -> type:
    """Return a stand-in whose states C alone looks at, if the class takes them as most do.

    It is enough for a snapshot that has no `__setstate__` as a name: then no state puts anything in the way of another.
    An object with a `__dict__` takes any names and values, one with slots those alone; `__class__` is none of them.
    """
    plain = issubclass(real, tuple(_BASES)) is False and all(
        inspect.getattr_static(real, way, None) is getattr(object, way, None) for way in _OWN_WAYS
    )
    slots = tuple(
        name for base in real.__mro__ for name, one in vars(base).items() if isinstance(one, types.MemberDescriptorType)
    )
    if not plain or bool(slots) is bool(real.__dictoffset__) or "real" in slots:
        return stand_in(name, real)
    takes = {"__class__": property()} if slots else {"__setstate__": staticmethod(dict.keys)}  # no dict: TypeError
    inside = {"__slots__": slots, "real": real, **_refused_calls(real)}
    empty: type = EmptyType.__new__(EmptyType, ".".join(name), (Empty,), inside | takes)
    return empty


def _refused_calls(real: Any) -> dict[str, Any]:
    """Return what makes objects of a stand-in look as if they could be called, where those of the class can be."""
    return {"__call__": _refuse_call} if inspect.getattr_static(real, "__call__", None) else {}


def _refuse_call(self: Empty, *_: Any) -> NoReturn:
    raise ArtifactError(f"a snapshot may not call a {type(self).__name__}")


def _calls(attribute: Any) -> bool:
    """Whether a function is called where a class has this and a name of its object is set."""
    return hasattr(type(attribute), "__set__") and not isinstance(attribute, types.MemberDescriptorType)


class Held:
    """A stand-in for a function or a plain type that a model keeps as a value."""

    __slots__ = ("real",)

    def __init__(self, real: Any) -> None:
        self.real = real

    def __call__(self, *_: Any) -> Any:  # what can be called may be the default of a `defaultdict`
        raise ArtifactError(f"a snapshot may not call {self.real!r}")

    def __setstate__(self, _: Any) -> NoReturn:
        raise ArtifactError(f"a snapshot may not set a state on {self.real!r}")


#: Values of at most so many bytes or items may be given to any number of calls: names of types, and the like.
FREE_SIZE = 64
_SIZED = (bytes, str, tuple, list, dict)


class _Load(threading.local):
    """What this thread opens."""

    #: How many bytes and items may still be given to calls.
    left = 0
    #: What calls have made in the trial, and how it is taken from there afterwards.
    made: list[Any]
    replay: Callable[[], Any]


_load = _Load()


def spend(size: int) -> None:
    """Take note that a call copies or walks so many bytes or items.

    Our own pickles have what they give to a call for this call alone. One that gives the same megabyte to a thousand
    calls, by its memo, would make gigabytes. Raises ArtifactError where calls were given more than the pickle has.
    """
    _load.left -= size
    if _load.left < 0:
        raise ArtifactError("a snapshot may not make more than it has, by giving the same values to several calls")


class Call(Held):
    """A stand-in for a function that may be called: it looks at what it is given, and returns another stand-in."""

    __slots__ = ("look",)

    def __init__(self, real: Any, look: Callable[..., Any]) -> None:
        super().__init__(real)
        self.look = look

    def __call__(self, *arguments: Any) -> Any:
        for value in arguments:
            size = value.bit_length() // 8 if type(value) is int else len(value) if isinstance(value, _SIZED) else 0
            if size > FREE_SIZE:
                spend(size)
        return self.look(*arguments)


def free_call(real: Any, look: Callable[..., Any]) -> Held:
    """Return a stand-in for a function that neither copies nor walks what it is given."""
    kind: type[Held] = type("FreeCall", (Held,), {"__slots__": (), "__call__": staticmethod(look)})
    return kind(real)  # a frame less than Call


class Made:
    """A stand-in for what a function returned."""

    __slots__ = ("real",)

    def __init__(self, real: Any = None) -> None:
        self.real = real

    def __setstate__(self, _: Any) -> NoReturn:
        raise ArtifactError("a snapshot may not set a state on what a function returned")


class MadeFunction(Made):
    """A stand-in for a function that a function returned."""

    __slots__ = ()

    def __call__(self, *_: Any) -> NoReturn:
        raise ArtifactError("a snapshot may not call what a function returned")


def make(function: Callable[..., Any], arguments: Iterable[Any]) -> Made:
    """Call a function of plain values for good: what it makes is used when the pickle is read."""
    made = function(*arguments)
    _load.made.append(made)
    return MadeFunction(made) if callable(made) else Made(made)


def replay(*_: Any) -> Any:
    """Return what the trial has made at this place of the pickle."""
    return _load.replay()


# Reading --------------------------------------------------------------------------------------------------------------


class Unpickler(pickle.Unpickler):
    """Looks names up by a function of its class, and nowhere else."""

    __slots__ = ()


def unpickler(table: Mapping[Name, Any]) -> type[Unpickler]:
    """Return an unpickler that makes what a table has under a name, and raises ArtifactError for any other one."""

    @functools.lru_cache(maxsize=len(table))  # not for what it saves: it is in C, and called for each name
    def find_class(module: str, name: str) -> Any:
        try:
            return table[module, name]
        except KeyError:
            refuse_name((module, name))

    return type("Unpickler", (Unpickler,), {"__slots__": (), "find_class": staticmethod(find_class)})


def tried(trial: pickle.Unpickler, size: int) -> list[Any]:
    """Read a pickle of `size` bytes with stand-ins. Return what its calls have made for good, in their order."""
    made: list[Any] = []
    _load.left, _load.made = size, made
    try:
        _read(trial)
    finally:
        del _load.made
    return made


def read(unpickler: pickle.Unpickler, made: list[Any]) -> Any:
    """Return what a pickle says; `made` is of its trial. Raises ArtifactError where it can't be read."""
    if not made:
        return _read(unpickler)
    before = getattr(_load, "replay", None)  # a class of the pipeline's own may open another one as it is opened
    _load.replay = iter(made).__next__
    try:
        return _read(unpickler)
    finally:
        _load.replay = before  # type: ignore[assignment]


def _read(unpickler: pickle.Unpickler) -> Any:
    try:
        return unpickler.load()
    except ArtifactError:
        raise
    except Exception as error:  # a model's own classes may raise anything
        raise ArtifactError(f"the snapshot can't be read: {type(error).__name__}: {error}") from error


def release(unpickler: pickle.Unpickler) -> None:
    """Let go of what an unpickler has read one by one, so that other threads run meanwhile."""
    made = unpickler.memo.copy()
    unpickler.memo.clear()
    for place in range(len(made)):
        del made[place]
