"""A client that believes something wrong about the cluster is not asked again."""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from tidemill.errors import TidemillError
from tidemill.stream.api import TopicPartition
from tidemill.stream.kafka import broker as kafka_broker


class _Client:
    """Knows of a partition, or was told while a broker was starting that there is none, and keeps that."""

    def __init__(self, is_wrong: bool, code: int = KafkaError._UNKNOWN_PARTITION) -> None:
        self.is_wrong, self.code, self.is_closed = is_wrong, code, False

    def get_watermark_offsets(self, partition: Any, timeout: float) -> tuple[int, int]:
        assert not self.is_closed
        if self.is_wrong:
            raise KafkaException(KafkaError(self.code))
        return 3, 7

    def close(self) -> None:
        self.is_closed = True


@pytest.mark.parametrize("method", ["offset_range", "end_offset"])
def test_after_an_error_another_client_is_asked(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[_Client] = []

    def reading_client(common: Any, isolation: str = "") -> _Client:
        made.append(_Client(is_wrong=not made))
        return made[-1]

    monkeypatch.setattr(kafka_broker, "reading_client", reading_client)
    broker = kafka_broker.KafkaBroker("localhost:1")
    ask, partition = getattr(broker, method), TopicPartition("t", 0)
    with pytest.raises(TidemillError, match=r"reading the offset range of t\[0\]"):
        ask(partition)
    expected = (3, 7) if method == "offset_range" else 7
    assert [ask(partition), ask(partition)] == [expected, expected]
    assert len(made) == 2, "one that answers is kept"


@pytest.mark.parametrize("code", sorted(kafka_broker.MOVING_CODES))
def test_a_partition_that_is_just_made_or_moves_is_asked_for_again(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[_Client] = []

    def reading_client(common: Any, isolation: str = "") -> _Client:
        made.append(_Client(is_wrong=len(made) < 2, code=code))
        return made[-1]

    monkeypatch.setattr(kafka_broker, "reading_client", reading_client)
    monkeypatch.setattr(kafka_broker, "MOVING_SECONDS", 0)
    broker = kafka_broker.KafkaBroker("localhost:1")
    assert broker.offset_range(TopicPartition("t", 0)) == (3, 7)
    assert len(made) == 3
    monkeypatch.setattr(kafka_broker, "CALL_SECONDS", -1.0)
    made.clear()
    broker = kafka_broker.KafkaBroker("localhost:1")
    with pytest.raises(TidemillError, match=r"reading the offset range of t\[0\]"):
        broker.offset_range(TopicPartition("t", 0))
