"""Which of two models is better: one loss a task, and one interval for the mean difference between two models' losses.

The gate, `tidemill models compare` and the page all judge by this, so they cannot contradict each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from tidemill.declare.pipeline import Pipeline
from tidemill.wire.records import Score

#: The probability of an interval that is ever wrong, where the pipeline declares no gate.
RATE = 0.05

#: Questions before there is an interval; a gate may declare more. With 30, where neighbours are alike (correlation
#: 0.8), one interval in five is wrong at some look; with 200 one in twelve.
MIN_QUESTIONS = 200

#: Runs of neighbouring differences that are kept.
MAX_RUNS = 128

#: Fewer runs than this say nothing about their spread.
MIN_RUNS = 8

#: Values of one segment that have a line each, first come, first served; the others share one.
MAX_VALUES = 50


def _brier(label: bool, answer: Score) -> float:
    gap = answer["score"] - label
    return gap * gap


def _brier_of_classes(label: str, answer: Score) -> float:
    probabilities = answer["probabilities"]
    return sum(p * p for p in probabilities.values()) - 2 * probabilities.get(label, 0.0) + 1.0


def _absolute_error(label: float, answer: Score) -> float:
    return abs(answer["score"] - label)


#: By task: the loss's name, and the loss of one answer; 0 is right. Anomaly scores have none: they are only higher or
#: lower than others. Not the log loss: one answer that was sure and wrong costs 35, and hides every other difference.
#: Source: Brier, Verification of forecasts expressed in terms of probability, Monthly Weather Review 78 (1950).
LOSSES: Mapping[str, tuple[str, Callable[[Any, Score], float]]] = {
    "binary": ("Brier score", _brier),
    "multiclass": ("Brier score", _brier_of_classes),
    "regression": ("absolute error", _absolute_error),
}


class Terms(NamedTuple):
    """What an interval promises.

    `rate` is the probability that it is ever wrong, and `first` the number of differences from which on there is one.
    """

    rate: float
    first: int


def round_rate(rate: float, number: int, challengers: int) -> float:
    """Return one challenger's part of `rate` in a round, counted from 1; over all rounds they add up to `rate`."""
    return rate / (number * (number + 1)) / max(1, challengers)


def comparison_terms(pipeline: Pipeline) -> Terms:
    """Return the terms of a comparison of two models over all questions: never less strict than the gate's first round.

    In that the gate has at most every declared model and one candidate as challengers.
    """
    gate = pipeline.gate
    if gate is None:
        return Terms(RATE, MIN_QUESTIONS)
    return Terms(round_rate(gate.rate, 1, len(pipeline.models) + 1), gate.examples)


def segment_terms(pipeline: Pipeline) -> Terms:
    """Return the terms of a comparison in one value of a segment: the gate looks at it from `least` questions on."""
    rate, first = comparison_terms(pipeline)
    return Terms(rate, first if pipeline.gate is None else max(MIN_QUESTIONS, pipeline.gate.least))


class Interval(NamedTuple):
    """A mean, and the interval around it."""

    mean: float
    low: float
    high: float


class Differences:
    """A stream of differences, and an interval for their mean, from fewer than MAX_RUNS numbers.

    `sums` has the sums of the complete runs, `size` differences each. `total` is the sum of all differences.

    Neighbours are alike (one storm delays many flights), so the spread is taken from runs of neighbours, not from
    single differences. Source: Yeh and Schmeiser, Simulation Output Analysis via Dynamic Batch Means, Winter
    Simulation Conference (2000).
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
        if len(self.sums) == MAX_RUNS:
            self.sums = [one + other for one, other in zip(self.sums[::2], self.sums[1::2], strict=True)]
            self.size *= 2

    def spread(self) -> float:
        """Return the standard deviation that one difference adds to a mean of many.

        It is the largest that runs of any length show, as long as there are MIN_RUNS of them: variation over hours
        shows in long runs only. It is infinite where squares overflow.
        """
        sums, size, largest = np.array(self.sums), self.size, 0.0
        with np.errstate(over="ignore", invalid="ignore"):
            while len(sums) >= MIN_RUNS:
                variance = float(np.var(sums, ddof=1)) / size
                if not math.isfinite(variance):
                    return math.inf
                largest = max(largest, variance)
                sums, size = sums[: len(sums) // 2 * 2].reshape(-1, 2).sum(axis=1), size * 2
        return math.sqrt(largest)

    def interval(self, terms: Terms) -> Interval | None:
        """Return the mean, and an interval that holds the true mean at all looks but for a probability of `rate`.

        Looking again and again does not make it wrong. None where there are fewer than `first` differences, or where
        they are not finite. It is narrowest, for its kind, at 4 `first`. Source: Waudby-Smith, Arbour, Sinha, Kennedy
        and Ramdas, Time-uniform central limit theory and asymptotic confidence sequences, Annals of Statistics 52
        (2024), theorem 2.2; the tuning is their equation for rho.
        """
        rate, first = terms
        count, total = self.count, self.total
        if count < first or not math.isfinite(total) or not all(map(math.isfinite, self.sums)):
            return None
        rho2 = (-2 * math.log(rate) + math.log(-2 * math.log(rate) + 1)) / (4 * first)
        scaled = count * rho2 + 1
        margin = self.spread() * math.sqrt(2 * scaled / (count * count * rho2) * math.log(math.sqrt(scaled) / rate))
        mean = total / count
        return Interval(mean, mean - margin, mean + margin) if math.isfinite(margin) else None
