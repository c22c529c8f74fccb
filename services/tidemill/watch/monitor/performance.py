"""How good a window's predictions were: the task's metrics over whole columns, and calibration.

pandas computes them for a window at once, by the textbook's definition; a declared metric that has no such function is
River's own, updated row by row. ROCAUC is ours because neither of River's is exact: `ROCAUC` goes by ten thresholds
(0.002 to 0.024 away on made-up windows, and 75 ms instead of 3 for 26,000 rows), and `RollingROCAUC` counts ties
wrongly (up to 0.07 away where scores take a few values, as a baseline's do; equal where there are no ties).
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tidemill.declare.pipeline import Pipeline
from tidemill.declare.scorecard import Scorecard

log = logging.getLogger(__name__)

#: Probabilities are kept this far from 0 and 1 for their logarithm, as River does.
MIN_PROBABILITY = 1e-15
CALIBRATION_BINS = 10

Column = npt.NDArray[Any]

#: Takes labels and scores; returns nothing where it is not defined for them.
Metric = Callable[[Column, Column], float | None]


def rocauc(label: Column, score: Column) -> float | None:
    """Return the share of pairs of a true and a false row where the true one scores higher; ties count half."""
    truth = label.astype(bool)
    positives = int(truth.sum())
    negatives = len(truth) - positives
    if not positives or not negatives:
        return None
    import pandas as pd

    ranks = pd.Series(score).rank().to_numpy()
    return float((ranks[truth].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def _accuracy(label: Column, score: Column) -> float:
    return float(((score > 0.5) == label.astype(bool)).mean())


def _log_loss(label: Column, score: Column) -> float:
    p = np.clip(score, MIN_PROBABILITY, 1 - MIN_PROBABILITY)
    return float(-np.log(np.where(label.astype(bool), p, 1 - p)).mean())


def _r2(label: Column, score: Column) -> float | None:
    spread = float(((label - label.mean()) ** 2).sum())
    return 1 - float(((score - label) ** 2).sum()) / spread if spread else None


#: By task: metrics that are computed over columns.
COLUMN_METRICS: Mapping[str, Mapping[str, Metric]] = {
    "binary": {"Accuracy": _accuracy, "ROCAUC": rocauc, "LogLoss": _log_loss},
    "anomaly": {"ROCAUC": rocauc},
    "regression": {
        "MAE": lambda label, score: float(np.abs(score - label).mean()),
        "RMSE": lambda label, score: float(np.sqrt(((score - label) ** 2).mean())),
        "R2": _r2,
    },
    "multiclass": {},
}


@dataclass(frozen=True)
class Answers:
    """One model's answers to some rows, and the labels: equally long columns.

    `version` is what answered; `probabilities`, where classes have some of their own, a mapping a row.
    """

    label: Column
    score: Column
    version: Column
    probabilities: Column | None = None

    def __len__(self) -> int:
        return len(self.score)

    def some(self, rows: Column) -> Answers:
        """Return the rows of these positions, or where this mask is true."""
        probabilities = None if self.probabilities is None else self.probabilities[rows]
        return Answers(self.label[rows], self.score[rows], self.version[rows], probabilities)


class WindowMetrics:
    """The metrics of one pipeline, for windows."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self._metrics = dict(Scorecard(pipeline.metric()))
        self.names = tuple(self._metrics)
        self._logged = set[str]()
        self.bigger_is_better = {name: bool(metric.bigger_is_better) for name, metric in self._metrics.items()}

    def metrics(self, answers: Answers) -> dict[str, float]:
        """Return each metric of at least one row; one that is not defined for them is left out."""
        values = {}
        for name in self._metrics:
            by_column = COLUMN_METRICS[self.pipeline.task].get(name)
            value = by_column(answers.label, answers.score) if by_column else self._by_row(name, answers)
            if value is not None and np.isfinite(value):
                values[name] = float(value)
        return values

    def _by_row(self, name: str, answers: Answers) -> float | None:
        scorecard = Scorecard([self._metrics[name].clone()])
        none: Mapping[str, float] = {}
        by_class = itertools.repeat(none) if answers.probabilities is None else answers.probabilities
        for label, score, probabilities in zip(answers.label.tolist(), answers.score.tolist(), by_class):  # noqa: B905
            scorecard.update(label, self.pipeline.kind.judged(score, probabilities))
        if scorecard.failed and name not in self._logged:  # what has no number in one window may have one in the next
            self._logged.add(name)
            log.warning(
                "a metric raises: windows are without its figure",
                extra={"metric": name, "cause": scorecard.failed.popitem()[1]},
            )
        return next(iter(scorecard.values().values()), None)

    def gain(self, name: str, value: float, other: float) -> float:
        """Return by how much `value` of a metric is better than `other`."""
        return value - other if self.bigger_is_better[name] else other - value

    def calibration(self, answers: Answers) -> dict[str, float]:
        """Return how far scores are from what came true.

        `bias`: the mean score less the mean label. `calibration_error` (binary): over ten bins of the score, the
        distance between mean score and share of true labels, weighed by the bin's rows.
        """
        task = self.pipeline.task
        if task not in ("binary", "regression"):
            return {}
        gaps = answers.score - answers.label.astype(float)
        values = {"bias": float(gaps.mean())}
        if task == "binary":
            bins = np.clip((answers.score * CALIBRATION_BINS).astype(int), 0, CALIBRATION_BINS - 1)
            values["calibration_error"] = float(np.abs(np.bincount(bins, gaps, CALIBRATION_BINS)).sum() / len(gaps))
        return values

    def error(self, label: Any, score: float, probabilities: Mapping[str, float]) -> float:
        """Return one prediction's error, as a drift detector is fed with it: 0 is right."""
        if self.pipeline.task == "multiclass":
            return 1.0 - probabilities.get(label, 0.0)
        return abs(score - float(label))
