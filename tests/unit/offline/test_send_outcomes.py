"""What `tidemill send` says of messages that a broker does not take, and of those that nobody waits for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from small import make

from tidemill.cli.text.records import outcome_line, outcomes_line
from tidemill.offline import send
from tidemill.offline.history import Message


class Taking:
    """A sender whose broker takes no message with `too large` in it, and answers later."""

    def __init__(self, *_: Any) -> None:
        self.sent: list[tuple[bytes | None, bytes]] = []
        self._late: list[Callable[[], None]] = []

    def try_send(self, _: str, value: bytes, key: bytes | None, headers: Any, delivered: Callable[[str], None]) -> bool:
        assert not headers
        if b"too large" in value:
            self._late.append(lambda: delivered("Broker: Message size too large"))
        self.sent.append((key, value))
        return True

    def flush(self) -> None:
        for answer in self._late:
            answer()


class Silent:
    def poll(self) -> list[Any]:
        return []

    def close(self) -> None:
        pass


@pytest.fixture
def sending(monkeypatch: pytest.MonkeyPatch) -> send.Sending:
    monkeypatch.setattr(send, "Sender", Taking)
    monkeypatch.setattr(send, "follow", lambda *_: Silent())
    broker: Any = type("Broker", (), {"servers": "", "common": {}})()
    return send.Sending(make(), broker, "events")


def test_what_a_broker_does_not_take_is_an_outcome_of_its_own(sending: send.Sending) -> None:
    outcomes = list(sending.run([Message(1, "a", b"x"), Message(2, "a", b"too large"), Message(3, "b", b"y")], 0.01))
    assert sorted((one.id, one.state) for one in outcomes) == [("a", "not sent"), ("a", "unknown"), ("b", "unknown")]
    assert outcome_line(outcomes[0], "p") == "a  not sent: Broker: Message size too large"
    assert outcomes_line(outcomes, "events") == "2 events sent: 2 unknown; 1 not sent"
    assert outcomes_line(outcomes, "events", waited=False) == "2 events sent, and not waited for; 1 not sent"


def test_an_id_that_no_utf_8_has_is_sent_for_the_validator_to_refuse(sending: send.Sending) -> None:
    (outcome,) = sending.run([Message(1, "a\ud800", b"{}")], 0.01)
    assert outcome.state == "unknown"
