"""When a producer sent its record: carried from the validator to the last topic, replaced where no clock says so."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest
import small
from river_in_memory import River, drive

from tidemill import rules
from tidemill.errors import Reject
from tidemill.stages.featurizer import service as featurizer
from tidemill.stages.validator.service import Validator
from tidemill.stages.validator.service import build as validator
from tidemill.stream.api import Position, TopicPartition, discard
from tidemill.stream.memory import MemoryRecord
from tidemill.stream.origin import IMPLAUSIBLE, ORIGIN, origin_of
from tidemill.wire import topics
from tidemill.wire.dead_letters import producer_headers, read_dead_letter, send_dead_letter
from tidemill.wire.records import Records

NOW = 1_700_000_000_000
HOUR, DAY = 3_600_000, 86_400_000
PIPELINE = small.make()
RECORDS = Records(PIPELINE)


def validate(timestamp: int, headers: list | None = None, value: bytes | None = None) -> MemoryRecord:
    """Return what the validator makes of one event."""
    out = small.Emitted()
    step = Validator(PIPELINE, clock=lambda: NOW / 1000)
    event = RECORDS.event.encode(small.event("a", 1_357_000_000_000)) if value is None else value
    step.process([MemoryRecord("small.events", event, b"k", timestamp, headers)], out)
    (record,) = out.records
    return record


@pytest.mark.parametrize("timestamp", [1, 1_357_000_000_000, NOW - 1, NOW, NOW + HOUR])
def test_a_timestamp_that_a_clock_may_have_is_the_origin(timestamp: int) -> None:
    record = validate(timestamp)
    assert record.timestamp()[1] == timestamp
    assert IMPLAUSIBLE not in dict(record.headers() or [])


@pytest.mark.parametrize("timestamp", [-1, -5000, -(2**63), NOW + HOUR + 1, NOW + DAY, 253_402_300_799_000, 2**63 - 1])
@pytest.mark.parametrize("value", [None, b"poison"])
def test_any_other_is_replaced_and_marked(timestamp: int, value: bytes | None) -> None:
    record = validate(timestamp, None, value)
    if value is None:
        assert record.timestamp()[1] == NOW
        assert dict(record.headers())[IMPLAUSIBLE] == str(timestamp).encode()
    else:
        assert 0 < record.timestamp()[1] < 253_402_300_799_000, "a broker takes it"
        assert dict(record.headers())["tidemill.timestamp"] == str(timestamp).encode()


@pytest.mark.parametrize("value", [None, b"poison"])
def test_a_producers_own_header_of_that_name_is_not_believed(value: bytes | None) -> None:
    forged = [(ORIGIN, b"7"), ("trace", b"t")]
    record = validate(NOW - 5, forged, value)
    assert record.timestamp()[1] == NOW - 5
    if value is not None:
        carried = MemoryRecord("small.dlq", b"", None, NOW, [(ORIGIN, b"%d" % (NOW - 5)), *record.headers()])
        assert read_dead_letter(carried).sent_at == NOW - 5
        assert producer_headers(carried) == forged


def test_a_letter_of_a_later_service_has_the_origin_and_not_its_header() -> None:
    out = small.Emitted()
    valid = MemoryRecord("small.events.valid", b"v", b"k", NOW, [(ORIGIN, b"1357000000000"), ("x", b"1")])
    send_dead_letter(valid, Reject("too_large", "it is"), out, "small.dlq", "featurizer")
    (letter,) = out.records
    assert letter.timestamp()[1] == 1_357_000_000_000
    assert dict(letter.headers())["tidemill.timestamp"] == b"1357000000000"
    assert [name for name, _ in letter.headers()[:1]] == ["x"]


def test_it_is_carried_to_the_vector() -> None:
    river = River(PIPELINE)
    river.event(small.event("a", 1_357_000_000_000), 1_357_000_000_123)
    drive(validator(PIPELINE), river.broker)
    drive(featurizer.build(PIPELINE, {}), river.broker)
    for topic in (topics.EVENTS_VALID, topics.FEATURES):
        (record,) = river.of(topic)
        assert origin_of(record) == 1_357_000_000_123
        assert record.timestamp()[1] > NOW - 10 * 365 * DAY, "it is kept by when it was written"


def test_old_timestamps_are_counted_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    step = Validator(PIPELINE, clock=lambda: NOW / 1000)
    records = [
        MemoryRecord(
            "small.events", RECORDS.event.encode(small.event(f"e{n}", 1_357_000_000_000)), b"k", at, None, 0, n
        )
        for n, at in enumerate((NOW - 8 * DAY, NOW - 6 * DAY, 1, NOW))
    ]
    with caplog.at_level(logging.WARNING):
        step.process(records, small.Emitted())
    assert step.counts["old_timestamps", "small.events"] == 2
    assert [record.timestamp for record in caplog.records] == [NOW - 8 * DAY]


@pytest.mark.parametrize("timestamp", [-1, -5000, NOW + DAY, NOW])
def test_what_a_rule_remembers_is_rebuilt_whatever_the_timestamp(timestamp: int) -> None:
    pipeline = small.make(rules=[rules.unique("flight_id", within="1h")])

    def record(offset: int) -> MemoryRecord:
        event = RECORDS.event.encode(small.event("a", NOW - 1000))
        return MemoryRecord("small.events", event, b"k", timestamp, None, 0, offset)

    def letters(steps: Sequence[Validator]) -> list[int]:
        out = small.Emitted()
        for step in steps:
            step.process([record(1)], out)
        return [len(out.of(topic)) for topic in ("small.events.valid", "small.dlq")]

    went_on, rebuilt = (Validator(pipeline, clock=lambda: NOW / 1000) for _ in range(2))
    for step, emit in ((went_on, small.Emitted()), (rebuilt, discard)):
        step.assign(TopicPartition("small.events", 0), Position(0))
        step.process([record(0)], emit)
    assert letters([went_on]) == letters([rebuilt]) == [0, 1]
