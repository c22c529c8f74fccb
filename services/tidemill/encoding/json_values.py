"""JSON values by an Avro schema: what each type takes, the same as in Avro's own JSON encoding, and strict about it.

A number may be an int where a float is declared, and never the other way round. bytes and fixed are text of one
character a byte, or in base64 where Kafka Connect has written them; a decimal may be a number as well. A value of a
union is that of the first branch that takes it, plain or wrapped by the branch's name. A timestamp or a date may be
ISO 8601 text.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import re
import struct
from collections.abc import Callable, Mapping
from decimal import Decimal, localcontext
from typing import Any, Literal, NamedTuple

from tidemill.durations import moment
from tidemill.encoding import schema_files, times
from tidemill.errors import Reject
from tidemill.rows import TwiceError, with_each_name_once

#: (value, path) -> the value as Avro's writer takes it; raises MismatchError.
Convert = Callable[[Any, str], Any]

#: Who has written the values: Avro's own JSON encoding, a producer of JSON, or Kafka Connect's converter. Their bytes
#: differ; and a producer may take a decimal's text for the number itself.
Form = Literal["avro", "json", "connect"]

_NAMES = {bool: "boolean", int: "int", float: "float", str: "string", type(None): "null", list: "array", dict: "object"}
#: Of a value, in the reason that it was refused for.
MAX_SHOWN_CHARACTERS = 200
_BITS = {"int": 31, "long": 63}
_EPOCH_DAY = dt.date(1970, 1, 1).toordinal()
#: A decimal with more is none.
MAX_DECIMAL_DIGITS = 1_000
#: A double has at least so many decimal digits.
_FLOAT_DIGITS = 15
#: Nothing is tried twice: else a text of a million digits and a letter would take hours.
_DECIMAL_TEXT = re.compile(r"[+-]?(?:[0-9]++(?:\.[0-9]++)?+|\.[0-9]++)")


class MismatchError(Exception):
    """A value that is not of its type: where, what was expected, and the value."""

    def __init__(self, path: str, value: Any, expected: str, note: str = "") -> None:
        kind = _NAMES.get(type(value), type(value).__name__)
        what = f"field {path!r}" if path else "the record"
        super().__init__(f"{what} is {shown(value)} ({kind}) where {expected} was expected{note}")
        self.path, self.value = path, value

    def reject(self) -> Reject:
        """Return the reason for the dead letter."""
        return Reject("wrong_type", str(self), rule="schema", field=self.path, value=self.value)


def shown(value: Any) -> str:
    """Return a value as a reason shows it."""
    try:
        text = repr(value)
    except RecursionError:  # a reader of JSON may nest deeper than Python can show
        text = "a value nested too deep to be shown"
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]}..."


class Field(NamedTuple):
    """One field of a record: its name, what reads it, and its default where it has one."""

    name: str
    convert: Convert
    has_default: bool
    default: Any


def fields_of(avro: Mapping[str, Any], form: Form = "avro") -> list[Field]:
    """Return the fields of a record schema; `form` says who has written the values."""
    parsed, named = schema_files.parsed(avro)
    return _fields(parsed, named, form)


def record_of(fields: list[Field], given: Any, path: str, schema: str) -> dict[str, Any]:
    """Return a JSON object as a record. Raises Reject for a field missing or unknown, MismatchError for a value."""
    if not isinstance(given, dict):
        raise MismatchError(path, given, "an object")
    record = {}
    for name, convert, has_default, default in fields:
        if name in given:
            record[name] = convert(given[name], f"{path}.{name}" if path else name)
        elif has_default:
            record[name] = default
        else:
            where = f"{path}.{name}" if path else name
            raise Reject("missing_field", f"field {where!r} is missing", rule="schema", field=where)
    unexpected = given.keys() - record.keys()
    if unexpected:
        name = min(unexpected)
        where = f"{path}.{name}" if path else name
        raise Reject(
            "unexpected_field", f"field {where!r} is not in {schema}", rule="schema", field=where, value=given[name]
        )
    return record


#: A name with a blank after it, if not a text that has such a thing in it.
_BLANK_BEHIND_NAME = re.compile(rb'"[ \t\r\n]+:')


def check_names(data: bytes, given: Any) -> None:
    """Raise Reject where an object in this JSON has a name twice: readers do not agree which of them counts.

    `given` is what was read. Most messages are flat, and show by how often `":` is in them that nothing is missing.
    """
    if not isinstance(given, dict):
        return
    if data.count(b'":') != len(given) or _BLANK_BEHIND_NAME.search(data):
        try:
            json.loads(data, object_pairs_hook=with_each_name_once)
        except TwiceError as error:
            raise Reject("duplicate_field", str(error), rule="schema", field=error.name) from error
        except (ValueError, RecursionError) as error:  # what the faster reader has taken
            raise Reject("not_json", f"the bytes begin like JSON and are none: {error}") from error


#: Types whose values are in a record as JSON has them: when a value is one, of itself and without a doubt.
_AS_THEY_ARE = {
    "null": "{0} is None",
    "boolean": "type({0}) is bool",
    "string": "type({0}) is str",
    "double": "type({0}) is float",
    "int": f"type({{0}}) is int and {-(2**31)} <= {{0}} < {2**31}",
    "long": f"type({{0}}) is int and {-(2**63)} <= {{0}} < {2**63}",
}


def as_it_is(avro: Mapping[str, Any]) -> Callable[[dict[str, Any]], bool]:
    """Return what tells of a JSON object that it is a record of this schema already: every value just as declared.

    It says no where anything is to be converted, filled in or refused: `record_of` does that. One expression for all
    fields takes a quarter of the time of a call for each.
    """
    parsed, named = schema_files.parsed(avro)
    tests = [f"len(given) == {len(parsed['fields'])}"]
    for field in parsed["fields"]:
        branches = field["type"] if isinstance(field["type"], list) else [field["type"]]
        kinds = [schema_files.primitive(branch, named) for branch in branches]
        others = [kind for kind in kinds if kind != "null"]
        if len(others) != 1 or others[0] not in _AS_THEY_ARE:
            return lambda _: False
        value = f"given[{field['name']!r}]"
        tests.append(" or ".join(_AS_THEY_ARE[kind].format(value) for kind in (*others, "null")[: len(kinds)]))
    source = f"lambda given: {' and '.join(f'({one})' for one in tests)}"
    test = eval(source)  # noqa: S307  made of the declaration alone, and of field names as literals

    def is_record(given: dict[str, Any]) -> bool:
        try:
            return bool(test(given))
        except KeyError:
            return False

    return is_record


def _fields(avro: Mapping[str, Any], named: Mapping[str, Any], form: Form) -> list[Field]:
    made = []
    for field in avro["fields"]:
        convert = converter(field["type"], named, form)
        default = field.get("default")
        if "default" in field and default is not None:
            default = converter(field["type"], named)(default, field["name"])
        made.append(Field(field["name"], convert, "default" in field, default))
    return made


def converter(avro: Any, named: Mapping[str, Any], form: Form = "avro") -> Convert:
    """Return what makes of a JSON value what Avro's writer takes for this type; `named` are the schema's own types."""
    if isinstance(avro, list):
        return _union(avro, named, form)
    if isinstance(avro, str):
        return converter(named[avro], named, form) if avro in named else _plain(avro, "", form)
    kind = avro["type"]
    if kind in ("record", "error"):
        fields, name = _fields(avro, named, form), avro["name"]
        return lambda value, path: record_of(fields, value, path, name)
    if kind == "array":
        item = converter(avro["items"], named, form)
        return lambda value, path: [
            item(one, f"{path}[{index}]") for index, one in enumerate(_is(value, list, path, "an array"))
        ]
    if kind == "map":
        one_value = converter(avro["values"], named, form)
        return lambda value, path: {
            key: one_value(one, f"{path}.{key}") for key, one in _is(value, dict, path, "an object").items()
        }
    if kind == "enum":
        return _enum(avro)
    if avro.get("logicalType") == "decimal" and "precision" in avro:
        return _decimal(avro, form)
    if kind == "fixed":
        return _bytes(f"{avro['size']} bytes", avro["size"], form)
    if isinstance(kind, str):
        return _plain(kind, schema_files.logical_type(avro), form)
    return converter(kind, named, form)


def _is(value: Any, kind: type, path: str, expected: str) -> Any:
    if not isinstance(value, kind):
        raise MismatchError(path, value, expected)
    return value


def _enum(avro: Mapping[str, Any]) -> Convert:
    symbols = frozenset(avro["symbols"])
    expected = f"enum ({', '.join(avro['symbols'][:10])}{', ...' if len(symbols) > 10 else ''})"

    def convert(value: Any, path: str) -> Any:
        if not isinstance(value, str) or value not in symbols:
            raise MismatchError(path, value, expected)
        return value

    return convert


def _bytes(expected: str, size: int | None = None, form: Form = "avro") -> Convert:
    def convert(value: Any, path: str) -> Any:
        text = _is(value, str, path, expected)
        try:
            data = base64.b64decode(text, validate=True) if form == "connect" else text.encode("latin-1")
        except ValueError:
            note = ", in base64" if form == "connect" else ", one character each"
            raise MismatchError(path, value, expected, note) from None
        if size is not None and len(data) != size:
            raise MismatchError(path, value, expected)
        return data

    return convert


def _decimal(avro: Mapping[str, Any], form: Form) -> Convert:
    """Return what makes a decimal of its bytes as text, or of a number, exactly."""
    from_text = _bytes("a decimal", avro.get("size"), form)
    expected = f"a decimal of {avro['precision']} digits, {avro.get('scale', 0)} of them after the point,"

    def convert(value: Any, path: str) -> Any:
        if isinstance(value, str):
            if form == "json" and _DECIMAL_TEXT.fullmatch(value):
                raise MismatchError(path, value, "a decimal", ": write it as a number, for this may be its bytes")
            return from_text(value, path)
        try:
            exact = Decimal(repr(value)) if type(value) is float else value
            if type(value) is float and len(exact.as_tuple().digits) > _FLOAT_DIGITS:
                raise ValueError
            return decimal_bytes(exact, avro)
        except (TypeError, ValueError, ArithmeticError):
            raise MismatchError(path, value, expected) from None

    return convert


def decimal_bytes(value: Any, avro: Mapping[str, Any]) -> bytes:
    """Return an int or a Decimal as Avro's decimal: its digits up to the scale, big-endian.

    Raises TypeError for anything else, and ValueError or ArithmeticError where it is not exactly one.
    """
    if not isinstance(value, int | Decimal) or isinstance(value, bool):
        raise TypeError
    with localcontext() as context:
        context.prec = MAX_DECIMAL_DIGITS
        unscaled = Decimal(value).scaleb(int(avro.get("scale", 0)))
    digits = int(unscaled)
    if digits != unscaled or len(str(abs(digits))) > int(avro["precision"]):
        raise ValueError
    size = avro["size"] if avro["type"] == "fixed" else (digits.bit_length() + 8) // 8
    return digits.to_bytes(size, "big", signed=True)


def _plain(kind: str, logical: str, form: Form) -> Convert:
    if kind == "bytes":
        return _bytes("bytes", None, form)
    if kind in _BITS:
        return _integer(kind, logical)
    if kind in ("float", "double"):
        return _float(kind)
    type_ = {"boolean": bool, "string": str, "null": type(None)}[kind]
    return lambda value, path: _is(value, type_, path, kind)


def _integer(kind: str, logical: str) -> Convert:
    limit = 2 ** _BITS[kind]
    ticks = times.per_second_of(logical)

    def convert(value: Any, path: str) -> Any:
        if type(value) is int and -limit <= value < limit:
            return value
        if ticks is not None and isinstance(value, str):
            try:
                return moment(value, ticks)
            except ValueError:
                raise MismatchError(path, value, kind, ", or an ISO 8601 time") from None
        if logical == "date" and isinstance(value, str):
            try:
                return dt.date.fromisoformat(value).toordinal() - _EPOCH_DAY
            except ValueError:
                raise MismatchError(path, value, kind, ", or an ISO 8601 date") from None
        note = f", which has {_BITS[kind] + 1} bits" if type(value) is int else ""
        raise MismatchError(path, value, kind, note)

    return convert


def _float(kind: str) -> Convert:
    def convert(value: Any, path: str) -> Any:
        if type(value) is float:
            return value
        if type(value) is not int:
            raise MismatchError(path, value, kind)
        try:
            return exact_float(kind, value)
        except ValueError as error:
            raise MismatchError(path, value, kind, f", and {error}") from None

    return convert


def exact_float(kind: str, value: int) -> float:
    """Return a whole number as a `float` or a `double`. Raises ValueError where none is exactly that.

    Digits behind a point are rounded as everywhere; whole numbers are counts and ids, and another one is wrong.
    """
    form = "f" if kind == "float" else "d"
    try:
        (exact,) = struct.unpack(form, struct.pack(form, value))
        if int(exact) == value:
            return float(exact)
    except (OverflowError, struct.error):
        pass
    raise ValueError(f"no {kind} is exactly that")


def _branch_name(branch: Any) -> str:
    """Return what Avro's JSON encoding wraps a value of this branch in."""
    return str(branch.get("name", branch["type"])) if isinstance(branch, Mapping) else str(branch)


def _union(branches: list[Any], named: Mapping[str, Any], form: Form) -> Convert:
    may_be_null = "null" in branches
    converters = [(_branch_name(one), converter(one, named, form)) for one in branches if one != "null"]
    expected = " or ".join(schema_files.primitive(branch, named) for branch in branches)

    def convert(value: Any, path: str) -> Any:
        if value is None and may_be_null:
            return None
        given: list[tuple[str | None, Any]] = [(None, value)]
        if isinstance(value, dict) and len(value) == 1:
            (only,) = value
            given += [(name, value[only]) for name, _ in converters if only == name]
        for wrapped, one in given:
            for name, branch in converters:
                if wrapped in (None, name):
                    try:
                        return branch(one, path)
                    except (MismatchError, Reject):
                        continue
        raise MismatchError(path, value, expected)

    if len(converters) != 1:
        return convert
    ((name, only_branch),) = converters

    def optional(value: Any, path: str) -> Any:
        if value is None and may_be_null:
            return None
        try:
            return only_branch(value, path)
        except (MismatchError, Reject) as error:
            if isinstance(value, dict) and value.keys() == {name}:
                return only_branch(value[name], path)
            if isinstance(value, (dict, list)):
                raise  # it says what is wrong inside
            raise MismatchError(path, value, expected) from error

    return optional
