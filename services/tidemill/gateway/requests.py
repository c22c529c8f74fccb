"""What a request brings beside its records: its body within limits, its ids, and how much its key may still send."""

from __future__ import annotations

import json
import math
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect

from tidemill.gateway import cloudevents
from tidemill.limits import GATEWAY_BODIES_BYTES, GATEWAY_BODY_BYTES, GATEWAY_HEADER_CHARACTERS, MESSAGE_BYTES
from tidemill.stream.api import Headers
from tidemill.stream.trace import TRACEPARENT, TRACESTATE, trace_headers
from tidemill.web.access import GONE, request_id

#: Idempotency keys remembered, with what they came with.
MAX_KEYS = 10_000
IDEMPOTENCY_KEY = "idempotency-key"


@dataclass(frozen=True, slots=True)
class Call:
    """A request's own id, and its place in a trace (W3C): the caller's trace goes on, or one begins."""

    request_id: str
    trace: Headers
    #: Called with the answer's status.
    end: Callable[[int], None]
    #: Whether its records are CloudEvents.
    is_cloud_event: bool = False

    @classmethod
    def of(cls, request: Request, route: str) -> Call:
        """Return what the headers say; what they lack, or have malformed, is made here."""
        # Two parents are none; a state may come in parts.
        lists = {name: ",".join(request.headers.getlist(name)).encode("latin-1") for name in (TRACEPARENT, TRACESTATE)}
        trace, end = request.app.state.parts.traces.request(trace_headers(lists), request.method, route)
        return cls(request_id(request), trace, end, cloudevents.is_one(request))

    @property
    def trace_id(self) -> str:
        """The trace's id, in hex."""
        return self.trace[0][1].decode()[3:35]

    def kafka_headers(self) -> Headers:
        """Return the headers of what is sent for it."""
        return [*self.trace, ("tidemill.request_id", self.request_id.encode())]

    def http_headers(self) -> dict[str, str]:
        """Return the headers of its answer."""
        return {"X-Request-Id": self.request_id, TRACEPARENT: self.trace[0][1].decode()}


async def chunks(request: Request) -> AsyncIterator[bytes]:
    """Yield a body as it comes, and count it for as long as its request lasts.

    Raises HTTPException where it is packed, where it is larger than allowed, as soon as that is known, or all bodies in
    sum are, and where its sender is gone before its end.
    """
    if (packed := request.headers.get("content-encoding", "identity").lower()) != "identity":
        detail = f"Content-Encoding is {packed[:100]!r} where a body as it is was expected: send it unpacked"
        raise HTTPException(415, detail, {"Accept-Encoding": "identity"})
    gateway, size, length = request.app.state.parts, 0, request.headers.get("content-length", "0")
    declared = int(length) if length.isascii() and length.isdigit() and len(length) < 19 else 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            request.state.body_bytes += len(chunk)
            gateway.body_bytes += len(chunk)
            if max(size, declared) > GATEWAY_BODY_BYTES.max:
                raise HTTPException(413, GATEWAY_BODY_BYTES.excess(max(size, declared)))
            if gateway.body_bytes > GATEWAY_BODIES_BYTES.max:
                raise HTTPException(503, GATEWAY_BODIES_BYTES.excess(gateway.body_bytes), {"Retry-After": "1"})
            yield chunk
    except ClientDisconnect:
        raise HTTPException(GONE, "the body ends before its length: who sent it is gone") from None


async def body_of(request: Request) -> bytes:
    """Return a body once all of it is here. Raises HTTPException as `chunks`."""
    return b"".join([chunk async for chunk in chunks(request)])


async def lines(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the lines of a body's parts as they come, without empty ones.

    One that is too large for a message is cut to what is too large all the same: it alone is refused.
    """
    line = bytearray()
    async for chunk in parts:
        first, *further = chunk.split(b"\n")
        line += first[: MESSAGE_BYTES.max + 1 - len(line)]
        for part in further:
            if line.strip():
                yield bytes(line)
            line = bytearray(part)
    if line.strip():
        yield bytes(line)


class Rates:
    """How many records each key may still send: so many a second, and as many at once."""

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_second, self.clock = per_second, clock
        self._allowed: dict[str, tuple[float, float]] = {}

    def take(self, name: str, records: int, *, may_overdraw: bool = False) -> None:
        """Count records of a key. Raises HTTPException 429 while it has none left; a request that began goes on."""
        if not self.per_second:
            return
        allowed, at = self._allowed.get(name, (self.per_second, now := self.clock()))
        now = self.clock()
        allowed = min(max(self.per_second, 1.0), allowed + (now - at) * self.per_second)
        if allowed <= 0 and not may_overdraw:
            wait = math.ceil((1 - allowed) / self.per_second)
            detail = f"{name} may send {self.per_second:g} records a second: try again in {wait} s"
            raise HTTPException(429, detail, {"Retry-After": str(wait)})
        self._allowed[name] = allowed - records, now


class IdempotencyKeys:
    """What came with which Idempotency-Key, so that a key stands for one body alone.

    That a repetition has no second effect is not its work: an event's own id sees to that.
    """

    def __init__(self) -> None:
        self._bodies: OrderedDict[tuple[str, str], int] = OrderedDict()

    def check(self, name: str, request: Request, body: bytes) -> None:
        """Raise HTTPException 409 where a holder's key came with another body."""
        key = request.headers.get(IDEMPOTENCY_KEY)
        if key is None:
            return
        if not 0 < len(key) <= GATEWAY_HEADER_CHARACTERS.max:
            raise HTTPException(400, GATEWAY_HEADER_CHARACTERS.excess(len(key)) if key else "Idempotency-Key is empty")
        if self._bodies.setdefault((name, key), hash(body)) != hash(body):
            raise HTTPException(409, f"Idempotency-Key {json.dumps(key)} came with another body: choose a new one")
        if len(self._bodies) > MAX_KEYS:
            self._bodies.popitem(last=False)
