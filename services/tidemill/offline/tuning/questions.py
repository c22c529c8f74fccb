"""What candidates are asked and taught: examples, asked at the event's time and learned when the label was known.

The order of learning is the examples' own. An example is learned when its label is known and all examples before it
are, for a model is a fold over them in one order; of equal times, what is known is learned before what is asked, as
River's `evaluate.progressive_val_score(moment=..., delay=...)` and a backtest have it. So a candidate answers what its
learner's newest version would have answered, had it been declared from the first of these examples on. To ask it right
before it learns would be another thing, and flatter it.

from     <pipeline>.examples, an archive's, or events and labels in files by the backtest's steps
memory   the newest MAX_EXAMPLES examples, about half a kilobyte each
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from tidemill.declare.pipeline import Pipeline
from tidemill.models.corrections import Corrections, Key, key_of
from tidemill.offline.backtest import Backtest, Row, without_models
from tidemill.offline.history import Message
from tidemill.offline.source import ArchiveSource, FileSource, Source
from tidemill.stream.api import Broker, Progress, Record, TopicPartition, expect
from tidemill.wire import topics
from tidemill.wire.records import Example, Records

#: The newest examples that are read where no other number is given.
MAX_EXAMPLES = 200_000


class LabelledVector(NamedTuple):
    """One example. Times are ms since the epoch; `event_place`, an event's partition and offset, orders equal times."""

    event_time: int
    event_place: tuple[int, int]
    label_time: int
    vector: tuple[Any, ...]
    label: Any


class Questions:
    """Examples, in their one order, and the steps by which a candidate goes through them.

    Parameters
    ----------
    delay
        How long after a label is known the model that learned it is in use, in ms.
    """

    def __init__(
        self, pipeline: Pipeline, examples: Iterable[LabelledVector], *, delay: int = 0, skipped: int = 0
    ) -> None:
        self.names = tuple(pipeline.vector)
        self.examples: Sequence[LabelledVector] = list(examples)
        self.skipped = skipped
        #: What to know before: what events and labels in files lack.
        self.warnings: list[str] = []
        #: i to ask the i-th example, ~i to learn it.
        self.steps: list[int] = []
        #: By the number of examples learned, how many steps that takes.
        self.until: list[int] = [0]
        self._order(delay)

    def __len__(self) -> int:
        return len(self.examples)

    def x(self, index: int) -> dict[str, Any]:
        """Return what a River model is given of the i-th example: its vector without missing features."""
        values = self.examples[index].vector
        return {name: value for name, value in zip(self.names, values, strict=True) if value is not None}

    def _order(self, delay: int) -> None:
        known = list(accumulate((max(e.label_time, e.event_time) + delay for e in self.examples), max))
        is_asked = bytearray(len(known))
        for index in sorted(range(len(known)), key=lambda i: self.examples[i][:2]):
            now = self.examples[index].event_time
            while (at := len(self.until) - 1) < len(known) and known[at] <= now and is_asked[at]:
                self._learn(at)
            self.steps.append(index)
            is_asked[index] = True
        for at in range(len(self.until) - 1, len(known)):
            self._learn(at)

    def _learn(self, index: int) -> None:
        self.steps.append(~index)
        self.until.append(len(self.steps))


def _labelled_vector(example: Example) -> LabelledVector:
    features = example["prediction"]["features"]
    place = (features["partition"], features["offset"])
    vector = tuple(features["vector"].values())
    return LabelledVector(features["event_time"], place, example["label_time"], vector, example["label"])


def read(
    pipeline: Pipeline, source: Source, newest: int = MAX_EXAMPLES, *, delay: int = 0, progress: Progress | None = None
) -> Questions:
    """Read the `newest` examples of a source. Raises SettingsError where it has none, or a file does not fit."""
    if isinstance(source, FileSource):
        events, labels = source.rows(pipeline, progress)
        expect(progress, len(events))
        return from_rows(pipeline, events, labels, newest, delay=delay, progress=progress)
    if isinstance(source, ArchiveSource):
        return Questions(pipeline, _from_archive(pipeline, source, newest, progress), delay=delay)
    examples, skipped = _from_kafka(pipeline, source.broker, newest, progress)
    return Questions(pipeline, examples, delay=delay, skipped=skipped)


def _from_kafka(
    pipeline: Pipeline, broker: Broker, newest: int, progress: Progress | None
) -> tuple[list[LabelledVector], int]:
    """Return the newest of <pipeline>.examples, and how many more are of an earlier declaration."""
    slot, codec = TopicPartition(topics.EXAMPLES.name(pipeline.name), 0), Records(pipeline).example
    low, high = broker.offset_range(slot)
    examples, skipped, corrections = list[LabelledVector](), 0, Corrections(Records(pipeline))
    keys: list[Key] = []
    expect(progress, min(newest, high - low))
    for batch in broker.read({slot: (max(low, high - newest), high)}):
        for record in batch:
            if corrections.take(record):
                continue
            example = codec.of(record.value())
            if example is None:
                skipped += 1
            else:
                examples.append(_labelled_vector(example))
                keys.append(key_of(example["prediction"]["features"]))
        if progress:
            progress(len(batch))
    if pipeline.corrections_ms and corrections.labels:  # they lie after their examples
        labels = (corrections.label(key, of.label) for key, of in zip(keys, examples, strict=True))
        examples = [of._replace(label=label) for of, label in zip(examples, labels, strict=True)]
    return examples, skipped


def _from_archive(
    pipeline: Pipeline, source: ArchiveSource, newest: int, progress: Progress | None
) -> list[LabelledVector]:
    """Return the newest of an archive, in the order that the log had."""
    columns = [f"x_{name}" for name in pipeline.vector]
    heap: list[tuple[int, LabelledVector]] = []
    for row in source.rows(pipeline, labelled=True):
        place = (row["source_partition"], row["source_offset"])
        vector = tuple(row[column] for column in columns)
        example = LabelledVector(row["event_time"], place, row["label_time"], vector, row["label"])
        if len(heap) < newest:
            heapq.heappush(heap, (row["offset"], example))
        else:
            heapq.heappushpop(heap, (row["offset"], example))
        if progress:
            progress(1)
    return [example for _, example in sorted(heap)]


def from_rows(
    pipeline: Pipeline,
    events: Iterable[Row | Message],
    labels: Iterable[Row | Message],
    newest: int = MAX_EXAMPLES,
    *,
    delay: int = 0,
    progress: Progress | None = None,
) -> Questions:
    """Make examples of events and labels, each in order of its time, by the backtest's steps; the `newest` are kept."""
    run, examples = Backtest(without_models(pipeline)), deque[LabelledVector](maxlen=newest)
    decode: Callable[[bytes], Example] = run.records.example.decode

    def keep(record: Record) -> None:
        examples.append(_labelled_vector(decode(record.value() or b"")))

    run.examples = keep
    report = run.run(events, labels, progress)
    questions = Questions(pipeline, examples, delay=delay)
    questions.warnings = [*report.history_warnings, *filter(None, [report.note])]
    return questions
