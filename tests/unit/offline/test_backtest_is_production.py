"""The same rows, odd as they may be: what a backtest refuses, production refuses, for the same reason."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from river import linear_model

from tidemill import Pipeline, Stream, rules
from tidemill.encoding import schema_files
from tidemill.errors import SettingsError
from tidemill.offline import history
from tidemill.offline.backtest import Backtest
from tidemill.stages.validator.service import Validator
from tidemill.stream.memory import MemoryRecord
from tidemill.wire.records import Records

pytestmark = pytest.mark.slow

MILLIS = 1_700_000_000_000
TYPES: dict[str, Any] = {
    "id": "string",
    "at": {"type": "long", "logicalType": "timestamp-micros"},
    "user": ["null", "string"],
    "n": "int",
    "big": ["null", "long"],
    "x": "double",
    "ok": "boolean",
    "kind": {"type": "enum", "name": "Kind", "symbols": ["card", "cash"]},
    "raw": ["null", "bytes"],
    "tags": {"type": "array", "items": "string"},
    "to": ["null", {"type": "record", "name": "To", "fields": [{"name": "zip", "type": ["null", "int"]}]}],
}
GOOD: Mapping[str, Any] = {
    "id": "a", "at": MILLIS * 1000, "user": "u", "n": 1, "big": 2**53 + 1, "x": 0.5, "ok": True, "kind": "card", "raw": "\u00ff",
    "tags": ["a", ""], "to": {"zip": 1},
}  # fmt: skip


def make(folder: Path) -> Pipeline:
    """A pipeline with every kind of field, times in microseconds, and a rule for numbers."""
    fields = [
        {"name": name, "type": type_, **({"default": None} if isinstance(type_, list) else {})}
        for name, type_ in TYPES.items()
    ]
    (folder / "event.avsc").write_text(json.dumps({"type": "record", "name": "Event", "fields": fields}))
    label = [{"name": "id", "type": "string"}, {"name": "at", "type": "long"}, {"name": "y", "type": "double"}]
    (folder / "label.avsc").write_text(json.dumps({"type": "record", "name": "Label", "fields": label}))
    return Pipeline(
        name="small",
        events=Stream(str(folder / "event.avsc"), id="id", time="at", key="id"),
        labels=Stream(str(folder / "label.avsc"), id="id", time="at", value="y"),
        task="regression",
        request={"x": "x"},
        rules=[rules.between("n", 0, 100), rules.matches("user", "[a-z]*")],
        models={"m": linear_model.LinearRegression()},
        champion="m",
    )


_FOLDER = tempfile.TemporaryDirectory()
PIPELINE = make(Path(_FOLDER.name))
RECORDS = Records(PIPELINE)

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, 1, -1, 2**31, 2**53 + 1, 2**63, MILLIS, MILLIS * 1000, -(10**18)]),
    st.floats(),
    st.sampled_from(["", " ", "NA", "1", "1.0", "true", "card", "2023-11-14T22:13:20Z", "2023-02-30", "\u2028", "\ud800"]),
    st.text(max_size=5),
    st.lists(st.one_of(st.text(max_size=2), st.integers(0, 3), st.none()), max_size=3),
    st.dictionaries(st.sampled_from(["zip", "int", "string", "To"]), st.one_of(st.none(), st.integers(0, 9)), max_size=2),
)  # fmt: skip
_CHANGES = st.dictionaries(st.sampled_from([*TYPES, "more"]), ODD, max_size=3)
_LEFT_OUT = st.sets(st.sampled_from(list(TYPES)), max_size=1)
ROW = st.builds(
    lambda changes, left_out: {
        name: value for name, value in {**GOOD, **changes}.items() if name in changes or name not in left_out
    },
    _CHANGES,
    _LEFT_OUT,
)


def production(messages: list[bytes]) -> tuple[list[Any], list[str]]:
    """The valid records and the reasons of the dead letters, as the service has them from these messages."""
    out = small.Emitted()
    validator = Validator(PIPELINE, fuse=False)
    validator.process([MemoryRecord("small.events", data, offset=n) for n, data in enumerate(messages)], out)
    return _outcome([(r.topic(), r.value() or b"", r.headers()) for r in out.records])


def backtest(events: Any) -> tuple[list[Any], list[str]]:
    """The same of a backtest."""
    run, seen = Backtest(PIPELINE), []
    emit = run._emit

    def record(topic: str, value: bytes, key: Any = None, timestamp: int = 0, headers: Any = None, partition: int = -1):
        seen.append((topic, value, headers))
        emit(topic, value, key, timestamp, headers, partition)

    run._emit = record  # type: ignore[method-assign]
    report = run.run(events, [])
    valid, reasons = _outcome([one for one in seen if one[0] in ("small.events.valid", "small.dlq")])
    assert report.valid == len(valid)
    assert {r: n for r, n in report.dead_letters.items() if r in reasons} == {r: reasons.count(r) for r in reasons}
    assert report.events == len(valid) + len(reasons)
    return valid, reasons


def _outcome(emitted: list[tuple[str, bytes, Any]]) -> tuple[list[Any], list[str]]:
    valid = [repr(RECORDS.event.decode(value)) for topic, value, _ in emitted if topic == "small.events.valid"]
    letters = [dict(headers) for topic, _, headers in emitted if topic == "small.dlq"]
    reasons = [one["tidemill.reason"].decode() for one in letters if one["__connect.errors.stage"] == b"validator"]
    return sorted(valid), sorted(reasons)


def json_file_is_as_json_messages(rows: list[dict[str, Any]]) -> None:
    """A file of JSON lines, and the same lines sent."""
    lines = [json.dumps(row) for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.jsonl"
        path.write_text("".join(line + "\n" for line in lines))
        messages = history.messages(path, PIPELINE.events)
    assert backtest(messages) == production([line.encode() for line in lines])


def rows_are_as_json_messages(rows: list[dict[str, Any]]) -> None:
    """Rows in memory that no Avro has, and what a producer of JSON sends of them."""
    odd = [row for row in rows if not _is_encoded(row)]
    assert backtest(odd) == production([json.dumps(row).encode() for row in odd])


def rows_are_as_avro_messages(rows: list[dict[str, Any]]) -> None:
    """Rows in memory, and what a producer of Avro sends of them, by fastavro."""
    sent = [(row, data) for row in map(_with_bytes, rows) if (data := _as_avro(row))]
    assert backtest([row for row, _ in sent]) == production([data for _, data in sent])


def parquet_is_as_avro_messages(rows: list[dict[str, Any]]) -> None:
    """Files of Parquet with a row each, and what a producer of Avro sends of them; or the file is refused in a line."""
    read, sent, of_sent, refusals = [], [], [], []
    for row in map(_with_bytes, rows):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "events.parquet"
            try:
                pq.write_table(pa.Table.from_pylist([row]), path)
            except (pa.ArrowException, OverflowError, ValueError, TypeError):
                continue  # no Parquet has it
            try:
                (message,) = history.messages(path, PIPELINE.events)
            except SettingsError as error:
                refusals.append(str(error))
                continue
        read.append(message)
        data = _as_avro(row)
        if data and not any(isinstance(value, float) and value != value for value in row.values()):
            sent.append(data)
            of_sent.append(message.data)
    assert all("events.parquet" in line and "\n" not in line for line in refusals)
    assert backtest(history.in_order(read)) == production([message.data for message in read])
    assert production(of_sent) == production(sent)


def _with_bytes(row: dict[str, Any]) -> dict[str, Any]:
    raw = row.get("raw")
    try:
        return {**row, "raw": raw.encode("latin-1")} if isinstance(raw, str) else row
    except UnicodeEncodeError:
        return row


def _is_encoded(row: dict[str, Any]) -> bool:
    try:
        return bool(RECORDS.sent_event.encode(row))
    except Exception:  # whatever a value that does not fit makes it raise
        return False


_SCHEMA = fastavro.parse_schema(schema_files.plain(PIPELINE.events.avro))


def _as_avro(row: Mapping[str, Any]) -> bytes | None:
    """A row as a strict producer encodes it; None where it can't."""
    out = io.BytesIO()
    try:
        fastavro.schemaless_writer(out, _SCHEMA, row, strict=True)
    except Exception:  # whatever a value that does not fit makes it raise
        return None
    return RECORDS.sent_event.header + out.getvalue()


WAYS: list[Callable[[list[dict[str, Any]]], None]] = [
    json_file_is_as_json_messages,
    rows_are_as_json_messages,
    rows_are_as_avro_messages,
    parquet_is_as_avro_messages,
]
_SETTINGS = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "derandomize": True,
    "phases": (Phase.generate, Phase.shrink),
}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_odd_rows_are_valid_or_refused_as_in_production(way: Callable[..., None]) -> None:
    @settings(max_examples=15, **_SETTINGS)  # type: ignore[arg-type]
    @given(st.lists(ROW, min_size=1, max_size=8))
    def few(rows: list[dict[str, Any]]) -> None:
        way(rows)

    few()


def many_odd_rows(most: int, *ways: Callable[..., None]) -> int:
    """Try so many rows in each of these ways; returns how many there were."""
    seen = 0

    @settings(max_examples=most // 40, **{**_SETTINGS, "derandomize": False})  # type: ignore[arg-type]
    @given(st.lists(ROW, min_size=40, max_size=40))
    def many(rows: list[dict[str, Any]]) -> None:
        nonlocal seen
        seen += len(rows)
        for way in ways:
            way(rows)

    many()
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1_000, pytest.param(5_000, marks=pytest.mark.long)])
def test_thousands_of_odd_rows_are_valid_or_refused_as_in_production(rows: int) -> None:
    ways = json_file_is_as_json_messages, rows_are_as_json_messages, rows_are_as_avro_messages
    assert many_odd_rows(rows, *ways) >= rows


@pytest.mark.long
def test_five_thousand_odd_files_of_parquet_are_valid_or_refused_as_in_production() -> None:
    assert many_odd_rows(5_000, parquet_is_as_avro_messages) >= 5_000


def test_a_good_row_is_valid_in_every_way() -> None:
    for way in WAYS:
        way([dict(GOOD)])
    assert len(backtest([_with_bytes(dict(GOOD))])[0]) == 1
    assert len(production([json.dumps(GOOD).encode()])[0]) == 1
