"""A training set has every labelled vector once, as of its event's time, whichever way it was made; or nothing is written."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import small
from click.testing import CliRunner
from monitored import logs_of

from tidemill import View, aggregates, load
from tidemill.cli.main import cli
from tidemill.cli.text.reports import dataset_text
from tidemill.declare.pipeline import Pipeline
from tidemill.demo import data
from tidemill.errors import SettingsError
from tidemill.files import Files
from tidemill.offline import dataset as sets
from tidemill.offline.backtest import Backtest
from tidemill.offline.dataset import Form, Span, Summary, Writer, check_out, span_of, written
from tidemill.offline.history import prediction_writer, write
from tidemill.offline.log_history import TimedRecord, sorted_by_time
from tidemill.offline.recompute import complete_from, recompute, recompute_rows
from tidemill.offline.source import ArchiveSource, KafkaSource
from tidemill.stream.api import Position, TopicPartition, discard
from tidemill.stream.memory import MemoryBroker, MemoryRecord
from tidemill.watch.archiver.service import Archiver
from tidemill.wire import topics
from tidemill.wire.archive_rows import RowFormat, features_of
from tidemill.wire.records import Records

FLIGHTS = load("flights")
LATER = replace(
    FLIGHTS,
    views=[
        *FLIGHTS.views,
        View("origin", name="airport", every="15m", aggregates=[aggregates.max("distance", "3h")]),
        View("dest", name="route", every="15m", aggregates=[aggregates.count("6h"), aggregates.mean("distance", "6h")]),
        View("carrier", name="line", source="examples", every="15m", aggregates=[
            aggregates.shrunk_mean("label", 0.2, 20, "12h"), aggregates.max("arr_delay", "6h")]),
    ],
)  # fmt: skip
HOUR = small.HOUR
EXAMPLES, VALID, LABELS = topics.EXAMPLES, topics.EVENTS_VALID, topics.LABELS_VALID


@cache
def found() -> list[data.Flight]:
    return data.flights((1,), days=2)


@cache
def vectors(*, later: bool = False) -> dict[str, dict[str, Any]]:
    """Return the vectors that a backtest serves, by event; `later`: with the later views from the start."""
    served: dict[str, dict[str, Any]] = {}
    run = Backtest(LATER if later else FLIGHTS)
    run.predictions = lambda log: served.__setitem__(log["features"]["event_id"], log["features"]["vector"])
    run.run([f.event for f in found()], data.labels(found()))
    return served


@cache
def examples() -> list[MemoryRecord]:
    return [record for record in logs_of(FLIGHTS, found()) if record.topic() == EXAMPLES.name("flights")]


@cache
def decoded() -> list[dict[str, Any]]:
    codec = Records(FLIGHTS).example
    return [codec.decode(record.value()) for record in examples()]


def broker_with(records: Sequence[MemoryRecord], name: str = "flights") -> MemoryBroker:
    broker = MemoryBroker({EXAMPLES.name(name): 1})
    for record in records:
        broker.append(record.topic(), record.value(), record.key(), record.timestamp()[1])
    return broker


def valid(partitions: int, seed: int = 0) -> MemoryBroker:
    """Return what the validator wrote of these flights, over several partitions, some records later than the next ones."""
    broker = MemoryBroker({VALID.name("flights"): partitions, LABELS.name("flights"): partitions})
    records, rng = Records(FLIGHTS), random.Random(seed)
    for topic, codec, key, time, rows in (
        (VALID.name("flights"), records.event, "origin", "asked_at", [f.event for f in found()]),
        (LABELS.name("flights"), records.label, "flight_id", "landed_at", data.labels(found())),
    ):
        late = sorted(range(len(rows)), key=lambda i: i + (rng.randrange(50) if partitions > 1 else 0))
        for i in late:
            broker.append(topic, codec.encode(rows[i]), rows[i][key].encode(), rows[i][time])
    return broker


def make(path: Path, fill: Callable[[Writer], Any], pipeline: Pipeline = FLIGHTS, *, is_served: bool = True,
         span: Span = Span()) -> tuple[pd.DataFrame, Summary]:  # noqa: B008  # fmt: skip
    with written(path, Form(pipeline, is_served=is_served), span) as writer:
        fill(writer)
    return pd.read_parquet(path), writer.summary


def of_vector(frame: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Return the vectors of a data set, by event, with None for what is missing."""
    x = frame.filter(regex="^x_").astype(object)
    x = x.where(x.notna(), None).rename(columns=lambda name: name[2:])
    return dict(zip(frame["event_id"], x.to_dict("records"), strict=True))


def ms(column: pd.Series) -> pd.Series:
    return column.astype("datetime64[ms, UTC]").astype("int64")


@pytest.mark.slow
class TestAsServed:
    def test_it_has_what_was_served_and_what_came_true(self, tmp_path: Path) -> None:
        frame, summary = make(
            tmp_path / "x.parquet", lambda w: sets.served(FLIGHTS, KafkaSource(broker_with(examples())), w)
        )
        assert len(frame) == summary.rows == len(decoded()) > 1500
        for row, example in zip(frame.to_dict("records"), decoded(), strict=True):
            log = example["prediction"]
            assert (row["event_id"], row["entity_id"]) == (log["features"]["event_id"], log["features"]["entity_id"])
            entities = {
                n[7:]: v for n, v in row.items() if n.startswith("entity_") and n != "entity_id" and pd.notna(v)
            }
            assert entities == log["features"]["entities"]
            assert row["event_time"].value // 10**6 == log["features"]["event_time"]
            assert row["label_time"].value // 10**6 == example["label_time"]
            said = log["champion"]
            assert (row["champion"], row["score"], row["version"]) == (said["model"], said["score"], said["version"])
            assert row["label"] == example["label"]
        assert of_vector(frame) == {
            e["prediction"]["features"]["event_id"]: e["prediction"]["features"]["vector"] for e in decoded()
        }
        assert list(frame.columns[:3]) == ["event_id", "entity_id", "entity_dest"]
        assert [name[2:] for name in frame.columns if name.startswith("x_")] == list(FLIGHTS.vector)
        assert summary.label_mean == pytest.approx(frame["label"].mean())
        assert summary.labels == {"true": int(frame["label"].sum()), "false": int((~frame["label"]).sum())}

    def test_from_the_archive_it_is_the_same(self, tmp_path: Path) -> None:
        step = Archiver(FLIGHTS, Files(str(tmp_path), "archive_url", "archive"), every_seconds=0.0, chunk=500)
        step.assign(TopicPartition(EXAMPLES.name("flights"), 0), Position(0))
        step.process(examples(), discard)
        for span in (Span(), Span(found()[900].event["asked_at"], found()[1500].event["asked_at"])):
            one, _ = make(
                tmp_path / "1.parquet",
                lambda w: sets.served(FLIGHTS, KafkaSource(broker_with(examples())), w),
                span=span,
            )
            other, _ = make(
                tmp_path / "2.parquet", lambda w: sets.served(FLIGHTS, ArchiveSource(str(tmp_path)), w), span=span
            )
            one, other = (frame.sort_values("event_id", ignore_index=True) for frame in (one, other))
            pd.testing.assert_frame_equal(one, other)

    def test_the_archives_other_days_are_not_even_read(self, tmp_path: Path) -> None:
        step = Archiver(FLIGHTS, Files(str(tmp_path), "archive_url", "archive"), every_seconds=0.0, chunk=500)
        step.assign(TopicPartition(EXAMPLES.name("flights"), 0), Position(0))
        step.process(examples(), discard)
        for path in tmp_path.rglob("date=2013-01-01/*.parquet"):
            path.write_bytes(b"damaged")
        span = span_of("2013-01-02", "2013-01-03")
        frame, _ = make(
            tmp_path / "x.parquet", lambda w: sets.served(FLIGHTS, ArchiveSource(str(tmp_path)), w), span=span
        )
        assert set(frame["event_time"].dt.date.astype(str)) == {"2013-01-02"}

    def test_the_end_is_not_included_and_the_beginning_is(self, tmp_path: Path) -> None:
        times = sorted({f.event["asked_at"] for f in found() if f.label})
        span = Span(times[10], times[20])
        frame, summary = make(
            tmp_path / "x.parquet", lambda w: sets.served(FLIGHTS, KafkaSource(broker_with(examples())), w), span=span
        )
        assert sorted(set(ms(frame["event_time"]))) == times[10:20]
        assert (summary.first_event, summary.last_event) == (times[10], times[19])

    def test_examples_of_an_earlier_declaration_are_counted_in_the_span(self, tmp_path: Path) -> None:
        times = sorted(f.event["asked_at"] for f in found() if f.label)
        span = Span(times[100], times[200])
        with pytest.raises(SettingsError, match=r"all 1\d\d examples .* earlier declaration.*--recompute"):
            make(
                tmp_path / "x.parquet",
                lambda w: sets.served(LATER, KafkaSource(broker_with(examples())), w),
                LATER,
                span=span,
            )
        assert list(tmp_path.iterdir()) == []

    def test_a_number_as_label_has_a_mean(self, tmp_path: Path) -> None:
        pipeline = small.make()
        broker = broker_with(small.example_records(pipeline, 50), "small")
        frame, summary = make(tmp_path / "x.parquet", lambda w: sets.served(pipeline, KafkaSource(broker), w), pipeline)
        assert summary.label_mean == pytest.approx(frame["label"].mean())
        assert summary.labels == {}
        assert "mean -0.1" in dataset_text(summary)

    def test_classes_have_their_probabilities_and_are_counted(self, tmp_path: Path) -> None:
        from river import dummy

        stream = replace(small.LABELS, value=lambda label: "late" if label["arr_delay"] > 0 else "early")
        pipeline = small.make(task="multiclass", labels=stream, models={"linear": dummy.PriorClassifier()})
        codec, broker = Records(pipeline).example, broker_with([], "small")
        for i, label in enumerate(["late", "early", "late"]):
            example = small.example(pipeline, f"e{i}", 0.0, i)
            example["label"] = label
            example["prediction"]["champion"]["probabilities"] = {"late": 0.75, "early": 0.25}
            broker.append("small.examples", codec.encode(example))
        frame, summary = make(tmp_path / "x.parquet", lambda w: sets.served(pipeline, KafkaSource(broker), w), pipeline)
        assert dict(frame["probabilities"][0]) == {"late": 0.75, "early": 0.25}
        assert (summary.labels, summary.label_mean) == ({"late": 2, "early": 1}, None)
        assert "late 2, early 1" in dataset_text(summary)


class TestRecomputed:
    @pytest.mark.slow
    def test_vectors_are_those_that_a_backtest_serves(self, tmp_path: Path) -> None:
        frame, summary = make(
            tmp_path / "x.parquet", lambda w: recompute_rows(FLIGHTS, [f.event for f in found()], data.labels(found()), w),
            is_served=False,
        )  # fmt: skip
        made = of_vector(frame)
        served = vectors()
        assert made == {event: served[event] for event in made}
        assert len(made) == summary.rows == sum(f.label is not None for f in found())
        assert frame["label"].tolist() == [example["label"] for example in decoded()]
        assert frame[["champion", "score", "version"]].isna().all(axis=None)

    @pytest.mark.slow
    @pytest.mark.parametrize("is_kafka", [False, True])
    def test_a_view_added_later_changes_no_old_feature_and_is_as_if_it_had_always_been(
        self, tmp_path: Path, is_kafka: bool
    ) -> None:
        def fill(writer: Writer) -> None:
            if is_kafka:
                recompute(LATER, KafkaSource(valid(1)), writer)
            else:
                recompute_rows(LATER, [f.event for f in found()], data.labels(found()), writer)

        frame, _ = make(tmp_path / "x.parquet", fill, LATER, is_served=False)
        made, before, always = of_vector(frame), vectors(), vectors(later=True)
        assert len(made) > 1500
        new = set(LATER.vector) - set(FLIGHTS.vector)
        assert len(new) == 5
        for event, vector in made.items():
            assert {name: value for name, value in vector.items() if name not in new} == before[event]
            assert vector == always[event]
        for name in new:
            assert frame[f"x_{name}"].nunique() > 5

    @pytest.mark.slow
    def test_partitions_and_late_records_do_not_matter(self, tmp_path: Path) -> None:
        """But for events of the same millisecond, which know of each other in the order of their partitions."""
        times = [f.event["asked_at"] for f in found()]
        alone = {f.event["flight_id"] for f in found() if times.count(f.event["asked_at"]) == 1}
        made = []
        for broker in (valid(1), valid(4, seed=5)):
            path = tmp_path / f"{len(made)}.parquet"
            frame, _ = make(path, partial(recompute, LATER, KafkaSource(broker)), LATER, is_served=False)
            made.append(of_vector(frame))
        assert made[0].keys() == made[1].keys()
        assert len(alone & made[0].keys()) > 200
        for event in alone & made[0].keys():
            assert made[0][event] == made[1][event]

    @pytest.mark.slow
    def test_a_span_is_warmed_up_by_what_was_before_it(self, tmp_path: Path) -> None:
        span = Span(found()[1000].event["asked_at"], found()[1400].event["asked_at"])
        frame, _ = make(
            tmp_path / "x.parquet", lambda w: recompute(FLIGHTS, KafkaSource(valid(1)), w), is_served=False, span=span
        )
        made, served = of_vector(frame), vectors()
        wanted = {f.event["flight_id"] for f in found() if f.label and f.event["asked_at"] in span}
        assert made == {event: served[event] for event in wanted}

    @pytest.mark.slow
    def test_what_a_cut_log_lacks_is_said(self, tmp_path: Path) -> None:
        views = [View("origin", every="5m", aggregates=[aggregates.count("1h", "3h")])]
        pipeline, broker = replace(FLIGHTS, views=views), valid(1)
        broker.truncate(TopicPartition(VALID.name("flights"), 0), 500)
        frame, summary = make(
            tmp_path / "x.parquet", lambda w: recompute(pipeline, KafkaSource(broker), w), pipeline, is_served=False
        )
        begin = found()[500].event["asked_at"]
        partial = ms(frame["event_time"]) < begin + 3 * HOUR
        assert frame["partial"].tolist() == partial.tolist()
        assert summary.partial == partial.sum() > 20
        assert "(partial)" in dataset_text(summary)
        served, made = vectors(), of_vector(frame[~partial])
        for event, vector in made.items():
            assert all(served[event][name] == value for name, value in vector.items() if name in served[event])

    def test_windows_over_outcomes_lack_more(self) -> None:
        over = replace(
            FLIGHTS, views=[View("dest", source="examples", every="5m", aggregates=aggregates.mean("label", "3h"))]
        )
        assert complete_from(over, None, None) is None
        assert complete_from(over, 5, None) == 5 + 3 * HOUR + 48 * HOUR
        assert complete_from(over, None, 7) == 7 + 3 * HOUR
        assert complete_from(replace(FLIGHTS, views=[]), 5, 7) is None
        assert (
            complete_from(
                replace(FLIGHTS, views=[View("dest", every="5m", aggregates=aggregates.count("3h"))]), 5, 7 * HOUR
            )
            == 5 + 3 * HOUR
        )

    @pytest.mark.slow
    def test_what_todays_rules_refuse_is_counted(self, tmp_path: Path) -> None:
        events = [{**f.event, "sched_hour": 77} if i % 10 == 0 else f.event for i, f in enumerate(found())]
        _, summary = make(
            tmp_path / "x.parquet", lambda w: recompute_rows(FLIGHTS, events, data.labels(found()), w), is_served=False
        )
        assert summary.dead_letters["out_of_range"] == (len(events) + 9) // 10
        assert "records were refused: out_of_range" in dataset_text(summary)

    @pytest.mark.slow
    @pytest.mark.parametrize("task", ["regression", "anomaly", "multiclass"])
    def test_every_task_can_do_it(self, tmp_path: Path, task: str) -> None:
        from river import anomaly, dummy

        models = {
            "anomaly": anomaly.HalfSpaceTrees(),
            "multiclass": dummy.PriorClassifier(),
            "regression": small.linear(),
        }
        value = {
            "anomaly": lambda a: a["arr_delay"] > 0,
            "multiclass": lambda a: str(a["arr_delay"] > 0),
            "regression": "arr_delay",
        }
        pipeline = small.make(
            task=task, models={"m": models[task]}, champion="m", labels=replace(small.LABELS, value=value[task])
        )
        events = [small.event(str(i), i) for i in range(20)]
        labels = [small.label(str(i), 50 + i, i - 10.0) for i in range(20)]
        frame, _ = make(
            tmp_path / "x.parquet", lambda w: recompute_rows(pipeline, events, labels, w), pipeline, is_served=False
        )
        assert frame["event_id"].tolist() == [str(i) for i in range(20)]
        assert len(set(frame["label"])) > 1


@pytest.mark.slow
def test_the_command_writes_what_its_summary_says(tmp_path: Path) -> None:
    for name, rows in (("e.csv", [f.event for f in found()]), ("l.csv", data.labels(found()))):
        write(tmp_path / name, rows)
    command = ["dataset", "plain", "--recompute", "--events", str(tmp_path / "e.csv"), "--labels", str(tmp_path / "l.csv"),
               "--from", "2013-01-01T18:00Z", "--to", "2013-01-02", "--out", str(tmp_path / "x.parquet")]  # fmt: skip
    runner = CliRunner()
    summary = json.loads(runner.invoke(cli, [*command, "--json"], catch_exceptions=False).stdout)
    frame = pd.read_parquet(tmp_path / "x.parquet")
    assert summary["rows"] == len(frame) > 100
    assert (summary["first_event"], summary["last_event"]) == (
        ms(frame["event_time"]).min(),
        ms(frame["event_time"]).max(),
    )
    assert summary["label_mean"] == pytest.approx(frame["label"].mean())
    with pytest.raises(SettingsError, match="--force"):
        runner.invoke(cli, command, catch_exceptions=False)
    said = runner.invoke(cli, [*command, "--force"], catch_exceptions=False).stdout
    assert f"{len(frame):,} rows, events from 2013-01-01 18:00 to 2013-01-01 2" in said


@pytest.mark.parametrize("run", [1, 7, 100, 1000])
def test_records_are_sorted_by_time_then_as_they_came(run: int) -> None:
    rng = random.Random(run)
    records = [TimedRecord(rng.randrange(-5, 30), rng.randrange(3), i, bytes([i % 251]) * (i % 9)) for i in range(100)]
    with ExitStack() as held:
        assert list(sorted_by_time(iter(records), held, run)) == [r.value for r in sorted(records)]


class TestTheFile:
    @pytest.mark.slow
    def test_it_is_written_group_by_group(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sets, "GROUP_ROWS", 500)
        frame, _ = make(tmp_path / "x.parquet", lambda w: sets.served(FLIGHTS, KafkaSource(broker_with(examples())), w))
        groups = pq.ParquetFile(tmp_path / "x.parquet").metadata
        assert groups.num_row_groups == -(-len(frame) // 500)
        assert groups.row_group(0).num_rows == 500

    @pytest.mark.slow
    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_it_is_there_whole_or_not_at_all(self, tmp_path: Path, error: type[BaseException]) -> None:
        def fail(writer: Writer) -> None:
            sets.served(FLIGHTS, KafkaSource(broker_with(examples())), writer)
            raise error

        (tmp_path / "there.parquet").write_text("what was there before")
        for name in ("there", "new"):
            with pytest.raises(error):
                make(tmp_path / f"{name}.parquet", fail)
        assert [path.name for path in tmp_path.iterdir()] == ["there.parquet"]
        assert (tmp_path / "there.parquet").read_text() == "what was there before"

    @pytest.mark.slow
    def test_nothing_to_write_is_said_and_nothing_written(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match=r"x\.parquet: nothing to write: there is no example"):
            make(
                tmp_path / "x.parquet",
                lambda w: sets.served(FLIGHTS, KafkaSource(broker_with(examples())), w),
                span=Span(0, 1),
            )
        assert list(tmp_path.iterdir()) == []

    def test_nothing_to_write_says_what_became_dead_letters(self, tmp_path: Path) -> None:
        def refuse_all(writer: Writer) -> None:
            writer.summary.dead_letters = {"out_of_range": 7, "bad_label": 1}

        with pytest.raises(SettingsError, match=r"in these event times; dead letters: bad_label 1, out_of_range 7, of"):
            make(tmp_path / "x.parquet", refuse_all)

    def test_a_place_that_cannot_be_written_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "x.parquet").write_text("")
        (tmp_path / "y.parquet").mkdir()
        for name, words in (("x.parquet", "--force"), ("x.csv", r"\.csv'.*\.parquet"), ("y.parquet", "folder of that name"),
                            ("no/x.parquet", "does not exist")):  # fmt: skip
            with pytest.raises(SettingsError, match=words):
                check_out(tmp_path / name, force=False)
        check_out(tmp_path / "x.parquet", force=True)
        check_out(Path("x.parquet"), force=False)

    def test_a_full_disk_ends_in_a_setting(self, tmp_path: Path) -> None:
        def full(_: Writer) -> None:
            raise OSError(28, "No space left on device")

        with pytest.raises(SettingsError, match="No space left"):
            make(tmp_path / "x.parquet", full)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-02", 86_400_000), ("1970-01-01T00:00:01", 1000), ("1970-01-01T00:00:00.25Z", 250),
        ("1970-01-01T01:00+01:00", 0), ("1969-12-31", -86_400_000),
    ],
)  # fmt: skip
def test_times_are_utc_unless_they_say_otherwise(text: str, expected: int) -> None:
    assert span_of(text, None) == Span(expected, None)
    assert span_of(None, text) == Span(None, expected)


@pytest.mark.parametrize(
    ("given", "words"),
    [(("soon", None), "--from 'soon'.*ISO 8601"), ((None, "2013-13-01"), "--to '2013-13-01'"),
     (("2013-01-02", "2013-01-02"), "no time is between")],
)  # fmt: skip
def test_a_time_that_is_none_is_named(given: tuple[str | None, str | None], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        span_of(*given)


def test_predictions_of_a_backtest_are_written_in_the_format_that_the_name_says(tmp_path: Path) -> None:
    run, logs = Backtest(FLIGHTS), []
    path, lines = tmp_path / "p.parquet", tmp_path / "p.jsonl"
    with prediction_writer(path, FLIGHTS) as take, prediction_writer(lines, FLIGHTS) as take_line:
        run.predictions = lambda log: (logs.append(log), take(log), take_line(log))
        run.run([f.event for f in found()[:300]], [])
    assert [json.loads(line) for line in lines.read_text().splitlines()] == logs
    rows = RowFormat(FLIGHTS, labelled=False).rows(path.read_bytes())
    assert len(rows) == len(logs) > 290
    assert [features_of(row) for row in rows] == [log["features"] for log in logs]
    assert [row["champion_score"] for row in rows] == [log["champion"]["score"] for log in logs]
    for name in ("p.csv", "p.jsonl.gz", "p.TSV"):
        with (
            pytest.raises(SettingsError, match=r"expected a name that ends in \.parquet"),
            prediction_writer(tmp_path / name, FLIGHTS),
        ):
            pass
