"""Events and labels as far back as Kafka holds them, in order of time; there may be more than fits into memory.

Records are sorted in runs, which are merged from temporary files.
"""

from __future__ import annotations

import heapq
import struct
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import IO, NamedTuple

from tidemill.declare.stream import Stream
from tidemill.encoding.codec import Codec
from tidemill.offline.history import Message
from tidemill.stream.api import Broker, Progress, TopicPartition, expect
from tidemill.stream.ranges import full_range

#: Records that are sorted at once. More are sorted in runs, which are merged from temporary files.
MAX_RUN_RECORDS = 200_000
_FRAME = struct.Struct(">qiqI")


class TimedRecord(NamedTuple):
    """A record that is sorted by time; equal times by partition, and within a partition by offset."""

    time: int
    partition: int
    offset: int
    value: bytes


def sorted_by_time(
    records: Iterable[TimedRecord], stack: ExitStack, run_records: int = MAX_RUN_RECORDS
) -> Iterator[bytes]:
    """Read all records, and return their values in order, with few more than `run_records` of them in memory.

    `stack` closes the temporary files.
    """
    files: list[IO[bytes]] = []
    run: list[TimedRecord] = []
    for record in records:
        run.append(record)
        if len(run) >= run_records:
            files.append(_spill(run, stack))
            run = []
    run.sort()
    return (record.value for record in heapq.merge(*map(_spilled, files), run))


def _spill(run: list[TimedRecord], stack: ExitStack) -> IO[bytes]:
    run.sort()
    file = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  it is closed with the others
    for time, partition, offset, value in run:
        file.write(_FRAME.pack(time, partition, offset, len(value)))
        file.write(value)
    file.seek(0)
    return file


def _spilled(file: IO[bytes]) -> Iterator[TimedRecord]:
    while head := file.read(_FRAME.size):
        time, partition, offset, size = _FRAME.unpack(head)
        yield TimedRecord(time, partition, offset, file.read(size))


@dataclass
class LogHistory:
    """A stream's rows in order of time, and what is known of those before them.

    `first_times` has the first time of each partition whose log was cut, `last_offsets` each one's last offset;
    `skipped` counts records of an earlier schema, `count` the rows. All are complete when the first row is there.
    """

    rows: Iterator[Message] = field(default_factory=lambda: iter(()))
    first_times: dict[int, int] = field(default_factory=dict)
    last_offsets: dict[TopicPartition, int] = field(default_factory=dict)
    skipped: int = 0
    count: int = 0

    @property
    def complete_from(self) -> int | None:
        """The time in ms from which on no partition lacks anything; None where none was cut."""
        return max(self.first_times.values(), default=None)


def read_log(
    broker: Broker, topic: str, codec: Codec, stream: Stream, stack: ExitStack, progress: Progress | None = None
) -> LogHistory:
    """Read a topic of events or labels up to this moment."""
    ranges = full_range(broker, topic)
    cut = {slot.partition for slot, (begin, _) in ranges.items() if begin > 0}
    history = LogHistory()

    expect(progress, sum(end - begin for begin, end in ranges.values()))

    def read() -> Iterator[TimedRecord]:
        for batch in broker.read(ranges):
            for record in batch:
                value, partition = record.value() or b"", record.partition()
                history.last_offsets[TopicPartition(topic, partition)] = record.offset()
                row = codec.of(value)
                if row is None:
                    history.skipped += 1
                    continue
                now = row[stream.time]
                if partition in cut:
                    history.first_times[partition] = min(now, history.first_times.get(partition, now))
                history.count += 1
                yield TimedRecord(now, partition, record.offset(), value)
            if progress:
                progress(len(batch))

    def message(value: bytes) -> Message:
        row = codec.decode(value)
        return Message(row[stream.time], str(row[stream.id]), codec.encode(row))

    history.rows = map(message, sorted_by_time(read(), stack))
    return history
