"""What people ask of the gate from a terminal: over HTTP, with the token, once; and what they are told."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from click.testing import CliRunner, Result
from signing_keys import KEY, SETTINGS, settings_of

from tidemill.cli.main import cli
from tidemill.errors import SettingsError
from tidemill.keys import Keyring
from tidemill.registry.decisions import GATE, NOBODY, Decision, EvidenceLine, ModelRef, decisions
from tidemill.registry.signing import Chains
from tidemill.stream.embedded import EmbeddedBroker
from tidemill.stream.kafka.producer import Sender
from tidemill.wire import topics

TOKEN = "a-token-for-these-tests-0123456789"
DECISION: dict[str, Any] = {
    "kind": "promoted", "why": "it is better", "champion": {"model": "slow", "version": 0}, "pinned": False, "candidate": "",
    "on_probation_against": {"model": "", "version": 0},
}  # fmt: skip


class Status(BaseHTTPRequestHandler):
    """Answers as the status service does; the gate takes one look to decide."""

    asked: list[dict[str, Any]]
    looks: int
    decision: dict[str, Any] | None
    refuses: tuple[int, Any] | None

    def do_POST(self) -> None:
        kind = type(self)
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self._say(401, {"detail": "a token is needed"})
        if kind.refuses:
            return self._say(*kind.refuses)
        kind.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        return self._say(202, {"id": kind.asked[-1]["id"], "decision": None})

    def do_GET(self) -> None:
        type(self).looks += 1
        self._say(200, {"id": self.path.rpartition("/")[2], "decision": self.decision if self.looks > 1 else None})

    def _say(self, code: int, what: Any) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(what).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def status() -> Iterator[tuple[type[Status], str]]:
    kind = type("Told", (Status,), {"asked": [], "looks": 0, "decision": DECISION, "refuses": None})
    server = HTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield kind, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def run(url: str, *arguments: str, token: str = TOKEN) -> Result:
    environment = {"TIDEMILL_STATUS_URL": url, "TIDEMILL_STATUS_TOKEN": token}
    return CliRunner().invoke(cli, ["models", *arguments], env=environment)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["promote", "flights", "slow@70"], {"kind": "promote", "target": "slow@70"}),
        (["rollback", "flights", "--steps", "2"], {"kind": "rollback", "target": "", "steps": 2}),
        (["pin", "flights", "slow@70"], {"kind": "pin", "target": "slow@70"}), (["unpin", "flights"], {"kind": "unpin", "target": ""}),
        (["reset", "flights", "slow"], {"kind": "reset", "target": "slow"}),
        (["train", "flights", "slow", "--from", "earliest"], {"kind": "train", "target": "slow", "begin": 0}),
        (["train", "flights", "slow", "--from=-500"], {"kind": "train", "target": "slow", "begin": -500}),
    ],
)  # fmt: skip
def test_each_is_asked_once_and_the_answer_is_printed(status: Any, arguments: list[str], said: dict[str, Any]) -> None:
    kind, url = status
    done = run(url, *arguments, "--why", "it was better", "--id", "an-id-of-mine")
    assert done.exit_code == 0, done.output
    assert kind.asked == [{"id": "an-id-of-mine", "why": "it was better", **said}]
    assert done.stdout == "promoted: it is better\nslow serves\n"


@pytest.mark.slow
def test_whom_the_gate_watches_after_a_promotion_is_said(status: Any) -> None:
    kind, url = status
    kind.decision = DECISION | {"on_probation_against": {"model": "logreg", "version": 0}}
    said = "logreg is watched: for 5,000 questions it takes its place again if slow does worse\n"
    assert run(url, "promote", "flights", "slow", "--why", "x").stdout.endswith(said)


@pytest.mark.slow
def test_a_refusal_ends_with_code_1(status: Any) -> None:
    kind, url = status
    kind.decision = DECISION | {
        "kind": "refused",
        "why": "there is no version 70 of it",
        "champion": {"model": "logreg", "version": 9},
        "pinned": True,
    }
    done = run(url, "promote", "flights", "slow@70", "--why", "x")
    assert done.exit_code == 1
    assert done.stdout == "refused: there is no version 70 of it\nlogreg@9 serves, pinned\n"


@pytest.mark.parametrize(
    ("refuses", "said"),
    [
        ((403, {"detail": "no token is set"}), r"refused the command \(403\): no token is set"),
        ((421, {"detail": "'pod' is no name of this service"}), r"refused the command \(421\): 'pod' is no name"),
        ((429, {"detail": "try again in 4 s"}), r"\(429\): try again in 4 s; repeat it with --id an-id-of-mine"),
        ((503, {"detail": "nothing was written"}), r"\(503\): nothing was written; repeat it with --id an-id-of-mine"),
        ((504, {"detail": "it is not known"}), r"\(504\): it is not known; repeat it with --id an-id-of-mine"),
        ((200, {}), "not known whether the command will be carried out: repeat it with --id an-id-of-mine"),
        ((200, []), "not known whether the command will be carried out: repeat it with --id an-id-of-mine"),
        ((200, "no decision"), "not known whether the command will be carried out: repeat it with --id an-id-of-mine"),
        ((302, {}), r"refused the command \(302\)"),
        ((422, {"detail": [{"loc": ["body", "id"], "msg": "too short"}]}), "id: too short"), ((500, []), "refused the command"),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_what_the_service_says_against_it_is_said(status: Any, refuses: Any, said: str) -> None:
    kind, url = status
    kind.refuses = refuses
    with pytest.raises(SettingsError, match=said):
        raise run(url, "unpin", "flights", "--why", "x", "--id", "an-id-of-mine").exception or AssertionError


def test_a_wrong_token_is_said_and_not_printed(status: Any) -> None:
    done = run(status[1], "unpin", "flights", "--why", "x", token="another-secret-of-32-characters-0123")
    assert "(401): a token is needed" in str(done.exception)
    assert "another secret" not in str(done.exception)


@pytest.mark.slow
def test_the_token_goes_to_the_service_that_the_settings_name_and_follows_no_redirect() -> None:
    seen: list[str | None] = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers["Authorization"])
            self.send_response(302)
            self.send_header("Location", f"http://127.0.0.1:{server.server_port}/elsewhere")
            self.end_headers()

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Elsewhere)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    done = run(f"http://127.0.0.1:{server.server_port}", "unpin", "flights", "--why", "x")
    server.shutdown()
    server.server_close()
    assert "refused the command (302)" in str(done.exception)
    assert seen == [f"Bearer {TOKEN}"]


@pytest.mark.slow
def test_a_gate_that_does_not_answer_is_said_with_the_way_to_ask_again(status: Any) -> None:
    kind, url = status
    kind.decision = None
    done = run(url, "unpin", "flights", "--why", "x", "--wait", "0.5", "--id", "an-id-of-mine")
    assert "has not answered within 0.5 s" in str(done.exception)
    assert "--id an-id-of-mine" in str(done.exception)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["promote", "flights"], "name a model"), (["promote", "flights", "slow", "--best", "2"], "one of the two"),
        (["promote", "flights", "slow", "--metric", "ROCAUC"], "goes with --best"),
        (["train", "flights", "slow", "--from", "yesterday"], "--from 'yesterday': expected earliest"),
        (["unpin", "flights"], "no status service at http://127.0.0.1:9"),
    ],
)  # fmt: skip
def test_a_mistake_is_said_in_a_sentence(arguments: list[str], said: str) -> None:
    done = run("http://127.0.0.1:9", *arguments, "--why", "x")
    assert isinstance(done.exception, SettingsError)
    assert said in str(done.exception)


@pytest.mark.slow
def test_decisions_are_listed_with_their_reasons_the_latest_first() -> None:
    broker = EmbeddedBroker()
    name = topics.PROMOTIONS.name("flights")
    broker.create([name])
    from tidemill import load

    pipeline, sender = load("flights"), Sender(broker.servers)
    env, chains = {"TIDEMILL_BROKERS": broker.servers, **SETTINGS}, Chains(decisions(pipeline, KEY))
    assert CliRunner().invoke(cli, ["models", "decisions", "flights"], env=env).stdout == (
        "no decision yet: logreg, the declared champion, serves\n"
    )
    for number, kind in enumerate(("refused", "promoted"), 1):
        one = Decision(
            f"d{number}", kind, "gate", f"reason {number}", 1000, 5, 9, 9, "",
            ModelRef("slow"), ModelRef("slow"), ModelRef("logreg"), NOBODY,
            evidence=(EvidenceLine("all", 2_500, 0.2, 0.1, 0.1, 0.05, 0.15),),
        )  # fmt: skip
        sender.send(name, chains.sign(one, GATE), b"k")
    sender.flush()
    text = CliRunner().invoke(cli, ["models", "decisions", "flights"], env=env).stdout
    assert text.index("promoted slow: reason 2") < text.index("refused slow: reason 1")
    assert "2,500" in text
    lines = CliRunner().invoke(cli, ["models", "decisions", "flights", "--json"], env=env).stdout.splitlines()
    told = [json.loads(line) for line in lines]
    assert [one["id"] for one in told] == ["d2", "d1"]
    assert told[0]["evidence"][0]["questions"] == 2_500
    env |= settings_of(Keyring.generate())
    assert "no decision yet" in CliRunner().invoke(cli, ["models", "decisions", "flights"], env=env).stdout
