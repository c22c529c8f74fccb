"""Requests to forget by way of the status service: who may ask, what is written, and what nobody can read."""

from __future__ import annotations

import dataclasses
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from signing_keys import KEY
from site_by_hand import FLIGHTS, Site

from tidemill import Forgetting as Declared
from tidemill.cli.main import cli
from tidemill.errors import BrokerError
from tidemill.registry.forgetting import Forgetting, Requests, Waiting, forgetting_codec
from tidemill.registry.signing import LogWriter
from tidemill.registry.store import ArtifactStore
from tidemill.tokens import Holder, Role, Tokens, parse_holders, token_hash

pytestmark = pytest.mark.slow

ASKER, VIEWER, OPERATOR, ADMIN = (f"the-token-of-{name}-0123456789abcdef" for name in ("dora", "vera", "otto", "adam"))
HOLDERS = {
    ASKER: Holder("dora", Role.VIEWER, forget=True), VIEWER: Holder("vera", Role.VIEWER),
    OPERATOR: Holder("otto", Role.OPERATOR, personal=True), ADMIN: Holder("adam", Role.ADMIN),
}  # fmt: skip
BODY = {"entities": {"tailnum": ["N14228"]}, "why": "letter of 3 May"}


class Office(Site):
    """A status service of flights whose planes can be forgotten, with a store and the key of those requests."""

    def __init__(self, folder: Path, **declared: Any) -> None:
        super().__init__()
        parts = self.app.state.parts
        self.pipeline = dataclasses.replace(FLIGHTS, forgetting=Declared(fields=["tailnum"], **declared))
        parts.overview.pipeline, parts.lookup.keys = self.pipeline, KEY
        parts.access.tokens = Tokens({token_hash(token): holder for token, holder in HOLDERS.items()})
        self.writer = LogWriter(forgetting_codec(self.pipeline, KEY), self.broker, "status-1")
        self.folder = folder
        waiting = Waiting(self.pipeline, self.broker, ArtifactStore(str(folder)), KEY, self._write)
        parts.forgetting = lambda: waiting

    def _write(self, request: Forgetting) -> None:
        if self.kafka_away:
            raise self.kafka_away
        self.writer.begin()
        self.broker.append(self.writer.topic, self.writer.sign(request), request.id.encode(), partition=0)

    def ask(self, token: str = ASKER, body: Any = BODY) -> Any:
        return self.client.post("/api/forgetting", json=body, headers={"Authorization": f"Bearer {token}"})

    @property
    def known(self) -> Requests:
        return Requests(self.pipeline, self.broker, KEY)

    def stored(self) -> list[bytes]:
        log = [record.value() or b"" for record in self.broker.records(self.writer.topic)]
        return [*log, *(path.read_bytes() for path in self.folder.rglob("*") if path.is_file())]


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return Office(tmp_path, within="30d", every="7d")


@pytest.mark.parametrize(("token", "code"), [(ASKER, 202), (ADMIN, 202), (OPERATOR, 403), (VIEWER, 403), ("", 401)])
def test_it_takes_a_right_of_its_own(office: Office, token: str, code: int) -> None:
    answer = office.ask(token) if token else office.client.post("/api/forgetting", json=BODY)
    assert answer.status_code == code
    assert len(office.known.open) == (code == 202)
    if code == 403:
        assert answer.json()["detail"].endswith("and this needs forget")


def test_it_is_signed_in_the_name_of_who_holds_the_token_and_waits(office: Office) -> None:
    answer = office.ask().json()
    (one,) = office.known.open
    assert (one.id, one.by, one.why, one.state) == (answer["id"], "dora", BODY["why"], "waiting")
    assert (answer["begins"] - one.time, answer["until"] - one.time) == (7 * 86_400_000, 30 * 86_400_000)
    assert office.ask().json()["id"] == one.id, "asked twice is once"
    assert office.ask(body=BODY | {"entities": {"tailnum": ["N2", "N3"]}}).json()["id"] != one.id
    listed = office.get("/api/forgetting")
    assert [(each["state"], each["done"], each["is_late"]) for each in listed] == [("waiting", None, False)] * 2
    assert listed[1]["id"] == one.id


def test_nothing_of_it_names_the_id(office: Office) -> None:
    accessed: list[dict[str, Any]] = []
    office.app.state.parts.access.on_access = accessed.append
    office.ask()
    assert len(office.stored()) == 2
    assert not [data for data in office.stored() if b"N14228" in data]
    assert "N14228" not in json.dumps(accessed + office.get("/api/forgetting"), default=str)
    assert accessed[0]["subject"] == "forget tailnum"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (BODY | {"entities": {"colour": ["red"]}}, "entity colour=...: expected one of origin"),
        (BODY | {"entities": {}}, "entities"),
        (BODY | {"entities": {"tailnum": []}}, "tailnum"),
        (BODY | {"entities": {"tailnum": [""]}}, "tailnum"),
        (BODY | {"entities": {"tailnum": "N14228"}}, "tailnum"),
        (BODY | {"entities": {"tailnum": ["x" * 501]}}, "tailnum"),
        (BODY | {"why": "N14228 asked"}, "why names an id"),
        (BODY | {"why": ""}, "why"),
        ({"why": "x"}, "entities"),
    ],
)
def test_what_could_never_be_done_is_refused_and_not_written(office: Office, body: Any, words: str) -> None:
    answer = office.ask(body=body)
    assert answer.status_code == 422
    assert words in json.dumps(answer.json())
    assert office.stored() == []


def test_where_kafka_is_away_nothing_is_called_asked(office: Office) -> None:
    office.kafka_away = BrokerError("nothing was written, nor will be: no Kafka")
    assert office.ask().status_code == 503
    assert office.known.open == []
    office.kafka_away = None
    assert office.ask().status_code == 202


def test_where_requests_do_not_wait_or_nobody_can_be_forgotten_that_is_said(tmp_path: Path) -> None:
    at_once = Office(tmp_path)
    assert (at_once.ask().status_code, at_once.get("/api/forgetting")) == (409, [])
    nobody = Site()
    nobody.app.state.parts.access.tokens = Tokens({token_hash(ASKER): HOLDERS[ASKER]})
    answer = nobody.client.post("/api/forgetting", json=BODY, headers={"Authorization": f"Bearer {ASKER}"})
    assert (answer.status_code, answer.json()["detail"]) == (409, "pipeline 'flights' does not declare forgetting")
    assert nobody.get("/api/forgetting") == []


def test_the_right_is_a_word_beside_a_role(office: Office) -> None:
    made = CliRunner().invoke(cli, ["tokens", "new", "dora", "--role", "viewer", "--forget"]).output
    entry = made.partition("TOKENS=")[2].strip()
    (holder,) = parse_holders(entry).values()
    assert (holder.role_name, holder.sees_personal) == ("viewer+forget", False)
    refused = CliRunner().invoke(cli, ["tokens", "new", "shop", "--role", "produce", "--forget"])
    assert "role at the gateway" in str(refused.exception)


@pytest.fixture
def address(office: Office) -> Iterator[str]:
    """The service at a real address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answer = office.client.post(self.path, content=body, headers=dict(self.headers) | {"Host": "localhost"})
            self.send_response(answer.status_code)
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_command_asks_with_a_token_and_without_a_key(office: Office, address: str) -> None:
    def run(*arguments: str, token: str = ASKER) -> Any:
        settings = {"TIDEMILL_STATUS_TOKEN": token, "TIDEMILL_STATUS_URL": address, "TIDEMILL_SIGNING_KEY": ""}
        return CliRunner().invoke(cli, ["forget", "flights", *arguments], env=settings)

    asked = run("--ask", "--entity", "tailnum=N14228", "--entity", "origin=JFK", "--why", "letter")
    (one,) = office.known.open
    assert asked.output.startswith(f"request {one.id} waits: --due does it from "), asked.output
    assert len(one.entities) == 2
    for arguments, words in (
        (("--ask", "--entity", "tailnum=N1"), "--ask needs --entity and --why"),
        (("--ask", "--entity", "tailnum=N1", "--why", "x", "--now"), "--ask goes with --entity and --why alone"),
        (("--ask", "--entity", "colour=red", "--why", "x"), "refused the command (422): entity colour=...:"),
    ):
        assert words in str(run(*arguments).exception)
    assert "this needs forget" in str(run("--ask", "--entity", "tailnum=N9", "--why", "x", token=VIEWER).exception)
