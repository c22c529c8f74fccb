"""Versions as they were: one fold of each model over the examples comes by all that are asked for.

reads   <pipeline>.examples, from the first one that any of them has learned to the last
memory  one model of each name and beginning
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

from tidemill.declare.pipeline import Pipeline
from tidemill.models.fold import Fold
from tidemill.stream.api import Broker, Record, TopicPartition
from tidemill.wire import topics
from tidemill.wire.records import Records

Progress = Callable[[int], None]


class Wanted(NamedTuple):
    """A version of a model: the fold over examples[begin..version)."""

    model: str
    version: int
    begin: int = 0


class Reached(NamedTuple):
    """The fold that has come to a version, and goes on afterwards; None where none can, and why."""

    wanted: Wanted
    fold: Fold | None
    why: str = ""


class Refold:
    """One pass over a pipeline's examples."""

    def __init__(self, pipeline: Pipeline, broker: Broker) -> None:
        self.pipeline, self.broker = pipeline, broker
        self.topic = topics.EXAMPLES.name(pipeline.name)
        self._codec = Records(pipeline).example

    def snapshots(self, wanted: Collection[Wanted], progress: Progress | None = None) -> Iterator[Reached]:
        """Yield versions in their order, each while the fold stands at it."""
        slot = TopicPartition(self.topic, 0)
        low, high = self.broker.offset_range(slot)
        waiting: list[Wanted] = []
        for one in sorted(wanted, key=lambda one: one.version):
            why = self._unfoldable(one, low, high)
            if why:
                yield Reached(one, None, why)
            else:
                waiting.append(one)
        # In order of version, so that the last one of each name and beginning stays.
        last = {(one.model, one.begin): one.version for one in waiting}
        folds = {(model, begin): Fold(self.pipeline, model, begin) for model, begin in last}
        # Version 0 has learned nothing.
        begin = min((begin for (_, begin), version in last.items() if version), default=0)
        read = self.broker.read({slot: (begin, max(last.values(), default=0))})
        at = 0
        for record in (record for batch in read for record in batch):
            while at < len(waiting) and waiting[at].version <= record.offset():
                yield self._come_to(waiting[at], folds[waiting[at].model, waiting[at].begin])
                at += 1
            going = [fold for key, fold in folds.items() if key[1] <= record.offset() < last[key]]
            self._learn(going, record)
            if progress:
                progress(1)
        for one in waiting[at:]:
            yield self._come_to(one, folds[one.model, one.begin])

    def _unfoldable(self, wanted: Wanted, low: int, high: int) -> str:
        """Return why the examples can't be folded to a version; nothing where they can."""
        what = f"model {wanted.model!r} version {wanted.version} can't be folded again"
        if wanted.version and low > wanted.begin:
            return f"{what}: {self.topic} does not reach back to {wanted.begin:,} any more, its first offset is {low:,}"
        if wanted.version > high:
            return f"{what}: {self.topic} ends at {high:,}; it was begun again, or cut"
        return ""

    def _come_to(self, wanted: Wanted, fold: Fold) -> Reached:
        if fold.version == wanted.version:
            return Reached(wanted, fold)
        before = (
            f"the last example before that offset lies at {fold.version - 1:,}"
            if fold.examples
            else "no example lies before"
        )
        return Reached(
            wanted, None,
            f"model {wanted.model!r} version {wanted.version} can't be folded again: {before} in {self.topic}, and it has learned the "
            f"one at {wanted.version - 1:,}: the topic was begun again",
        )  # fmt: skip

    def _learn(self, folds: Sequence[Fold], record: Record) -> None:
        """Learn what a learner does, and pass over what it passes over."""
        value = record.value() or b""
        if not folds or not value.startswith(self._codec.header):
            return
        example = self._codec.decode(value)
        for fold in folds:
            try:
                fold.learn(example, record.offset())
            except Exception:  # noqa: S112  a model's own code; the learner has told it in its log, and went on
                continue
