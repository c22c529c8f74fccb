"""What librdkafka's errors mean to a service: fenced, or go back to what is committed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException  # noqa: TID251  this is where Kafka clients live

from tidemill.errors import Aborted, BrokerError, Fenced

_FENCED_CODES = {
    KafkaError._FENCED,
    KafkaError.PRODUCER_FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
    KafkaError.FENCED_INSTANCE_ID,
}

#: A fenced consumer's error has the general code "fatal"; only its text names the cause.
_STATIC_MEMBER_FENCED = "Static consumer fenced"


def kafka_error(exception: KafkaException) -> KafkaError:
    """Return the error inside of an exception."""
    error = exception.args[0]
    assert isinstance(error, KafkaError)  # noqa: S101  confluent-kafka's own contract
    return error


def service_error(exception: KafkaException, doing: str) -> BrokerError:
    """Return Fenced where another process has this instance's place, Aborted for everything else."""
    error = kafka_error(exception)
    if error.code() in _FENCED_CODES or _STATIC_MEMBER_FENCED in error.str():
        return Fenced(f"{doing}: another process has taken this instance's place ({error.name()})")
    return Aborted(f"{doing}: {error.str()} ({error.name()})")


def without_errors(messages: Sequence[Any]) -> list[Any]:
    """Return the messages that are records. Raises KafkaException for an error that polling again does not fix."""
    for message in messages:
        error = message.error()
        if error is not None and error.code() != KafkaError._PARTITION_EOF:
            if error.retriable() or error.code() in (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN):
                continue
            raise KafkaException(error)
    return [message for message in messages if message.error() is None]
