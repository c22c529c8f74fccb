"""Static look-ups: a table in a file, read once, when the pipeline is declared.

    AIRPORTS = Table("airports.csv", key="faa")
    ...
    request={"dest_lat": number(AIRPORTS.get("lat", by="dest"))}

For what changes with a release and not with an event: airports, shops, public holidays. A vector holds the value that it
was served with, so a table may be changed between two starts and no model need be learned anew.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from tidemill.errors import DeclarationError
from tidemill.loading import loading

FORMS = (".csv", ".csv.zip", ".jsonl", ".ndjson", ".parquet")
MISSING = ("", "NA", "NaN", "nan", "null")
"""Texts that can only mean "missing" in a column of numbers; "NA" may well be a text (Namibia, an airline)."""
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
_TRUTH = {"true": True, "false": False}

Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class Lookup:
    """A function of the event: the value of a table's column in the row that the event's field `by` names, or None.

    `kind` is the feature's kind where none is said: "number", "category" or "flag".
    """

    table: Table
    column: str
    by: str
    kind: str
    values: Mapping[str, Any] = field(repr=False, compare=False)

    def __call__(self, event: Mapping[str, Any]) -> Any:
        named = event[self.by]
        return None if named is None else self.values.get(str(named))

    def __str__(self) -> str:
        return f"{self.table.name}: {self.column} by {self.by}"


class Table:
    """A file of rows, each known by its key.

    Parameters
    ----------
    name
        A file of the form that its name says (`.csv`, `.csv.zip`, `.jsonl`, `.ndjson`, `.parquet`), looked for beside the
        pipeline's file, then in the working directory. A CSV has a header; a column whose every value is a number is one of
        numbers, unless one has zeros before it (as postcodes have), and one of true and false is one of flags.
    key
        The column that names the row. It is compared as text, so an event's 7 finds a file's 7.
    repeats
        Whether a key may be there more than once; then only `keys` means something.

    Raises DeclarationError where there is no such file, it can't be read, it has no such column, or a key is there twice.
    """

    def __init__(self, name: str | Path, key: str, *, repeats: bool = False) -> None:
        self.name, self.key = str(name), key
        path = self._find()
        data = self._bytes(path)
        #: SHA-256 of the file's content; of what is in it where it is a .zip.
        self.sha256 = hashlib.sha256(data).hexdigest()
        try:
            self._columns = _READ[_form(path)](data)
        except ImportError:
            self._fail("reading Parquet needs pyarrow: pip install 'tidemill[parquet]'")
        except (OSError, ValueError, csv.Error) as error:
            self._fail(f"can't be read: {' '.join(str(error).split())}")
        self._column(key)
        self._keys = [_as_key(value) for value in self._columns[key]]
        self._check_keys(repeats=repeats)

    def get(self, column: str, by: str) -> Lookup:
        """Return the function that takes an event and returns `column` of the row whose key is the event's field `by`.

        It returns None where the field is None or names no row, and where the row has no value. Raises DeclarationError
        where there is no such column, or its values are neither numbers nor text nor flags.
        """
        found = self._column(column)
        kind, values = _meant(found) if _form(Path(self.name)).startswith(".csv") else _typed(found)
        if not kind:
            self._fail(f"column {column!r} holds {values[0]} where numbers, text, or true and false were expected")
        return Lookup(self, column, by, kind, dict(zip(self._keys, values, strict=True)))

    @property
    def keys(self) -> Sequence[str]:
        """The rows' keys, as text."""
        return self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def __repr__(self) -> str:
        return f"Table({self.name!r}, key={self.key!r})"

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(self._columns)

    def _fail(self, message: str) -> NoReturn:
        raise DeclarationError(f"table {self.name!r}: {message}")

    def _find(self) -> Path:
        if not _form(Path(self.name)):
            self._fail(f"expected a file whose name ends in one of {', '.join(FORMS)}")
        folders = dict.fromkeys(folder for folder in (loading.get(), Path.cwd()) if folder)
        found = next((folder / self.name for folder in folders if (folder / self.name).is_file()), None)
        return found or self._fail(f"no such file in {' or '.join(map(str, folders))}")

    def _bytes(self, path: Path) -> bytes:
        try:
            if path.suffix != ".zip":
                return path.read_bytes()
            with zipfile.ZipFile(path) as archive:
                names = [
                    name for name in archive.namelist() if name.endswith(".csv") and not name.startswith("__MACOSX")
                ]
                if len(names) != 1:
                    self._fail(f"expected one CSV in it; it has {', '.join(names) or 'none'}")
                return archive.read(names[0])
        except (OSError, zipfile.BadZipFile) as error:
            self._fail(f"can't be read: {error}")

    def _column(self, name: str) -> list[Any]:
        if name not in self._columns:
            self._fail(f"no column {name!r}: it has {', '.join(self._columns) or 'none'}")
        return self._columns[name]

    def _check_keys(self, *, repeats: bool) -> None:
        seen: dict[str, int] = {}
        for row, key in enumerate(self._keys, 1):
            if not key:
                self._fail(f"row {row} has no {self.key!r}, which is the key")
            if key in seen and not repeats:
                self._fail(f"the key {key!r} is there twice, in rows {seen[key]} and {row}")
            seen[key] = row


def _form(path: Path) -> str:
    return next((form for form in sorted(FORMS, key=len, reverse=True) if path.name.endswith(form)), "")


def _as_key(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a Parquet file has whole numbers as floats where one was missing once
    return "" if value is None or value != value else str(value)


def _csv(data: bytes) -> Columns:
    rows = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
    names = next(rows, [])
    if len(set(names)) != len(names):
        raise ValueError("two columns have the same name")
    found: list[Sequence[str]] = []
    for number, row in enumerate((row for row in rows if row), 1):
        if len(row) != len(names):
            raise ValueError(f"row {number} has {len(row)} values where {len(names)} were expected")
        found.append(row)
    return {name: [row[index] or None for row in found] for index, name in enumerate(names)}


def _json_lines(data: bytes) -> Columns:
    rows = [json.loads(line) for line in data.decode().splitlines() if line.strip()]
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} is {type(row).__name__} where an object was expected")
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _parquet(data: bytes) -> Columns:
    import pyarrow.parquet as pq

    found: Columns = pq.read_table(io.BytesIO(data)).to_pydict()
    return found


_READ: Mapping[str, Callable[[bytes], Columns]] = {
    ".csv": _csv, ".csv.zip": _csv, ".jsonl": _json_lines, ".ndjson": _json_lines, ".parquet": _parquet,
}  # fmt: skip


def _typed(column: list[Any]) -> tuple[str, list[Any]]:
    """Return the column's kind and its values as that kind has them; ("", [types found]) where it has none."""
    there = [value for value in column if value is not None and value == value]
    types = {type(value) for value in there}
    for kind, of in (("flag", {bool}), ("number", {int, float, Decimal}), ("category", {str})):
        if types <= of:
            return kind, [value if value is not None and value == value else None for value in column]
    return "", [", ".join(sorted(found.__name__ for found in types))]


def _meant(values: list[str | None]) -> tuple[str, list[Any]]:
    """Return the kind of a CSV's column, which is what all its texts can be read as, and its values."""
    there = {value for value in values if value is not None and value not in MISSING}
    if there and all(value.lower() in _TRUTH for value in there):
        return "flag", [_TRUTH.get((value or "").lower()) for value in values]
    if there and all(map(_NUMBER.fullmatch, there)):
        numbers = {text: float(text) if set(text) & set(".eE") else int(text) for text in there}
        return "number", [None if value is None else numbers.get(value) for value in values]
    return "category", list(values)
