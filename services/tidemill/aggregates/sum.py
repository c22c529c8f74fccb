"""The sum of a field's values."""

from __future__ import annotations

import builtins
from collections.abc import Sequence

from tidemill.aggregates.base import Aggregate, Count, Number, Window, require_windows


class Sum(Number):
    """A cell is the sum of the values of `field`."""

    def __init__(self, field: str) -> None:
        super().__init__(f"sum:{field}", field)

    def add(self, cells: list[float], index: int, value: float, now: int) -> None:  # noqa: ARG002
        cells[index] += value

    def merge(self, cells: Sequence[float]) -> float:
        return builtins.sum(cells)


def sum(over: str, *windows: str) -> list[Aggregate]:
    """Sum of `over`; missing without a value in the window.

    Examples
    --------
    >>> from tidemill.testing import try_aggregates
    >>> delays = [("1m", {"delay": 4.0}), ("2m", {"delay": None}), ("3m", {"delay": 10.0})]
    >>> try_aggregates(sum("delay", "1h"), delays, at="10m")
    {'sum_delay_1h': 14.0}
    """
    columns = Count(over), Sum(over)
    n, s = (column.name for column in columns)
    add = builtins.sum

    def read(w: Window, _: int) -> float | None:
        return add(w[s]) if add(w[n]) else None

    return [Aggregate("sum", over, window, columns, read) for window in require_windows("sum", (over,), windows)]
