"""What every aggregate promises."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

import pandas as pd

from tidemill.aggregates.base import Aggregate
from tidemill.declare.view import View
from tidemill.features.tiles import Entity, Plan

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

#: A tile, in ms, and the tiles in the window of 10 minutes that a checked aggregate has.
EVERY, TILES = 60_000, 10

#: One event: its time (ms), a number `x` and a text `s`, each of which may be missing.
Sent = tuple[int, "float | None", "str | None"]

#: The plain definition: what the aggregate says of the window's events (columns t, x, s, in the order in which they
#: came) at a time.
Definition = Callable[[pd.DataFrame, int], "float | None"]


def check_aggregate(
    aggregate: Aggregate | Sequence[Aggregate], definition: Definition, rel: float = 0.0, max_cell_chars: int = 60
) -> None:
    """Check that an aggregate equals its plain definition, whatever the order of events, and that its tiles stay small.

    Parameters
    ----------
    aggregate
        Over a window of "10m", of the number `x` or the text `s`.
    definition
        What it should say: of a frame of the window's events (columns `t` in ms, `x` and `s`) at a time in ms; None for
        nothing.
    rel
        The relative error allowed; 0 where the arithmetic is exact.
    max_cell_chars
        The characters of one cell as JSON, whatever the tile has seen.

    Raises AssertionError. Needs Hypothesis.

    Examples
    --------
    >>> from tidemill import aggregates
    >>> expected = lambda events, now: None if events.x.isna().all() else events.x.max()
    >>> check_aggregate(aggregates.max("x", "10m"), expected)
    """
    check_definition(aggregate, definition, rel)
    check_order(aggregate, 1e-9 if rel else 0)
    check_size(aggregate, max_cell_chars)


def check_definition(aggregate: Aggregate | Sequence[Aggregate], definition: Definition, rel: float) -> None:
    """Check it on events out of order, late and doubled; and that what is stored of it is exact."""
    from hypothesis import given, settings
    from hypothesis import strategies as st

    plan = plan_of(aggregate)

    @settings(max_examples=40, deadline=None)
    @given(streams(), st.integers(0, 16 * EVERY))
    def check(sent: list[Sent], asked: int) -> None:
        entity = Entity(plan)
        kept: list[Sent] = []
        for t, x, s in sent:
            event = {"x": x, "s": s}
            if entity.add(plan, t, event) is not None:
                kept.append((t, x, s))
            assert event == {"x": x, "s": s}, "an event is never changed"
            newest = max(t // EVERY for t, _, _ in kept)
            kept = [e for e in kept if e[0] // EVERY > newest - plan.tiles_kept]
            assert len(entity.starts) <= plan.tiles_kept, "memory is bounded"
        (value,) = plan.read(entity, asked)
        inside = frame(kept, asked)
        assert_same(value, definition(inside, asked) if len(inside) else plan.view.flat[0].empty, rel)
        tiles = tiles_of(entity)
        for text in tiles.values():
            json.loads(text, parse_constant=_no_constant)
        again = Entity.load(plan, tiles)
        assert again.starts == entity.starts
        assert again.columns == entity.columns, "what is stored is exact"
        assert plan.read(again, asked) == [value]
        assert tiles_of(again) == tiles

    check()


def check_order(aggregate: Aggregate | Sequence[Aggregate], rel: float) -> None:
    """Check that the order in which events come does not matter."""
    from hypothesis import given, settings
    from hypothesis import strategies as st

    plan = plan_of(aggregate)
    events_of_a_window = st.tuples(st.integers(0, TILES * EVERY - 1), values())

    @settings(max_examples=15, deadline=None)
    @given(st.lists(events_of_a_window, max_size=30, unique_by=lambda e: e[0]), st.randoms())
    def check(events: list[Any], rng: random.Random) -> None:
        one, other = Entity(plan), Entity(plan)
        for t, (x, s) in events:
            one.add(plan, t, {"x": x, "s": s})
        for t, (x, s) in rng.sample(events, len(events)):
            other.add(plan, t, {"x": x, "s": s})
        (value,), (expected,) = plan.read(one, TILES * EVERY - 1), plan.read(other, TILES * EVERY - 1)
        assert_same(value, expected, rel)

    check()


def check_size(aggregate: Aggregate | Sequence[Aggregate], max_cell_chars: int) -> None:
    """Check that a tile stays small and its value finite, however much it has seen."""
    plan = plan_of(aggregate)
    entity = Entity(plan)
    for number, event in enumerate(many_events()):
        entity.add(plan, number % EVERY, event)
    for name, cell in json.loads(entity.dump(0)).items():
        assert len(json.dumps(cell)) <= max_cell_chars, name
    (value,) = plan.read(entity, EVERY - 1)
    assert value is not None
    assert math.isfinite(value)


@cache
def many_events() -> list[dict[str, Any]]:
    """A hundred thousand events of one tile: numbers of every size and sign, hardly two the same."""
    rng = random.Random(3)  # noqa: S311  no secret
    return [
        {"x": math.copysign(10 ** rng.uniform(-10, 15), rng.random() - 0.5), "s": f"text {i}"} for i in range(100_000)
    ]


def values() -> SearchStrategy[tuple[float | None, str | None]]:
    """Make up an event's number and text."""
    from hypothesis import strategies as st

    eighths = st.integers(-8_000, 8_000).map(lambda eighths: eighths / 8)  # sums of these are exact in any order
    return st.tuples(
        st.none() | eighths | st.sampled_from([0.0, -0.0, 1.0]), st.none() | st.sampled_from(["", "a", "é", "b" * 50])
    )


def streams() -> SearchStrategy[list[Sent]]:
    """Make up events in the order in which they come; some come again, at once or later."""
    from hypothesis import strategies as st

    def sent(drawn: tuple[list[tuple[int, tuple[float | None, str | None]]], list[tuple[int, int]]]) -> list[Sent]:
        events, again = drawn
        made: list[Sent] = [(t, x, s) for t, (x, s) in events]
        for which, place in again:
            made.insert(min(place, len(made)), made[which % len(made)])
        return made

    times = st.integers(0, 14 * EVERY) | st.sampled_from([0, EVERY - 1, EVERY])
    return st.tuples(
        st.lists(st.tuples(times, values()), min_size=1, max_size=40),
        st.lists(st.tuples(st.integers(0, 39), st.integers(0, 60)), max_size=5),
    ).map(sent)


def plan_of(aggregate: Aggregate | Sequence[Aggregate]) -> Plan:
    """Return the plan of a view with this aggregate alone."""
    return Plan(View("e", every="1m", aggregates=[aggregate]))


def frame(kept: Sequence[Sent], now: int) -> pd.DataFrame:
    """Return the events in the tile of `now` and the nine before it."""
    inside = [e for e in kept if now // EVERY - TILES < e[0] // EVERY <= now // EVERY]
    return pd.DataFrame(inside, columns=["t", "x", "s"]).astype({"t": "int64", "x": "float64", "s": "object"})


def assert_same(value: float | None, expected: Any, rel: float) -> None:
    """Assert that a value is the expected one, but for a relative error."""
    if expected is None or value is None or rel == 0:
        assert value == expected
    else:
        assert abs(value - expected) <= rel * abs(expected) + 1e-9


def tiles_of(entity: Entity) -> dict[str, str]:
    """Return an entity's tiles as they are stored."""
    return {str(tile * EVERY): entity.dump(tile) for tile in entity.starts}


def _no_constant(name: str) -> NoReturn:
    raise AssertionError(f"{name} is not strict JSON")
