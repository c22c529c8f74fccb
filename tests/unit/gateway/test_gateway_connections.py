"""The gateway behind a real server: slow senders cost bounded time and memory, and who hangs up loses nothing."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import uvicorn
from gateway_in_memory import BOTH_KEY, Shop
from small import declaration, event

from tidemill import Pipeline
from tidemill.metrics import GATEWAY_REQUESTS
from tidemill.web import connections

pytestmark = pytest.mark.slow

NOW = 1_700_000_000_000
EVENT = json.dumps(event("a", NOW)).encode()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Served:
    """A gateway behind a real server."""

    def __init__(self, max_connections: int = 0) -> None:
        self.shop = Shop(Pipeline(**declaration()))
        self.server = uvicorn.Server(connections.server_config(self.shop.app, "127.0.0.1", 0, 5, max_connections))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.sockets = contextlib.ExitStack()

    def __enter__(self) -> Served:
        self.thread.start()
        until(lambda: self.server.started and self.shop.gateway.ready() is None)
        return self

    def __exit__(self, *_: object) -> None:
        self.sockets.close()
        self.server.should_exit = True
        self.thread.join(20)

    def send(self, data: bytes) -> socket.socket:
        port = self.server.servers[0].sockets[0].getsockname()[1]
        one = self.sockets.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
        one.sendall(data)
        return one

    def waiting_since(self) -> float:
        (one,) = self.server.server_state.connections
        return one.waiting_since


def head(size: int, path: str = "/v1/predict") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {BOTH_KEY}", f"Content-Length: {size}"]
    return "\r\n".join([*lines, "", ""]).encode()


def answer_of(one: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while b"}" not in data and (more := one.recv(65_536)):
            data += more
    return data


@pytest.fixture
def served() -> Iterator[Served]:
    with Served() as served:
        yield served


@pytest.mark.parametrize("sent", [b"POST /v1/predict HT", head(len(EVENT)) + EVENT[:20]], ids=["head", "body"])
def test_who_sends_no_further_is_cut_off(served: Served, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(connections, "STATUS_SECONDS", type("L", (), {"max": 0.2}))
    monkeypatch.setattr(connections, "CHECK_SECONDS", 0.05)
    assert answer_of(served.send(sent)) == b""
    until(lambda: not served.server.server_state.connections and served.shop.gateway.body_bytes == 0)
    assert b" 200 " in answer_of(served.send(head(len(EVENT)) + EVENT))


def test_a_request_has_its_time_from_its_own_head_on(served: Served) -> None:
    one = served.send(head(len(EVENT)) + EVENT)
    assert b'"predicted"' in answer_of(one)
    idle_since = served.waiting_since()
    one.sendall(head(len(EVENT)) + EVENT[:20])
    until(lambda: served.waiting_since() > idle_since)
    one.sendall(EVENT[20:])
    assert b'"repeated":true' in answer_of(one)


def test_bodies_in_sum_take_a_bounded_memory(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = type("L", (), {"max": len(EVENT) + 100, "excess": lambda _, size: f"{size} bytes"})()
    monkeypatch.setattr("tidemill.gateway.requests.GATEWAY_BODIES_BYTES", limit)
    first = served.send(head(len(EVENT)) + EVENT[:-1])
    until(lambda: served.shop.gateway.body_bytes == len(EVENT) - 1)
    refused = answer_of(served.send(head(len(EVENT)) + EVENT))
    assert b" 503 " in refused
    assert b"retry-after: 1" in refused.lower()
    first.sendall(EVENT[-1:])
    assert b'"predicted"' in answer_of(first)
    until(lambda: served.shop.gateway.body_bytes == 0)
    assert b'"predicted"' in answer_of(served.send(head(len(EVENT)) + EVENT))


def test_the_event_of_who_hangs_up_is_predicted_once(served: Served) -> None:
    shop = served.shop
    shop.sender.is_running = False
    served.send(head(len(EVENT)) + EVENT).close()
    until(lambda: "a" in shop.river.unanswered)
    shop.pipeline._run()
    assert b'"repeated":true' in answer_of(served.send(head(len(EVENT)) + EVENT))
    assert len(shop.predictions()) == 1


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/features", "/v1/events"])
def test_who_hangs_up_before_all_is_sent_is_no_error_of_the_gateway(served: Served, path: str, caplog) -> None:
    served.send(head(len(EVENT), path) + EVENT[:20]).close()
    until(lambda: GATEWAY_REQUESTS.labels(path, "499")._value.get() > 0)
    assert b" 200 " in answer_of(served.send(head(len(EVENT)) + EVENT))
    assert not [one for one in caplog.records if one.exc_info]
    assert served.shop.sent_events() == 1


def test_requests_that_wait_are_answered_before_it_ends(served: Served) -> None:
    shop = served.shop
    shop.sender.is_running = False
    one = served.send(head(len(EVENT)) + EVENT)
    until(lambda: "a" in shop.river.unanswered)
    served.server.should_exit = True
    until(lambda: not served.server.servers[0].is_serving())
    shop.pipeline._run()
    assert b'"predicted"' in answer_of(one)
    served.thread.join(20)
    assert not served.thread.is_alive()


@pytest.mark.parametrize("method", ["predict", "predictions"])
def test_who_would_wait_longer_than_it_may_take_to_end_is_answered_with_what_is_known(
    served: Served, method: str
) -> None:
    shop = served.shop
    shop.sender.is_running = False
    first = served.send(head(len(EVENT), "/v1/predict?timeout_ms=60000") + EVENT)
    until(lambda: "a" in shop.river.unanswered)
    asked = head(0, "/v1/predictions/a?timeout_ms=60000").replace(b"POST", b"GET")
    several = [first] if method == "predict" else [first, served.send(asked)]
    until(lambda: len(shop.river._waiters.get("a", ())) == len(several))
    shop.gateway.drain(0.05)
    served.server.should_exit = True
    assert [b" 202 " in answer_of(one) for one in several] == [True] * len(several)
    served.thread.join(20)
    assert not served.thread.is_alive()


def test_of_too_many_connections_the_one_that_idles_longest_is_closed_and_none_that_waits_for_its_answer() -> None:
    with Served(max_connections=3) as served:
        shop = served.shop
        shop.sender.is_running = False
        asked = served.send(head(len(EVENT)) + EVENT)
        until(lambda: "a" in shop.river.unanswered)
        idle = [served.send(b"") for _ in range(2)]
        until(lambda: len(served.server.server_state.connections) == 3)
        served.send(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert answer_of(idle[0]) == b""
        shop.pipeline._run()
        assert b'"predicted"' in answer_of(asked)


def test_as_many_files_may_be_open_as_there_may_be_connections() -> None:
    import resource

    from tidemill.gateway.service import allow_files

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
        allow_files(1100)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 1100
        allow_files(1050)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 1100, "it is never made less"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
