"""History as files: events and labels in CSV, JSON lines or Parquet, read as the records that the schemas describe."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from tidemill import rows
from tidemill.declare.stream import Stream
from tidemill.encoding import schema_files
from tidemill.errors import SettingsError
from tidemill.wire.records import PredictionLog

_BOOLEANS = {"true": True, "false": False, "1": True, "0": False}


def _integer(value: Any, bits: int) -> int:
    exact = Decimal(value) if isinstance(value, str) else value
    if isinstance(exact, Decimal) and exact.adjusted() > 19:  # 1e999999999 has as many digits as a whole number
        raise ValueError
    number = int(exact)
    if isinstance(value, bool) or number != exact or not -(2**bits) <= number < 2**bits:
        raise ValueError
    return number


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _boolean(value: Any) -> bool:
    return value if isinstance(value, bool) else _BOOLEANS[str(value).lower()]


_CONVERTERS: Mapping[str, Callable[[Any], Any]] = {
    "int": lambda value: _integer(value, 31),
    "long": lambda value: _integer(value, 63),
    "float": float,
    "double": float,
    "string": _text,
    "enum": _text,
    "boolean": _boolean,
}


def read(path: Path, stream: Stream) -> list[dict[str, Any]]:
    """Return the rows of a file as records of the stream's schema, in order of their time; equal times as in the file.

    Numbers and text are taken as the schema has them and nothing is checked beyond that: the validator will. Raises
    SettingsError where the file can't be read, a column is missing, or a value can't be the field's type.
    """
    try:
        columns = rows.read(path)
    except ValueError as error:
        raise SettingsError(f"{path}: {error}") from None
    count = len(next(iter(columns.values()), ()))
    is_csv = rows.format_of(path).startswith(".csv")
    converted = {}
    for field in stream.avro["fields"]:
        name = field["name"]
        if name in columns:
            kind = stream.types[name]
            values: list[Any] = columns[name]
            if is_csv:  # as text: what it means is said by the schema, and no digit is lost on the way
                values = [rows.text_or_none(text, is_text_column=kind in ("string", "enum")) for text in values]
            converted[name] = _converted(path, name, values, kind, is_nullable=schema_files.nullable(field["type"]))
        elif "default" in field:
            converted[name] = [field["default"]] * count
        else:
            raise SettingsError(f"{path} has no column {name!r}; {stream.schema} needs it. It has {', '.join(columns)}")
    records = [dict(zip(converted, values, strict=True)) for values in zip(*converted.values(), strict=True)]
    records.sort(key=lambda record: record[stream.time])
    return records


def _converted(path: Path, name: str, values: list[Any], kind: str, *, is_nullable: bool) -> list[Any]:
    convert = _CONVERTERS.get(kind)
    converted = []
    for row, value in enumerate(values, 1):
        is_missing = rows.is_missing(value)
        if is_missing and not is_nullable:
            raise SettingsError(f"{path} row {row}: column {name!r} has no value where a {kind} was expected")
        try:
            converted.append(None if is_missing else convert(value) if convert else value)
        except (TypeError, ValueError, KeyError, ArithmeticError):
            raise SettingsError(f"{path} row {row}: column {name!r} is {value!r} where a {kind} was expected") from None
    return converted


def write(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write rows to a file; its suffix gives the format."""
    if path.suffix in (".jsonl", ".ndjson"):
        with path.open("w") as out:
            out.writelines(json.dumps(record) + "\n" for record in records)
        return
    import pandas as pd

    frame = pd.DataFrame(list(records), dtype=object)  # as objects: integers beside missing ones stay integers
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
        return
    try:
        frame.to_parquet(path, index=False)
    except ImportError:
        raise SettingsError(f"{path}: writing Parquet needs pyarrow: pip install 'tidemill[parquet]'") from None


@contextlib.contextmanager
def prediction_writer(path: Path | None) -> Iterator[Callable[[PredictionLog], None] | None]:
    """Write prediction-log records to `path` as JSON lines; nothing where there is no path."""
    if path is None:
        yield None
        return
    with path.open("w") as out:
        yield lambda record: print(json.dumps(record), file=out)
