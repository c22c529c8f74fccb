"""What the log still holds, in order of time, for whoever runs history again: more than fits into memory.

Records are sorted in runs, which are merged from temporary files.
"""

from __future__ import annotations

import heapq
import struct
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import IO, Any, NamedTuple

from tidemill.declare.monitor import Monitor
from tidemill.declare.pipeline import Pipeline
from tidemill.encoding.codec import Codec
from tidemill.offline.backtest import Progress
from tidemill.stream.api import Broker, TopicPartition
from tidemill.stream.ranges import full_range

RUN = 200_000
"""Records that are sorted at once; more are sorted in runs, which are merged from temporary files."""
_FRAME = struct.Struct(">qiqI")


class _Nobody:
    """A model and a metric that cost nothing."""

    requires_labels = False

    def learn_one(self, x: object, y: object = None) -> None: ...

    def predict_one(self, x: object) -> float:
        del x
        return 0.0

    score_one = predict_one

    def predict_proba_one(self, x: object) -> dict[Any, float]:
        del x
        return {}

    def clone(self) -> _Nobody:
        return self

    def update(self, y: object, predicted: object) -> None: ...

    def get(self) -> float:
        return 0.0


def without_models(pipeline: Pipeline) -> Pipeline:
    """Return the pipeline with a model that costs nothing in the place of all."""
    nobody = _Nobody()
    return replace(
        pipeline, models={"baseline": nobody}, champion="baseline", baseline=None, metrics=[nobody], monitor=Monitor()
    )


class Sortable(NamedTuple):
    """A record on its way into order of time; equal times by partition, and within one as they came."""

    time: int
    partition: int
    offset: int
    value: bytes


def in_order(records: Iterable[Sortable], held: ExitStack, run: int = RUN) -> Iterator[bytes]:
    """Read all records, and return their values in order, with few more than `run` of them in memory at any time.

    `held` closes the temporary files.
    """
    files: list[IO[bytes]] = []
    some: list[Sortable] = []
    for record in records:
        some.append(record)
        if len(some) >= run:
            files.append(_spill(some, held))
            some = []
    some.sort()
    return (record.value for record in heapq.merge(*map(_spilt, files), some))


def _spill(some: list[Sortable], held: ExitStack) -> IO[bytes]:
    some.sort()
    file = held.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  it is closed with the others
    for time, partition, offset, value in some:
        file.write(_FRAME.pack(time, partition, offset, len(value)))
        file.write(value)
    file.seek(0)
    return file


def _spilt(file: IO[bytes]) -> Iterator[Sortable]:
    while head := file.read(_FRAME.size):
        time, partition, offset, size = _FRAME.unpack(head)
        yield Sortable(time, partition, offset, file.read(size))


@dataclass
class Past:
    """What a topic of valid records held: its rows in order of time.

    `firsts` has the first time of each partition whose log was cut, `last` each one's last offset; `skipped` counts records
    of an earlier schema.
    """

    rows: Iterator[dict[str, Any]] = field(default_factory=lambda: iter(()))
    firsts: dict[int, int] = field(default_factory=dict)
    last: dict[TopicPartition, int] = field(default_factory=dict)
    skipped: int = 0

    @property
    def lacks_before(self) -> int | None:
        """The time in ms from which on every partition is whole; None where all of them always were."""
        return max(self.firsts.values(), default=None)


def past(
    broker: Broker, topic: str, codec: Codec, time: str, held: ExitStack, progress: Progress | None = None
) -> Past:
    """Read a topic of events or labels up to this moment; `time` is the field with a record's time."""
    ranges = full_range(broker, topic)
    cut = {slot.partition for slot, (begin, _) in ranges.items() if begin > 0}
    found = Past()

    def read() -> Iterator[Sortable]:
        for batch in broker.read(ranges):
            for record in batch:
                value, partition = record.value() or b"", record.partition()
                found.last[TopicPartition(topic, partition)] = record.offset()
                row = codec.of(value)
                if row is None:
                    found.skipped += 1
                    continue
                now = row[time]
                if partition in cut:
                    found.firsts[partition] = min(now, found.firsts.get(partition, now))
                yield Sortable(now, partition, record.offset(), value)
            if progress:
                progress(len(batch))

    found.rows = map(codec.decode, in_order(read(), held))
    return found
