"""Compiled codecs write what fastavro writes and read what fastavro reads."""

from __future__ import annotations

import io
import struct

import fastavro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill import load
from tidemill.encoding import avro_codegen, schema_files
from tidemill.encoding.codec import HEADER, Codec
from tidemill.wire.records import Records

LONG = st.integers(-(2**63), 2**63 - 1)
INT = st.integers(-(2**31), 2**31 - 1)
VALUES = {
    "long": LONG, "int": INT, "double": st.floats(allow_nan=False), "boolean": st.booleans(), "string": st.text(), "bytes": st.binary(),
}  # fmt: skip
RECORDS = Records(load("flights"))
CODECS = [
    RECORDS.event, RECORDS.label, RECORDS.vector, RECORDS.features, RECORDS.prediction, RECORDS.prediction_log,
    RECORDS.scores, RECORDS.example, RECORDS.outcome, RECORDS.head, RECORDS.manifest, RECORDS.update,
]  # fmt: skip


def values(avro) -> st.SearchStrategy:
    if isinstance(avro, list):
        return st.one_of(*(st.none() if branch == "null" else values(branch) for branch in avro))
    if isinstance(avro, dict):
        kind = avro["type"]
        if kind == "record":
            return st.fixed_dictionaries({f["name"]: values(f["type"]) for f in avro["fields"]})
        if kind == "array":
            return st.lists(values(avro["items"]), max_size=4)
        if kind == "map":
            return st.dictionaries(st.text(max_size=5), values(avro["values"]), max_size=4)
        return values(kind)
    return VALUES[avro] if avro in VALUES else values(schema_files.own("score.v1"))


def by_fastavro(codec: Codec, record) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, codec.parsed, record)
    return out.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.avro["name"])
def test_every_record_of_the_data_plane_is_compiled_and_equals_fastavro(codec: Codec) -> None:
    assert codec.is_compiled

    @settings(max_examples=40, deadline=None)
    @given(values(schema_files.plain(codec.avro)))
    def check(record) -> None:
        data = by_fastavro(codec, record)
        assert codec.body(record) == data
        assert codec.record(data) == record == fastavro.schemaless_reader(io.BytesIO(data), codec.parsed, None)
        assert codec.read(data + b"more", 0) == (record, len(data))

    check()


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_flat_schema_equals_fastavro(data) -> None:
    kinds = data.draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=12))
    fields = []
    for index, kind in enumerate(kinds):
        shape = data.draw(st.sampled_from([kind, ["null", kind], [kind, "null"]]))
        fields.append({"name": f"f{index}", "type": shape})
    codec = Codec({"type": "record", "name": "R", "fields": fields})
    assert codec.is_compiled
    record = data.draw(values(codec.avro))
    assert codec.body(record) == by_fastavro(codec, record)
    assert codec.record(codec.body(record)) == record


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80))
def test_arbitrary_bytes_are_read_or_refused_and_never_beyond_their_end(data: bytes) -> None:
    codec = RECORDS.label
    try:
        record, end = codec.read(data, 0)
    except (EOFError, IndexError, ValueError, struct.error):
        return
    assert end <= len(data)
    assert record.keys() == {"flight_id", "landed_at", "arr_delay"}


def test_every_truncation_is_noticed() -> None:
    whole = RECORDS.event.encode({**dict.fromkeys(f["name"] for f in RECORDS.event.avro["fields"]), **EVENT})
    for length in range(HEADER, len(whole)):
        with pytest.raises((EOFError, IndexError)):
            RECORDS.event.read(whole[:length], HEADER)


EVENT = {
    "flight_id": "a", "asked_at": 1, "carrier": "UA", "flight": 1, "origin": "JFK", "dest": "LAX", "distance": 1.0, "sched_hour": 1,
    "flight_date": 1, "sched_minutes": 1.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (avro_codegen.varint(-3), "a length is -3"),
        (b"\xff" * 11, "more than 10 bytes"),
    ],
)
def test_hostile_lengths_are_refused(data: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RECORDS.label.read(data, 0)


def test_a_union_branch_that_does_not_exist_is_refused() -> None:
    codec = Codec({"type": "record", "name": "R", "fields": [{"name": "a", "type": ["null", "string"]}]})
    with pytest.raises(ValueError, match="no branch 2"):
        codec.read(avro_codegen.varint(2), 0)


def test_another_shape_is_left_to_fastavro() -> None:
    enum = {"type": "enum", "name": "E", "symbols": ["a", "b"]}
    codec = Codec(
        {
            "type": "record",
            "name": "R",
            "fields": [{"name": "a", "type": ["null", "int", "string"]}, {"name": "e", "type": enum}],
        }
    )
    assert not codec.is_compiled
    for record in ({"a": 1, "e": "a"}, {"a": "x", "e": "b"}, {"a": None, "e": "a"}):
        assert codec.decode(codec.encode(record)) == record


@given(st.lists(st.integers(128, 255), max_size=10).flatmap(lambda most: st.tuples(st.just(most), st.integers(0, 255))))
def test_a_long_of_any_length_is_read_as_its_bytes_say(drawn: tuple[list[int], int]) -> None:
    most, last = drawn
    data = bytes([*most, last])
    value = sum((byte & 127) << 7 * place for place, byte in enumerate(data))
    if last > 127 or len(data) > 10 or value >> 64:
        with pytest.raises((IndexError, ValueError)):
            avro_codegen._read_long(data, 0)
    else:
        assert avro_codegen._read_long(b"ab" + data + b"\xff\xff", 2) == ((value >> 1) ^ -(value & 1), 2 + len(data))


def test_longs_near_each_power_of_two_and_times_of_many_years_are_read_as_they_were_written() -> None:
    times = range(-62135596800000, 253402300799999, 253402300799999 // (3 * avro_codegen.MAX_KEYS))
    powers = [sign * 2**power + off for power in range(63) for sign in (1, -1) for off in (-1, 0, 1)]
    for value in (*powers, *times):
        data = avro_codegen.varint(value)
        assert avro_codegen._read_long(data, 0) == (value, len(data))
    assert len(avro_codegen._HIGH_BITS) <= avro_codegen.MAX_KEYS


@pytest.mark.parametrize("kind", ["double", "long", "string", "boolean"])
def test_keys_of_maps_that_are_always_others_are_written_right_and_not_remembered_for_ever(
    kind: str, monkeypatch
) -> None:
    made = []
    for name in ("_Keys", "_Names"):
        remember = getattr(avro_codegen, name)
        monkeypatch.setattr(avro_codegen, name, lambda remember=remember: made.append(remember()) or made[-1])
    codec = Codec({"type": "record", "name": "R", "fields": [{"name": "of", "type": {"type": "map", "values": kind}}]})
    value = {"double": 0.5, "long": -7, "string": "é" * 1500, "boolean": True}[kind]
    for first in range(0, 3 * avro_codegen.MAX_KEYS, 500):
        for _ in range(2):
            record = {"of": {f"key-é-{number}": value for number in range(first, first + 500)}}
            data = by_fastavro(codec, record)
            assert codec.body(record) == data
            assert codec.record(data) == record
    keys, names = made
    assert len(keys) == len(names) == avro_codegen.MAX_KEYS
    # One key of megabytes is not kept either.
    record = {"of": {"k" * 10**6: value}}
    fresh = Codec(codec.avro)
    assert fresh.record(fresh.body(record)) == record
    assert not made[-1]
    assert not made[-2]
