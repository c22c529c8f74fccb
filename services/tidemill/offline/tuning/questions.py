"""What candidates are asked and taught: the examples, each asked at its event's time and learned when its label was known.

The order of learning is the examples' own. An example is learned when its label is known and all examples before it are, for a
model is a fold over them in one order; of equal times, what is known is learned before what is asked, as River's
`evaluate.progressive_val_score(moment=..., delay=...)` and a backtest have it. So a candidate answers what its learner's
newest version would have answered, had it been declared from the first of these examples on. To ask it right before it learns
would be another thing, and flatter it.

from     <pipeline>.examples, an archive's, or events and labels in files by the backtest's steps
memory   the newest MOST examples, about half a kilobyte each
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from tidemill.declare.pipeline import Pipeline
from tidemill.errors import SettingsError
from tidemill.files import Files
from tidemill.offline.backtest import Backtest, Progress, Row
from tidemill.offline.log_history import without_models
from tidemill.stream.api import Broker, Record, TopicPartition
from tidemill.wire import topics
from tidemill.wire.records import Example, Records

MOST = 200_000
"""Examples that are taken where no other number is asked for: the newest."""


class Past(NamedTuple):
    """One example. Times are ms since the epoch; `place` tells questions of the same time apart, by where their events lie."""

    event_time: int
    place: tuple[int, int]
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

    def __init__(self, pipeline: Pipeline, examples: Iterable[Past], *, delay: int = 0, skipped: int = 0) -> None:
        self.names = tuple(pipeline.vector)
        self.examples: Sequence[Past] = list(examples)
        self.skipped = skipped
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
        asked = bytearray(len(known))
        for index in sorted(range(len(known)), key=lambda i: self.examples[i][:2]):
            now = self.examples[index].event_time
            while (at := len(self.until) - 1) < len(known) and known[at] <= now and asked[at]:
                self._learn(at)
            self.steps.append(index)
            asked[index] = True
        for at in range(len(self.until) - 1, len(known)):
            self._learn(at)

    def _learn(self, index: int) -> None:
        self.steps.append(~index)
        self.until.append(len(self.steps))


def _of(example: Example) -> Past:
    of = example["prediction"]["features"]
    place = (of["partition"], of["offset"])
    return Past(of["event_time"], place, example["label_time"], tuple(of["vector"].values()), example["label"])


def from_kafka(
    pipeline: Pipeline, broker: Broker, most: int = MOST, *, delay: int = 0, progress: Progress | None = None
) -> Questions:
    """Take the newest `most` examples that <pipeline>.examples holds; those of an earlier declaration are passed over."""
    slot, codec = TopicPartition(topics.EXAMPLES.name(pipeline.name), 0), Records(pipeline).example
    low, high = broker.offset_range(slot)
    found, skipped = [], 0
    for batch in broker.read({slot: (max(low, high - most), high)}):
        for record in batch:
            example = codec.of(record.value())
            if example is None:
                skipped += 1
            else:
                found.append(_of(example))
        if progress:
            progress(len(batch))
    return Questions(pipeline, found, delay=delay, skipped=skipped)


def from_archive(
    pipeline: Pipeline, url: str, most: int = MOST, *, delay: int = 0, progress: Progress | None = None
) -> Questions:
    """Take the newest `most` examples of an archive, in the order that the log had. Raises SettingsError where it has none."""
    try:
        from tidemill.wire import archive_rows as rows
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"--archive {url}: reading it needs {error.name}: pip install 'tidemill[parquet]'"
        ) from None
    columns = [f"x_{name}" for name in pipeline.vector]
    newest: list[tuple[int, Past]] = []
    for row in rows.read(pipeline, Files(url, "archive_url", "archive", create=False), labelled=True):
        place = (row["source_partition"], row["source_offset"])
        vector = tuple(row[column] for column in columns)
        item = row["offset"], Past(row["event_time"], place, row["label_time"], vector, row["label"])
        if len(newest) < most:
            heapq.heappush(newest, item)
        else:
            heapq.heappushpop(newest, item)
        if progress:
            progress(1)
    return Questions(pipeline, (past for _, past in sorted(newest)), delay=delay)


def from_rows(
    pipeline: Pipeline, events: Iterable[Row], labels: Iterable[Row], most: int = MOST, *, delay: int = 0,
    progress: Progress | None = None,
) -> Questions:  # fmt: skip
    """Take the newest `most` examples that events and labels become, each in order of its time, by the backtest's steps."""
    run, found = Backtest(without_models(pipeline)), deque[Past](maxlen=most)
    decode: Callable[[bytes], Example] = run.records.example.decode

    def joined(record: Record) -> None:
        found.append(_of(decode(record.value() or b"")))

    run.examples = joined
    run.run(events, labels, progress)
    return Questions(pipeline, found, delay=delay)
