"""A metric is tried when the pipeline is loaded: one that does not fit its task is refused, and none ends a learner."""

from __future__ import annotations

import inspect
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
from river import metrics, stats, utils
from signing_keys import KEY

from tidemill import Gate, Monitor
from tidemill.declare.checks import Fail
from tidemill.declare.scorecard import Scorecard, metric_names
from tidemill.declare.tasks import TASKS, Judged
from tidemill.errors import DeclarationError
from tidemill.models.fold import Fold
from tidemill.offline.backtest import Backtest
from tidemill.registry.manifests import Registry
from tidemill.registry.store import ArtifactStore
from tidemill.wire.records import Records

ARGUMENTS: dict[str, dict[str, Any]] = {"FBeta": {"beta": 2}, "MacroFBeta": {"beta": 2}, "MicroFBeta": {"beta": 2},
                                        "WeightedFBeta": {"beta": 2},
                                        "MultiFBeta": {"betas": {"a": 1, "b": 1, "c": 2}, "weights": None}}  # fmt: skip
RIVERS = [
    one(**ARGUMENTS.get(name, {}))
    for name, one in sorted(vars(metrics).items())
    if inspect.isclass(one) and hasattr(one, "update") and name not in ("Metrics", "Silhouette")
]


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
@pytest.mark.parametrize("metric", RIVERS, ids=lambda metric: type(metric).__name__)
def test_every_metric_of_rivers_gives_a_number_or_is_refused_in_one_line(metric: Any, task: Any) -> None:
    refusal = ""
    try:
        task.check_metric("metrics[0]", metric, Fail("p"))
    except DeclarationError as error:
        refusal = str(error)
    if refusal:
        assert type(metric).__name__ in refusal
        assert task.name in refusal or "number" in refusal
        assert "\n" not in refusal
        return
    scorecard = Scorecard([metric.clone()])
    if not type(metric).__name__.startswith("Rolling"):  # they keep what they judge outside of Python
        assert not scorecard.has_judged
    for label, score, probabilities in task.trial:
        scorecard.update(label, task.judged(score, probabilities))
    assert scorecard.has_judged
    (value,) = scorecard.values().values()
    assert isinstance(value, float)


@pytest.mark.parametrize(
    ("task", "fits", "does_not"),
    [
        ("binary", metrics.F1(), metrics.MAE()),
        ("multiclass", metrics.WeightedF1(), metrics.ROCAUC()),
        ("regression", metrics.RMSLE(), metrics.Accuracy()),
        ("anomaly", metrics.RollingROCAUC(), metrics.LogLoss()),
    ],
)
def test_a_metric_of_another_task_is_refused(task: str, fits: Any, does_not: Any) -> None:
    TASKS[task].check_metric("metrics[0]", fits, Fail("p"))
    with pytest.raises(DeclarationError, match=rf"metrics\[0\]: {type(does_not).__name__} does not judge"):
        TASKS[task].check_metric("metrics[0]", does_not, Fail("p"))


class _Unmade(metrics.MAE):
    """River makes a clone of what its arguments are kept as; this one keeps none."""

    def __init__(self, power: int) -> None:
        super().__init__()


@pytest.mark.parametrize(
    ("task", "metric", "words"),
    [
        ("regression", utils.Rolling(metrics.MAE(), 10), "the clone() of Rolling is MAE: declare that"),
        ("binary", utils.TimeRolling(metrics.F1(), timedelta(hours=1)), "the clone() of TimeRolling is F1: declare"),
        ("regression", _Unmade(2), "_Unmade can't be made again by its clone(): AttributeError"),
        ("regression", stats.Mean(), "Mean does not judge predictions of task='regression'"),
        ("binary", metrics.F1(pos_val="yes"), "F1 counts labels 'yes' where task='binary' has True and False"),
    ],
)
def test_a_metric_that_would_say_something_else_is_refused(task: str, metric: Any, words: str) -> None:
    with pytest.raises(DeclarationError, match=re.escape(f"metrics[0]: {words}")):
        TASKS[task].check_metric("metrics[0]", metric, Fail("p"))
    with pytest.raises(DeclarationError, match=re.escape("metrics[0]")):
        small.make(metrics=[metric])


class _Never(metrics.MAE):
    def get(self) -> float:
        return float("nan")


class _Complex(metrics.MAE):
    def get(self) -> Any:
        return np.complex128(1j)


@pytest.mark.parametrize(("metric", "figure"), [(_Never(), "nan"), (_Complex(), "np.complex128(1j)")])
def test_a_metric_that_never_gives_a_number_is_refused(metric: Any, figure: str) -> None:
    with pytest.raises(DeclarationError, match=re.escape(f"{type(metric).__name__} gives {figure} where a number was")):
        small.make(metrics=[metric])


def test_a_metric_that_names_classes_is_tried_on_those() -> None:
    """Whatever they are called: it raises where a label is another, and says nothing then."""
    multi = TASKS["multiclass"]
    metric = metrics.MultiFBeta({"red": 1, "green": 2}, None)
    multi.check_metric("metrics[0]", metric, Fail("p"))
    with pytest.raises(
        DeclarationError, match=r"MultiFBeta raises KeyError: '[12]' on predictions of task='multiclass'"
    ):
        multi.check_metric("metrics[0]", metrics.MultiFBeta({1: 1, 2: 2}, None), Fail("p"))
    scorecard = Scorecard([metric, metrics.Accuracy()])
    for label in ("red", "green"):
        scorecard.update(label, multi.judged(0.9, {"red": 0.9, "green": 0.1}))
    assert set(scorecard.values()) == {"MultiFBeta", "Accuracy"}
    scorecard.update("blue", multi.judged(0.9, {"red": 0.9, "green": 0.1}))
    assert set(scorecard.values()) == {"Accuracy"}
    assert scorecard.without_number() == {"MultiFBeta": "its get() raises KeyError: 'blue'"}


def test_the_gates_metric_is_tried_as_the_others_are() -> None:
    small.make(gate=Gate(metric=metrics.MAE(), metric_margin=0.1))
    with pytest.raises(
        DeclarationError, match=r"gate\.metric: Accuracy does not judge predictions of task='regression'"
    ):
        small.make(gate=Gate(metric=metrics.Accuracy(), metric_margin=0.1))


def test_two_metrics_of_one_class_have_a_name_each() -> None:
    pair = [metrics.FBeta(beta=0.5), metrics.Recall(), metrics.FBeta(beta=2)]
    assert metric_names(pair) == ("FBeta(beta=0.5)", "Recall", "FBeta(beta=2)")


def test_two_metrics_that_are_the_same_are_refused() -> None:
    with pytest.raises(DeclarationError, match="two metrics are called MAE"):
        small.make(metrics=[metrics.MAE(), metrics.MAE()])


class _Failing(metrics.MAE):
    """Raises from the fourth prediction on: more than a declaration is tried with."""

    def update(self, y_true: Any, y_pred: Any, w: float = 1.0) -> None:
        if self._mean.n >= 3:
            raise ZeroDivisionError
        super().update(y_true, y_pred, w)


def test_a_metric_that_raises_is_left_out_and_stops_nobody() -> None:
    scorecard = Scorecard([_Failing(), metrics.RMSE()])
    for _ in range(5):
        scorecard.update(1.0, Judged(2.0, 2.0))
    assert scorecard.values() == {"RMSE": 1.0}, "a figure that misses predictions would look like one of all"
    assert [type(metric) for metric in scorecard.metrics] == [metrics.RMSE]
    assert scorecard.without_number() == {"_Failing": "it raised ZeroDivisionError"}


class _FailingAt(metrics.MAE):
    """Raises at a prediction."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def update(self, y_true: Any, y_pred: Any, w: float = 1.0) -> None:
        if self._mean.n + 1 >= self.at:
            raise ZeroDivisionError
        super().update(y_true, y_pred, w)


def test_what_is_left_of_two_metrics_of_one_class_keeps_its_name() -> None:
    """In the snapshot, in a version's figures and segments, and after a restart: elsewhere it would be another metric."""
    declared = [_FailingAt(30), _FailingAt(10**9)]
    pipeline = small.with_category(metrics=declared, monitor=Monitor(segments=["carrier"]))
    fold = Fold(pipeline, "linear")
    for at in range(40):
        fold.judge(small.example(pipeline, f"e{at}", 1.0, at, distance=1.0, carrier="UA"))
    restored = Fold(pipeline, "linear")
    restored.resume(fold.snapshot())
    for one in (fold, restored):
        assert set(one.scorecard.values()) == {"_FailingAt(at=1000000000)"}
        assert set(one.scorecard.without_number()) == {"_FailingAt(at=30)"}
        assert all("_FailingAt(at=1000000000)" in line["metrics"] for line in one.segments.as_dicts())
    assert set(Scorecard(fold.snapshot().metrics, declared=declared).values()) == {"_FailingAt(at=1000000000)"}


def test_a_metric_without_a_figure_yet_says_nothing() -> None:
    class Dividing(metrics.MAE):
        def get(self) -> float:
            return 1 / self._mean.n

    assert Scorecard([Dividing()]).values() == {}


def test_a_version_that_was_never_judged_has_no_figures(tmp_path: Path) -> None:
    """Its events were asked before it had answered: a log loss of 0 would make it the best."""
    pipeline = small.make()
    fold, judged = Fold(pipeline, "linear"), Fold(pipeline, "linear")
    for record in small.example_records(pipeline, 5):
        example = Records(pipeline).example.decode(record.value())
        judged.learn(example, record.offset())
        example["prediction"]["champion"]["answered"] = False
        fold.learn(example, record.offset())
    registry = Registry(pipeline, ArtifactStore(str(tmp_path)), KEY)
    assert registry.publish("linear", fold.snapshot(), []).metrics == {}
    assert set(registry.publish("linear", judged.snapshot(), []).metrics) == set(metric_names(pipeline.metric()))


class _Raising:
    """A model that can't learn."""

    def predict_one(self, x: Any) -> float:
        return 0.5

    def learn_one(self, x: Any, y: Any) -> None:
        raise KeyError("x")


def test_a_backtest_goes_on_where_a_model_and_a_metric_raise() -> None:
    times = [(f"f{number}", number * small.MINUTE) for number in range(40)]
    events = [small.event(name, asked_at=at) for name, at in times]
    labels = [small.label(name, at + small.MINUTE) for name, at in times]
    pipeline = small.make(models={"linear": _Raising()}, metrics=[_Failing()])
    report = Backtest(pipeline).run(events, labels)
    assert (report.joined, report.learn_failed) == (40, {"linear": 40})
    assert report.metrics["linear"] == {}


def test_a_sum_of_metrics_is_refused_with_their_names() -> None:
    with pytest.raises(DeclarationError, match=r"metrics\[0\]: MSE \+ MAE where one metric was expected: list each"):
        small.make(metrics=[metrics.MSE() + metrics.MAE()])
