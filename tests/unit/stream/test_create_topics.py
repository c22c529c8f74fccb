"""Topics that can't be created end in a sentence, never in a traceback."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from confluent_kafka import KafkaError, KafkaException

from tidemill.errors import BrokerError
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.wire.topics import EVENTS


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (TimeoutError(), "flights.events was not created within 60 s"),
        (KafkaException(KafkaError(KafkaError.INVALID_REPLICATION_FACTOR)), "flights.events can't be created"),
    ],
)
def test_a_topic_that_is_not_created_is_named(failure: Exception, words: str) -> None:
    result: Future[None] = Future()
    result.set_exception(failure)
    broker = KafkaBroker("localhost:1", exactly_once=True)
    broker._admin_client = SimpleNamespace(
        list_topics=lambda **_: SimpleNamespace(topics={}, brokers={}, controller_id=-1),
        create_topics=lambda _: {"flights.events": result},
    )
    with pytest.raises(BrokerError, match=words):
        broker.create([(EVENTS, "flights.events", 1)])


def test_a_cluster_that_does_not_answer_is_named() -> None:
    def list_topics(**_: object) -> None:
        raise KafkaException(KafkaError(KafkaError._TRANSPORT))

    broker = KafkaBroker("localhost:1", exactly_once=True)
    broker._admin_client = SimpleNamespace(list_topics=list_topics)
    with pytest.raises(BrokerError, match="the topics at localhost:1 can't be listed"):
        broker.create([(EVENTS, "flights.events", 1)])
