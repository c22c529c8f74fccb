"""The largest of a field's values."""

from __future__ import annotations

import builtins
import math
from collections.abc import Sequence

from tidemill.aggregates.base import Aggregate, Number, Window, require_windows


class Largest(Number):
    """A cell is the largest value of `field`."""

    start = -math.inf

    def __init__(self, field: str) -> None:
        super().__init__(f"max:{field}", field)

    def add(self, cells: list[float], index: int, value: float, now: int) -> None:  # noqa: ARG002
        if value > cells[index]:
            cells[index] = value

    def merge(self, cells: Sequence[float]) -> float:
        return builtins.max(cells)


def max(over: str, *windows: str) -> list[Aggregate]:
    """Largest value of `over`; missing without a value in the window.

    Examples
    --------
    >>> from tidemill.testing import try_aggregates
    >>> delays = [("1m", {"delay": 4.0}), ("2m", {"delay": None}), ("3m", {"delay": 10.0})]
    >>> try_aggregates(max("delay", "1h"), delays, at="10m")
    {'max_delay_1h': 10.0}
    """
    column = Largest(over)
    name, extreme, nothing = column.name, builtins.max, column.start

    def read(w: Window, _: int) -> float | None:
        value: float = extreme(w[name])
        return None if value == nothing else value

    return [Aggregate("max", over, window, (column,), read) for window in require_windows("max", (over,), windows)]
