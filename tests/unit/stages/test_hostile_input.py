"""What producers can send must end as a dead letter: it may not stop the validator, nor anything after it."""

from __future__ import annotations

import contextlib
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small

from tidemill import Pipeline, Stream, View, aggregates, number, rules
from tidemill.durations import FIRST_TIME_MS, LAST_TIME_MS
from tidemill.encoding import avro_codegen
from tidemill.encoding.codec import HEADER
from tidemill.errors import DeclarationError, Reject
from tidemill.stages.featurizer.service import Featurizer
from tidemill.stages.validator.decode import Decoder
from tidemill.stages.validator.service import Validator
from tidemill.stream.api import Position, TopicPartition
from tidemill.stream.memory import MemoryRecord
from tidemill.wire.records import Records

PIPELINE = small.make()
RECORDS = Records(PIPELINE)
EVENT = small.event()


def one(pipeline: Pipeline, message: bytes) -> tuple[MemoryRecord, dict[str, bytes]]:
    """Send one event; return what it became and its headers."""
    out = small.Emitted()
    Validator(pipeline).process([MemoryRecord(f"{pipeline.name}.events", message)], out)
    (record,) = out.records
    return record, dict(record.headers() or [])


def reason(message: bytes, pipeline: Pipeline = PIPELINE) -> str:
    record, headers = one(pipeline, message)
    assert record.topic() == f"{pipeline.name}.dlq", "it was accepted"
    assert record.value() == message
    return headers["tidemill.reason"].decode()


def json_with(field: str, raw: str) -> bytes:
    """Return the event as JSON with one field's text written as it is given."""
    rest = json.dumps({name: value for name, value in EVENT.items() if name != field})
    return f'{rest[:-1]}, "{field}": {raw}}}'.encode()


@pytest.mark.parametrize("field", ["flight_id", "origin", "carrier", "flight", "distance", "no_such_field", "\\ud800"])
def test_half_a_surrogate_in_json_is_a_dead_letter(field: str) -> None:
    assert reason(json_with(field, '"\\ud800"'))


@pytest.mark.parametrize("field", ["distance", "temp", "flight", "asked_at"])
@pytest.mark.parametrize("digits", [15, 16, 20, 400, 4000, 5000])
def test_a_whole_number_of_any_length_is_a_dead_letter_or_a_float(field: str, digits: int) -> None:
    record, _ = one(PIPELINE, json_with(field, "1" + "0" * digits))
    fits = field in ("distance", "temp") and digits <= 15  # up to 1e15: the bound of every float field
    assert record.topic() == ("small.events.valid" if fits else "small.dlq")


@pytest.mark.slow
def test_nesting_of_any_depth_is_a_dead_letter() -> None:
    for depth in (1, 10, *range(850, 1010, 7), 100_000):
        for field in ("carrier", "no_such_field"):
            assert reason(json_with(field, "[" * depth + "]" * depth))


def test_why_is_said_in_bounded_headers_however_long_the_value_is() -> None:
    for message in (
        json_with("flight", json.dumps("x" * 500_000)),
        json_with("x" * 500_000, "1"),
        json_with("flight_id", "[1]"),
    ):
        _, headers = one(PIPELINE, message)
        assert sum(len(name) + len(value) for name, value in headers.items()) < 8_000


def avro_with(field: str, raw: bytes) -> bytes:
    """Return the event as Avro with the bytes of one long or int put in the place of its own."""
    marked = {**EVENT, field: 1_234_567}
    whole, own = RECORDS.event.encode(marked), avro_codegen.varint(1_234_567)
    assert whole.count(own) == 1
    return whole.replace(own, raw)


BEYOND_64_BITS = b"\xff" * 9 + b"\x7f"


def test_an_avro_long_beyond_64_bits_is_a_dead_letter() -> None:
    assert reason(avro_with("asked_at", BEYOND_64_BITS)) == "undecodable"


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1, 2**40])
def test_an_avro_int_beyond_32_bits_is_a_dead_letter_as_in_json(value: int) -> None:
    assert reason(json_with("flight", str(value))) == "wrong_type"
    assert reason(avro_with("flight", avro_codegen.varint(value)))


@pytest.mark.parametrize("time", [FIRST_TIME_MS, -1, 0, LAST_TIME_MS])
def test_no_time_that_is_accepted_stops_the_featurizer(time: int) -> None:
    assert featurized(RECORDS.event.encode({**EVENT, "asked_at": time}))


def featurized(*accepted: bytes, pipeline: Pipeline = PIPELINE) -> list[dict[str, Any]]:
    out, step = small.Emitted(), Featurizer(pipeline)
    topic = f"{pipeline.name}.events.valid"
    step.assign(TopicPartition(topic, 0), Position(0))
    step.process([MemoryRecord(topic, value, offset=i) for i, value in enumerate(accepted)], out)
    assert len(out.records) == len(accepted), "an event has no vector"
    # Not as the scorer reads them, which takes no number beyond those that the validator accepts.
    return [Records(pipeline).features.record(r.value() or b"", HEADER) for r in out.of(f"{pipeline.name}.features")]


OVER_DISTANCE: dict[str, Callable[[], list[aggregates.Aggregate]]] = {
    "decayed_mean": lambda: aggregates.decayed_mean("distance", "30s", "1h"),
    "quantile": lambda: [a for q in (0, 0.5, 1) for a in aggregates.quantile("distance", q, "1h")],
    "ratio": lambda: aggregates.ratio(aggregates.sum("distance", "1h"), aggregates.first("distance", "1h")),
    "shrunk_mean": lambda: aggregates.shrunk_mean("distance", -1e300, 1e300, "1h"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [k for k in aggregates.__all__ if k not in ("count", "rate", "time_since_last")])
def test_no_finite_value_stops_the_featurizer_or_makes_a_feature_that_is_not(kind: str) -> None:
    keep = OVER_DISTANCE[kind]() if kind in OVER_DISTANCE else getattr(aggregates, kind)("distance", "1h")
    view = View("origin", every="1m", aggregates=[keep])
    pipeline = small.make(views=[view])
    values = [1e308, -1e308, 1e200, -1e200, 5e-324, 1.7976931348623157e308, -1.7976931348623157e308, 0.0]
    events = [small.event(f"e{i}", i * 40_000, distance=v) for i, v in enumerate(values * 2)]
    for found in featurized(*(RECORDS.event.encode(e) for e in events), pipeline=pipeline):
        assert all(v is None or math.isfinite(v) for v in found["vector"].values())


@pytest.mark.slow
def test_whatever_the_validator_accepts_gets_a_vector() -> None:
    rng, accepted = random.Random(3), []
    whole = RECORDS.event.encode(small.event(dep_delay=3.5, tailnum="N1"))
    for _ in range(1_500):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(HEADER, len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        record, _ = one(PIPELINE, bytes(data))
        if record.topic() == "small.events.valid":
            accepted.append(record.value() or b"")
        else:
            assert record.value() == bytes(data)
    assert len(accepted) > 150
    assert len(featurized(*accepted)) == len(accepted)


# Types that the demo's schemas do not have.


@pytest.fixture
def other_types(tmp_path: Path) -> Pipeline:
    fields = [
        {"name": "id", "type": "string"},
        {"name": "at", "type": "long"},
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["A", "B"]}},
        {"name": "maybe", "type": ["null", "Kind"], "default": None},
        {"name": "short", "type": "float"},
    ]
    (tmp_path / "e.avsc").write_text(json.dumps({"type": "record", "name": "E", "fields": fields}))
    events = Stream(str(tmp_path / "e.avsc"), id="id", time="at", key="id")
    return small.make(events=events, rules=[], views=[], request={"short": number("short")})


@pytest.mark.parametrize(
    "wrong",
    [{"kind": "Z"}, {"maybe": "Z"}, {"short": 1e300}, {"short": -1e39}, {"short": 1e400}, {"kind": 1}, {"kind": ["A"]}],
    ids=str,
)  # fmt: skip
def test_json_that_does_not_fit_an_enum_or_a_float_is_a_dead_letter(
    other_types: Pipeline, wrong: dict[str, Any]
) -> None:
    good = {"id": "a", "at": 1_700_000_000_000, "kind": "A", "short": 1.5}
    assert one(other_types, small.as_json(good))[0].topic() == "small.events.valid"
    assert reason(small.as_json({**good, **wrong}), other_types)


def test_json_is_taken_for_what_its_avro_says(other_types: Pipeline) -> None:
    """What was checked is what goes on: a float is checked as it will be read again."""
    codec = Records(other_types).event
    record, data = Decoder(codec).decode(small.as_json({"id": "a", "at": 1_700_000_000_000, "kind": "A", "short": 0.1}))
    assert codec.decode(data) == record


def test_one_of_over_a_field_that_cannot_be_hashed_does_not_stop_the_validator(tmp_path: Path) -> None:
    fields = [
        {"name": "id", "type": "string"},
        {"name": "at", "type": "long"},
        {"name": "tags", "type": {"type": "array", "items": "string"}},
    ]
    (tmp_path / "e.avsc").write_text(json.dumps({"type": "record", "name": "E", "fields": fields}))
    events = Stream(str(tmp_path / "e.avsc"), id="id", time="at", key="id")
    try:
        pipeline = small.make(events=events, rules=[rules.one_of("tags", ["a"])], views=[], request={"id": "id"})
    except DeclarationError:
        return  # to refuse the declaration is as good
    assert reason(Records(pipeline).event.encode({"id": "a", "at": 1_700_000_000_000, "tags": ["a"]}), pipeline)


def test_a_decoder_raises_nothing_but_reject() -> None:
    decoder = Decoder(RECORDS.event)
    for raw in ('"\\udfff"', "1" + "0" * 400, "NaN", "-Infinity", "null", "[]", "{}", '""', "1e999", "-0"):
        for field in EVENT:
            with contextlib.suppress(Reject):
                decoder.decode(json_with(field, raw))
