"""How far a field's values are from their mean."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tidemill.aggregates.base import Aggregate, Column, Window, from_json, require_windows, to_json

Cell = tuple[float, float, float]


class Deviations(Column):
    """A cell is (n, mean, sum of squared deviations from that mean) of the tile's values (Welford 1962)."""

    def __init__(self, field: str) -> None:
        super().__init__(f"std:{field}", field)

    def fresh(self) -> Cell:
        return (0.0, 0.0, 0.0)

    def add(self, cells: list[Cell], index: int, value: float, now: int) -> None:  # noqa: ARG002
        n, mean, squares = cells[index]
        n += 1.0
        off = value - mean
        mean += off / n
        cells[index] = (n, mean, squares + off * (value - mean))

    def merge(self, cells: Sequence[Cell]) -> Cell:
        n = mean = squares = 0.0
        for more, other, within in cells:
            if more:
                off = other - mean
                total = n + more
                part = off * more / total if n else off
                mean += part
                squares += within + off * part * n
                n = total
        return (n, mean, squares)

    def dump(self, cell: Cell) -> list[float | str] | None:
        return [cell[0], to_json(cell[1]), to_json(cell[2])] if cell[0] else None

    def load(self, stored: list[float | str]) -> Cell:
        n, mean, squares = stored
        return (from_json(n), from_json(mean), from_json(squares))


def std(over: str, *windows: str) -> list[Aggregate]:
    """Sample standard deviation of `over` (n - 1); missing with fewer than two values in the window.

    Tiles keep the squared deviations from their own mean and are combined one by one as Chan, Golub, LeVeque (1979) do,
    which does not cancel where the mean is large beside the deviation.

    Examples
    --------
    >>> from tidemill.testing import try_aggregates
    >>> delays = [("1m", {"delay": 4.0}), ("2m", {"delay": None}), ("3m", {"delay": 10.0})]
    >>> try_aggregates(std("delay", "1h"), delays, at="10m")
    {'std_delay_1h': 4.242640687119285}
    """
    column = Deviations(over)
    name = column.name

    def read(w: Window, _: int) -> float | None:
        n, _mean, squares = column.merge(w[name])
        return math.sqrt(squares / (n - 1)) if n > 1 else None

    return [Aggregate("std", over, window, (column,), read) for window in require_windows("std", (over,), windows)]
