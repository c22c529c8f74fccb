"""What librdkafka's errors mean to a service: fenced, a record that is refused, not allowed, or try again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException  # noqa: TID251  this is where Kafka clients live

from tidemill.errors import Aborted, BrokerError, Fenced, NotAllowed, Refused

_FENCED_CODES = {
    KafkaError._FENCED,
    KafkaError.PRODUCER_FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
    KafkaError.FENCED_INSTANCE_ID,
}

#: What a record will get each time that it is sent.
_REFUSED_CODES = {
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.RECORD_LIST_TOO_LARGE,
    KafkaError.INVALID_RECORD,
    KafkaError.INVALID_TIMESTAMP,
    KafkaError.POLICY_VIOLATION,
    KafkaError.UNSUPPORTED_FOR_MESSAGE_FORMAT,
}

_NOT_ALLOWED_CODES = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
}

#: A fenced consumer's error has the general code "fatal"; only its text names the cause.
_STATIC_MEMBER_FENCED = "Static consumer fenced"


def kafka_error(exception: KafkaException) -> KafkaError:
    """Return the error inside of an exception."""
    error = exception.args[0]
    assert isinstance(error, KafkaError)  # noqa: S101  confluent-kafka's own contract
    return error


def service_error(exception: KafkaException, doing: str) -> BrokerError:
    """Return Fenced where another process has this instance's place, Refused for what no further try can change,
    NotAllowed where an ACL is missing, Aborted for everything else.
    """
    error = kafka_error(exception)
    if error.code() in _FENCED_CODES or _STATIC_MEMBER_FENCED in error.str():
        return Fenced(f"{doing}: another process has taken this instance's place ({error.name()})")
    if error.code() in _NOT_ALLOWED_CODES:
        return NotAllowed(
            f"{doing}: {error.str()} ({error.name()}); grant it to the service's user, then start it again"
        )
    kind = Refused if error.code() in _REFUSED_CODES else Aborted
    return kind(f"{doing}: {error.str()} ({error.name()})")


def is_refusal(error: KafkaError) -> bool:
    """Whether a record will get this error each time that it is sent."""
    return error.code() in _REFUSED_CODES


def without_errors(messages: Sequence[Any]) -> list[Any]:
    """Return the messages that are records. Raises KafkaException for an error that polling again does not fix."""
    for message in messages:
        error = message.error()
        if error is not None and error.code() != KafkaError._PARTITION_EOF:
            if error.retriable() or error.code() in (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN):
                continue
            raise KafkaException(error)
    return [message for message in messages if message.error() is None]
