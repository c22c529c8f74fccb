"""A confidence sequence: an interval for a mean that holds at every look at once, so that looking often costs nothing."""

from __future__ import annotations

import math

import numpy as np

from tidemill.models.evidence import Differences, Interval

LEAST_RUNS = 8
"""The spread of fewer means than this says nothing about what varies."""


def spread(differences: Differences) -> float:
    """Return the standard deviation that one difference adds to a mean of many, neighbours being alike.

    The largest that runs of any length show that leaves 8 of them: what varies over hours shows in long runs only.
    """
    sums, size, largest = np.array(differences.sums), differences.size, 0.0
    while len(sums) >= LEAST_RUNS:
        largest = max(largest, float(np.var(sums, ddof=1)) / size)
        sums, size = sums[: len(sums) // 2 * 2].reshape(-1, 2).sum(axis=1), size * 2
    return math.sqrt(largest)


def sequence(differences: Differences, rate: float, first: int) -> Interval | None:
    """Return the mean with the interval that at every look from `first` on holds it, but for a probability of `rate`.

    None where there are too few differences, or one of them is not finite. Narrowest, for its kind, at 4 `first`. Source:
    Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, Time-uniform central limit theory and asymptotic confidence sequences,
    Annals of Statistics 52 (2024), theorem 2.2; the tuning is their equation for rho. The variance is by batch means.
    """
    count, total = differences.count, differences.total
    if count < first or not math.isfinite(total) or not all(map(math.isfinite, differences.sums)):
        return None
    rho2 = (-2 * math.log(rate) + math.log(-2 * math.log(rate) + 1)) / (4 * first)
    scaled = count * rho2 + 1
    margin = spread(differences) * math.sqrt(2 * scaled / (count * count * rho2) * math.log(math.sqrt(scaled) / rate))
    mean = total / count
    return Interval(mean, mean - margin, mean + margin)
