"""A client looks for the leader of a topic that is new to it once a second; so a producer asks before its first record."""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import Producer

from tidemill.stream.embedded import EmbeddedBroker
from tidemill.stream.kafka import producer as producers
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.stream.kafka.producer import Sender


class Noting:
    """A client that notes in which order it is asked for topics and is given records."""

    def __init__(self, *arguments: Any, calls: list[tuple[str, str]], **options: Any) -> None:
        self._client, self._calls = Producer(*arguments, **options), calls

    def list_topics(self, topic: str, timeout: float) -> Any:
        self._calls.append(("asked", topic))
        return self._client.list_topics(topic, timeout=timeout)

    def produce(self, topic: str, *arguments: Any, **options: Any) -> None:
        self._calls.append(("sent", topic))
        self._client.produce(topic, *arguments, **options)

    def __len__(self) -> int:
        return len(self._client)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


def test_each_topic_is_asked_for_once_before_its_first_record(monkeypatch: pytest.MonkeyPatch) -> None:
    embedded = EmbeddedBroker()
    embedded.create(["a", "b"])
    calls: list[tuple[str, str]] = []
    monkeypatch.setattr(producers, "Producer", lambda *given, **more: Noting(*given, calls=calls, **more))
    expected = [
        ("asked", "a"),
        ("sent", "a"),
        ("sent", "a"),
        ("asked", "b"),
        ("sent", "b"),
        ("sent", "a"),
        ("sent", "b"),
    ]

    sender = Sender(embedded.servers)
    for topic in "aabab":
        sender.send(topic, b"x")
    sender.flush()
    assert calls == expected

    calls.clear()
    broker = KafkaBroker(embedded.servers, exactly_once=False)
    broker.connect()
    producer = broker.producer("name")
    emit_of = producer.emit_of(lambda: None)
    for number, topic in enumerate("aabab"):
        (emit_of if number % 2 else producer.emit)(topic, b"x")
    producer.wait()
    assert calls == expected


def test_a_topic_that_can_t_be_asked_for_is_sent_to_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, str]] = []
    monkeypatch.setattr(producers, "Producer", lambda *given, **more: Noting(*given, calls=calls, **more))
    monkeypatch.setattr(producers, "SHORT_CALL_SECONDS", 0.01)
    sender = Sender("127.0.0.1:1", {"log_level": 0})
    sender.send("a", b"x")
    sender.send("a", b"x")
    assert calls == [("asked", "a"), ("sent", "a"), ("sent", "a")]
