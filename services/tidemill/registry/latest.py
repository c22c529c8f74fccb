"""Manifests on the models topic, the newest or those of certain versions, without reading all of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from tidemill.keys import RefusedError
from tidemill.registry.manifests import Manifest, Registry
from tidemill.registry.signing import FIRST_READ_OFFSETS, Chains, Vouched, backwards, read_newest, refusals
from tidemill.stream.api import Broker, Record, TopicPartition
from tidemill.wire import topics

#: A model's name and version.
Version = tuple[str, int]

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
    """Return the last manifests of each model (`wanted`: how many at most), newest first, and the end of the topic.

    The topic is read backwards, so that a service starts as fast after a year of versions as after a day. What is
    refused is logged and skipped. `chains` of these models go on after the newest. Nothing before the offset `since` is
    read.
    """
    chains = Chains(registry.codec) if chains is None else chains
    return read_newest(broker, models_partition(registry), chains, wanted, since)


def versions(
    broker: Broker, registry: Registry, wanted: Collection[Version]
) -> tuple[dict[Version, Manifest], dict[Version, str]]:
    """Return the manifests of these versions, and for a version with only a refused manifest why that was refused.

    The topic is read backwards until all are found. Of a version that was published twice, the newer manifest counts.
    """
    manifests: dict[Version, Manifest] = {}
    refused: dict[Version, str] = {}
    partition, missing = models_partition(registry), set(wanted)
    reading = Vouched(registry.codec)
    low, high = broker.offset_range(partition)
    for begin, end in backwards(low, high, FIRST_READ_OFFSETS, growth=4):
        if not missing:
            break
        for record in reversed([record for batch in broker.read({partition: (begin, end)}) for record in batch]):
            try:
                manifest = reading.check(record)
            except RefusedError as error:
                refusals.note(partition.topic, record.offset(), record.value() or b"", error)
                if version := _version_of(registry, record):
                    refused.setdefault(version, f"model {version[0]!r} version {version[1]}: {error}")
                continue
            version = manifest.model, manifest.version
            if version in missing:
                manifests.setdefault(version, manifest)
        missing -= manifests.keys()
    return manifests, {version: why for version, why in refused.items() if version in missing}


def _version_of(registry: Registry, record: Record) -> Version | None:
    """Return the version that a refused record says that it is."""
    try:
        manifest = registry.codec.parse(record.value() or b"")
    except RefusedError:
        return None
    return manifest.model, manifest.version
