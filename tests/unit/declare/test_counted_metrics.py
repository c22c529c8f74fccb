"""Metrics that are counted have the state of River's own, byte for byte; River is the oracle."""

from __future__ import annotations

import math
import pickle
import random
from collections.abc import Callable
from typing import Any

import pytest
from river import metrics, utils

from tidemill.declare.scorecard import Scorecard
from tidemill.declare.tasks import TASKS

Make = Callable[[], Any]

BINARY: list[Make] = [
    metrics.Accuracy, metrics.ROCAUC, lambda: metrics.ROCAUC(n_thresholds=30, pos_val=False), metrics.LogLoss,
    metrics.F1, lambda: metrics.Precision(pos_val=False), metrics.RollingROCAUC, metrics.BalancedAccuracy,
    metrics.CohenKappa, metrics.MCC, lambda: utils.Rolling(metrics.Accuracy, window_size=50),
    lambda: utils.Rolling(metrics.LogLoss, window_size=50), metrics.CrossEntropy,
]  # fmt: skip
MULTICLASS: list[Make] = [
    metrics.Accuracy,
    metrics.MacroF1,
    metrics.WeightedF1,
    metrics.MicroJaccard,
    metrics.CrossEntropy,
]
SCORES = [0.0, 1.0, 0.5, 1 / 9, 5 / 9, 1e-16, 1 - 1e-16, 1e-300, math.nextafter(1 / 9, 1)]


def answer(task: str, rng: random.Random) -> tuple[Any, Any]:
    """Return a label and what metrics get of the prediction made for it."""
    if task == "binary":
        score = rng.choice([*SCORES, rng.random(), rng.random()])
        return rng.random() < 0.3, TASKS[task].judged(score, {})
    likely = [rng.random() for _ in range(4)]
    probabilities = {name: p / sum(likely) for name, p in zip("abcd", likely, strict=True)}
    return rng.choice("abcde"), TASKS[task].judged(max(probabilities.values()), probabilities)


@pytest.mark.parametrize(
    ("task", "make"), [*(("binary", one) for one in BINARY), *(("multiclass", one) for one in MULTICLASS)]
)
def test_a_counted_metric_is_river_s_own(task: str, make: Make) -> None:
    rng, river, own = random.Random(1), make(), Scorecard([make()])
    about_labels = bool(getattr(river, "requires_labels", False))
    for index in range(400):
        label, judged = answer(task, rng)
        own.update(label, judged)
        river.update(label, judged.label if about_labels else judged.prediction)
        if index % 97 == 0:
            assert list(own.values().values()) == [float(river.get())]
        if index % 150 == 0:
            own, river = Scorecard(pickle.loads(pickle.dumps(own.metrics))), pickle.loads(pickle.dumps(river))
    assert pickle.dumps(own.metrics[0]) == pickle.dumps(river)


def test_anomaly_scores_are_counted_as_they_are() -> None:
    river, own, rng = metrics.ROCAUC(), Scorecard([metrics.ROCAUC()]), random.Random(2)
    for _ in range(200):
        label, score = rng.random() < 0.2, rng.choice([rng.gauss(0, 3), math.nan, rng.random()])
        own.update(label, TASKS["anomaly"].judged(score, {}))
        river.update(label, score)
    assert pickle.dumps(own.metrics[0]) == pickle.dumps(river)


def test_a_shared_matrix_is_counted_by_each_as_river_does() -> None:
    def three() -> list[Any]:
        shared = metrics.ConfusionMatrix()
        return [metrics.Accuracy(cm=shared), metrics.MacroF1(cm=shared), metrics.MCC(cm=shared)]

    river, own, rng = three(), Scorecard(three()), random.Random(3)
    for _ in range(100):
        label, judged = answer("binary", rng)
        own.update(label, judged)
        for metric in river:
            metric.update(label, judged.label)
    assert list(own.values().values()) == [float(metric.get()) for metric in river]
