"""The newest manifests on the models topic, without reading all of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

from tidemill import topics
from tidemill.errors import ArtifactError
from tidemill.registry.manifests import Manifest, Registry
from tidemill.stream.api import Broker, Record, Slot

log = logging.getLogger(__name__)

WINDOW = 250
"""How many offsets are read first; four times as many each time that this was not enough."""


def slot_of(registry: Registry) -> Slot:
    """Return the one slot that holds a pipeline's manifests."""
    return Slot(topics.MODELS.name(registry.pipeline.name), 0)


def sound(registry: Registry, record: Record) -> Manifest | None:
    """Return the manifest of a record; None, and a line in the log, where it is damaged or forged."""
    try:
        return registry.decode(record.value() or b"")
    except ArtifactError as error:
        log.error("manifest refused", extra={"cause": str(error), "offset": record.offset()})
        return None


def backwards(low: int, high: int, step: int, growth: int = 1, most: int | None = None) -> Iterator[tuple[int, int]]:
    """Yield ranges [begin, end) of offsets from `high` back to `low`: `step` of them first, then `growth` times as many each.

    `most`: how many a range has at most.
    """
    while high > low:
        yield (begin := max(low, high - step)), high
        high, step = begin, step * growth if most is None else min(step * growth, most)


def latest(
    broker: Broker, registry: Registry, wanted: Mapping[str, int], since: int = 0
) -> tuple[dict[str, list[Manifest]], int]:
    """Return the last manifests of each model (`wanted`: how many at most), newest first, and the end of the topic.

    It is read backwards, so that a service starts as fast after a year of versions as after a day. What is damaged or
    forged is logged and passed over, and counts for nothing. Nothing before the offset `since` is looked at.
    """
    slot = slot_of(registry)
    low, high = broker.watermarks(slot)
    found: dict[str, list[Manifest]] = {model: [] for model in wanted}
    for begin, end in backwards(max(low, since), high, WINDOW, growth=4):
        if all(len(found[model]) >= many for model, many in wanted.items()):
            break
        for record in reversed([record for batch in broker.read({slot: (begin, end)}) for record in batch]):
            model = (record.key() or b"").decode(errors="replace")
            if len(found.get(model, ())) >= wanted.get(model, 0):
                continue
            manifest = sound(registry, record)
            if manifest and manifest.model == model:
                found[model].append(manifest)
    return found, high
