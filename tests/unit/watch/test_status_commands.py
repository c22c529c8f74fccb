"""What becomes of a command that somebody gives: written once, or not at all, and the asker is told which."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from site_by_hand import ADMINS_TOKEN, TOKEN, Site, decision

from tidemill.errors import BrokerError, UnknownOutcome
from tidemill.limits import STATUS_CHANGES, STATUS_COMMANDS
from tidemill.watch.status.bodies import CommandRequest
from tidemill.watch.status.parts import AcceptedCommands
from tidemill.wire import topics
from tidemill.wire.records import Records

COMMAND = {"id": "0123456789", "kind": "promote", "target": "slow@70", "why": "it was better"}


@pytest.fixture
def site() -> Site:
    return Site()


def give(site: Site, token: str = TOKEN, **changes: Any) -> Any:
    return site.client.post("/api/commands", json=COMMAND | changes, headers={"Authorization": f"Bearer {token}"})


def written(site: Site) -> list[bytes | None]:
    return [record.value() for record in site.broker.records("flights.commands")]


def test_a_command_that_failed_is_not_there_later(site: Site) -> None:
    site.kafka_away = BrokerError("nothing was written, nor will be: no Kafka")
    answer = give(site)
    assert (answer.status_code, answer.json()) == (503, {"detail": "nothing was written, nor will be: no Kafka"})
    site.kafka_away = None
    assert give(site, id="another-command").status_code == 202
    assert written(site) == [b"another-command"]
    assert give(site).status_code == 202
    assert written(site) == [b"another-command", b"0123456789"], "the asker may try again"


def test_a_command_of_which_nobody_knows_is_sent_again_by_its_id(site: Site) -> None:
    site.kafka_away = UnknownOutcome("it is not known whether it was written: no answer")
    answer = give(site)
    assert (answer.status_code, answer.json()["detail"]) == (504, str(site.kafka_away))
    site.kafka_away = None
    assert [give(site).status_code for _ in range(3)] == [202] * 3
    assert written(site) == [b"0123456789"]


def test_a_command_that_is_given_again_is_written_once(site: Site) -> None:
    assert [give(site).status_code for _ in range(5)] == [202] * 5
    assert len(written(site)) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{"target": "slow@71"}, {"kind": "pin"}, {"why": "something else"}, {"steps": 2}, {"token": ADMINS_TOKEN}],
)
def test_an_id_is_one_commands_alone(site: Site, changes: dict[str, Any]) -> None:
    give(site)
    answer = give(site, **changes)
    assert answer.status_code == 409
    assert "choose a new one" in answer.json()["detail"]
    assert len(written(site)) == 1


def test_an_id_that_another_holders_decision_has_is_taken(site: Site) -> None:
    record = Records(site.follower.pipeline).decision
    taken = record.decode(decision()) | {"command": COMMAND["id"], "by": "adam"}
    site.tell(topics.PROMOTIONS, record.encode(taken))
    assert give(site).status_code == 409
    assert give(site, ADMINS_TOKEN).json()["decision"]["by"] == "adam"
    assert written(site) == []


def test_however_many_commands_are_given_few_are_remembered() -> None:
    accepted = AcceptedCommands()
    for n in range(STATUS_COMMANDS.max + 1):
        accepted.add(CommandRequest(id=f"command-{n}", kind="unpin", why="x"), "anna")
    assert len(accepted._commands) == STATUS_COMMANDS.max
    assert not accepted.is_repeated(CommandRequest(id="command-0", kind="unpin", why="x"), "anna")
    assert accepted.is_repeated(CommandRequest(id="command-1", kind="unpin", why="x"), "anna")


def test_while_many_wait_for_kafka_others_are_refused_and_reading_goes_on(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, goes_on = threading.Semaphore(0), threading.Event()

    def wait(*_: object) -> None:
        waiting.release()
        goes_on.wait(20)

    monkeypatch.setattr(site.app.state.parts, "ask", wait)
    askers = [
        threading.Thread(target=give, args=(site,), kwargs={"id": f"command-{n}"}) for n in range(STATUS_CHANGES.max)
    ]
    with site.client:  # one event loop for all of them
        for asker in askers:
            asker.start()
        for _ in askers:
            assert waiting.acquire(timeout=20)
        answer = give(site, id="one-too-many")
        assert (answer.status_code, "try again" in answer.json()["detail"]) == (503, True)
        assert site.client.get("/api/overview").status_code == 200
        goes_on.set()
        for asker in askers:
            asker.join(20)
        assert give(site, id="one-too-many").status_code == 202
