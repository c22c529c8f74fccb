"""Quantiles of a field's values, right to one per cent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal

from tidemill.aggregates.base import Aggregate, Column, Window, require_windows, sum_counts

#: Largest relative error of a value.
ERROR = 0.01

#: Values nearer to zero are zero, and further from it are the largest: floats end at 1e15 (the validator sees to it),
#: and longs before 1e19.
SMALLEST, LARGEST = 1e-9, 1e19

_GAMMA = (1 + ERROR) / (1 - ERROR)
_PER_LOG = 1 / math.log(_GAMMA)
_SHIFT = 1 - math.ceil(math.log(SMALLEST) * _PER_LOG)


class Bins(Column):
    """A cell is {bin: number of values}, a sketch of Masson, Rim, Lee (DDSketch, 2019).

    A positive value lies in the bin ceil(log(value) / log(gamma)), gamma = 1.01 / 0.99, shifted so that the smallest is
    bin 1; a negative one in the bin below zero with the same number, and what is next to zero in bin 0. So bins are in
    the order of their values. Floats up to 1e15 have at most 2,765 bins a sign, longs 3,226: a cell has at most 6,453.
    """

    def __init__(self, field: str) -> None:
        super().__init__(f"bins:{field}", field)

    def fresh(self) -> dict[int, int]:
        return {}

    def add(self, cells: list[dict[int, int]], index: int, value: float, now: int) -> None:  # noqa: ARG002
        size = abs(value)
        place = 0
        if size >= SMALLEST:
            place = math.ceil(math.log(min(size, LARGEST)) * _PER_LOG) + _SHIFT
            if value < 0:
                place = -place
        counts = cells[index]
        counts[place] = counts.get(place, 0) + 1

    def merge(self, cells: Sequence[dict[int, int]]) -> dict[int, int]:
        return sum_counts(cells)

    def dump(self, cell: dict[int, int]) -> dict[str, int] | None:
        return {str(place): count for place, count in cell.items()} or None

    def load(self, stored: dict[str, int]) -> dict[int, int]:
        return {int(place): count for place, count in stored.items()}


def middle(place: int) -> float:
    """Return the value that is at most 1% from every value of the bin."""
    if place == 0:
        return 0.0
    return math.copysign(2 * _GAMMA ** (abs(place) - _SHIFT) / (_GAMMA + 1), place)


def quantile(over: str, q: float, *windows: str) -> list[Aggregate]:
    """The value of `over` at rank floor(q * (n - 1)) of n, from 0 in ascending order; missing without a value.

    Within 1% of that value (of values within 1e-9 of zero: zero). The feature is called by q in per cent: `p90` for
    0.9, `p99_9` for 0.999. Quantiles of one field share what the tiles keep. Raises ValueError for q not in 0..1.

    Examples
    --------
    >>> from tidemill.testing import try_aggregates
    >>> delays = [(f"{i}m", {"delay": float(i)}) for i in range(1, 11)]
    >>> features = try_aggregates(quantile("delay", 0.9, "1h"), delays, at="10m")
    >>> {name: round(value) for name, value in features.items()}
    {'p90_delay_1h': 9}
    """
    if isinstance(q, bool) or not isinstance(q, (int, float)) or not 0 <= q <= 1:
        raise ValueError(f"quantile({over!r}, {q!r}): the second is the quantile, a number from 0 to 1, as in 0.9")
    column = Bins(over)
    name = column.name

    def read(w: Window, _: int) -> float | None:
        counts = sum_counts(w[name])
        if not counts:
            return None
        below = int(q * (sum(counts.values()) - 1))
        for place in sorted(counts):
            below -= counts[place]
            if below < 0:
                return middle(place)
        return None

    per_cent = format((Decimal(str(q)) * 100).normalize(), "f").replace(".", "_")
    return [
        Aggregate(f"p{per_cent}", over, window, (column,), read)
        for window in require_windows("quantile", (over, q), windows)
    ]
