"""The columns of somebody's data: what each holds, and what it is called in an Avro schema."""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
import math
import re
import unicodedata
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

from tidemill import rows
from tidemill.durations import moment
from tidemill.encoding.times import PER_SECOND
from tidemill.errors import SettingsError
from tidemill.offline.history import is_number

Kind = Literal["int", "float", "flag", "text", "time", "nested", "empty"]

#: Of a column of texts, as many different ones are tried as times before all of them are.
TRIED_TEXTS = 20
#: Of a column of texts that are not all times, so many show whether some are; and the share that makes it worth a word.
TRIED_FORMS, MIN_SHARE_OF_TIMES = 3, 0.25
#: A word among more different numbers than these is none of a category's names: it stands where a number is missing.
MIN_NUMBERS = 30
#: Whole numbers beyond are no Avro long.
LARGEST_LONG = 2**63 - 1

_LEADING_ZERO = re.compile(r"[+-]?0\d+(\.\d*)?")
#: Thousands set apart by commas; where there is neither a point nor a second comma, and no leading zero, it may be one.
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d+)?")
_EITHER = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")
_POINT_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(\.\d{3})+")
_POINTS_AND_COMMA = re.compile(r"[+-]?([1-9]\d{0,2}(\.\d{3})+|\d+)(,\d+)?")
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
#: A sign at the end of each number of a column, or before it: of a currency or of a part.
_PARTS = "%‰"
_WITH_COMMAS = "its decimal commas are written as points"
_INFINITY = re.compile(r"[+-]?inf(inity)?", re.IGNORECASE)
_WHOLE = re.compile(r"[+-]?\d+")
_FLAGS = ({"true", "false"}, {"t", "f"})
_DATES = (
    *("%d.%m.%Y", "%d.%m.%y", "%d/%m/%Y", "%m/%d/%Y", "%d/%m/%y", "%m/%d/%y", "%Y/%m/%d", "%d-%m-%Y", "%m-%d-%Y"),
    *("%d %b %Y", "%d %B %Y", "%b %d %Y", "%B %d %Y", "%b %d, %Y", "%B %d, %Y", "%d-%b-%Y", "%d-%b-%y", "%d/%b/%Y"),
    *("%Y.%m.%d", "%a, %d %b %Y", "%a %b %d %Y", "%Y-%m", "%Y/%m", "%b %Y", "%B %Y"),
)
_HOURS = ("", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p", ":%H:%M:%S", "T%H:%M:%S")
_ZONES = ("", " %Z", " %z")
_FORMATS = tuple(
    date + hour + zone for date, hour, zone in itertools.product(_DATES, _HOURS, _ZONES) if hour or not zone
)
#: Numbers that count from the epoch lie within, or they are no times.
EPOCH = (moment("1990-01-01"), moment("2100-01-01"))
#: How a time is told: a strptime format, "iso8601", or a unit of `times.PER_SECOND`.
ISO = "iso8601"


def words_of(name: str) -> list[str]:
    """Return the words of a column's name, in small letters.

    >>> words_of("eventTime"), words_of("Order ID_2")
    (['event', 'time'], ['order', 'id', '2'])
    """
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return [word for word in re.split(r"[\W_]+", spaced.lower()) if word]


def field_names(names: Sequence[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """Return a name that Avro allows for each column, no two alike.

    >>> field_names(["Größe (cm)", "1st", "温度", "size", "Size "])
    {'Größe (cm)': 'Grosse_cm', '1st': '_1st', '温度': 'column_3', 'size': 'size', 'Size ': 'Size'}
    """
    used, made = set(taken), {}
    for number, name in enumerate(names, 1):
        plain = unicodedata.normalize("NFKD", name.replace("ß", "ss")).encode("ascii", "ignore").decode()
        plain = re.sub(r"\W+", "_", plain).strip("_") if plain != name or not name.isidentifier() else name
        plain = plain or f"column_{number}"
        plain = plain if not plain[0].isdigit() else f"_{plain}"
        made[name] = free_name(plain, used)
        used.add(made[name])
    return made


def quoted(text: str) -> str:
    """Return a text as Python, in double quotes where that reads well."""
    return f'"{text}"' if text.isprintable() and not set(text) & set('\\"') else repr(text)


def free_name(name: str, used: Iterable[str]) -> str:
    """Return the name, with a number behind it where it is used already."""
    return next(one for n in itertools.count(1) if (one := name if n == 1 else f"{name}_{n}") not in used)


@dataclass
class Column:
    """One column: its name, what its field is called, and its values, None where one is missing.

    Values are what a data file is to hold: numbers and flags without blanks around them, texts as they are. `told`
    says how its times are told; a column of numbers may be one of times as well, if it is called so.
    """

    name: str
    field: str
    kind: Kind
    values: Sequence[Any] = dataclasses.field(repr=False)
    told: str = ""
    ambiguous: tuple[str, ...] = ()
    note: str = ""
    #: Its Avro type, where it is from a topic in Avro.
    declared: Any = None

    @property
    def is_renamed(self) -> bool:
        """Whether its field has another name."""
        return self.name != self.field

    @cached_property
    def counts(self) -> Counter[Any]:
        """How often each value is there, without missing ones."""
        return Counter(str(v) if self.kind in ("nested", "time") else v for v in self.values if v is not None)

    @cached_property
    def missing(self) -> int:
        """Rows without a value."""
        return len(self.values) - self.counts.total()

    @property
    def is_unique(self) -> bool:
        """Whether each row has a value, and no two rows the same."""
        return not self.missing and len(self.counts) == len(self.values) > 0

    @cached_property
    def numbers(self) -> list[float]:
        """The values as numbers, without missing ones."""
        return [float(value) for value in self.values if value is not None]

    def typed(self) -> Sequence[Any]:
        """Return the values of a CSV as JSON has them."""
        read: Mapping[str, Callable[[str], Any]] = {
            "int": lambda text: int(Decimal(text)),
            "float": float,
            "flag": lambda text: text.lower() in ("true", "t"),
        }
        convert = read.get(self.kind)
        return [None if value is None else convert(value) for value in self.values] if convert else self.values

    @cached_property
    def millis(self) -> list[int | None]:
        """The values as times, in ms since the epoch."""
        convert = cached(time_reader(self.told))
        return [None if value is None else convert(value) for value in self.values]

    @property
    def avro(self) -> Any:
        """The Avro type of its field."""
        if self.declared is not None:
            return self.declared
        kinds = {"int": "long", "float": "double", "flag": "boolean", "text": "string"}
        kind: Any = kinds.get(self.kind, "string")
        return ["null", kind] if self.missing else kind


def cached(convert: Callable[[Any], int]) -> Callable[[Any], int]:
    """Return the function with a memory: dates repeat."""
    known: dict[Any, int] = {}

    def remembered(value: Any) -> int:
        if value not in known:
            known[value] = convert(value)
        return known[value]

    return remembered


def time_reader(told: str) -> Callable[[Any], int]:
    """Return the function that makes ms since the epoch of a time that is told like this. It raises ValueError."""
    if told == ISO:
        return _iso
    if told in PER_SECOND:
        per_second = PER_SECOND[told]
        return lambda value: int(Decimal(str(value)) * 1_000 // per_second)
    return lambda value: _strptime(str(value).strip(), told)


def _iso(value: Any) -> int:
    if isinstance(value, rows.Timestamp):
        return value.ticks * 1_000 // value.per_second
    return moment(value)


def _strptime(text: str, form: str) -> int:
    time = dt.datetime.strptime(text, form)
    return moment((time if time.tzinfo else time.replace(tzinfo=dt.UTC)).isoformat())


def iso_text(ms: int) -> str:
    """Return a time as ISO 8601, in UTC.

    >>> iso_text(1359651600500)
    '2013-01-31T17:00:00.500Z'
    """
    time = dt.datetime(1970, 1, 1) + dt.timedelta(milliseconds=ms)
    return time.isoformat(timespec="milliseconds" if ms % 1_000 else "seconds") + "Z"


def read(path: Path) -> rows.Columns:
    """Return the columns of one or more files, as they stand there. Raises SettingsError."""
    joined: rows.Columns = {}
    count = 0
    try:
        for file in rows.files_of(path):
            part = rows.columns(file)
            many = len(next(iter(part.values()), ()))
            for name in dict.fromkeys([*joined, *part]):
                joined.setdefault(name, [None] * count).extend(part.get(name, [None] * many))
            count += many
    except ValueError as error:
        raise SettingsError(f"{path}: {error}") from None
    return joined


def is_text_file(path: Path) -> bool:
    """Whether the files' values are texts."""
    return rows.format_of(rows.files_of(path)[0]) in rows.TEXT_FORMATS


def columns_of(given: Mapping[str, Sequence[Any]], *, is_csv: bool) -> list[Column]:
    """Return the columns, each with what it holds. A column's name is what a file's line of names says."""
    names = field_names(list(given))
    make = _of_texts if is_csv else _of_values
    columns = [make(name, names[name], values) for name, values in given.items()]
    if any(column.note == _WITH_COMMAS for column in columns):  # then points set thousands apart, in the other columns
        for at, column in enumerate(columns):
            values = [rows.text_or_none(text, is_text_column=False) for text in given[column.name]]
            dotted = [value for value in values if value and "." in value]
            is_plain = column.kind == "float" and column.note != _WITH_COMMAS
            if is_plain and dotted and all(map(_POINT_THOUSANDS.fullmatch, dotted)):
                plain = [value and value.replace(".", "") for value in values]
                kind = _number_kind({value for value in plain if value})
                columns[at] = Column(
                    column.name, column.field, kind, plain, note="its thousands are written without points"
                )
    return columns


def _of_texts(name: str, field_name: str, texts: Sequence[str | None]) -> Column:
    """Return a column of a CSV: what all its texts can be read as."""
    values = [rows.text_or_none(text, is_text_column=False) for text in texts]
    present = {value for value in values if value is not None}
    if not present:
        return Column(name, field_name, "empty", [None] * len(values))
    if {value.lower() for value in present} in _FLAGS or present == {"true"} or present == {"false"}:
        return Column(name, field_name, "flag", values)
    if all((is_number(v) or _INFINITY.fullmatch(v)) and not _LEADING_ZERO.fullmatch(v) for v in present):
        return _of_numbers(Column(name, field_name, _number_kind(present), values))
    if sign := _common_sign(present):
        column = _of_texts(name, field_name, [value and value.replace(sign, "").strip() for value in values])
        if column.kind in ("int", "float"):
            column.note = f"its numbers are written without {sign}" + (f"; {column.note}" if column.note else "")
            return column
        if column.note:
            return Column(name, field_name, "text", values, note=column.note)
    with_comma = {value for value in present if "," in value}
    if with_comma and all(map(_EITHER.fullmatch, with_comma)):
        column = Column(name, field_name, "text", values)
        column.note = f"{min(with_comma)!r} may be thousands or a fraction: text, until it is written without the comma"
        return column
    if with_comma and all(_THOUSANDS.fullmatch(v) if "," in v else is_number(v) for v in present):
        plain = [value and value.replace(",", "") for value in values]
        column = Column(name, field_name, _number_kind({v for v in plain if v}), plain)
        column.note = "its thousands are written without commas"
        return _of_numbers(column)
    if with_comma and any("." in value for value in present) and all(map(_POINTS_AND_COMMA.fullmatch, present)):
        points = [value and value.replace(".", "").replace(",", ".") for value in values]
        return Column(name, field_name, "float", points, note=_WITH_COMMAS)
    if any(map(_DECIMAL_COMMA.fullmatch, present)) and all(
        _DECIMAL_COMMA.fullmatch(v) or (is_number(v) and not _LEADING_ZERO.fullmatch(v)) for v in present
    ):
        points = [value and value.replace(",", ".") for value in values]
        return Column(name, field_name, "float", points, note=_WITH_COMMAS)
    words = {value for value in present if not is_number(value)}
    if len(words) == 1 < MIN_NUMBERS < len(present) and not re.search(r"\d", word := words.pop()):
        column = _of_texts(name, field_name, [None if value == word else value for value in values])
        column.note = f"it holds numbers, and {word!r}, which is taken as missing"
        return column
    as_they_are = [rows.text_or_none(text, is_text_column=True) for text in texts]
    return _times_of(Column(name, field_name, "text", as_they_are), values)


def _common_sign(texts: Iterable[str]) -> str:
    """Return the sign that each text has once, at one of its ends, if it is the same in all; else an empty text."""
    signs = {sign for text in texts for sign in text if sign in _PARTS or unicodedata.category(sign) == "Sc"}
    if len(signs) != 1:
        return ""
    (sign,) = signs
    at_an_end = (text.lstrip("+-").startswith(sign) or text.endswith(sign) for text in texts)
    return sign if all(at_an_end) and all(text.count(sign) == 1 for text in texts) else ""


def _of_values(name: str, field_name: str, given: Sequence[Any]) -> Column:
    """Return a column of JSON or Parquet, whose values have types."""
    values = [None if not isinstance(v, list | dict | tuple) and rows.is_missing(v) else v for v in given]
    values = [str(v) if isinstance(v, uuid.UUID | dt.time) else v for v in values]
    types = {type(value) for value in values if value is not None}
    if not types:
        return Column(name, field_name, "empty", values)
    if types == {bool}:
        return Column(name, field_name, "flag", values)
    if types <= {int, float, Decimal}:
        if types == {int}:
            kind = _number_kind({str(value) for value in values if value is not None})
            values = values if kind == "int" else [None if v is None else str(v) for v in values]
            return _of_numbers(Column(name, field_name, kind, values))
        return _of_numbers(Column(name, field_name, "float", [None if v is None else float(v) for v in values]))
    if types == {rows.Timestamp} or types <= {dt.date, dt.datetime}:
        return Column(name, field_name, "time", values, ISO)
    if types == {str}:
        plain = [value and value.strip() for value in values]
        if all(value is None or (is_number(value) and not _LEADING_ZERO.fullmatch(value)) for value in plain):
            column = _of_numbers(Column(name, field_name, "float", plain))
            note = "its numbers are written as text, and taken as text"
            return Column(name, field_name, "text", values, column.told, note="" if column.told else note)
        return _times_of(Column(name, field_name, "text", values), plain)
    if types <= {bool, int, float, str, Decimal}:
        texts = [None if value is None else str(value) for value in values]
        return Column(name, field_name, "text", texts, note="it holds values of several types, written as text")
    return Column(name, field_name, "nested", values)


def _number_kind(texts: set[str]) -> Kind:
    if not all(map(_WHOLE.fullmatch, texts)):
        return "float"
    return "int" if all(len(text) < 21 and abs(int(text)) <= LARGEST_LONG for text in texts) else "text"


def _of_numbers(column: Column) -> Column:
    """Say in what unit a column of numbers tells times, if it may: one called so, with values that lie in our days."""
    if column.kind == "text":
        column.note = "its whole numbers have more than 63 bits: text"
        return column
    numbers = [value for value in column.numbers if math.isfinite(value)]
    if len(numbers) < len(column.numbers) or not set(words_of(column.name)) & TIME_WORDS:
        return column
    lowest, highest = min(numbers), max(numbers)
    for unit, per_second in PER_SECOND.items():
        if EPOCH[0] <= lowest * 1_000 / per_second and highest * 1_000 / per_second <= EPOCH[1]:
            column.told = unit
    if column.kind == "int" and not column.told:
        for form, least, most in (("%Y%m%d", 19000101, 21001231), ("%Y", 1500, 2200)):
            if least <= lowest and highest <= most and _all_read(form, map(str, column.counts)):
                column.told = form
    return column


#: Words of names of columns with times.
TIME_WORDS = {
    *("time", "date", "datetime", "timestamp", "ts", "at", "when", "epoch", "day", "month", "year", "created"),
    *("occurred", "updated", "zeit", "datum", "unixtime", "utc", "hour"),
}


@cache
def _marks(form: str) -> tuple[str, ...]:
    """Return the signs that a time in this form must have."""
    return tuple({sign for sign in re.sub("%.", "", form) if not sign.isalnum() and not sign.isspace()})


def _may_read(form: str, text: str) -> bool:
    """Whether a text may be a time in this form: to look at it costs less than to try."""
    return all(mark in text for mark in _marks(form)) and (" " not in form or len(text.split()) > 1)


def _all_read(form: str, texts: Iterable[str]) -> bool:
    convert = time_reader(form)
    try:
        return all(_may_read(form, text) and convert(text) is not None for text in texts)
    except (ValueError, OverflowError):
        return False


def _other_forms(texts: Sequence[str], values: Sequence[Any]) -> str:
    """Return which of these texts keeps them from being times, where many are; `values` are those of the rows."""
    forms = [form for form in (ISO, *_FORMATS) if any(_all_read(form, [text]) for text in texts[:TRIED_FORMS])]
    read = {form: [text for text in texts if _all_read(form, [text])] for form in forms}
    form = max(read, key=lambda one: len(read[one]), default="")
    if not form or len(read[form]) < MIN_SHARE_OF_TIMES * len(texts):
        return ""
    other = next(text for text in texts if text not in set(read[form]))
    return (
        f"{len(read[form]):,} of {len(texts):,} different texts are times ({'ISO 8601' if form == ISO else form}), and "
        f"row {values.index(other) + 1}, {other[:40]!r}, is none of that form: text, until all rows have one form"
    )


def _times_of(column: Column, values: Sequence[Any]) -> Column:
    """Make a column of texts one of times, if all of them are; `ambiguous` where they can be read in several ways."""
    texts = list(dict.fromkeys(value for value in values if value))
    if not texts or not all(re.search(r"\d", text) and len(text) <= 40 for text in texts[:TRIED_TEXTS]):
        return column
    is_dated = any(re.search(r"\d{4}-?\d\d|\d{4}-W\d\d", text) for text in texts[:TRIED_TEXTS])
    if is_dated and not is_number(texts[0]) and _all_read(ISO, texts):
        column.kind, column.told, column.values = "time", ISO, values
        return column
    first = texts[:TRIED_TEXTS]
    forms = [form for form in _FORMATS if _all_read(form, first) and _all_read(form, texts)]
    by_meaning = {tuple(map(time_reader(form), texts)): form for form in reversed(forms)}
    if not by_meaning:
        column.note = _other_forms(texts, values)
        return column
    column.kind, column.values = "time", values
    if len(by_meaning) == 1:
        column.told = next(iter(by_meaning.values()))
    else:
        column.ambiguous = tuple(sorted(by_meaning.values()))
    return column
