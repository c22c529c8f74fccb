"""JSON and Protobuf of a registry: the same values, rules and reasons as Avro and plain JSON have."""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import small
from confluent_kafka.schema_registry.json_schema import JSONSerializer
from confluent_kafka.schema_registry.protobuf import ProtobufSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import example, given, settings
from hypothesis import strategies as st
from registry_server import RegistryServer

from tidemill import Stream
from tidemill.encoding import protobuf
from tidemill.encoding.codec import HEADER, Codec
from tidemill.encoding.json_schema import json_schema
from tidemill.encoding.schema_registry import SchemaRegistry, Version
from tidemill.errors import Reject
from tidemill.stages.validator.decode import Decoder, stream_decoder
from tidemill.stages.validator.schema_follower import SchemaFollower, registered_schema, subject_of
from tidemill.stages.validator.service import Validator
from tidemill.stages.validator.writer_schemas import WriterSchema
from tidemill.stream.memory import MemoryRecord
from tidemill.wire.records import Records

PIPELINE = small.make()
CODEC = Records(PIPELINE).event
AS_JSON, AS_PROTOBUF, REFUSED = 71, 72, 73
#: The fields of the events' schema, in another order and among others.
PROTO = """
syntax = "proto3";
package shop;
import "google/protobuf/timestamp.proto";
message Other { string note = 1; }
message Departure {
  message Inner { string flight_id = 1; }
  string producer = 99;
  string flight_id = 1;
  google.protobuf.Timestamp asked_at = 2;
  string carrier = 3;
  int32 flight = 4;
  optional string tailnum = 5;
  string origin = 6;
  string dest = 7;
  double distance = 8;
  sint64 sched_hour = 9;
  fixed32 flight_date = 10;
  double sched_minutes = 11;
  optional double dep_delay = 12;
  optional double temp = 13;
  optional double dewp = 14;
  optional double wind_speed = 15;
  optional double precip = 16;
  optional double visib = 17;
}
"""
FILE = protobuf._compiled_text(PROTO)
MESSAGE = message_factory.GetMessageClass(protobuf._messages(FILE)[1,])
#: That the message is the file's second: one number, which is 1, each as zigzag.
SECOND = b"\x02\x02"


def framed(number: int, body: bytes) -> bytes:
    return b"\0" + number.to_bytes(4, "big") + body


def registered(kind: str, schema: str, codec: Codec = CODEC) -> WriterSchema:
    return registered_schema(Version("small.events-value", 1, 1, b"", schema, kind), codec, "")


SCHEMAS = {
    AS_JSON: registered("JSON", json.dumps(json_schema(CODEC.avro))),
    AS_PROTOBUF: registered("PROTOBUF", PROTO),
    REFUSED: registered("PROTOBUF", "syntax = nonsense"),
}
DECODER = Decoder(CODEC, find=SCHEMAS.get)


def as_protobuf(event: dict[str, Any]) -> bytes:
    message = MESSAGE(producer="another field")
    for name, value in event.items():
        if name == "asked_at":
            message.asked_at.FromMilliseconds(value)
        elif value is not None:
            setattr(message, name, value)
    return framed(AS_PROTOBUF, SECOND + message.SerializeToString())


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
MAYBE = st.none() | NUMBER
EVENTS = st.builds(
    small.event,
    flight_id=TEXT, asked_at=st.integers(-62_135_596_800_000, 253_402_300_799_999), origin=TEXT, distance=NUMBER, carrier=TEXT,
    flight=st.integers(-(2**31), 2**31 - 1), tailnum=st.none() | TEXT, dest=TEXT, sched_hour=st.integers(-(2**31), 2**31 - 1),
    flight_date=st.integers(0, 2**31 - 1), sched_minutes=NUMBER,
    dep_delay=MAYBE, temp=MAYBE, dewp=MAYBE, wind_speed=MAYBE, precip=MAYBE, visib=MAYBE,
)  # fmt: skip


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(EVENTS)
def test_an_event_is_the_same_in_every_form(event: dict[str, Any]) -> None:
    """The record, the message that goes on, and so everything that is made of it."""
    avro = DECODER.decode(CODEC.encode(event))
    assert avro[0] == event
    as_json = json.dumps(event).encode()
    forms = {"json": as_json, "registry json": framed(AS_JSON, as_json), "protobuf": as_protobuf(event)}
    for form, data in forms.items():
        assert DECODER.decode(data) == avro, form


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("a number out of its rule", {"sched_hour": 24}, "out_of_range"),
    ("a time out of all bounds", {"asked_at": 253_402_300_799_999}, "bad_time"),
    ("an empty id", {"flight_id": ""}, "empty_id"),
    ("a long text", {"carrier": "x" * 20_000}, "too_long"),
]


@pytest.mark.parametrize(("changes", "reason"), [one[1:] for one in BAD], ids=[one[0] for one in BAD])
def test_what_is_refused_is_refused_for_the_same_in_every_form(changes: dict[str, Any], reason: str) -> None:
    event = small.event(**{"asked_at": 1_700_000_000_000, **changes})
    as_json = json.dumps(event).encode()
    reasons = set()
    for data in (CODEC.encode(event), as_json, framed(AS_JSON, as_json), as_protobuf(event)):
        out, counts = small.Emitted(), Counter[str]()
        validator = Validator(PIPELINE)
        validator._routes["small.events"].decode = DECODER.decode
        validator.process([MemoryRecord("small.events", data, timestamp=1_700_000_000_000)], out)
        (record,) = out.records
        headers = {name: value.decode() for name, value in record.headers() or ()}
        counts[record.topic()] += 1
        reasons.add(
            (
                record.topic(),
                headers.get("tidemill.reason"),
                headers.get("tidemill.field"),
                headers.get("tidemill.rule"),
            )
        )
        assert record.topic() == "small.dlq"
        assert record.value() == data
    assert len(reasons) == 1, reasons


def test_json_of_a_registry_has_the_reasons_of_json() -> None:
    for body, reason in ((b"{", "not_json"), (b"", "not_json"), (b"[1]", "not_json"), (b"{}", "missing_field")):
        with pytest.raises(Reject) as refused:
            DECODER.decode(framed(AS_JSON, body))
        assert refused.value.reason == reason
    event = small.event() | {"more": 1}
    with pytest.raises(Reject) as refused:
        DECODER.decode(framed(AS_JSON, json.dumps(event).encode()))
    assert (refused.value.reason, refused.value.field) == ("unexpected_field", "more")


def test_a_schema_s_name_may_be_in_a_header() -> None:
    event = small.event()
    for number, data in ((AS_JSON, json.dumps(event).encode()), (AS_PROTOBUF, as_protobuf(event)[HEADER:])):
        headers = [("__value_schema_id", framed(number, b""))]
        assert DECODER.decode(data, lambda headers=headers: headers)[0] == event  # type: ignore[misc]


@pytest.mark.parametrize(
    ("encoding", "taken"),
    [("avro", ["avro"]), ("json", ["json", "registry json"]), ("", ["avro", "json", "registry json", "protobuf"])],
)
def test_a_stream_that_is_declared_one_form_takes_that_alone(encoding: str, taken: list[str]) -> None:
    event = small.event()
    as_json, decoder = json.dumps(event).encode(), Decoder(CODEC, find=SCHEMAS.get, encoding=encoding)
    forms = {
        "avro": CODEC.encode(event),
        "json": as_json,
        "registry json": framed(AS_JSON, as_json),
        "protobuf": as_protobuf(event),
    }
    for form, data in forms.items():
        if form in taken:
            assert decoder.decode(data)[0] == event
        else:
            with pytest.raises(Reject) as refused:
                decoder.decode(data)
            assert refused.value.reason == "wrong_encoding", form


# Protobuf.


def test_a_field_that_is_not_set_is_null_or_zero_and_never_another_value() -> None:
    record, _ = DECODER.decode(framed(AS_PROTOBUF, SECOND + MESSAGE(asked_at={"seconds": 1}).SerializeToString()))
    assert record == {
        **small.event("", 1000, "", 0.0, carrier="", flight=0, dest="", sched_hour=0, flight_date=0, sched_minutes=0.0)
    }
    with pytest.raises(Reject) as refused:
        DECODER.decode(framed(AS_PROTOBUF, SECOND))
    assert (refused.value.reason, refused.value.field) == ("missing_field", "asked_at")


def test_a_time_that_milliseconds_do_not_have_is_as_it_is_in_json() -> None:
    def outcome(data: bytes) -> Any:
        try:
            return DECODER.decode(data)
        except Reject as reject:
            return reject.reason, reject.field

    message = MESSAGE(asked_at={"seconds": 1, "nanos": 1})
    event = small.event("", 0, "", 0.0, carrier="", flight=0, dest="", sched_hour=0, flight_date=0, sched_minutes=0.0)
    text = json.dumps(event | {"asked_at": "1970-01-01T00:00:01.000000001Z"}).encode()
    assert outcome(framed(AS_PROTOBUF, SECOND + message.SerializeToString())) == outcome(text)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "truncated"),
        (b"\x02", "truncated"),
        (b"\x80", "truncated"),
        (b"\xff" * 6, "undecodable"),
        (b"\x02\x08", "undecodable"),  # message 4 of a file of two
        (b"\x01", "undecodable"),  # -1 numbers
        (b"\x40" + b"\0" * 32, "undecodable"),  # 32 numbers
        (b"\x04\x02\x00", "missing_field"),  # the message in the second, which lacks all but one
        (b"\0", "missing_field"),  # the first message of the file
        (SECOND + b"\x0a\xff", "undecodable"),
        (SECOND + b"\xff\xff", "undecodable"),
        (SECOND + b"\x82\x7d\x01x", "undecodable"),  # a field that the schema has not
        (SECOND + b"\x0b" * 200, "undecodable"),
        (SECOND + b"\x12\x0a\x08" + b"\xff" * 8 + b"\x7f", "wrong_type"),  # a time after all time
        (SECOND + b"\x0a\x02\xff\xfe", "undecodable"),  # no UTF-8
    ],
)
def test_bytes_that_are_no_message_are_refused(body: bytes, reason: str) -> None:
    with pytest.raises(Reject) as refused:
        DECODER.decode(framed(AS_PROTOBUF, body))
    assert refused.value.reason == reason


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.booleans())
@example(b"\x12\x02\x08\x01", True)
def test_any_bytes_are_a_record_or_a_reject(body: bytes, named: bool) -> None:
    try:
        record, message = DECODER.decode(framed(AS_PROTOBUF, SECOND * named + body))
    except Reject:
        return
    assert CODEC.decode(message) == pytest.approx(record, nan_ok=True)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(EVENTS, st.data())
def test_a_message_that_was_changed_is_a_record_or_a_reject(event: dict[str, Any], data: st.DataObject) -> None:
    message = bytearray(as_protobuf(event))
    place = data.draw(st.integers(HEADER, len(message) - 1))
    message[place] ^= data.draw(st.integers(1, 255))
    try:
        DECODER.decode(bytes(message[: data.draw(st.integers(place, len(message)))]))
    except Reject:
        return


def nested() -> tuple[Codec, str]:
    avro = {
        "type": "record", "name": "Order", "fields": [
            {"name": "order_id", "type": "string"},
            {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
            {"name": "channel", "type": {"type": "enum", "name": "Channel", "symbols": ["WEB", "SHOP"]}},
            {"name": "raw", "type": "bytes"},
            {"name": "small", "type": "float"},
            {"name": "paid", "type": "boolean"},
            {"name": "note", "type": ["null", "string"]},
            {"name": "count", "type": "int", "default": 7},
            {"name": "items", "type": {"type": "array", "items": {"type": "record", "name": "Item", "fields": [
                {"name": "sku", "type": "string"}, {"name": "weight", "type": ["null", "double"], "default": None}]}}},
            {"name": "prices", "type": {"type": "map", "values": "double"}},
        ],
    }  # fmt: skip
    text = """
    syntax = "proto3";
    import "google/protobuf/timestamp.proto";
    import "google/protobuf/wrappers.proto";
    enum Channel { WEB = 0; SHOP = 1; PHONE = 2; }
    message Item { string sku = 1; google.protobuf.DoubleValue weight = 2; }
    message Order {
      string order_id = 1; google.protobuf.Timestamp at = 2; Channel channel = 3; bytes raw = 4; float small = 5; bool paid = 6;
      google.protobuf.StringValue note = 7; optional int32 count = 8; repeated Item items = 9; map<string, double> prices = 10;
    }"""
    return Codec(avro), text


#: 0.1 as four bytes have it.
AS_FLOAT = struct.unpack("f", struct.pack("f", 0.1))[0]


def test_nested_values_enums_maps_wrappers_and_bytes() -> None:
    codec, text = nested()
    schema = registered("PROTOBUF", text, codec)
    assert schema.refused == ""
    order = message_factory.GetMessageClass(protobuf._messages(protobuf._compiled_text(text))[1,])
    message = order(order_id="o", channel=1, raw=b"\xff\0", small=0.1, paid=True, prices={"a": 1.5})
    message.at.FromMicroseconds(1_700_000_000_123_456)
    message.items.add(sku="s").weight.value = 0.0
    message.items.add()
    decoder = Decoder(codec, find={1: schema}.get)
    record, data = decoder.decode(framed(1, b"\x02\x02" + message.SerializeToString()))
    assert record == {
        "order_id": "o", "at": 1_700_000_000_123_456, "channel": "SHOP", "raw": b"\xff\0", "small": AS_FLOAT,
        "paid": True, "note": None, "count": 7, "items": [{"sku": "s", "weight": 0.0}, {"sku": "", "weight": None}], "prices": {"a": 1.5},
    }  # fmt: skip
    assert codec.decode(data) == record
    message.channel = 2
    with pytest.raises(Reject) as refused:
        decoder.decode(framed(1, b"\x02\x02" + message.SerializeToString()))
    assert (refused.value.reason, refused.value.field) == ("wrong_type", "channel")
    assert "'PHONE'" in str(refused.value)


def test_a_small_message_that_becomes_large_is_refused_before() -> None:
    fields = "".join(f"int64 f{n} = {n + 1};" for n in range(300))
    text = f'syntax = "proto3"; message Many {{ {fields} }} message Order {{ repeated Many items = 1; }}'
    record = {"type": "record", "name": "Many", "fields": [{"name": f"f{n}", "type": "long"} for n in range(300)]}
    codec = Codec(
        {"type": "record", "name": "Order", "fields": [{"name": "items", "type": {"type": "array", "items": record}}]}
    )
    decoder = Decoder(codec, find={1: registered("PROTOBUF", text, codec)}.get)
    assert len(decoder.decode(framed(1, b"\x02\x02" + b"\x0a\x00" * 10))[0]["items"]) == 10
    with pytest.raises(Reject, match="memory") as refused:
        decoder.decode(framed(1, b"\x02\x02" + b"\x0a\x00" * 100_000))
    assert refused.value.reason == "too_large"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("syntax = nonsense", "protoc refuses it"),
        ('syntax = "proto3";', "no messages"),
        ('syntax = "proto3"; import "other.proto"; message A {}', "other.proto"),
        ('syntax = "proto3"; import "/etc/passwd"; message A {}', "/etc/passwd"),
        ("AAAA", "schema of Protobuf"),
        ("", "schema of Protobuf"),
    ],
)
def test_a_file_that_is_none_is_refused_with_its_reason(text: str, words: str) -> None:
    schema = registered("PROTOBUF", text)
    assert words in schema.refused
    with pytest.raises(Reject) as refused:
        Decoder(CODEC, find={1: schema}.get).decode(framed(1, b"\0"))
    assert refused.value.reason == "incompatible_schema"


def test_a_time_that_is_no_number_is_none() -> None:
    assert math.isnan(DECODER.decode(as_protobuf(small.event(distance=math.nan)))[0]["distance"])


def test_units_of_a_stream_hold_for_protobuf_too() -> None:
    stream = replace(small.EVENTS)
    assert isinstance(stream, Stream)
    decoder = stream_decoder(stream, CODEC, CODEC, SCHEMAS.get)
    assert decoder.decode(as_protobuf(small.event(asked_at=5)))[0]["asked_at"] == 5


@pytest.mark.slow
def test_what_confluents_serializers_write_is_read() -> None:
    server, event = RegistryServer(), small.event(asked_at=1_700_000_000_000)
    try:
        registry, context = SchemaRegistry(server.url), SerializationContext("small.events", MessageField.VALUE)
        schema = json_schema(CODEC.avro) | {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Departure"}
        as_json = JSONSerializer(json.dumps(schema), registry.client)(event, context)
        pool = descriptor_pool.DescriptorPool()
        for name in ("google/protobuf/timestamp.proto",):
            needed = descriptor_pb2.FileDescriptorProto()
            descriptor_pool.Default().FindFileByName(name).CopyToProto(needed)
            pool.Add(needed)
        pool.Add(FILE)
        kind = message_factory.GetMessageClass(pool.FindMessageTypeByName("shop.Departure"))
        message = kind.FromString(as_protobuf(event)[HEADER + len(SECOND) :])
        options = {"use.deprecated.format": False, "skip.known.types": True}
        protobuf_bytes = ProtobufSerializer(kind, registry.client, options)(message, context)
        assert server.subjects.keys() == {subject_of("small.events")}
        follower, out = SchemaFollower(PIPELINE, registry, 1000.0), small.Emitted()
        follower.connect()
        records = [
            MemoryRecord("small.events", data, timestamp=1_700_000_000_000) for data in (as_json, protobuf_bytes)
        ]
        Validator(PIPELINE, follower).process(records, out)
    finally:
        server.stop()
    assert [record.topic() for record in out.records] == ["small.events.valid"] * 2
    assert [record.value() for record in out.records] == [CODEC.encode(event)] * 2
