"""What history files can hold besides good rows: a user's mistake is a SettingsError that names file, row and column."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import small

from tidemill import Stream
from tidemill.encoding.codec import Codec
from tidemill.errors import SettingsError
from tidemill.offline.history import read, write
from tidemill.rows import MISSING_WORDS

GOOD = small.event("a", 5)


def refused(path: Path, rows: list[dict[str, Any]], *words: str) -> None:
    write(path, rows)
    with pytest.raises(SettingsError) as caught:
        read(path, small.EVENTS)
    for word in (path.name, *words):
        assert word in str(caught.value)


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("field", ["asked_at", "flight_id", "distance", "flight"])
def test_a_missing_value_where_the_schema_wants_one_is_named(tmp_path: Path, form: str, field: str) -> None:
    refused(tmp_path / f"x.{form}", [GOOD, {**GOOD, field: None}], "row 2", field)


@pytest.mark.parametrize(
    ("field", "value"), [("flight", 1.5), ("asked_at", 5.25), ("flight", 2**40), ("flight", "1.5")]
)
def test_a_number_that_is_no_int_is_named_not_cut(tmp_path: Path, field: str, value: Any) -> None:
    refused(tmp_path / "x.jsonl", [GOOD, {**GOOD, field: value}], "row 2", field)


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_what_is_read_can_be_written_as_avro(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"x.{form}"
    write(path, [GOOD, small.event("b", 6, dep_delay=0.1, tailnum="NA")])
    codec = Codec(small.EVENTS.avro)
    rows = read(path, small.EVENTS)
    assert [codec.decode(codec.encode(row)) for row in rows] == rows


@pytest.fixture
def wide(tmp_path: Path) -> Stream:
    fields = [
        {"name": "id", "type": "string"},
        {"name": "at", "type": "long"},
        {"name": "big", "type": ["null", "long"], "default": None},
        {"name": "flag", "type": ["null", "boolean"], "default": None},
    ]
    (tmp_path / "w.avsc").write_text(json.dumps({"type": "record", "name": "W", "fields": fields}))
    return Stream(str(tmp_path / "w.avsc"), id="id", time="at")


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_a_large_integer_is_exact_beside_a_missing_one(tmp_path: Path, wide: Stream, form: str) -> None:
    rows = [{"id": "a", "at": 1, "big": 2**53 + 1, "flag": True}, {"id": "b", "at": 2, "big": None, "flag": None}]
    write(tmp_path / f"x.{form}", rows)
    assert read(tmp_path / f"x.{form}", wide) == rows


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_false_is_false_and_other_words_are_no_boolean(tmp_path: Path, wide: Stream, form: str) -> None:
    rows = [{"id": "a", "at": 1, "big": 1, "flag": False}, {"id": "b", "at": 2, "big": 1, "flag": None}]
    write(tmp_path / f"x.{form}", rows)
    assert read(tmp_path / f"x.{form}", wide) == rows
    write(tmp_path / f"y.{form}", [{"id": "a", "at": 1, "big": 1, "flag": "no"}])
    with pytest.raises(SettingsError, match="flag"):
        read(tmp_path / f"y.{form}", wide)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("id,at,big,flag\na,1,2\n", "row 1 has 3 values where 4 were expected"),
        ("id,at,big\na,1,2,true\n", "row 1 has 4 values where 3 were expected"),
        ("id,at,at\na,1,2\n", "two columns have the same name"),
        ('id,at\n"a,1\n', "can't be read"),
    ],
)
def test_a_csv_that_would_lose_or_shift_values_is_refused(
    tmp_path: Path, wide: Stream, content: str, words: str
) -> None:
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(SettingsError, match=words):
        read(tmp_path / "x.csv", wide)


@pytest.mark.parametrize("word", MISSING_WORDS)
def test_a_word_for_missing_is_missing_where_it_is_no_text(tmp_path: Path, wide: Stream, word: str) -> None:
    (tmp_path / "x.csv").write_text(f"id,at,big,flag\n{word or 'a'},1,{word},{word}\n")
    assert read(tmp_path / "x.csv", wide) == [{"id": word or "a", "at": 1, "big": None, "flag": None}]


def test_a_line_of_json_ends_at_a_line_feed_alone(tmp_path: Path, wide: Stream) -> None:
    (tmp_path / "x.jsonl").write_text('\ufeff{"id": "a\u2028b", "at": 1}\r\n', encoding="utf-8")
    assert [row["id"] for row in read(tmp_path / "x.jsonl", wide)] == ["a\u2028b"]


def test_a_folder_of_parquet_files_is_one_history(tmp_path: Path, wide: Stream) -> None:
    (tmp_path / "x.parquet").mkdir()
    expected = [{"id": name, "at": at, "big": None, "flag": True} for at, name in enumerate("ab")]
    for row in expected:
        write(tmp_path / "x.parquet" / f"{row['id']}.parquet", [row])
    assert read(tmp_path / "x.parquet", wide) == expected


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.csv", b""), ("x.csv", b"\xff\xfe\x00"), ("x.jsonl", b"{"), ("x.jsonl", b"[1]\n"), ("x.jsonl", b"5\n"),
        ("x.jsonl", b""), ("x.parquet", b"PAR1"), ("x.parquet", b""), ("x.txt", b"a"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_history_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        read(tmp_path / name, small.EVENTS)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_or_a_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    for name in ("nothing.csv", "nothing.jsonl", "nothing.parquet", "folder.csv"):
        with pytest.raises(SettingsError, match=name):
            read(tmp_path / name, small.EVENTS)
