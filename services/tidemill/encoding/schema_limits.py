"""What a schema may ask of a decoder: whether a few bytes that fit it can cost very much.

A producer's message is read with the schema that it names, so a schema is input too, from files and registries alike.
Measured with fastavro 1.13: a record that contains itself takes the process down after 5 KB of bytes, five bytes of
`array<null>` take 267 MB, and ten records, each with ten of the next, make ten billion values of no byte at all. A byte
of an array of records, eight in one another around a boolean, takes 1.5 KB.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tidemill.limits import SCHEMA_DEPTH, SCHEMA_FIELDS

#: Fewest bytes of each, in Avro and in JSON. Such a value takes no memory of its own: Python has each of them once.
_PRIMITIVES = {
    "null": (0, 4),
    "boolean": (1, 4),
    "int": (1, 1),
    "long": (1, 1),
    "float": (4, 1),
    "double": (8, 1),
    "bytes": (1, 2),
    "string": (1, 2),
}
#: The worst of scalars: a text of two characters, which takes three bytes in a message, and 59 of memory in a list.
_SCALAR_MEMORY_PER_BYTE = 20
_EMPTY_CONTAINER_MEMORY, _FIXED_MEMORY = 64, 48


class Memory(NamedTuple):
    """Bytes of memory for each byte of a message in Avro, and in JSON."""

    avro: int
    json: int


def unsafe(avro: Any) -> str:
    """Return why messages of this schema must not be decoded, naming the field; nothing where they may."""
    try:
        _Walk().type(avro, "", "", (), repeated=False)
    except _UnsafeError as error:
        return str(error)
    return ""


def memory_per_byte(avro: Any) -> Memory:
    """Return how many bytes of memory one byte of a long message may take at worst, where the schema is not unsafe."""
    walk = _Walk()
    walk.type(avro, "", "", (), repeated=False)
    return walk.memory_per_byte


class _UnsafeError(Exception):
    pass


class _Least(NamedTuple):
    """The fewest bytes that a value may take in a message, and the memory that it then takes at most.

    In JSON an array of records may be shorter than in Avro: a field with a default may be left out.
    """

    bytes: int
    json: int
    memory: int


#: What an item adds to its own size: its place in a list, or in a dictionary, with its key.
_LIST_ITEM, _MAP_ITEM = _Least(0, 1, 9), _Least(2, 5, 150)


class _Walk:
    """Goes through a schema as a decoder would, each named type written out where it is used."""

    def __init__(self) -> None:
        self.named: dict[str, tuple[Any, str]] = {}
        self.seen = 0
        self.memory_per_byte = Memory(_SCALAR_MEMORY_PER_BYTE, _SCALAR_MEMORY_PER_BYTE)

    def type(self, avro: Any, path: str, space: str, inside: tuple[str, ...], *, repeated: bool) -> _Least:
        """Go through one type; returns its smallest value."""
        self.seen += 1
        if self.seen > SCHEMA_FIELDS.max:
            raise _UnsafeError(SCHEMA_FIELDS.excess(self.seen))
        if len(inside) > SCHEMA_DEPTH.max:
            raise _UnsafeError(SCHEMA_DEPTH.excess(len(inside), f"at {_field(path)}"))
        if isinstance(avro, list):
            self._check_union(avro, path)
            branches = [
                self.type(branch, path, space, inside, repeated=repeated and branch != "null") for branch in avro
            ]
            json = min((least.json for least in branches), default=0)
            return _Least(1, json, max((least.memory for least in branches), default=0))
        if isinstance(avro, str):
            return self._name(avro, path, space, inside, repeated=repeated)
        if not isinstance(avro, Mapping) or "type" not in avro:
            raise _UnsafeError(f"{_field(path)} has no type: {avro!r:.80}")
        kind = avro["type"]
        if kind in ("record", "error"):
            return self._record(avro, path, space, inside, repeated=repeated)
        if kind in ("array", "map"):
            least = self.type(
                avro.get("items" if kind == "array" else "values"), path, space, (*inside, ""), repeated=True
            )
            item = _LIST_ITEM if kind == "array" else _MAP_ITEM
            memory, worst = least.memory + item.memory, self.memory_per_byte
            self.memory_per_byte = Memory(
                max(worst.avro, memory // (least.bytes + item.bytes)),
                max(worst.json, memory // (least.json + item.json)),
            )
            return _Least(1, 2, _EMPTY_CONTAINER_MEMORY)
        if kind == "fixed":
            self._named(avro, space)
            if type(avro.get("size")) is not int or avro["size"] < 0:
                raise _UnsafeError(f"{_field(path)} has a fixed size that is no size: {avro.get('size')!r:.80}")
            size = avro["size"]
            return self._least(_Least(size, size + 2, size and _FIXED_MEMORY), path, repeated=repeated)
        if kind == "enum":
            self._named(avro, space)
            if not avro.get("symbols"):
                raise _UnsafeError(f"{_field(path)} is an enum without symbols")
            return _Least(1, 3, 0)
        return self.type(kind, path, space, inside, repeated=repeated)

    @staticmethod
    def _check_union(branches: Sequence[Any], path: str) -> None:
        """No value would say which of two equal branches it is of, and no other reader takes a union in a union."""
        if any(isinstance(branch, list) for branch in branches):
            raise _UnsafeError(f"{_field(path)} is a union in a union")
        names = [_branch(branch) for branch in branches]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise _UnsafeError(f"{_field(path)} is a union that has {twice!r:.80} twice")

    def _name(self, name: str, path: str, space: str, inside: tuple[str, ...], *, repeated: bool) -> _Least:
        if name in _PRIMITIVES:
            return self._least(_Least(*_PRIMITIVES[name], 0), path, repeated=repeated)
        full = name if "." in name or not space else f"{space}.{name}"
        full = full if full in self.named else name
        if full in inside:
            raise _UnsafeError(f"{_field(path)} makes the schema recursive: {full} contains itself")
        if full not in self.named:
            raise _UnsafeError(f"{_field(path)} is of the type {name!r}, which is not known")
        avro, space = self.named[full]
        return self.type(avro, path, space, inside, repeated=repeated)

    def _record(
        self, avro: Mapping[str, Any], path: str, space: str, inside: tuple[str, ...], *, repeated: bool
    ) -> _Least:
        full, space = self._named(avro, space)
        fields = avro.get("fields")
        if not isinstance(fields, list) or not all(isinstance(f, Mapping) and "name" in f for f in fields):
            raise _UnsafeError(f"{_field(path)} is a record whose fields can't be read")
        names = [f["name"] for f in fields]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise _UnsafeError(f"field {f'{path}.{twice}'.lstrip('.')!r} is declared twice")
        values = [
            self.type(f.get("type"), f"{path}.{f['name']}".lstrip("."), space, (*inside, full), repeated=repeated)
            for f in fields
        ]
        memory = sys.getsizeof(dict.fromkeys(range(len(fields)))) + sum(least.memory for least in values)
        needed = [
            len(str(f["name"])) + 4 + least.json for f, least in zip(fields, values, strict=True) if "default" not in f
        ]
        record = _Least(sum(least.bytes for least in values), 2 + sum(needed), memory)
        return self._least(record, path, repeated=repeated)

    def _named(self, avro: Mapping[str, Any], space: str) -> tuple[str, str]:
        name = str(avro.get("name", ""))
        namespace = avro.get("namespace", space)
        full = name if "." in name or not namespace else f"{namespace}.{name}"
        space = full.rpartition(".")[0]
        self.named.setdefault(full, (avro, space))
        return full, space

    @staticmethod
    def _least(least: _Least, path: str, *, repeated: bool) -> _Least:
        if not least.bytes and repeated:
            raise _UnsafeError(f"{_field(path)} takes no bytes and may come any number of times")
        return least


def _branch(avro: Any) -> str:
    """Return by what a branch of a union is told from others: the name of its type."""
    if not isinstance(avro, Mapping):
        return str(avro)
    name = str(avro.get("name", avro.get("type")))
    return f"{avro['namespace']}.{name}" if avro.get("namespace") else name


def _field(path: str) -> str:
    return f"field {path!r}" if path else "the schema"
