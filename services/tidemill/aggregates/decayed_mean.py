"""The mean of a field's values, recent ones counting more."""

from __future__ import annotations

from collections.abc import Sequence

from tidemill.aggregates.base import Aggregate, Column, Window, from_json, to_json
from tidemill.durations import milliseconds

Cell = tuple[int, float, float] | None


class Decayed(Column):
    """A cell is (latest event time, sum of weights, weighted sum of values) of the tile's values.

    A weight is 2 ** -(age / half life), the age up to the latest value of the tile, not up to the tile's end:
    weights then don't vanish where the half life is short beside the tile. Any order gives the same, but for rounding.
    """

    def __init__(self, field: str, half_life: str) -> None:
        super().__init__(f"decayed:{field}:{half_life}", field)
        self.half_life_ms = milliseconds(half_life)

    def fresh(self) -> Cell:
        return None

    def add(self, cells: list[Cell], index: int, value: float, now: int) -> None:
        stored = cells[index]
        if stored is None:
            cells[index] = (now, 1.0, value)
            return
        latest, weight, total = stored
        if now <= latest:
            new = 2.0 ** ((now - latest) / self.half_life_ms)
            cells[index] = (latest, weight + new, total + new * value)
        else:
            old = 2.0 ** ((latest - now) / self.half_life_ms)
            cells[index] = (now, weight * old + 1.0, total * old + value)

    def merge(self, cells: Sequence[Cell]) -> Cell:
        present = [cell for cell in cells if cell is not None]
        if not present:
            return None
        latest = present[-1][0]
        factors = [2.0 ** ((cell[0] - latest) / self.half_life_ms) for cell in present]
        weight: float = sum([factor * cell[1] for factor, cell in zip(factors, present, strict=True)])
        total: float = sum([factor * cell[2] for factor, cell in zip(factors, present, strict=True)])
        return (latest, weight, total)

    def dump(self, cell: Cell) -> list[float | str] | None:
        return None if cell is None else [cell[0], cell[1], to_json(cell[2])]

    def load(self, stored: tuple[int, float, float | str]) -> Cell:
        latest, weight, total = stored
        return (latest, weight, from_json(total))


def decayed_mean(over: str, half_life: str, window: str) -> list[Aggregate]:
    """Mean of `over` weighted by 2 ** -(age / half_life), ages by event time; missing without a value in the window.

    Examples
    --------
    >>> from tidemill.testing import try_aggregates
    >>> delays = [("1m", {"delay": 4.0}), ("2m", {"delay": None}), ("3m", {"delay": 10.0})]
    >>> try_aggregates(decayed_mean("delay", "2m", "1h"), delays, at="3m")
    {'decayed_mean_delay_2m_1h': 8.0}
    """
    column = Decayed(over, half_life)
    name = column.name

    def read(w: Window, _: int) -> float | None:
        # At the time of asking all weights are smaller by one factor, which cancels.
        cell = column.merge(w[name])
        return None if cell is None else cell[2] / cell[1]

    title = f"decayed_mean_{over}_{half_life}_{window}"
    return [Aggregate("decayed_mean", over, window, (column,), read, title=title)]
