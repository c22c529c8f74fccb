"""Commands of applications reach the gate by the status service, which signs them; no key does more than its role."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn
from gateway_in_memory import BOTH_KEY, COMMANDERS_KEY, Shop
from site_by_hand import TOKEN, VIEWERS_TOKEN, Site
from small import declaration

from tidemill import Pipeline
from tidemill.gateway.commands import Commands
from tidemill.web import connections

pytestmark = pytest.mark.slow

COMMAND = {"id": "0123456789", "kind": "promote", "target": "slow@70", "why": "it was better"}


@contextmanager
def served(site: Site) -> Iterator[str]:
    server = uvicorn.Server(connections.server_config(site.app, "127.0.0.1", 0))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)


@contextmanager
def shop_of(url: str, token: str = TOKEN) -> Iterator[Shop]:
    with Shop(Pipeline(**declaration()), commands=Commands(url, token)) as shop:
        shop.client.headers["Authorization"] = f"Bearer {COMMANDERS_KEY}"
        yield shop


def test_a_command_is_given_once_in_the_name_of_the_key() -> None:
    site = Site()
    with served(site) as url, shop_of(url) as shop:
        for _ in range(2):
            answer = shop.client.post("/v1/commands", json=COMMAND)
            assert (answer.status_code, answer.json()) == (202, {"id": "0123456789", "decision": None})
        assert shop.client.get("/v1/commands/0123456789").json() == {"id": "0123456789", "decision": None}
        ((request, target, by),) = site.asked
        assert (request.kind, str(target), request.why, by) == ("promote", "slow@70", "ci: it was better", "anna")
        refused = shop.client.post("/v1/commands", json=COMMAND | {"target": "slow@71"})
        assert refused.status_code == 409
        assert "choose a new one" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("body", "code", "why"),
    [
        (COMMAND | {"kind": "reset"}, 403, "reset is for people"),
        (COMMAND | {"kind": "explode"}, 422, "Input should be"),
        (COMMAND | {"target": "Nobody!"}, 422, "MODEL or MODEL@VERSION"),
        ([], 422, "a command as a JSON object was expected"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_command_of_an_application_is_refused(body: Any, code: int, why: str) -> None:
    site = Site()
    with served(site) as url, shop_of(url) as shop:
        answer = shop.client.post("/v1/commands", json=body)
        assert (answer.status_code, site.asked) == (code, [])
        assert why in answer.text


def test_other_roles_give_no_commands_and_this_one_sends_and_reads_nothing() -> None:
    with shop_of("http://127.0.0.1:1") as shop:
        other = {"Authorization": f"Bearer {BOTH_KEY}"}
        assert shop.client.post("/v1/commands", json=COMMAND, headers=other).status_code == 403
        assert shop.client.get("/v1/commands/0123456789", headers=other).status_code == 403
        assert shop.client.post("/v1/predict", json={}).status_code == 403
        assert shop.client.get("/v1/predictions/a").status_code == 403


@pytest.mark.parametrize(
    ("token", "why"),
    [("", "no commands are given here"), (VIEWERS_TOKEN, "refuses the gateway"), ("x" * 40, "refuses the gateway")],
    ids=["none", "of a viewer", "wrong"],
)
def test_without_a_token_that_may_no_command_is_given_and_the_client_is_told_that_it_is_not_its_key(
    token: str, why: str
) -> None:
    site = Site()
    with served(site) as url, shop_of(url, token) as shop:
        answer = shop.client.post("/v1/commands", json=COMMAND)
        assert (answer.status_code, site.asked) == (503, [])
        assert why in answer.json()["detail"]
        assert token not in answer.text or not token


@pytest.mark.slow
def test_without_a_status_service_nothing_was_given_and_where_it_hangs_up_that_is_not_known() -> None:
    with shop_of("http://127.0.0.1:1") as shop:
        answer = shop.client.post("/v1/commands", json=COMMAND)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert "no status service at http://127.0.0.1:1" in answer.json()["detail"]

    class HangsUp(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))

    with http.server.HTTPServer(("127.0.0.1", 0), HangsUp) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with shop_of(f"http://127.0.0.1:{server.server_port}") as shop:
            answer = shop.client.post("/v1/commands", json=COMMAND)
        server.shutdown()
    assert answer.status_code == 504
    assert "send it again with the same id" in answer.json()["detail"]
