"""Producers that write by other schemas, name them elsewhere, or send JSON: each message becomes the declared record, or says why not."""

from __future__ import annotations

import io
import json
import uuid
from pathlib import Path
from typing import Any

import fastavro
import pytest
import small
from hypothesis import given, settings
from test_resolution import pairs, value_of

from tidemill import Pipeline, Stream
from tidemill.cli.text.declaration import pipeline_text
from tidemill.encoding import schema_files
from tidemill.encoding.codec import HEADER, Codec
from tidemill.errors import DeclarationError, Reject, Retry
from tidemill.offline.backtest import Backtest
from tidemill.stages.featurizer.service import Featurizer
from tidemill.stages.validator.decode import Decoder
from tidemill.stages.validator.service import Validator
from tidemill.stages.validator.writer_schemas import SchemaName, WriterSchema, refused_schema, writer_schema
from tidemill.stream.api import Position, TopicPartition
from tidemill.stream.memory import MemoryRecord
from tidemill.wire.records import Records

PIPELINE = small.make()
CODEC = Records(PIPELINE).event
EVENT = small.event(tailnum="N1", temp=1.5)
OWN = CODEC.encode(EVENT)
GUID = uuid.UUID(int=7).bytes


def evolved(drop: str = "", retype: dict[str, Any] | None = None, *more: Any) -> dict[str, Any]:
    """The declared schema with a field less, some of other types, and more after them."""
    fields = [
        {**f, **({"type": retype[f["name"]]} if retype and f["name"] in retype else {})} for f in CODEC.avro["fields"]
    ]
    return {**CODEC.avro, "fields": [*more, *(f for f in fields if f["name"] != drop)]}


V2 = evolved("tailnum", {"distance": "int", "temp": ["null", "float"]}, {"name": "gate", "type": "string"})
V2_EVENT = {**EVENT, "distance": 1400, "gate": "B4"}
AS_V1 = {**EVENT, "distance": 1400.0, "tailnum": None}


def body(avro: Any, record: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema_files.plain(avro), named_schemas={}), record)
    return out.getvalue()


class Known:
    """A registry that never changes."""

    def __init__(self, found: dict[SchemaName, WriterSchema]) -> None:
        self.found = found

    def find(self, topic: str, name: SchemaName) -> WriterSchema | None:
        return self.found.get(name) if topic == "small.events" else None


V2_BODY = body(V2, V2_EVENT)
KNOWN = Known(
    {
        1: writer_schema("version 1", CODEC.avro, CODEC),
        2: writer_schema("version 2", V2, CODEC),
        GUID: writer_schema("version 2", V2, CODEC),
        3: writer_schema("version 3", evolved(retype={"distance": "string"}), CODEC),
        4: refused_schema("version 4", "it is JSON"),
    }
)


def sent(
    value: bytes, headers: list[tuple[str, bytes]] | None = None, known: Any = KNOWN, pipeline: Pipeline = PIPELINE
) -> tuple[MemoryRecord, Validator]:
    out, step = small.Emitted(), Validator(pipeline, known)
    step.process([MemoryRecord("small.events", value, headers=headers)], out)
    (found,) = out.records
    return found, step


def accepted_schemas(*of: Any, **more: Any) -> bytes:
    found, _ = sent(*of, **more)
    assert found.topic() == "small.events.valid", dict(found.headers() or [])
    return found.value() or b""


def rejected(*of: Any, **more: Any) -> tuple[str, str, str]:
    found, _ = sent(*of, **more)
    assert found.topic() == "small.dlq"
    assert found.value() == of[0]
    said = {name: data.decode(errors="replace") for name, data in found.headers() or []}
    return said["tidemill.reason"], said["tidemill.field"], said["__connect.errors.exception.message"]


def prefix(number: int) -> bytes:
    return b"\0" + number.to_bytes(4, "big")


def named(name: SchemaName) -> list[tuple[str, bytes]]:
    return [("x", b"1"), ("__value_schema_id", prefix(name) if isinstance(name, int) else b"\1" + name)]


def test_the_declared_schema_by_the_registrys_id_is_the_same_bytes_behind_our_header() -> None:
    assert accepted_schemas(prefix(1) + OWN[HEADER:]) == OWN
    assert accepted_schemas(OWN[HEADER:], named(1)) == OWN
    assert accepted_schemas(OWN[HEADER:], named(CODEC.id)) == OWN


@pytest.mark.parametrize(
    ("value", "headers"), [(prefix(2) + V2_BODY, None), (V2_BODY, named(2)), (V2_BODY, named(GUID))], ids=["payload", "header", "guid"]
)  # fmt: skip
def test_another_schema_is_read_by_the_declared_one(value: bytes, headers: Any) -> None:
    found, step = sent(value, headers)
    assert CODEC.decode(found.value() or b"") == AS_V1
    assert step.counts == {("promoted", "distance"): 1}


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(pairs)
def test_whatever_can_be_read_is_read_as_fastavro_reads_it(pair: tuple[Any, Any]) -> None:
    for one, other in (pair, pair[::-1]):
        codec = Codec(other)
        found = writer_schema("it", one, codec)
        if not found.refused:
            data = body(one, value_of(one))
            parsed = fastavro.parse_schema(one, named_schemas={})
            expected = fastavro.schemaless_reader(io.BytesIO(data), parsed, codec.parsed)
            assert found.read(b"before" + data, 6) == (expected, len(data) + 6)


def test_a_schema_that_is_known_and_can_not_be_read_is_refused_with_the_field() -> None:
    reason, field, message = rejected(prefix(3) + b"whatever")
    assert (reason, field) == ("incompatible_schema", "distance")
    assert message == "version 3: field 'distance': string is written where double is read"
    assert rejected(b"whatever", named(4)) == ("incompatible_schema", "", "version 4: it is JSON")


def test_an_id_that_nobody_knows_is_refused() -> None:
    assert rejected(prefix(9) + V2_BODY)[0] == "unknown_schema"
    assert rejected(V2_BODY, named(uuid.UUID(int=8).bytes))[0] == "unknown_schema"
    assert rejected(prefix(2) + V2_BODY, known=None)[0] == "unknown_schema"


def test_a_schema_of_the_other_topic_is_not_known() -> None:
    out, step = small.Emitted(), Validator(PIPELINE, KNOWN)
    step.process([MemoryRecord("small.labels", prefix(2) + V2_BODY)], out)
    assert dict(out.records[0].headers())["tidemill.reason"] == b"unknown_schema"


@pytest.mark.parametrize("held", [b"", b"\0", b"\0\0\0\0", b"\1" + GUID[1:], b"\2" + GUID, b"\0" + GUID])
def test_a_header_that_is_no_schema_id_is_refused(held: bytes) -> None:
    assert rejected(V2_BODY, [("__value_schema_id", held)])[0] == "bad_magic"


@pytest.mark.slow
def test_bytes_are_read_as_strictly_by_another_schema() -> None:
    assert rejected(prefix(2) + V2_BODY + b"\0")[0] == "trailing_bytes"
    assert rejected(V2_BODY + b"\0", named(2))[0] == "trailing_bytes"
    for length in range(len(V2_BODY)):
        assert rejected(prefix(2) + V2_BODY[:length])[0] == "truncated"
    assert rejected(prefix(2) + b"\xff" * 400)[0] in ("undecodable", "truncated")


def test_an_int_that_is_none_is_refused_also_where_it_was_read_by_another_schema() -> None:
    avro = evolved(drop="tailnum")
    data = body(avro, {**EVENT, "flight": 1_234_567}).replace(b"\x8e\xda\x96\x01", b"\xfe\xff\xff\xff\xff\x0f")
    known = Known({5: writer_schema("version 5", avro, CODEC)})
    assert rejected(prefix(5) + data, known=known)[0] in ("wrong_type", "undecodable")


def test_what_is_being_looked_for_has_the_whole_batch_come_again() -> None:
    class Looking:
        def find(self, topic: str, name: SchemaName) -> WriterSchema | None:
            raise Retry("schema id 9 is looked for")

    out = small.Emitted()
    with pytest.raises(Retry):
        Validator(PIPELINE, Looking()).process([MemoryRecord("small.events", prefix(9) + b"x")], out)
    assert not out.records


def declared(folder: Path, other: Any, **more: Any) -> Pipeline:
    (folder / "other.avsc").write_text(other if isinstance(other, str) else json.dumps(other))
    events = Stream("flights/departure.v1.avsc", id="flight_id", time="asked_at", key="origin",
                    accepts=[str(folder / "other.avsc")], **more)  # fmt: skip
    return small.make(events=events)


def test_a_schema_that_the_declaration_accepts_needs_no_registry(tmp_path: Path) -> None:
    message = prefix(schema_files.fingerprint(V2)) + V2_BODY
    assert CODEC.decode(accepted_schemas(message, known=None, pipeline=declared(tmp_path, V2))) == AS_V1
    assert accepted_schemas(OWN, known=None, pipeline=declared(tmp_path, V2)) == OWN


def test_what_an_earlier_declaration_has_put_into_the_log_is_still_read(tmp_path: Path) -> None:
    """The order of deployment: the pipeline with the new schema, which accepts the old one; then the producers."""
    pipeline, old = declared(tmp_path, V2), Codec(V2)
    log = [old.encode({**V2_EVENT, "flight_id": str(n)}) for n in range(2)] + [
        CODEC.encode({**EVENT, "flight_id": "2"})
    ]
    step, out = Featurizer(pipeline), small.Emitted()
    step.assign(TopicPartition("small.events.valid", 0), Position(0))
    step.process([MemoryRecord("small.events.valid", value, offset=n) for n, value in enumerate(log)], out)
    features = [Records(pipeline).features.decode(r.value() or b"") for r in out.of("small.features")]
    assert [(one["event_id"], one["vector"]["origin_count_5m"]) for one in features] == [("0", 0), ("1", 1), ("2", 2)]
    with pytest.raises(Reject, match=r"header .* was expected"):
        CODEC.decode(log[0])
    assert CODEC.of(log[0]) is None
    assert f"also taken by {tmp_path / 'other.avsc'} (id {old.id})" in pipeline_text(pipeline)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (evolved("carrier"), "can't read .*other.avsc: field 'carrier': it is not written"),
        (evolved(retype={"distance": "string"}), "field 'distance': string is written where double is read"),
        ({**V2, "name": "tidemill.flights.Takeoff"}, "record tidemill.flights.Takeoff is written"),
        (evolved("", None, {"name": "all", "type": {"type": "array", "items": "null"}}), "field 'all' takes no bytes"),
        (
            evolved("", None, {"name": "all", "type": {"type": "fixed", "name": "F", "size": "x"}}),
            "field 'all' has a fixed size",
        ),
        (evolved("", None, {"name": "all", "type": {"type": "enum", "name": "K", "symbols": [1]}}), "no Avro schema"),
        ("{", "is not JSON"),
    ],
)
def test_a_schema_that_can_not_be_accepted_is_refused_when_it_is_declared(
    tmp_path: Path, other: Any, said: str
) -> None:
    with pytest.raises(DeclarationError, match=rf"events\.accepts: .*{said}"):
        declared(tmp_path, other)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"accepts": "one.avsc"}, "where a list of schema files was expected"), ({"accepts": [1]}, "a list of schema files"),
     ({"accepts": ["nowhere.avsc"]}, "no schema file 'nowhere.avsc'"), ({"encoding": "xml"}, "'avro' or 'json' was expected")],
)  # fmt: skip
def test_what_makes_no_sense_in_a_stream_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(DeclarationError, match=said):
        small.make(labels=Stream(small.LABELS.schema, id="flight_id", time="landed_at", value="arr_delay", **change))


def test_a_declared_schema_that_is_not_safe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.avsc").write_text(
        json.dumps(evolved("", None, {"name": "all", "type": ["null", CODEC.avro["name"]]}))
    )
    with pytest.raises(DeclarationError, match=r"events\.schema: .*recursive"):
        small.make(events=Stream(str(tmp_path / "s.avsc"), id="flight_id", time="asked_at", key="origin"))


# JSON.


def as_json(**changes: Any) -> bytes:
    return small.as_json({**EVENT, **changes})


@pytest.mark.parametrize(
    "said", [b"application/json", b"Application/JSON; charset=utf-8", b"application/cloudevents+json"]
)
def test_a_content_type_says_that_it_is_json(said: bytes) -> None:
    assert accepted_schemas(as_json(), [("Content-Type", said)]) == OWN
    assert rejected(prefix(2) + V2_BODY, [("content-type", said)])[0] == "not_json"


@pytest.mark.parametrize("said", [b"avro/binary", b"application/avro", b"application/vnd.apache.avro+binary"])
def test_a_content_type_says_that_it_is_avro(said: bytes) -> None:
    assert CODEC.decode(accepted_schemas(prefix(2) + V2_BODY, [("content-type", said)])) == AS_V1
    assert rejected(as_json(), [("content-type", said)])[0] == "bad_magic"


@pytest.mark.parametrize("said", [b"text/plain", b"", None, b"\xff"])
def test_another_content_type_says_nothing(said: Any) -> None:
    assert accepted_schemas(as_json(), [("content-type", said)]) == OWN


def test_a_stream_may_take_one_encoding_alone() -> None:
    only = {
        form: small.make(
            events=Stream(small.EVENTS.schema, id="flight_id", time="asked_at", key="origin", encoding=form)
        )
        for form in ("avro", "json")
    }
    assert accepted_schemas(as_json(), pipeline=only["json"]) == accepted_schemas(OWN, pipeline=only["avro"]) == OWN
    for value, headers in ((OWN, None), (V2_BODY, named(2)), (prefix(2) + V2_BODY, None)):
        reason, _, message = rejected(value, headers, pipeline=only["json"])
        assert (reason, message) == ("wrong_encoding", "the message is avro where the stream is declared json")
    assert rejected(as_json(), pipeline=only["avro"])[0] == "wrong_encoding"


def test_a_backtest_takes_history_of_a_stream_that_takes_json_alone() -> None:
    events = Stream(small.EVENTS.schema, id="flight_id", time="asked_at", key="origin", encoding="json")
    report = Backtest(small.make(events=events)).run([small.event()], [small.label(landed_at=5)])
    assert (report.predictions, report.joined, report.dead_letters) == (1, 1, {})


def test_a_whole_number_where_a_float_is_declared_is_taken_and_counted() -> None:
    found, step = sent(as_json(distance=1400, temp=2))
    assert CODEC.decode(found.value() or b"") == {**EVENT, "distance": 1400.0, "temp": 2.0}
    assert step.counts == {("promoted", "distance"): 1, ("promoted", "temp"): 1}
    assert not sent(as_json(flight=7))[1].counts


def test_a_whole_number_that_no_float_is_exactly_is_of_the_wrong_type() -> None:
    reason, field, message = rejected(as_json(distance=2**53 + 1))
    assert (reason, field) == ("wrong_type", "distance")
    assert message.endswith("(int) where double was expected, and no double is exactly that")


def test_headers_are_not_looked_at_where_the_message_begins_as_most_do() -> None:
    class Record(MemoryRecord):
        def headers(self) -> Any:
            raise AssertionError("looked at")

    assert Decoder(CODEC).decode(OWN, Record("small.events", OWN).headers) == (EVENT, OWN)
