"""Aggregates over event-time tile windows: what a view can keep of an entity.

A view cuts event time into tiles of `every` (say 1 minute) and keeps, per entity and tile, a few columns. A window of
"1h" at time t is the tile of t and the 59 before it, so a value is exact to one tile. An aggregate says which columns
it needs and how it reads them; adding one is a function here and its entry in `__all__`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tidemill.durations import milliseconds

__all__ = ["count", "last", "max", "mean", "min", "std", "sum", "time_since_last"]

_sum, _min, _max = sum, min, max  # the aggregates below carry the field's own names

Window = dict[str, Sequence[float]]
"""The columns of the window's tiles, oldest first, by column name. At least one tile."""

Read = Callable[[Window, int], "float | None"]
"""(window, time of asking in ms) -> the value, or None where there is nothing to say."""


@dataclass(frozen=True)
class Aggregate:
    """One feature of a view: `kind` over `field` (or over the events themselves) in a window of `window` ms."""

    kind: str
    field: str
    window: str
    columns: tuple[str, ...]
    read: Read = dataclasses.field(compare=False, repr=False)

    @property
    def name(self) -> str:
        """The feature's name within its view, as `mean_dep_delay_1h`."""
        return "_".join(part for part in (self.kind, self.field, self.window) if part)

    @property
    def window_ms(self) -> int:
        """The window's length in milliseconds; 0 where the aggregate looks back without end."""
        return milliseconds(self.window) if self.window else 0


def _each(kind: str, over: str, windows: tuple[str, ...], columns: Sequence[str], read: Read) -> list[Aggregate]:
    if not windows:
        raise ValueError(f"{kind}: give at least one window, as in {kind}({over and repr(over) + ', '}'1h')")
    for window in windows:
        milliseconds(window)
    return [Aggregate(kind, over, window, tuple(columns), read) for window in windows]


def count(*windows: str) -> list[Aggregate]:
    """Events in the window."""
    return _each("count", "", windows, ("n",), lambda w, _: float(_sum(w["n"])))


def sum(over: str, *windows: str) -> list[Aggregate]:
    """Sum of `over`; missing without a value in the window."""
    n, s = f"n:{over}", f"sum:{over}"
    return _each("sum", over, windows, (n, s), lambda w, _: _sum(w[s]) if _sum(w[n]) else None)


def mean(over: str, *windows: str) -> list[Aggregate]:
    """Arithmetic mean of `over`; missing without a value in the window."""
    n, s = f"n:{over}", f"sum:{over}"

    def read(w: Window, _: int) -> float | None:
        total = _sum(w[n])
        return _sum(w[s]) / total if total else None

    return _each("mean", over, windows, (n, s), read)


def std(over: str, *windows: str) -> list[Aggregate]:
    """Sample standard deviation of `over` (n - 1); missing with fewer than two values in the window.

    Tiles keep the squared deviations from their own mean and are combined pairwise (Chan, Golub, LeVeque 1979), which
    does not cancel where the mean is large beside the deviation.
    """
    n, s, m2 = f"n:{over}", f"sum:{over}", f"m2:{over}"

    def read(w: Window, _: int) -> float | None:
        counts, sums = w[n], w[s]
        total = _sum(counts)
        if total < 2:
            return None
        centre = _sum(sums) / total
        between = _sum([c * (off := x / c - centre) * off for c, x in zip(counts, sums, strict=True) if c])
        return math.sqrt((_sum(w[m2]) + between) / (total - 1))

    return _each("std", over, windows, (n, s, m2), read)


def min(over: str, *windows: str) -> list[Aggregate]:
    """Smallest value of `over`; missing without a value in the window."""
    column = f"min:{over}"

    def read(w: Window, _: int) -> float | None:
        smallest = _min(w[column])
        return None if smallest == math.inf else smallest

    return _each("min", over, windows, (column,), read)


def max(over: str, *windows: str) -> list[Aggregate]:
    """Largest value of `over`; missing without a value in the window."""
    column = f"max:{over}"

    def read(w: Window, _: int) -> float | None:
        largest = _max(w[column])
        return None if largest == -math.inf else largest

    return _each("max", over, windows, (column,), read)


def last(over: str, window: str) -> list[Aggregate]:
    """The value of `over` with the latest event time in the window; of equal times the later arrival."""
    n, column = f"n:{over}", f"last:{over}"

    def read(w: Window, _: int) -> float | None:
        for there, value in zip(reversed(w[n]), reversed(w[column]), strict=True):
            if there:
                return value
        return None

    return _each("last", over, (window,), (n, column), read)


def time_since_last(window: str) -> list[Aggregate]:
    """Seconds since the entity's latest event in the window, by event time; never negative."""

    def read(w: Window, now: int) -> float | None:
        return _max(0.0, (now - w["time"][-1]) / 1000)

    return _each("time_since_last", "", (window,), ("time",), read)
