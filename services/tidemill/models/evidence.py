"""Which of two models is better: paired differences of loss, and an interval for their mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from tidemill.wire.records import Score

TINIEST = 1e-15
"""What a probability is kept away from 0 and 1 by, for its logarithm; as River does."""


Z = 1.959963984540054
"""The normal distribution's 97.5% quantile: what makes an interval one of 95%."""


LEAST = 30
"""With fewer questions than this no interval is told: the normal distribution is no good guess then."""
MOST_BATCHES = 128


MOST_VALUES = 50
"""Values of one segment that are told apart, those that come first; the others are together."""


def _log_loss(probability: float) -> float:
    return -math.log(min(max(probability, TINIEST), 1.0 - TINIEST))


def _binary(label: bool, answer: Score) -> float:
    return _log_loss(answer["score"] if label else 1.0 - answer["score"])


def _multiclass(label: str, answer: Score) -> float:
    return _log_loss(answer["probabilities"].get(label, 0.0))


def _regression(label: float, answer: Score) -> float:
    gap = answer["score"] - label
    return gap * gap  # not **, which raises where a score is beyond 1e154


LOSSES: Mapping[str, tuple[str, Callable[[Any, Score], float]]] = {
    "binary": ("log loss", _binary),
    "multiclass": ("log loss", _multiclass),
    "regression": ("squared error", _regression),
}
"""By task: what one answer cost, 0 being right. An anomaly score alone costs nothing: it is only more or less than others."""


class Interval(NamedTuple):
    """A mean, and the 95% confidence interval around it."""

    mean: float
    low: float
    high: float


class Differences:
    """Differences one after the other, and a confidence interval for their mean, from at most MOST_BATCHES numbers.

    `sums` has those of the runs so far, `size` differences each; `total` has all of them.

    The interval is the paired normal one, by batch means: neighbours are alike (one storm delays many flights), so what
    varies is taken not from single differences but from means of runs of them, each as long as leaves 64 to 127. Below
    128 differences the runs are single ones, which is the textbook's mean(d) ± 1.96 sd(d) / √n. Sources: Diebold and
    Mariano, Comparing Predictive Accuracy, J. Business & Economic Statistics 13 (1995), for the difference of losses; Yeh
    and Schmeiser, Simulation Output Analysis via Dynamic Batch Means, Winter Simulation Conference (2000), for the runs.
    """

    def __init__(self) -> None:
        self.count = 0
        self.size = 1
        self.total = self._open = 0.0
        self.sums: list[float] = []

    def add(self, difference: float) -> None:
        """Take the next one."""
        self.count += 1
        self.total += difference
        self._open += difference
        if self.count % self.size:
            return
        self.sums.append(self._open)
        self._open = 0.0
        if len(self.sums) == MOST_BATCHES:
            self.sums = [one + other for one, other in zip(self.sums[::2], self.sums[1::2], strict=True)]
            self.size *= 2

    def interval(self) -> Interval | None:
        """Return the mean's interval; None where there are too few, or one of them is not finite."""
        if self.count < LEAST or not math.isfinite(self.total):
            return None
        mean = self.total / self.count
        with np.errstate(over="ignore", invalid="ignore"):
            margin = Z * float(np.std(np.array(self.sums) / self.size, ddof=1)) * math.sqrt(self.size / self.count)
        return Interval(mean, mean - margin, mean + margin) if math.isfinite(margin) else None
