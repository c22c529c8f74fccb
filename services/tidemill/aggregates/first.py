"""The earliest of a field's values."""

from __future__ import annotations

from collections.abc import Sequence

from tidemill.aggregates.base import Aggregate, Column, Window, from_json, to_json

Cell = tuple[int, float] | None


class Earliest(Column):
    """A cell is (event time, value) of the earliest value; of equal times the earlier arrival's."""

    def __init__(self, field: str, name: str = "first") -> None:
        super().__init__(f"{name}:{field}", field)

    def fresh(self) -> Cell:
        return None

    def add(self, cells: list[Cell], index: int, value: float, now: int) -> None:
        stored = cells[index]
        if stored is None or now < stored[0]:
            cells[index] = (now, value)

    def merge(self, cells: Sequence[Cell]) -> Cell:
        return next((cell for cell in cells if cell is not None), None)

    def dump(self, cell: Cell) -> list[float | str] | None:
        return None if cell is None else [cell[0], to_json(cell[1])]

    def load(self, stored: tuple[int, float | str]) -> Cell:
        time, value = stored
        return (time, from_json(value))


def first(over: str, window: str) -> list[Aggregate]:
    """The value of `over` with the earliest event time in the window; of equal times the earlier arrival.

    Examples
    --------
    >>> from tidemill.testing import try_aggregates
    >>> delays = [("1m", {"delay": 4.0}), ("2m", {"delay": None}), ("3m", {"delay": 10.0})]
    >>> try_aggregates(first("delay", "1h"), delays, at="10m")
    {'first_delay_1h': 4.0}
    """
    column = Earliest(over)
    name = column.name

    def read(w: Window, _: int) -> float | None:
        cell = column.merge(w[name])
        return None if cell is None else cell[1]

    return [Aggregate("first", over, window, (column,), read)]
