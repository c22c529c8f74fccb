"""Every message ends in exactly one place, and a rejected one says why, with its bytes untouched."""

from __future__ import annotations

import contextlib
import json
import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill import limits, load
from tidemill.encoding.codec import HEADER
from tidemill.errors import Reject
from tidemill.stages.validator.decode import Decoder
from tidemill.stages.validator.service import Validator
from tidemill.stream.memory import MemoryRecord
from tidemill.wire import topics
from tidemill.wire.dead_letters import MAX_VALUE_CHARACTERS
from tidemill.wire.records import Records

PIPELINE = load("flights")
RECORDS = Records(PIPELINE)
EVENTS, LABELS = topics.EVENTS.name(PIPELINE.name), topics.LABELS.name(PIPELINE.name)
EVENT = {
    "flight_id": "UA1-EWR", "asked_at": 1_357_035_300_000, "carrier": "UA", "flight": 1545, "tailnum": "N14228", "origin": "EWR",
    "dest": "IAH", "distance": 1400.0, "sched_hour": 5, "flight_date": 15_706, "sched_minutes": 227.0, "dep_delay": None,
    "temp": 39.0, "dewp": 28.0, "wind_speed": 12.6, "precip": 0.0, "visib": 10.0,
}  # fmt: skip
LABEL = {"flight_id": "UA1-EWR", "landed_at": 1_357_050_000_000, "arr_delay": 11.0}
VALID = RECORDS.event.encode(EVENT)


def validate(*messages: bytes | None, topic: str = EVENTS) -> list[tuple[str, bytes, bytes | None, dict[str, str]]]:
    out = []

    def emit(to, value, key=None, timestamp=0, headers=None, partition=-1) -> None:
        out.append((to.partition(".")[2], value, key, {name: data.decode() for name, data in headers or []}))

    records = [MemoryRecord(topic, m, b"key", 77, [("trace", b"t-1")], 3, n) for n, m in enumerate(messages)]
    Validator(PIPELINE).process(records, emit)
    return out


def as_json(**changes: object) -> bytes:
    return json.dumps({**EVENT, **changes}).encode()


def rejected(message: bytes | None, topic: str = EVENTS) -> dict[str, str]:
    ((to, value, key, headers),) = validate(message, topic=topic)
    assert to == "dlq", f"accepted as {to}"
    assert value == (message or b"")
    assert key == b"key"
    return headers


def test_a_good_event_goes_on_untouched_keyed_by_its_entity() -> None:
    assert validate(VALID) == [("events.valid", VALID, b"EWR", {})]


def test_a_good_label_goes_on_keyed_by_its_event() -> None:
    data = RECORDS.label.encode(LABEL)
    assert validate(data, topic=LABELS) == [("labels.valid", data, b"UA1-EWR", {})]


def test_json_becomes_the_same_avro() -> None:
    assert validate(as_json()) == [("events.valid", VALID, b"EWR", {})]
    assert validate(as_json(distance=1400)) == [("events.valid", VALID, b"EWR", {})], "an int is a legal double"


@pytest.mark.parametrize(
    ("message", "reason", "field", "value"),
    [
        (None, "empty", "", ""),
        (b"", "empty", "", ""),
        (b"\x01" + VALID[1:], "bad_magic", "", "0x01"),
        (VALID[:3], "truncated", "", ""),
        (VALID[:60], "truncated", "", ""),
        (b"\0" + (123).to_bytes(4, "big") + VALID[HEADER:], "unknown_schema", "", "123"),
        (VALID + b"\0", "trailing_bytes", "", ""),
        (b"\0" * (limits.MESSAGE_BYTES.max + 1), "too_large", "", ""),
        (b"{" * 100_000, "not_json", "", ""),
        (b'{"a":', "not_json", "", ""),
        (as_json(flight=7.5), "wrong_type", "flight", "7.5"),
        (as_json(flight=7.0), "wrong_type", "flight", "7.0"),
        (as_json(flight=True), "wrong_type", "flight", "True"),
        (as_json(flight=2**31), "wrong_type", "flight", str(2**31)),
        (as_json(carrier=None), "wrong_type", "carrier", ""),
        (as_json(distance="far"), "wrong_type", "distance", "far"),
        (as_json(colour="red"), "unexpected_field", "colour", "red"),
        (json.dumps({k: v for k, v in EVENT.items() if k != "carrier"}).encode(), "missing_field", "carrier", ""),
        (as_json(temp=math.nan), "not_finite", "temp", "nan"),
        (as_json(distance=math.inf), "not_finite", "distance", "inf"),
        (RECORDS.event.encode({**EVENT, "temp": math.nan}), "not_finite", "temp", "nan"),
        (RECORDS.event.encode({**EVENT, "distance": -math.inf}), "not_finite", "distance", "-inf"),
        (RECORDS.event.encode({**EVENT, "sched_hour": 77}), "out_of_range", "sched_hour", "77"),
        (RECORDS.event.encode({**EVENT, "carrier": "ZZ"}), "not_allowed", "carrier", "ZZ"),
        (RECORDS.event.encode({**EVENT, "asked_at": 2**53}), "in_the_future", "asked_at", str(2**53)),
        (RECORDS.event.encode({**EVENT, "flight_id": ""}), "missing_value", "flight_id", ""),
    ],
)  # fmt: skip
def test_a_bad_event_is_rejected_with_its_reason(message: bytes | None, reason: str, field: str, value: str) -> None:
    headers = rejected(message)
    assert (headers["tidemill.reason"], headers["tidemill.field"], headers["tidemill.value"]) == (reason, field, value)
    assert headers["__connect.errors.topic"] == EVENTS
    assert (headers["__connect.errors.partition"], headers["__connect.errors.offset"]) == ("3", "0")
    assert headers["__connect.errors.exception.message"]
    assert headers["trace"] == "t-1", "the producer's own headers are kept"


def test_the_message_of_a_range_names_field_value_and_expectation() -> None:
    headers = rejected(RECORDS.event.encode({**EVENT, "sched_hour": 77}))
    assert headers["__connect.errors.exception.message"] == "field 'sched_hour' is 77 where 0 to 23 was expected"
    assert headers["tidemill.rule"] == "between"


def test_a_label_out_of_range_is_rejected() -> None:
    headers = rejected(RECORDS.label.encode({**LABEL, "arr_delay": 99_999.0}), topic=LABELS)
    assert headers["tidemill.reason"] == "out_of_range"


def test_a_long_value_is_cut_in_the_header_and_whole_in_the_bytes() -> None:
    message = RECORDS.event.encode({**EVENT, "carrier": "Z" * 5000})
    assert len(rejected(message)["tidemill.value"]) == MAX_VALUE_CHARACTERS


@pytest.mark.slow
def test_every_truncation_is_rejected_as_such() -> None:
    for length in range(1, len(VALID)):
        assert rejected(VALID[:length])["tidemill.reason"] == "truncated"


@pytest.mark.slow
def test_three_thousand_mutants_each_end_in_one_place_byte_for_byte() -> None:
    rng, mutants = random.Random(11), []
    for _ in range(3000):
        data = bytearray(rng.choice((VALID, as_json(), RECORDS.label.encode(LABEL))))
        for _ in range(rng.randint(1, 4)):
            kind = rng.randrange(4)
            place = rng.randrange(len(data)) if data else 0
            if kind == 0 and data:
                data[place] ^= 1 << rng.randrange(8)
            elif kind == 1:
                del data[place:]
            elif kind == 2:
                data[place:place] = rng.randbytes(rng.randint(1, 9))
            else:
                data += rng.randbytes(3)
        mutants.append(bytes(data))
    mixed = [m for mutant in mutants for m in (mutant, VALID)]
    out = validate(*mixed)
    assert len(out) == len(mixed)
    good = iter(out)
    for message in mixed:
        to, value, _, headers = next(good)
        assert to in ("dlq", "events.valid")
        if to == "dlq":
            assert value == message
            assert headers["tidemill.reason"]
        elif message[:1] == b"\0":
            assert value == message
    reasons = Counter(headers["tidemill.reason"] for to, _, _, headers in out if to == "dlq")
    assert len(reasons) >= 8
    assert sum(to == "events.valid" for to, *_ in out) >= len(mutants)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_decoded_or_rejected_and_nothing_else(data: bytes) -> None:
    with contextlib.suppress(Reject):
        Decoder(RECORDS.event).decode(data)
