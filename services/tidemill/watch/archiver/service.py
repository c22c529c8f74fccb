"""The archiver: the prediction log and the examples in; Parquet files out.

reads   <pipeline>.prediction-log, <pipeline>.examples
writes  <archive>/<pipeline>/<topic>/date=YYYY-MM-DD/<topic>-<partition>-<first>-<last>-<schema>.parquet,
        by the event's date
state   the rows of each partition's last, incomplete chunk; read again from the log at an assignment
outage  an unreachable or full store stops the archiver only; it continues from the committed offsets

A file's name has its offsets and its schema, and these alone decide which file a record is in. So a chunk that is
written again, after a crash or because it has grown, overwrites itself, and no record is archived twice.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter

from tidemill.declare.pipeline import Pipeline
from tidemill.durations import milliseconds
from tidemill.files import Files
from tidemill.stream.api import Emit, Position, Processor, Record, Start, TopicPartition
from tidemill.stream.group import Service
from tidemill.wire import topics
from tidemill.wire.archive_rows import Row, RowFormat, date_of
from tidemill.wire.services import service

log = logging.getLogger(__name__)

#: Offsets of one partition in one chunk, which is a file for each date. It bounds memory, and what a restart reads
#: again.
CHUNK_OFFSETS = 20_000
#: How often files are looked for that are older than the declared retention.
SWEEP_SECONDS = 3600.0


class Chunk:
    """The rows of some offsets of one partition, as far as they have arrived, by the date of their event in UTC."""

    def __init__(self, topic_partition: TopicPartition, number: int, size: int) -> None:
        self.topic_partition = topic_partition
        self.first, self.last = number * size, (number + 1) * size - 1
        self.next = self.first
        self.rows: dict[str, list[Row]] = {}
        self.written: dict[str, int] = {}

    def add(self, row: Row) -> None:
        """Add the next row; a row that was added before is ignored."""
        if row["offset"] >= self.next:
            self.next = row["offset"] + 1
            self.rows.setdefault(date_of(row["event_time"]), []).append(row)

    def changed(self) -> list[str]:
        """Return the dates that have more rows than were written."""
        return [date for date, rows in self.rows.items() if len(rows) > self.written.get(date, 0)]


class RowArchiver(Processor):
    """What every archive has: rows of both topics, which are written every so often, and at the end.

    Parameters
    ----------
    every_seconds
        How old the newest rows of the archive may be.
    """

    def __init__(self, pipeline: Pipeline, every_seconds: float, clock: Callable[[], float]) -> None:
        super().__init__()
        self.pipeline, self.every, self.clock = pipeline, every_seconds, clock
        self.forms = {
            topics.PREDICTION_LOG.name(pipeline.name): RowFormat(pipeline, labelled=False),
            topics.EXAMPLES.name(pipeline.name): RowFormat(pipeline, labelled=True),
        }
        self._written_at = clock()

    def process(self, records: Sequence[Record], emit: Emit) -> bool:
        del emit
        for record in records:
            self._take(record)
        if self.clock() - self._written_at >= self.every:
            self._write_all()
        return True

    def finish(self, emit: Emit) -> bool:
        del emit
        self._write_all()
        return False

    def _write_all(self) -> None:
        self._write_rest()
        self._written_at = self.clock()

    def _row(self, record: Record) -> Row | None:
        """Return a record's row; None, and count it, where its schema is unknown."""
        row = self.forms[record.topic()].row(record)
        if row is None:
            self.counts["skipped", "unknown_schema"] += 1
        return row

    def _take(self, record: Record) -> None:
        """Keep a record's row until it is written."""
        raise NotImplementedError

    def _write_rest(self) -> None:
        """Write all rows that are kept. Raises StoreError where the archive can't be written."""
        raise NotImplementedError


class Archiver(RowArchiver):
    """Writes full chunks at once, and incomplete ones every so often.

    Parameters
    ----------
    every_seconds
        How old the newest rows of the archive may be.
    chunk
        Offsets of one partition that go into one chunk.
    now
        Wall time in s; what is older than the declared retention by it is deleted.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        files: Files,
        *,
        every_seconds: float = 60.0,
        chunk: int = CHUNK_OFFSETS,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(pipeline, every_seconds, clock)
        self.files, self.size, self.now = files, chunk, now
        self._swept_at = -math.inf
        self._chunks: dict[TopicPartition, Chunk] = {}

    def assign(self, topic_partition: TopicPartition, committed: Position) -> Start:
        number = committed.offset // self.size
        self._chunks[topic_partition] = Chunk(topic_partition, number, self.size)
        return Start(number * self.size, committed.offset)

    def truncated(self, topic_partition: TopicPartition) -> None:
        """Read the rows that the log no longer has from the files."""
        chunk = self._chunks[topic_partition]
        files = [self.files.read(path) or b"" for path in self.files.glob(self._path(chunk, "*"))]
        for row in sorted(
            (row for data in files for row in self.forms[topic_partition.topic].rows(data)), key=itemgetter("offset")
        ):
            chunk.add(row)

    def revoke(self, topic_partitions: Iterable[TopicPartition]) -> None:
        for topic_partition in topic_partitions:
            self._chunks.pop(topic_partition, None)

    def _take(self, record: Record) -> None:
        topic_partition = TopicPartition(record.topic(), record.partition())
        chunk = self._chunks[topic_partition]
        if record.offset() > chunk.last:
            self._write(chunk)
            chunk = self._chunks[topic_partition] = Chunk(topic_partition, record.offset() // self.size, self.size)
        if (row := self._row(record)) is not None:
            chunk.add(row)
        if record.offset() == chunk.last:
            # Before its offset is committed: a process that takes over from there starts with the next chunk.
            self._write(chunk)

    def _write_rest(self) -> None:
        for chunk in self._chunks.values():
            self._write(chunk)
        if self.clock() - self._swept_at >= SWEEP_SECONDS:
            self._swept_at = self.clock()
            self._sweep()

    def _sweep(self) -> None:
        """Delete the files of dates of which all is older than the declared retention."""
        kept = self.pipeline.retention.archive if self.pipeline.retention else None
        if kept is None:
            return
        first = date_of(int(self.now() * 1000) - milliseconds(kept))
        for path in self.files.glob(f"{self.pipeline.name}/*/date=*/*.parquet"):
            if path.rpartition("/date=")[2].partition("/")[0] < first:
                self.files.delete(path)
                log.info("deleted from the archive", extra={"path": path})

    def _write(self, chunk: Chunk) -> None:
        """Write the changed files of a chunk. Raises StoreError where the archive can't be written."""
        form = self.forms[chunk.topic_partition.topic]
        for date in chunk.changed():
            rows, path = chunk.rows[date], self._path(chunk, date)
            # The file may have more rows, by the process before this one or after it.
            archived = self.files.read(path)
            before = 0 if archived is None else form.count(archived)
            if before < len(rows):
                self.files.write(path, form.file(rows))
                self.counts["archived", chunk.topic_partition.topic] += len(rows) - before
            chunk.written[date] = len(rows)

    def _path(self, chunk: Chunk, date: str) -> str:
        topic = chunk.topic_partition.topic.removeprefix(f"{self.pipeline.name}.")
        form = self.forms[chunk.topic_partition.topic]
        name = f"{topic}-{chunk.topic_partition.partition}-{chunk.first:012d}-{chunk.last:012d}-{form.id:08x}.parquet"
        return f"{self.pipeline.name}/{topic}/date={date}/{name}"


def build(pipeline: Pipeline, files: Files, every_seconds: float) -> Service:
    """Wire the archiver to its topics."""
    return service("archiver", pipeline, Archiver(pipeline, files, every_seconds=every_seconds))
