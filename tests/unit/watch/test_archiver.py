"""The archive holds every record once, whatever is done again, and files say which offsets they hold."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from monitored import logs_of

from tidemill import Retention, category, load
from tidemill.demo import data
from tidemill.errors import SettingsError, StoreError
from tidemill.files import Files
from tidemill.offline.backtest import Backtest, KnownLabel
from tidemill.offline.source import ArchiveSource
from tidemill.stream.api import Position, TopicPartition, discard
from tidemill.stream.memory import MemoryRecord
from tidemill.watch.archiver.service import Archiver
from tidemill.wire import topics
from tidemill.wire.records import Records

FLIGHTS = load("flights")
RECORDS = Records(FLIGHTS)
LOG, EXAMPLES = topics.PREDICTION_LOG.name("flights"), topics.EXAMPLES.name("flights")
DAY = 86_400_000


def log(n: int, day: int = 0) -> dict[str, object]:
    vector = dict.fromkeys(FLIGHTS.vector) | {"carrier": "UA", "distance": float(n)}
    features = {
        "event_id": f"e{n}", "entity_id": "JFK", "event_time": day * DAY + n, "partition": 1, "offset": n + 7, "partial": False,
        "entities": {}, "as_of": {}, "stale": [],
        "vector": vector,
    }  # fmt: skip
    scores = [
        {"model": m, "version": n, "epoch": 0, "score": 0.25, "probabilities": {}, "answered": True}
        for m in FLIGHTS.model_names
    ]
    return {"features": features, "champion": scores[0], "challengers": scores[1:]}


def record(n: int, *, day: int = 0, topic: str = LOG, partition: int = 0) -> MemoryRecord:
    if topic == LOG:
        value = RECORDS.prediction_log.encode(log(n, day))
    else:
        value = RECORDS.example.encode(
            {"prediction": log(n, day), "label": n % 2 == 0, "label_time": day * DAY + n + 5}
        )
    return MemoryRecord(topic, value, f"e{n}".encode(), 1000 + n, None, partition, n)


class Run:
    """An archiver with a clock of its own."""

    def __init__(self, folder: Path, **more: object) -> None:
        self.now = 0.0
        self.folder = folder
        files = Files(str(folder), "archive_url", "archive")
        pipeline = more.pop("pipeline", FLIGHTS)
        self.step = Archiver(pipeline, files, every_seconds=10.0, chunk=100, clock=lambda: self.now, **more)

    def start(self, slot: TopicPartition, committed: int, records: list[MemoryRecord]) -> None:
        """Take a slot over as the loop does: rebuild from where the step says, then go on."""
        start = self.step.assign(slot, Position(committed))
        again = [r for r in records if start.rebuild_from <= r.offset() < start.live_from]
        self.step.process(again, discard)

    def flush(self) -> None:
        self.now += 11
        self.step.process([], discard)

    def frame(self, topic: str = "prediction-log") -> pd.DataFrame:
        return pd.read_parquet(self.folder / "flights" / topic)

    def names(self) -> list[str]:
        return sorted(str(p.relative_to(self.folder / "flights")) for p in self.folder.rglob("*.parquet"))


SLOT = TopicPartition(LOG, 0)


def test_a_row_holds_all_of_a_record(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.start(TopicPartition(EXAMPLES, 0), 0, [])
    run.step.process([record(3, topic=EXAMPLES)], discard)
    run.flush()
    (row,) = run.frame("examples").to_dict("records")
    assert row["event_id"] == "e3"
    assert row["event_time"] == pd.Timestamp(3, unit="ms", tz="UTC")
    assert (row["partition"], row["offset"], row["source_partition"], row["source_offset"]) == (0, 3, 1, 10)
    assert (row["x_carrier"], row["x_distance"], pd.isna(row["x_temp"])) == ("UA", 3.0, True)
    assert (row["champion"], row["score_logreg"], row["version_slow"]) == ("logreg", 0.25, 3)
    assert (bool(row["label"]), row["label_time"]) == (False, pd.Timestamp(8, unit="ms", tz="UTC"))
    assert str(row["date"]) == "1970-01-01"


def test_what_is_older_than_declared_goes_and_no_day_before_it_has_passed(tmp_path: Path) -> None:
    today = [30 * DAY + DAY // 2]
    pipeline = replace(FLIGHTS, retention=Retention(archive="10d"))
    run = Run(tmp_path, pipeline=pipeline, now=lambda: today[0] / 1000)
    run.start(SLOT, 0, [])
    run.step.process([record(n, day=n) for n in range(18, 24)], discard)
    run.flush()

    def dates() -> list[str]:
        return [name.partition("date=1970-01-")[2][:2] for name in run.names()]

    assert dates() == ["21", "22", "23", "24"], "the 21st has an afternoon that is not ten days ago"
    today[0] += DAY // 2
    run.flush()
    assert len(dates()) == 4, "it does not look each time"
    run.now += 3600
    run.flush()
    assert dates() == ["22", "23", "24"]
    kept = Run(tmp_path, now=lambda: 400 * DAY / 1000)
    kept.start(SLOT, 0, [])
    kept.flush()
    assert dates() == ["22", "23", "24"], "without the declaration nothing goes"


def test_a_file_is_named_by_its_topic_partition_and_offsets_below_its_date(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.start(SLOT, 0, [])
    run.step.process([record(n, day=n // 80) for n in range(150)], discard)
    run.flush()
    schema = f"{RECORDS.prediction_log.id:08x}"
    assert run.names() == [
        f"prediction-log/date=1970-01-01/prediction-log-0-000000000000-000000000099-{schema}.parquet",
        f"prediction-log/date=1970-01-02/prediction-log-0-000000000000-000000000099-{schema}.parquet",
        f"prediction-log/date=1970-01-02/prediction-log-0-000000000100-000000000199-{schema}.parquet",
    ]


def test_a_full_chunk_is_written_at_once_and_one_that_is_not_after_a_while(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.start(SLOT, 0, [])
    run.step.process([record(n) for n in range(130)], discard)
    assert sorted(run.frame()["offset"]) == list(range(100))
    run.flush()
    assert sorted(run.frame()["offset"]) == list(range(130))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_done_again_each_record_is_there_once(tmp_path: Path, seed: int) -> None:
    """Crashes at random moments, with the last commit somewhere before; markers of transactions leave gaps."""
    rng = random.Random(seed)
    offsets = [n for n in range(700) if rng.random() < 0.9]
    records = [record(n, day=rng.randrange(3)) for n in offsets]
    committed, run = 0, Run(tmp_path)
    run.start(SLOT, 0, records)
    at = 0
    while at < len(records):
        size = rng.randrange(1, 60)
        run.step.process(records[at : at + size], discard)
        at += size
        if rng.random() < 0.3:
            run.flush()
        if rng.random() < 0.6:
            committed = records[min(at, len(records)) - 1].offset() + 1
        elif rng.random() < 0.4:  # crash: back to what is committed
            run = Run(tmp_path)
            run.start(SLOT, committed, records)
            at = next((i for i, r in enumerate(records) if r.offset() >= committed), len(records))
    run.flush()
    assert sorted(run.frame()["offset"]) == offsets


def test_a_process_that_was_replaced_does_not_shorten_a_file(tmp_path: Path) -> None:
    records = [record(n) for n in range(60)]
    old, new = Run(tmp_path), Run(tmp_path)
    old.start(SLOT, 0, records)
    old.step.process(records[:20], discard)
    new.start(SLOT, 10, records)
    new.step.process(records[10:], discard)
    new.flush()
    old.flush()
    assert sorted(new.frame()["offset"]) == list(range(60))


def test_what_the_log_does_not_hold_any_more_is_taken_from_the_file(tmp_path: Path) -> None:
    records = [record(n, day=n % 2) for n in range(60)]
    first = Run(tmp_path)
    first.start(SLOT, 0, records)
    first.step.process(records[:40], discard)
    first.flush()
    again = Run(tmp_path)
    assert again.step.assign(SLOT, Position(30)).rebuild_from == 0
    again.step.truncated(SLOT)  # the log begins at 25 now
    again.step.process(records[25:], discard)
    again.flush()
    assert sorted(again.frame()["offset"]) == list(range(60))


def test_an_archive_that_cannot_be_written_stops_it_and_loses_nothing(tmp_path: Path, monkeypatch) -> None:
    run = Run(tmp_path)
    run.start(SLOT, 0, [])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("tidemill.files.write_atomic", full)
        with pytest.raises(StoreError, match="No space left"):
            run.step.process([record(n) for n in range(130)], discard)
    run.step.revoke([SLOT])
    run.start(SLOT, 0, [])
    run.step.process([record(n) for n in range(130)], discard)
    run.flush()
    assert sorted(run.frame()["offset"]) == list(range(130))


def test_records_of_an_earlier_declaration_are_counted_and_passed_over(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.start(SLOT, 0, [])
    run.step.process([MemoryRecord(LOG, b"\0\1\2\3\4old", b"k", 1, None, 0, 0), record(1)], discard)
    run.flush()
    assert list(run.frame()["offset"]) == [1]
    assert run.step.counts["skipped", "unknown_schema"] == 1


def test_a_time_beyond_any_calendar_is_counted_and_passed_over(tmp_path: Path) -> None:
    """The validator accepts none, so somebody else has written it."""
    run = Run(tmp_path)
    run.start(SLOT, 0, [])
    run.step.process([record(1, day=-(10**9)), record(2, day=-700_000)], discard)
    run.flush()
    assert list(run.frame()["offset"]) == [2]
    assert run.step.counts["skipped", "unknown_schema"] == 1


@pytest.mark.slow
def test_a_backtest_from_the_archive_says_what_the_one_it_was_made_of_said(tmp_path: Path) -> None:
    found = data.flights((1,), days=2)
    run = Run(tmp_path)
    for record in logs_of(FLIGHTS, found):
        slot = TopicPartition(record.topic(), 0)
        if record.offset() == 0:
            run.start(slot, 0, [])
        run.step.process([record], discard)
    run.flush()
    expected = Backtest(FLIGHTS).run([f.event for f in found], data.labels(found))
    report = Backtest(FLIGHTS).replay(*ArchiveSource(str(tmp_path)).vectors_and_labels(FLIGHTS))
    assert report.metrics == expected.metrics
    assert (report.predictions, report.joined) == (expected.predictions, expected.joined)


@pytest.mark.parametrize("url", ["nowhere", "memory://nothing-there"])
def test_an_archive_that_is_not_there_is_named(url: str) -> None:
    with pytest.raises(SettingsError, match=r"has no prediction-log of the pipeline 'flights'"):
        ArchiveSource(url).vectors_and_labels(FLIGHTS)


def test_an_archive_of_another_declaration_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.start(SLOT, 0, [])
    run.step.process([record(1)], discard)
    run.flush()
    other = replace(FLIGHTS, request={**FLIGHTS.request, "flight": category("flight")})
    with pytest.raises(SettingsError, match=r"another declaration.*x_flight"):
        ArchiveSource(str(tmp_path)).vectors_and_labels(other)


@pytest.mark.slow
def test_a_model_of_today_is_tried_on_an_archive_that_is_older(tmp_path: Path) -> None:
    found = data.flights((1,), days=2)
    run = Run(tmp_path)
    for record in logs_of(FLIGHTS, found):
        if record.offset() == 0:
            run.start(TopicPartition(record.topic(), 0), 0, [])
        run.step.process([record], discard)
    run.flush()
    other = replace(FLIGHTS, models={**FLIGHTS.models, "new": FLIGHTS.model("slow")}, views=[])
    report = Backtest(other).replay(*ArchiveSource(str(tmp_path)).vectors_and_labels(other))
    assert report.metrics["new"]["Accuracy"] > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 7, 100])
def test_a_chunk_is_written_before_the_offset_after_it_can_be_committed(tmp_path: Path, size: int) -> None:
    records = [record(n) for n in range(100)]
    run = Run(tmp_path)
    run.start(SLOT, 0, records)
    for start in range(0, 100, size):
        run.step.process(records[start : start + size], discard)
    del run.step  # killed, with offset 100 committed
    assert sorted(run.frame()["offset"]) == list(range(100))


def test_another_schema_has_files_of_its_own(tmp_path: Path) -> None:
    run, other = Run(tmp_path), replace(FLIGHTS, views=[])
    run.start(SLOT, 0, [])
    run.step.process([record(n) for n in range(4)], discard)
    run.flush()
    codec = Records(other).prediction_log
    step = Archiver(other, Files(str(tmp_path), "archive_url", "archive"), every_seconds=0.0, chunk=100)
    step.assign(SLOT, Position(0))
    again = []
    for n in range(4, 7):
        given = log(n)
        given["features"]["vector"] = {name: given["features"]["vector"].get(name) for name in other.vector}
        again.append(MemoryRecord(LOG, codec.encode(given), b"k", 1, None, 0, n))
    step.process(again, discard)
    assert sorted(run.frame()["offset"]) == list(range(7))


def test_a_label_that_is_not_later_than_its_event_is_learned_too() -> None:
    features = log(1)["features"]
    report = Backtest(FLIGHTS).replay([features], [KnownLabel("e1", True, 1)])
    assert (report.joined, report.pending) == (1, 0)


def test_an_archive_that_cannot_be_used_is_named_with_what_to_set() -> None:
    with pytest.raises(StoreError, match=r"archive_url 'nonsense://x' can't be used.*TIDEMILL_ARCHIVE_URL"):
        Files("nonsense://x", "archive_url", "archive")


@pytest.mark.slow
def test_an_archive_that_is_gone_is_written_again_from_the_beginning_of_the_log(tmp_path: Path) -> None:
    """As `tidemill offsets set PIPELINE archiver --to begin` has it; also over the files that are there."""
    records, slot, names = [record(n, day=n // 120) for n in range(250)], TopicPartition(LOG, 0), []
    for is_lost in (False, True, False):
        if is_lost:
            shutil.rmtree(tmp_path / "flights")
        run = Run(tmp_path)
        run.start(slot, 0, [])
        run.step.process(records, discard)
        run.flush()
        names.append(run.names())
        assert sorted(run.frame()["event_id"]) == sorted(f"e{n}" for n in range(250))
    assert names[0] == names[1] == names[2]
