"""Avro's schema resolution (Avro 1.12, "Schema Resolution"): whether one schema can read what another has written.

The rules are those of Apache Avro's own checker, to which Hypothesis holds them; they are here because every service
loads declarations, and that checker is an extra.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from tidemill.encoding.schema_files import logical_type
from tidemill.encoding.times import LOGICAL_UNITS

_PROMOTED = {
    ("int", "long"),
    ("int", "float"),
    ("int", "double"),
    ("long", "float"),
    ("long", "double"),
    ("float", "double"),
    ("string", "bytes"),
    ("bytes", "string"),
}
_FLOATS = ("float", "double")
#: Logical types that are numbers of something, beside timestamps.
_OTHER_UNITS = ("date", "time-millis", "time-micros", "time-nanos")


class Mismatch(NamedTuple):
    """Where two schemas do not fit, as a.b for a field in a record in a field; what it is about, and why."""

    field: str
    kind: str
    why: str

    def __str__(self) -> str:
        return f"field {self.field!r}: {self.why}" if self.field else f"the record: {self.why}"


def unreadable(writer: Any, reader: Any) -> Mismatch | None:
    """Return why `reader` can't read what `writer` has written; None where it can.

    Neither may be recursive. What only some values could not be read for (an enum's symbol, null) counts as unreadable.
    """
    return next(mismatches(writer, reader), None)


def mismatches(writer: Any, reader: Any) -> Iterator[Mismatch]:
    """Yield everything for which `reader` can't read what `writer` has written."""
    pair = _Pair(writer, reader)
    yield from pair.type(*pair.schemas, "")


def other_unit(writer: Any, reader: Any, units: Mapping[str, str] = MappingProxyType({})) -> Mismatch | None:
    """Return the first number that counts something else for `writer` than for `reader`; Avro itself reads it as it is.

    Times, dates and decimals have units in their schemas; `units` are those of the reader's fields that have none.
    Neither may be recursive, nor need they fit each other otherwise.
    """
    pair = _Units(writer, reader)
    return next(pair.record(*pair.schemas, "", units), None)


def unit_of(avro: Any) -> str:
    """Return what the numbers of a type count, so far as its schema says it; else nothing."""
    logical = logical_type(avro)
    if logical in LOGICAL_UNITS or logical in _OTHER_UNITS:
        return logical
    return f"decimal of scale {avro.get('scale', 0)}" if logical == "decimal" else ""


def _text_for_decimal(writer: Any, reader: Any) -> str:
    """Return why one has text and the other a decimal, whose bytes are no digits: Avro reads each as the other."""
    one, other = (unit_of(avro) or ("text" if _kind(avro) == "string" else "") for avro in (writer, reader))
    is_mixed = "text" in (one, other) and (one + other).count("decimal") == 1
    return f"it is {one} where {other} was expected" if is_mixed else ""


def promoted(writer: Mapping[str, Any], reader: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the fields that are whole numbers where `reader` has floats: legal, and often a producer's mistake."""
    kinds = {field["name"]: _kinds(field["type"]) for field in writer["fields"]}
    return tuple(
        field["name"]
        for field in reader["fields"]
        if any(kind in _FLOATS for kind in _kinds(field["type"]))
        and any(kind in ("int", "long") and kind not in _kinds(field["type"]) for kind in _written(kinds, field) or ())
    )


#: Where each field that is read comes from: (field, how, the writer's field, or the default).
FieldMapping = list[tuple[str, int, Any]]
_SAME, _FLOAT, _DEFAULT = range(3)
_NAMED = ("record", "error", "enum", "fixed")
_PRIMITIVES = ("boolean", "int", "long", "float", "double", "string", "bytes")


def field_mapping(writer: Mapping[str, Any], reader: Mapping[str, Any]) -> FieldMapping | None:
    """Return how `by_field` reads what `writer` has written; None where the schemas differ in more than it handles.

    It handles fields that are left out, added or made floats: the usual changes. The second schema must be able to read
    the first, and neither has logical types.
    """
    written = {field["name"]: field["type"] for field in writer["fields"]}
    mapping: FieldMapping = []
    for field in reader["fields"]:
        name = next((name for name in (field["name"], *field.get("aliases", ())) if name in written), None)
        default = field.get("default")
        if name is None:
            if isinstance(default, (list, dict)) or _primitive(field["type"]) in (None, "bytes"):
                return None
            mapping.append((field["name"], _DEFAULT, default))
            continue
        one, other = _primitive(written[name]), _primitive(field["type"])
        if one is None or other is None:
            return None
        if one == other or (one, other) == ("int", "long"):
            mapping.append((field["name"], _SAME, name))
        elif one in ("int", "long", "float") and other in _FLOATS:
            mapping.append((field["name"], _FLOAT, name))
        else:
            return None
    return mapping


def by_field(
    decode: Callable[[bytes, int], tuple[Any, int]], mapping: FieldMapping
) -> Callable[[bytes, int], tuple[Any, int]]:
    """Return a reader that decodes as the writer does and then follows the `mapping`: half the time of fastavro."""
    kept, floats, fixed = (
        [(name, value) for name, how, value in mapping if how == kind] for kind in (_SAME, _FLOAT, _DEFAULT)
    )
    defaults = dict(fixed)

    def read(data: bytes, at: int) -> tuple[Any, int]:
        source, end = decode(data, at)
        record = defaults.copy()
        for name, written in kept:
            record[name] = source[written]
        for name, written in floats:
            value = source[written]
            record[name] = None if value is None else float(value)
        return record, end

    return read


def _primitive(avro: Any) -> str | None:
    """Return the primitive type of a field, or of one that may be null; None for any other."""
    if isinstance(avro, list):
        others = [branch for branch in avro if branch != "null"]
        avro = others[0] if len(avro) == 2 and len(others) == 1 else None
    return avro if avro in _PRIMITIVES else None


def _written(types: Mapping[str, Any], field: Mapping[str, Any]) -> Any:
    """Return what the writer has for a field of the reader, which may know it by another name; None where nothing."""
    return next((types[name] for name in (field["name"], *field.get("aliases", ())) if name in types), None)


def _kinds(avro: Any) -> list[Any]:
    return [_kind(branch) for branch in avro] if isinstance(avro, list) else [_kind(avro)]


def _kind(avro: Any) -> Any:
    return _kind(avro["type"]) if isinstance(avro, Mapping) else avro


class _Pair:
    def __init__(self, writer: Any, reader: Any) -> None:
        self.names: tuple[dict[str, Any], dict[str, Any]] = {}, {}
        self.schemas = _in_full(writer, "", self.names[0]), _in_full(reader, "", self.names[1])

    def type(self, writer: Any, reader: Any, path: str) -> Iterator[Mismatch]:
        """Yield what is wrong, at `path`."""
        writer, reader = _known(writer, self.names[0]), _known(reader, self.names[1])
        if isinstance(writer, list):
            for branch in writer:
                yield from self.type(branch, reader, path)
        elif isinstance(reader, list):
            if not any(next(self.type(writer, branch, path), None) is None for branch in reader):
                yield _differs(writer, reader, path)
        elif (_kind(writer), _kind(reader)) in _PROMOTED:
            return
        elif _kind(writer) != _kind(reader):
            yield _differs(writer, reader, path)
        elif _kind(writer) == "array":
            yield from self.type(writer["items"], reader["items"], path)
        elif _kind(writer) == "map":
            yield from self.type(writer["values"], reader["values"], path)
        elif isinstance(writer, Mapping) and isinstance(reader, Mapping):
            yield from self._named(writer, reader, path)

    def _named(self, writer: Mapping[str, Any], reader: Mapping[str, Any], path: str) -> Iterator[Mismatch]:
        kind = _kind(writer)
        if kind not in ("record", "enum", "fixed"):
            return
        name = _full(writer).rpartition(".")[2]
        if name != _full(reader).rpartition(".")[2] and not {name, _full(writer)} & set(reader.get("aliases", ())):
            yield Mismatch(path, "name", f"{kind} {_full(writer)} is written where {_full(reader)} is read")
        if kind == "fixed" and writer["size"] != reader["size"]:
            yield Mismatch(path, "type", f"{writer['size']} bytes are written where {reader['size']} are read")
        if kind == "enum" and reader.get("default") not in reader["symbols"]:
            more = [symbol for symbol in writer["symbols"] if symbol not in reader["symbols"]]
            if more:
                yield Mismatch(path, "symbol", f"the symbol {more[0]!r} is written, and not known where it is read")
        if kind == "record":
            types = {field["name"]: field["type"] for field in writer["fields"]}
            for field in reader["fields"]:
                inner = f"{path}.{field['name']}".lstrip(".")
                written = _written(types, field)
                if written is not None:
                    yield from self.type(written, field["type"], inner)
                elif "default" not in field:
                    yield Mismatch(inner, "missing", "it is not written, and has no default where it is read")


class _Units(_Pair):
    def record(self, writer: Any, reader: Any, path: str, units: Mapping[str, str]) -> Iterator[Mismatch]:
        """Yield the numbers of other units in a record, or in anything else."""
        writer, reader = _known(writer, self.names[0]), _known(reader, self.names[1])
        if not isinstance(writer, Mapping) or not isinstance(reader, Mapping) or "fields" not in writer:
            return
        types = {field["name"]: field["type"] for field in writer["fields"]}
        for field in reader.get("fields", ()):
            written, name = _written(types, field), field["name"]
            if written is not None:
                yield from self.value(written, field["type"], f"{path}.{name}".lstrip("."), units.get(name, ""))

    def value(self, writer: Any, reader: Any, path: str, unit: str = "") -> Iterator[Mismatch]:
        """Yield those in a value; `unit` is the reader's, where its type has none."""
        writer, reader = _known(writer, self.names[0]), _known(reader, self.names[1])
        if isinstance(writer, list):
            for branch in writer:
                yield from self.value(branch, reader, path, unit)
        elif isinstance(reader, list):
            each = [list(self.value(writer, branch, path, unit)) for branch in reader if branch != "null"]
            yield from next((wrong for wrong in each if wrong), ()) if all(each) else ()
        elif why := _text_for_decimal(writer, reader):
            yield Mismatch(path, "unit", why)
        elif isinstance(writer, Mapping):
            one, other = unit_of(writer), unit_of(reader) or unit
            if one and other and LOGICAL_UNITS.get(one, one) != LOGICAL_UNITS.get(other, other):
                yield Mismatch(path, "unit", f"it is {one} where {other} was expected")
            for part in ("items", "values"):
                if isinstance(reader, Mapping) and part in writer and part in reader:
                    yield from self.value(writer[part], reader[part], f"{path}[]")
            yield from self.record(writer, reader, path, {})


def _in_full(avro: Any, space: str, names: dict[str, Any]) -> Any:
    """Return a schema with every name in full, as it is within `space`; its named types go into `names`."""
    if isinstance(avro, list):
        return [_in_full(branch, space, names) for branch in avro]
    if isinstance(avro, str):
        return f"{space}.{avro}" if f"{space}.{avro}" in names else avro
    if not isinstance(avro, Mapping):
        return avro
    made = {**avro}
    if avro.get("type") in _NAMED:
        made["name"] = _full(avro, space)
        space = made["name"].rpartition(".")[0]
        names.setdefault(made["name"], made)
    for part in ("type", "items", "values"):
        if part in avro:
            made[part] = _in_full(avro[part], space, names)
    if "fields" in avro:
        made["fields"] = [{**field, "type": _in_full(field["type"], space, names)} for field in avro["fields"]]
    return made


def _known(avro: Any, names: Mapping[str, Any]) -> Any:
    if isinstance(avro, Mapping) and isinstance(avro["type"], (Mapping, list)):
        return _known(avro["type"], names)
    return names.get(avro, avro) if isinstance(avro, str) else avro


def _full(avro: Mapping[str, Any], space: str = "") -> str:
    name, space = str(avro.get("name", "")), avro.get("namespace", space)
    return name if "." in name or not space else f"{space}.{name}"


def _differs(writer: Any, reader: Any, path: str) -> Mismatch:
    return Mismatch(path, "type", f"{_shown(writer)} is written where {_shown(reader)} is read")


def _shown(avro: Any) -> str:
    if isinstance(avro, list):
        return " or ".join(map(_shown, avro))
    kind = str(_kind(avro))
    return f"{kind} {_full(avro)}" if isinstance(avro, Mapping) and "name" in avro else kind
