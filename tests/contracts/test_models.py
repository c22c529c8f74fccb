"""Models and metrics of the examples, and those that a task gets where none is declared, pass what plug-ins are checked for."""

from __future__ import annotations

import doctest
from importlib import import_module
from typing import Any

import pytest
import small
from river import metrics

from tidemill import load, testing
from tidemill.declare.tasks import TASKS
from tidemill.testing import check_metric, check_model

LABELS: dict[str, list[Any]] = {
    "binary": [False, True] * 10, "multiclass": ["a", "b", "c", "b"] * 5, "regression": [1.0, 3.0, 2.0, 5.5] * 5,
    "anomaly": [False, False, True, False] * 5,
}  # fmt: skip


@pytest.mark.parametrize("task", [task for task in TASKS if task != "anomaly"])
def test_baselines(task: str) -> None:
    check_model(TASKS[task].baseline(), task, [({"x": float(n)}, label) for n, label in enumerate(LABELS[task])])


@pytest.mark.parametrize("name", ["linear", "slow"])
def test_a_declared_model(name: str) -> None:
    check_model(small.make().model(name), "regression", [({"distance": float(n)}, 2.0 * n) for n in range(20)])


@pytest.mark.parametrize("name", sorted(load("flights").models))
def test_models_of_the_demo(name: str) -> None:
    examples = [({"carrier": "UA", "distance": float(n), "hour": n % 24}, n % 3 == 0) for n in range(20)]
    check_model(load("flights").model(name), "binary", examples)


@pytest.mark.parametrize("task", TASKS)
def test_metrics(task: str) -> None:
    for metric in TASKS[task].metrics():
        if task == "multiclass" and isinstance(metric, metrics.CrossEntropy):
            predictions: list[Any] = [{"a": 0.5, "b": 0.25, "c": 0.25}] * 20
        elif task in ("binary", "anomaly") and not metric.requires_labels:
            predictions = (
                [{True: n / 20, False: 1 - n / 20} for n in range(20)]
                if task == "binary"
                else [n / 20 for n in range(20)]
            )
        else:
            predictions = LABELS[task][1:] + LABELS[task][:1]
        check_metric(metric, list(zip(LABELS[task], predictions, strict=True)))


class Forgetful:
    """A model that learns when it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def learn_one(self, x: dict[str, Any], y: float) -> None:
        pass

    def predict_one(self, x: dict[str, Any]) -> float:
        self.asked += 1
        return float(self.asked)


def test_a_model_that_changes_when_it_is_asked_is_noticed() -> None:
    with pytest.raises(AssertionError, match="asking changes no model"):
        check_model(Forgetful(), "regression", [({}, 1.0), ({}, 2.0)])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in testing.__all__ if name.startswith("check_")])
def test_the_example_of_a_check_is_right(name: str) -> None:
    check = getattr(testing, name)
    module = import_module(check.__module__)
    runner = doctest.DocTestRunner()
    examples = doctest.DocTestFinder().find(check, name, globs=vars(module).copy())
    assert sum(len(test.examples) for test in examples) >= 2
    assert sum(runner.run(test).failed for test in examples) == 0
