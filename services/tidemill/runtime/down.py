"""A pipeline is retired: its groups, its features, its artifacts and its topics are deleted, for good.

order   topics last: they say which artifacts there are, so a run that breaks off is done again from the beginning
stays   the topics of producers that were there before the pipeline, and the archive
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tidemill.declare.pipeline import Pipeline
from tidemill.errors import SettingsError
from tidemill.features.redis import connect, delete_keys, stored_keys
from tidemill.registry import pruning
from tidemill.registry.manifests import Registry
from tidemill.registry.versions import Versions
from tidemill.settings import Settings
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.stream.ranges import full_range
from tidemill.wire import topics


@dataclass
class Retirement:
    """What a pipeline has: topics with their records, groups with their members, views with their keys, artifacts.

    `others`: topics that it reads and that were there before it. `artifacts` is None where no key verifies manifests.
    """

    pipeline: str
    topics: dict[str, int]
    others: list[str]
    groups: dict[str, int]
    views: dict[str, int]
    artifacts: list[str] | None
    bytes: int = 0
    is_done: bool = False

    @property
    def running(self) -> list[str]:
        """Groups that have members: services that run."""
        return [name for name, members in self.groups.items() if members]

    def check_stopped(self) -> None:
        """Raise SettingsError where services run."""
        if self.running:
            raise SettingsError(f"services of {self.pipeline} run ({', '.join(self.running)}): stop them first")

    def as_dict(self) -> dict[str, Any]:
        """Return it for programs."""
        return dataclasses.asdict(self)


def plan(pipeline: Pipeline, broker: KafkaBroker, registry: Registry | None, settings: Settings) -> Retirement:
    """Return what there is to delete. Raises a TidemillError where Kafka or Redis is away."""
    own = {topic.name(pipeline): topic for topic in topics.TOPICS}
    others = [name for name in pipeline.raw_topics.values() if name]
    states = broker.topic_states([name for name in own if name not in others])
    records = {
        name: sum(end - begin for begin, end in full_range(broker, name).values()) for name in own if name in states
    }
    artifacts, size = None, 0
    if registry is not None and topics.MODELS.name(pipeline) in records:
        artifacts = pruning.everything(Versions(pipeline, broker, registry).read(), registry)
        size = sum(registry.store.size(digest) or 0 for digest in artifacts)
    client = connect(settings.redis_address())
    try:
        views = stored_keys(client, pipeline.name, (view.label for view in pipeline.views))
    finally:
        client.close()
    return Retirement(pipeline.name, records, others, broker.groups(f"{pipeline.name}."), views, artifacts, size)


def retire(
    retirement: Retirement,
    broker: KafkaBroker,
    registry: Registry | None,
    settings: Settings,
    done: Callable[[str], None],
) -> None:
    """Delete what was planned; `done` is told what was. Raises SettingsError where services run."""
    retirement.check_stopped()
    broker.delete(groups=list(retirement.groups))
    done(f"{len(retirement.groups)} consumer groups")
    client = connect(settings.redis_address())
    try:
        for view in retirement.views:
            delete_keys(client, retirement.pipeline, view)
            done(f"view {view}")
    finally:
        client.close()
    if registry is not None and retirement.artifacts is not None:
        for digest in retirement.artifacts:
            registry.store.delete(digest)
        done(f"{len(retirement.artifacts):,} artifacts")
    broker.delete(list(retirement.topics))
    done(f"{len(retirement.topics)} topics")
    retirement.is_done = True
