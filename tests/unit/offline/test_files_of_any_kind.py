"""Files as other people write them: exact, or one line with file, row and column; never a traceback."""

from __future__ import annotations

import bz2
import datetime as dt
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tidemill import Stream, rows
from tidemill.encoding.codec import Codec
from tidemill.errors import Reject, SettingsError
from tidemill.offline import history
from tidemill.stages.validator.decode import Decoder

pytestmark = pytest.mark.slow

FIELDS: dict[str, Any] = {
    "id": "string",
    "at": {"type": "long", "logicalType": "timestamp-millis"},
    "user": "string",
    "n": ["null", "long"],
    "x": ["null", "double"],
    "ok": ["null", "boolean"],
}
CSV = "id,at,user,n,x,ok\na,1700000000000,u1,5,1.5,true\nb,1700000060000,u2,,,\n"
ROWS = [
    {"id": "a", "at": 1_700_000_000_000, "user": "u1", "n": 5, "x": 1.5, "ok": True},
    {"id": "b", "at": 1_700_000_060_000, "user": "u2", "n": None, "x": None, "ok": None},
]


def stream(folder: Path, fields: dict[str, Any] = FIELDS, **more: Any) -> Stream:
    avro = {
        "type": "record",
        "name": "Event",
        "fields": [
            {"name": name, "type": type_, **({"default": None} if isinstance(type_, list) and "null" in type_ else {})}
            for name, type_ in fields.items()
        ],
    }
    (folder / "event.avsc").write_text(json.dumps(avro))
    return Stream(str(folder / "event.avsc"), id="id", time="at", key="user", **more)


def put(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def one(folder: Path, field: str, text: str, type_: Any) -> Any:
    """The value that a CSV's text is as a field of this type."""
    path = put(folder / "x.csv", f'id,at,user,{field}\na,1,u,"{text}"\n')
    (row,) = history.read(path, stream(folder, {**FIELDS, field: type_}))
    return row[field]


def refused(path: Path, of: Stream) -> str:
    with pytest.raises(SettingsError) as caught:
        history.messages(path, of)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        CSV,
        CSV.replace("\n", "\r\n"),
        CSV.replace("\n", "\r"),
        "\ufeff" + CSV,
        "\ufeff\ufeff" + CSV,
        CSV.replace("id,at,user", '"id", "at", "user"').replace("u1,5", '"u1", 5'),
        CSV.replace(",", ";"),
        CSV.replace(",", "\t"),
        CSV.replace(",", "|"),
        "sep=;\r\n" + CSV.replace(",", ";"),
        CSV.encode("utf-16"),
        b"\xfe\xff" + CSV.encode("utf-16-be"),
        CSV.encode("utf-32"),
        CSV.replace("id,at", " id , at "),
        CSV.replace("\n", ",\n"),
        CSV.replace("\n", ",,\n"),
        "," + CSV.replace("\na", "\n0,a").replace("\nb", "\n1,b"),
        CSV.replace("\nb", "\n\n\nb"),
        CSV + "\n\r\n",
        "\n \r\n" + CSV,
        CSV.replace("a,17", '"a",17').replace("u1", '"u1"'),
        CSV.replace("1700000000000", "2023-11-14T22:13:20Z"),
        CSV.replace("1700000000000", "2023-11-14 22:13:20"),
        CSV.replace("1700000000000", "2023-11-14T23:13:20.000+01:00"),
        CSV.replace("1700000000000", "1.7e12"),
        CSV.replace("1700000000000", " 1700000000000 "),
        CSV.replace(",5,1.5,true", ",5.0,1.50,TRUE").replace("u2,,,", "u2,NA,NULL,n/a"),
        CSV.replace(",5,1.5,true", ",5e0,15e-1,1").replace("u2,,,", "u2,\\N,None,nan"),
    ],
)
def test_a_csv_has_its_rows_however_it_is_written(tmp_path: Path, content: str | bytes) -> None:
    assert history.read(put(tmp_path / "x.csv", content), stream(tmp_path)) == ROWS


PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
    ".gz of two members": lambda data: gzip.compress(data[:30]) + gzip.compress(data[30:]),
}


@pytest.mark.parametrize("packing", PACK)
def test_a_packed_file_is_read_as_it_was(tmp_path: Path, packing: str) -> None:
    path = put(tmp_path / f"x.csv{packing.split()[0]}", PACK[packing](CSV.encode()))
    assert history.read(path, stream(tmp_path)) == ROWS


def test_a_packed_file_that_is_cut_or_none_says_so(tmp_path: Path) -> None:
    for suffix in (".gz", ".bz2", ".xz", ".zst", ".zip"):
        path = tmp_path / f"x.csv{suffix}"
        assert "can't be read" in refused(put(path, b"no such thing"), stream(tmp_path))
        data = PACK.get(suffix, bytes)(CSV.encode() * 1000)
        assert "can't be read" in refused(put(path, data[: len(data) // 2]), stream(tmp_path))


def test_a_zip_has_one_file_with_rows_of_any_form(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.jsonl.zip", "w") as archive:
        archive.writestr("__MACOSX/._x.jsonl", "")
        archive.writestr("readme.txt", "")
        archive.writestr("x.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS))
    assert history.read(tmp_path / "x.jsonl.zip", stream(tmp_path)) == ROWS


def workbook() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("xl/worksheets/sheet1.xml"), "<worksheet/>" + CSV * 50, zipfile.ZIP_DEFLATED)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "has no column 'id'"),
        ("id;at\n", "has no column 'user'"),
        ("id,at,user,at\n", "two columns have the same name: 'at'"),
        ("id,at,user, at\n", "two columns have the same name: 'at'"),
        (CSV.replace("true", "true,"), "row 1 has 7 values where 6 were expected: it ends in a separator"),
        (CSV.replace("u1,5", "u1"), "row 1 has 5 values where 6 were expected"),
        (CSV.replace("1.5", "1,5"), "row 1 has 7 values where 6 were expected: a value with a separator in it"),
        ('id,at,user\na,1, "u"\n', "row 1 has a blank before a quotation mark"),
        ("id,at,user,\na,1,u,7\n", "row 1 has '7' in column 4, which has no name"),
        (CSV.replace("u1", "\u00e9tude").encode("latin-1"), "line 2: byte 0xe9 is no utf-8"),
        (CSV.encode("utf-16-le"), "line 1 has a zero byte"),
        (gzip.compress(CSV.encode(), mtime=0), "it is packed with gzip: name it .gz"),
        (workbook(), "it is a ZIP, or a workbook of Excel's: name it .zip, or save the sheet as CSV"),
        (CSV + 'c,1,"', "line 4: unexpected end of data"),
        (CSV.replace("u1", '"u1'), "line 2: a quotation begins and does not end"),
        (CSV.replace("u1", '"u\n1"x'), "line 2: ',' expected after '\"'"),
        ("\n\n" + CSV.replace("u1", '"u1'), "line 4: a quotation begins and does not end"),
        ("# made today\n" + CSV, "'# made today' is taken for the line of names"),
        (CSV.replace("\nb", "\n\ufeffb"), "line 3 begins with a mark (BOM)"),
    ],
)
def test_a_csv_that_is_broken_says_where(tmp_path: Path, content: str | bytes, words: str) -> None:
    assert words in refused(put(tmp_path / "x.csv", content), stream(tmp_path))


def test_an_object_over_several_lines_is_said_to_be_one_and_a_broken_line_is_one_bad_row(tmp_path: Path) -> None:
    pretty = "\n".join(json.dumps(row, indent=2) for row in ROWS)
    assert "row 1 goes on over several lines" in refused(put(tmp_path / "x.jsonl", pretty), stream(tmp_path))
    lines = "\n".join(["{", *map(json.dumps, ROWS)])
    assert len(rows.json_rows(lines.encode())) == 1 + len(ROWS)


@pytest.mark.parametrize("other", ["Amount", "\u200bamount", "amount_", "a mount", "amount "])
def test_a_column_whose_name_is_written_in_another_way_is_not_left_out(tmp_path: Path, other: str) -> None:
    of = stream(tmp_path, {**FIELDS, "amount": ["null", "double"]})
    assert [row["amount"] for row in history.read(put(tmp_path / "x.csv", CSV), of)] == [None, None]
    path = put(tmp_path / "x.csv", f"id,at,user,n,x,ok,{other}\na,1700000000000,u1,5,1.5,true,7\n")
    if other.strip() == "amount":
        assert history.read(path, of)[0]["amount"] == 7
    else:
        assert f"has no column 'amount', and one {other!r}: rename it" in refused(path, of)


def test_quoted_line_ends_and_separators_are_part_of_the_value(tmp_path: Path) -> None:
    path = put(tmp_path / "x.csv", 'id;at;user\n"a\n;""b""";1;"u,1"\n')
    (row,) = history.read(path, stream(tmp_path))
    assert (row["id"], row["user"]) == ('a\n;"b"', "u,1")


@pytest.mark.parametrize(
    ("text", "type_", "value"),
    [
        ("9223372036854775807", "long", 2**63 - 1),
        ("-9223372036854775808", "long", -(2**63)),
        ("9007199254740993", "long", 2**53 + 1),
        ("1.0", "int", 1),
        ("1e3", "int", 1000),
        ("+7", "int", 7),
        (" 7 ", "int", 7),
        ("0.1", "double", 0.1),
        (".5", "double", 0.5),
        ("1e400", "double", float("inf")),
        ("-inf", "double", float("-inf")),
        ("T", "boolean", True),
        ("0", "boolean", False),
        (" U ", "string", " U "),
        ("NA", "string", "NA"),
        ("2013-01-31", {"type": "int", "logicalType": "date"}, 15736),
        ("08:30:00.5", {"type": "int", "logicalType": "time-millis"}, 30_600_500),
        ("12.34", {"type": "bytes", "logicalType": "decimal", "precision": 6, "scale": 2}, b"\x04\xd2"),
        ("\u00e9", "bytes", b"\xe9"),
        ('[1, 2]'.replace('"', '""'), {"type": "array", "items": "int"}, [1, 2]),
        ('{""a"": 1}', {"type": "map", "values": "int"}, {"a": 1}),
        ("2013-01-31T00:00:00.123456789Z", {"type": "long", "logicalType": "timestamp-nanos"}, 1359590400123456789),
    ],
)  # fmt: skip
def test_a_text_is_the_value_that_the_schema_makes_of_it(tmp_path: Path, text: str, type_: Any, value: Any) -> None:
    assert one(tmp_path, "v", text, type_) == value


@pytest.mark.parametrize(
    ("text", "type_", "words"),
    [
        ("9223372036854775808", "long", "where a long was expected"),
        ("1.5", "long", "where a long was expected"),
        ("1_000", "long", "where a long was expected"),
        ("1,000", "long", "without thousands separators"),
        ("1.234.567", "double", "without thousands separators"),
        ("0,5", "double", "decimal comma"),
        ("1_0", "double", "where a double was expected"),
        ("\uff11", "int", "where an int was expected"),
        ("1e999999999", "long", "where a long was expected"),
        ("yes", "boolean", "where a boolean was expected"),
        ("NA", "long", "has no value"),
        ("", "string", "has no value"),
        ("12.345", {"type": "bytes", "logicalType": "decimal", "precision": 6, "scale": 2}, "decimal"),
        ("[1, 2", {"type": "array", "items": "int"}, "JSON of type array"),
        ("[true]", {"type": "array", "items": "int"}, "v[0]"),
        ("5", ["string", "long"], "use JSON lines or Parquet"),
        ("[" * 100_000, {"type": "array", "items": "int"}, "JSON of type array"),
        ("31.01.2013", {"type": "long", "logicalType": "timestamp-millis"}, "ISO 8601"),
        ("16777217", "float", "no float is exactly that"),
        ("9007199254740993", "double", "no double is exactly that"),
        ("9" * 5_000, "double", "no double is exactly that"),
        ("20130131", {"type": "long", "logicalType": "timestamp-millis"}, "write a date as 2024-01-31"),
        ("20130131120000", {"type": "long", "logicalType": "timestamp-micros"}, "write a date as 2024-01-31"),
    ],
)
def test_a_text_that_is_no_such_value_is_named(tmp_path: Path, text: str, type_: Any, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        one(tmp_path, "v", text, type_)
    assert "x.csv row 1: column 'v'" in str(caught.value)
    assert words in str(caught.value)


def parquet(folder: Path, **columns: Any) -> Path:
    arrays = {"id": ["a"], "at": pa.array([1_700_000_000_000]), "user": ["u"], **columns}
    pq.write_table(pa.table(arrays), folder / "x.parquet")
    return folder / "x.parquet"


DECIMAL = {"type": "bytes", "logicalType": "decimal", "precision": 6, "scale": 2}
AT = dt.datetime(2023, 11, 14, 22, 13, 20, 123_456, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([AT], pa.timestamp("us", "UTC")),
        pa.array([AT], pa.timestamp("us", "America/New_York")),
        pa.array([AT.replace(tzinfo=None)], pa.timestamp("us")),
        pa.array([1_700_000_000_123_456_789], pa.timestamp("ns")),
        pa.array([1_700_000_000_123], pa.timestamp("ms")),
        pa.array([1_700_000_000_123]),
        pa.array(["2023-11-14T22:13:20.123Z"]),
        pa.array([1_700_000_000_123], pa.timestamp("ms")).dictionary_encode(),
    ],
)
def test_a_timestamp_of_parquet_is_in_milliseconds(tmp_path: Path, column: Any) -> None:
    (row,) = history.read(parquet(tmp_path, at=column), stream(tmp_path))
    assert row["at"] == 1_700_000_000_123


@pytest.mark.parametrize(
    ("column", "type_", "value"),
    [
        (pa.array([None, 2**53 + 1], pa.int64())[1:], "long", 2**53 + 1),
        (pa.array([7.0]), "long", 7),
        (pa.array([1], pa.uint8()), "int", 1),
        (pa.array([Decimal("12.34")]), "double", 12.34),
        (pa.array([Decimal("12.34")]), {"type": "bytes", "logicalType": "decimal", "precision": 6, "scale": 2}, b"\x04\xd2"),
        (pa.array(["x"]).dictionary_encode(), "string", "x"),
        (pa.array([dt.date(2013, 1, 31)]), {"type": "int", "logicalType": "date"}, 15736),
        (pa.array([[1, 2]]), {"type": "array", "items": "long"}, [1, 2]),
        (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())), {"type": "map", "values": "long"}, {"k": 1}),
        (pa.array([{"zip": "1"}]), {"type": "record", "name": "To", "fields": [{"name": "zip", "type": "string"}]}, {"zip": "1"}),
        (pa.array([b"\x00\xff"]), "bytes", b"\x00\xff"),
        (pa.array([1.0]), "boolean", True),
        (pa.array([float("nan")]), ["null", "double"], None),
        (pa.array([dt.time(8, 30)]), {"type": "int", "logicalType": "time-millis"}, 30_600_000),
        (pa.array([[]], pa.map_(pa.string(), pa.int64())), {"type": "map", "values": "long"}, {}),
        (pa.array([[("k", None)]], pa.map_(pa.string(), pa.int64())), {"type": "map", "values": ["null", "long"]}, {"k": None}),
        (pa.array([{"at": AT, "price": None}]), {"type": "record", "name": "To", "fields": [
            {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}}, {"name": "price", "type": ["null", DECIMAL]}]},
         {"at": 1_700_000_000_123, "price": None}),
        (pa.array([None], pa.list_(pa.int64())), ["null", {"type": "array", "items": "int"}], None),
        (pa.array([5]), ["null", "string", "long"], 5),
    ],
)  # fmt: skip
def test_parquets_types_become_the_schemas(tmp_path: Path, column: Any, type_: Any, value: Any) -> None:
    (row,) = history.read(parquet(tmp_path, v=column), stream(tmp_path, {**FIELDS, "v": type_}))
    assert row["v"] == value


#: A value as it is in Parquet, of which Arrow type, of which type in the schema, and what it is there.
LEAVES: list[tuple[Any, Any, Any, Any]] = [
    (Decimal("12.34"), pa.decimal128(9, 2), DECIMAL, b"\x04\xd2"),
    (Decimal("12.34"), pa.decimal128(9, 2), "double", 12.34),
    (dt.date(2013, 1, 31), pa.date32(), {"type": "int", "logicalType": "date"}, 15736),
    (dt.time(8, 30), pa.time64("us"), {"type": "int", "logicalType": "time-millis"}, 30_600_000),
    (AT, pa.timestamp("us", "UTC"), {"type": "long", "logicalType": "timestamp-millis"}, 1_700_000_000_123),
    (AT.replace(tzinfo=None), pa.timestamp("ns"), {"type": "long", "logicalType": "timestamp-micros"}, 1_700_000_000_123_456),
    (7.0, pa.float64(), "long", 7),
    (True, pa.bool_(), "boolean", True),
    (b"\xff", pa.binary(), "bytes", b"\xff"),
    ("x", pa.string(), {"type": "enum", "name": "E", "symbols": ["x"]}, "x"),
    (1.5, pa.float64(), "long", None),
    (True, pa.bool_(), "long", None),
    (2**53 + 1, pa.int64(), "double", None),
    (float("nan"), pa.float64(), "double", None),
    (None, pa.int64(), "long", None),
    (dt.timedelta(1), pa.duration("us"), "long", None),
    (b"x", pa.binary(), "string", None),
    (b"abc", pa.binary(), {"type": "fixed", "name": "F", "size": 2}, None),
    (Decimal("12.345"), pa.decimal128(9, 3), DECIMAL, None),
]  # fmt: skip
PLACES: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]] = {
    "a column": (lambda type_: type_, lambda type_: type_, lambda value: value),
    "a list": (pa.list_, lambda type_: {"type": "array", "items": type_}, lambda value: [value]),
    "a struct": (
        lambda type_: pa.struct([("a", type_)]),
        lambda type_: {"type": "record", "name": "S", "fields": [{"name": "a", "type": type_}]},
        lambda value: {"a": value},
    ),
    "a map": (
        lambda type_: pa.map_(pa.string(), type_),
        lambda type_: {"type": "map", "values": type_},
        lambda value: {"k": value},
    ),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("given", "arrow", "type_", "value"), LEAVES)
def test_a_value_of_parquet_is_the_same_wherever_it_is(
    tmp_path: Path, given: Any, arrow: Any, type_: Any, value: Any, place: str
) -> None:
    of_arrow, of_schema, inside = PLACES[place]
    column = pa.array([list(inside(given).items()) if place == "a map" else inside(given)], of_arrow(arrow))
    path, of = parquet(tmp_path, v=column), stream(tmp_path, {**FIELDS, "v": of_schema(type_)})
    if value is None:
        assert "row 1: column 'v'" in refused(path, of)
    else:
        (row,) = history.read(path, of)
        assert row["v"] == inside(value)


def test_a_key_that_a_map_of_parquet_has_twice_is_named(tmp_path: Path) -> None:
    column = pa.array([[("k", 1), ("k", 2)]], pa.map_(pa.string(), pa.int64()))
    words = refused(parquet(tmp_path, v=column), stream(tmp_path, {**FIELDS, "v": {"type": "map", "values": "long"}}))
    assert "with each key once" in words


@pytest.mark.parametrize(
    ("column", "type_"),
    [
        (pa.array([2.0**60]), "long"),
        (pa.array([20240131]), {"type": "long", "logicalType": "timestamp-millis"}),
        (pa.array([2**63], pa.uint64()), "long"),
        (pa.array([1.5]), "int"),
        (pa.array([True]), "long"),
        (pa.array([7]), "string"),
        (pa.array([AT], pa.timestamp("us")), "long"),
        (pa.array([AT], pa.timestamp("us")), "double"),
        (pa.array([[1, None]]), {"type": "array", "items": "long"}),
        (pa.array([Decimal("12.345")]), {"type": "bytes", "logicalType": "decimal", "precision": 6, "scale": 2}),
        (pa.array([None], pa.string()), "string"),
    ],
)
def test_what_parquet_has_and_the_schema_has_not_is_named(tmp_path: Path, column: Any, type_: Any) -> None:
    words = refused(parquet(tmp_path, v=column), stream(tmp_path, {**FIELDS, "v": type_}))
    assert "row 1: column 'v'" in words


def test_a_time_within_a_list_that_python_has_not_names_its_column(tmp_path: Path) -> None:
    column = pa.array([[-(2 * 10**17)]], pa.list_(pa.timestamp("us")))
    assert "can't be read: column 'v': " in refused(parquet(tmp_path, v=column), stream(tmp_path))


def test_a_pandas_index_and_other_columns_are_left_out(tmp_path: Path) -> None:
    path = parquet(tmp_path, __index_level_0__=pa.array([7]), more=pa.array([1]))
    assert set(history.read(path, stream(tmp_path))[0]) == set(FIELDS)


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    "content",
    [
        lines(*ROWS),
        "\ufeff" + lines(*ROWS),
        lines(*ROWS).encode("utf-16"),
        lines(*ROWS).replace("\n", "\r\n"),
        lines(*ROWS).replace("\n", "\n\n  \n"),
        lines(*ROWS).rstrip(),
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2),
        "\ufeff " + json.dumps(ROWS) + "\n",
        lines(*ROWS).replace("1700000000000", '"2023-11-14T22:13:20Z"'),
    ],
)
@pytest.mark.parametrize("name", ["x.jsonl", "x.ndjson", "x.json"])
def test_json_has_its_rows_in_lines_or_in_an_array(tmp_path: Path, content: str | bytes, name: str) -> None:
    of, path = stream(tmp_path), put(tmp_path / name, content)
    assert history.read(path, of) == ROWS
    assert [(message.time, message.id) for message in history.messages(path, of)] == [
        (row["at"], row["id"]) for row in ROWS
    ]


@pytest.mark.parametrize("content", ["[", "[{}", '[{"id": 1},]', "[{}] x", "[{} {}]"])
def test_a_broken_array_says_where(tmp_path: Path, content: str) -> None:
    assert "array" in refused(put(tmp_path / "x.json", content), stream(tmp_path))


def test_a_json_row_is_the_message_that_a_producer_would_send(tmp_path: Path) -> None:
    odd = ['{"id": "a", "id": "b", "at": NaN}', "{", '{"at": 12345678901234567890123}', '{"id": "\u2028", "at": 5}']
    messages = history.messages(put(tmp_path / "x.jsonl", "\n".join(odd)), stream(tmp_path))
    assert [message.data.decode() for message in messages] == odd
    assert [message.time for message in messages] == [5, 5, 5, 5]


def test_a_folder_and_a_pattern_are_all_their_files_in_order_of_time(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    put(folder / "2.csv", CSV)
    put(folder / "1.jsonl.gz", gzip.compress(lines({**ROWS[0], "id": "c", "at": 1_700_000_030_000}).encode()))
    put(folder / "_SUCCESS", "")
    put(folder / ".hidden.csv", "x")
    of = stream(tmp_path)
    assert [row["id"] for row in history.read(folder, of)] == ["a", "c", "b"]
    assert [row["id"] for row in history.read(folder / "*.csv", of)] == ["a", "b"]
    assert "no file fits" in refused(folder / "*.parquet", of)
    (tmp_path / "empty").mkdir()
    assert "folder has no file" in refused(tmp_path / "empty", of)


def test_a_bad_value_names_its_own_file_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    put(folder / "1.csv", CSV)
    put(folder / "2.csv", CSV.replace("1.5", "x"))
    with pytest.raises(SettingsError, match=r"2\.csv row 1: column 'x' is 'x' where a double was expected"):
        history.messages(folder, stream(tmp_path))


def test_a_folder_in_partitions_has_their_columns_too(tmp_path: Path) -> None:
    fields = {**FIELDS, "user": "string"}
    for user in ("u1", "u2"):
        folder = tmp_path / "data" / f"user={user}"
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"id": [user], "at": [1_700_000_000_000]}), folder / "part-0.parquet")
    assert [row["user"] for row in history.read(tmp_path / "data", stream(tmp_path, fields))] == ["u1", "u2"]


def test_reading_tells_how_far_it_is(tmp_path: Path) -> None:
    of, counted = stream(tmp_path), list[int]()
    lines = [json.dumps({"id": f"e{n}", "at": n}) for n in range(7)]
    assert len(history.messages(put(tmp_path / "x.jsonl", "\n".join(lines)), of, counted.append)) == sum(counted) == 7


#: Whole numbers where types end or begin to have gaps, and others around where 32 and 64 bits lose digits.
EDGES = st.builds(
    lambda power, off, sign: sign * (2**power + off),
    st.sampled_from([0, 23, 24, 25, 30, 31, 32, 52, 53, 54, 62, 63, 64, 127, 128, 1023, 1024]),
    st.integers(-3, 3),
    st.sampled_from([1, -1]),
)
NUMBERS = (
    EDGES
    | st.sampled_from([10**18, 10**22, 10**23, 10**39, 10**400])
    | EDGES.filter(lambda whole: abs(whole) < 10**300).map(float)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([0.1, 3.4028234663852886e38, 3.5e38, 1e39, 5e-324, 1e-46])
)


def decoded(message: bytes, of: Stream) -> str:
    """What the validator makes of a message."""
    try:
        record, _ = Decoder(Codec(of.avro)).decode(message)
    except Reject:
        return "refused"
    return repr(record["v"])


def of_file(source: Path | history.Frame, of: Stream) -> str:
    try:
        (message,) = history.messages(source, of)
    except SettingsError:
        return "refused"
    return decoded(message.data, of)


@settings(deadline=None, max_examples=300, suppress_health_check=list(HealthCheck))
@given(kind=st.sampled_from(["int", "long", "float", "double"]), number=NUMBERS, is_nullable=st.booleans())
def test_a_number_is_the_same_in_every_form_and_in_production(
    tmp_path: Path, kind: str, number: int | float, *, is_nullable: bool
) -> None:
    """Whole numbers that a type has not are refused, digits behind a point are rounded: in JSON, CSV, Parquet, frames."""
    assume(isinstance(number, int) or kind in ("float", "double"))  # 7.0 is no int in JSON, and one in a CSV
    of = stream(
        tmp_path, {"id": "string", "at": FIELDS["at"], "user": "string", "v": ["null", kind] if is_nullable else kind}
    )
    row = {"id": "a", "at": 1_700_000_000_000, "user": "u", "v": number}
    expected = decoded(json.dumps(row).encode(), of)
    assert of_file(put(tmp_path / "x.jsonl", json.dumps(row)), of) == expected
    assert of_file(put(tmp_path / "x.csv", f"id,at,user,v\na,1700000000000,u,{json.dumps(number)}\n"), of) == expected
    assert of_file(history.Frame("frame", {name: [value] for name, value in row.items()}), of) == expected
    if isinstance(number, float) or -(2**63) <= number < 2**63:
        pq.write_table(pa.table({name: [value] for name, value in row.items()}), tmp_path / "x.parquet")
        assert of_file(tmp_path / "x.parquet", of) == expected
