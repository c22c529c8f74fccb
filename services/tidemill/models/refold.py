"""Versions as they were: one fold of each model over the examples passes all versions that are asked for.

reads   <pipeline>.examples, from the first one that any of them has learned to the last
memory  one model for each name and first example; the corrections that candidates have learned
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from tidemill.declare.pipeline import Pipeline
from tidemill.models.corrections import Corrections
from tidemill.models.fold import Fold
from tidemill.stream.api import Broker, Progress, Record, TopicPartition
from tidemill.wire import topics
from tidemill.wire.records import Records


class FoldRange(NamedTuple):
    """A version of a model: the fold over examples[begin..version)."""

    model: str
    version: int
    begin: int = 0


class Refolded(NamedTuple):
    """The fold while it stands at a version; it goes on afterwards. Without a fold, `why` says why."""

    target: FoldRange
    fold: Fold | None
    why: str = ""


class Refold:
    """One pass over a pipeline's examples."""

    def __init__(self, pipeline: Pipeline, broker: Broker) -> None:
        self.pipeline, self.broker = pipeline, broker
        self.topic = topics.EXAMPLES.name(pipeline.name)
        self._records = Records(pipeline)
        self._codec = self._records.example
        self._corrections: dict[str, Corrections] = {}

    def snapshots(self, targets: Collection[FoldRange], progress: Progress | None = None) -> Iterator[Refolded]:
        """Yield versions in their order, each while the fold stands at it."""
        partition = TopicPartition(self.topic, 0)
        low, high = self.broker.offset_range(partition)
        waiting: list[FoldRange] = []
        for one in sorted(targets, key=lambda one: one.version):
            why = self._unfoldable(one, low, high)
            if why:
                yield Refolded(one, None, why)
            else:
                waiting.append(one)
        # In order of version, so that the last one of each name and beginning stays.
        last = {(one.model, one.begin): one.version for one in waiting}
        folds = {(model, begin): Fold(self.pipeline, model, begin) for model, begin in last}
        # Version 0 has learned nothing.
        begin = min((begin for (_, begin), version in last.items() if version), default=0)
        self._corrections = self._gathered({model for model, _ in last}, begin)
        read = self.broker.read({partition: (begin, max(last.values(), default=0))})
        at = 0
        for record in (record for batch in read for record in batch):
            while at < len(waiting) and waiting[at].version <= record.offset():
                yield self._reach(waiting[at], folds[waiting[at].model, waiting[at].begin])
                at += 1
            going = [fold for key, fold in folds.items() if key[1] <= record.offset() < last[key]]
            self._learn(going, record)
            if progress:
                progress(1)
        for one in waiting[at:]:
            yield self._reach(one, folds[one.model, one.begin])

    def _gathered(self, models: Collection[str], begin: int) -> dict[str, Corrections]:
        """Return, by the name of a candidate that has learned corrected labels, the corrections that it knew."""
        before = {model: self.pipeline.corrected_before(model) for model in models}
        gathered = {model: Corrections(self._records, offset) for model, offset in before.items() if offset}
        if gathered:
            partition = TopicPartition(self.topic, 0)
            for batch in self.broker.read({partition: (begin, max(before.values()))}):
                for record in batch:
                    for corrections in gathered.values():
                        corrections.take(record)
        return gathered

    def _unfoldable(self, target: FoldRange, low: int, high: int) -> str:
        """Return why the examples can't be folded to a version; empty where they can."""
        what = f"model {target.model!r} version {target.version} can't be folded again"
        if target.version and low > target.begin:
            return f"{what}: {self.topic} does not reach back to {target.begin:,} any more, its first offset is {low:,}"
        if max(target.version, self.pipeline.corrected_before(target.model)) > high:
            return f"{what}: {self.topic} ends at {high:,}; it was created again, or truncated"
        return ""

    def _reach(self, target: FoldRange, fold: Fold) -> Refolded:
        if fold.version == target.version:
            return Refolded(target, fold)
        before = (
            f"the last example before that offset lies at {fold.version - 1:,}"
            if fold.examples
            else "no example lies before"
        )
        return Refolded(
            target,
            None,
            f"model {target.model!r} version {target.version} can't be folded again: {before} in {self.topic}, "
            f"and it has learned the one at {target.version - 1:,}: the topic was created again",
        )

    def _learn(self, folds: Sequence[Fold], record: Record) -> None:
        """Learn as a learner does, and skip what it skips: corrections among it."""
        example = self._codec.of(record.value()) if folds else None
        if example is None:
            return
        for fold in folds:
            corrections = self._corrections.get(fold.name)
            try:
                fold.learn(corrections.apply(example) if corrections else example, record.offset())
            except Exception:  # noqa: S112  a model's own code; the learner has logged it, and went on
                continue
