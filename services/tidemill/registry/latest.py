"""Manifests on the models topic, the newest or those of certain versions, without reading all of it."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeVar

from tidemill.errors import ArtifactError
from tidemill.registry.manifests import Manifest, Registry
from tidemill.stream.api import Broker, Record, TopicPartition
from tidemill.wire import topics

log = logging.getLogger(__name__)

#: A model's name and version.
Version = tuple[str, int]

#: The same, or with the model's epoch.
AnyVersion = TypeVar("AnyVersion", tuple[str, int], tuple[str, int, int])

#: How many manifests back a learner looks for one whose artifact is intact.
MAX_MANIFESTS_BACK = 20

#: How many offsets are read first; each further read is four times as long.
FIRST_READ_OFFSETS = 250


def models_partition(registry: Registry) -> TopicPartition:
    """Return the one partition that holds a pipeline's manifests."""
    return TopicPartition(topics.MODELS.name(registry.pipeline.name), 0)


def valid_manifest(registry: Registry, record: Record) -> Manifest | None:
    """Return the manifest of a record; None, and a line in the log, where it is damaged or forged."""
    try:
        return registry.decode(record.value() or b"")
    except ArtifactError as error:
        log.error("manifest refused", extra={"cause": str(error), "offset": record.offset()})
        return None


def backwards(low: int, high: int, step: int, growth: int = 1, most: int | None = None) -> Iterator[tuple[int, int]]:
    """Yield ranges [begin, end) of offsets from `high` back to `low`.

    The first range has `step` offsets, each further one `growth` times as many, and `most` at most.
    """
    while high > low:
        yield (begin := max(low, high - step)), high
        high, step = begin, step * growth if most is None else min(step * growth, most)


def latest(
    broker: Broker, registry: Registry, wanted: Mapping[str, int], since: int = 0
) -> tuple[dict[str, list[Manifest]], int]:
    """Return the last manifests of each model (`wanted`: how many at most), newest first, and the end of the topic.

    The topic is read backwards, so that a service starts as fast after a year of versions as after a day. Damaged and
    forged manifests are logged and skipped. Nothing before the offset `since` is read.
    """
    partition = models_partition(registry)
    low, high = broker.offset_range(partition)
    manifests: dict[str, list[Manifest]] = {model: [] for model in wanted}
    for begin, end in backwards(max(low, since), high, FIRST_READ_OFFSETS, growth=4):
        if all(len(manifests[model]) >= many for model, many in wanted.items()):
            break
        for record in reversed([record for batch in broker.read({partition: (begin, end)}) for record in batch]):
            model = (record.key() or b"").decode(errors="replace")
            if len(manifests.get(model, ())) >= wanted.get(model, 0):
                continue
            manifest = valid_manifest(registry, record)
            if manifest and manifest.model == model:
                manifests[model].append(manifest)
    return manifests, high


def versions(
    broker: Broker, registry: Registry, wanted: Collection[AnyVersion]
) -> tuple[dict[AnyVersion, Manifest], dict[AnyVersion, str]]:
    """Return the manifests of these versions, and for a version with only a forged manifest why that was refused.

    The topic is read backwards until all are found. Where several lives of a model have a version of that number, the
    last life counts unless the epoch is given.
    """
    manifests: dict[AnyVersion, Manifest] = {}
    refused: dict[AnyVersion, str] = {}
    partition, codec = models_partition(registry), registry.records.manifest
    missing: dict[tuple[Any, ...], AnyVersion] = {version: version for version in wanted}
    low, high = broker.offset_range(partition)
    for begin, end in backwards(low, high, FIRST_READ_OFFSETS, growth=4):
        if not missing:
            break
        for batch in broker.read({partition: (begin, end)}):
            for record in batch:
                value = record.value() or b""
                try:
                    fields = codec.decode(value)
                except Exception:  # forged bytes may make the decoder raise anything
                    log.error("manifest refused", extra={"cause": "it can't be decoded", "offset": record.offset()})
                    continue
                named = fields["model"], fields["version"], fields["epoch"]
                for version in (missing[key] for key in (named[:2], named) if key in missing):
                    if version in manifests and manifests[version].epoch > fields["epoch"]:
                        continue
                    try:
                        manifests[version] = registry.decode(value)
                    except ArtifactError as error:
                        refused[version] = str(error)
        missing = {version: version for version in missing.values() if version not in manifests}
    return manifests, {version: why for version, why in refused.items() if version in missing}
