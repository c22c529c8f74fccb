"""Which trace a record belongs to (W3C Trace Context): the headers that go on with every record that comes of it.

A producer or a gateway begins a trace, and gives its records a `traceparent`, perhaps with a `tracestate`. Both are
others' bytes: what is malformed or too long goes no further, and a trace without it goes on.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tidemill.errors import Reject
    from tidemill.stream.api import Headers, Record

TRACEPARENT, TRACESTATE = "traceparent", "tracestate"
#: What a tracestate may have; W3C asks for as many at least.
MAX_STATE_BYTES, MAX_STATE_MEMBERS = 512, 32
#: Versions after 00 may have more behind their flags, of which only the first is known here. ff is none.
_PARENT = re.compile(rb"(?!ff)([0-9a-f]{2})-((?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16})-([0-9a-f]{2})(-.{0,200})?")
_MEMBER = re.compile(
    rb"[ \t]*(?:([a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})"
    rb"=([\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e])[ \t]*)?"
)


class Traces:
    """How a service carries traces on. This one makes no spans; `Spans` does.

    What is made of a batch is `committed` or `dropped`. Steps ask only for records that are live: a rebuild is no hop.
    """

    def begin(self) -> None:
        """A batch begins."""

    def of(self, record: Record) -> Headers | None:
        """Return the headers of the trace that go on with what is made of a record; None where it has none."""
        return trace_of(record)

    def span(self, trace: Headers, record: Record, other: Headers | None = None) -> Headers:
        """Return the headers that go on of a trace, and of a record that may be another's: `other` is its trace."""
        del record, other
        return trace

    def took(self, records: Sequence[Record]) -> None:
        """Records were handled of which nothing is made for which a trace would go on."""

    def refused(self, record: Record, reject: Reject) -> None:
        """A record becomes a dead letter."""

    def committed(self) -> None:
        """What was handled is committed."""

    def dropped(self) -> None:
        """What was handled since the last commit is handled again."""

    def request(self, trace: Headers | None, method: str, route: str) -> tuple[Headers, Callable[[int], None]]:
        """Return the trace of a request, which goes on or begins, and what is called with the answer's status."""
        del method, route
        return trace or new_trace(), lambda _: None


def trace_of(record: Record) -> Headers | None:
    """Return the headers of a record's trace, as they go on; None where it has none, as most."""
    headers = record.headers()
    if headers:
        for name, _ in headers:
            if name == TRACEPARENT:
                return trace_headers(dict(headers))  # as Kafka's clients read them: of several the last
    return None


def trace_headers(given: Mapping[str, bytes | None]) -> Headers | None:
    """Return the headers of the trace that headers by their names say; None where they say none."""
    parent = _parent(given.get(TRACEPARENT) or b"")
    if parent is None:
        return None
    state = given.get(TRACESTATE) or b""
    return [(TRACEPARENT, parent), (TRACESTATE, state)] if _is_state(state) else [(TRACEPARENT, parent)]


def is_sampled(trace: Headers) -> bool:
    """Whether whoever began a trace may have recorded it."""
    return int(trace[0][1][-2:], 16) & 1 == 1


def new_trace() -> Headers:
    """Return the headers of a trace that begins here, and that nobody records."""
    ids = secrets.token_hex(24)  # one call of the system for both
    return [(TRACEPARENT, f"00-{ids[:32]}-{ids[32:]}-00".encode())]


def _parent(value: bytes) -> bytes | None:
    """Return a traceparent of the version known here; None where it is malformed."""
    match = _PARENT.fullmatch(value)
    if match is None:
        return None
    version, ids, flags, more = match.groups()
    if version == b"00":
        return None if more else value
    return b"00-%b-%02x" % (ids, int(flags, 16) & 1)


def _is_state(value: bytes) -> bool:
    if not 0 < len(value) <= MAX_STATE_BYTES:
        return False
    members = [_MEMBER.fullmatch(member) for member in value.split(b",")]
    keys = [member[1] for member in members if member and member[1]]
    return all(members) and 0 < len(keys) == len(set(keys)) and len(members) <= MAX_STATE_MEMBERS
