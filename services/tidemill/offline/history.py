"""History as files: events and labels in CSV, JSON lines or Parquet, read as the records that the schemas describe."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tidemill.declare.pipeline import Pipeline
from tidemill.declare.stream import Stream
from tidemill.encoding import schema_files as schemas
from tidemill.errors import SettingsError
from tidemill.files import Files
from tidemill.offline.backtest import Outcome
from tidemill.tables import MISSING
from tidemill.wire.records import Features, PredictionLog

FORMS = (".csv", ".jsonl", ".ndjson", ".parquet")
_WORDS = {"true": True, "false": False, "1": True, "0": False}


def _whole(value: Any, bits: int) -> int:
    exact = Decimal(value) if isinstance(value, str) else value
    number = int(exact)
    if isinstance(value, bool) or number != exact or not -(2**bits) <= number < 2**bits:
        raise ValueError
    return number


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _truth(value: Any) -> bool:
    return bool(value) if isinstance(value, (bool, np.bool_)) else _WORDS[str(value).lower()]


_CONVERT: Mapping[str, Callable[[Any], Any]] = {
    "int": lambda value: _whole(value, 31), "long": lambda value: _whole(value, 63), "float": float, "double": float,
    "string": _text, "enum": _text, "boolean": _truth,
}  # fmt: skip


def read(path: Path, stream: Stream) -> list[dict[str, Any]]:
    """Return the rows of a file as records of the stream's schema, in order of their time; equal times as in the file.

    Numbers and text are taken as the schema has them and nothing is checked beyond that: the validator will. Raises
    SettingsError where the file can't be read, a column is missing, or a value can't be the field's type.
    """
    if path.suffix not in FORMS:
        raise SettingsError(f"{path}: its name ends in {path.suffix!r}; expected one of {', '.join(FORMS)}")
    try:
        frame = _frame(path, stream)
    except FileNotFoundError:
        raise SettingsError(f"{path} does not exist") from None
    except ImportError:
        raise SettingsError(f"{path}: reading Parquet needs pyarrow: pip install 'tidemill[parquet]'") from None
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} can't be read: {error}") from None
    columns = {}
    for field in stream.avro["fields"]:
        name = field["name"]
        if name not in frame.columns:
            if "default" not in field:
                raise SettingsError(
                    f"{path} has no column {name!r}; {stream.schema} needs it. It has {', '.join(frame.columns)}"
                )
            columns[name] = [field["default"]] * len(frame)
            continue
        columns[name] = _column(path, name, frame[name].tolist(), stream.types[name], schemas.nullable(field["type"]))
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    rows.sort(key=lambda row: row[stream.time])
    return rows


def _frame(path: Path, stream: Stream) -> pd.DataFrame:
    if path.suffix == ".csv":
        # As text: what it means is said by the schema, and no digit is lost on the way.
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        for name in frame.columns:
            # "NA" may be a text (Namibia, an airline); in a column of numbers it can only mean missing.
            missing = ("",) if stream.types.get(name) in ("string", "enum") else MISSING
            frame[name] = [None if value in missing else value for value in frame[name]]
        return frame.astype(object)
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    with path.open() as lines:
        rows = [json.loads(line) for line in lines if line.strip()]
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} is {type(row).__name__} where an object was expected")
    return pd.DataFrame(rows, dtype=object)


def _column(path: Path, name: str, values: list[Any], kind: str, nullable: bool) -> list[Any]:
    convert = _CONVERT.get(kind)
    found = []
    for row, value in enumerate(values, 1):
        missing = value is None or value is pd.NA or (isinstance(value, float) and value != value)
        if missing and not nullable:
            raise SettingsError(f"{path} row {row}: column {name!r} has no value where a {kind} was expected")
        try:
            found.append(None if missing else convert(value) if convert else value)
        except (TypeError, ValueError, KeyError, ArithmeticError):
            raise SettingsError(f"{path} row {row}: column {name!r} is {value!r} where a {kind} was expected") from None
    return found


def archived(pipeline: Pipeline, url: str) -> tuple[list[Features], list[Outcome]]:
    """Return what an archive holds: vectors in order of event time, outcomes in order of label time.

    Raises SettingsError where it holds nothing of this pipeline, or of another declaration of it.
    """
    try:
        from tidemill.wire import archive_rows as rows
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"--archive {url}: reading it needs {error.name}: pip install 'tidemill[parquet]'"
        ) from None
    files = Files(url, "archive_url", "archive", create=False)
    questions = sorted(
        map(rows.features_of, rows.read(pipeline, files, labelled=False)), key=lambda features: features["event_time"]
    )
    outcomes = sorted(
        (
            Outcome(row["event_id"], row["label"], row["label_time"])
            for row in rows.read(pipeline, files, labelled=True)
        ),
        key=lambda outcome: outcome.label_time,
    )
    return questions, outcomes


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows to a file of the form that its name says."""
    if path.suffix in (".jsonl", ".ndjson"):
        with path.open("w") as out:
            out.writelines(json.dumps(row) + "\n" for row in rows)
        return
    frame = pd.DataFrame(list(rows), dtype=object)  # as objects: integers beside missing ones stay integers
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
