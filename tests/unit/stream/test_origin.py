"""What services write is kept by when it was written, and knows when its producer sent it."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.stream.memory import MemoryBroker, MemoryRecord
from tidemill.stream.origin import MAX_AHEAD_MS, ORIGIN, origin_of, plausible, with_origin

NOW = 1_800_000_000_000


@pytest.mark.slow
@given(st.integers(1, 10**15), st.none() | st.just([("a", b"1"), ("b", None)]))
def test_the_origin_is_carried_before_all_other_headers(origin: int, headers: list | None) -> None:
    carried = with_origin(origin, headers)
    assert carried[1:] == (headers or [])
    assert origin_of(MemoryRecord("t", b"", None, NOW, carried)) == origin


@pytest.mark.parametrize("data", [None, b"", b"-1", b"1.5", b"\xb2", b"1" * 19, b" 1"])
def test_a_header_of_that_name_with_anything_else_is_nobodys_origin(data: bytes | None) -> None:
    assert origin_of(MemoryRecord("t", b"", None, NOW, [(ORIGIN, data)])) == NOW


@pytest.mark.parametrize("headers", [None, [], [("a", b"1"), (ORIGIN, b"7")]])
def test_without_an_origin_it_is_the_records_own_timestamp(headers: list | None) -> None:
    assert origin_of(MemoryRecord("t", b"", None, NOW, headers)) == NOW


@pytest.mark.parametrize("timestamp", [0, 1, 1_357_000_000_000, NOW, NOW + MAX_AHEAD_MS])
def test_what_a_clock_may_say_is_taken(timestamp: int) -> None:
    assert plausible(timestamp, NOW) == timestamp


@pytest.mark.parametrize("timestamp", [-1, -5000, NOW + MAX_AHEAD_MS + 1, 253_402_300_799_000, 2**63 - 1, -(2**63)])
def test_what_no_clock_says_is_now(timestamp: int) -> None:
    assert plausible(timestamp, NOW + 0.5) == NOW


def test_a_service_writes_now_and_a_producer_what_it_says() -> None:
    broker = MemoryBroker({"t": 1})
    broker.append("t", b"by a producer", None, 1234)
    producer = broker.producer("p")
    producer.emit("t", b"by a service", None, 1234)
    producer.emit("t", b"without", None)
    producer.commit({}, None)
    sent, carried, without = broker.records("t")
    assert (sent.timestamp()[1], origin_of(sent)) == (1234, 1234)
    assert abs(carried.timestamp()[1] - time.time() * 1000) < 600_000
    assert origin_of(carried) == 1234
    assert without.headers() is None
    assert origin_of(without) == without.timestamp()[1]
