"""What of topics that exist is not as declared and can be changed: their settings, and never their partitions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tidemill.declare.pipeline import Pipeline
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.wire import topics


@dataclass(frozen=True)
class SettingChange:
    """One setting of a topic: what it is, and what it becomes; `deletes`: Kafka then deletes records that it has."""

    topic: str
    setting: str
    value: str
    becomes: str
    deletes: bool

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return asdict(self)


def plan(pipeline: Pipeline, broker: KafkaBroker) -> list[SettingChange]:
    """Return what has to change. Topics of producers that were there before the pipeline stay as they are.

    Raises BrokerError where the cluster does not answer.
    """
    own = [topic for topic in topics.TOPICS if not pipeline.raw_topics.get(topic.suffix)]
    cluster = broker.settings([topic.name(pipeline) for topic in own])
    changes = []
    for topic in own:
        if (actual := cluster.topics.get(topic.name(pipeline))) is None:
            continue
        for setting, becomes in topic.of(pipeline).config(actual.replicas).items():
            value = actual.settings.get(setting)
            if value is not None and value != becomes:
                deletes = _deletes(setting, value, becomes)
                changes.append(SettingChange(topic.name(pipeline), setting, value, becomes, deletes))
    return changes


def _deletes(setting: str, value: str, becomes: str) -> bool:
    if setting == "cleanup.policy":
        return True  # by age where there was no age, or all but the last of each key
    return setting == "retention.ms" and int(becomes) >= 0 and not 0 <= int(value) <= int(becomes)


def apply(broker: KafkaBroker, changes: Sequence[SettingChange]) -> None:
    """Make these changes. Raises BrokerError."""
    settings: dict[str, dict[str, str]] = {}
    for change in changes:
        settings.setdefault(change.topic, {})[change.setting] = change.becomes
    broker.change_topics(settings)
