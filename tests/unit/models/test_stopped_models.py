"""A model that has exploded is followed on and not published; what it says is no score, for whoever publishes or opens it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import small
from river import linear_model, metrics, optim
from signing_keys import KEY

from tidemill import Pipeline
from tidemill.declare.tasks import TASKS, Task
from tidemill.errors import ArtifactError
from tidemill.metrics import COUNTS, GAUGES
from tidemill.models.fold import LOOK_EVERY_EXAMPLES, Fold
from tidemill.registry.manifests import Manifest, Registry
from tidemill.registry.store import ArtifactStore
from tidemill.stages.learner.service import Learner
from tidemill.stream.api import Position, TopicPartition
from tidemill.stream.memory import MemoryRecord
from tidemill.wire.records import Records

SLOT = TopicPartition("small.examples", 0)


def exploding() -> Pipeline:
    """Return a pipeline whose model has no scaler and a rate at which it explodes by itself."""
    return small.make(models={"linear": linear_model.LinearRegression(optim.SGD(1.0))})


class Learning:
    """A learner without its loop; publishes after every 10 examples."""

    def __init__(self, pipeline: Pipeline, folder: Path) -> None:
        self.pipeline = pipeline
        self.registry = Registry(pipeline, ArtifactStore(str(folder)), KEY)
        self.manifests: list[Manifest] = []
        self.begin()

    def begin(self) -> int:
        """Be a new process; returns where it reads on."""
        self.step = Learner(
            self.pipeline, "linear", self.registry, lambda _: self.manifests[::-1], every_examples=10, every_seconds=1e9
        )
        return self.step.assign(SLOT, Position(0)).live_from

    def feed(self, records: list[MemoryRecord]) -> list[bool]:
        """Process ten by ten; returns of each batch whether it may be committed."""
        return [
            self.step.process(records[at : at + 10], lambda _, value, *__: self.manifests.append(self.registry.decode(value)))
            for at in range(0, len(records), 10)
        ]  # fmt: skip

    @property
    def stopped(self) -> float:
        return self.step.gauges()["stopped", "linear"]


def said(caplog: pytest.LogCaptureFixture, words: str) -> int:
    return sum(words in record.message for record in caplog.records)


@pytest.mark.parametrize(
    ("task", "score", "probabilities", "sane"),
    [
        ("binary", 0.0, {}, True),
        ("binary", 1.0, {}, True),
        ("binary", 1.0000000000000002, {}, True),  # what was divided by its sum
        ("binary", 1.001, {}, False),
        ("binary", -0.001, {}, False),
        ("binary", math.nan, {}, False),
        ("regression", -1e15, {}, True),
        ("regression", 1.1e15, {}, False),
        ("regression", math.inf, {}, False),
        ("regression", math.nan, {}, False),
        ("anomaly", 17.5, {}, True),
        ("anomaly", -math.inf, {}, False),
        ("multiclass", 0.0, {}, True),
        ("multiclass", 0.7, {"a": 0.7, "b": 0.3}, True),
        ("multiclass", 0.7, {"a": 0.7, "b": math.nan}, False),
        ("multiclass", 0.7, {"a": 0.7, "b": -0.3}, False),
        ("multiclass", 7.0, {"a": 7.0}, False),
    ],
)
def test_what_is_a_score(task: str, score: float, probabilities: dict[str, float], sane: bool) -> None:
    assert TASKS[task].is_valid_score(score, probabilities) is sane


def test_a_model_that_explodes_by_itself_stops_and_the_last_good_version_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    live = Learning(exploding(), tmp_path)
    records = small.example_records(live.pipeline, 400)
    live.step.training.every_examples = 1
    live.step.process(records[:1], lambda _, value, *__: live.manifests.append(live.registry.decode(value)))
    assert ([m.version for m in live.manifests], live.stopped) == ([1], 0.0), "one example does not make it explode"
    live.step.training.every_examples = 10
    live.step.counts.clear()
    committed = live.feed(records[1:])
    assert not any(committed), "nothing is committed beyond the last version"
    assert [m.version for m in live.manifests] == [1]
    assert live.stopped == 1.0
    assert live.step.counts == {("stopped", "linear"): 1}
    assert said(caplog, "model stopped") == len(caplog.records) == 1, "once, and not at every interval"
    (line,) = caplog.records
    assert line.model == "linear"
    assert "where a number from -1e+15 to 1e+15 was expected" in line.cause
    assert live.step.fold.examples == 400, "it follows on"
    assert live.step.fold.metrics[0].get() > 0, "and is judged"
    assert live.step.finish(lambda *_: None) is False
    assert said(caplog, "model stopped") == 1

    assert live.begin() == 1, "a new process goes on at the good version"
    assert live.stopped == 0.0
    live.feed(records[1:])
    assert live.stopped == 1.0, "and comes to the same"


class Says:
    """A model that says what it is told to."""

    def __init__(self, score: float) -> None:
        self.score = score

    def learn_one(self, x: object, y: object) -> None: ...

    def predict_one(self, x: object) -> float:
        if self.score == 13:
            raise OverflowError("math range error")
        return self.score


@pytest.mark.slow
@pytest.mark.parametrize("bad", [math.nan, -math.inf, 2e15])
def test_a_model_that_has_exploded_once_is_not_published_when_it_says_a_number_again(
    bad: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    live = Learning(small.make(), tmp_path)
    records = small.example_records(live.pipeline, 100)
    sound = live.step.fold.model
    live.feed(records[:20])
    live.step.fold.model = Says(bad)
    live.feed(records[20:50])
    live.step.fold.model = sound
    live.feed(records[50:])
    assert ([m.version for m in live.manifests], live.stopped) == ([10, 20], 1.0)
    assert said(caplog, "model stopped") == live.step.counts["stopped", "linear"] == 1


def test_it_is_noticed_at_the_same_example_however_seldom_versions_are_published(tmp_path: Path) -> None:
    found = set()
    for batch in (1, 7, 60, 400):
        live = Learning(exploding(), tmp_path)
        live.step.training.every_examples = 10**9
        records = small.example_records(live.pipeline, 400)
        for at in range(0, 400, batch):
            assert not live.step.process(records[at : at + batch], lambda *_: None)
            if live.step.fold.examples < LOOK_EVERY_EXAMPLES:
                assert not live.step.fold.diverged
        found.add(live.step.fold.diverged)
        assert live.stopped == 1.0
    assert len(found) == 1, "it said the same to all of them"


@pytest.mark.parametrize(
    ("score", "inside", "why"), [(0.5, lambda x: x, "no lambdas"), (13, 0, "raises OverflowError")]
)
def test_a_model_that_fails_or_can_not_be_saved_stops_until_it_is_well(
    score: float, inside: Any, why: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="tidemill.stages.learner.training_run")
    live = Learning(small.make(), tmp_path)
    records, sound = small.example_records(live.pipeline, 50), live.step.fold.model
    live.step.fold.model = Says(score)
    live.step.fold.model.inside = inside  # type: ignore[attr-defined]
    assert live.feed(records[:40]) == [False] * 4
    assert (live.manifests, live.stopped, said(caplog, "model stopped")) == ([], 1.0, 1)
    assert why in caplog.records[0].cause
    live.step.fold.model = sound
    assert live.feed(records[40:]) == [True]
    assert ([m.version for m in live.manifests], live.stopped) == ([50], 0.0)
    assert said(caplog, "versions are published again") == 1


def test_a_version_that_was_published_all_the_same_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = exploding()
    registry = Registry(pipeline, ArtifactStore(str(tmp_path)), KEY)
    fold, codec = Fold(pipeline, "linear"), Records(pipeline).example
    scores: list[float] = []
    for offset, record in enumerate(small.example_records(pipeline, 40)):
        fold.learn(codec.decode(record.value() or b""), offset)
        scores.append(fold.model.predict_one({"distance": 50.0, "hour": 1.0}))
        if abs(scores[-1]) > 1e15:
            break
    assert math.isfinite(scores[-1]), "it is finite, and no score"
    vectors: list[Any] = [{**dict.fromkeys(pipeline.vector), "distance": 50.0, "hour": 1.0}]
    with monkeypatch.context() as before:
        before.setattr(Task, "is_valid_score", lambda *_: True)
        manifest = registry.publish("linear", fold.snapshot(), vectors)
        assert registry.open(manifest).version == fold.version
    with pytest.raises(ArtifactError, match=r"scores -?\d{16,}\.\d where a number from -1e\+15 to 1e\+15 was expected"):
        registry.open(manifest)


def test_what_it_says_of_itself_are_metrics() -> None:
    assert "stopped" in COUNTS
    assert "stopped" in GAUGES


def with_labels(pipeline: Pipeline, labels: list[float]) -> list[MemoryRecord]:
    encode = Records(pipeline).example.encode
    return [
        MemoryRecord("small.examples", encode(small.example(pipeline, f"e{at}", label, at, distance=1.0)), offset=at)
        for at, label in enumerate(labels)
    ]


def test_a_metric_that_loses_its_number_is_logged_once_and_levels_say_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A label below -1 has no logarithm."""
    pipeline = small.make(metrics=[metrics.RMSLE(), metrics.MAE()])
    live = Learning(pipeline, tmp_path)
    labels = [float(at % 5) for at in range(60)]
    labels[35] = -5.0
    records = with_labels(pipeline, labels)

    def without_number() -> float:
        return live.step.gauges()["without_number", "linear"]

    live.feed(records[:30])
    assert (set(live.manifests[-1].metrics), without_number()) == ({"RMSLE", "MAE"}, 0.0)
    live.feed(records[30:50])
    assert (set(live.manifests[-1].metrics), without_number()) == ({"MAE"}, 1.0)
    assert said(caplog, "a metric has no number") == 1
    (line,) = (one for one in caplog.records if "a metric has no number" in one.message)
    assert (line.model, line.metric, line.cause) == ("linear", "RMSLE", "it raised ValueError: math domain error")
    assert "without_number" in GAUGES

    assert live.begin() == 50, "another process says it once more, with what is known then"
    live.feed(records[50:])
    assert (set(live.manifests[-1].metrics), without_number()) == ({"MAE"}, 1.0)
    assert said(caplog, "a metric has no number") == 2
    assert "it has raised, or was declared later" in caplog.records[-1].cause


def test_a_metric_that_was_declared_later_is_not_missed_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = Learning(small.make(metrics=[metrics.MAE()]), tmp_path)
    records = with_labels(before.pipeline, [1.0, 2.0] * 20)
    before.feed(records[:20])
    live = Learning(small.make(metrics=[metrics.MAE(), metrics.RMSE()]), tmp_path)
    live.manifests[:] = before.manifests
    assert live.begin() == 20
    live.feed(records[20:])
    assert set(live.manifests[-1].metrics) == {"MAE"}
    assert said(caplog, "a metric has no number") == 1
    assert live.step.gauges()["without_number", "linear"] == 1.0
