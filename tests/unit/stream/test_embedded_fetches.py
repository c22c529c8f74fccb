"""How long a broker may hold back the answer to a fetch of nothing."""

from __future__ import annotations

from typing import Any

import pytest

from tidemill.stream.embedded import EmbeddedBroker
from tidemill.stream.kafka import broker as brokers
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.stream.kafka.consumer import EMBEDDED_FETCH_SECONDS, IDLE_FETCH_SECONDS, MEMBER_IDLE_FETCH_SECONDS


def waits(servers: str, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return how long the fetches of a member and of a follower wait, once the broker is connected."""
    waits: list[float] = []
    monkeypatch.setattr(brokers, "KafkaConsumer", lambda *arguments: waits.append(arguments[-1]))
    monkeypatch.setattr(brokers, "reading_client", lambda *_, wait_seconds: waits.append(wait_seconds))
    monkeypatch.setattr(brokers, "KafkaFollower", lambda *_: None)
    broker = KafkaBroker(servers)
    broker.connect()
    broker.consumer("group", ["topic"], "0")
    broker.follow_from({})
    return waits


@pytest.mark.slow
def test_the_embedded_broker_is_asked_often_because_it_answers_no_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    embedded = EmbeddedBroker()
    assert waits(embedded.servers, monkeypatch) == [EMBEDDED_FETCH_SECONDS] * 2


@pytest.mark.slow
def test_a_kafka_answers_when_something_comes_and_is_asked_less(kafka: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert waits(kafka.servers, monkeypatch) == [MEMBER_IDLE_FETCH_SECONDS, IDLE_FETCH_SECONDS]
