"""Superseded examples: how many of those that a version has learned have another label by now.

reads   <pipeline>.examples, twice
memory  an entry for each corrected example
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection

from tidemill.declare.pipeline import Pipeline
from tidemill.models.corrections import Corrections, Key, key_of
from tidemill.models.refold import FoldRange
from tidemill.stream.api import Broker, Progress
from tidemill.stream.ranges import full_range
from tidemill.wire import topics
from tidemill.wire.records import Records


def superseded(
    pipeline: Pipeline, broker: Broker, targets: Collection[FoldRange], progress: Progress | None = None
) -> dict[FoldRange, int]:
    """Return, for each version, how many of its examples have another last label than the one it has learned."""
    records, ranges = Records(pipeline), full_range(broker, topics.EXAMPLES.name(pipeline.name))
    before = {one.model: pipeline.corrected_before(one.model) for one in targets}
    learned = {offset: Corrections(records, offset) for offset in before.values()}
    last = Corrections(records)
    for batch in broker.read(ranges):
        for record in batch:
            if last.take(record):
                for corrections in learned.values():
                    corrections.take(record)
        if progress:
            progress(len(batch))
    #: By the offset before which a fold knew corrections: where the examples lie whose label is another now.
    differing: dict[int, list[int]] = {offset: [] for offset in learned}
    if last.labels:
        for batch in broker.read(ranges):
            for record in batch:
                example = None if last.is_one(record) else records.example.of(record.value())
                if example is None:
                    continue
                key: Key = key_of(example["prediction"]["features"])
                now = last.label(key, example["label"])
                for offset, corrections in learned.items():
                    if corrections.label(key, example["label"]) != now:
                        differing[offset].append(record.offset())
    return {
        one: bisect_left(differing[before[one.model]], one.version)
        - bisect_left(differing[before[one.model]], one.begin)
        for one in targets
    }
