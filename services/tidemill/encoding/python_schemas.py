"""Avro schemas from Python classes: a dataclass, a pydantic model, a TypedDict, or a mapping of names to types.

Also a NamedTuple, and classes of attrs and msgspec. Of a generic class, its types are those it is declared with:
`Measured[float]` is the record `Measured_float`.

The record is named after its class, without the module: a file has another module's name on every machine. A class
may say another name, as `__avro_name__ = "com.example.Departure"`.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime as dt
import enum
import inspect
import re
import sys
import types
import typing
import uuid
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from tidemill.encoding.times import MILLIS_TYPE, PER_SECOND

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: What a field may be, as errors say it.
EXPECTED = (
    "int, float, str, bool, bytes, datetime, date, time, UUID, Annotated[Decimal, (precision, scale)], an Enum or "
    "Literal of texts or of whole numbers, list[T], dict[str, T], T | None, or another such class"
)
_TYPES: Mapping[Any, Any] = {
    bool: "boolean",
    int: "long",
    float: "double",
    str: "string",
    bytes: "bytes",
    dt.date: {"type": "int", "logicalType": "date"},
    dt.time: {"type": "long", "logicalType": "time-micros"},
    uuid.UUID: {"type": "string", "logicalType": "uuid"},
}
_LISTS = (list, tuple, collections.abc.Sequence, collections.abc.MutableSequence)
_MAPS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
#: What annotations that are text may name, where they come without the module that they were written in.
_NAMES = {name: getattr(typing, name) for name in ("Annotated", "Any", "Dict", "List", "Literal", "Optional", "Union")}
_NAMES |= {"datetime": dt.datetime, "date": dt.date, "time": dt.time, "UUID": uuid.UUID, "Decimal": Decimal}
#: What pydantic calls times that it checks more strictly.
_PYDANTIC_TIMES = ("AwareDatetime", "NaiveDatetime", "PastDatetime", "FutureDatetime")
_PYDANTIC_DATES = ("PastDate", "FutureDate")
_UNIX_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_NOTHING: Any = object()


class _Field(NamedTuple):
    """One field as its class declares it; `default` is _NOTHING where it has none."""

    name: str
    type: Any
    metadata: Sequence[Any]
    default: Any
    is_made: bool = False


def is_declaration(given: Any) -> bool:
    """Whether this is a class, or annotations, that a schema can be made of."""
    if isinstance(given, Mapping):
        return True
    kind = _class_of(given)
    return isinstance(kind, type) and (
        dataclasses.is_dataclass(kind)
        or _is_typed_dict(kind)
        or any(hasattr(kind, mark) for mark in ("model_fields", "__attrs_attrs__", "__struct_fields__"))
        or (issubclass(kind, tuple) and hasattr(kind, "_field_defaults"))
    )


def as_dict(record: Any) -> dict[str, Any]:
    """Return the fields of an instance of such a class, each as it is."""
    if dataclasses.is_dataclass(record):
        return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    if isinstance(record, tuple):
        return dict(record._asdict())  # type: ignore[attr-defined]
    if attributes := getattr(record, "__attrs_attrs__", None):
        return {attribute.name: getattr(record, attribute.name) for attribute in attributes}
    if names := getattr(record, "__struct_fields__", None):
        return {name: getattr(record, name) for name in names}
    values: dict[str, Any] = record.model_dump()
    return values


def as_plain(value: Any) -> Any:
    """Return a value as rows have it: instances as mappings, members of an Enum as their values, at any depth."""
    if isinstance(value, enum.Enum):
        return value.value
    if is_declaration(type(value)):
        value = as_dict(value)
    if isinstance(value, Mapping):
        return {name: as_plain(one) for name, one in value.items()}
    return [as_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def _class_of(given: Any) -> Any:
    """Return the class; of a generic one with its types, as Measured[float], the generic one."""
    return typing.get_origin(given) or given


def _is_typed_dict(given: Any) -> bool:
    """Whether this is a TypedDict, also that of typing_extensions."""
    return typing.is_typeddict(given) or (hasattr(given, "__total__") and hasattr(given, "__required_keys__"))


def source_of(given: Any) -> str:
    """Return where the class is written, as errors and `tidemill check` show it."""
    if isinstance(given, Mapping):
        return "the declaration's annotations"
    kind = _class_of(given)
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return f"class {kind.__qualname__} of {Path(file).name if file else kind.__module__}"


def name_of(given: Any) -> str:
    """Return how people call the class."""
    if typing.get_origin(given):
        return "_".join([name_of(_class_of(given)), *map(_part_of_name, typing.get_args(given))])
    return _part_of_name(given) if "[" in getattr(given, "__name__", "") else str(getattr(given, "__name__", "Record"))


def _part_of_name(given: Any) -> str:
    shown = given.__name__ if isinstance(given, type) and not typing.get_args(given) else str(given)
    return re.sub(r"\W+", "_", re.sub(r"\b\w+\.", "", shown)).strip("_")


def record_of(given: Any) -> dict[str, Any]:
    """Return the Avro record schema of a class, or of annotations.

    Raises ValueError with one line that names the field and what was expected.
    """
    if not is_declaration(given):
        raise ValueError(f"{given!r} where a dataclass, a pydantic model or a TypedDict was expected")
    avro: dict[str, Any] = _Derivation().record(given, "")
    return avro


class _Derivation:
    """The classes that were met so far: a name is written out once, and then referred to."""

    def __init__(self) -> None:
        self.named: dict[str, Any] = {}

    def record(self, given: Any, path: str) -> Any:
        name = self._full_name(given, path)
        if name in self.named:
            return self._reference(name, given, path)
        self.named[name] = given
        try:
            declared = list(_fields(given))
        except Exception as error:  # a name that is not defined, or whatever an annotation raises
            raise ValueError(f"the annotations of {name_of(given)} can't be read: {error}") from None
        if not declared:
            raise ValueError(f"{name_of(given)} has no fields")
        return {"type": "record", "name": name, "fields": [self._field(field, name, path) for field in declared]}

    def _full_name(self, given: Any, path: str) -> str:
        name = str(getattr(_class_of(given), "__avro_name__", name_of(given)))
        if not all(map(_NAME.fullmatch, name.split("."))):
            raise ValueError(f"{_where(path)}{name!r} is no Avro name: set __avro_name__ to letters, digits and _")
        return name

    def _reference(self, name: str, given: Any, path: str) -> str:
        if self.named[name] != given:
            raise ValueError(f"{_where(path)}two classes are called {name}: rename one, or give it an __avro_name__")
        return name

    def _field(self, field: _Field, record: str, path: str) -> dict[str, Any]:
        path = f"{path}.{field.name}" if path else field.name
        if not _NAME.fullmatch(field.name):
            raise ValueError(f"{_where(path)}no name of an Avro field: expected letters, digits and _, a letter first")
        literal = f"{record}_{field.name}"
        type_ = self.type(field.type, path, literal, field.metadata)
        if field.default is _NOTHING:
            return {"name": field.name, "type": type_}
        is_container = isinstance(field.default, (list, tuple, dict)) or is_declaration(type(field.default))
        if field.is_made and not is_container:
            raise ValueError(f"{_where(path)}its default is made by a function each time: give a constant, or none")
        default = _default(field.default, type_, path, self.named)
        if isinstance(type_, list) and default is not None:
            type_ = type_[::-1]  # a default is of a union's first branch
        return {"name": field.name, "type": type_, "default": default}

    def type(self, given: Any, path: str, literal: str, metadata: Sequence[Any] = ()) -> Any:
        """Return the Avro type of an annotation; a Literal is named `literal`."""
        while True:
            if isinstance(given, typing.NewType):
                given = given.__supertype__
            elif typing.get_origin(given) is typing.Annotated:
                given, *more = typing.get_args(given)
                metadata = (*more, *metadata)
            elif typing.get_origin(given) is typing.Final:
                (given,) = typing.get_args(given)
            elif hasattr(given, "__value__") and type(given).__name__ == "TypeAliasType":
                given = given.__value__
            else:
                break
        origin, arguments = typing.get_origin(given), typing.get_args(given)
        if origin in (typing.Union, types.UnionType):
            return self._union(arguments, given, path, literal, metadata)
        if origin is typing.Literal:
            if None in arguments and len(arguments) > 1:
                rest = tuple(value for value in arguments if value is not None)
                return ["null", self._enum(literal, rest, given, path)]
            return self._enum(literal, arguments, given, path)
        is_list = len(arguments) == 1 or (origin is tuple and arguments[1:] == (...,))
        if origin in _LISTS and is_list:
            return {"type": "array", "items": self.type(arguments[0], f"{path}[]", literal)}
        if origin in _MAPS and len(arguments) == 2 and arguments[0] is str:
            return {"type": "map", "values": self.type(arguments[1], f"{path}[]", literal)}
        if given is Decimal:
            return _decimal_type(metadata, path)
        if given is dt.datetime or getattr(given, "__name__", "") in _PYDANTIC_TIMES:
            return _time_type(metadata, path)
        if getattr(given, "__name__", "") in _PYDANTIC_DATES:
            given = dt.date
        if isinstance(given, type) and issubclass(given, enum.Enum):
            if _are_whole(members := [member.value for member in given]):
                return "long"
            name = self._full_name(given, path)
            if name in self.named:
                return self._reference(name, given, path)
            self.named[name] = given
            return self._enum(name, members, given, path)
        if is_declaration(given) and not isinstance(given, Mapping):
            return self.record(given, path)
        try:
            return _TYPES[given]
        except (KeyError, TypeError):
            raise ValueError(f"{_where(path)}{_shown(given)} where one of these was expected: {EXPECTED}") from None

    def _union(self, branches: Sequence[Any], given: Any, path: str, literal: str, metadata: Sequence[Any]) -> Any:
        others = [branch for branch in branches if branch is not type(None)]
        if len(others) != 1 or len(branches) != 2:
            raise ValueError(f"{_where(path)}{_shown(given)} where one type, or one type | None, was expected")
        inner = self.type(others[0], path, literal, metadata)
        return inner if isinstance(inner, list) else ["null", inner]

    def _enum(self, name: str, values: Sequence[Any], given: Any, path: str) -> Any:
        """Return the enum of these values; of whole numbers, which Avro has no enum of, the whole number."""
        symbols = [as_plain(value) for value in values]
        if not symbols:
            raise ValueError(f"{_where(path)}{_shown(given)} has no members")
        if _are_whole(symbols):
            return "long"
        for symbol in symbols:
            if not isinstance(symbol, str) or not _NAME.fullmatch(symbol):
                raise ValueError(
                    f"{_where(path)}{_shown(given)} has {symbol!r}, which is no symbol of an Avro enum (a text of "
                    f"letters, digits and _, a letter first): use str, and the rule one_of"
                )
        return {"type": "enum", "name": name, "symbols": [str.__str__(symbol) for symbol in symbols]}


def _are_whole(values: Sequence[Any]) -> bool:
    return bool(values) and all(type(value) is int for value in values)


def _fields(given: Any) -> Iterator[_Field]:
    if isinstance(given, Mapping):
        hints = typing.get_type_hints(_holder(given), localns=_NAMES, include_extras=True)
        yield from (_Field(str(name), hints[name], (), _NOTHING) for name in given)
        return
    hints, given = _hints_of(given), _class_of(given)
    if _is_typed_dict(given):
        for name, hint in hints.items():
            needed = name in given.__required_keys__
            while (mark := str(typing.get_origin(hint)).rpartition(".")[2]) in ("Required", "NotRequired", "ReadOnly"):
                needed = needed if mark == "ReadOnly" else mark == "Required"
                (hint,) = typing.get_args(hint)
            yield _Field(name, hint if needed else hint | None, (), _NOTHING if needed else None)
    elif models := getattr(given, "__pydantic_fields__", None):  # of a model, and of a dataclass that pydantic checks
        for name, field in models.items():
            is_made, default = field.default_factory is not None, _NOTHING
            if not field.is_required():
                default = field.default_factory() if is_made else field.default
            # What pydantic has resolved, as T of a class of Model[int].
            hint = (
                field.annotation if getattr(given, "__pydantic_complete__", True) else hints.get(name, field.annotation)
            )
            yield _Field(name, hint, field.metadata, default, is_made)
    elif hasattr(given, "_field_defaults"):
        for name in given._fields:
            yield _Field(name, hints[name], (), given._field_defaults.get(name, _NOTHING))
    elif attributes := getattr(given, "__attrs_attrs__", None):
        for one in attributes:
            factory = getattr(one.default, "factory", None)
            has_default = factory or type(one.default).__name__ != "_Nothing"
            default = factory() if factory else one.default if has_default else _NOTHING
            yield _Field(one.name, hints[one.name], (), default, factory is not None)
    else:
        yield from _fields_with_factories(given, hints)


def _fields_with_factories(given: Any, hints: Mapping[str, Any]) -> Iterator[_Field]:
    """Yield the fields of a dataclass, or of a Struct of msgspec."""
    is_struct = hasattr(given, "__struct_fields__")
    nothing: Any = msgspec.NODEFAULT if is_struct else dataclasses.MISSING
    one: Any
    for one in msgspec.structs.fields(given) if is_struct else dataclasses.fields(given):
        is_made = one.default_factory is not nothing
        default = one.default_factory() if is_made else _NOTHING if one.default is nothing else one.default
        yield _Field(one.name, hints[one.name], (), default, is_made)


def _hints_of(given: Any) -> dict[str, Any]:
    """Return the annotations of a class and of those that it is made of, with the types for type variables."""
    kind = _class_of(given)
    hints = typing.get_type_hints(kind, include_extras=True)
    values = dict(zip(getattr(kind, "__parameters__", ()), typing.get_args(given), strict=False))
    own = set() if _is_typed_dict(kind) else set(inspect.get_annotations(kind))  # a TypedDict's have its bases' as well
    made = {name: _with_types(hint, values) for name, hint in hints.items()}
    for base in reversed(kind.__dict__.get("__orig_bases__", kind.__bases__)):
        if is_declaration(base):
            arguments = typing.get_args(base)
            bound = _class_of(base)[tuple(_with_types(one, values) for one in arguments)] if arguments else base
            made |= {name: hint for name, hint in _hints_of(bound).items() if name not in own}
    return made


def _with_types(hint: Any, values: Mapping[Any, Any]) -> Any:
    """Return an annotation with these types for its type variables."""
    if isinstance(hint, typing.TypeVar):
        return values.get(hint, hint)
    is_generic_class = isinstance(hint, type) and not typing.get_args(hint)
    parameters = () if is_generic_class else getattr(hint, "__parameters__", ())
    return hint if not parameters else hint[tuple(values.get(one, one) for one in parameters)]


def _holder(annotations: Mapping[Any, Any]) -> type:
    return type("Record", (), {"__annotations__": dict(annotations)})


def _facts(metadata: Sequence[Any]) -> Iterator[Any]:
    """Yield what annotations say, and what pydantic's Field(...) among them holds."""
    for one in metadata:
        yield one
        yield from getattr(one, "metadata", ())


def _decimal_type(metadata: Sequence[Any], path: str) -> dict[str, Any]:
    precision, scale = None, None
    for fact in _facts(metadata):
        if isinstance(fact, tuple) and len(fact) == 2:
            precision, scale = fact
        elif isinstance(fact, Mapping):
            precision, scale = fact.get("precision"), fact.get("scale", 0)
        else:
            precision = getattr(fact, "max_digits", None) or precision
            digits = getattr(fact, "decimal_places", None)
            scale = scale if digits is None else digits
    scale = 0 if scale is None else scale
    if type(precision) is not int or type(scale) is not int or not 0 <= scale <= precision or precision < 1:
        raise ValueError(
            f"{_where(path)}a Decimal needs its number of digits, and how many of them are after the point: "
            f"Annotated[Decimal, (10, 2)], or pydantic's Field(max_digits=10, decimal_places=2)"
        )
    return {"type": "bytes", "logicalType": "decimal", "precision": precision, "scale": scale}


def _time_type(metadata: Sequence[Any], path: str) -> dict[str, Any]:
    for fact in _facts(metadata):
        if isinstance(fact, str):
            unit = fact.removeprefix("timestamp-")
            if unit not in PER_SECOND or unit == "seconds":
                raise ValueError(f"{_where(path)}{fact!r} where 'millis', 'micros' or 'nanos' was expected")
            return {"type": "long", "logicalType": f"timestamp-{unit}"}
    return dict(MILLIS_TYPE)


def _default(value: Any, avro: Any, path: str, named: Mapping[str, Any]) -> Any:
    """Return a default as a schema has it, in JSON. Raises ValueError where it is not of its type."""
    if isinstance(avro, list):
        (other,) = (branch for branch in avro if branch != "null")
        return None if value is None else _default(value, other, path, named)
    if isinstance(avro, str) and avro in named:
        avro = _Derivation().type(named[avro], path, "")
    kind, logical = (avro["type"], avro.get("logicalType", "")) if isinstance(avro, dict) else (avro, "")
    try:
        return _as_json(value, kind, logical, avro, path, named)
    except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError) as error:
        if isinstance(error, _DefaultError):
            raise
        raise _DefaultError(f"{_where(path)}its default {value!r} is no {logical or kind}") from None


class _DefaultError(ValueError):
    """A default that is not of its field's type."""


def _as_json(value: Any, kind: str, logical: str, avro: Any, path: str, named: Mapping[str, Any]) -> Any:
    if logical.startswith("timestamp"):
        aware = value if value.tzinfo else value.replace(tzinfo=dt.UTC)
        micros = (aware - _UNIX_EPOCH) // dt.timedelta(microseconds=1)
        ticks, rest = divmod(micros * PER_SECOND[logical.removeprefix("timestamp-")], 1_000_000)
        return ticks if not rest else _wrong()
    if logical == "date":
        return value.toordinal() - _UNIX_EPOCH.toordinal() if type(value) is dt.date else _wrong()
    if logical == "time-micros":
        return ((value.hour * 60 + value.minute) * 60 + value.second) * 1_000_000 + value.microsecond
    if logical == "decimal":
        unscaled = Decimal(value).scaleb(avro["scale"])
        digits = int(unscaled)
        if digits != unscaled or len(str(abs(digits))) > avro["precision"]:
            _wrong()
        return digits.to_bytes((digits.bit_length() + 8) // 8, "big", signed=True).decode("latin-1")
    if logical == "uuid":
        return str(value) if isinstance(value, uuid.UUID) else _wrong()
    if kind == "enum":
        symbol = as_plain(value)
        return str.__str__(symbol) if symbol in avro["symbols"] else _wrong()
    if kind == "array":
        return [
            _default(item, avro["items"], path, named) for item in (value if type(value) in (list, tuple) else _wrong())
        ]
    if kind == "map":
        items = value.items() if type(value) is dict else _wrong()
        return {key: _default(item, avro["values"], path, named) for key, item in items}
    if kind == "record":
        get = value.__getitem__ if isinstance(value, dict) else lambda name: getattr(value, name)
        fields = avro["fields"]
        return {f["name"]: _default(get(f["name"]), f["type"], f"{path}.{f['name']}", named) for f in fields}
    if kind == "bytes":
        return value.decode("latin-1") if type(value) is bytes else _wrong()
    if kind == "double":
        number = float(value) if type(value) in (int, float) else _wrong()
        return number if abs(number) < float("inf") else _wrong()
    expected = {"boolean": bool, "long": int, "string": str}[kind]
    value = as_plain(value)
    return value if type(value) is expected else _wrong()


def _wrong() -> Any:
    raise ValueError


def _where(path: str) -> str:
    return f"field {path!r}: " if path else ""


def _shown(given: Any) -> str:
    return (
        given.__name__ if isinstance(given, type) and not typing.get_args(given) else str(given).replace("typing.", "")
    )
