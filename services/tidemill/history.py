"""History as files: events and labels in CSV, JSON lines or Parquet, read as the records that the schemas describe."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from tidemill.errors import SettingsError
from tidemill.pipeline import Stream
from tidemill.records import PredictionLog

FORMS = (".csv", ".jsonl", ".ndjson", ".parquet")
_CONVERT: Mapping[str, Callable[[Any], Any]] = {
    "int": int, "long": int, "float": float, "double": float, "string": str, "boolean": bool, "enum": str,
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
        columns[name] = _column(path, name, frame[name].tolist(), stream.types[name])
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    rows.sort(key=lambda row: row[stream.time])
    return rows


def _frame(path: Path, stream: Stream) -> pd.DataFrame:
    if path.suffix == ".csv":
        text = {name: str for name, kind in stream.types.items() if kind in ("string", "enum")}
        # "NA" may be a text (Namibia, an airline); in a column of numbers it can only mean missing.
        missing = {name: [""] if name in text else ["", "NA", "NaN", "null"] for name in stream.types}
        return pd.read_csv(path, dtype=text, keep_default_na=False, na_values=missing)
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    with path.open() as lines:
        return pd.DataFrame([json.loads(line) for line in lines if line.strip()], dtype=object)


def _column(path: Path, name: str, values: list[Any], kind: str) -> list[Any]:
    convert = _CONVERT.get(kind)
    found = []
    for row, value in enumerate(values, 1):
        try:
            missing = value is None or value is pd.NA or (isinstance(value, float) and value != value)
            found.append(None if missing else convert(value) if convert else value)
        except (TypeError, ValueError):
            raise SettingsError(f"{path} row {row}: column {name!r} is {value!r} where a {kind} was expected") from None
    return found


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows to a file of the form that its name says."""
    if path.suffix in (".jsonl", ".ndjson"):
        with path.open("w") as out:
            out.writelines(json.dumps(row) + "\n" for row in rows)
        return
    frame = pd.DataFrame.from_records(list(rows))
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
        return
    try:
        frame.to_parquet(path, index=False)
    except ImportError:
        raise SettingsError(f"{path}: writing Parquet needs pyarrow: pip install 'tidemill[parquet]'") from None


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None] | None]:
    """Show a progress bar on a terminal's standard error; nothing where that is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task, done = bar.add_task(what, total=total), 0

        def advance(n: int) -> None:
            nonlocal done
            done += n
            if done % 100 == 0 or done == total:
                bar.update(task, completed=done)

        yield advance


@contextlib.contextmanager
def prediction_writer(path: Path | None) -> Iterator[Callable[[PredictionLog], None] | None]:
    """Write prediction-log records to `path` as JSON lines; nothing where there is no path."""
    if path is None:
        yield None
        return
    with path.open("w") as out:
        yield lambda record: print(json.dumps(record), file=out)
