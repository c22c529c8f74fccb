"""Manifests on the models topic, the newest or those of certain versions, without reading all of it."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from tidemill.declare.pipeline import Pipeline
from tidemill.keys import RefusedError
from tidemill.registry.alerts import MONITOR
from tidemill.registry.manifests import Manifest, Registry
from tidemill.registry.signing import FIRST_READ_OFFSETS, Chains, Content, Vouched, backwards, read_newest, refusals
from tidemill.stream.api import Broker, Record, TopicPartition
from tidemill.wire import topics

#: A model's name and version.
Version = tuple[str, int]

#: The same, or with the model's epoch.
AnyVersion = TypeVar("AnyVersion", tuple[str, int], tuple[str, int, int])

#: How many manifests back a learner looks for one whose artifact is intact.
MAX_MANIFESTS_BACK = 20


def models_partition(registry: Registry) -> TopicPartition:
    """Return the one partition that holds a pipeline's manifests."""
    return TopicPartition(topics.MODELS.name(registry.pipeline.name), 0)


def latest(
    broker: Broker,
    registry: Registry,
    wanted: Mapping[str, int],
    since: int = 0,
    chains: Chains[Manifest] | None = None,
) -> tuple[dict[str, list[Manifest]], int]:
    """Return the newest manifests of each model (`wanted`: how many at most), newest first, and the end of the topic.

    The newest is the one with the highest epoch and version. The topic is read backwards, so that a service starts as
    fast after a year of versions as after a day. What is refused is logged and skipped. `chains` of these models go on
    after the newest. Nothing before the offset `since` is read.
    """
    chains = Chains(registry.codec) if chains is None else chains
    manifests, end = read_newest(broker, models_partition(registry), chains, wanted, since)
    newest = {model: sorted(own, key=lambda one: one.newness, reverse=True) for model, own in manifests.items()}
    return newest, end


def restore_latest(
    pipeline: Pipeline, broker: Broker, topic: str, chains: Chains[Content], last: int
) -> tuple[list[Content], int]:
    """Return what is valid among the latest records of a signed topic, and its end; see `Chains.restore_last`.

    The newest of each chain by which things stand is among it, wherever it lies. Of decisions, and of requests to
    forget, all are verified: there are few, and nothing says where the one is that counts.
    """
    newest_of = {topics.MODELS.name(pipeline.name): pipeline.model_names, topics.ALERTS.name(pipeline.name): (MONITOR,)}
    all_of = {one.name(pipeline.name) for one in (topics.PROMOTIONS, topics.FORGOTTEN)}
    last = sys.maxsize if topic in all_of else last
    return chains.restore_last(broker, TopicPartition(topic, 0), last, newest_of.get(topic, ()))


def why_none(broker: Broker, registry: Registry, model: str) -> str:
    """Return why a model has no manifest that counts although the topic has some of it; empty where it has none."""
    partition = models_partition(registry)
    count = 0
    for batch in broker.read({partition: broker.offset_range(partition)}):
        for record in batch:
            try:
                manifest = registry.codec.parse(record.value() or b"")
                registry.codec.belongs(manifest, record.key())
            except RefusedError:
                continue
            count += manifest.model == model
    if not count:
        return ""
    reset = reset_command(registry.pipeline.name, model)
    return (
        f"{partition.topic} has {count:,} manifests of model {model!r}, and none with a valid signature: set the key "
        f"that they were signed with, or begin another life of the model: {reset}"
    )


def reset_command(pipeline: str, model: str) -> str:
    """Return the command that begins another life of a model, for a person to copy."""
    return f'`tidemill models reset {pipeline} {model} --why "..."`'


def versions(
    broker: Broker, registry: Registry, wanted: Collection[AnyVersion]
) -> tuple[dict[AnyVersion, Manifest], dict[AnyVersion, str]]:
    """Return the manifests of these versions, and for a version with only a refused manifest why that was refused.

    The topic is read backwards until all are found. Where several lives of a model have a version of that number, the
    last life counts unless the epoch is given.
    """
    manifests: dict[AnyVersion, Manifest] = {}
    refused: dict[AnyVersion, str] = {}
    partition, reading = models_partition(registry), Vouched(registry.codec)
    missing: dict[tuple[Any, ...], AnyVersion] = {version: version for version in wanted}
    low, high = broker.offset_range(partition)
    for begin, end in backwards(low, high, FIRST_READ_OFFSETS, growth=4):
        if not missing:
            break
        for record in reversed([record for batch in broker.read({partition: (begin, end)}) for record in batch]):
            manifest, why = _checked(reading, record)
            if manifest is None:
                continue
            named = manifest.model, manifest.version, manifest.epoch
            for version in (missing[key] for key in (named[:2], named) if key in missing):
                if why:
                    refused.setdefault(version, f"model {named[0]!r} version {named[1]}: {why}")
                elif version not in manifests or manifests[version].epoch < manifest.epoch:
                    manifests[version] = manifest
        missing = {version: version for version in missing.values() if version not in manifests}
    return manifests, {version: why for version, why in refused.items() if version in missing}


def _checked(reading: Vouched[Manifest], record: Record) -> tuple[Manifest | None, str]:
    """Return the manifest that a record holds, None where it holds none; and why it is refused, or ""."""
    try:
        return reading.check(record), ""
    except RefusedError as error:
        refusals.note(record.topic(), record.offset(), record.value() or b"", error)
        why = str(error)
    try:
        return reading.codec.parse(record.value() or b""), why
    except RefusedError:
        return None, why
