"""What `check` lets pass works in production: every estimator of River's is tried, and then run, or refused in a line."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest
import river
import small
from river import anomaly, base, compose, ensemble, linear_model, preprocessing

from tidemill import Stream
from tidemill.declare.tasks import TASKS
from tidemill.errors import DeclarationError
from tidemill.offline.backtest import Backtest
from tidemill.offline.model_trial import check_models

LABELS = {
    "binary": lambda label: label["arr_delay"] > 15,
    "multiclass": lambda label: "late" if label["arr_delay"] > 15 else "fine",
    "regression": "arr_delay",
    "anomaly": lambda label: label["arr_delay"] > 15,
}
SKIPPED = ("test", "datasets", "checks", "stream", "api", "evaluate", "envs", "compat")


def pipeline(task: str, model: Any) -> Any:
    labels = Stream(small.LABELS.schema, id="flight_id", time="landed_at", value=LABELS[task])
    return small.make(task=task, labels=labels, models={"m": model}, champion="m", views=[])


def refused(task: str, model: Any) -> str:
    """Why a model is refused; empty where it is not."""
    try:
        check_models(pipeline(task, model))
    except DeclarationError as error:
        return str(error)
    return ""


def estimators() -> Iterator[Any]:
    """Every estimator that River makes for its own tests, once."""
    seen = set()
    for found in pkgutil.walk_packages(river.__path__, "river."):
        if any(part in found.name for part in SKIPPED):
            continue
        for one in vars(importlib.import_module(found.name)).values():
            is_one = inspect.isclass(one) and issubclass(one, base.Estimator) and not inspect.isabstract(one)
            if not is_one or one in seen or not one.__module__.startswith("river.") or one.__name__.startswith("_"):
                continue
            seen.add(one)
            try:
                yield one(**next(iter(one._unit_test_params())))
            except (TypeError, StopIteration, RuntimeError):
                continue  # it needs something that is ours to give


def verdict(model: Any, task: str) -> str:
    """What is wrong about a model that `check` lets pass, or about how it is refused; empty where nothing is."""
    scaled = preprocessing.StandardScaler() | model
    refusal = refused(task, scaled)
    if refusal:
        return "" if "models['m']" in refusal and "\n" not in refusal else refusal
    times = [(f"f{number}", number * small.MINUTE) for number in range(60)]
    events = [small.event(name, asked_at=at, distance=float(at % 700)) for name, at in times]
    labels = [small.label(name, at + small.MINUTE, float(at % 50)) for name, at in times]
    report = Backtest(pipeline(task, scaled)).run(events, labels)
    again = Backtest(pipeline(task, scaled)).run(events, labels)
    if again.metrics != report.metrics:
        return f"not the same again: {report.metrics}, {again.metrics}"
    passed = (report.joined, report.dead_letters, report.learn_failed) == (60, {}, {})
    return "" if passed else f"joined {report.joined}, {report.dead_letters}, {report.learn_failed}"


@pytest.mark.slow
def test_every_estimator_of_rivers_works_in_a_backtest_or_is_refused_in_one_line() -> None:
    verdicts = {
        (type(model).__name__, task.name): verdict(model, task.name)
        for model in estimators()
        for task in TASKS.values()
        if type(model).__name__ != "Pipeline" and all(hasattr(model, method) for method in task.needs)
    }
    assert len(verdicts) > 100
    assert {tried: wrong for tried, wrong in verdicts.items() if wrong} == {}


class Pair:
    """Answers with a pair."""

    def learn_one(self, x: Any, y: Any) -> None: ...

    def predict_proba_one(self, x: Any) -> Any:
        return {True: 0.5}, False


class NeverSays(linear_model.LinearRegression):
    def predict_one(self, x: Any) -> Any:
        return None


class FailsLater(linear_model.LinearRegression):
    taught = 0

    def learn_one(self, x: Any, y: Any, w: float = 1.0) -> None:
        self.taught += 1
        if self.taught > 9:
            raise ZeroDivisionError
        super().learn_one(x, y)


@pytest.mark.parametrize(
    ("task", "model", "words"),
    [
        ("binary", Pair(), "its predict_proba_one gives ({True: 0.5}, False), no answer to task='binary' before its"),
        ("regression", NeverSays(), "its predict_one gives None, no answer to task='regression' before its first"),
        ("regression", FailsLater(), "its learn_one raises ZeroDivisionError, at example 10"),
        ("anomaly", anomaly.GaussianScorer(), "its score_one raises TypeError: GaussianScorer.score_one() missing"),
        (
            "binary",
            ensemble.VotingClassifier([linear_model.LogisticRegression(), linear_model.Perceptron()]),
            "its predict_proba_one raises NotImplementedError before its first example",
        ),
        (
            "binary",
            preprocessing.StandardScaler() | linear_model.LogisticRegression() | compose.FuncTransformer(str),
            "models['m']",
        ),
        ("regression", linear_model.LogisticRegression(), "LogisticRegression is a classifier"),
    ],
)
def test_a_model_that_production_would_fail_with_is_refused(task: str, model: Any, words: str) -> None:
    assert words in refused(task, model)
    assert "\n" not in refused(task, model)
