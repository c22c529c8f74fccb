"""Which trace headers go on: those that W3C's Trace Context takes, and no others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.stream.memory import MemoryRecord
from tidemill.stream.trace import TRACEPARENT, TRACESTATE, new_trace, trace_headers, trace_of

IDS = b"4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7"
PARENT = b"00-" + IDS + b"-01"


def of(*headers: tuple[str, bytes | None]) -> object:
    return trace_of(MemoryRecord("t", b"", None, 1, list(headers)))


@pytest.mark.parametrize("headers", [None, [], [("a", b"1")], [("Traceparent", PARENT)], [(TRACESTATE, b"a=1")]])
def test_most_records_have_none(headers: list | None) -> None:
    assert trace_of(MemoryRecord("t", b"", None, 1, headers)) is None


@pytest.mark.parametrize("before", [[], [("tidemill.origin", b"1")], [("a", None), ("b", b"")]])
def test_it_is_known_wherever_it_is_among_the_headers_and_nothing_else_goes_on(before: list) -> None:
    assert of(*before, (TRACEPARENT, PARENT), ("z", b"9")) == [(TRACEPARENT, PARENT)]


def test_a_state_goes_on_with_its_parent() -> None:
    state = b"congo=t61rcWkgMzE, 0a/b@sys*=a b ,,rojo=00f067aa0ba902b7"
    assert of((TRACESTATE, state), (TRACEPARENT, PARENT)) == [(TRACEPARENT, PARENT), (TRACESTATE, state)]


def test_of_several_the_last_counts_as_kafkas_clients_read_them() -> None:
    other = b"00-" + IDS[::-1].replace(b"-", b"")[:32] + b"-00f067aa0ba902b7-00"
    assert of((TRACEPARENT, PARENT), (TRACEPARENT, other)) == [(TRACEPARENT, other)]
    assert of((TRACEPARENT, PARENT), (TRACEPARENT, b"?")) is None


@pytest.mark.parametrize(
    "parent",
    [
        None, b"", b"00", PARENT[:-1], PARENT + b"0", PARENT + b"-", PARENT + b"-00", PARENT.upper(), b" " + PARENT, PARENT + b"\n",
        b"ff-" + IDS + b"-01", b"0g-" + IDS + b"-01", b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01",
        b"00-4bf92f3577b34da6a3ce929d0e0e4736-" + b"0" * 16 + b"-01", b"01-" + IDS + b"-01" + b"x", b"01-" + IDS + b"-01-" + b"x" * 201,
        "00-４bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".encode(),
    ],
)  # fmt: skip
def test_a_malformed_parent_goes_no_further_nor_its_state(parent: bytes | None) -> None:
    assert of((TRACEPARENT, parent), (TRACESTATE, b"a=1")) is None


@pytest.mark.parametrize("more", [b"", b"-what-is-to-come"])
def test_of_a_later_version_goes_on_what_is_known_of_it(more: bytes) -> None:
    assert of((TRACEPARENT, b"cc-" + IDS + b"-ff" + more)) == [(TRACEPARENT, b"00-" + IDS + b"-01")]


@pytest.mark.parametrize(
    "state",
    [
        None, b"", b" ", b",", b"a", b"a=", b"=1", b"A=1", b"a=1;b=2,c", b"a=1,a=2", b"a=1\n", b"a=1,\x00", b"a=\xc3\xa9", b"a=1=2",
        b"a@=1", b"a@b@c=1", b"a=" + b"1" * 511, b",".join(b"k%d=1" % n for n in range(33)), b"k" * 257 + b"=1",
    ],
)  # fmt: skip
def test_a_malformed_or_long_state_is_left_out(state: bytes | None) -> None:
    assert of((TRACEPARENT, PARENT), (TRACESTATE, state)) == [(TRACEPARENT, PARENT)]


@pytest.mark.slow
@given(
    st.binary(max_size=700) | st.from_regex(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", fullmatch=True),
    st.binary(max_size=700),
)
def test_whatever_comes_what_goes_on_is_bounded_and_taken_again(parent: bytes, state: bytes) -> None:
    carried = trace_headers({TRACEPARENT: parent, TRACESTATE: state})
    if carried is not None:
        assert sum(len(value) for _, value in carried) <= 55 + 512
        assert trace_headers(dict(carried)) == carried


def test_a_trace_that_begins_is_one_of_its_own_that_nobody_records() -> None:
    one, other = new_trace(), new_trace()
    assert one != other
    assert trace_headers(dict(one)) == one
    assert one[0][1].endswith(b"-00")
