"""What `check` lets pass works in production: every estimator of River's is tried, and then run, or refused in a line."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import river
import river_models
import small
from river import anomaly, base, compose, ensemble, evaluate, facto, linear_model, multiclass, optim, preprocessing

from tidemill import Stream, number
from tidemill.declare.load import load
from tidemill.declare.tasks import TASKS
from tidemill.errors import DeclarationError
from tidemill.offline.backtest import Backtest
from tidemill.offline.model_trial import check_in_other_process, check_models
from tidemill.wire.records import vector_to_x

LABELS = {
    "binary": lambda label: label["arr_delay"] > 15,
    "multiclass": lambda label: "late" if label["arr_delay"] > 15 else "fine",
    "regression": lambda label: label["arr_delay"],
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
            except (TypeError, StopIteration, RuntimeError):  # it needs something that is ours to give
                yield from (make() for make in river_models.MADE.get(one.__name__, ()))


def verdict(model: Any, task: str) -> str:
    """What is wrong about a model that `check` lets pass, or about how it is refused; empty where nothing is."""
    scaled = preprocessing.StandardScaler() | model
    refusal = refused(task, scaled)
    if refusal:
        return "" if "models['m']" in refusal and "\n" not in refusal else refusal
    events = [
        small.event(f"f{number}", asked_at=number * small.MINUTE, distance=number * 97 % 700 + 0.25)
        for number in range(60)
    ]
    labels = [
        small.label(event["flight_id"], event["asked_at"] + small.MINUTE // 2, number * 7 % 37 + 0.5)
        for number, event in enumerate(events)
    ]
    backtest, asked = Backtest(pipeline(task, scaled)), []
    backtest.predictions = lambda log: asked.append(vector_to_x(log["features"]["vector"]))
    report = backtest.run(events, labels)
    again = Backtest(pipeline(task, scaled)).run(events, labels)
    if again.metrics != report.metrics:
        return f"not the same again: {report.metrics}, {again.metrics}"
    if (report.joined, report.dead_letters, report.learn_failed) != (60, {}, {}):
        return f"joined {report.joined}, {report.dead_letters}, {report.learn_failed}"
    if isinstance(model, base.AnomalyFilter):
        return ""  # River measures its verdicts, not its scores
    by_river = {}
    for metric in pipeline(task, scaled).metric():
        answers = [LABELS[task](label) for label in labels]
        if not metric.works_with(scaled):
            return f"River would not measure it by {metric}"
        evaluate.progressive_val_score(zip(asked, answers, strict=True), pipeline(task, scaled).model("m"), metric)
        by_river[type(metric).__name__] = metric.get()
    return "" if report.metrics["m"] == by_river else f"{report.metrics['m']} where River finds {by_river}"


@pytest.mark.slow
def test_every_estimator_of_rivers_is_as_good_in_a_backtest_as_by_itself_or_is_refused_in_one_line() -> None:
    verdicts = {
        (type(model).__name__, task.name): verdict(model, task.name)
        for model in estimators()
        for task in TASKS.values()
        if type(model).__name__ != "Pipeline" and all(hasattr(model, method) for method in task.needs)
    }
    assert len(verdicts) > 100
    tried = {name for name, _ in verdicts}
    assert tried >= {"RandomSampler", "SuccessiveHalvingClassifier", "TargetStandardScaler", "TargetTransformRegressor"}
    assert {tried: wrong for tried, wrong in verdicts.items() if wrong} == {}


@pytest.mark.slow
@pytest.mark.parametrize("features", [2, 20, pytest.param(60, marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", ["FMRegressor", "FFMRegressor", "FwFMRegressor"])
def test_what_multiplies_features_is_tried_on_vectors_that_do_not_grow_with_their_number(
    kind: str, features: int
) -> None:
    """Made-up numbers that were all alike made factorization machines diverge that work in production."""
    model = getattr(facto, kind)(seed=1)
    request = {f"x{place}": number("distance") for place in range(features)}
    check_models(small.make(views=[], request=request, models={"m": model}, champion="m"))


def test_a_model_that_diverges_is_refused_with_what_to_do() -> None:
    why = refused("regression", linear_model.LinearRegression(optim.SGD(1e9)))
    assert why.endswith("after 3 examples; if it diverges, lower its learning rates")


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


class OtherClasses(Pair):
    def predict_proba_one(self, x: Any) -> Any:
        return {"True": 0.75, "False": 0.25}


class ChangesWhatItIsAsked(Pair):
    def predict_proba_one(self, x: Any) -> Any:
        x["distance"] = 1e9
        return {True: 0.5}


class ChangesWhatItLearns(linear_model.LinearRegression):
    def learn_one(self, x: Any, y: Any, w: float = 1.0) -> None:
        super().learn_one(x, y)
        del x["hour"]


class LearnsAtRandom(linear_model.LinearRegression):
    def learn_one(self, x: Any, y: Any, w: float = 1.0) -> None:
        super().learn_one(x, y + random.gauss())


class HoldsAFile(linear_model.LinearRegression):
    def __init__(self) -> None:
        super().__init__()
        self.log = sys.__stdin__


@pytest.mark.parametrize(
    ("task", "model", "words"),
    [
        ("binary", OtherClasses(), "its predict_proba_one gives {'True': 0.75, 'False': 0.25}, no answer to"),
        ("binary", ChangesWhatItIsAsked(), "its predict_proba_one changes the vector it is given, at 'distance'"),
        (
            "regression",
            ChangesWhatItLearns(),
            "its learn_one changes the vector it is given, at 'hour': give it a copy",
        ),
        ("binary", Pair(), "its predict_proba_one gives ({True: 0.5}, False), no answer to task='binary' before its"),
        ("regression", NeverSays(), "its predict_one has no answer after 60 examples"),
        ("regression", LearnsAtRandom(), "when it was taught the same again: it draws at random, unseeded"),
        ("regression", HoldsAFile(), "models['m']: it can't be copied, as each use needs: TypeError: cannot pickle"),
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


@pytest.mark.parametrize(
    ("task", "model", "hint"),
    [
        (
            "binary",
            linear_model.LogisticRegression(),
            "the vector has text ('carrier'): if it takes numbers alone, put",
        ),
        ("regression", linear_model.LinearRegression(), "compose.SelectType(float) before it"),
        (
            "binary",
            multiclass.OneVsOneClassifier(linear_model.Perceptron()),
            "it gives no probabilities, and task='binary'",
        ),
        (
            "multiclass",
            compose.SelectType(float) | linear_model.LogisticRegression(),
            "multiclass.OneVsRestClassifier(...) makes one of",
        ),
        ("multiclass", compose.SelectType(float) | linear_model.Perceptron(), "it knows two classes"),
    ],
)
def test_what_is_likely_to_be_wrong_with_a_model_is_said(task: str, model: Any, hint: str) -> None:
    labels = Stream(small.LABELS.schema, id="flight_id", time="landed_at", value=LABELS[task])
    declared = small.with_category(task=task, labels=labels, models={"m": model}, champion="m", views=[])
    with pytest.raises(DeclarationError) as caught:
        check_models(declared)
    assert hint in str(caught.value)


DRAWING = """
import random

import numpy as np
import small
from river import linear_model


class Weighted(linear_model.LinearRegression):
    def __init__(self, seed=None):
        super().__init__()
        self.seed = seed
        self.rng = {rng}

    def learn_one(self, x, y, w=1.0):
        super().learn_one({{{name}: value for name, value in x.items()}}, y, self.rng.random())

    def predict_one(self, x):
        return super().predict_one({{{name}: value for name, value in x.items()}})


pipeline = small.make(models={{"m": Weighted()}}, champion="m")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rng", "name", "is_same"),
    [
        ("random.Random()", "name", False),
        ("np.random.default_rng()", "name", False),
        ("np.random.RandomState()", "name", False),
        ("random.Random(7)", "hash(name) % 3", False),
        ("random.Random(7)", "len(name) % 3", True),
        ("np.random.default_rng(7)", "name", True),
        ("random.Random(seed)", "name", True),  # the seed that it is not given is ours
    ],
)
def test_a_model_that_is_another_in_each_process_is_refused(
    tmp_path: Path, rng: str, name: str, *, is_same: bool
) -> None:
    """As it would be in a scorer beside its learner. It is the same each time within one process."""
    declaration = tmp_path / "declared.py"
    declaration.write_text(DRAWING.format(rng=rng, name=name))
    declared = load(str(declaration))
    check_models(declared)
    if is_same:
        check_in_other_process(declared, str(declaration))
        return
    with pytest.raises(
        DeclarationError, match=r"models\['m'\]: it scores .* in another process: it draws at random"
    ) as no:
        check_in_other_process(declared, str(declaration))
    assert "\n" not in str(no.value)


def test_for_a_model_of_rivers_no_process_is_started() -> None:
    check_in_other_process(small.make(), "nowhere.py")
