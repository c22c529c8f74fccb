"""What librdkafka's errors mean to a service: fenced, a record that is refused, not allowed, or try again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException  # noqa: TID251  this is where Kafka clients live

from tidemill.errors import Aborted, BrokerError, Fenced, NotAllowed, Refused
from tidemill.stream import unique_keys

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

#: An ACL is missing.
NOT_ALLOWED_CODES = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
}

MAX_REASON = 300
#: What librdkafka says of a server that is reached, and not as it wants to be: what that means, and what to do.
_REACHED_WRONGLY = {
    "invalid credentials": ("it refuses user and password", "set TIDEMILL_KAFKA_USER and TIDEMILL_KAFKA_PASSWORD"),
    "Unsupported SASL mechanism": ("it does not take the mechanism", "set TIDEMILL_KAFKA_MECHANISM"),
    "OAUTHBEARER token": (
        "there is no token for it",
        "set TIDEMILL_KAFKA_TOKEN_URL, and TIDEMILL_KAFKA_USER and _PASSWORD to the client's id and secret",
    ),
    "not valid in current SASL state": (
        "this port takes no user",
        "leave TIDEMILL_KAFKA_USER out, or name the port that does in TIDEMILL_BROKERS",
    ),
    "SASL authentication error": (
        "it refuses the user",
        "set TIDEMILL_KAFKA_USER, TIDEMILL_KAFKA_PASSWORD and TIDEMILL_KAFKA_MECHANISM",
    ),
    "require SASL": ("it may want a user", "set TIDEMILL_KAFKA_USER and TIDEMILL_KAFKA_PASSWORD"),
    "to a SSL listener": ("this port may speak TLS", "set TIDEMILL_KAFKA_TLS=true"),
    "to a PLAINTEXT broker": (
        "this port speaks no TLS",
        "leave TIDEMILL_KAFKA_TLS out, or name the port that does in TIDEMILL_BROKERS",
    ),
    "certificate verify failed": (
        "its certificate is not trusted, or of another name",
        "set TIDEMILL_KAFKA_CA to the file of its authorities, and TIDEMILL_BROKERS to the name",
    ),
    "alert": (
        "it refuses this client's certificate, or wants one",
        "set TIDEMILL_KAFKA_CERTIFICATE and TIDEMILL_KAFKA_KEY",
    ),
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
    if error.code() in NOT_ALLOWED_CODES:
        return NotAllowed(
            f"{doing}: {error.str()} ({error.name()}); grant it to the service's user, as `tidemill acl` "
            f"lists it, then start it again"
        )
    kind = Refused if error.code() in _REFUSED_CODES else Aborted
    return kind(f"{doing}: {error.str()} ({error.name()})")


def not_connected(servers: str, reason: str) -> BrokerError:
    """Return why a cluster can't be used: it is not there, or speaks another protocol, or refuses who asks."""
    reason = " ".join(reason.split())[:MAX_REASON]  # it may be an issuer's whole page
    for words, (meaning, fix) in _REACHED_WRONGLY.items():
        if words in reason:
            return BrokerError(f"Kafka at {servers} can't be used: {meaning} ({reason}); {fix}")
    return BrokerError(f"no Kafka at {servers}: {reason}; start it or set TIDEMILL_BROKERS")


def is_refusal(error: KafkaError) -> bool:
    """Whether a record will get this error each time that it is sent."""
    return error.code() in _REFUSED_CODES


def without_errors(messages: Sequence[Any]) -> list[Any]:
    """Return the messages that are records, each with its natural key; what erases a record is none.

    Raises KafkaException for an error that polling again does not fix.
    """
    stored = stored_records(messages)
    if not unique_keys.may_be_among([message.key() for message in stored]):
        return stored
    records = []
    for message in stored:
        if unique_keys.is_unique(key := message.key()):
            if message.value() is None:
                continue
            message.set_key(unique_keys.natural(key))
        records.append(message)
    return records


def stored_records(messages: Sequence[Any]) -> list[Any]:
    """Return the messages that are records, as Kafka has them. Raises as `without_errors` does."""
    for message in messages:
        error = message.error()
        if error is not None and error.code() != KafkaError._PARTITION_EOF:
            if error.retriable() or error.code() in (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN):
                continue
            raise KafkaException(error)
    return [message for message in messages if message.error() is None]
