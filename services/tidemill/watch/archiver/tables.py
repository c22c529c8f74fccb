"""The archiver, to tables: the prediction log and the examples in; a table of each out, of Delta Lake or Iceberg.

reads   <pipeline>.prediction-log, <pipeline>.examples
writes  <archive>/<pipeline>/<topic>, a table with a partition for each date of the events
state   the rows that are not in the table yet; read again from the log at an assignment
outage  as of the archiver of files

How far the table has come is in the table: each commit of it says by partition of the topic up to which offset it has
the rows. From there on the log is read, whatever offsets the group has committed, so that each record is there once.
Two that write the same rows, as one that was paused and its successor, are a conflict.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Generic, TypeVar

import pyarrow as pa

from tidemill.declare.pipeline import Pipeline
from tidemill.errors import SettingsError, StoreError
from tidemill.stream.api import Position, Record, Start, TopicPartition
from tidemill.watch.archiver.service import RowArchiver
from tidemill.wire.archive_rows import Row, date_of

log = logging.getLogger(__name__)

#: So many rows are written at once, whenever that is: it bounds memory.
MAX_ROWS = 20_000
Table = TypeVar("Table")


class TableArchiver(RowArchiver, Generic[Table]):
    """Appends rows every so often.

    Parameters
    ----------
    every_seconds
        How old the newest rows of the archive may be.
    """

    #: What a format's library raises where a table can't be read or written.
    errors: tuple[type[Exception], ...] = (OSError, ValueError)

    def __init__(
        self,
        pipeline: Pipeline,
        url: str,
        *,
        every_seconds: float = 60.0,
        max_rows: int = MAX_ROWS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(pipeline, every_seconds, clock)
        if pipeline.retention and pipeline.retention.archive:
            raise SettingsError("retention.archive: of a table nothing is deleted; use archive_format=parquet")
        self.url, self.max_rows = url, max_rows
        #: By partition: the offset up to which the table has the rows; and up to which they are here.
        self._written: dict[TopicPartition, int] = {}
        self._read: dict[TopicPartition, int] = {}
        self._rows: dict[str, list[Row]] = {name: [] for name in self.forms}
        self._tables: dict[str, Table] = {}

    def _open(self, name: str, schema: pa.Schema) -> Table:
        """Return a table by its topic's name without the pipeline's; made where it does not exist."""
        raise NotImplementedError

    def _refresh(self, table: Table) -> None:
        """Have a table be what it is now."""
        raise NotImplementedError

    def _end(self, table: Table, name: str) -> int:
        """Return up to which offset a table has the rows of a partition, by what its commits call that."""
        raise NotImplementedError

    def _append(self, table: Table, rows: pa.Table, ends: Mapping[str, int]) -> None:
        """Append rows, and up to where they go, in one commit, which fails where another one came before it."""
        raise NotImplementedError

    def assign(self, topic_partition: TopicPartition, committed: Position) -> Start:
        written = self._end(self._table(topic_partition.topic), _name(topic_partition))
        self._written[topic_partition] = self._read[topic_partition] = written
        return Start(min(written, committed.offset), committed.offset)

    def truncated(self, topic_partition: TopicPartition) -> None:
        """Say that rows are missing: the log has lost what the table does not have."""
        log.error("the log no longer reaches back to where the table ends", extra={"of": _name(topic_partition)})

    def revoke(self, topic_partitions: Iterable[TopicPartition]) -> None:
        for one in topic_partitions:
            self._written.pop(one, None)
            self._read.pop(one, None)
            rows = self._rows[one.topic]
            self._rows[one.topic] = [row for row in rows if row["partition"] != one.partition]

    def _take(self, record: Record) -> None:
        place = TopicPartition(record.topic(), record.partition())
        if record.offset() < self._read[place]:
            return  # the table has it
        row = self._row(record)
        self._read[place] = record.offset() + 1
        if row is not None:
            self._rows[place.topic].append(row)
            if len(self._rows[place.topic]) >= self.max_rows:
                self._write(place.topic)

    def _write_rest(self) -> None:
        for topic in self.forms:
            self._write(topic)

    def _write(self, topic: str) -> None:
        """Append the rows of a topic, and up to where they go, in one commit of the table. Raises StoreError."""
        rows = self._rows[topic]
        if not rows:
            return
        table = self._table(topic)
        ends = {place: end for place, end in self._read.items() if place.topic == topic and end > self._written[place]}
        for place in ends:
            if self._end(table, _name(place)) != self._written[place]:
                raise StoreError(f"archive {self.url}: another process has written the rows of {_name(place)}")
        data = pa.Table.from_pylist(rows, schema=self.forms[topic].schema)
        dates = pa.array([date_of(row["event_time"]) for row in rows])
        try:
            self._append(table, data.append_column("date", dates), {_name(place): end for place, end in ends.items()})
        except self.errors as error:
            self._tables.pop(topic, None)
            raise StoreError(f"archive {self.url}: writing failed: {error}") from error
        self.counts["archived", topic] += len(rows)
        self._rows[topic] = []
        self._written |= ends

    def _table(self, topic: str) -> Table:
        """Return a topic's table as it is now; made where it does not exist. Raises StoreError."""
        try:
            table = self._tables.get(topic)
            if table is None:
                schema = self.forms[topic].schema.append(pa.field("date", pa.string()))
                table = self._tables[topic] = self._open(topic.removeprefix(f"{self.pipeline.name}."), schema)
            self._refresh(table)
        except self.errors as error:
            raise StoreError(f"archive {self.url}: reading failed: {error}") from error
        return table


def _name(place: TopicPartition) -> str:
    """Return what a table calls the rows of a partition."""
    return f"tidemill/{place.topic}/{place.partition}"
