"""Static look-ups: a table in a file, read once, when the pipeline is declared.

    AIRPORTS = Table("airports.csv", key="faa")
    ...
    request={"dest_lat": number(AIRPORTS.get("lat", by="dest"))}

For what changes with a release and not with an event: airports, shops, public holidays. A vector holds the value that
it was served with, so a table may be changed between two starts and no model has to learn again.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from tidemill import rows
from tidemill.errors import DeclarationError
from tidemill.limits import LARGEST_NUMBER
from tidemill.loading import loading

_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
_TRUTH = {"true": True, "false": False}


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
        return None if named is None else self.values.get(self.key_of(named))

    def key_of(self, named: Any) -> str:
        """Return the key of the row that a field's value names; one that no row has where it names none."""
        key = str(named)
        return key if key in self.values else plain_key(key)

    def __str__(self) -> str:
        return f"{self.table.name}: {self.column} by {self.by}"


class Table:
    """A file of rows, each known by its key.

    Parameters
    ----------
    name
        A file of the form that its name says (`.csv`, `.tsv`, `.jsonl`, `.ndjson`, `.json`, `.parquet`, also packed, as
        `.csv.gz`), looked for beside the pipeline's file, then in the working directory. A CSV has a header; a column
        whose every value is a number is one of numbers, unless one has zeros before it (as postcodes have), and one of
        true and false is one of flags.
    key
        The column that names the row. It is compared as text, so an event's 7 finds a file's 7. Where no key is exactly
        that, blanks around it and `.0` behind a whole number do not count: 7 finds ` 7` and 7.0.
    repeats
        Whether a key may be there more than once; then only `keys` means something.

    Raises DeclarationError where there is no such file, it can't be read, it has no such column, or a key is there
    twice.
    """

    def __init__(self, name: str | Path, key: str, *, repeats: bool = False) -> None:
        self.name, self.key = str(name), key
        try:
            self._form = rows.format_of(Path(self.name))
            #: Where the file is.
            self.path = self._find()
            data = rows.content(self.path)
            self._columns = rows.columns_of(data, self._form)
        except ValueError as error:
            self._fail(str(error))
        #: SHA-256 of the file's content; of the CSV in it where it is a .zip.
        self.sha256 = hashlib.sha256(data).hexdigest()
        self._column(key)
        self._keys = [_as_key(value) for value in self._columns[key]]
        self._check_keys(repeats=repeats)

    def get(self, column: str, by: str) -> Lookup:
        """Return the function that takes an event and returns `column` of the row whose key is the event's field `by`.

        It returns None where the field is None or names no row, and where the row has no value. Raises DeclarationError
        where there is no such column, or its values are neither numbers nor text nor flags.
        """
        found = self._column(column)
        kind, values = _inferred(found) if self._form in rows.TEXT_FORMATS else _typed(found)
        if not kind:
            self._fail(f"column {column!r} holds {values[0]} where numbers, text, or true and false were expected")
        if all(value is None for value in values):
            self._fail(f"column {column!r} has no value in any row")
        if kind == "number":
            self._check_numbers(column, values)
        return Lookup(self, column, by, kind, self._by_key(values))

    def _check_numbers(self, column: str, values: Sequence[Any]) -> None:
        """Refuse what would be a missing feature."""
        for row, value in enumerate(values, 1):
            if value is not None and (value == math.inf or abs(value) > LARGEST_NUMBER):
                given = f"{self._columns[column][row - 1]!s:.40}"
                self._fail(f"column {column!r}: row {row} has {given} where at most {LARGEST_NUMBER:g} was expected")

    def why_text(self, column: str) -> str:
        """Return the first row whose value in a column is text, and not a number, as "row 3 has 'x'"."""
        for row, value in enumerate(self._columns[column], 1):
            is_number = isinstance(value, str) and _NUMBER.fullmatch(value.strip())
            if not is_number and not rows.is_missing(value) and rows.text_or_none(str(value), is_text_column=False):
                return f"row {row} has {value!r:.80}"
        return "one has zeros before it"

    def _by_key(self, values: Sequence[Any]) -> dict[str, Any]:
        """Return the values by key, and by what else the key may be called, where that is nobody else's."""
        by_key = dict(zip(self._keys, values, strict=True))
        others = Counter(map(plain_key, by_key))
        return {plain_key(key): value for key, value in by_key.items() if others[plain_key(key)] == 1} | by_key

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
        folders = dict.fromkeys(folder for folder in (loading.get(), Path.cwd()) if folder)
        path = next((folder / self.name for folder in folders if (folder / self.name).is_file()), None)
        return path or self._fail(f"no such file in {' or '.join(map(str, folders))}")

    def _column(self, name: str) -> list[Any]:
        if name not in self._columns:
            self._fail(f"no column {name!r}: it has {', '.join(self._columns) or 'none'}")
        return self._columns[name]

    def _check_keys(self, *, repeats: bool) -> None:
        if not self._keys:
            self._fail("it has no rows")
        odd = next((key for key in self._columns[self.key] if isinstance(key, list | dict | tuple)), None)
        if odd is not None:
            self._fail(f"the key {self.key!r} holds {type(odd).__name__} where text or whole numbers were expected")
        seen: dict[str, int] = {}
        for row, key in enumerate(self._keys, 1):
            if not key:
                self._fail(f"row {row} has no {self.key!r}, which is the key")
            if key in seen and not repeats:
                self._fail(f"the key {key!r} is there twice, in rows {seen[key]} and {row}")
            seen[key] = row


def plain_key(key: str) -> str:
    """Return a key without blanks around it, and without the `.0` that a whole number has in a column of floats.

    >>> plain_key(" 7.0"), plain_key("007"), plain_key("1.5")
    ('7', '007', '1.5')
    """
    key = key.strip()
    whole, point, rest = key.partition(".")
    return whole if point and not rest.strip("0") and whole.removeprefix("-").isdecimal() else key


def _as_key(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a Parquet file has whole numbers as floats where one was missing once
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    return "" if rows.is_missing(value) else str(value).strip()


def _typed(column: list[Any]) -> tuple[str, list[Any]]:
    """Return the column's kind and its values as that kind has them; ("", [types found]) where it has none."""
    types = {type(value) for value in column if not rows.is_missing(value)}
    for kind, of in (("flag", {bool}), ("number", {int, float, Decimal}), ("category", {str})):
        if types <= of:
            return kind, [None if rows.is_missing(value) else value for value in column]
    return "", [", ".join(sorted(one.__name__ for one in types))]


def _inferred(texts: list[str]) -> tuple[str, list[Any]]:
    """Return the kind of a CSV's column, which is what all its texts can be read as, and its values."""
    values = [rows.text_or_none(text, is_text_column=False) for text in texts]
    present = {text for text in values if text is not None}
    if present and all(text.lower() in _TRUTH for text in present):
        return "flag", [text and _TRUTH[text.lower()] for text in values]
    if present and all(map(_NUMBER.fullmatch, present)):
        # Python makes no int of thousands of digits.
        numbers = {text: float(text) if set(text) & set(".eE") or len(text) > 40 else int(text) for text in present}
        return "number", [text and numbers[text] for text in values]
    return "category", [rows.text_or_none(text, is_text_column=True) for text in texts]
