"""The archiver, to Delta Lake: the prediction log and the examples in; a table of each out.

reads   <pipeline>.prediction-log, <pipeline>.examples
writes  <archive>/<pipeline>/<topic>, a Delta table with a partition for each date of the events
state   the rows that are not in the table yet; read again from the log at an assignment
outage  as of the archiver of files

How far the table has come is in the table: each commit of it says by partition of the topic up to which offset it has
the rows (Delta's application transactions). From there on the log is read, whatever offsets the group has committed, so
that each record is there once. Two that write the same rows, as one that was paused and its successor, are a conflict.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import DeltaError

from tidemill.declare.pipeline import Pipeline
from tidemill.errors import SettingsError, StoreError
from tidemill.stream.api import Position, Record, Start, TopicPartition
from tidemill.stream.group import Service
from tidemill.watch.archiver.service import RowArchiver
from tidemill.wire.archive_rows import Row, date_of
from tidemill.wire.services import service

log = logging.getLogger(__name__)

#: So many rows are written at once, whenever that is: it bounds memory.
MAX_ROWS = 20_000


class DeltaArchiver(RowArchiver):
    """Appends rows every so often.

    Parameters
    ----------
    every_seconds
        How old the newest rows of the archive may be.
    """

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
            raise SettingsError("retention.archive: of a Delta table nothing is deleted; use archive_format=parquet")
        self.url, self.max_rows = url, max_rows
        #: By partition: the offset up to which the table has the rows; and up to which they are here.
        self._written: dict[TopicPartition, int] = {}
        self._read: dict[TopicPartition, int] = {}
        self._rows: dict[str, list[Row]] = {name: [] for name in self.forms}
        self._tables: dict[str, DeltaTable] = {}

    def assign(self, topic_partition: TopicPartition, committed: Position) -> Start:
        written = self._table(topic_partition.topic).transaction_version(_name(topic_partition)) or 0
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
            if (table.transaction_version(_name(place)) or 0) != self._written[place]:
                raise StoreError(f"archive {self.url}: another process has written the rows of {_name(place)}")
        data = pa.Table.from_pylist(rows, schema=self.forms[topic].schema)
        dates = pa.array([date_of(row["event_time"]) for row in rows])
        commit = CommitProperties(app_transactions=[Transaction(_name(place), end) for place, end in ends.items()])
        try:
            write_deltalake(
                table,
                data.append_column("date", dates),
                mode="append",
                schema_mode="merge",
                partition_by=["date"],
                commit_properties=commit,
            )
        except (DeltaError, OSError, ValueError) as error:
            self._tables.pop(topic, None)
            raise StoreError(f"archive {self.url}: writing failed: {error}") from error
        self.counts["archived", topic] += len(rows)
        self._rows[topic] = []
        self._written |= ends

    def _table(self, topic: str) -> DeltaTable:
        """Return a topic's table as it is now; made where it does not exist. Raises StoreError."""
        try:
            table = self._tables.get(topic)
            if table is None:
                schema = self.forms[topic].schema.append(pa.field("date", pa.string()))
                place = f"{self.url.rstrip('/')}/{self.pipeline.name}/{topic.removeprefix(f'{self.pipeline.name}.')}"
                table = DeltaTable.create(place, schema, mode="ignore", partition_by=["date"])
                self._tables[topic] = table
            table.update_incremental()
        except (DeltaError, OSError, ValueError) as error:
            raise StoreError(f"archive {self.url}: reading failed: {error}") from error
        return table


def _name(place: TopicPartition) -> str:
    """Return what a partition's application transactions are called."""
    return f"tidemill/{place.topic}/{place.partition}"


def build(pipeline: Pipeline, url: str, every_seconds: float) -> Service:
    """Wire it to its topics."""
    return service("archiver", pipeline, DeltaArchiver(pipeline, url, every_seconds=every_seconds))
