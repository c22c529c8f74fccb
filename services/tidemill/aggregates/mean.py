"""The mean of a field's values."""

from __future__ import annotations

from tidemill.aggregates.base import Aggregate, Count, Window, asked
from tidemill.aggregates.sum import Sum


def mean(over: str, *windows: str) -> list[Aggregate]:
    """Arithmetic mean of `over`; missing without a value in the window."""
    columns = Count(over), Sum(over)
    n, s = (column.name for column in columns)

    def read(w: Window, _: int) -> float | None:
        total = sum(w[n])
        return sum(w[s]) / total if total else None

    return [Aggregate("mean", over, window, columns, read) for window in asked("mean", (over,), windows)]
