"""A trace as the services' spans show it: which hop came of which."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Hop(NamedTuple):
    """One span; `links` are the traces that it names beside its own."""

    trace: str
    id: str
    parent: str
    name: str
    begin_ns: int
    end_ns: int
    service: str
    error: str = ""
    links: tuple[str, ...] = ()
    model: str = ""


def of_sdk(spans: Iterable) -> list[Hop]:
    """Return what the SDK's in-memory exporter has."""
    return [
        Hop(
            f"{span.context.trace_id:032x}",
            f"{span.context.span_id:016x}",
            f"{span.parent.span_id:016x}" if span.parent else "",
            span.name,
            span.start_time,
            span.end_time,
            span.resource.attributes["service.name"],
            span.status.description or "",
            tuple(f"{link.context.trace_id:032x}" for link in span.links),
            span.attributes.get("tidemill.model", ""),
        )
        for span in spans
    ]


def of_otlp(body: bytes) -> list[Hop]:
    """Return the spans of one request of the OTLP exporter."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    request = ExportTraceServiceRequest.FromString(body)
    return [
        Hop(
            span.trace_id.hex(),
            span.span_id.hex(),
            span.parent_span_id.hex(),
            span.name,
            span.start_time_unix_nano,
            span.end_time_unix_nano,
            next(a.value.string_value for a in resource.resource.attributes if a.key == "service.name"),
            span.status.message,
            tuple(link.trace_id.hex() for link in span.links),
            next((a.value.string_value for a in span.attributes if a.key == "tidemill.model"), ""),
        )
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def paths(hops: Iterable[Hop]) -> dict[str, str]:
    """Return, by the name of each span, the names from the first one to it."""
    hops = list(hops)
    by_id = {hop.id: hop for hop in hops}

    def path(hop: Hop) -> str:
        before = by_id.get(hop.parent)
        return f"{path(before)} > {hop.name}" if before else hop.name

    return {hop.name: path(hop) for hop in hops}


class Collector:
    """A collector that takes what services send by OTLP over HTTP; a context manager."""

    def __init__(self) -> None:
        self.hops: list[Hop] = []
        hops = self.hops

        class Takes(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                hops.extend(of_otlp(gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Takes)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Collector:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
