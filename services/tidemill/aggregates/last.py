"""The latest of a field's values."""

from __future__ import annotations

from collections.abc import Sequence

from tidemill.aggregates.base import Aggregate, Window
from tidemill.aggregates.first import Cell, Earliest


class Latest(Earliest):
    """A cell is (event time, value) of the latest value; of equal times the later arrival's."""

    def __init__(self, field: str) -> None:
        super().__init__(field, "last")

    def add(self, cells: list[Cell], index: int, value: float, now: int) -> None:
        stored = cells[index]
        if stored is None or now >= stored[0]:
            cells[index] = (now, value)

    def merge(self, cells: Sequence[Cell]) -> Cell:
        return super().merge(cells[::-1])


def last(over: str, window: str) -> list[Aggregate]:
    """The value of `over` with the latest event time in the window; of equal times the later arrival.

    Examples
    --------
    >>> from tidemill.testing import try_aggregates
    >>> delays = [("1m", {"delay": 4.0}), ("2m", {"delay": None}), ("3m", {"delay": 10.0})]
    >>> try_aggregates(last("delay", "1h"), delays, at="10m")
    {'last_delay_1h': 10.0}
    """
    column = Latest(over)
    name = column.name

    def read(w: Window, _: int) -> float | None:
        cell = column.merge(w[name])
        return None if cell is None else cell[1]

    return [Aggregate("last", over, window, (column,), read)]
