"""The mean of a field's values."""

from __future__ import annotations

from tidemill.aggregates.base import Aggregate, Count, Window, require_windows
from tidemill.aggregates.sum import Sum


def mean(over: str, *windows: str) -> list[Aggregate]:
    """Arithmetic mean of `over`; missing without a value in the window.

    Examples
    --------
    >>> from tidemill.testing import try_aggregates
    >>> delays = [("1m", {"delay": 4.0}), ("2m", {"delay": None}), ("3m", {"delay": 10.0})]
    >>> try_aggregates(mean("delay", "1h", "2m"), delays, at="4m")
    {'mean_delay_1h': 7.0, 'mean_delay_2m': 10.0}
    """
    columns = Count(over), Sum(over)
    n, s = (column.name for column in columns)

    def read(w: Window, _: int) -> float | None:
        total = sum(w[n])
        return sum(w[s]) / total if total else None

    return [Aggregate("mean", over, window, columns, read) for window in require_windows("mean", (over,), windows)]
