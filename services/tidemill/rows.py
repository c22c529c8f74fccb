"""Rows in files: CSV, JSON lines and Parquet, also packed, for look-up tables and for history.

A CSV holds texts, below one line of names; what a text means is decided by whoever knows the column's type. JSON and
Parquet have types of their own. Nothing is dropped or cut without an error: two columns of one name, a row with too few
or too many values, values below no name and an unfinished quotation are errors that name the row.

What is missing: null and NaN; in a CSV an empty value, and in a column that is not of texts the words in MISSING_WORDS
too.

CSV is read by the standard library: every service loads the declaration, and pandas would add half a second to each
start.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import IO, Any, NamedTuple

from tidemill.errors import described
from tidemill.limits import UNZIPPED_BYTES

FORMATS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
#: The formats whose values are texts.
TEXT_FORMATS = (".csv", ".tsv")
#: What a file of any format may be packed in, as in `.csv.gz`.
PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")
#: Texts that can only mean "missing" in a column of numbers, flags or times; those of pandas and of databases. Among
#: texts "NA" may be Namibia, or an airline.
MISSING_WORDS = (
    *("", "NA", "N/A", "n/a", "<NA>", "#N/A", "#NA", "NaN", "nan", "-nan", "-NaN", "NAN"),
    *("null", "NULL", "Null", "None", "none", "NaT", "\\N"),
)
#: The longest value of a CSV. The standard library's own limit is 131,072 characters.
MAX_VALUE_CHARACTERS = 2**31 - 1
#: As much of a CSV is looked at for what is between its names.
MAX_HEADER_CHARACTERS = 1_000_000
#: What may be between the values of a CSV; the first that gives the most names is.
SEPARATORS = ",;\t|"

#: Marks at the beginning of a text, and what it is then encoded in; the longest first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

#: How files begin that are no text, and what they are.
_OTHERS = (
    (b"PK\x03\x04", "a ZIP, or a workbook of Excel's: name it .zip, or save the sheet as CSV"),
    (b"\xd0\xcf\x11\xe0", "a workbook of Excel's: save the sheet as CSV"),
    (b"\x1f\x8b", "packed with gzip: name it .gz"),
    (b"BZh", "packed with bzip2: name it .bz2"),
    (b"\xfd7zXZ", "packed with xz: name it .xz"),
    (b"\x28\xb5\x2f\xfd", "packed with zstd: name it .zst"),
    (b"PAR1", "Parquet: name it .parquet"),
)

Columns = dict[str, list[Any]]


class Timestamp(NamedTuple):
    """A Parquet timestamp, exact: ticks since the epoch, and how many of them a second has."""

    ticks: int
    per_second: int


def is_missing(value: Any) -> bool:
    """Whether a value is None, NaN, or pandas' NaT or NA."""
    try:
        return value is None or bool(value != value)
    except (TypeError, ArithmeticError):  # NA, and a signalling NaN, do not say whether they are something
        return True


def text_or_none(text: str | None, *, is_text_column: bool) -> str | None:
    """Return a CSV's value, or None where it means "missing" in a column of texts, or of something else."""
    if is_text_column:
        return text or None
    return None if text is None or text.strip() in MISSING_WORDS else text.strip()


def format_of(path: Path) -> str:
    """Return which of FORMATS a file's name has, packed or not. Raises ValueError where it is none of them."""
    if path.is_dir():
        return ".parquet"
    name = path.name.lower()
    for suffix in PACKED:
        name = name.removesuffix(suffix)
    for form in FORMATS:
        if name.endswith(form):
            return form
    raise ValueError(
        f"expected a file whose name ends in one of {', '.join(FORMATS)}, also packed as {', '.join(PACKED)}"
    )


def files_of(path: Path) -> list[Path]:
    """Return the files that a path names, by name: itself, those of a folder, or those that fit a pattern as `*.csv`.

    A folder that is named as Parquet is one file, and one in partitions as `day=2013-01-31`. Raises ValueError where
    there is none.
    """
    if path.is_dir() and not path.name.endswith(".parquet"):
        files = [file for file in _shown(path.rglob("*")) if file.is_file() and _is_known(file)]
        if files and all("=" in str(file.relative_to(path).parent) for file in files):
            return [path]
        return files or _fail(f"the folder has no file of {', '.join(FORMATS)}")
    if not path.exists() and any(mark in str(path) for mark in "*?["):
        anchor = Path(path.anchor) if path.anchor else Path()
        return _shown(anchor.glob(str(path.relative_to(path.anchor)))) or _fail("no file fits this pattern")
    return [path]


def content(path: Path) -> bytes:
    """Return a file's bytes, unpacked; of a .zip, those of the one file in it that has rows.

    Raises ValueError where it can't be read, or would be longer than `limits.UNZIPPED_BYTES`.
    """
    try:
        open_ = _UNPACKERS.get(path.suffix.lower())
        if open_ is None:
            return path.read_bytes()
        with closing(open_(path)) as file:
            data: bytes = file.read(UNZIPPED_BYTES.max + 1)
    except FileNotFoundError:
        raise ValueError("the file does not exist") from None
    except ImportError:
        raise ValueError("reading .zst needs pyarrow: pip install 'tidemill[parquet]'") from None
    except _UnreadableError as error:
        raise ValueError(str(error)) from None
    except Exception as error:  # each kind of packing has errors of its own
        raise ValueError(f"can't be read: {described(error)}") from None
    if len(data) > UNZIPPED_BYTES.max:
        raise ValueError(UNZIPPED_BYTES.excess(len(data), path.name))
    return data


def columns(path: Path) -> Columns:
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
    except _UnreadableError as error:
        raise ValueError(str(error)) from None
    except Exception as error:  # pyarrow's are of many kinds; a user's file is no reason for a traceback
        raise ValueError(f"can't be read: {' '.join(str(error).split()) or type(error).__name__}") from None


def json_rows(data: bytes) -> list[bytes]:
    """Return each row's own bytes: the lines, or the items of one array. Blank lines are no rows.

    Raises ValueError where the text is in no encoding, or an array is broken. A line may be no JSON.
    """
    text = _text(data)
    if text.lstrip().startswith("["):
        return [item.encode("utf-8", "surrogatepass") for item in _items(text)]
    if _goes_on(text.lstrip()):
        _fail("can't be read: row 1 goes on over several lines: write a row a line, or all of them as one array")
    return [line.encode("utf-8", "surrogatepass") for line in text.split("\n") if line.strip()]


def _goes_on(text: str) -> bool:
    """Whether a text begins with an object of JSON that has several lines."""
    if text.partition("\n")[0].strip() != "{":
        return False
    try:
        json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return True


class TwiceError(ValueError):
    """An object of JSON has a `name` twice."""

    def __init__(self, name: str) -> None:
        super().__init__(f"field {name!r} is in one object twice")
        self.name = name


def with_each_name_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON; readers do not agree which of two of a name counts. Raises TwiceError."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise TwiceError(next(name for name in names if names.count(name) > 1))
    return made


class _UnreadableError(ValueError):
    """What is wrong with a file, in our own words."""


def _fail(message: str) -> Any:
    raise _UnreadableError(message)


def _shown(paths: Iterable[Path]) -> list[Path]:
    """Return paths by name, without those that are hidden, or a mark of what wrote the folder, as _SUCCESS."""
    return sorted(path for path in paths if not path.name.startswith((".", "_")))


def _is_known(path: Path) -> bool:
    try:
        return bool(format_of(path))
    except ValueError:
        return False


def _unzipped(path: Path) -> IO[bytes]:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not name.startswith("__MACOSX") and _is_known(Path(name))]
        form = format_of(path) if _is_known(path) else ".csv"
        names = [name for name in names if format_of(Path(name)) == form]
        if len(names) != 1:
            what = "CSV" if form == ".csv" else form
            _fail(f"expected one {what} in it; it has {', '.join(names) or 'none'}")
        size = archive.getinfo(names[0]).file_size  # no more is read than it says
        if size > UNZIPPED_BYTES.max:
            _fail(UNZIPPED_BYTES.excess(size, names[0]))
        return io.BytesIO(archive.read(names[0]))


def _zstd(path: Path) -> Any:
    import pyarrow as pa

    return pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")


_UNPACKERS: Mapping[str, Callable[[Path], Any]] = {
    ".gz": lambda path: gzip.open(path),  # noqa: SIM115  content() closes them
    ".bz2": lambda path: bz2.open(path),  # noqa: SIM115
    ".xz": lambda path: lzma.open(path),  # noqa: SIM115
    ".zst": _zstd,
    ".zip": _unzipped,
}


def _text(data: bytes) -> str:
    encoding = next((encoding for mark, encoding in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        for begin, what in _OTHERS:
            if data.startswith(begin):
                _fail(f"can't be read: it is {what}")
        if not encoding.startswith("utf-8"):
            raise
        line = data.count(b"\n", 0, error.start) + 1
        _fail(f"can't be read: line {line}: byte 0x{data[error.start]:02x} is no utf-8: save the file as UTF-8")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        _fail(f"can't be read: line {line} has a zero byte: save the file as UTF-8, or UTF-16 with its mark (BOM)")
    text = text.lstrip("\ufeff")  # a file that was marked twice
    if (at := text.find("\n\ufeff")) >= 0:
        line = text.count("\n", 0, at) + 2
        _fail(f"can't be read: line {line} begins with a mark (BOM): name files that were put together one by one")
    return text


def _separator(text: str) -> str:
    """Return what is between the names of the first line."""
    best, most = ",", 1
    for separator in SEPARATORS:
        try:
            names = next(csv.reader(io.StringIO(text[:MAX_HEADER_CHARACTERS], newline=""), delimiter=separator), [])
        except csv.Error:
            continue
        if len(names) > most and not any('"' in name for name in names):
            best, most = separator, len(names)
    return best


def _csv_columns(data: bytes, separator: str = "") -> Columns:
    text = _text(data)
    blank = re.match(r"( *\r?\n)*", text)[0]  # type: ignore[index]  # it always matches
    text, first = text[len(blank) :], blank.count("\n") + 1
    if text.startswith("sep=") and text[5:6] in ("\r", "\n"):  # as spreadsheets write it
        separator, text = text[4], text[5:].lstrip("\r\n")
    separator = separator or _separator(text)
    has_blanks = re.match(rf'[^\n]*{re.escape(separator)} +"', text) is not None  # as in "id", "at"
    limit = csv.field_size_limit(MAX_VALUE_CHARACTERS)
    source = io.StringIO(text, newline="")
    reader = csv.reader(source, strict=True, delimiter=separator, skipinitialspace=has_blanks)
    line, rows = first, list[list[str]]()  # where the row begins that is read next
    try:
        names = [name.strip() for name in next(reader, [])]
        line = reader.line_num + first
        for row in reader:
            line = reader.line_num + first
            if row and (len(row) > 1 or row[0].strip() or len(names) == 1):
                rows.append(row)
    except csv.Error as error:
        is_open = reader.line_num + first > line + 1 and "end of data" in str(error)
        _fail(f"can't be read: line {line}: {'a quotation begins and does not end' if is_open else error}")
    finally:
        csv.field_size_limit(limit)
    _check_names([name for name in names if name])
    for number, row in enumerate(rows, 1):
        if len(row) != len(names):
            _fail(_ragged(number, row, names))
    if not has_blanks and re.search(rf'{re.escape(separator)} +"', text):
        for number, row in enumerate(rows, 1):
            if any(value.startswith(" ") and value.lstrip().startswith('"') for value in row):
                _fail(f"row {number} has a blank before a quotation mark, which is then a part of the value")
    for index, name in enumerate(names):
        if not name and index:  # the first may be the index that pandas writes
            for number, row in enumerate(rows, 1):
                if row[index].strip():
                    _fail(f"row {number} has {row[index]!r:.80} in column {index + 1}, which has no name")
    return {name: [row[index] for row in rows] for index, name in enumerate(names) if name}


def _ragged(number: int, row: Sequence[str], names: Sequence[str]) -> str:
    expected = len(names)
    message = f"row {number} has {len(row)} values where {expected} were expected"
    if expected == 1:
        return f"{message}: {names[0]!r:.80} is taken for the line of names"
    if len(row) == expected + 1 and not row[-1]:
        return f"{message}: it ends in a separator that the line of names has not"
    return f"{message}: a value with a separator in it needs quotation marks" if len(row) > expected else message


def _items(text: str) -> Iterator[str]:
    """Yield the text of each item of a JSON array."""
    decoder, at = json.JSONDecoder(), text.index("[") + 1
    blanks = " \t\r\n"
    for number in range(1, len(text) + 2):
        while text[at : at + 1] in blanks and at < len(text):
            at += 1
        if text[at : at + 1] == "]" and number == 1:
            return _check_rest(text[at + 1 :])
        try:
            _, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            _fail(f"can't be read: row {number} of the array is no JSON: {error}")
        yield text[at:end]
        at = end
        while text[at : at + 1] in blanks and at < len(text):
            at += 1
        if text[at : at + 1] == "]":
            return _check_rest(text[at + 1 :])
        if text[at : at + 1] != ",":
            _fail(f"can't be read: row {number} of the array is not followed by a comma or the array's end")
        at += 1
    return None


def _check_rest(text: str) -> None:
    if text.strip():
        _fail(f"can't be read: {text.strip()[:20]!r} follows the array")


def _json_columns(data: bytes) -> Columns:
    rows = []
    for number, line in enumerate(json_rows(data), 1):
        try:
            row = json.loads(line, object_pairs_hook=with_each_name_once)
        except TwiceError as error:
            _fail(f"can't be read: row {number}: {error}")
        except (ValueError, RecursionError) as error:
            _fail(f"can't be read: row {number} is no JSON: {error}")
        if not isinstance(row, dict):
            _fail(f"can't be read: row {number} is {type(row).__name__} where an object was expected")
        rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _parquet_columns(data: bytes | Path) -> Columns:
    import pyarrow.parquet as pq

    table = pq.read_table(data if isinstance(data, Path) else io.BytesIO(data))
    _check_names(table.column_names)
    return {name: _parquet_values(name, table.column(name)) for name in table.column_names}


def _parquet_values(name: str, column: Any) -> list[Any]:
    """Return a column's values; of timestamps the exact ticks, which Python's own have not."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not pa.types.is_timestamp(column.type):
        try:
            values: list[Any] = column.to_pylist()
        except (ValueError, OverflowError, ArithmeticError) as error:  # a time within a list that Python has not
            _fail(f"can't be read: column {name!r}: {error}")
        return values
    per_second = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}[column.type.unit]
    return [None if ticks is None else Timestamp(ticks, per_second) for ticks in column.cast(pa.int64()).to_pylist()]


def _check_names(names: Sequence[str]) -> None:
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        _fail(f"two columns have the same name: {twice[0]!r}")


_READERS: Mapping[str, Callable[[Any], Columns]] = {
    ".csv": _csv_columns,
    ".tsv": lambda data: _csv_columns(data, "\t"),
    ".jsonl": _json_columns,
    ".ndjson": _json_columns,
    ".json": _json_columns,
    ".parquet": _parquet_columns,
}
