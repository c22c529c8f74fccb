"""Event-time tiles: what a view keeps of each entity, as columns of cells that aggregates read.

An event lands in the tile of its own event time, whenever it comes; asking at time t looks at the tile of t and those
before it only. So what a vector holds does not depend on the order in which events of different tiles arrived.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping
from functools import cache
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec

from tidemill.aggregates.base import LARGEST_FEATURE, Column, Read, columns_of
from tidemill.declare.view import View
from tidemill.durations import milliseconds

#: A watermark (ms) that no event is ahead of.
ALWAYS = 2**62

_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class Plan:
    """A view, compiled: which columns its tiles have, which of them an event changes, which a feature reads."""

    def __init__(self, view: View) -> None:
        self.view, self.label = view, view.label
        self.every = milliseconds(view.every)
        self.names = view.features
        self.columns: tuple[Column, ...] = tuple(columns_of(view.flat).values())
        self.longest = max((a.window_ms for a in view.flat), default=self.every)
        self.expires = milliseconds(view.expires) if view.expires else 0
        self.tiles_kept = max(1, self.longest // self.every)
        #: What stored tiles must have been made with to be read again.
        self.shape = f"{self.tiles_kept} tiles of {self.every} ms"
        by_field: dict[str, list[Column]] = {}
        for column in self.columns:
            by_field.setdefault(column.field, []).append(column)
        #: (field, its columns' names and functions that add to them); "" is the event itself.
        self.updates = tuple((field, tuple((c.name, c.add) for c in columns)) for field, columns in by_field.items())
        widths = dict.fromkeys(a.window_ms // self.every for a in view.flat)
        self._windows = [self._window(width) for width in widths]
        #: Event fields that its columns look at.
        self.fields = tuple(field for field in by_field if field)
        #: The features of an entity without any event.
        self.nothing = {name: a.empty for name, a in zip(self.names, view.flat, strict=True)}

    def _window(self, width: int) -> _Window:
        """Return how features of one width are read."""
        members = [(i, a) for i, a in enumerate(self.view.flat) if a.window_ms // self.every == width]
        merged = [(i, a) for i, a in members if all(column.merges for column in a.columns)]
        others = [(i, a) for i, a in members if not all(column.merges for column in a.columns)]
        columns = tuple(dict.fromkeys(column for _, a in merged for column in a.columns))
        return _Window(
            width,
            columns,
            tuple(column.name for column in columns),
            tuple((i, a.read) for i, a in merged),
            tuple(dict.fromkeys(column.name for _, a in others for column in a.columns)),
            tuple((i, a.read) for i, a in others),
            tuple((i, a.empty) for i, a in members),
        )

    def read(self, entity: Entity, now: int) -> list[float | None]:
        """Return the features, in declared order, as of event time `now` (ms)."""
        out: list[float | None] = [None] * len(self.names)
        starts, lowest = entity.starts, -LARGEST_FEATURE
        tile = now // self.every
        stop = bisect_right(starts, tile)
        for window in self._windows:
            begin = bisect_left(starts, tile - window.width + 1, 0, stop)
            if begin == stop:
                for index, value in window.empty:
                    out[index] = value
                continue
            if window.merged:
                cells = entity.merged(window, begin, stop)
                for index, read in window.reads:
                    value = read(cells, now)
                    # A sum may overflow although every value was finite; a model must never see that.
                    out[index] = value if value is None or lowest <= value <= LARGEST_FEATURE else None
            if window.others:
                cells = {name: entity.columns[name][begin:stop] for name in window.unmerged}
                for index, read in window.others:
                    value = read(cells, now)
                    out[index] = value if value is None or lowest <= value <= LARGEST_FEATURE else None
        return out


@cache
def _decoder(columns: tuple[str, ...]) -> Callable[[str], list[Any]]:
    """Return what decodes tiles, as a JSON list, that have exactly these columns; those are `_0`, `_1`, ... of each."""
    names = [f"_{number}" for number in range(len(columns))]
    tile = msgspec.defstruct(
        "Tile",
        [(name, Any) for name in names],
        rename=dict(zip(names, columns, strict=True)),
        forbid_unknown_fields=True,
        gc=False,
    )
    return msgspec.json.Decoder(list[tile]).decode  # type: ignore[valid-type]


class _Window(NamedTuple):
    """The features of one width (in tiles): those whose columns merge, and those that read every tile."""

    width: int
    merged: tuple[Column, ...]
    names: tuple[str, ...]
    reads: tuple[tuple[int, Read], ...]
    unmerged: tuple[str, ...]
    others: tuple[tuple[int, Read], ...]
    empty: tuple[tuple[int, float | None], ...]


class Entity:
    """The tiles of one entity: sorted starts (in tiles since the epoch) and, beside them, one list of cells per column.

    The merged tiles before a window's last one are kept until one of them changes: events mostly go to the last.
    """

    __slots__ = ("_before", "columns", "plan", "starts")

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.starts: list[int] = []
        self.columns: dict[str, list[Any]] = {column.name: [] for column in plan.columns}
        self._before: dict[int, tuple[int, int, list[Any]]] = {}

    @property
    def time(self) -> int:
        """The event time of its latest event, ms."""
        return int(self.columns["time"][-1])

    def add(
        self, plan: Plan, now: int, event: Mapping[str, Any], watermark: int = ALWAYS
    ) -> tuple[int, list[int]] | None:
        """Add an event of time `now` (ms). Returns (its tile, tiles dropped for age), or None if too late.

        Age is counted from the entity's newest tile, or from the watermark where the newest is ahead of that: an event
        that is ahead ages no other one.
        """
        tile = now // plan.every
        starts, columns = self.starts, self.columns
        if starts and tile == starts[-1]:
            i = len(starts) - 1
        else:
            if starts and tile <= min(starts[-1], watermark // plan.every) - plan.tiles_kept:
                return None
            i = bisect_left(starts, tile)
            if i == len(starts) or starts[i] != tile:
                starts.insert(i, tile)
                for column in plan.columns:
                    columns[column.name].insert(i, column.fresh())
        if i != len(starts) - 1:
            self._before.clear()
        for field, adds in plan.updates:
            value = event[field] if field else event
            if value is not None:
                for name, add in adds:
                    add(columns[name], i, value, now)
        return tile, self._drop(min(starts[-1], watermark // plan.every) - plan.tiles_kept)

    def _drop(self, newest_gone: int) -> list[int]:
        """Drop tiles that no window can reach any more; what is kept is bounded by the longest window."""
        if self.starts[0] > newest_gone:
            return []
        cut = bisect_right(self.starts, newest_gone)
        gone = self.starts[:cut]
        del self.starts[:cut]
        for column in self.columns.values():
            del column[:cut]
        return gone

    def merged(self, window: _Window, begin: int, stop: int) -> dict[str, list[Any]]:
        """Return the columns of tiles begin to stop, at least one: those before the last merged, and the last."""
        last, columns = stop - 1, self.columns
        if begin == last:
            return {name: columns[name][begin:stop] for name in window.names}
        merged, first, newest = self._before.get(window.width), self.starts[begin], self.starts[last]
        if merged is None or merged[0] != first or merged[1] != newest:
            before = [column.merge(columns[column.name][begin:last]) for column in window.merged]
            self._before[window.width] = merged = (first, newest, before)
        return {name: [cell, columns[name][last]] for name, cell in zip(window.names, merged[2], strict=True)}

    def dump(self, tile: int) -> str:
        """Return one tile's cells as JSON, by column; null for an empty one."""
        i = bisect_left(self.starts, tile)
        return _encode({c.name: c.dump(self.columns[c.name][i]) for c in self.plan.columns})

    @classmethod
    def load(cls, plan: Plan, tiles: Mapping[str, str]) -> Entity:
        """Return the entity whose tiles were dumped; `tiles` is by start in ms. Raises ValueError on anything else."""
        entity = cls(plan)
        order = sorted(tiles, key=int)
        try:  # once for all: a call each costs more
            held = _decoder(tuple(entity.columns))(f"[{','.join([tiles[start] for start in order])}]")
        except (msgspec.MsgspecError, RecursionError) as error:
            raise ValueError(f"its tiles are not of the columns {sorted(entity.columns)}: {error}") from error
        if len(held) != len(order):
            raise ValueError(f"it has {len(held)} tiles where {len(order)} were stored")
        entity.starts = [int(start) // plan.every for start in order]
        for number, column in enumerate(plan.columns):
            name = column.name
            try:
                entity.columns[name] = column.load_all(map(attrgetter(f"_{number}"), held))
            except Exception as error:  # a column of a pipeline's own may raise anything
                raise ValueError(f"column {name!r} can't be read: {type(error).__name__}: {error}") from error
        return entity
