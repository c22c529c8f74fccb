"""All decoders on random schemas and damaged bytes: each reads what fastavro reads, or refuses, and does nothing else.

`make fuzz` runs these properties for ten minutes, with new seeds.
"""

from __future__ import annotations

import io
import json
from typing import Any

import fastavro
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from schema_pairs import schema_pairs
from test_json_values import schemas

from tidemill.encoding import schema_files
from tidemill.encoding.codec import HEADER, Codec
from tidemill.encoding.envelopes import SkippedError
from tidemill.encoding.resolution import unreadable
from tidemill.errors import Reject
from tidemill.stages.validator.decode import Decoder
from tidemill.stages.validator.writer_schemas import writer_schema

pytestmark = pytest.mark.slow

relaxed = settings(suppress_health_check=list(HealthCheck), deadline=None)


@st.composite
def damaged(draw: Any, data: bytes) -> bytes:
    """Return bytes with a few cut, flipped, doubled or put in."""
    made = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(made)))
        how = draw(st.sampled_from(["flip", "cut", "put", "double"]))
        if how == "flip" and at < len(made):
            made[at] ^= draw(st.integers(1, 255))
        elif how == "cut":
            del made[at : at + draw(st.integers(1, 4))]
        elif how == "put":
            made[at:at] = draw(st.binary(min_size=1, max_size=6))
        else:
            made[at:at] = made[max(0, at - 3) : at]
    return bytes(made)


def read_by_fastavro(avro: Any, data: bytes) -> Any:
    """Return (record, where it ends), or None where fastavro can't read it."""
    source = io.BytesIO(data)
    try:
        return fastavro.schemaless_reader(source, avro, None), source.tell()
    except Exception:
        return None


@relaxed
@given(st.data())
def test_damaged_avro_is_what_fastavro_reads_or_is_refused(data: Any) -> None:
    avro, values = data.draw(schemas())
    codec, parsed = Codec(avro), fastavro.parse_schema(schema_files.plain(avro))
    record = data.draw(values)
    body = codec.body(record)
    out = io.BytesIO()
    fastavro.schemaless_writer(out, parsed, record)
    assert body == out.getvalue()
    bytes_ = data.draw(damaged(body) | st.binary(max_size=40))
    expected = read_by_fastavro(parsed, bytes_)
    try:
        read = codec.read(bytes_, 0)
    except Exception:
        # Stricter than fastavro only where no writer would have written these bytes.
        if expected is not None:
            try:
                written = codec.body(expected[0])
            except Exception:
                return
            assert written != bytes_[: expected[1]]
    else:
        assert expected is not None
        assert repr(read) == repr(expected)


def messages(avro: Any, values: Any, data: Any) -> bytes:
    """Return a message as it may come: Avro, JSON, an envelope around either, whole or damaged."""
    record = data.draw(values)
    codec = Codec(avro)
    form = data.draw(st.sampled_from(["avro", "json", "debezium", "connect", "bytes"]))
    if form == "bytes":
        return bytes(data.draw(st.binary(max_size=60)))
    if form == "avro":
        message = codec.encode(record)
    else:
        text = io.StringIO()
        fastavro.json_writer(text, fastavro.parse_schema(avro), [record])
        plain = json.loads(text.getvalue())
        change = {"op": data.draw(st.sampled_from(["c", "u", "d", "r", "x", 1, None])), "after": plain, "source": {}}
        payload = {"debezium": change, "connect": plain}.get(form)
        message = json.dumps({"schema": None, "payload": payload} if payload else plain).encode()
    return bytes(data.draw(damaged(message) | st.just(message)))


@relaxed
@given(st.data())
def test_any_message_is_a_record_that_stays_itself_or_is_refused_in_words(data: Any) -> None:
    avro, values = data.draw(schemas())
    codec = Codec(avro)
    message = messages(avro, values, data)
    decoder = Decoder(
        codec, unwrap=data.draw(st.sampled_from(["", "debezium", "connect"])), bare=data.draw(st.booleans())
    )
    try:
        record, written = decoder.decode(message)
    except SkippedError as skipped:
        assert skipped.kind  # noqa: PT017  it is one of the outcomes
        return
    except Reject as reject:
        assert reject.reason  # noqa: PT017
        return
    again, end = codec.read(written, HEADER)
    assert end == len(written)
    assert {name: repr(value) for name, value in again.items()} == {n: repr(v) for n, v in record.items()}
    assert read_by_fastavro(fastavro.parse_schema(schema_files.plain(avro)), written[HEADER:]) is not None


@relaxed
@given(st.data())
def test_change_events_in_avro_are_their_rows(data: Any) -> None:
    avro, values = data.draw(schemas())
    record = data.draw(values)
    row = {**avro, "name": "Value", "namespace": "of.debezium"}
    envelope = {
        "type": "record",
        "name": "Envelope",
        "namespace": "of.debezium",
        "fields": [
            {"name": "before", "type": ["null", row], "default": None},
            {"name": "after", "type": ["null", "Value"], "default": None},
            {"name": "op", "type": "string"},
        ],
    }
    known = writer_schema("e", envelope, Codec(avro), "debezium")
    assume(not known.refused)  # its names are in a namespace of their own, so one may refer to another's
    body = Codec(envelope).body({"before": None, "after": record, "op": "u"})
    assert repr(known.read(body, 0)[0]) == repr(Codec(avro).read(Codec(avro).body(record), 0)[0])


@relaxed
@given(st.data())
def test_a_reader_with_other_fields_and_names_reads_what_fastavro_reads(data: Any) -> None:
    writer, reader, values = data.draw(schema_pairs())
    try:
        parsed = [fastavro.parse_schema(one, named_schemas={}) for one in (writer, reader)]
    except fastavro.schema.UnknownType:  # in another order a type may be named before it is defined
        assume(False)
    out = io.BytesIO()
    record = data.draw(values)
    fastavro.schemaless_writer(out, parsed[0], record)
    body, own = out.getvalue(), Codec(writer)
    assert own.body(record) == body
    assert repr(own.read(body, 0)[0]) == repr(fastavro.schemaless_reader(io.BytesIO(body), parsed[0], None))
    assert unreadable(writer, reader) is None
    read, end = Codec(reader).reading(schema_files.plain(writer))[0](body, 0)
    assert end == len(body)
    expected: Any = fastavro.schemaless_reader(io.BytesIO(body), *parsed)
    assert {name: repr(value) for name, value in read.items()} == {n: repr(v) for n, v in expected.items()}
