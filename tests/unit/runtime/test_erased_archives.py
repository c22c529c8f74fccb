"""Rows go from archives of files and from tables, with all that a table says of them, and the archiver goes on."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import fastavro
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from test_archiver import EXAMPLES, FLIGHTS, LOG, record

from tidemill.errors import StoreError
from tidemill.files import Files
from tidemill.offline.byte_search import ByteSearch
from tidemill.offline.source import ArchiveSource
from tidemill.runtime import archived
from tidemill.runtime.archived import Archived
from tidemill.stream.api import Position, TopicPartition, discard
from tidemill.watch.archiver.delta import DeltaArchiver
from tidemill.watch.archiver.iceberg import IcebergArchiver
from tidemill.watch.archiver.service import Archiver
from tidemill.wire.archive_rows import features_of
from tidemill.wire.iceberg import open_catalog

pytestmark = pytest.mark.slow

#: The first and the last of a file, which its statistics name, one between, and all of one date.
GONE = ["e1000", "e1019", "e1007", "e1030"]
SLOTS = [TopicPartition(LOG, 0), TopicPartition(EXAMPLES, 0)]


class Run:
    """An archive with three writes to it, of two topics."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.now, self.folder, self.kind = 0.0, folder, kind
        self.archived = Archived(Files(str(folder), "archive_url", "archive"), "flights")
        self.step = self.new()
        self.write(range(1000, 1010), day=0)
        self.write(range(1010, 1020), day=0)
        self.write(range(1030, 1031), day=1)

    def new(self) -> Any:
        if self.kind == "files":
            step: Any = Archiver(FLIGHTS, self.archived.files, every_seconds=10.0, clock=lambda: self.now)
        else:
            kind = DeltaArchiver if self.kind == "delta" else IcebergArchiver
            step = kind(FLIGHTS, str(self.folder), every_seconds=10.0, clock=lambda: self.now)
        self.starts = [step.assign(slot, Position(2000)) for slot in SLOTS]
        return step

    def write(self, numbers: range, *, day: int) -> None:
        for topic in (LOG, EXAMPLES):
            self.step.process([record(number, day=day, topic=topic) for number in numbers], discard)
        self.now += 11
        self.step.process([], discard)

    def erase(self) -> None:
        self.archived.erase(ByteSearch(GONE))

    def found(self) -> dict[str, int]:
        return dict(self.archived.found(ByteSearch(GONE)))

    def ids(self, *, labelled: bool) -> list[str]:
        rows = ArchiveSource(str(self.folder)).rows(FLIGHTS, labelled=labelled)
        return sorted(features_of(row)["event_id"] for row in rows)


@pytest.fixture(params=["files", "delta", "iceberg"])
def run(request, tmp_path: Path) -> Run:
    return Run(request.param, tmp_path)


def traces(folder: Path) -> list[str]:
    """Every file that holds an id, whatever it is packed in."""
    found = []
    for path in folder.rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        texts = [data]
        if path.suffix == ".parquet":
            texts += [repr(pq.read_table(path).to_pylist()).encode(), repr(pq.read_metadata(path).to_dict()).encode()]
        if path.suffix == ".avro":
            texts.append(repr(list(fastavro.reader(io.BytesIO(data)))).encode())
        found += [path.name for one in GONE if any(one.encode() in text for text in texts)][:1]
    return found


def others() -> list[str]:
    return [f"e{n}" for n in (*range(1000, 1020), 1030) if f"e{n}" not in GONE]


def test_no_byte_of_them_is_left_and_the_others_are(run: Run) -> None:
    assert traces(run.folder)
    assert sum(run.found().values()) >= 2 * len(GONE)
    before = {labelled: run.ids(labelled=labelled) for labelled in (True, False)}
    assert set(GONE) <= set(before[True])
    run.erase()
    assert traces(run.folder) == []
    assert run.found() == {}
    for labelled in (True, False):
        assert run.ids(labelled=labelled) == others()
    run.erase()
    assert run.ids(labelled=True) == others(), "twice is once"


@pytest.mark.parametrize("is_new", [False, True], ids=["runs on", "starts again"])
def test_the_archiver_goes_on_where_it_was(run: Run, is_new: bool) -> None:
    run.erase()
    if is_new or run.kind == "files":  # whose archiver has dropped what it had in memory
        run.step = run.new()
        if run.kind != "files":
            assert [start.rebuild_from for start in run.starts] == [1031, 1031]
    run.write(range(1031, 1035), day=1)
    assert run.ids(labelled=False) == sorted([*others(), *(f"e{n}" for n in range(1031, 1035))])
    assert traces(run.folder) == []


@pytest.mark.parametrize("steps", range(7))
def test_after_it_broke_off_anywhere_all_is_done_again(run: Run, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    left = [steps]

    def breaks(what: Any) -> Any:
        def instead(*arguments: Any) -> Any:
            if not left[0]:
                raise StoreError("it is away")
            left[0] -= 1
            return what(*arguments)

        return instead

    with monkeypatch.context() as patch:
        for owner, name in ((Files, "delete"), (Files, "write"), (archived, "_delete_file"), (archived, "_again")):
            patch.setattr(owner, name, breaks(getattr(owner, name)))
        try:
            run.erase()
        except StoreError:
            assert run.found(), "else nothing would do it again"
    run.erase()
    assert traces(run.folder) == []
    assert run.ids(labelled=True) == run.ids(labelled=False) == others()


@pytest.mark.parametrize("kind", ["delta", "iceberg"])
def test_a_commit_that_comes_second_is_made_again(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, read, writes = Run(kind, tmp_path), getattr(archived, f"_{kind}"), [True]

    def late(*arguments: Any) -> Any:
        table = read(*arguments)
        if writes.pop() if writes else False:
            run.write(range(1040, 1042), day=0)
        return table

    monkeypatch.setattr(archived, f"_{kind}", late)
    run.erase()
    assert traces(tmp_path) == []
    assert run.ids(labelled=False) == sorted([*others(), "e1040", "e1041"])


def test_a_file_that_no_table_has_goes_where_it_holds_them(run: Run) -> None:
    (first, *_) = (
        path for path in sorted(run.folder.rglob("*.parquet")) if "date=" in str(path) and "prediction" in str(path)
    )
    if run.kind != "files":
        first.with_name("part-of-a-write-that-failed.parquet").write_bytes(first.read_bytes())
    run.erase()
    assert traces(run.folder) == []
    assert run.ids(labelled=False) == others()


def test_a_tables_numbers_of_versions_go_on(tmp_path: Path) -> None:
    """No name of the log is free again: a writer that was asleep would take it for its own."""
    run = Run("delta", tmp_path)
    log = tmp_path / "flights" / "prediction-log" / "_delta_log"
    before = {path.name for path in log.glob("*.json")}
    run.erase()
    assert before < {path.name for path in log.glob("*.json")}
    assert DeltaTable(log.parent).transaction_version("tidemill/flights.prediction-log/0") == 1031


def test_a_table_of_iceberg_has_one_snapshot_then(tmp_path: Path) -> None:
    run = Run("iceberg", tmp_path)
    run.erase()
    table = open_catalog(str(tmp_path)).load_table(("flights", "prediction-log"))
    assert len(table.snapshots()) == 1
    assert table.properties["tidemill/flights.prediction-log/0"] == "1031"
