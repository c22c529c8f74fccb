"""A service's /livez, /readyz and /metrics answer, whatever other connections do; real sockets."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

import prometheus_client
import pytest

from tidemill import probes
from tidemill.limits import PROBE_CONNECTIONS, PROBE_HEAD_BYTES, PROBE_SECONDS

pytestmark = pytest.mark.slow


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Well(probes.Health):
    wrong: str | None = None

    def ready(self) -> str | None:
        return self.wrong


@pytest.fixture
def server() -> Iterator[probes.ProbeServer]:
    server = probes.serve(0, Well())
    server._clock = Clock()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def connect(server: probes.ProbeServer) -> Iterator[Callable[..., socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield lambda sent=b"": stack.enter_context(connected(server, sent))


def connected(server: probes.ProbeServer, sent: bytes = b"") -> socket.socket:
    one = socket.create_connection(("127.0.0.1", server.server_port), timeout=20)
    one.sendall(sent)
    return one


def probe(server: probes.ProbeServer, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def everything(one: socket.socket) -> bytes:
    """Return what comes until the other side closes; a reset is an end as well."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while more := one.recv(65_536):
            received += more
    return received


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_well(server: probes.ProbeServer) -> None:
    for _ in range(3):
        assert probe(server, "/livez") == (200, "ok\n")
        assert probe(server, "/readyz") == (200, "ok\n")
        assert "python_info" in probe(server, "/metrics")[1]


def test_a_service_of_several_is_asked_for_some_of_its_metrics() -> None:
    counter = prometheus_client.Counter("tidemill_probed", "of two services", ["service"])
    for service in ("one", "two"):
        counter.labels(service).inc()
    server = probes.serve(0, Well(), {"one": Well(), "two": Well()})
    try:
        everything_of_one = probe(server, "/one/metrics")[1]
        assert 'tidemill_probed_total{service="one"} 1.0' in everything_of_one
        assert 'service="two"' not in everything_of_one
        asked = probe(server, "/one/metrics?name[]=tidemill_probed_total&name[]=not_there")[1]
        assert [line for line in asked.splitlines() if line[0] != "#"] == ['tidemill_probed_total{service="one"} 1.0']
        both = probe(server, "/metrics?name[]=tidemill_probed_total")[1]
        assert len([line for line in both.splitlines() if line[0] != "#"]) == 2
    finally:
        server.shutdown()
        server.server_close()
        prometheus_client.REGISTRY.unregister(counter)


def test_a_service_that_is_not_well_says_why() -> None:
    health = Well()
    health.wrong = "no partitions yet"
    server = probes.serve(0, health)
    try:
        assert probe(server, "/readyz") == (503, "no partitions yet\n")
        assert probe(server, "/livez")[0] == 200
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "sent",
    [b"", b"G", b"GET /livez HTTP/1.1\r\n", b"GET /livez HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 5000],
    ids=["nothing", "a byte", "a line", "half a header"],
)
def test_500_connections_that_never_finish_their_request_leave_probes_and_bound_threads(
    server: probes.ProbeServer, connect: Callable[..., socket.socket], sent: bytes
) -> None:
    before = threading.active_count()
    senders = [connect(sent) for _ in range(500)]
    assert_well(server)
    for sender in senders[-20:]:  # one byte more each, and again
        sender.sendall(b"z")
    assert_well(server)
    until(lambda: threading.active_count() <= before + PROBE_CONNECTIONS.max)
    assert server.connections <= PROBE_CONNECTIONS.max


def test_as_many_connections_as_may_be_open_stay_and_one_more_closes_the_oldest(
    server: probes.ProbeServer, connect: Callable[..., socket.socket]
) -> None:
    open_ = [connect() for _ in range(PROBE_CONNECTIONS.max)]
    until(lambda: server.connections == PROBE_CONNECTIONS.max)
    connect()
    assert everything(open_[0]) == b""
    open_[1].sendall(b"GET /livez HTTP/1.1\r\n\r\n")
    assert everything(open_[1]).endswith(b"ok\n")


@pytest.mark.slow
def test_a_connection_that_has_sent_its_request_is_not_closed_for_a_new_one() -> None:
    answer, asked = threading.Event(), threading.Event()

    class Slow(probes.Health):
        def alive(self) -> str | None:
            asked.set()
            answer.wait(20)
            return None

    server = probes.serve(0, Slow())
    with contextlib.ExitStack() as stack:
        stack.callback(server.server_close)
        stack.callback(server.shutdown)
        slow = stack.enter_context(connected(server, b"GET /livez HTTP/1.1\r\n\r\n"))
        assert asked.wait(20)
        for _ in range(2 * PROBE_CONNECTIONS.max):
            stack.enter_context(connected(server))
        assert probe(server, "/readyz") == (200, "ok\n")
        answer.set()
        assert everything(slow).endswith(b"ok\n")


@pytest.mark.slow
@pytest.mark.parametrize("sent", [b"", b"GET /livez HT", b"GET /livez HTTP/1.1\r\nHost: x\r\n"])
def test_a_connection_is_closed_after_its_time_however_little_it_sends(
    server: probes.ProbeServer, connect: Callable[..., socket.socket], sent: bytes
) -> None:
    slow = connect(sent)
    until(lambda: server.connections == 1)
    server._clock.now = float(PROBE_SECONDS.max)  # type: ignore[attr-defined]
    server.service_actions()
    assert server.connections == 1
    slow.sendall(b"z")
    server._clock.now = PROBE_SECONDS.max + 0.001  # type: ignore[attr-defined]
    assert everything(slow) == b""
    assert_well(server)


def head(size: int) -> bytes:
    """Return a request whose line and headers have so many bytes."""
    start, end = b"GET /livez HTTP/1.1\r\n", b"\r\n\r\n"
    lines, rest = b"", size - len(start) - len(end)
    while rest > 6000:
        lines, rest = lines + b"A: " + b"x" * 4995 + b"\r\n", rest - 5000
    return start + lines + b"A: " + b"x" * (rest - 3) + end


def test_a_request_as_long_as_the_limit_is_answered_and_a_longer_one_refused(
    server: probes.ProbeServer, connect: Callable[..., socket.socket]
) -> None:
    assert len(head(PROBE_HEAD_BYTES.max)) == PROBE_HEAD_BYTES.max
    assert everything(connect(head(PROBE_HEAD_BYTES.max))).endswith(b"ok\n")
    refused = everything(connect(head(PROBE_HEAD_BYTES.max + 10)[: PROBE_HEAD_BYTES.max + 1])).decode()
    assert " 431 " in refused.partition("\n")[0]
    assert "has 16,385 bytes where at most 16,384 are allowed" in refused


def test_headers_without_end_are_not_kept(server: probes.ProbeServer, connect: Callable[..., socket.socket]) -> None:
    flood = connect(b"GET /livez HTTP/1.1\r\n")
    with contextlib.suppress(OSError):
        for _ in range(500):
            flood.sendall(b"A: " + b"x" * 10_000 + b"\r\n")
    until(lambda: server.connections == 0)
    assert_well(server)


def test_half_closed_and_reset_connections_end_and_print_nothing(
    server: probes.ProbeServer, connect: Callable[..., socket.socket], capfd: pytest.CaptureFixture[str]
) -> None:
    half = connect()
    half.shutdown(socket.SHUT_WR)
    assert everything(half) == b""
    asked = connect(b"GET /livez HTTP/1.1\r\n\r\n")
    asked.shutdown(socket.SHUT_WR)
    assert everything(asked).endswith(b"ok\n")
    for sent in (b"", b"GET /metrics HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\0\1\0\n\n"):
        reset = connected(server, sent)
        reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        reset.close()
    until(lambda: server.connections == 0)
    assert_well(server)
    assert capfd.readouterr() == ("", "")


def test_who_never_reads_an_answer_is_closed_after_the_time_of_a_connection(
    server: probes.ProbeServer, connect: Callable[..., socket.socket]
) -> None:
    def endless(environ: object, start: Callable[..., object]) -> Iterator[bytes]:
        start("200 OK", [])
        while True:
            yield b"x" * 65_536

    health = server.get_app()
    server.set_app(endless)  # type: ignore[arg-type]
    deaf = connect(b"GET /metrics HTTP/1.1\r\n\r\n")
    until(lambda: bool(server._answering))
    server._clock.now = PROBE_SECONDS.max + 1.0  # type: ignore[attr-defined]
    until(lambda: server.connections == 0)
    server.set_app(health)
    assert_well(server)
    assert re.match(rb"HTTP/1.0 200 OK", everything(deaf))
