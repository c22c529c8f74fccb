"""What a schema may ask of a decoder: whether a few bytes that fit it can cost very much.

A producer's message is read with the schema that it names, so a schema is input too, from files and registries alike.
Measured with fastavro 1.13: a record that contains itself takes the process down after 5 KB of bytes, five bytes of
`array<null>` take 267 MB, and ten records, each with ten of the next, make ten billion values of no byte at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tidemill.limits import SCHEMA_DEPTH, SCHEMA_FIELDS

_PRIMITIVES = frozenset(("null", "boolean", "int", "long", "float", "double", "bytes", "string"))


def unsafe(avro: Any) -> str:
    """Return why messages of this schema must not be decoded, naming the field; nothing where they may."""
    try:
        _Walk().type(avro, "", "", (), repeated=False)
    except _UnsafeError as error:
        return str(error)
    return ""


class _UnsafeError(Exception):
    pass


class _Walk:
    """Goes through a schema as a decoder would, each named type written out where it is used."""

    def __init__(self) -> None:
        self.named: dict[str, tuple[Any, str]] = {}
        self.seen = 0

    def type(self, avro: Any, path: str, space: str, inside: tuple[str, ...], *, repeated: bool) -> bool:
        """Go through one type; returns whether a value of it may take no bytes."""
        self.seen += 1
        if self.seen > SCHEMA_FIELDS.max:
            raise _UnsafeError(SCHEMA_FIELDS.excess(self.seen))
        if len(inside) > SCHEMA_DEPTH.max:
            raise _UnsafeError(SCHEMA_DEPTH.excess(len(inside), f"at {_field(path)}"))
        if isinstance(avro, list):
            for branch in avro:
                self.type(branch, path, space, inside, repeated=repeated and branch != "null")
            return False
        if isinstance(avro, str):
            return self._name(avro, path, space, inside, repeated=repeated)
        if not isinstance(avro, Mapping) or "type" not in avro:
            raise _UnsafeError(f"{_field(path)} has no type: {avro!r:.80}")
        kind = avro["type"]
        if kind in ("record", "error"):
            return self._record(avro, path, space, inside, repeated=repeated)
        if kind in ("array", "map"):
            self.type(avro.get("items" if kind == "array" else "values"), path, space, (*inside, ""), repeated=True)
            return False
        if kind == "fixed":
            self._named(avro, space)
            if type(avro.get("size")) is not int or avro["size"] < 0:
                raise _UnsafeError(f"{_field(path)} has a fixed size that is no size: {avro.get('size')!r:.80}")
            return self._width(avro["size"] == 0, path, repeated=repeated)
        if kind == "enum":
            self._named(avro, space)
            return False
        return self.type(kind, path, space, inside, repeated=repeated)

    def _name(self, name: str, path: str, space: str, inside: tuple[str, ...], *, repeated: bool) -> bool:
        if name in _PRIMITIVES:
            return self._width(name == "null", path, repeated=repeated)
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
    ) -> bool:
        full, space = self._named(avro, space)
        fields = avro.get("fields")
        if not isinstance(fields, list) or not all(isinstance(f, Mapping) and "name" in f for f in fields):
            raise _UnsafeError(f"{_field(path)} is a record whose fields can't be read")
        widths = [
            self.type(f.get("type"), f"{path}.{f['name']}".lstrip("."), space, (*inside, full), repeated=repeated)
            for f in fields
        ]
        return self._width(all(widths), path, repeated=repeated)

    def _named(self, avro: Mapping[str, Any], space: str) -> tuple[str, str]:
        name = str(avro.get("name", ""))
        namespace = avro.get("namespace", space)
        full = name if "." in name or not namespace else f"{namespace}.{name}"
        space = full.rpartition(".")[0]
        self.named.setdefault(full, (avro, space))
        return full, space

    @staticmethod
    def _width(is_empty: bool, path: str, *, repeated: bool) -> bool:
        if is_empty and repeated:
            raise _UnsafeError(f"{_field(path)} takes no bytes and may come any number of times")
        return is_empty


def _field(path: str) -> str:
    return f"field {path!r}" if path else "the schema"
