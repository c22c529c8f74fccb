"""What a cluster says of its brokers and topics, and changes of it: what can eat a pipeline is among these settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection  # noqa: TID251  this is where Kafka clients live
from confluent_kafka.admin import (  # noqa: TID251
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ConfigSource,
    ResourceType,
)

from tidemill.stream.kafka.consumer import CALL_SECONDS
from tidemill.stream.kafka.errors import kafka_error, service_error


@dataclass(frozen=True)
class TopicSettings:
    """One topic as it is: its partitions, the least number of replicas of one, and its settings by name."""

    partitions: int
    replicas: int
    settings: Mapping[str, str]


@dataclass(frozen=True)
class ClusterSettings:
    """The settings of each broker by its id, and topics by name; what the cluster does not say is missing."""

    brokers: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    topics: Mapping[str, TopicSettings] = field(default_factory=dict)


def cluster_settings(admin: AdminClient, topics: Sequence[str]) -> ClusterSettings:
    """Return what the cluster says; nothing where it has no controller to ask. Raises BrokerError."""
    try:
        metadata = admin.list_topics(timeout=CALL_SECONDS)
        if metadata.controller_id not in metadata.brokers:  # librdkafka's mock cluster
            return ClusterSettings()
        existing = {name: metadata.topics[name] for name in topics if name in metadata.topics}
        hidden = [name for name in topics if name not in existing]
        for future in admin.describe_topics(TopicCollection(hidden)).values() if hidden else ():
            _or_none(future, KafkaError.UNKNOWN_TOPIC_OR_PART)  # that it may not be seen is not that it is missing
        asked = [ConfigResource(ResourceType.BROKER, str(number)) for number in metadata.brokers]
        asked += [ConfigResource(ResourceType.TOPIC, name) for name in existing]
        answers = {
            (resource.restype, resource.name): {
                name: entry.value
                for name, entry in (_or_none(future, KafkaError.CLUSTER_AUTHORIZATION_FAILED) or {}).items()
                if entry.value is not None
            }
            for resource, future in admin.describe_configs(asked, request_timeout=CALL_SECONDS).items()
        }
    except KafkaException as error:
        raise service_error(error, "reading the cluster's settings") from error
    return ClusterSettings(
        {number: answers[ResourceType.BROKER, str(number)] for number in metadata.brokers},
        {
            name: TopicSettings(
                len(topic.partitions),
                min((len(partition.replicas) for partition in topic.partitions.values()), default=0),
                answers[ResourceType.TOPIC, name],
            )
            for name, topic in existing.items()
        },
    )


def overrides(admin: AdminClient, topics: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return the settings that topics have of their own, by name."""
    asked = [ConfigResource(ResourceType.TOPIC, name) for name in topics]
    try:
        answers = admin.describe_configs(asked, request_timeout=CALL_SECONDS) if asked else {}
        return {
            resource.name: {
                name: entry.value
                for name, entry in future.result().items()
                if entry.source == ConfigSource.DYNAMIC_TOPIC_CONFIG.value and entry.value is not None
            }
            for resource, future in answers.items()
        }
    except KafkaException as error:
        raise service_error(error, "reading the settings of topics") from error


def change_settings(admin: AdminClient, settings: Mapping[str, Mapping[str, str | None]]) -> None:
    """Give topics settings of their own, by name; of one that is None they have the cluster's. Raises BrokerError."""
    operations = AlterConfigOpType
    resources = [
        ConfigResource(
            ResourceType.TOPIC,
            topic,
            incremental_configs=[
                ConfigEntry(
                    name, value or "", incremental_operation=operations.SET if value is not None else operations.DELETE
                )
                for name, value in values.items()
            ],
        )
        for topic, values in settings.items()
    ]
    try:
        for future in (admin.incremental_alter_configs(resources) if resources else {}).values():
            future.result(CALL_SECONDS * 6)
    except KafkaException as error:
        raise service_error(error, "changing the settings of topics") from error


def _or_none(future: Future[Any], code: int) -> Any:
    """Return the answer, None where it is this error."""
    try:
        return future.result()
    except KafkaException as error:
        if kafka_error(error).code() != code:
            raise
        return None
