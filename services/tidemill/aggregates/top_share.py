"""How much of a field its most frequent value is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tidemill.aggregates.base import Aggregate, Column, Count, Window, require_windows, sum_counts

#: Values that a tile counts.
COUNTERS = 64


class Frequent(Column):
    """A cell is {value: number of times}, of at most 64 values (Misra, Gries 1982).

    Exact up to 64 different values in a tile, in any order. Beyond, a count is too low by at most 1/65 of the tile's
    values, by how much depends on the order of arrival: when another value finds no place, each of the 64 loses one.
    """

    def __init__(self, field: str) -> None:
        super().__init__(f"top:{field}", field)

    def fresh(self) -> dict[Any, int]:
        return {}

    def add(self, cells: list[dict[Any, int]], index: int, value: Any, now: int) -> None:  # noqa: ARG002
        counts = cells[index]
        if value in counts:
            counts[value] += 1
        elif len(counts) < COUNTERS:
            counts[value] = 1
        else:
            cells[index] = {kept: count - 1 for kept, count in counts.items() if count > 1}

    def merge(self, cells: Sequence[dict[Any, int]]) -> dict[Any, int]:
        return sum_counts(cells)

    def dump(self, cell: dict[Any, int]) -> list[list[Any]] | None:
        return [[value, count] for value, count in cell.items()] or None

    def load(self, stored: list[list[Any]]) -> dict[Any, int]:
        return {value: count for value, count in stored}  # noqa: C416 - mypy knows no dict of lists


def top_share(over: str, *windows: str) -> list[Aggregate]:
    """Share, 0 to 1, of the window's most frequent value of `over` (a number, text, an enum or a boolean).

    Missing without a value. Exact where no tile has more than 64 different values; else too low by at most 1/65.

    Examples
    --------
    >>> from tidemill.testing import try_aggregates
    >>> events = [("1m", {"carrier": "AA"}), ("2m", {"carrier": "UA"}), ("3m", {"carrier": "AA"})]
    >>> try_aggregates(top_share("carrier", "1h"), events, at="10m")
    {'top_share_carrier_1h': 0.6666666666666666}
    """
    columns = Count(over), Frequent(over)
    n, name = (column.name for column in columns)

    def read(w: Window, _: int) -> float | None:
        total = sum(w[n])
        if not total:
            return None
        return max(sum_counts(w[name]).values(), default=0) / total

    return [
        Aggregate("top_share", over, window, columns, read, text=True)
        for window in require_windows("top_share", (over,), windows)
    ]
