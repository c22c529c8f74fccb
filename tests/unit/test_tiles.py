"""Every aggregate equals its plain definition, whatever the order in which events come."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill import View, aggregates
from tidemill.durations import milliseconds
from tidemill.featurizer.tiles import Entity, Plan

EVERY = 60_000
WINDOW = 10


def tile_of(ms: int) -> int:
    return ms // EVERY


def plain(kind: str, frame: pd.DataFrame, now: int) -> float | None:
    """The definition: over the events in the tile of `now` and the nine before it."""
    inside = frame[(frame.t // EVERY <= tile_of(now)) & (frame.t // EVERY > tile_of(now) - WINDOW)]
    values = inside.x.dropna()
    if kind == "count":
        return float(len(inside))
    if kind == "time_since_last":
        return max(0.0, (now - inside.t.max()) / 1000) if len(inside) else None
    if not len(values):
        return None
    if kind == "std":
        return values.std(ddof=1) if len(values) > 1 else None
    if kind == "last":
        there = inside.dropna(subset="x")
        return there[there.t == there.t.max()].x.iloc[-1]
    return {"sum": values.sum, "mean": values.mean, "min": values.min, "max": values.max}[kind]()


CASES = {
    "count": aggregates.count("10m"),
    "sum": aggregates.sum("x", "10m"),
    "mean": aggregates.mean("x", "10m"),
    "std": aggregates.std("x", "10m"),
    "min": aggregates.min("x", "10m"),
    "max": aggregates.max("x", "10m"),
    "last": aggregates.last("x", "10m"),
    "time_since_last": aggregates.time_since_last("10m"),
}
EXACT = {"count", "min", "max", "last", "time_since_last"}
EVENTS = st.lists(
    st.tuples(st.integers(0, 14 * EVERY), st.none() | st.floats(-1e6, 1e6).map(lambda x: round(x, 3))),
    min_size=1,
    max_size=40,
)


def test_every_aggregate_is_in_the_suite() -> None:
    assert set(CASES) == set(aggregates.__all__)


@pytest.mark.parametrize("kind", CASES)
def test_it_equals_its_definition_on_events_out_of_order(kind: str) -> None:
    plan = Plan(View("e", every="1m", aggregates=[CASES[kind]]))

    @settings(max_examples=120, deadline=None)
    @given(EVENTS, st.integers(0, 16 * EVERY))
    def check(events: list, asked: int) -> None:
        entity, kept = Entity(plan), []
        given_events = [dict(event) for event in ({"x": x} for _, x in events)]
        for (t, x), event in zip(events, given_events, strict=True):
            if entity.add(plan, t, event) is not None:
                kept.append((t, x))
            assert event == {"x": x}, "an event is never changed"
            newest = max(tile_of(t) for t, _ in kept)
            kept = [(t, x) for t, x in kept if tile_of(t) > newest - plan.tiles_kept]
            assert len(entity.starts) <= plan.tiles_kept, "memory is bounded"
        frame = pd.DataFrame(kept, columns=["t", "x"]).astype({"x": "float64"})
        expected = plain(kind, frame, asked)
        (found,) = plan.read(entity, asked)
        if expected is None or found is None or kind in EXACT:
            assert found == expected
        else:
            assert found == pytest.approx(expected, rel=1e-9, abs=1e-6 if kind == "std" else 1e-9)
        again = Entity.load(plan, {str(tile * EVERY): entity.dump(tile) for tile in entity.starts})
        assert again.starts == entity.starts
        assert again.columns == entity.columns, "what is stored is exact"
        assert plan.read(again, asked) == [found]

    check()


@pytest.mark.parametrize("kind", CASES)
def test_nothing_known_is_nothing_said(kind: str) -> None:
    plan = Plan(View("e", every="1m", aggregates=[CASES[kind]]))
    assert plan.read(Entity(plan), 5) == [0.0 if kind == "count" else None]


def test_an_event_older_than_any_window_is_refused_and_changes_nothing() -> None:
    plan = Plan(View("e", every="1m", aggregates=[CASES["sum"]]))
    entity = Entity(plan)
    entity.add(plan, 100 * EVERY, {"x": 1.0})
    before = entity.dump(100)
    assert entity.add(plan, 90 * EVERY, {"x": 5.0}) is None
    assert entity.add(plan, 91 * EVERY, {"x": 5.0}) is not None
    assert entity.dump(100) == before


def test_a_sum_that_overflows_is_missing_not_infinite() -> None:
    plan = Plan(View("e", every="1m", aggregates=[CASES["sum"], CASES["mean"], CASES["std"]]))
    entity = Entity(plan)
    for t in range(4):
        entity.add(plan, t * EVERY, {"x": 1e308})
    assert all(value is None or math.isfinite(value) for value in plan.read(entity, 4 * EVERY))


def test_the_deviation_does_not_cancel_beside_a_large_mean() -> None:
    plan = Plan(View("e", every="1m", aggregates=[CASES["std"]]))
    entity = Entity(plan)
    values = [1e9 + x for x in (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)]
    for index, x in enumerate(values):
        entity.add(plan, index * EVERY // 2, {"x": x})
    assert plan.read(entity, 2 * EVERY)[0] == pytest.approx(pd.Series(values).std(), rel=1e-9)


@pytest.mark.parametrize("text", ["", "0m", "1", "m", "1 m", "-1m", "1.5h", "1w"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        milliseconds(text)
