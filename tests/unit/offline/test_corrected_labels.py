"""Corrected labels: production, backtest, training sets, archive and comparison have the same examples and labels."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import small

from tidemill import Pipeline
from tidemill.cli.text.schemas import topic_schemas
from tidemill.files import Files
from tidemill.models.corrections import Corrections, read_corrections
from tidemill.models.fold import Fold
from tidemill.models.refold import FoldRange, Refold
from tidemill.offline import dataset, lookup
from tidemill.offline.backtest import Backtest
from tidemill.offline.compare import ComparisonRequest, compare
from tidemill.offline.recompute import recompute, recompute_rows
from tidemill.offline.river import River
from tidemill.offline.source import ArchiveSource, KafkaSource, past_of
from tidemill.offline.tuning import questions
from tidemill.stream.api import Position, TopicPartition
from tidemill.stream.memory import MemoryRecord
from tidemill.stream.topic import DAY
from tidemill.watch.archiver.service import Archiver
from tidemill.watch.monitor.core import Core
from tidemill.watch.monitor.figures import FigureKey
from tidemill.wire import topics
from tidemill.wire.asyncapi import document
from tidemill.wire.records import Records

pytestmark = pytest.mark.slow

MINUTE = small.MINUTE
PIPELINE = small.make(partitions=1, labels=small.LABELS.with_fields(corrections="6h"), label_timeout="30m")
RECORDS = Records(PIPELINE)
NAME = PIPELINE.name

History = tuple[list[dict[str, Any]], list[dict[str, Any]]]


def history(seed: int = 3, many: int = 60) -> History:
    """Events in order of time, and labels in order of theirs: many corrected, some twice, some back, some too late."""
    draw = random.Random(seed)
    events = [small.event(f"e{n}", n * MINUTE, distance=draw.uniform(100, 900)) for n in range(many)]
    labels = []
    for n in range(many):
        first = round(draw.uniform(-10, 60), 1)
        times = [draw.randrange(1, 25), *sorted(draw.sample(range(26, 700), draw.choice([0, 0, 1, 2, 3])))]
        values = itertools.cycle([first, round(draw.uniform(100, 200), 1)])
        labels += [small.label(f"e{n}", (n + time) * MINUTE, value) for time, value in zip(times, values, strict=False)]
    # Time goes on, so that all of it is decided.
    events += [small.event(f"later{n}", (many + 900 + n) * MINUTE) for n in range(60)]
    labels += [small.label(f"later{n}", (many + 901 + n) * MINUTE) for n in range(60)]
    return events, sorted(labels, key=lambda label: label["landed_at"])


@pytest.fixture(scope="module")
def past() -> History:
    return history()


@pytest.fixture(scope="module")
def production(past: History) -> River:
    """The services, given each record at its time."""
    river, (events, labels) = River(PIPELINE), past
    sent = [(e["asked_at"], 1, "small.events", RECORDS.sent_event.encode(e)) for e in events]
    sent += [(la["landed_at"], 0, "small.labels", RECORDS.sent_label.encode(la)) for la in labels]
    for time, _, topic, data in sorted(sent, key=lambda one: one[:2]):
        river.broker.append(topic, data, None, time)
        river.run()
        fresh = river.broker.records("small.examples")
        river.learn(record for record in fresh if record.offset() >= river.folds["linear"].version)
    return river


def last_labels(past: History) -> dict[str, float]:
    """By brute force: of each event the last label within six hours of the first."""
    last: dict[str, float] = {}
    first: dict[str, int] = {}
    for label in past[1]:
        of = label["flight_id"]
        if label["landed_at"] <= first.setdefault(of, label["landed_at"]) + 6 * small.HOUR:
            last[of] = label["arr_delay"]
    return last


def examples_of(river: River) -> list[MemoryRecord]:
    return river.broker.records("small.examples")


def labels_in(out: Path) -> dict[str, float]:
    table = pq.read_table(out)
    return dict(zip(table["event_id"].to_pylist(), table["label"].to_pylist(), strict=True))


def test_the_history_has_every_kind_of_correction(production: River) -> None:
    corrections = [RECORDS.correction.of(record.value()) for record in examples_of(production)]
    given = [one for one in corrections if one]
    assert len(given) >= 30
    assert any(one["label"] == one["first_label"] for one in given), "a label that is corrected back"
    letters = production.broker.records("small.dlq")
    reasons = {dict(record.headers() or [])["tidemill.reason"] for record in letters}
    assert reasons == {b"unmatched_label"}, "corrections that come too late are dead letters"


def test_a_backtest_has_the_examples_and_corrections_of_production(production: River, past: History) -> None:
    run, emitted = Backtest(PIPELINE), []
    run.emitted = lambda record: emitted.append(record) if record.topic() == "small.examples" else None
    run.run(*past)
    ours = examples_of(production)
    assert [r.key() for r in emitted] == [r.key() for r in ours]
    for one, other in zip(emitted, ours, strict=True):
        # Its versions count otherwise: a backtest's model is in use at once.
        codec = RECORDS.correction if RECORDS.correction.of(other.value()) else RECORDS.example
        a, b = codec.decode(one.value()), codec.decode(other.value())
        if codec is RECORDS.example:
            assert a["prediction"]["features"]["vector"] == b["prediction"]["features"]["vector"]
            assert a["prediction"]["champion"] == b["prediction"]["champion"]
            a, b = (({name: x[name] for name in ("label", "label_time")}) for x in (a, b))
        assert a == b


def test_models_that_run_learn_the_first_label_once_and_nothing_of_corrections(
    production: River, past: History
) -> None:
    run = Backtest(PIPELINE)
    report = run.run(*past)
    for name, fold in run.folds.items():
        again = Fold(PIPELINE, name)
        for record in examples_of(production):
            if (example := RECORDS.example.of(record.value())) is not None:
                again.learn(example, record.offset())
        x = {"distance": 500.0, "hour": 5.0}
        assert fold.examples == again.examples == report.joined == production.folds[name].examples
        assert fold.model.predict_one(x) == again.model.predict_one(x) == production.folds[name].model.predict_one(x)


def test_figures_of_a_backtest_are_by_last_labels_and_equal_those_of_a_comparison(
    production: River, past: History
) -> None:
    report = Backtest(PIPELINE).run(*past)
    compared = compare(PIPELINE, production.broker, ComparisonRequest("linear", "slow"))
    (line,) = compared.lines
    assert dict(line.a) == report.metrics["linear"]
    assert dict(line.b) == report.metrics["slow"]
    first = {la["flight_id"]: la["arr_delay"] for la in reversed(past[1])}
    last = last_labels(past)
    superseded = sum(first[of] != label for of, label in last.items())
    assert report.corrected == compared.corrected == superseded > 10
    assert report.corrections > report.corrected
    # By the labels that were known then they are others.
    assert report.over_time[-1]["metrics"]["linear"] != report.metrics["linear"]
    plain = small.make(partitions=1, label_timeout="30m")
    assert compare(plain, production.broker, ComparisonRequest("linear", "slow")).corrected == 0


def written(out: Path, take: Any, *, is_served: bool = True) -> dataset.Summary:
    with dataset.written(out, dataset.Form(PIPELINE, is_served=is_served), dataset.Span()) as writer:
        take(writer)
    return writer.summary


@pytest.fixture(scope="module")
def archived(production: River, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of an archive of production, in chunks of few records."""
    url = f"file://{tmp_path_factory.mktemp('archive')}"
    archiver = Archiver(PIPELINE, Files(url, "archive_url", "archive", create=True), chunk=16)
    for topic in ("small.examples", "small.prediction-log"):
        archiver.assign(TopicPartition(topic, 0), Position(0))
        archiver.process(production.broker.records(topic), lambda *_: None)
    archiver.finish(lambda *_: None)
    return url


def test_training_sets_have_last_labels_wherever_they_come_from(
    production: River, past: History, archived: str, tmp_path: Path
) -> None:
    expected = last_labels(past)
    first = {la["flight_id"]: la["arr_delay"] for la in reversed(past[1])}
    superseded = sum(first[of] != label for of, label in expected.items())
    kafka = KafkaSource(production.broker)
    stored = ArchiveSource(archived)
    for name, take, is_served in (
        ("served", lambda writer: dataset.served(PIPELINE, kafka, writer), True),
        ("archived", lambda writer: dataset.served(PIPELINE, stored, writer), True),
        ("recomputed", lambda writer: recompute_rows(PIPELINE, *past, writer), False),
        ("recomputed-kafka", lambda writer: recompute(PIPELINE, kafka, writer), False),
    ):
        summary = written(tmp_path / f"{name}.parquet", take, is_served=is_served)
        assert labels_in(tmp_path / f"{name}.parquet") == expected, name
        assert summary.corrected == superseded, name
    for source in (kafka, stored):
        asked = questions.read(PIPELINE, source)
        assert sorted(one.label for one in asked.examples) == sorted(expected.values())


def test_a_version_before_a_correction_folds_again_as_it_was_and_a_corrected_one_by_its_name(production: River) -> None:
    records = examples_of(production)
    cut = records[len(records) // 2].offset() + 1
    names = {"linear": 0, f"linear~0~{cut}": cut, f"linear~0~{len(records)}": len(records)}
    targets = {name: FoldRange(name, _last_example(records[: max(cut, before)])) for name, before in names.items()}
    folded = {one.target.model: one for one in _snapshots(PIPELINE, production, list(targets.values()))}
    for name, before in names.items():
        known, fold = Corrections(RECORDS, before), Fold(PIPELINE, name)
        for record in records:
            known.take(record)
        for record in records[: targets[name].version]:
            if (example := RECORDS.example.of(record.value())) is not None:
                fold.learn(known.apply(example), record.offset())
        assert folded[name].fold == (fold.examples, fold.model.predict_one({"distance": 500.0, "hour": 5.0})), name
    assert len({one.fold[1] for one in folded.values()}) == 3


def _last_example(records: list[MemoryRecord]) -> int:
    return max(r.offset() for r in records if RECORDS.example.of(r.value()) is not None) + 1


def _snapshots(pipeline: Pipeline, river: River, targets: list[FoldRange]) -> list[Any]:
    x = {"distance": 500.0, "hour": 5.0}
    found = []
    for one in Refold(pipeline, river.broker).snapshots(targets):
        assert one.fold is not None, one.why
        found.append(one._replace(fold=(one.fold.examples, one.fold.model.predict_one(x))))
    return found


def test_a_pipeline_that_declares_no_corrections_reads_none(production: River) -> None:
    assert read_corrections(PIPELINE, production.broker).labels
    plain = small.make(partitions=1, label_timeout="30m")
    assert read_corrections(plain, production.broker).labels == {}
    assert topics.EXAMPLES.kept_ms(plain) == -1
    assert topics.LABELS_VALID.kept_ms(plain) == topics.LABELS_VALID.retention_ms


def test_what_the_joiner_may_have_to_read_again_is_kept_for_that_long() -> None:
    long = small.make(labels=small.LABELS.with_fields(corrections="30d"), label_timeout="2d")
    for topic in (topics.LABELS_VALID, topics.PREDICTION_LOG):
        assert topic.kept_ms(long) == topic.of(long).retention_ms == 35 * DAY  # 30, twice 2, and one more
        assert (
            document(long, ["b:1"], inner=True)["channels"][topic.suffix.replace(".", "-")]["bindings"]["kafka"][
                "topicConfiguration"
            ]["retention.ms"]
            == 35 * DAY
        )
    assert topics.EVENTS_VALID.kept_ms(long) == 30 * DAY


def test_both_records_of_the_examples_are_documented() -> None:
    for pipeline, names in ((PIPELINE, ["Example-avro", "Correction-avro"]), (small.make(), ["Example-avro"])):
        assert list(document(pipeline, ["b:1"], inner=True)["channels"]["examples"]["messages"]) == names
        of_examples = [one.name for one in topic_schemas(pipeline) if one.short == "examples"]
        assert [name.rpartition(".")[2] for name in of_examples] == [name.partition("-")[0] for name in names]


def test_a_look_up_says_the_last_label_and_the_first(
    production: River, past: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = {la["flight_id"]: la["arr_delay"] for la in reversed(past[1])}
    for chunk in (3, 1_000):
        monkeypatch.setattr(lookup, "CHUNK_OFFSETS", chunk)
        found = lookup.LogLookup(PIPELINE, production.broker, lambda *_: {}, lambda *_: None)
        for id_, label in last_labels(past).items():
            outcome = (found.prediction(id_) or {})["outcome"]
            assert (outcome["state"], outcome["label"], outcome.get("first_label", label)) == (
                "joined", label, first[id_] if "first_label" in outcome else label,
            )  # fmt: skip


def test_a_backtest_over_an_archive_learns_last_labels(production: River, past: History, archived: str) -> None:
    run, seen = Backtest(PIPELINE), dict[str, float]()
    run.examples = lambda record: seen.update(
        {(record.key() or b"").decode(): RECORDS.example.decode(record.value() or b"")["label"]}
    )
    report = past_of(ArchiveSource(archived), PIPELINE).run(run, None)
    assert seen == last_labels(past)
    assert report.joined == len(seen) == run.folds["linear"].examples


def test_the_monitor_counts_corrections_in_the_window_of_their_time(production: River) -> None:
    core = Core(PIPELINE, clock=lambda: 0.0)
    core.catching_up = True
    core.examples(examples_of(production))
    figures = [closed.figures for closed in core.finish() if closed.source == "examples"]
    counted = sum(figure[FigureKey("corrections")] for figure in figures if FigureKey("corrections") in figure)
    assert counted == sum(RECORDS.correction.of(r.value()) is not None for r in examples_of(production))
