"""What every model and every metric promises."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

from tidemill.declare.checks import Fail
from tidemill.declare.tasks import TASKS


def check_model(model: Any, task: str, examples: Sequence[tuple[Mapping[str, Any], Any]]) -> None:
    """Check that a model can be served, saved and resumed: asking changes nothing, a saved one goes on unchanged.

    Parameters
    ----------
    model
        It is copied, and learns nothing itself.
    task
        As a pipeline declares it, "binary".
    examples
        Vectors and labels to learn, at least two.

    Raises AssertionError; DeclarationError where the task cannot use it; ScoreError or ArtifactError where it gives no
    score.

    Examples
    --------
    >>> from river import linear_model
    >>> check_model(linear_model.LogisticRegression(), "binary", [({"x": float(n)}, n > 5) for n in range(10)])
    """
    kind, half = TASKS[task], len(examples) // 2
    kind.check_model("model", model, Fail("of the test"))
    running = copy.deepcopy(model)
    resumed = None
    for number, (x, y) in enumerate(examples):
        given = dict(x)
        if number == half:
            resumed = pickle.loads(pickle.dumps(running))
        for one in (running, resumed):
            if one is not None:
                kind.learn(one, given, y)
        assert given == x, "a vector is never changed"
    for x, _ in examples:
        score = kind.ask(running, x)
        assert kind.ask(running, x) == score, "asking changes no model"
        assert kind.ask(resumed, x) == score, "a saved model goes on as one that never stopped"
    kind.ask(running, {}), kind.ask(running, {**examples[0][0], "a feature of tomorrow": 1.0})


def check_metric(metric: Any, pairs: Sequence[tuple[Any, Any]]) -> None:
    """Check that a metric can be saved and resumed, says which way is better, starts from nothing when it is cloned.

    Parameters
    ----------
    metric
        It is cloned, and given nothing itself.
    pairs
        Labels and predictions as River's `update` takes them, at least two.

    Raises AssertionError.

    Examples
    --------
    >>> from river import metrics
    >>> check_metric(metrics.MAE(), [(1.0, 2.0), (3.0, 3.5), (2.0, 2.0)])
    """
    assert isinstance(metric.bigger_is_better, bool), "a metric says which way is better"
    running, fresh = metric.clone(), metric.clone().get()
    resumed = None
    for number, (label, prediction) in enumerate(pairs):
        if number == len(pairs) // 2:
            resumed = pickle.loads(pickle.dumps(running))
        for one in (running, resumed):
            if one is not None:
                one.update(label, prediction)
    assert resumed is not None, "two pairs at least"
    assert math.isfinite(running.get()), "a metric is a number"
    assert resumed.get() == running.get(), "a saved metric goes on as one that never stopped"
    assert _equal(running.clone().get(), fresh), "a clone starts from nothing"


def _equal(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))
