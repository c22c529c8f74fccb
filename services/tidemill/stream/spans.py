"""Spans of OpenTelemetry: one a hop for each record of a sampled trace; needs the extra `otel`.

A hop's span begins with its batch and ends when that is committed: that long a record waits for the hop. What was not
committed leaves no span, as it leaves no record.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, Tracer, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from tidemill.errors import Reject
from tidemill.stream.api import Headers, Record
from tidemill.stream.trace import Traces, is_sampled, trace_headers, trace_of

_HOPS = {
    "validator": "validate",
    "featurizer": "featurize",
    "materializer": "materialize",
    "scorer": "score",
    "joiner": "join",
    "learner": "learn",
}
#: Spans of one service that wait for a commit; of more records the trace goes on without one of this hop.
MAX_OPEN_SPANS = 10_000

_W3C = TraceContextTextMapPropagator()


class Spans(Traces):
    """Carries traces on with a span of this hop.

    Parameters
    ----------
    service
        Its name; a learner's has its model's after a hyphen.
    """

    def __init__(self, tracer: Tracer, service: str) -> None:
        self._tracer = tracer
        name, _, model = service.partition("-")
        self._hop = _HOPS.get(name, name)
        self._attributes = {"messaging.system": "kafka", "messaging.operation.name": self._hop}
        if model:
            self._attributes["tidemill.model"] = model
        self._open: list[Span] = []
        self._last: tuple[Record | None, Span | None] = None, None
        self._began = time.time_ns()

    def begin(self) -> None:
        self._began, self._last = time.time_ns(), (None, None)

    def of(self, record: Record) -> Headers | None:
        trace = trace_of(record)
        return self.span(trace, record) if trace else None

    def span(self, trace: Headers, record: Record, other: Headers | None = None) -> Headers:
        if not is_sampled(trace) or len(self._open) >= MAX_OPEN_SPANS:
            return trace
        linked = get_current_span(_context(other)).get_span_context() if other and other != trace else None
        span = self._tracer.start_span(
            f"{self._hop} {record.topic()}",
            _context(trace),
            SpanKind.CONSUMER,
            {
                **self._attributes,
                "messaging.destination.name": record.topic(),
                "messaging.destination.partition.id": str(record.partition()),
                "messaging.kafka.offset": record.offset(),
            },
            [Link(linked)] if linked else None,
            self._began,
        )
        self._open.append(span)
        self._last = record, span
        return _headers(span) or trace

    def took(self, records: Sequence[Record]) -> None:
        for record in records:
            self.of(record)

    def refused(self, record: Record, reject: Reject) -> None:
        if self._last[0] is not record:
            self.of(record)
        last, span = self._last
        if span is not None and last is record:
            span.set_status(Status(StatusCode.ERROR, reject.reason))
            span.set_attribute("error.type", reject.reason)

    def committed(self) -> None:
        for span in self._open:
            span.end()
        self._open.clear()

    def dropped(self) -> None:
        self._open.clear()

    def request(self, trace: Headers | None, method: str, route: str) -> tuple[Headers, Callable[[int], None]]:
        attributes = {"http.request.method": method, "http.route": route}
        parent = _context(trace) if trace else Context()
        span = self._tracer.start_span(f"{method} {route}", parent, SpanKind.SERVER, attributes)

        def end(code: int) -> None:
            span.set_attribute("http.response.status_code", code)
            if code >= 500:
                span.set_status(Status(StatusCode.ERROR))
            span.end()

        return _headers(span) or trace or [], end


def _context(trace: Headers) -> Context:
    return _W3C.extract({name: value.decode() for name, value in trace}, Context())


def _headers(span: Span) -> Headers | None:
    carrier: dict[str, str] = {}
    _W3C.inject(carrier, set_span_in_context(span, Context()))
    return trace_headers({name: value.encode() for name, value in carrier.items()})
