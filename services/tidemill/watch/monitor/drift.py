"""How far a window's values are from the reference's: PSI and Kolmogorov-Smirnov, for numbers and for categories.

Population stability index: sum over bins of (p - q) ln(p / q), p the window's and q the reference's share of a bin.
Bins of numbers are the reference's deciles and, our addition, one below and one above all values of the reference, so
that a shift beyond these counts more than one among them. Kolmogorov-Smirnov: the largest distance between the two
empirical distribution functions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]

BINS = 10
#: The least share that a bin counts as: an empty bin would make the index infinite.
MIN_SHARE = 1e-4
#: Categories with a bin of their own, the most frequent; the others of the reference share one.
MAX_CATEGORIES = 50


def psi(shares: Numbers, reference: Numbers) -> float:
    """Return the population stability index of two sets of shares, bin by bin."""
    p, q = np.maximum(shares, MIN_SHARE), np.maximum(reference, MIN_SHARE)
    return float(np.sum((p - q) * np.log(p / q)))


def _shares(counts: npt.NDArray[Any]) -> Numbers:
    return np.asarray(counts / counts.sum(), dtype=np.float64)


class NumberReference:
    """The reference of a number: a sorted sample of it.

    Parameters
    ----------
    values
        Finite numbers, at least one; missing ones are left out.
    """

    def __init__(self, values: Numbers) -> None:
        self.sample = np.sort(np.asarray(values, dtype=np.float64))
        inner = np.unique(np.quantile(self.sample, np.linspace(0, 1, BINS + 1)[1:-1], method="inverted_cdf"))
        low, high = self.sample[0], self.sample[-1]
        # Bins are (below, low), [low, first decile], ..., (last decile, high], (high, above).
        self._edges = np.concatenate([[np.nextafter(low, -np.inf)], inner[inner < high], [high]])
        self.shares = _shares(self._counts(self.sample))

    def _counts(self, values: Numbers) -> npt.NDArray[Any]:
        return np.bincount(np.searchsorted(self._edges, values, side="left"), minlength=len(self._edges) + 1)

    def psi(self, values: Numbers) -> float:
        """Return the population stability index of `values` (finite, at least one)."""
        return psi(_shares(self._counts(values)), self.shares)

    def ks(self, values: Numbers) -> float:
        """Return the Kolmogorov-Smirnov statistic of `values` (finite, at least one), 0 to 1."""
        given = np.sort(values)
        at = np.concatenate([self.sample, given])
        ours = np.searchsorted(self.sample, at, side="right") / len(self.sample)
        theirs = np.searchsorted(given, at, side="right") / len(given)
        return float(np.max(np.abs(ours - theirs)))


class CategoryReference:
    """The reference of a category: how often each value was seen.

    Parameters
    ----------
    values
        At least one; missing ones are left out.
    """

    def __init__(self, values: Sequence[Any]) -> None:
        counts = _count(values)
        order = sorted(counts, key=lambda name: (-counts[name], name))
        self.known = frozenset(order)
        self._bin = {name: min(rank, MAX_CATEGORIES) for rank, name in enumerate(order)}
        self.shares = _shares(self._counts(counts))

    def _counts(self, counts: Mapping[str, int]) -> npt.NDArray[Any]:
        unseen = MAX_CATEGORIES + 1
        bins = np.zeros(unseen + 1)
        for name, count in counts.items():
            bins[self._bin.get(name, unseen)] += count
        return bins

    def psi(self, values: Sequence[Any]) -> float:
        """Return the population stability index of `values` (at least one)."""
        return psi(_shares(self._counts(_count(values))), self.shares)

    def unseen(self, values: Sequence[Any]) -> float:
        """Return the share of `values` that the reference does not have."""
        counts = _count(values)
        return sum(count for name, count in counts.items() if name not in self.known) / len(values)


def _count(values: Sequence[Any]) -> Counter[str]:
    """Count values. Numpy would give every string of an array the memory of the longest."""
    return Counter(map(str, values))
