"""What an aggregate is made of: columns, which tiles keep, and a function that reads them over a window.

A view cuts event time into tiles of `every` (say 1 minute) and keeps, per entity and tile, one cell of each column. A
window of "1h" at time t is the tile of t and the 59 before it, so a value is exact to one tile.

A new aggregate is a file here with a function that returns `Aggregate`s, its line in `__init__.py`, and its definition
in tests/contracts/test_aggregates.py. One that only a single pipeline needs can stand in that pipeline's file.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tidemill.durations import milliseconds

#: The largest magnitude of a feature, and of whatever else is a number in a vector. A sum of values of `LARGEST_NUMBER`
#: stays below it, and products of a few features stay finite; a feature beyond it is missing.
LARGEST_FEATURE = 1e30

#: Times beyond this, in ms before or after 1970, were written by no service.
MAX_TIME_MS = 2**53


class Column:
    """One thing that every tile keeps, in one cell.

    Parameters
    ----------
    name
        What the column is known by, in memory and in the store, as "sum:dep_delay". It says everything that the cells
        depend on: aggregates of one view share the columns of equal names.
    field
        The event field whose values it is given; "" for the events themselves.
    """

    def __init__(self, name: str, field: str = "") -> None:
        self.name = name
        self.field = field

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and (other.name, other.field) == (self.name, self.field)

    def __hash__(self) -> int:
        return hash((type(self), self.name, self.field))

    def fresh(self) -> Any:
        """Return an empty cell; each time another one, where cells can change."""
        raise NotImplementedError

    def add(self, cells: list[Any], index: int, value: Any, now: int) -> None:
        """Add `value` (never None; the event itself where `field` is "") of event time `now` (ms) to `cells[index]`.

        The order in which values come must not matter, and a cell's size must be bounded. Every event passes here.
        """
        raise NotImplementedError

    def merge(self, cells: Sequence[Any]) -> Any:
        """Return one cell that says what `cells`, at least one, oldest first and not to be changed, say together.

        Optional. A window's older tiles do not change from event to event: what they are together is kept, and read as
        one.
        """
        raise NotImplementedError

    @property
    def merges(self) -> bool:
        """Whether its cells can be merged."""
        return type(self).merge is not Column.merge

    def dump(self, cell: Any) -> Any:
        """Return the cell as strict JSON allows (neither NaN nor infinity); None for an empty one."""
        return cell

    def load(self, stored: Any) -> Any:
        """Return the cell that was dumped as `stored`, which is never None."""
        return stored

    def load_all(self, stored: Iterable[Any]) -> list[Any]:
        """Return cells as `load` returns each, of which None is an empty one."""
        fresh, load = self.fresh, self.load
        return [fresh() if one is None else load(one) for one in stored]


class Number(Column):
    """A column whose cells are one number each, and `start` while empty."""

    start: float = 0.0

    def fresh(self) -> float:
        return self.start

    def dump(self, cell: float) -> float | str | None:
        return None if cell == self.start else to_json(cell)

    def load(self, stored: float | str) -> float:
        return from_json(stored)

    def load_all(self, stored: Iterable[Any]) -> list[Any]:
        if type(self).load is not Number.load:
            return super().load_all(stored)
        # Nearly every one is a float, which is its own cell; entities are read many at a time.
        start = self.start
        return [start if one is None else one if type(one) is float else from_json(one) for one in stored]


class Count(Number):
    """A cell is the number of values of `field`, or of events."""

    def __init__(self, field: str = "") -> None:
        super().__init__(f"n:{field}" if field else "n", field)

    def add(self, cells: list[float], index: int, value: Any, now: int) -> None:  # noqa: ARG002
        cells[index] += 1.0

    def merge(self, cells: Sequence[float]) -> float:
        return sum(cells)


class Time(Number):
    """A cell is the latest event time in the tile, in ms since the epoch."""

    start = -math.inf

    def __init__(self) -> None:
        super().__init__("time")

    def load(self, stored: float | str) -> float:
        if abs(time := from_json(stored)) > MAX_TIME_MS:
            raise ValueError(f"{stored} is no time in ms")
        return time

    def load_all(self, stored: Iterable[Any]) -> list[Any]:
        start, load = self.start, self.load  # nearly every one is a whole number, which is its own cell
        return [
            start if one is None else one if type(one) is int and -MAX_TIME_MS <= one <= MAX_TIME_MS else load(one)
            for one in stored
        ]

    def add(self, cells: list[float], index: int, value: Any, now: int) -> None:  # noqa: ARG002
        if now > cells[index]:
            cells[index] = now

    def merge(self, cells: Sequence[float]) -> float:
        return max(cells)


#: Every view keeps these columns.
EVENTS, TIME = Count(), Time()


def to_json(number: float) -> float | str:
    """Return `number`, or its name where JSON has none for it: a sum of finite values may overflow."""
    return number if number - number == 0 else repr(number)


def from_json(stored: float | str) -> float:
    """Return the number that `to_json` made `stored` of. Raises for anything else."""
    if type(stored) is float:  # nearly always
        return stored
    number = float(stored)
    return number if isinstance(stored, str) else stored


def sum_counts(cells: Iterable[Mapping[Any, int]]) -> dict[Any, int]:
    """Return how often each thing was counted in all cells together."""
    counts: dict[Any, int] = {}
    for cell in cells:
        for what, count in cell.items():
            counts[what] = counts.get(what, 0) + count
    return counts


#: The cells of the window's tiles, oldest first, by column name. At least one tile. Not to be changed.
Window = Mapping[str, Sequence[Any]]

#: (window, time of asking in ms) -> the value, or None where there is nothing to say; NaN and infinities count as None.
Read = Callable[[Window, int], "float | None"]


@dataclass(frozen=True)
class Aggregate:
    """One feature of a view: `kind` over `field` (or over the events themselves) in a window.

    Parameters
    ----------
    window
        As people write it, "1h"; a multiple of the view's `every`.
    columns
        What the tiles keep for it.
    read
        How the value is made of the columns' cells.
    empty
        The value where the window has no tile at all.
    text
        Whether `field` may be text, an enum or a boolean as well as a number.
    title
        The feature's name, where it is not made of kind, field and window.
    parts
        The aggregates that it is made of, if it is: their fields are checked, each by its own `text`.

    Raises ValueError where `field` is no text, or `window` no duration.
    """

    kind: str
    field: str
    window: str
    columns: tuple[Column, ...]
    read: Read = dataclasses.field(compare=False, repr=False)
    empty: float | None = None
    text: bool = False
    title: str = ""
    parts: tuple[Aggregate, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.field, str):
            raise ValueError(f"{self.kind}: {self.field!r} where the name of a field was expected")
        milliseconds(self.window)

    @property
    def name(self) -> str:
        """The feature's name within its view, as `mean_dep_delay_1h`."""
        return self.title or "_".join(part for part in (self.kind, self.field, self.window) if part)

    @property
    def window_ms(self) -> int:
        """The window's length in milliseconds."""
        return milliseconds(self.window)

    @property
    def fields(self) -> tuple[str, ...]:
        """The event fields that it and its columns look at."""
        return tuple(dict.fromkeys(name for name in (self.field, *(c.field for c in self.columns)) if name))


def require_windows(kind: str, given: Sequence[object], windows: tuple[str, ...]) -> tuple[str, ...]:
    """Return `windows`. Raises ValueError, with the call as it should be, where it is empty."""
    if not windows:
        call = ", ".join([*map(repr, given), "'1h'"])
        raise ValueError(f"{kind}: give at least one window, as in {kind}({call})")
    return windows


def columns_of(aggregates: Iterable[Aggregate]) -> dict[str, Column]:
    """Return a view's columns by name, with those of every view. Raises ValueError where two of one name differ."""
    columns: dict[str, Column] = {EVENTS.name: EVENTS, TIME.name: TIME}
    for aggregate in aggregates:
        for column in aggregate.columns:
            if columns.setdefault(column.name, column) != column:
                raise ValueError(f"{aggregate.name}: this view has another column called {column.name!r}")
    return columns
