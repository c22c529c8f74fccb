"""The HTTP server of a service: `/livez`, `/readyz` and `/metrics`, whatever other connections do.

Each connection has a thread, one request, and a few seconds. There are so many connections at once; a further one takes
the place of the oldest of those that have not sent their request yet. So whoever opens connections and sends nothing,
or a byte a second, holds up nobody but himself.
"""

from __future__ import annotations

import contextlib
import io
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from socketserver import ThreadingMixIn
from types import MappingProxyType
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import REGISTRY, CollectorRegistry, Metric, make_wsgi_app
from prometheus_client.registry import Collector

from tidemill.errors import SettingsError
from tidemill.limits import PROBE_CONNECTIONS, PROBE_HEAD_BYTES, PROBE_SECONDS

log = logging.getLogger(__name__)


class Health:
    """What `/livez` and `/readyz` ask: `alive` and `ready` return None when well, else what is wrong."""

    def alive(self) -> str | None: ...
    def ready(self) -> str | None: ...


NO_MEMBERS: Mapping[str, Health] = MappingProxyType({})


class ProbeServer(ThreadingMixIn, WSGIServer):
    """Serves one request a connection, each in a thread; `serve_forever` also ends connections that take too long."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024  # a connection that finds the queue full tries again only after a second

    def __init__(self, address: tuple[str, int], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._open: dict[socket.socket, float] = {}  # the oldest first
        self._answering: set[socket.socket] = set()
        super().__init__(address, _Handler)

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._open)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            if len(self._open) >= PROBE_CONNECTIONS.max:
                self._drop(next((one for one in self._open if one not in self._answering), next(iter(self._open))))
            self._open[request] = self._clock()
        super().process_request(request, client_address)

    def answers(self, request: socket.socket) -> None:
        """Note that a connection has sent its request."""
        with self._lock:
            self._answering.add(request)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
            self._answering.discard(request)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """End the connections that have had their time; called twice a second."""
        with self._lock:
            latest = self._clock() - PROBE_SECONDS.max
            for request in [request for request, since in self._open.items() if since < latest]:
                self._drop(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: a connection may end in any way."""

    def _drop(self, request: socket.socket) -> None:
        del self._open[request]
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)  # its thread reads the end, and closes it


class _Handler(WSGIRequestHandler):
    server: ProbeServer

    def handle(self) -> None:
        head = _head(self.connection)
        self.server.answers(self.connection)
        self.rfile = io.BytesIO(head)
        if len(head) > PROBE_HEAD_BYTES.max:
            self.requestline, self.request_version, self.command = "", "HTTP/1.0", "GET"
            self.send_error(431, explain=PROBE_HEAD_BYTES.excess(len(head)))
        elif head:
            super().handle()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


def _head(connection: socket.socket) -> bytes:
    """Return what comes up to the empty line after the headers; of more than its limit, one byte more."""
    head = b""
    while len(head) <= PROBE_HEAD_BYTES.max and b"\r\n\r\n" not in head and b"\n\n" not in head:
        more = connection.recv(PROBE_HEAD_BYTES.max + 1 - len(head))
        if not more:
            return b""
        head += more
    return head


class _Metrics(CollectorRegistry):
    """The process's metrics without those of other services than `name`."""

    def __init__(self, name: str, metrics: Collector = REGISTRY) -> None:
        super().__init__()
        self.name, self.metrics = name, metrics

    def restricted_registry(self, names: Iterable[str]) -> Any:
        return _Metrics(self.name, REGISTRY.restricted_registry(names))

    def collect(self) -> Iterator[Metric]:
        for family in self.metrics.collect():
            family.samples = [s for s in family.samples if s.labels.get("service", self.name) == self.name]
            yield family


#: Where services look for a free port, each on its own: that which Prometheus' exporters of OpenTelemetry have.
FREE_PORTS = range(9464, 9564)


def serve_on_a_free_port(health: Health, ports: Iterable[int] = FREE_PORTS) -> ProbeServer | None:
    """Serve for this machine alone on the first of these ports that is free; say so, and go on, where none is."""
    for port in ports:
        try:
            server = serve(port, health, address="127.0.0.1")
        except SettingsError:
            continue
        log.info("metrics and probes", extra={"port": port, "setting": "TIDEMILL_HTTP_PORT"})
        return server
    log.warning("no port is free for /metrics, /livez and /readyz: set TIDEMILL_HTTP_PORT", extra={"tried": str(ports)})
    return None


def serve(
    port: int,
    health: Health,
    members: Mapping[str, Health] = NO_MEMBERS,
    *,
    address: str = "0.0.0.0",  # noqa: S104
    tls: ssl.SSLContext | None = None,
) -> ProbeServer:
    """Serve `/metrics`, `/livez` and `/readyz` from a thread. Raises SettingsError where the port is taken.

    `address` is every one of this machine, for probes come from outside. `members` are the services of a process of
    several: what is asked below `/NAME` is answered for that one.
    """
    metrics: Mapping[str, Callable[..., list[bytes]]] = {
        "": make_wsgi_app(),
        **{name: make_wsgi_app(_Metrics(name)) for name in members},
    }
    one_at_a_time = threading.Lock()

    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        name, _, path = environ.get("PATH_INFO", "").removeprefix("/").rpartition("/")
        asked = members.get(name, health)
        probe = {"livez": asked.alive, "readyz": asked.ready}.get(path)
        if probe is None:
            with one_at_a_time:
                return metrics[name if name in members else ""](environ, start)
        wrong = probe()
        start("503 Service Unavailable" if wrong else "200 OK", [("Content-Type", "text/plain; charset=utf-8")])
        return [(wrong or "ok").encode() + b"\n"]

    try:
        server = ProbeServer((address, port))
    except OSError as error:
        raise SettingsError(
            f"http_port {port} can't be opened: {error.strerror}; "
            f"stop what uses it or set TIDEMILL_HTTP_PORT to another"
        ) from error
    if tls is not None:  # whoever connects shakes hands in a thread of his own
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.set_app(answer)
    threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
    return server
