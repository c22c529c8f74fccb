"""Event-time tiles: what a view keeps of each entity, as columns of floats that built-in functions can sum.

An event lands in the tile of its own event time, whenever it comes; asking at time t looks at the tile of t and those
before it only. So what a vector holds does not depend on the order in which events of different tiles arrived.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping
from typing import Any

from tidemill.durations import milliseconds
from tidemill.featurizer.aggregates import Aggregate, Window
from tidemill.pipeline import View

_EMPTY = {
    "n": 0.0,
    "sum": 0.0,
    "m2": 0.0,
    "min": math.inf,
    "max": -math.inf,
    "last": 0.0,
    "last_at": -math.inf,
    "time": -math.inf,
}


class Plan:
    """A view, compiled: which columns its tiles have, how an event changes them, how its features read them."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.every = milliseconds(view.every)
        self.names = view.features
        columns: dict[str, None] = dict.fromkeys(("n", "time"))
        for aggregate in view.flat:
            columns.update(dict.fromkeys(aggregate.columns))
        for column in list(columns):
            kind, _, over = column.partition(":")
            if kind == "m2":  # Welford's update needs the running mean
                columns.update(dict.fromkeys((f"n:{over}", f"sum:{over}")))
            if kind == "last":
                columns[f"last_at:{over}"] = None
        self.columns = tuple(columns)
        self.fields = tuple(dict.fromkeys(c.partition(":")[2] for c in columns if ":" in c))
        self.empty = [_EMPTY[column.partition(":")[0]] for column in self.columns]
        self.longest = max((a.window_ms for a in view.flat), default=self.every)
        self.expires = milliseconds(view.expires) if view.expires else 0
        self.tiles_kept = max(1, self.longest // self.every)
        #: What stored tiles must have been made with to be read again.
        self.shape = f"{self.tiles_kept} tiles of {self.every} ms"
        self._by_window: dict[int, list[tuple[int, Aggregate]]] = {}
        for index, aggregate in enumerate(view.flat):
            self._by_window.setdefault(aggregate.window_ms // self.every, []).append((index, aggregate))
        used = {w: tuple({c for _, a in members for c in a.columns}) for w, members in self._by_window.items()}
        self._windows = [(w, used[w], tuple(members)) for w, members in self._by_window.items()]
        self.updates = tuple(self._update(field) for field in self.fields)
        #: What is said of an entity that was never seen.
        self.nothing = dict(zip(self.names, self.read(Entity(self), 0), strict=True))

    def _update(self, field: str) -> tuple[str, Callable[[dict[str, list[float]], int, float, float], None]]:
        """Return (field, function that adds a value to tile i), doing only what the declared columns need."""
        has = {c.partition(":")[0] for c in self.columns if c.endswith(f":{field}")}
        n, s, m2 = f"n:{field}", f"sum:{field}", f"m2:{field}"
        low, high, last, last_at = f"min:{field}", f"max:{field}", f"last:{field}", f"last_at:{field}"

        def add(tiles: dict[str, list[float]], i: int, value: float, now: float) -> None:
            if "m2" in has:
                count, total = tiles[n][i], tiles[s][i]
                if count:
                    delta = value - total / count
                    tiles[m2][i] += delta * (value - (total + value) / (count + 1))
            if "n" in has:
                tiles[n][i] += 1.0
            if "sum" in has:
                tiles[s][i] += value
            if "min" in has and value < tiles[low][i]:
                tiles[low][i] = value
            if "max" in has and value > tiles[high][i]:
                tiles[high][i] = value
            if "last" in has and now >= tiles[last_at][i]:
                tiles[last][i] = value
                tiles[last_at][i] = now

        return field, add

    def read(self, entity: Entity, now: int) -> list[float | None]:
        """Return the features, in declared order, as of event time `now` (ms)."""
        out: list[float | None] = [None] * len(self.names)
        starts = entity.starts
        tile = now // self.every
        stop = bisect_right(starts, tile)
        for width, columns, members in self._windows:
            begin = bisect_left(starts, tile - width + 1, 0, stop)
            if begin == stop:
                for index, aggregate in members:
                    if aggregate.kind == "count":
                        out[index] = 0.0
                continue
            window: Window = {c: entity.columns[c][begin:stop] for c in columns}
            for index, aggregate in members:
                value = aggregate.read(window, now)
                # A sum may overflow although every value was finite; a model must never see that.
                out[index] = value if value is None or value - value == 0 else None
        return out


class Entity:
    """The tiles of one entity: sorted starts (in tiles since the epoch) and, beside them, one list per column."""

    __slots__ = ("columns", "starts")

    def __init__(self, plan: Plan) -> None:
        self.starts: list[int] = []
        self.columns: dict[str, list[float]] = {column: [] for column in plan.columns}

    @property
    def time(self) -> int:
        """The event time of its latest event, ms."""
        return int(self.columns["time"][-1])

    def add(self, plan: Plan, now: int, event: Mapping[str, Any]) -> tuple[int, list[int]] | None:
        """Add an event of time `now` (ms). Returns (its tile, tiles dropped for age), or None where it came too late."""
        tile = now // plan.every
        starts, columns = self.starts, self.columns
        if starts and tile == starts[-1]:
            i = len(starts) - 1
        else:
            if starts and tile <= starts[-1] - plan.tiles_kept:
                return None
            i = bisect_left(starts, tile)
            if i == len(starts) or starts[i] != tile:
                starts.insert(i, tile)
                for column, empty in zip(columns.values(), plan.empty, strict=True):
                    column.insert(i, empty)
        columns["n"][i] += 1.0
        if now > columns["time"][i]:
            columns["time"][i] = now
        for field, add in plan.updates:
            value = event[field]
            if value is not None:
                add(columns, i, value, now)
        return tile, self._drop(starts[-1] - plan.tiles_kept)

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

    def dump(self, tile: int) -> str:
        """Return one tile's columns as JSON."""
        i = bisect_left(self.starts, tile)
        return json.dumps(
            {c: None if v[i] == _EMPTY[c.partition(":")[0]] else v[i] for c, v in self.columns.items()},
            separators=(",", ":"),
        )

    @classmethod
    def load(cls, plan: Plan, tiles: Mapping[str, str]) -> Entity:
        """Return the entity whose tiles were dumped; `tiles` is by start in ms. Raises ValueError on other columns."""
        entity = cls(plan)
        for start in sorted(tiles, key=int):
            held = json.loads(tiles[start])
            if held.keys() != entity.columns.keys():
                raise ValueError(f"tile {start} has columns {sorted(held)} where {sorted(entity.columns)} are declared")
            entity.starts.append(int(start) // plan.every)
            for (column, values), empty in zip(entity.columns.items(), plan.empty, strict=True):
                values.append(empty if held[column] is None else held[column])
        return entity
