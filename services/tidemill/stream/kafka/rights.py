"""What a client's user may do with topics and groups, by the brokers' own answer."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future
from typing import Any

from confluent_kafka import KafkaException, TopicCollection  # noqa: TID251  this is where Kafka clients live
from confluent_kafka.admin import AdminClient  # noqa: TID251

from tidemill.stream.kafka.consumer import CALL_SECONDS
from tidemill.stream.kafka.errors import NOT_ALLOWED_CODES, kafka_error


def lacking(
    admin: AdminClient, topics: Mapping[str, Collection[str]], groups: Mapping[str, Collection[str]]
) -> list[str]:
    """Return what is not allowed of operations on topics, by name, and on groups.

    Nothing is said of topics that do not exist, and of what the cluster can't say now: that shows when it is used.
    """
    with contextlib.suppress(KafkaException):
        metadata = admin.list_topics(next(iter(topics)), timeout=CALL_SECONDS)
        if metadata.controller_id not in metadata.brokers:
            return []
        asked: dict[str, Any] = {"request_timeout": CALL_SECONDS, "include_authorized_operations": True}
        answers = admin.describe_topics(TopicCollection(list(topics)), **asked)
        lacks = [one for name, future in answers.items() for one in _lacks("topic", name, topics[name], future)]
        answers = admin.describe_consumer_groups(list(groups), **asked) if groups else {}
        return lacks + [one for name, future in answers.items() for one in _lacks("group", name, groups[name], future)]
    return []


def _lacks(kind: str, name: str, needed: Collection[str], future: Future[Any]) -> Iterator[str]:
    try:
        allowed = future.result().authorized_operations
    except KafkaException as error:
        if kafka_error(error).code() not in NOT_ALLOWED_CODES:
            return
        allowed = []
    if allowed is None:  # a broker that does not say
        return
    names = {operation.name for operation in allowed}
    missing = [one for one in sorted(needed) if re.sub(r"(?<!^)(?=[A-Z])", "_", one).upper() not in names]
    if missing:
        yield f"{', '.join(missing)} on {kind} {name} ({kind.upper()}_AUTHORIZATION_FAILED)"
