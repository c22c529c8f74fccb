"""The status service under idle, slow and greedy connections keeps its probes and its operators; real sockets."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import uvicorn
from site_by_hand import TOKEN, Site, predicted

from tidemill.limits import (
    ENTITY_LOOKUPS,
    LOG_LOOKUP_SECONDS,
    LOG_LOOKUPS,
    STATUS_BODY_BYTES,
    STATUS_CONNECTIONS,
    STATUS_HEAD_BYTES,
    STATUS_SECONDS,
    STATUS_STREAMS,
    STATUS_STREAMS_OF_CLIENT,
)
from tidemill.stream.api import Record, TopicPartition
from tidemill.web import connections

pytestmark = pytest.mark.slow

LIVE = b"GET /api/live HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Served:
    """A site behind a real server."""

    def __init__(self, site: Site) -> None:
        self.site, self.parts = site, site.app.state.parts
        self.server = uvicorn.Server(connections.server_config(site.app, "127.0.0.1", 0))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.sockets = contextlib.ExitStack()

    def __enter__(self) -> Served:
        self.thread.start()
        until(lambda: self.server.started)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self.sockets.close()
        self.server.should_exit = True
        self.thread.join(20)

    @property
    def open(self) -> int:
        return len(self.server.server_state.connections)

    def connect(self, sent: bytes = b"", client: str = "127.0.0.1") -> socket.socket:
        one = socket.create_connection(("127.0.0.1", self.port), timeout=20, source_address=(client, 0))
        self.sockets.enter_context(one)
        one.sendall(sent)
        return one

    def ask(self, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> tuple[int, str]:
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(client):
            client.request("GET" if body is None else "POST", path, body, dict(headers or {}))
            answer = client.getresponse()
            return answer.status, answer.read().decode()

    def command(self, number: int) -> int:
        body = {"id": f"command-{number}", "kind": "rollback", "by": "anna", "why": "worse"}
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        return self.ask("/api/commands", json.dumps(body), headers)[0]

    def assert_well(self) -> None:
        for n in range(3):
            assert self.ask("/livez") == (200, "ok\n")
            assert self.ask("/readyz") == (200, "ok\n")
            assert self.ask("/metrics")[0] == 200
            assert self.ask("/api/overview")[0] == 200
            assert self.command(n) == 202


@pytest.fixture
def served() -> Iterator[Served]:
    with Served(Site()) as served:
        yield served


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def received(one: socket.socket, *ends: bytes) -> bytes:
    """Return what comes, up to one of these or until the other side closes."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while not any(end in data for end in ends) and (more := one.recv(65_536)):
            data += more
    return data


def streams(served: Served, count: int, client: str = "127.0.0.1") -> list[socket.socket]:
    opened = []
    for _ in range(count):
        one = served.connect(LIVE, client)
        assert b"event: snapshot" in received(one, b"event: snapshot", b"detail")
        opened.append(one)
    return opened


def test_500_idle_connections_and_100_open_pages_leave_probes_and_operators(served: Served) -> None:
    idle = [served.connect() for _ in range(500)]
    pages = [
        *streams(served, STATUS_STREAMS_OF_CLIENT.max, "127.0.0.2"),
        *streams(served, STATUS_STREAMS.max - STATUS_STREAMS_OF_CLIENT.max, "127.0.0.3"),
    ]
    served.assert_well()
    assert served.parts.streams.total() == STATUS_STREAMS.max
    status, why = served.ask("/api/live")
    assert status == 503
    assert "status service has 101 open pages where at most 100 are allowed; close one" in why
    for page in pages:
        assert received(page, b"event: snapshot")
    pages[0].close()
    until(lambda: served.parts.streams.total() < STATUS_STREAMS.max)
    streams(served, 1)
    assert len(idle) == 500


def test_one_client_has_no_more_than_its_share_of_pages(served: Served) -> None:
    streams(served, STATUS_STREAMS_OF_CLIENT.max)
    status, why = served.ask("/api/live")
    assert status == 503
    assert "client of the status service has 51 open pages where at most 50 are allowed; close one" in why
    streams(served, 1, "127.0.0.2")


def test_pages_that_are_opened_at_the_same_moment_are_counted_all_the_same(served: Served) -> None:
    asked = [served.connect(LIVE) for _ in range(2 * STATUS_STREAMS_OF_CLIENT.max)]
    answers = [received(one, b"\r\n").split()[1] for one in asked]
    assert answers.count(b"200") == STATUS_STREAMS_OF_CLIENT.max
    assert answers.count(b"503") == STATUS_STREAMS_OF_CLIENT.max


@pytest.mark.parametrize("sent", [b"", b"G", b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"])
def test_of_more_connections_than_may_be_open_the_one_that_waits_longest_is_closed(served: Served, sent: bytes) -> None:
    (page,) = streams(served, 1)
    idle = [served.connect(sent) for _ in range(STATUS_CONNECTIONS.max - 1)]
    until(lambda: served.open == STATUS_CONNECTIONS.max)
    served.connect()
    assert received(idle[0]) == b""
    served.assert_well()
    assert served.open <= STATUS_CONNECTIONS.max
    assert received(page, b"event: snapshot")


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /livez HT",
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\nGET /livez HT",
        b"POST /api/commands HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + TOKEN.encode()
        + b"\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{",
    ],
    ids=["nothing", "half a line", "half a second request", "half a body"],
)  # fmt: skip
def test_a_request_that_takes_longer_than_its_time_is_closed_however_it_is_sent(
    served: Served, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "STATUS_SECONDS", replace(STATUS_SECONDS, max=1))
    monkeypatch.setattr(connections, "CHECK_SECONDS", 0.1)
    slow = served.connect(sent)
    with contextlib.suppress(OSError):
        slow.settimeout(0.1)
        for _ in range(200):
            with contextlib.suppress(TimeoutError):
                if slow.recv(1000) == b"":
                    break
            slow.sendall(b"z")
    until(lambda: served.open == 0)
    served.assert_well()


def test_a_page_that_never_reads_is_closed(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "STATUS_SECONDS", replace(STATUS_SECONDS, max=1))
    monkeypatch.setattr(connections, "CHECK_SECONDS", 0.1)
    monkeypatch.setattr(served.parts.overview_json, "text", lambda: "x" * 20_000_000)
    served.connect(LIVE)
    until(lambda: served.parts.streams.total() == 1)
    until(lambda: served.open == 0 and served.parts.streams.total() == 0)


def request(size: int) -> bytes:
    start, end = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nA: ", b"\r\n\r\n"
    return start + b"x" * (size - len(start) - len(end)) + end


def test_a_request_with_as_many_bytes_as_may_be_is_answered_and_one_that_goes_on_is_refused(served: Served) -> None:
    assert received(served.connect(request(STATUS_HEAD_BYTES.max))).endswith(b"ok\n")
    longer = request(STATUS_HEAD_BYTES.max + 10)[: STATUS_HEAD_BYTES.max + 1]
    assert received(served.connect(longer)).startswith(b"HTTP/1.1 400 ")
    served.assert_well()


@pytest.mark.parametrize(("size", "status"), [(STATUS_BODY_BYTES.max, 422), (STATUS_BODY_BYTES.max + 1, 413)])
def test_a_body_as_long_as_the_limit_is_read_and_a_longer_one_refused(served: Served, size: int, status: int) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    code, why = served.ask("/api/commands", b" " * size, headers)
    assert code == status
    assert ("has 16,385 bytes in its body where at most 16,384 are allowed" in why) == (status == 413)


class Searching:
    """A log in which nothing is ever found: reading it goes on until it is given up."""

    def __init__(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        self.running, self.ended = threading.Semaphore(0), threading.Semaphore(0)
        predicted(site)
        monkeypatch.setattr(site.broker, "read", self.read)

    def read(self, _: Mapping[TopicPartition, tuple[int, int]]) -> Iterator[list[Record]]:
        self.running.release()
        try:
            while True:
                time.sleep(0.01)
                yield []
        finally:
            self.ended.release()


def test_a_look_up_ends_when_its_asker_has_gone_and_makes_room(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidemill.offline.lookup.LOG_LOOKUP_SECONDS", replace(LOG_LOOKUP_SECONDS, max=1000))
    searching = Searching(served.site, monkeypatch)
    askers = [
        served.connect(b"GET /api/predictions/e%d HTTP/1.1\r\nHost: localhost\r\n\r\n" % n)
        for n in range(LOG_LOOKUPS.max)
    ]
    for _ in askers:
        assert searching.running.acquire(timeout=20)
    status, why = served.ask("/api/predictions/e9")
    assert status == 503
    assert "status service has 4 look-ups in the log at once where at most 3 are allowed; try again" in why
    served.assert_well()
    for asker in askers:
        asker.close()
    for _ in askers:
        assert searching.ended.acquire(timeout=20)
    until(lambda: served.parts.log_lookups._value == LOG_LOOKUPS.max)
    monkeypatch.undo()
    assert served.ask("/api/predictions/e1")[0] == 200


def test_a_look_up_that_reads_nothing_ends_after_its_time(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    Searching(served.site, monkeypatch)
    monkeypatch.setattr("tidemill.offline.lookup.LOG_LOOKUP_SECONDS", replace(LOG_LOOKUP_SECONDS, max=0))
    assert served.ask("/api/predictions/e1")[0] == 504


def test_look_ups_in_the_online_store_leave_threads_for_others(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    running, answer = threading.Semaphore(0), threading.Event()

    def slow(*_: str) -> dict[str, str]:
        running.release()
        answer.wait(20)
        return {}

    monkeypatch.setattr(served.parts.lookup, "features", slow)
    askers = [
        served.connect(b"GET /api/entities/JFK HTTP/1.1\r\nHost: localhost\r\n\r\n") for _ in range(ENTITY_LOOKUPS.max)
    ]
    for _ in askers:
        assert running.acquire(timeout=20)
    status, why = served.ask("/api/entities/JFK")
    assert status == 503
    assert "11 look-ups in the online store at once where at most 10 are allowed" in why
    served.assert_well()
    answer.set()
    for asker in askers:
        assert received(asker, b"\r\n").startswith(b"HTTP/1.1 404 ")
