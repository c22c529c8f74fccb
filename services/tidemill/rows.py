"""Rows in files: CSV (also zipped), JSON lines and Parquet, for look-up tables and for history.

A CSV holds texts, in UTF-8, below one line of names; what a text means is decided by whoever knows the column's type.
JSON lines and Parquet have types of their own. Nothing is dropped or cut without an error: two columns of one name, a
row with too few or too many values and an unfinished quotation are errors.

What is missing: null and NaN; in a CSV an empty value, and in a column that is not of texts the words in MISSING_WORDS
too.

CSV is read by the standard library: every service loads the declaration, and pandas would add half a second to each
start.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tidemill.limits import UNZIPPED_BYTES

FORMATS = (".csv", ".csv.zip", ".jsonl", ".ndjson", ".parquet")
#: Texts that can only mean "missing" in a column of numbers or flags. Among texts "NA" may be Namibia, or an airline.
MISSING_WORDS = ("", "NA", "NaN", "nan", "null")
#: The longest value of a CSV. The standard library's own limit is 131,072 characters.
MAX_VALUE_CHARACTERS = 2**31 - 1

Columns = dict[str, list[Any]]


def is_missing(value: Any) -> bool:
    """Whether a value is None, NaN, or pandas' NaT or NA."""
    try:
        return value is None or bool(value != value)
    except TypeError:  # NA does not say whether it is something
        return True


def text_or_none(text: str | None, *, is_text_column: bool) -> str | None:
    """Return a CSV's value, or None where it means "missing" in a column of texts, or of something else."""
    return None if text in (("",) if is_text_column else MISSING_WORDS) else text


def format_of(path: Path) -> str:
    """Return which of FORMATS a file's name ends in. Raises ValueError where it is none of them."""
    for name in sorted(FORMATS, key=len, reverse=True):
        if path.name.endswith(name):
            return name
    raise ValueError(f"expected a file whose name ends in one of {', '.join(FORMATS)}")


def content(path: Path) -> bytes:
    """Return a file's bytes; of a .zip, those of the one CSV in it. Raises ValueError where it can't be read."""
    try:
        if path.suffix != ".zip":
            return path.read_bytes()
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".csv") and not name.startswith("__MACOSX")]
            if len(names) != 1:
                raise ValueError(f"expected one CSV in it; it has {', '.join(names) or 'none'}")
            size = archive.getinfo(names[0]).file_size  # no more is read than it says
            if size > UNZIPPED_BYTES.max:
                raise ValueError(UNZIPPED_BYTES.excess(size, names[0]))
            return archive.read(names[0])
    except FileNotFoundError:
        raise ValueError("the file does not exist") from None
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"can't be read: {error}") from None


def read(path: Path) -> Columns:
    """Return the columns of a file, by name; `.parquet` may be a folder of them. Raises ValueError as `columns_of`."""
    form = format_of(path)
    return columns_of(path if form == ".parquet" and path.is_dir() else content(path), form)


def columns_of(data: bytes | Path, form: str) -> Columns:
    """Return the columns of a file's bytes, by name. A CSV's values are texts as they stand there.

    Raises ValueError where the bytes are not of this format, or pyarrow is needed and not installed.
    """
    try:
        return _READERS[form](data)
    except ImportError:
        raise ValueError("reading Parquet needs pyarrow: pip install 'tidemill[parquet]'") from None
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"can't be read: {' '.join(str(error).split())}") from None


def _csv_columns(data: bytes) -> Columns:
    limit = csv.field_size_limit(MAX_VALUE_CHARACTERS)
    try:
        reader = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        names = next(reader, [])
        _check_names(names)
        rows = [row for row in reader if row]
    finally:
        csv.field_size_limit(limit)
    for number, row in enumerate(rows, 1):
        if len(row) != len(names):
            raise ValueError(f"row {number} has {len(row)} values where {len(names)} were expected")
    return {name: [row[index] for row in rows] for index, name in enumerate(names)}


def _json_columns(data: bytes) -> Columns:
    rows = [json.loads(line) for line in data.decode("utf-8-sig").split("\n") if line.strip()]
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} is {type(row).__name__} where an object was expected")
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _parquet_columns(data: bytes | Path) -> Columns:
    import pyarrow.parquet as pq

    table = pq.read_table(data if isinstance(data, Path) else io.BytesIO(data))
    _check_names(table.column_names)
    columns: Columns = table.to_pydict()
    return columns


def _check_names(names: list[str]) -> None:
    if len(set(names)) != len(names):
        raise ValueError("two columns have the same name")


_READERS: Mapping[str, Callable[[Any], Columns]] = {
    ".csv": _csv_columns,
    ".csv.zip": _csv_columns,
    ".jsonl": _json_columns,
    ".ndjson": _json_columns,
    ".parquet": _parquet_columns,
}
