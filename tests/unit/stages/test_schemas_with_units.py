"""What a producer's schema says that its numbers count is held to the declared schema, wherever the schema comes."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_units_of_time import UNITS, pipeline, validated

from tidemill import Pipeline, Stream
from tidemill.encoding import compatibility, schema_files, times
from tidemill.encoding.codec import HEADER, Codec
from tidemill.encoding.envelopes import EmbeddedSchemas, registered_unit
from tidemill.encoding.resolution import other_unit
from tidemill.errors import DeclarationError, Reject, SettingsError
from tidemill.offline import history
from tidemill.offline.backtest import Backtest
from tidemill.stages.validator.writer_schemas import json_schema, writer_schema
from tidemill.wire.records import Records

DECIMAL = "org.apache.kafka.connect.data.Decimal"
CONNECT_KINDS = {int: "int64", float: "double", str: "string"}
#: What the time is in, for each of UNITS.
COUNTS = {"local-micros": "micros", "seconds as floats": "seconds", "plain": "millis"} | dict.fromkeys(
    ("zone", "no zone", "Z"), times.TEXT
)


def unit(name: str) -> str:
    return COUNTS.get(name, name.removeprefix("plain "))


def connect(name: str, at: Any, called: str, envelope: bool) -> bytes:
    """A message of Kafka Connect's whose schema calls the time's type so."""
    fields = [
        {"type": "string", "optional": False, "field": "id"},
        {"type": CONNECT_KINDS[type(at)], "optional": False, "name": called, "version": 1, "field": "at"},
        {"type": "string", "optional": False, "field": "user"},
        {"type": "double", "optional": False, "field": "x"},
    ]
    row = {"type": "struct", "optional": True, "name": "shop.orders.Value", "fields": fields}
    payload: dict[str, Any] = {"id": "a", "at": at, "user": "u", "x": 1.0}
    schema: dict[str, Any] = row
    if envelope:
        schema = {"type": "struct", "name": "Envelope"}
        schema["fields"] = [row | {"field": "before"}, row | {"field": "after"}, {"type": "string", "field": "op"}]
        payload = {"before": None, "after": payload, "op": "c"}
    return json.dumps({"schema": schema, "payload": payload}).encode()


def unwrapping(declared: Pipeline, unwrap: str) -> Pipeline:
    return replace(declared, events=replace(declared.events, unwrap=unwrap))  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("unwrap", ["connect", "debezium"])
@pytest.mark.parametrize("name", UNITS)
def test_the_schema_beside_a_payload_says_what_its_time_counts(tmp_path: Path, name: str, unwrap: str) -> None:
    type_, declared_unit, at = UNITS[name]
    declared = unwrapping(pipeline(tmp_path, type_, declared_unit), unwrap)
    for called, logical in [*times.CONNECT_TYPES.items(), ("io.debezium.time.ZonedTimestamp", ""), (None, "")]:
        message = connect(name, at, called, envelope=unwrap == "debezium")  # type: ignore[arg-type]
        is_same = logical in ("", f"timestamp-{unit(name)}")
        reason, record = validated(declared, message)
        assert reason == ("" if is_same else "incompatible_schema"), called
        file = tmp_path / "events.jsonl"
        file.write_bytes(message)
        if is_same:
            assert record["at"] == history.read(file, declared.events)[0]["at"]
        else:
            with pytest.raises(SettingsError, match=rf"row 1: the schema in the message: field 'at': it is {logical}"):
                history.read(file, declared.events)


def test_a_backtest_refuses_the_same_rows(tmp_path: Path) -> None:
    declared = unwrapping(pipeline(tmp_path, {"type": "long", "logicalType": "timestamp-micros"}), "connect")
    called = ["io.debezium.time.MicroTimestamp", "io.debezium.time.Timestamp"]
    (tmp_path / "events.jsonl").write_bytes(
        b"\n".join(connect("micros", 1_700_000_000_000_000, one, envelope=False) for one in called)
    )
    events = history.messages(tmp_path / "events.jsonl", declared.events)
    report = Backtest(declared).run(events, [{"id": "a", "at": 1_700_000_000_000_001, "y": 1.0}])
    assert (report.valid, report.refused) == (1, {"incompatible_schema": 1})


def record(**fields: Any) -> dict[str, Any]:
    return {"type": "record", "name": "Event", "fields": [{"name": n, "type": t} for n, t in fields.items()]}


def decimal(scale: int) -> dict[str, Any]:
    return {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": scale}


MILLIS, MICROS = ({"type": "long", "logicalType": f"timestamp-{unit}"} for unit in ("millis", "micros"))
DEBEZIUM = {"type": "long", "connect.version": 1, "connect.name": "io.debezium.time.MicroTimestamp"}
DATE = {"type": "int", "logicalType": "date"}
PAIRS = [
    (MILLIS, MICROS, "it is timestamp-millis where timestamp-micros was expected"),
    (DEBEZIUM, MILLIS, "it is timestamp-micros where timestamp-millis was expected"),
    (DEBEZIUM, MICROS, ""),
    (DEBEZIUM, {"type": "long", "logicalType": "local-timestamp-micros"}, ""),
    (DATE, MILLIS, "it is date where timestamp-millis was expected"),
    (
        {"type": "int", "logicalType": "time-millis"},
        {"type": "long", "logicalType": "time-micros"},
        "it is time-millis",
    ),
    (decimal(2), decimal(4), "it is decimal of scale 2 where decimal of scale 4 was expected"),
    (decimal(2), decimal(2), ""),
    ("string", decimal(2), "it is text where decimal of scale 2 was expected"),
    ({"type": "string", "avro.java.string": "String"}, decimal(2), "it is text where decimal"),
    (decimal(2), "string", "it is decimal of scale 2 where text was expected"),
    ("string", ["null", decimal(2), "string"], ""),
    ("bytes", decimal(2), ""),
    ("long", MILLIS, ""),
    (MILLIS, "long", ""),
    (MILLIS, "double", ""),
    (["null", MILLIS], ["null", DATE, MICROS], "it is timestamp-millis where"),
    (["null", MILLIS], ["null", DATE, MILLIS], ""),
]
#: Where in a record a type may stand: what makes a record's field of it, and the path that a reason names.
PLACES = {
    "field": (lambda t: record(v=t), "'v'"),
    "null": (lambda t: record(v=["null", *(t if isinstance(t, list) else [t])]), "'v'"),
    "array": (lambda t: record(v={"type": "array", "items": t}), r"'v\[\]'"),
    "map": (lambda t: record(v={"type": "map", "values": t}), r"'v\[\]'"),
    "record": (lambda t: record(v={**record(w=t), "name": "Inner"}), "'v.w'"),
    "again": (lambda t: record(u={**record(w=t), "name": "Inner"}, v="Inner"), "'u.w'"),
}


@pytest.mark.parametrize(
    ("scale", "reason"), [("2", ""), (2, ""), ("4", "incompatible_schema"), (None, "incompatible_schema")]
)
def test_the_scale_of_a_decimal_beside_a_payload_is_the_declared_one(tmp_path: Path, scale: Any, reason: str) -> None:
    """Connect writes a decimal as the bytes of a whole number: with another scale it is a hundred times as much."""
    declared = unwrapping(pipeline(tmp_path, MILLIS), "connect")
    file = Path(declared.events.schema)
    avro = json.loads(file.read_text())
    avro["fields"][3]["type"] = decimal(2)
    (tmp_path / "Priced.avsc").write_text(json.dumps(avro))
    declared = replace(
        declared, events=replace(declared.events, schema=str(tmp_path / "Priced.avsc")), request={"user": "user"}
    )
    message = json.loads(connect("millis", 1_700_000_000_000, "", envelope=False))
    message["schema"]["fields"][3] |= {
        "type": "bytes",
        "name": DECIMAL,
        "parameters": {"scale": scale} if scale else {},
    }
    message["payload"]["x"] = "BNI="
    refused, read = validated(declared, json.dumps(message).encode())
    assert refused == reason
    assert reason or read["x"] == Decimal("12.34")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("written", "read", "why"), PAIRS)
def test_a_number_is_read_only_as_what_it_counts(place: str, written: Any, read: Any, why: str) -> None:
    make, path = PLACES[place]
    if place == "null" and isinstance(written, list):
        return
    wrong = other_unit(make(written), make(read))
    if not why:
        assert wrong is None
        return
    assert re.match(rf"field {path}: {re.escape(why)}", str(wrong))


def test_an_avro_writer_is_held_to_the_declared_unit_of_a_plain_time(tmp_path: Path) -> None:
    for declared_unit, fits in (("", False), ("millis", False), ("micros", True), ("nanos", False)):
        declared = pipeline(tmp_path, "long", declared_unit)
        fields = [{**f, "type": DEBEZIUM} if f["name"] == "at" else f for f in declared.events.avro["fields"]]
        written = {**declared.events.avro, "fields": fields}
        codec = Records(declared).sent_event
        schema = writer_schema("debezium", written, codec)
        verdict = compatibility.check(written, declared.events.avro, {}, "NONE", declared.events.units)
        why = "" if fits else f"field 'at': it is timestamp-micros where {declared_unit or 'millis'} was expected"
        assert (schema.refused, verdict.unreadable) == (why, why)
        (tmp_path / "debezium.avsc").write_text(json.dumps(written))
        if fits:
            event = {"id": "a", "at": 1_700_000_000_123_456, "user": "u", "x": 1.0}
            assert schema.read(codec.encode(event), HEADER)[0] == event
            continue
        accepting = replace(declared.events, accepts=[str(tmp_path / "debezium.avsc")])
        with pytest.raises(DeclarationError, match=r"can't read .*debezium\.avsc"):
            replace(declared, events=accepting)


@pytest.mark.parametrize("unwrap", ["", "connect", "debezium"])
def test_a_registered_json_schema_of_connects_is_held_to_the_units_too(tmp_path: Path, unwrap: Any) -> None:
    codec = Records(pipeline(tmp_path, MICROS)).sent_event
    for called, logical in [*times.CONNECT_TYPES.items(), ("anything", ""), (None, "")]:
        at = {"type": "integer", "title": called, "connect.type": "int64"}
        row: dict[str, Any] = {"type": "object", "properties": {"at": {"oneOf": [{"type": "null"}, at]}}}
        envelope = {"type": "object", "properties": {"op": {}, "after": {"oneOf": [{"type": "null"}, row]}}}
        known = json_schema("v1", json.dumps(envelope if unwrap == "debezium" else row), codec, unwrap)
        if logical in ("", "timestamp-micros"):
            assert (known.form, known.refused) == ("json", "")
        else:
            assert (known.field, f"it is {logical} where timestamp-micros" in known.refused) == ("at", True)
    nested = '{"items": ' * 5000 + "{}" + "}" * 5000
    assert [json_schema("v1", one, codec, unwrap).refused for one in ("{", "7", "", nested)] == [""] * 4


def test_a_schema_of_debeziums_may_be_declared_as_it_is(tmp_path: Path) -> None:
    declared = pipeline(tmp_path, DEBEZIUM)
    assert declared.events.unit == "micros"
    stream = Stream(declared.events.schema, id="id", key="user")
    assert stream.candidates("time") == ["at"]
    for at in (1_700_000_000_123_456, "2023-11-14T22:13:20.123456Z"):
        message = json.dumps({"id": "a", "at": at, "user": "u", "x": 1.0}).encode()
        assert validated(declared, message)[1]["at"] == 1_700_000_000_123


def test_properties_of_other_programs_leave_a_schema_as_fast_as_it_is() -> None:
    text = {"type": "string", "avro.java.string": "String"}
    with_properties = {**record(at=DEBEZIUM, name=text, note=["null", text]), "connect.name": "shop.Event"}
    without = record(at="long", name="string", note=["null", "string"])
    assert Codec(with_properties).is_compiled
    assert schema_files.plain(with_properties) == without
    assert Codec(with_properties).id == Codec(without).id


WORDS = st.sampled_from(["struct", "record", "after", "at", "x", DECIMAL, "io.debezium.time.Date", "int64", "union"])
KEYS = ["type", "fields", "field", "name", "items", "values", "parameters", "scale"]
JSON_KEYS = ["oneOf", "properties", "title", "additionalProperties", "connect.parameters", "at", "after"]


@pytest.mark.slow
@given(
    st.recursive(
        WORDS | st.none() | st.integers() | st.booleans(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS + JSON_KEYS), inner),
        max_leaves=12,
    )
)
def test_whatever_a_schema_is_it_is_taken_or_refused(schema: Any) -> None:
    avro = record(at=MICROS, x=["null", decimal(2)], v={"type": "map", "values": MILLIS})
    for unwrap in ("connect", "debezium"):
        with suppress(Reject):
            EmbeddedSchemas(avro, {}).check(schema, unwrap)  # type: ignore[arg-type]
        registered_unit(schema, unwrap, avro, {"x": "micros"})  # type: ignore[arg-type]
