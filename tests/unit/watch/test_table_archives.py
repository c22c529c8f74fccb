"""The archive as tables holds every record once, because the tables say how far they have come."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from monitored import logs_of
from test_archiver import EXAMPLES, FLIGHTS, LOG, SLOT, record

from tidemill.demo import data
from tidemill.errors import SettingsError, StoreError
from tidemill.offline.backtest import Backtest
from tidemill.offline.source import ArchiveSource
from tidemill.stream.api import Position, TopicPartition, discard
from tidemill.stream.memory import MemoryRecord
from tidemill.watch.archiver.delta import DeltaArchiver
from tidemill.watch.archiver.iceberg import IcebergArchiver
from tidemill.wire.iceberg import open_catalog


class Delta:
    """What tests look at of a table of Delta Lake."""

    archiver, conflict = DeltaArchiver, "Concurrent transaction"
    writes = "tidemill.watch.archiver.delta.write_deltalake"

    @staticmethod
    def rows(folder: Path, topic: str) -> pa.Table:
        return DeltaTable(folder / "flights" / topic).to_pyarrow_table()

    @staticmethod
    def end(folder: Path, topic: str, name: str) -> int:
        return DeltaTable(folder / "flights" / topic).transaction_version(name)

    @staticmethod
    def dates(folder: Path, topic: str) -> list[str]:
        return [one["date"] for one in DeltaTable(folder / "flights" / topic).partitions()]


class Iceberg:
    """What tests look at of a table of Iceberg."""

    archiver, conflict = IcebergArchiver, "created concurrently"
    writes = "pyiceberg.table.Transaction.append"

    @staticmethod
    def rows(folder: Path, topic: str) -> pa.Table:
        return open_catalog(str(folder)).load_table(("flights", topic)).scan().to_arrow()

    @staticmethod
    def end(folder: Path, topic: str, name: str) -> int:
        return int(open_catalog(str(folder)).load_table(("flights", topic)).properties[name])

    @staticmethod
    def dates(folder: Path, topic: str) -> list[str]:
        table = open_catalog(str(folder)).load_table(("flights", topic))
        return [one["date"] for one in table.inspect.partitions()["partition"].to_pylist()]


@pytest.fixture(params=[Delta, Iceberg], ids=["delta", "iceberg"])
def kind(request) -> Any:
    return request.param


class Run:
    """An archiver with a clock of its own."""

    def __init__(self, kind: Any, folder: Path, **more: Any) -> None:
        self.kind, self.now, self.folder = kind, 0.0, folder
        pipeline = more.pop("pipeline", FLIGHTS)
        self.step = kind.archiver(pipeline, str(folder), every_seconds=10.0, clock=lambda: self.now, **more)

    def start(self, slot: TopicPartition, committed: int, records: list[MemoryRecord]) -> None:
        """Take a slot over as the loop does: rebuild from where the step says, then go on."""
        start = self.step.assign(slot, Position(committed))
        self.step.process([r for r in records if start.rebuild_from <= r.offset() < start.live_from], discard)

    def flush(self) -> None:
        self.now += 11
        self.step.process([], discard)

    def offsets(self, topic: str = "prediction-log") -> list[int]:
        return sorted(self.kind.rows(self.folder, topic)["offset"].to_pylist())


@pytest.mark.slow
def test_rows_are_those_of_the_files_and_a_commit_says_how_far_it_goes(kind: Any, tmp_path: Path) -> None:
    run = Run(kind, tmp_path)
    for topic in (LOG, EXAMPLES):
        run.start(TopicPartition(topic, 0), 0, [])
    run.step.process([record(3), record(4, day=1), record(3, topic=EXAMPLES)], discard)
    run.flush()
    assert kind.end(tmp_path, "prediction-log", "tidemill/flights.prediction-log/0") == 5
    assert sorted(kind.dates(tmp_path, "prediction-log")) == ["1970-01-01", "1970-01-02"]
    (row,) = kind.rows(tmp_path, "examples").to_pylist()
    assert (row["event_id"], row["offset"], row["x_carrier"], row["label"]) == ("e3", 3, "UA", False)
    (read,) = ArchiveSource(str(tmp_path)).rows(FLIGHTS, labelled=True)
    assert (read["event_time"], read["label_time"]) == (3, 8)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_done_again_each_record_is_there_once(kind: Any, tmp_path: Path, seed: int) -> None:
    """Crashes at random moments, with the last commit somewhere before or after the table's; two partitions."""
    rng = random.Random(seed)
    records = [record(n, day=rng.randrange(3), partition=n % 2) for n in range(300) if rng.random() < 0.9]
    slots, committed, run, at = [TopicPartition(LOG, p) for p in (0, 1)], 0, Run(kind, tmp_path, max_rows=40), 0

    def start() -> None:
        for slot in slots:
            run.start(slot, committed, [r for r in records if r.partition() == slot.partition])

    start()
    while at < len(records):
        size = rng.randrange(1, 40)
        run.step.process(records[at : at + size], discard)
        at += size
        if rng.random() < 0.2:
            run.flush()
        if rng.random() < 0.5:
            committed = records[min(at, len(records)) - 1].offset() + 1
        elif rng.random() < 0.4:  # crash: back to what is committed
            run = Run(kind, tmp_path, max_rows=40)
            start()
            at = next((i for i, r in enumerate(records) if r.offset() >= committed), len(records))
    run.flush()
    assert run.offsets() == [r.offset() for r in records]


@pytest.mark.slow
def test_a_process_that_was_replaced_writes_nothing_twice(kind: Any, tmp_path: Path) -> None:
    records = [record(n) for n in range(60)]
    old, new = Run(kind, tmp_path), Run(kind, tmp_path)
    old.start(SLOT, 0, records)
    old.step.process(records[:20], discard)
    new.start(SLOT, 10, records)
    new.step.process(records[10:], discard)
    new.flush()
    with pytest.raises(StoreError, match="another process has written"):
        old.flush()
    assert new.offsets() == list(range(60))


@pytest.mark.slow
def test_of_two_that_write_at_the_same_moment_the_table_takes_one(kind: Any, tmp_path: Path) -> None:
    one, other = Run(kind, tmp_path), Run(kind, tmp_path)
    for run in (one, other):
        run.start(SLOT, 0, [])
        run.step.process([record(n) for n in range(5)], discard)
    as_before = other.step._table(LOG)
    other.step._table = lambda _: as_before  # it has looked, and not written yet
    one.flush()
    with pytest.raises(StoreError, match=kind.conflict):
        other.flush()
    assert one.offsets() == list(range(5))


@pytest.mark.slow
def test_a_file_that_was_not_committed_is_not_read(kind: Any, tmp_path: Path) -> None:
    run = Run(kind, tmp_path)
    run.start(SLOT, 0, [])
    run.step.process([record(n) for n in range(5)], discard)
    run.flush()
    (file,) = (tmp_path / "flights" / "prediction-log").rglob("*.parquet")
    shutil.copy(file, file.with_name("part-of-a-write-that-failed.parquet"))
    rows = ArchiveSource(str(tmp_path)).rows(FLIGHTS, labelled=False)
    assert [row["offset"] for row in rows] == list(range(5))


@pytest.mark.slow
def test_an_archive_that_cannot_be_written_stops_it_and_loses_nothing(kind: Any, tmp_path: Path, monkeypatch) -> None:
    run = Run(kind, tmp_path)
    run.start(SLOT, 0, [])
    records = [record(n) for n in range(5)]
    run.step.process(records, discard)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(kind.writes, full)
        with pytest.raises(StoreError, match="No space left"):
            run.flush()
    run.step.revoke([SLOT])
    run.start(SLOT, 5, records)
    run.flush()
    assert run.offsets() == list(range(5))


@pytest.mark.slow
def test_a_backtest_from_the_archive_says_what_the_one_it_was_made_of_said(kind: Any, tmp_path: Path) -> None:
    flights = data.flights((1,), days=1)[:200]
    run = Run(kind, tmp_path)
    for one in logs_of(FLIGHTS, flights):
        slot = TopicPartition(one.topic(), 0)
        if one.offset() == 0:
            run.start(slot, 0, [])
        run.step.process([one], discard)
    run.flush()
    expected = Backtest(FLIGHTS).run([f.event for f in flights], data.labels(flights))
    report = Backtest(FLIGHTS).replay(*ArchiveSource(str(tmp_path)).vectors_and_labels(FLIGHTS))
    assert report.metrics == expected.metrics
    assert (report.predictions, report.joined) == (expected.predictions, expected.joined)


@pytest.mark.slow
def test_a_field_that_is_new_is_a_column_that_older_rows_lack(kind: Any, tmp_path: Path) -> None:
    """The archive of a declaration before it had a model: its tables get that model's columns."""
    run = Run(kind, tmp_path)
    lacking = run.step.forms[LOG]
    names = [name for name in lacking.schema.names if name not in ("score_tree", "version_tree", "stale")]
    lacking.schema = pa.schema([lacking.schema.field(name) for name in names])
    run.start(SLOT, 0, [])
    run.step.process([record(0)], discard)
    run.flush()
    later = Run(kind, tmp_path)
    later.start(SLOT, 0, [record(0)])
    later.step.process([record(1)], discard)
    later.flush()
    assert later.offsets() == [0, 1]
    table = kind.rows(tmp_path, "prediction-log").sort_by("offset")
    assert table["stale"].to_pylist() == [None, []]
    rows = ArchiveSource(str(tmp_path)).rows(FLIGHTS, labelled=False)
    assert sorted(row["offset"] for row in rows) == [0, 1]


def test_iceberg_outside_of_a_folder_needs_a_catalog() -> None:
    with pytest.raises(SettingsError, match="set PYICEBERG_CATALOG__TIDEMILL__URI"):
        open_catalog("memory://archive")
