"""History as files: events and labels in CSV, JSON or Parquet, as the messages that a producer would send.

JSON      each row is a message as it stands: the validator says what is wrong with it, as in production
the rest  a column's values are made what the schema says, exactly, or the file is refused with row and column; then a
          row is an Avro message. Columns that the schema does not have are left out, as an index column
"""

from __future__ import annotations

import contextlib
import csv
import datetime as dt
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from tidemill import rows
from tidemill.declare.pipeline import Pipeline
from tidemill.declare.stream import Stream
from tidemill.durations import moment
from tidemill.encoding import json_values, schema_files, times
from tidemill.encoding.codec import Codec
from tidemill.encoding.envelopes import EmbeddedSchemas, SkippedError, form_of, unwrapped
from tidemill.errors import Reject, SettingsError
from tidemill.rows import Timestamp
from tidemill.stream.api import Progress, expect
from tidemill.wire.records import PredictionLog

_BOOLEANS = {"true": True, "t": True, "1": True, "1.0": True, "false": False, "f": False, "0": False, "0.0": False}
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,9})?", re.ASCII)
_DIGITS = re.compile(r"-?[0-9]{1,18}")
_WHOLE = re.compile(r"[+-]?[0-9]+")
_INFINITY = re.compile(r"[+-]?inf(inity)?", re.IGNORECASE)
#: Integers of a column of floats are exact up to here; beyond, one float stands for several.
MAX_EXACT_FLOAT = 2**53
#: A field's attribute with the column that it has in files, where that is no name for a field.
COLUMN = "column"
#: Of a value, in the line that refuses it.
MAX_SHOWN_CHARACTERS = 80
#: How many values of a CSV column are converted once.
MAX_KNOWN_VALUES = 4_096

Row = Mapping[str, Any]
Convert = Callable[[Any], Any]


class Message(NamedTuple):
    """One row as a producer would send it; its time in ms since the epoch, and its id as text."""

    time: int
    id: str
    data: bytes


def messages(path: Path | Frame, stream: Stream, progress: Progress | None = None) -> list[Message]:
    """Return the rows of one or more files, or of a data frame, as messages, in order of their time; equal times as
    in the files.

    `path` is a file, a folder of files, or a pattern as `*.csv`. A row of JSON whose time can't be read follows the row
    before it. Raises SettingsError where a file can't be read, a column is missing, or a value can't be the field's
    type.
    """
    made: list[tuple[int | None, str, bytes]] = []
    for part in [path] if isinstance(path, Frame) else _files(path):
        for message in _messages(part, stream, progress):
            made.append(message)
            if progress:
                progress(1)
    return in_order(made)


def _messages(part: Path | Frame, stream: Stream, progress: Progress | None) -> Iterator[tuple[int | None, str, bytes]]:
    if isinstance(part, Path) and _is_json(part):
        lines = _json_rows(part)
        expect(progress, len(lines))
        yield from _json_messages(lines, stream)
        return
    codec = Codec(stream.avro)
    rows_ = _rows(part, stream) if isinstance(part, Path) else _records(part.columns, stream, part, is_text=False)
    expect(progress, len(rows_))
    for row in rows_:
        yield stream.millis_of(row), str(row[stream.id]), as_message(codec, row)


@dataclass(frozen=True)
class Frame:
    """A data frame in memory: its columns as Python's values, by name, and what errors call it."""

    name: str
    columns: rows.Columns

    def __str__(self) -> str:
        return self.name


def in_order(messages_: Sequence[tuple[int | None, str, bytes]]) -> list[Message]:
    """Return messages in order of their time; one without a time follows the one before it."""
    latest = next((time for time, _, _ in messages_ if time is not None), 0)
    timed = []
    for time, id_, data in messages_:
        latest = latest if time is None else time
        timed.append(Message(latest, id_, data))
    timed.sort(key=lambda message: message.time)
    return timed


def read(path: Path, stream: Stream) -> list[dict[str, Any]]:
    """Return the rows as records of the stream, their time in milliseconds, in order of it; equal times as in the file.

    Nothing is checked beyond the types: the validator will. Raises SettingsError as `messages`, and where a row of JSON
    is no record of the schema.
    """
    records = []
    for file in _files(path):
        for number, record in enumerate(_json_records(file, stream) if _is_json(file) else _rows(file, stream), 1):
            millis = stream.millis_of(record)
            if millis is None:
                raise _no_time(file, number, stream, record[stream.time])
            records.append({**record, stream.time: millis} if stream.as_millis else record)
    records.sort(key=lambda record: record[stream.time])
    return records


def as_message(codec: Codec, row: Row) -> bytes:
    """Return a row as a producer would send it: Avro, or JSON where it does not fit its schema.

    The validator then says what is wrong with it, as it would in production.
    """
    try:
        return codec.encode(row)
    except Exception:  # whatever a value that does not fit makes an encoder raise
        return json.dumps(row, default=_as_text).encode()


def _as_text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def columns(path: Path, stream: Stream) -> tuple[rows.Columns, int]:
    """Return the columns of one or more files as they stand there, and how many rows. Raises SettingsError."""
    joined: rows.Columns = {}
    count = 0
    for file in _files(path):
        part, many = _json_columns(file, stream) if _is_json(file) else (_columns(file), 0)
        many = many or len(next(iter(part.values()), ()))
        for name in [*joined, *(name for name in part if name not in joined)]:
            joined.setdefault(name, [None] * count).extend(part.get(name, [None] * many))
        count += many
    return joined, count


def _files(path: Path) -> list[Path]:
    try:
        files = rows.files_of(path)
        for file in files:
            rows.format_of(file)
    except ValueError as error:
        raise SettingsError(f"{path}: {error}") from None
    return files


def _is_json(file: Path) -> bool:
    return rows.format_of(file) in (".json", ".jsonl", ".ndjson")


def is_csv(file: Path) -> bool:
    """Whether a file's values are texts."""
    return rows.format_of(file) in rows.TEXT_FORMATS


def _columns(file: Path) -> rows.Columns:
    try:
        return rows.columns(file)
    except ValueError as error:
        raise SettingsError(f"{file}: {error}") from None


def _json_columns(file: Path, stream: Stream) -> tuple[rows.Columns, int]:
    """Return the columns of the rows that are objects, and how many rows there are: the validator looks at them all."""
    found = []
    lines = _json_rows(file)
    for line in lines:
        try:
            row = unwrapped(json.loads(line), stream.unwrap, bare=True, fields=stream.types)
        except (ValueError, RecursionError, Reject, SkippedError):
            row = None
        found.append(row if isinstance(row, dict) else {})
    return {name: [row.get(name) for row in found] for name in dict.fromkeys(n for row in found for n in row)}, len(
        lines
    )


def _json_rows(file: Path) -> list[bytes]:
    try:
        return rows.json_rows(rows.content(file))
    except ValueError as error:
        raise SettingsError(f"{file}: {error}") from None


def _json_messages(lines: Sequence[bytes], stream: Stream) -> Iterator[tuple[int | None, str, bytes]]:
    time = next(field for field in json_values.fields_of(stream.avro) if field.name == stream.time)
    for row in lines:
        id_ = ""
        try:
            record = unwrapped(json.loads(row), stream.unwrap, bare=True, fields=stream.types)
            given = record.get(stream.id)
            id_ = "" if given is None else str(given)
            millis = stream.millis_of({stream.time: time.convert(record[stream.time], stream.time)})
        except Exception:  # the validator says what is wrong with it
            millis = None
        yield millis, id_, row


def _json_records(file: Path, stream: Stream) -> Iterator[dict[str, Any]]:
    fields = json_values.fields_of(stream.avro, form_of(stream.unwrap))
    embedded = EmbeddedSchemas(stream.avro, stream.units)
    lines = _json_rows(file)
    if not lines:
        raise SettingsError(f"{file} has no rows")
    for number, line in enumerate(lines, 1):
        try:
            given = json.loads(line)
            json_values.check_names(line, given)
            row = unwrapped(given, stream.unwrap, bare=True, fields=stream.types, embedded=embedded)
            yield json_values.record_of(fields, row, "", stream.avro["name"])
        except SkippedError:
            continue
        except (ValueError, RecursionError) as error:
            raise SettingsError(f"{file} row {number} is no JSON: {error}") from None
        except (Reject, json_values.MismatchError) as error:
            raise SettingsError(f"{file} row {number}: {error}") from None


def _rows(file: Path, stream: Stream) -> list[dict[str, Any]]:
    """Return the rows of a CSV or of Parquet as records of the schema, as producers send them."""
    return _records(_columns(file), stream, file, is_text=is_csv(file))


def _records(given: rows.Columns, stream: Stream, place: Path | Frame, *, is_text: bool) -> list[dict[str, Any]]:
    """Return columns as records of the schema; `place` is where they come from, `is_text` whether all are texts."""
    count = len(next(iter(given.values()), ()))
    defaults = {field.name: field for field in json_values.fields_of(stream.avro)}
    named = schema_files.parsed(stream.avro)[1]
    converted = {}
    for field in stream.avro["fields"]:
        name = field["name"]
        column = name if name in given else field.get(COLUMN)
        if column in given:
            converted[name] = _Column(place, stream, field, named, is_csv=is_text).converted(given[column])
        elif defaults[name].has_default:
            others = (other for other in given if other not in stream.types and _plain_name(other) == _plain_name(name))
            if alike := next(others, None):
                raise SettingsError(f"{place} has no column {name!r}, and one {alike!r}: rename it, or leave it out")
            converted[name] = [defaults[name].default] * count
        else:
            has = f"It has {', '.join(map(repr, given))}" if given else "It is empty"
            raise SettingsError(f"{place} has no column {name!r}; {stream.schema_name} needs it. {has}")
    return [dict(zip(converted, values, strict=True)) for values in zip(*converted.values(), strict=True)]


def _plain_name(name: str) -> str:
    """Return what is left of a name where people write it in another way, as `userId` of `user_id`."""
    return "".join(filter(str.isalnum, name)).casefold()


def _no_time(file: Path, number: int, stream: Stream, value: Any) -> SettingsError:
    expected = "an ISO 8601 time" if stream.unit == times.TEXT else f"a time in {stream.unit}"
    return SettingsError(f"{file} row {number}: column {stream.time!r} is {shown(value)} where {expected} was expected")


def shown(value: Any, longest: int = MAX_SHOWN_CHARACTERS) -> str:
    """Return a value in one line, not too long."""
    text = repr(value)
    return text if len(text) <= longest else f"{text[:longest]}..."


def is_number(text: str) -> bool:
    """Whether a text of a CSV is a number."""
    return bool(_NUMBER.fullmatch(text))


class _Column:
    """One column of a CSV or of Parquet, and what makes values of its field's type."""

    def __init__(
        self, place: Path | Frame, stream: Stream, field: Mapping[str, Any], named: Mapping[str, Any], *, is_csv: bool
    ) -> None:
        self.place, self.name = place, field["name"]
        self.kind = schema_files.primitive(field["type"], named)
        self.is_nullable = schema_files.nullable(field["type"])
        self.is_csv = is_csv
        self.is_text = self.kind in ("string", "enum", "bytes", "fixed")
        logical = schema_files.logical_type(field["type"])
        is_time = self.name == stream.time
        unit = stream.unit if is_time else times.LOGICAL_UNITS.get(logical, "")
        self.convert: Convert
        if is_time and unit == times.TEXT:
            self.is_text, self.expected, self.convert = False, "an ISO 8601 time", _iso_text
        elif unit and unit != times.TEXT and self.kind in ("int", "long", "double"):
            self.expected, self.convert = f"a time in {unit}, or an ISO 8601 time", _time(self.kind, unit)
        else:
            what = "text" if self.kind in ("enum", "string") else logical or self.kind
            self.expected = what if what == "text" else f"{'an' if what[0] in 'aeiou' else 'a'} {what}"
            self.convert = self._converter(field["type"], named)

    def converted(self, values: Sequence[Any]) -> list[Any]:
        """Return the values in the field's type. Raises SettingsError with file, row and column."""
        made: list[Any] = []
        known: dict[str, Any] = {}  # most columns of a CSV have few values
        for row, given in enumerate(values, 1):
            if self.is_csv and given in known:
                made.append(known[given])
                continue
            value = rows.text_or_none(given, is_text_column=self.is_text) if self.is_csv else given
            is_missing = _is_missing(value)
            if is_missing and not self.is_nullable:
                raise self._refused(row, f"has no value where {self.expected} was expected")
            try:
                made.append(None if is_missing else self.convert(value))
            except (json_values.MismatchError, Reject) as error:
                raise self._refused(row, f": {error}") from None
            except (TypeError, ValueError, KeyError, ArithmeticError, RecursionError):
                hint = _hint(value, self.kind) if self.kind in ("int", "long", "float", "double", "boolean") else ""
                if self.is_text and isinstance(value, int | float) and isinstance(self.place, Frame):
                    hint = f": read the column as text, as pandas does with dtype={{{self.name!r}: str}}"
                raise self._refused(row, f"is {shown(value)} where {self.expected} was expected{hint}") from None
            if self.is_csv and len(known) < MAX_KNOWN_VALUES and not isinstance(made[-1], (dict, list)):
                known[given] = made[-1]
        return made

    def _refused(self, row: int, why: str) -> SettingsError:
        return SettingsError(f"{self.place} row {row}: column {self.name!r} {why}")

    def _converter(self, avro: Any, named: Mapping[str, Any]) -> Convert:
        kind = self.kind
        if kind == "union" and self.is_csv:
            return _fail_union
        if kind in _PLAIN:
            return _maker(kind, schema_files.logical_type(avro), _resolved(avro, named))
        if self.is_csv:
            self.expected, from_json = f"JSON of type {kind}", json_values.converter(avro, named)
            return lambda value: from_json(json.loads(value), self.name)
        convert = _of_type(avro, named)
        return lambda value: convert(value, self.name)


#: Types whose values have none inside.
_PLAIN = ("int", "long", "float", "double", "boolean", "string", "enum", "bytes", "fixed")


def _resolved(avro: Any, named: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a plain type, or a union of it with null, declares."""
    if isinstance(avro, list):
        return _resolved(next(branch for branch in avro if branch != "null"), named)
    if isinstance(avro, str):
        return _resolved(named[avro], named) if avro in named else {"type": avro}
    return avro if isinstance(avro["type"], str) else _resolved(avro["type"], named)


def _of_type(avro: Any, named: Mapping[str, Any]) -> json_values.Convert:
    """Return what makes a value of this type, at this path, of one of Parquet, or of a CSV's text; exact, or it raises.

    What is inside lists, maps and structs is converted as a column of its type is.
    """
    if isinstance(avro, list):
        branches = [branch for branch in avro if branch != "null"]
        if len(branches) == 1:
            only = _of_type(branches[0], named)
            return lambda value, path: None if "null" in avro and _is_missing(value) else only(value, path)
        from_json = json_values.converter(avro, named)
        return lambda value, path: from_json(_as_json(value), path)
    if isinstance(avro, str):
        return _of_type(named[avro], named) if avro in named else _plain(avro, {"type": avro})
    kind = avro["type"]
    if kind in ("record", "error"):
        fields, name = json_values.fields_of(schema_files.standalone(avro, named)), avro["name"]
        types = {field["name"]: field["type"] for field in avro["fields"]}
        fields = [field._replace(convert=_of_type(types[field.name], named)) for field in fields]
        return lambda value, path: json_values.record_of(fields, value, path, name)
    if kind in ("array", "map"):
        inner = _of_type(avro["items" if kind == "array" else "values"], named)
        return _list(inner) if kind == "array" else _map(inner)
    return _plain(kind, avro) if isinstance(kind, str) else _of_type(kind, named)


def _is_missing(value: Any) -> bool:
    return value is None if isinstance(value, (list, dict, tuple)) else rows.is_missing(value)


def _list(inner: json_values.Convert) -> json_values.Convert:
    def convert(value: Any, path: str) -> Any:
        if not isinstance(value, list):
            raise json_values.MismatchError(path, value, "an array")
        return [inner(one, f"{path}[{index}]") for index, one in enumerate(value)]

    return convert


def _map(inner: json_values.Convert) -> json_values.Convert:
    """Return what makes a map of Parquet's, which is a list of pairs."""

    def convert(value: Any, path: str) -> Any:
        pairs = list(value.items()) if isinstance(value, dict) else value
        if not isinstance(pairs, list) or not all(isinstance(one, tuple) and len(one) == 2 for one in pairs):
            raise json_values.MismatchError(path, value, "a map")
        made = {str(key): inner(one, f"{path}.{key}") for key, one in pairs}
        if len(made) < len(pairs):
            raise json_values.MismatchError(path, value, "a map", ", with each key once")
        return made

    return convert


def _plain(kind: str, avro: Mapping[str, Any]) -> json_values.Convert:
    """Return what makes a value of a type that has none inside; where it can't, it raises MismatchError in one line."""
    logical = str(avro.get("logicalType", ""))
    make, expected = _maker(kind, logical, avro), logical or kind

    def convert(value: Any, path: str) -> Any:
        if _is_missing(value):
            raise json_values.MismatchError(path, value, expected)
        try:
            return make(value)
        except (TypeError, ValueError, KeyError, ArithmeticError):
            raise json_values.MismatchError(path, value, expected) from None

    return convert


def _maker(kind: str, logical: str, avro: Mapping[str, Any]) -> Convert:
    if kind in ("int", "long"):
        if logical == "date":
            return _date
        if logical in _PARTS_OF_DAY:
            return _time_of_day(_PARTS_OF_DAY[logical])
        if logical in times.LOGICAL_UNITS:
            return _time(kind, times.LOGICAL_UNITS[logical])
        bits = 31 if kind == "int" else 63
        return lambda value: _integer(value, bits)
    if kind in ("bytes", "fixed"):
        if logical == "decimal":
            return lambda value: json_values.decimal_bytes(_number(value), avro)
        size = avro.get("size")
        return lambda value: _bytes(value, size)
    if kind in ("float", "double"):
        return lambda value: _float(kind, value)
    return _boolean if kind == "boolean" else _text


def _bytes(value: Any, size: int | None) -> bytes:
    data = value.encode("latin-1") if isinstance(value, str) else value
    if not isinstance(data, bytes) or (size is not None and len(data) != size):
        raise ValueError
    return data


#: Ticks of a time of day in a second, by logical type.
_PARTS_OF_DAY = {"time-millis": 1_000, "time-micros": 1_000_000}


def _fail_union(_: Any) -> Any:
    raise Reject("wrong_type", "a union of several types can't be told from text: use JSON lines or Parquet")


def _number(value: Any) -> Any:
    """Return a number as it is, a CSV's exactly. Raises ValueError for what is none."""
    if isinstance(value, bool):
        raise TypeError
    if isinstance(value, str):
        if not is_number(value):
            raise ValueError
        return Decimal(value)
    return value


def _integer(value: Any, bits: int) -> int:
    exact = int(value) if isinstance(value, str) and _DIGITS.fullmatch(value) else _number(value)
    if isinstance(exact, Decimal) and exact.adjusted() > 19:  # 1e999999999 has as many digits as a whole number
        raise ValueError
    if isinstance(exact, float) and abs(exact) > MAX_EXACT_FLOAT:
        raise ValueError
    number = int(exact)
    if number != exact or not -(2**bits) <= number < 2**bits:
        raise ValueError
    return number


def _float(kind: str, value: Any) -> float:
    if isinstance(value, str):
        if _WHOLE.fullmatch(value):
            return json_values.exact_float(kind, int(value))
        if not is_number(value) and not _INFINITY.fullmatch(value):
            raise ValueError
        return float(value)
    if isinstance(value, bool | bytes | Timestamp):
        raise TypeError
    if isinstance(value, int):
        return json_values.exact_float(kind, value)
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _boolean(value: Any) -> bool:
    return value if isinstance(value, bool) else _BOOLEANS[str(value).strip().lower()]


def _ticks(value: Any, per_second: int) -> int:
    """Return a Parquet timestamp or date, or ISO 8601 text, in parts of a second; what is finer is cut."""
    if isinstance(value, Timestamp):
        return value.ticks * per_second // value.per_second
    if isinstance(value, dt.datetime | dt.date):
        return moment(value.isoformat(), per_second)
    return moment(value, per_second)


def _time(kind: str, unit: str) -> Convert:
    """Return what makes a time of a number in this unit, of ISO 8601 text, or of Parquet's timestamps and dates."""
    per_second = times.PER_SECOND[unit]

    def convert(value: Any) -> Any:
        if times.looks_like_date(value):
            raise ValueError
        if isinstance(value, Timestamp | dt.date) or (isinstance(value, str) and not is_number(value)):
            if kind == "double":
                return float(Fraction(_ticks(value, 1_000_000_000) * per_second, 1_000_000_000))
            return _integer(_ticks(value, per_second), 31 if kind == "int" else 63)
        return _float(kind, value) if kind == "double" else _integer(value, 31 if kind == "int" else 63)

    return convert


def _iso_text(value: Any) -> str:
    if isinstance(value, Timestamp | dt.date):
        text = dt.datetime.fromtimestamp(0, dt.UTC) + dt.timedelta(microseconds=_ticks(value, 1_000_000))
        return text.isoformat()
    moment(_text(value))
    return str(value)


def _date(value: Any) -> int:
    if isinstance(value, Timestamp | dt.date) or (isinstance(value, str) and not is_number(value)):
        days, rest = divmod(_ticks(value, 1), 86_400)
        if rest:
            raise ValueError
        return days
    return _integer(value, 31)


def _time_of_day(per_second: int) -> Convert:
    def convert(value: Any) -> int:
        if isinstance(value, str) and not is_number(value):
            value = dt.time.fromisoformat(value)
        if isinstance(value, dt.time):
            if value.tzinfo is not None:
                raise ValueError
            seconds = value.hour * 3600 + value.minute * 60 + value.second
            return seconds * per_second + value.microsecond * per_second // 1_000_000
        return _integer(value, 63)

    return convert


def _as_json(value: Any) -> Any:
    """Return a nested value of Parquet as JSON has it."""
    if isinstance(value, list):
        return [_as_json(item) for item in value]
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items()}
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, dt.datetime):
        return value.isoformat()
    if isinstance(value, dt.date):
        return (value - dt.date(1970, 1, 1)).days
    return None if isinstance(value, float) and math.isnan(value) else value


def _hint(value: Any, kind: str) -> str:
    """Return what may be wrong with a number."""
    text = value if isinstance(value, str) else ""
    if times.looks_like_date(value):
        return ": write a date as 2024-01-31"
    if re.fullmatch(r"[+-]?\d{1,3}([,.\u00a0\u202f' ]\d{3})+([.,]\d+)?", text):
        return ": write it without thousands separators"
    if re.fullmatch(r"[+-]?\d+,\d*", text):
        return ": write the decimal comma as a point"
    if isinstance(value, float) and abs(value) > MAX_EXACT_FLOAT:
        return ": a float of this size may stand for several integers"
    is_whole = _WHOLE.fullmatch(text) or (isinstance(value, int) and not isinstance(value, bool))
    return f": no {kind} is exactly that" if is_whole and kind in ("float", "double") else ""


def write(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write rows to a file; its suffix gives the format."""
    if path.suffix in (".jsonl", ".ndjson"):
        with path.open("w") as out:
            out.writelines(json.dumps(record) + "\n" for record in records)
        return
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as out:
            names = dict.fromkeys(name for record in records for name in record)
            writer = csv.DictWriter(out, list(names), lineterminator="\n")
            writer.writeheader()
            writer.writerows(records)
        return
    import pandas as pd

    frame = pd.DataFrame(list(records), dtype=object)  # as objects: integers beside missing ones stay integers
    try:
        frame.to_parquet(path, index=False)
    except ImportError:
        raise SettingsError(f"{path}: writing Parquet needs pyarrow: pip install 'tidemill[parquet]'") from None


@contextlib.contextmanager
def prediction_writer(path: Path | None, pipeline: Pipeline) -> Iterator[Callable[[PredictionLog], None] | None]:
    """Write prediction-log records to `path`: the archive's rows as Parquet by its suffix, else JSON lines.

    Nothing where there is no path. Raises SettingsError where it can't be written.
    """
    if path is None:
        yield None
        return
    from tidemill.files import open_output  # fsspec takes a tenth of a second

    if path.suffix == ".parquet":
        try:
            from tidemill.wire.archive_rows import prediction_rows
        except ImportError:
            raise SettingsError(f"{path}: writing Parquet needs pyarrow: pip install 'tidemill[parquet]'") from None
        with open_output(path) as out, prediction_rows(out, pipeline) as write:
            yield write
        return
    if path.suffix.lower() in {*rows.FORMATS, *rows.PACKED} - {".json", ".jsonl", ".ndjson"}:
        raise SettingsError(f"--predictions {path}: expected a name that ends in .parquet, or .jsonl for JSON lines")
    with open_output(path) as out:
        yield lambda record: _write_line(out, record)


def _write_line(out: BinaryIO, record: Mapping[str, Any]) -> None:
    out.write(json.dumps(record).encode() + b"\n")
