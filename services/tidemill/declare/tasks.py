"""Kinds of task: how a River model of that kind predicts, learns and is measured.

A score is one finite float: binary P(True), regression the value, anomaly the anomaly score, multiclass the probability
of the most likely class (beside those of all classes). A model that diverged gives no valid score: see
`Task.is_valid_score`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
from river import base, dummy, metrics, stats

from tidemill.declare.checks import Fail
from tidemill.errors import ArtifactError, ScoreError, described
from tidemill.rules import LARGEST_NUMBER

Vector = Mapping[str, Any]
Probabilities = Mapping[str, float]
NONE: Probabilities = {}
#: How far beyond its range a score may lie: probabilities that were divided by their sum come to a little more than 1.
ROUNDING = 1e-9


#: Returns score, probabilities, and whether the model answered at all: see `NO_ANSWER`.
Predict = Callable[[Any, Vector], "tuple[float, Probabilities, bool]"]


class Judged(NamedTuple):
    """What metrics get of one prediction: those about labels the most likely label, the others the prediction."""

    prediction: Any
    label: Any

    @property
    def score(self) -> Any:
        """The probability of true of one with probabilities; else the prediction."""
        return self.prediction.get(True, 0.0) if isinstance(self.prediction, dict) else self.prediction


@dataclass(frozen=True)
class Task:
    """One kind of task. `metrics` and `baseline` are what a pipeline gets when it declares none."""

    name: str
    label_type: str
    predict: Predict
    predicted: Callable[[float, Probabilities], Any] = field(repr=False)
    needs: tuple[str, ...]
    metrics: Callable[[], Sequence[Any]] = field(repr=False)
    baseline: Callable[[], Any] = field(repr=False)
    #: Labels with the predictions made for them, for a metric to be tried on.
    trial: Sequence[tuple[Any, float, Probabilities]] = field(repr=False)
    fits: Callable[[Any], bool] = field(repr=False)
    supervised: bool = True
    range: tuple[float, float] = (-LARGEST_NUMBER, LARGEST_NUMBER)

    def check_model(self, where: str, model: Any, fail: Fail) -> None:
        """Check that a declared model is one that this task can use."""
        if isinstance(model, type):
            fail(where, f"{model.__name__} is a class: make one of it, as in {model.__name__}()")
        if isinstance(model, base.Classifier) and self.name == "regression":
            fail(where, f"{type(model).__name__} is a classifier, and task={self.name!r} needs a regressor")
        for method in self.needs:
            if not hasattr(model, method):
                fail(where, f"{type(model).__name__} has no {method}, which task={self.name!r} needs")
        if isinstance(model, base.Estimator) and self.supervised and not model._supervised:
            # It would take a label for the example's weight.
            fail(where, f"{type(model).__name__} learns without labels, and task={self.name!r} learns from them")

    def check_metric(self, where: str, metric: Any, fail: Fail) -> None:
        """Check that a metric fits this task, by trying it: it takes the predictions, and gives a number."""
        name = type(metric).__name__
        examples = ", ".join(f"{type(one).__name__}()" for one in self.metrics())
        try:
            tried = metric.clone()
        except Exception as error:  # a metric's own code
            fail(where, f"{name} can't be made again by its clone(): {described(error)}")
        if type(tried) is not type(metric):  # as River's Rolling, which would be left out without a word
            fail(where, f"the clone() of {name} is {type(tried).__name__}: declare that; the monitor has windows")
        if isinstance(metric, base.Base) and not (isinstance(metric, metrics.base.Metric) and self.fits(metric)):
            fail(where, f"{name} does not judge predictions of task={self.name!r}, as {examples} do")
        if self.label_type == "boolean" and getattr(metric, "pos_val", True) not in (True, False):
            fail(where, f"{name} counts labels {metric.pos_val!r} where task={self.name!r} has True and False")
        try:
            for label, score, probabilities in self._trial_of(metric):
                self.update(tried, label, score, probabilities)
            figure = tried.get()
        except Exception as error:  # a metric's own code
            fail(where, f"{name} raises {described(error)} on predictions of task={self.name!r}")
        if not isinstance(figure, (int, float, np.integer, np.floating)) or not math.isfinite(figure):
            fail(where, f"{name} gives {figure!r} where a number was expected, as {examples} give")

    def _trial_of(self, metric: Any) -> Sequence[tuple[Any, float, Probabilities]]:
        """Return what a metric is tried on, with the classes that it names itself, as MultiFBeta does."""
        classes = list(getattr(metric, "betas", ()))
        if self.label_type != "string" or not classes:
            return self.trial
        names = dict(zip("abc", itertools.cycle(map(str, classes)), strict=False))
        return [
            (names[label], score, {names[of]: p for of, p in probabilities.items()})
            for label, score, probabilities in self.trial
        ]

    def is_valid_score(self, score: float, probabilities: Probabilities = NONE) -> bool:
        """Whether the score is finite and within `range`, and each class's probability too."""
        low, high = self.range[0] - ROUNDING, self.range[1] + ROUNDING
        return low <= score <= high and all(low <= p <= high for p in probabilities.values())

    def ask(self, model: Any, x: Vector) -> float:
        """Return a model's score. Raises ScoreError where it is not valid, ArtifactError where the model raises."""
        try:
            score, probabilities, _ = self.predict(model, x)
        except Exception as error:  # a model's own code
            raise ArtifactError(f"its {self.needs[-1]} raises {described(error)}") from error
        if not self.is_valid_score(score, probabilities):
            low, high = self.range
            raise ScoreError(f"it scores {probabilities or score} where a number from {low:g} to {high:g} was expected")
        return score

    def label(self, value: Any) -> Any:
        """Return `value` as this task's label; ValueError says what was expected."""
        kind: Any = {"boolean": bool, "double": float, "string": str}[self.label_type]
        if isinstance(value, np.generic):
            value = value.item()
        if kind is float and (type(value) is int or isinstance(value, Decimal)):
            value = float(value)
        if type(value) is not kind:
            raise ValueError(f"{value!r} ({type(value).__name__}) where a {self.label_type} was expected")
        if kind is float and not -LARGEST_NUMBER <= value <= LARGEST_NUMBER:  # nor is NaN
            raise ValueError(
                f"{value!r} where a finite number from {-LARGEST_NUMBER:g} to {LARGEST_NUMBER:g} was expected"
            )
        if kind is str:
            value.encode()  # half a surrogate can't be written
        return value

    def learn(self, model: Any, x: Vector, y: Any) -> None:
        """Teach `model` one example; models of an unsupervised task never see the label."""
        if self.supervised:
            model.learn_one(x, y)
        else:
            model.learn_one(x)

    def judged(self, score: float, probabilities: Probabilities, answered: bool = True) -> Judged | None:
        """Return what metrics get of a prediction; None where the model gave none: River does not measure it either."""
        if not answered:
            return None
        predicted = self.predicted(score, probabilities)
        if not isinstance(predicted, dict):
            return Judged(predicted, predicted)
        return Judged(predicted, max(predicted, key=predicted.__getitem__))

    def update(self, metric: Any, y: Any, score: float, probabilities: Probabilities) -> None:
        """Update one River metric with a label and the prediction made for it."""
        judged = self.judged(score, probabilities)
        if judged is not None:
            metric.update(y, judged.label if getattr(metric, "requires_labels", False) else judged.prediction)


#: Before their first example some models answer {} or None. Somebody asked, so there is a score, but nothing judges it.
NO_ANSWER = (0.0, NONE, False)
#: Both classes are as likely.
NO_ANSWER_BINARY = (0.5, NONE, False)


#: Where both classes are as likely River takes the one that the model names first: so they are told, true first.
TRUE_FIRST: Probabilities = {"true": 0.5, "false": 0.5}


def _binary(model: Any, x: Vector) -> tuple[float, Probabilities, bool]:
    probabilities = model.predict_proba_one(x)
    if not probabilities:
        return NO_ANSWER_BINARY
    score = probabilities.get(True)
    if score is None:
        if False not in probabilities:
            raise ValueError(f"probabilities of {', '.join(map(repr, probabilities))}, not of True and False")
        score = 0.0
    score = float(score)
    return score, TRUE_FIRST if score == 0.5 and next(iter(probabilities)) else NONE, True


def _of_both(score: float, probabilities: Probabilities) -> Mapping[bool, float]:
    return {True: score, False: 1.0 - score} if probabilities else {False: 1.0 - score, True: score}


def _regression(model: Any, x: Vector) -> tuple[float, Probabilities, bool]:
    value = model.predict_one(x)
    return NO_ANSWER if value is None else (float(value), NONE, True)


def _anomaly(model: Any, x: Vector) -> tuple[float, Probabilities, bool]:
    score = model.score_one(x)
    return NO_ANSWER if score is None else (float(score), NONE, True)


def _multiclass(model: Any, x: Vector) -> tuple[float, Probabilities, bool]:
    probabilities = {str(name): float(p) for name, p in (model.predict_proba_one(x) or NONE).items()}
    return (max(probabilities.values()), probabilities, True) if probabilities else NO_ANSWER


_SCORES = [(True, 0.75, NONE), (False, 0.25, NONE), (True, 0.4, NONE), (False, 0.5, NONE)]

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="binary",
            label_type="boolean",
            predict=_binary,
            predicted=_of_both,
            needs=("learn_one", "predict_proba_one"),
            metrics=lambda: [metrics.Accuracy(), metrics.ROCAUC(), metrics.LogLoss()],
            baseline=dummy.PriorClassifier,
            trial=_SCORES,
            fits=lambda metric: isinstance(metric, metrics.base.ClassificationMetric),
            range=(0.0, 1.0),
        ),
        Task(
            name="multiclass",
            label_type="string",
            predict=_multiclass,
            predicted=lambda _, p: p,
            needs=("learn_one", "predict_proba_one"),
            metrics=lambda: [metrics.Accuracy(), metrics.MacroF1(), metrics.CrossEntropy()],
            baseline=dummy.PriorClassifier,
            trial=[
                ("a", 0.5, {"a": 0.5, "b": 0.3, "c": 0.2}),
                ("b", 0.7, {"b": 0.7, "c": 0.3}),
                ("c", 0.9, {"a": 0.9}),
            ],
            fits=lambda metric: isinstance(metric, metrics.base.MultiClassMetric),
            range=(0.0, 1.0),
        ),
        Task(
            name="regression",
            label_type="double",
            predict=_regression,
            predicted=lambda value, _: value,
            needs=("learn_one", "predict_one"),
            metrics=lambda: [metrics.MAE(), metrics.RMSE(), metrics.R2()],
            baseline=lambda: dummy.StatisticRegressor(stats.Mean()),
            trial=[(1.0, 1.5, NONE), (0.0, 0.25, NONE), (3.5, 2.0, NONE)],
            fits=lambda metric: isinstance(metric, metrics.base.RegressionMetric),
        ),
        Task(
            name="anomaly",
            label_type="boolean",
            predict=_anomaly,
            predicted=lambda score, _: score,
            needs=("learn_one", "score_one"),
            metrics=lambda: [metrics.ROCAUC()],
            baseline=lambda: None,
            trial=_SCORES,
            # Of River's metrics these ask only for an order of scores, which need not lie between 0 and 1.
            fits=lambda metric: isinstance(metric, (metrics.ROCAUC, metrics.RollingROCAUC, metrics.RollingPRAUC)),
            supervised=False,
        ),
    )
}
