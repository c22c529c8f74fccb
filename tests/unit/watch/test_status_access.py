"""Who may ask the status service for what: hosts, origins, tokens, roles, and what happens to those that guess."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from fastapi import APIRouter
from fastapi.routing import APIRoute
from site_by_hand import ADMINS_TOKEN, TOKEN, VIEWERS_TOKEN, Site, alert

from tidemill.limits import STATUS_GUESSERS
from tidemill.settings import load as load_settings
from tidemill.tokens import Extra, Holder, Role, new_token, token_hash
from tidemill.watch.status.routes import forgetting, lookups, models, overview, quality
from tidemill.watch.status.service import reading_is_free
from tidemill.web import health
from tidemill.web.access import FREE_FAILURES, MAX_WAIT_SECONDS, Backoff, GuardedRoute
from tidemill.web.connections import server_config
from tidemill.web.edge import PROBES, Hosts, host_name
from tidemill.wire import topics

pytestmark = pytest.mark.slow

ROUTES = [route for room in (overview, models, quality, lookups, forgetting) for route in room.router.routes]
#: These show nothing of the pipeline, or are the page without its data.
OPEN_PATHS = {"/", "/page", "/openapi.json", "/livez", "/readyz", "/metrics"}
BODIES = {
    "acknowledge": {"why": "x"},
    "command": {"id": "0123456789", "kind": "unpin", "why": "x"},
    "forget": {"entities": {"tailnum": ["N1"]}, "why": "x"},
}
FILLED = {"model": "logreg", "command_id": "12345678", "event_id": "e1", "entity_id": "JFK", "alert": "drift:distance"}


@pytest.fixture
def site() -> Site:
    site = Site()
    site.tell(topics.ALERTS, alert())
    return site


def bearer(token: str | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def path_of(route: APIRoute) -> str:
    path = route.path.replace(":path", "")
    return path.format(**FILLED)


# Roles.


def mutates(route: APIRoute) -> bool:
    return bool(route.methods - {"GET", "HEAD"})


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.name} {route.path}")
@pytest.mark.parametrize("free", [True, False], ids=["free", "closed"])
@pytest.mark.parametrize(
    ("token", "role"),
    [
        (None, None),
        ("wrong", None),
        (new_token(), None),
        (VIEWERS_TOKEN, Role.VIEWER),
        (TOKEN, Role.OPERATOR),
        (ADMINS_TOKEN, Role.ADMIN),
    ],
    ids=["none", "short", "unknown", "viewer", "operator", "admin"],
)
def test_a_route_answers_those_of_its_role_and_nobody_else(
    route: GuardedRoute, token: str | None, role: Role | None, *, free: bool
) -> None:
    if route.path == "/api/live" and (role or (free and token is None)):
        pytest.skip("it never ends; whoever is refused is told at once")
    site = Site(reading_is_free=free)
    site.tell(topics.ALERTS, alert())
    (method,) = route.methods
    answer = site.client.request(method, path_of(route), headers=bearer(token), json=BODIES.get(route.name))
    needed = route.needed_role
    if role is None:
        allowed = token is None and free and needed is Role.VIEWER
        expected = 200 if allowed else 401
    else:
        expected = 200 if Holder("somebody", role).may(needed) else 403
    if expected == 200:  # nobody can be forgotten here: 409
        assert answer.status_code in (200, 202, 404) or (needed is Extra.FORGET and answer.status_code == 409), (
            answer.text
        )
    else:
        assert answer.status_code == expected, answer.text
        assert (site.said, site.asked) == ([], [])
        assert len(site.refused) == 1


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.name} {route.path}")
def test_every_route_declares_its_role_and_none_that_changes_something_is_for_viewers(route: Any) -> None:
    assert isinstance(route, GuardedRoute)
    assert not mutates(route) or route.needed_role is not Role.VIEWER


def test_the_application_has_no_route_besides_those_with_a_role_and_those_that_show_nothing(site: Site) -> None:
    declared = {route.path for route in ROUTES}
    schema = set(site.client.get("/openapi.json").json()["paths"])
    guarded = {path.replace(":path", "") for path in declared}
    assert schema - guarded == {"/livez", "/readyz", "/metrics"}
    others = {getattr(route, "path", None) for route in site.app.routes} - declared
    assert others - {None} <= OPEN_PATHS
    assert {route.path for route in health.router.routes} <= OPEN_PATHS


def test_a_route_that_declares_no_role_cannot_be_made() -> None:
    router = APIRouter(route_class=GuardedRoute)
    with pytest.raises(TypeError, match=r"route /api/new: declare who may use it by @needs"):
        router.post("/api/new")(lambda: None)


def test_nothing_is_read_of_a_body_before_its_sender_is_known(site: Site) -> None:
    for body in (b"", b"{", b"\xff" * 100, b"[" * 10_000):
        answer = site.client.post("/api/commands", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 401
        answer = site.client.post("/api/commands", content=body, headers=bearer(TOKEN))
        assert answer.status_code in (400, 422)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "QUERY", "GIBBERISH"])
def test_other_methods_change_nothing(site: Site, method: str) -> None:
    for path in ("/api/commands", "/api/alerts/drift:distance/acknowledge", "/api/overview", "/", "/livez"):
        assert site.client.request(method, path, headers=bearer(ADMINS_TOKEN)).status_code == 405
    assert (site.said, site.asked) == ([], [])


def test_who_asks_is_the_tokens_holder_whatever_the_body_says(site: Site) -> None:
    body = BODIES["command"] | {"by": "somebody else"}
    assert site.client.post("/api/commands", json=body, headers=bearer(ADMINS_TOKEN)).status_code == 202
    assert [by for _, _, by in site.asked] == ["adam"]
    answer = site.client.post(
        "/api/alerts/drift:distance/acknowledge", json={"by": "somebody else", "why": "x"}, headers=bearer(TOKEN)
    )
    assert answer.json()["by"] == "anna"
    assert site.said == [("drift:distance", "anna", "x")]


@pytest.mark.parametrize(("token", "status"), [(TOKEN, 403), (ADMINS_TOKEN, 202)], ids=["operator", "admin"])
def test_another_life_of_a_model_is_for_admins(site: Site, token: str, status: int) -> None:
    body = BODIES["command"] | {"kind": "reset", "target": "logreg"}
    answer = site.client.post("/api/commands", json=body, headers=bearer(token))
    assert answer.status_code == status, answer.text
    assert len(site.asked) == (status == 202)


# Tokens.


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer x",
        f"Basic {TOKEN}",
        TOKEN,
        f"Bearer{TOKEN}",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN.upper()}",
        f"Bearer {token_hash(TOKEN)}",
        f"Bearer {TOKEN} {TOKEN}",
        f"Bearer {TOKEN},{TOKEN}",
        f"Bearer '{TOKEN}'",
        f"Bearer\t{TOKEN}",
        f"Bearer {TOKEN}\t",
        "Bearer " + "x" * 2**20,
        "Bearer schl\xfcssel".encode("latin-1"),
        b"Bearer \xff\xfe\x00",
        "Bearer 🔑".encode(),
    ],
)
def test_only_a_token_that_is_known_to_the_last_character_opens(site: Site, authorization: str | bytes) -> None:
    answer = site.client.post("/api/commands", json=BODIES["command"], headers={"Authorization": authorization})  # type: ignore[dict-item]
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert site.asked == []


def test_several_tokens_at_once_open_nothing(site: Site) -> None:
    for tokens in ((TOKEN, TOKEN), (TOKEN, "x"), ("x", TOKEN)):
        headers = [("Authorization", f"Bearer {token}") for token in tokens]
        assert site.client.post("/api/commands", json=BODIES["command"], headers=headers).status_code == 401
    assert site.asked == []


def test_a_token_is_in_no_log_line_and_no_answer(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = new_token()
    answers = [site.client.get("/api/overview", headers=bearer(token)).text for token in (secret, TOKEN, secret)]
    answers.append(site.client.get(f"/api/overview?token={TOKEN}", headers=bearer(secret)).text)
    logged = [str(record.__dict__) for record in caplog.records if record.name.startswith("tidemill")]
    assert len(logged) == 3
    assert not [text for text in (*answers, *logged) if secret in text or TOKEN in text or token_hash(TOKEN) in text]


def test_a_token_in_the_address_opens_nothing() -> None:
    site = Site(reading_is_free=False)
    for query in (f"token={TOKEN}", f"access_token={TOKEN}", f"authorization=Bearer%20{TOKEN}"):
        assert site.client.get(f"/api/overview?{query}").status_code == 401


@pytest.mark.parametrize(
    ("settings", "free"),
    [
        ({}, True),
        ({"status_bind": "::1"}, True),
        ({"status_bind": "0.0.0.0", "status_read": "anyone"}, True),
        ({"status_read": "token", "status_token": TOKEN}, False),
        ({"status_bind": "0.0.0.0", "status_token": TOKEN}, False),
        ({"status_bind": "::", "status_tokens": f"ann:viewer:{token_hash(TOKEN)}"}, False),
    ],
)
def test_reading_needs_a_token_where_others_than_this_machine_may_ask(settings: dict[str, str], *, free: bool) -> None:
    assert reading_is_free(load_settings(**settings)) is free


@pytest.mark.parametrize("settings", [{"status_bind": "0.0.0.0"}, {"status_read": "token"}])
def test_a_service_that_nobody_could_read_does_not_start(settings: dict[str, str]) -> None:
    with pytest.raises(Exception, match="reading needs a token, and there is none; set TIDEMILL_STATUS_TOKENS"):
        reading_is_free(load_settings(**settings))


# Those that guess.


def test_wrong_tokens_are_counted_and_slowed_and_the_right_one_is_let_in_at_once(site: Site) -> None:
    def ask(token: str) -> Any:
        return site.client.get("/api/overview", headers=bearer(token))

    assert [ask(new_token()).status_code for _ in range(FREE_FAILURES + 3)] == [401] * FREE_FAILURES + [429] * 3
    assert site.refused == ["wrong_token"] * (FREE_FAILURES + 3)
    assert ask(new_token()).headers["retry-after"] == "1"
    assert ask(TOKEN).status_code == 200, "nobody can lock an operator out"
    waits = []
    for _ in range(10):
        answer = ask(new_token())
        waits.append(int(answer.headers["retry-after"]))
        site.now += waits[-1]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]


def test_who_waits_is_not_made_to_wait_longer_by_what_comes_meanwhile() -> None:
    now = [0.0]
    backoff = Backoff(lambda: now[0])
    for _ in range(FREE_FAILURES + 5):
        backoff.failed("10.0.0.1")
        now[0] += MAX_WAIT_SECONDS
    for _ in range(1000):
        wait = backoff.failed("10.0.0.1")
    assert wait == pytest.approx(32.0)
    assert backoff.failed("10.0.0.2") == 0.0, "others are not slowed"


def test_a_host_with_many_ipv6_addresses_is_one_client() -> None:
    backoff = Backoff(lambda: 0.0)
    waits = [backoff.failed(f"2001:db8::{n:x}") for n in range(FREE_FAILURES + 1)]
    assert waits == [0.0] * FREE_FAILURES + [1.0]
    assert len(backoff) == 1


def test_however_many_clients_guess_few_are_remembered() -> None:
    backoff = Backoff(lambda: 0.0)
    for n in range(20 * STATUS_GUESSERS.max):
        backoff.failed(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}")
    assert len(backoff) == STATUS_GUESSERS.max


def test_refusals_are_counted_by_reason(site: Site) -> None:
    client = site.client
    client.get("/", headers={"Host": "evil.example"})
    client.get("/api/overview", headers={"Origin": "https://evil.example"})
    client.post("/api/commands", json={})
    client.post("/api/commands", json={}, headers=bearer(VIEWERS_TOKEN))
    client.post("/api/commands", json={}, headers=bearer(new_token()))
    client.post("/api/commands", content=b"x" * 20_000)
    assert site.refused == ["host", "origin", "no_token", "role", "wrong_token", "body"]


# Hosts and origins.


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST",
        "localhost.",
        "localhost:8000",
        "localhost.:1",
        "127.0.0.1",
        "127.0.0.1:8000",
        "127.1.2.3:80",
        "[::1]",
        "[::1]:8000",
        "[0:0:0:0:0:0:0:1]",
        "status",
        "Status.Example.ORG:443",
        "status.example.org.",
        "192.0.2.7:8000",
    ],
)
def test_the_services_own_names_are_answered(host: str) -> None:
    site = Site(hosts=["status", "Status.example.org.", "192.0.2.7"])
    assert site.client.get("/api/overview", headers={"Host": host}).status_code == 200


FOREIGN = [
    "evil.example",
    "evil.example:8000",
    "localhost.evil.example",
    "evil-localhost",
    "localhost.localdomain",
    "10.0.0.1",
    "10.0.0.1:8000",
    "0.0.0.0",
    "0x7f.0.0.1",
    "2130706433",
    "127.1",
    "[::2]",
    "[::ffff:10.0.0.1]",
    "status.example.org",
    "0",
    "1",
    "127.0.0.1.evil.example",
    "127.0.0.1.nip.io",
    "LOCALHOST.EVIL",
]
MALFORMED = [
    "",
    " ",
    ":8000",
    "localhost:",
    "localhost:x",
    "localhost:123456",
    "localhost:80:80",
    "a b",
    "localhost,evil.example",
    "user@localhost",
    "localhost@evil.example",
    "http://localhost",
    "localhost/",
    "localhost/evil",
    "localhost#",
    "localhost?",
    "[::1",
    "::1",
    "[::1]x",
    "[x]",
    "[]",
    "[::1%25lo]",
    "..",
    "localhost..",
    "*",
    "\xfc",
    "localhost%00",
    "loc%61lhost",
    "localhost\\evil",
]


@pytest.mark.parametrize("host", FOREIGN)
def test_another_host_is_misdirected_on_every_path_but_the_probes(host: str) -> None:
    site = Site()
    for path in (
        "/",
        "/page/main.js",
        "/api/overview",
        "/api/live",
        "/openapi.json",
        "/metrics",
        "/nowhere",
        "/livez/",
        "//livez",
    ):
        answer = site.client.get(path, headers={"Host": host})
        assert answer.status_code == 421, path
        assert "add this to TIDEMILL_STATUS_HOSTS" in answer.json()["detail"]
        assert "default-src 'self'" in answer.headers["content-security-policy"]
    answer = site.client.post("/api/commands", json=BODIES["command"], headers={"Host": host, **bearer(TOKEN)})
    assert (answer.status_code, site.asked) == (421, [])
    for path in PROBES:
        assert site.client.get(path, headers={"Host": host}).status_code == 200
        assert site.client.post(path, headers={"Host": host}).status_code == 421


@pytest.mark.parametrize("host", MALFORMED)
def test_a_malformed_host_is_refused(site: Site, host: str) -> None:
    answer = site.client.get("/api/overview", headers={"Host": host.encode("latin-1")})  # type: ignore[dict-item]
    assert answer.status_code in (400, 421)
    assert answer.status_code == 400 or host_name(host) is not None


def test_two_hosts_are_none(site: Site) -> None:
    headers = [("Host", "localhost"), ("Host", "evil.example")]
    assert site.client.get("/api/overview", headers=headers).status_code == 400


@pytest.mark.parametrize(
    ("name", "local", "trusted"),
    [
        ("10.1.2.3", "10.1.2.3", True),
        ("fd00::1", "fd00:0::1", True),
        ("10.1.2.3", "10.1.2.4", False),
        ("pod", "", False),
    ],
)
def test_a_pod_is_asked_by_its_own_address_alone(name: str, local: str, *, trusted: bool) -> None:
    assert Hosts(()).trusts(name, local) is trusted


def test_a_very_long_host_is_not_repeated(site: Site) -> None:
    answer = site.client.get("/", headers={"Host": "a" * 10_000})
    assert answer.status_code == 421
    assert len(answer.text) < 300


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://localhost:8000"},
        {"Origin": "https://localhost:8000"},
        {"Origin": "http://LOCALHOST:8000"},
        {},
        {"Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
    ],
)
def test_our_own_page_and_programs_may_ask(site: Site, headers: dict[str, str]) -> None:
    assert site.client.get("/api/overview", headers=headers).status_code == 200
    answer = site.client.post("/api/commands", json=BODIES["command"], headers=headers | bearer(TOKEN))
    assert answer.status_code == 202


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://localhost:3000"},
        {"Origin": "http://localhost"},
        {"Origin": "http://127.0.0.1:8000"},
        {"Origin": "file://"},
        {"Origin": "chrome-extension://localhost:8000"},
        {"Origin": "http://localhost:8000.evil.example"},
        {"Origin": "http://localhost:8000@evil.example"},
        {"Origin": "http://["},
        {"Origin": "http://localhost:8000, https://evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "new-in-2030"},
        {"Origin": "http://localhost:8000", "Sec-Fetch-Site": "cross-site"},
    ],
)
def test_a_page_of_another_site_may_ask_for_nothing_even_with_the_token(site: Site, headers: dict[str, str]) -> None:
    answer = site.client.post("/api/commands", json=BODIES["command"], headers=headers | bearer(ADMINS_TOKEN))
    assert (answer.status_code, site.asked) == (403, [])
    assert site.client.get("/api/overview", headers=headers).status_code == 403
    assert site.client.get("/api/live", headers=headers).status_code == 403
    assert "access-control-allow-origin" not in answer.headers


def test_a_link_from_another_site_opens_the_page_but_sends_nothing(site: Site) -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert site.client.get("/", headers=link).status_code == 200
    answer = site.client.post("/api/commands", json=BODIES["command"], headers=link | bearer(TOKEN))
    assert (answer.status_code, site.asked) == (403, [])


# On the wire: what the server itself makes of requests that no client library sends.


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[str, int]]:
    server = uvicorn.Server(server_config(Site().app, "127.0.0.1", 0))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        yield listening.getsockname()
        server.should_exit = True
        thread.join(10)


def status_of(served: tuple[str, int], request: bytes) -> int:
    with socket.create_connection(served, 10) as connection:
        connection.sendall(request)
        return int(connection.makefile("rb").readline().split()[1])


@pytest.mark.parametrize(
    ("request_", "statuses"),
    [
        (b"GET /api/models HTTP/1.1\r\nHost: localhost\r\n\r\n", {200}),
        (b"GET /api/models HTTP/1.1\r\nHost: evil.example\r\n\r\n", {421}),
        (b"GET /api/models HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", {400}),
        (b"GET /api/models HTTP/1.1\r\n\r\n", {400}),
        (b"GET /api/models HTTP/1.0\r\n\r\n", {400}),
        (b"GET /livez HTTP/1.0\r\n\r\n", {200}),
        (b"GET http://localhost/api/models HTTP/1.1\r\nHost: evil.example\r\n\r\n", {421}),
        (b"GET http://evil.example/livez HTTP/1.1\r\nHost: evil.example\r\n\r\n", {200, 400, 404, 421}),
        (b"GET http://evil.example/api/models HTTP/1.1\r\nHost: localhost\r\n\r\n", {400, 404, 421}),
        (b"GET /livez/../api/models HTTP/1.1\r\nHost: evil.example\r\n\r\n", {400, 421}),
        (b"GET /livez%2f..%2fapi/models HTTP/1.1\r\nHost: evil.example\r\n\r\n", {400, 421}),
        (b"GET /%6civez HTTP/1.1\r\nHost: evil.example\r\n\r\n", {200, 421}),
        (b"GET /api/models HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-Host: evil.example\r\n\r\n", {200}),
        (b"GET /api/models HTTP/1.1\r\nHost: evil.example\r\nX-Forwarded-Host: localhost\r\n\r\n", {421}),
        (
            b"GET /page/main.js HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            {200, 403},
        ),
        (b"POST /api/commands HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", {400, 413}),
        (
            b"POST /api/commands HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
            {400, 413},
        ),
        (
            b"POST /api/commands HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + b"x" * 2**20 + b"\r\n\r\n",
            {400, 431, 401},
        ),
    ],
)
def test_the_server_itself_lets_nothing_past_the_edge(
    served: tuple[str, int], request_: bytes, statuses: set[int]
) -> None:
    assert status_of(served, request_) in statuses
