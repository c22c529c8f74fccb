"""The smallest of a field's values."""

from __future__ import annotations

import builtins
import math
from collections.abc import Sequence

from tidemill.aggregates.base import Aggregate, Number, Window, require_windows


class Smallest(Number):
    """A cell is the smallest value of `field`."""

    start = math.inf

    def __init__(self, field: str) -> None:
        super().__init__(f"min:{field}", field)

    def add(self, cells: list[float], index: int, value: float, now: int) -> None:  # noqa: ARG002
        if value < cells[index]:
            cells[index] = value

    def merge(self, cells: Sequence[float]) -> float:
        return builtins.min(cells)


def min(over: str, *windows: str) -> list[Aggregate]:
    """Smallest value of `over`; missing without a value in the window.

    Examples
    --------
    >>> from tidemill.testing import try_aggregates
    >>> delays = [("1m", {"delay": 4.0}), ("2m", {"delay": None}), ("3m", {"delay": 10.0})]
    >>> try_aggregates(min("delay", "1h"), delays, at="10m")
    {'min_delay_1h': 4.0}
    """
    column = Smallest(over)
    name, extreme, nothing = column.name, builtins.min, column.start

    def read(w: Window, _: int) -> float | None:
        value: float = extreme(w[name])
        return None if value == nothing else value

    return [Aggregate("min", over, window, (column,), read) for window in require_windows("min", (over,), windows)]
