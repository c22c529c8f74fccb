"""A stream's time may be in any unit, and is milliseconds from the validator on: in production and in a backtest."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small
from river import linear_model

from tidemill import Pipeline, Stream, View, aggregates, number, rules
from tidemill.encoding.codec import Codec
from tidemill.errors import DeclarationError
from tidemill.offline import history
from tidemill.offline.backtest import Backtest
from tidemill.stages.validator.service import Validator
from tidemill.stages.validator.writer_schemas import writer_schema
from tidemill.stream.memory import MemoryRecord
from tidemill.wire.records import Records

pytestmark = pytest.mark.slow

MILLIS = 1_700_000_000_123
LONG = {unit: {"type": "long", "logicalType": f"timestamp-{unit}"} for unit in ("millis", "micros", "nanos")}
#: The time's type, the declared unit, and MILLIS as it is then sent.
UNITS: dict[str, tuple[Any, str, Any]] = {
    "millis": (LONG["millis"], "", MILLIS),
    "micros": (LONG["micros"], "", MILLIS * 1_000 + 999),
    "nanos": (LONG["nanos"], "", MILLIS * 1_000_000 + 999_999),
    "local-micros": ({"type": "long", "logicalType": "local-timestamp-micros"}, "micros", MILLIS * 1_000),
    "plain": ("long", "", MILLIS),
    "plain millis": ("long", "millis", MILLIS),
    "plain micros": ("long", "micros", MILLIS * 1_000),
    "plain nanos": ("long", "nanos", MILLIS * 1_000_000),
    "seconds as floats": ("double", "seconds", MILLIS / 1_000),
    "zone": ("string", "iso8601", "2023-11-14T23:13:20.123+01:00"),
    "no zone": ("string", "iso8601", "2023-11-14 22:13:20.123456789"),
    "Z": ("string", "iso8601", "2023-11-14T22:13:20.123Z"),
}


def schema(folder: Path, name: str, **fields: Any) -> str:
    avro = {"type": "record", "name": name, "fields": [{"name": n, "type": t} for n, t in fields.items()]}
    (folder / f"{name}.avsc").write_text(json.dumps(avro))
    return str(folder / f"{name}.avsc")


def pipeline(folder: Path, type_: Any, unit: str = "", **more: Any) -> Pipeline:
    event = schema(folder, "Event", id="string", at=type_, user="string", x="double")
    label = schema(folder, "Label", id="string", at=type_, y="double")
    declared: dict[str, Any] = {
        "name": "small",
        "events": Stream(event, id="id", time="at", key="user", time_unit=unit),  # type: ignore[arg-type]
        "labels": Stream(label, id="id", time="at", value="y", time_unit=unit),  # type: ignore[arg-type]
        "task": "regression",
        "request": {"x": "x", "hour": number(lambda e: e["at"] // 3_600_000 % 24)},
        "views": [View("user", every="1m", aggregates=[aggregates.count("1h")])],
        "models": {"m": linear_model.LinearRegression()},
        "champion": "m",
        "label_timeout": "48h",
    }
    return Pipeline(**{**declared, **more})


def validated(declared: Pipeline, data: bytes, topic: str = "events") -> tuple[str, Any]:
    """What the validator makes of a message: the reason of its dead letter, or the record that goes on."""
    out = small.Emitted()
    Validator(declared, fuse=False).process([MemoryRecord(f"small.{topic}", data)], out)
    (record,) = out.records
    if record.topic() == "small.dlq":
        return dict(record.headers())["tidemill.reason"].decode(), None
    records = Records(declared)
    return "", (records.event if topic == "events" else records.label).decode(record.value() or b"")


@pytest.mark.parametrize("name", UNITS)
@pytest.mark.parametrize("encoding", ["avro", "json"])
def test_the_time_goes_on_in_milliseconds_whatever_it_is_sent_in(tmp_path: Path, name: str, encoding: str) -> None:
    type_, unit, at = UNITS[name]
    declared, event = pipeline(tmp_path, type_, unit), {"id": "a", "at": at, "user": "u", "x": 1.0}
    data = json.dumps(event).encode() if encoding == "json" else Codec(declared.events.avro).encode(event)
    reason, record = validated(declared, data)
    assert (reason, record and record["at"]) == ("", MILLIS)


@pytest.mark.parametrize("name", UNITS)
def test_a_backtest_is_the_same_in_every_unit(tmp_path: Path, name: str) -> None:
    type_, unit, at = UNITS[name]
    events = [{"id": str(n), "at": at, "user": "u", "x": float(n)} for n in range(5)]
    labels = [{"id": str(n), "at": at, "y": float(n)} for n in range(5)]
    report = Backtest(pipeline(tmp_path, type_, unit)).run(events, labels)
    same = Backtest(pipeline(tmp_path, "long")).run(
        [{**event, "at": MILLIS} for event in events], [{**label, "at": MILLIS} for label in labels]
    )
    assert replace(report, seconds=0.0) == replace(same, seconds=0.0)
    assert (report.joined, report.first_event) == (5, MILLIS)


@pytest.mark.parametrize("name", UNITS)
@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_files_have_the_time_in_every_unit(tmp_path: Path, name: str, form: str) -> None:
    type_, unit, at = UNITS[name]
    declared, event = pipeline(tmp_path, type_, unit), {"id": "a", "at": at, "user": "u", "x": 1.0}
    history.write(tmp_path / f"x.{form}", [event])
    (message,) = history.messages(tmp_path / f"x.{form}", declared.events)
    assert message.time == MILLIS
    assert validated(declared, message.data)[1]["at"] == MILLIS
    (row,) = history.read(tmp_path / f"x.{form}", declared.events)
    assert row["at"] == MILLIS


def test_rules_and_functions_see_milliseconds(tmp_path: Path) -> None:
    declared = pipeline(tmp_path, LONG["micros"], rules=[rules.not_before("at", "2024-01-01")])
    event = {"id": "a", "at": MILLIS * 1_000, "user": "u", "x": 1.0}
    assert validated(declared, Codec(declared.events.avro).encode(event))[0] == "too_old"


def test_what_is_in_milliseconds_already_goes_on_as_it_came(tmp_path: Path) -> None:
    declared = pipeline(tmp_path, LONG["micros"])
    data = Records(declared).event.encode({"id": "a", "at": MILLIS, "user": "u", "x": 1.0})
    assert validated(declared, data) == ("", {"id": "a", "at": MILLIS, "user": "u", "x": 1.0})


def test_a_stream_in_milliseconds_has_one_schema_and_no_conversion(tmp_path: Path) -> None:
    declared = pipeline(tmp_path, "long", "millis")
    records = Records(declared)
    assert declared.events.as_millis is None
    assert records.sent_event is records.event
    assert records.event.id == Codec(declared.events.avro).id
    other = Records(pipeline(tmp_path, LONG["micros"]))
    assert other.sent_event.id != other.event.id  # an id names no two units


@pytest.mark.parametrize(
    ("type_", "unit", "at", "reason"),
    [
        ("string", "iso8601", "yesterday", "bad_time"),
        ("string", "iso8601", "", "bad_time"),
        ("double", "seconds", float("nan"), "bad_time"),
        ("double", "seconds", 1e300, "bad_time"),
        ("long", "seconds", 2**62, "bad_time"),
        ("long", "", 1_700_000_000, "implausible_time"),
        ("long", "", MILLIS * 1_000, "implausible_time"),
        ("long", "micros", MILLIS, "implausible_time"),
        ("double", "seconds", float(MILLIS), "implausible_time"),
        ("string", "iso8601", "9999-12-31", "in_the_future"),
        (LONG["micros"], "", 2**62, "in_the_future"),
    ],
)
@pytest.mark.parametrize("stream", ["events", "labels"])
def test_a_time_that_is_none_is_a_dead_letter(
    tmp_path: Path, type_: Any, unit: str, at: Any, reason: str, stream: str
) -> None:
    declared = pipeline(tmp_path, type_, unit)
    row = {"id": "a", "at": at, **({"user": "u", "x": 1.0} if stream == "events" else {"y": 1.0})}
    avro = (declared.events if stream == "events" else declared.labels).avro
    assert validated(declared, Codec(avro).encode(row), stream)[0] == reason
    report = Backtest(declared).run([row], []) if stream == "events" else Backtest(declared).run([], [row])
    assert report.dead_letters == {reason: 1}


def test_other_bounds_can_be_declared(tmp_path: Path) -> None:
    declared = pipeline(tmp_path, "long", rules=[rules.plausible("at", "1970-01-01", "1970-02-01")])
    assert validated(declared, small.as_json({"id": "a", "at": 1_700_000_000, "user": "u", "x": 1.0}))[0] == ""


@pytest.mark.parametrize(
    ("type_", "unit", "words"),
    [
        ("string", "", "say time_unit='iso8601'"),
        ("int", "", "say what it counts"),
        *(("int", unit, f"end in January 1970 where they count {unit}") for unit in ("millis", "micros", "nanos")),
        ("double", "", "say what it counts"),
        ("boolean", "", "expected a timestamp"),
        ({"type": "int", "logicalType": "date"}, "", "expected a timestamp"),
        (LONG["micros"], "millis", "leave time_unit out"),
        ("long", "iso8601", "expected text"),
        ("long", "minutes", "'seconds'"),
        (["null", "long"], "", "may not be missing"),
    ],
)
def test_a_time_without_one_meaning_is_refused(tmp_path: Path, type_: Any, unit: str, words: str) -> None:
    with pytest.raises(DeclarationError, match=words):
        pipeline(tmp_path, type_, unit)


def test_a_writer_with_another_unit_is_refused_and_not_read_as_the_declared_one(tmp_path: Path) -> None:
    declared = pipeline(tmp_path, LONG["micros"])
    other = {**declared.events.avro, "fields": [{**f, "type": LONG["millis"]} if f["name"] == "at" else f
                                                for f in declared.events.avro["fields"]]}  # fmt: skip
    schema_ = writer_schema("v1", other, Codec(declared.events.avro))
    assert "timestamp-millis where timestamp-micros was expected" in schema_.refused
    (tmp_path / "other.avsc").write_text(json.dumps(other))
    with pytest.raises(DeclarationError, match=r"can't read .*other\.avsc"):
        pipeline(tmp_path, LONG["micros"], events=replace(declared.events, accepts=[str(tmp_path / "other.avsc")]))


@pytest.mark.parametrize("stream", ["events", "labels"])
@pytest.mark.parametrize("coarser", [1_000, 1_000_000])
@pytest.mark.parametrize("name", ["micros", "nanos", "plain micros", "plain nanos"])
def test_json_in_a_coarser_unit_than_declared_is_a_dead_letter(
    tmp_path: Path, name: str, coarser: int, stream: str
) -> None:
    """JSON does not say what a number counts, and its time would lie in 1970."""
    type_, unit, at = UNITS[name]
    message = json.dumps({"id": "a", "at": at // coarser, "user": "u", "x": 1.0} if stream == "events" else
                         {"id": "a", "at": at // coarser, "y": 1.0}).encode()  # fmt: skip
    assert validated(pipeline(tmp_path, type_, unit), message, stream) == ("implausible_time", None)


@pytest.mark.parametrize("stream", ["events", "labels"])
def test_seconds_in_a_timestamp_of_millis_are_warned_of(tmp_path: Path, stream: str) -> None:
    declared = pipeline(tmp_path, LONG["millis"])
    for at, warns in ((MILLIS // 1_000, True), (0, False), (MILLIS, False)):
        row = {"id": "a", "at": at, "user": "u", "x": 1.0} if stream == "events" else {"id": "a", "at": at, "y": 1.0}
        out, validator = small.Emitted(), Validator(declared, fuse=False)
        validator.process([MemoryRecord(f"small.{stream}", json.dumps(row).encode())], out)
        assert [r.topic() for r in out.records if r.topic() == "small.warnings"] == ["small.warnings"] * warns
    checks = declared.event_checks if stream == "events" else declared.label_checks
    (rule,) = [rule for rule in checks if rule.name == "plausible"]
    assert rule.description.endswith("(warns)")


def test_a_declared_rule_takes_the_place_of_the_default(tmp_path: Path) -> None:
    own = rules.plausible("at", "1900-01-01", "2030-01-01")
    declared = pipeline(tmp_path, LONG["micros"], rules=[own])
    assert [rule for rule in declared.event_checks if rule.name == "plausible"] == [own]


@pytest.mark.parametrize("encoding", ["avro", "json", "csv"])
def test_a_date_that_is_written_as_a_number_is_a_dead_letter(tmp_path: Path, encoding: str) -> None:
    """As 20240131: taken for a number of days it is of the year 57,390."""
    day = {"type": "int", "logicalType": "date"}
    declared = pipeline(tmp_path, LONG["millis"])
    event = schema(tmp_path, "Event", id="string", at=LONG["millis"], user="string", x="double", day=["null", day])
    declared = replace(declared, events=Stream(event, id="id", time="at", key="user"))
    good = {"id": "a", "at": MILLIS, "user": "u", "x": 1.0}
    reasons = {}
    for value in (20240131, 19991231, 20241331, 2**31 - 1, -(2**31), 2_932_896, 19_782, None):
        row = {**good, "day": value}
        if encoding == "csv":
            text = "" if value is None else value
            (tmp_path / "events.csv").write_text(f"id,at,user,x,day\na,{MILLIS},u,1.0,{text}\n")
            (message,) = history.messages(tmp_path / "events.csv", declared.events)
            data = message.data
        else:
            data = small.as_json(row) if encoding == "json" else Records(declared).event.encode(row)
        reasons[value] = validated(declared, data)[0]
    assert [value for value, reason in reasons.items() if reason] == [20240131, 19991231]
    assert set(reasons.values()) == {"", "implausible_time"}
