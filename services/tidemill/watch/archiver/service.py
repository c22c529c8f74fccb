"""The archiver: the prediction log and the examples in; Parquet files out.

reads   <pipeline>.prediction-log, <pipeline>.examples
writes  <archive>/<pipeline>/<topic>/date=YYYY-MM-DD/<topic>-<partition>-<first>-<last>-<schema>.parquet, by the event's date
state   the rows of each partition's last, unfinished chunk of CHUNK offsets; read again from the log at a take-over
outage  a store that is away or full stops the archive, and nothing else; it goes on from what is committed

A file's name says which offsets and which schema it stands for, and nothing else decides which file a record is in. So a chunk that is
written again, after a crash or because it has grown, overwrites itself, and no record is there twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter

from tidemill.declare.pipeline import Pipeline
from tidemill.files import Files
from tidemill.stream.api import Emit, Position, Processor, Record, Start, TopicPartition
from tidemill.stream.loop import Service
from tidemill.wire import topics
from tidemill.wire.archive_rows import Row, RowFormat, date_of
from tidemill.wire.services import service

log = logging.getLogger(__name__)

CHUNK = 20_000
"""Offsets of one partition that go into one chunk: a file a date. It bounds memory, and what a restart reads again."""


class Chunk:
    """The rows of some offsets of one slot, as far as they have come, by the date of their event in UTC."""

    def __init__(self, slot: TopicPartition, number: int, size: int) -> None:
        self.slot = slot
        self.first, self.last = number * size, (number + 1) * size - 1
        self.next = self.first
        self.rows: dict[str, list[Row]] = {}
        self.written: dict[str, int] = {}

    def add(self, row: Row) -> None:
        """Add the next row; one that is there already counts for nothing."""
        if row["offset"] >= self.next:
            self.next = row["offset"] + 1
            self.rows.setdefault(date_of(row["event_time"]), []).append(row)

    def changed(self) -> list[str]:
        """Return the dates that have more rows than were written."""
        return [date for date, rows in self.rows.items() if len(rows) > self.written.get(date, 0)]


class Archiver(Processor):
    """Writes chunks when they are full, and those that are not every so often.

    Parameters
    ----------
    every_seconds
        How old the newest rows of the archive may be.
    chunk
        Offsets of one partition that go into one chunk.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        files: Files,
        *,
        every_seconds: float = 60.0,
        chunk: int = CHUNK,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self.pipeline, self.files, self.every, self.size, self.clock = pipeline, files, every_seconds, chunk, clock
        self.forms = {
            topics.PREDICTION_LOG.name(pipeline.name): RowFormat(pipeline, labelled=False),
            topics.EXAMPLES.name(pipeline.name): RowFormat(pipeline, labelled=True),
        }
        self._chunks: dict[TopicPartition, Chunk] = {}
        self._written_at = clock()

    def assign(self, slot: TopicPartition, committed: Position) -> Start:
        number = committed.offset // self.size
        self._chunks[slot] = Chunk(slot, number, self.size)
        return Start(number * self.size, committed.offset)

    def truncated(self, slot: TopicPartition) -> None:
        """Take from the files what the log does not hold any more."""
        chunk = self._chunks[slot]
        found = [self.files.read(path) or b"" for path in self.files.glob(self._path(chunk, "*"))]
        for row in sorted(
            (row for data in found for row in self.forms[slot.topic].rows(data)), key=itemgetter("offset")
        ):
            chunk.add(row)

    def revoke(self, slots: Iterable[TopicPartition]) -> None:
        for slot in slots:
            self._chunks.pop(slot, None)

    def process(self, records: Sequence[Record], emit: Emit) -> bool:
        del emit
        for record in records:
            slot = TopicPartition(record.topic(), record.partition())
            chunk = self._chunks[slot]
            if record.offset() > chunk.last:
                self._write(chunk)
                chunk = self._chunks[slot] = Chunk(slot, record.offset() // self.size, self.size)
            row = self.forms[slot.topic].row(record)
            if row is None:
                self.counts["skipped", "unknown_schema"] += 1
            else:
                chunk.add(row)
            if record.offset() == chunk.last:
                # Before its offset may be committed: what follows belongs to the next chunk, and so does who takes over.
                self._write(chunk)
        if self.clock() - self._written_at >= self.every:
            self._write_all()
        return True

    def finish(self, emit: Emit) -> bool:
        del emit
        self._write_all()
        return False

    def _write_all(self) -> None:
        for chunk in self._chunks.values():
            self._write(chunk)
        self._written_at = self.clock()

    def _write(self, chunk: Chunk) -> None:
        """Write what is new of a chunk. Raises StoreError where the archive can't be written."""
        form = self.forms[chunk.slot.topic]
        for date in chunk.changed():
            rows, path = chunk.rows[date], self._path(chunk, date)
            # There may be more by a process whose place this one took, or that has taken this one's.
            there = self.files.read(path)
            before = 0 if there is None else form.count(there)
            if before < len(rows):
                self.files.write(path, form.file(rows))
                self.counts["archived", chunk.slot.topic] += len(rows) - before
            chunk.written[date] = len(rows)

    def _path(self, chunk: Chunk, date: str) -> str:
        topic = chunk.slot.topic.removeprefix(f"{self.pipeline.name}.")
        form = self.forms[chunk.slot.topic]
        name = f"{topic}-{chunk.slot.partition}-{chunk.first:012d}-{chunk.last:012d}-{form.id:08x}.parquet"
        return f"{self.pipeline.name}/{topic}/date={date}/{name}"


def build(pipeline: Pipeline, files: Files, every_seconds: float) -> Service:
    """Wire the archiver to its topics."""
    return service("archiver", pipeline.name, Archiver(pipeline, files, every_seconds=every_seconds))
