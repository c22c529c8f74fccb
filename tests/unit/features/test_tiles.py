"""Tiles: what is too late, what is dropped, what is stored, whatever the aggregates are (tests/contracts/test_aggregates.py)."""

from __future__ import annotations

import json
import math
import pickle
from collections import Counter

import pandas as pd
import pytest

from tidemill import View, aggregates
from tidemill.durations import milliseconds
from tidemill.features.tiles import Entity, Plan
from tidemill.features.views import Views

EVERY = 60_000
SUM = aggregates.sum("x", "10m")


def plan(*keep: list[aggregates.Aggregate]) -> Plan:
    return Plan(View("e", every="1m", aggregates=keep))


def test_an_event_older_than_any_window_is_refused_and_changes_nothing() -> None:
    entity = Entity(sums := plan(SUM))
    entity.add(sums, 100 * EVERY, {"x": 1.0})
    before = entity.dump(100)
    assert entity.add(sums, 90 * EVERY, {"x": 5.0}) is None
    assert entity.add(sums, 91 * EVERY, {"x": 5.0}) is not None
    assert entity.dump(100) == before


def test_tiles_out_of_reach_are_dropped_and_named() -> None:
    entity = Entity(sums := plan(SUM))
    assert entity.add(sums, 5 * EVERY, {"x": 1.0}) == (5, [])
    assert entity.add(sums, 3 * EVERY, {"x": 1.0}) == (3, [])
    assert entity.add(sums, 14 * EVERY, {"x": 1.0}) == (14, [3])
    assert entity.add(sums, 99 * EVERY, {"x": 1.0}) == (99, [5, 14])
    assert entity.starts == [99]
    assert all(len(cells) == 1 for cells in entity.columns.values())


def test_what_is_kept_without_a_store_is_bounded_by_windows_and_entities_that_have_not_expired() -> None:
    view = View("e", every="1m", aggregates=[aggregates.count("10m")], expires="1h")
    views = Views([Plan(view)], {}, Counter())
    views.assign(0, 0)
    (state,) = views.states[0]
    sizes = []
    for minute in range(6_000):
        for entity in ("always", f"of hour {minute // 60}"):
            assert state.add(entity, minute * EVERY, {})
        if minute in (599, 5_999):
            sizes.append(len(pickle.dumps(vars(state) | {"entities": [*state.entities], "plan": None})))
    assert sizes[1] < 1.2 * sizes[0]


def test_a_window_sees_its_own_tiles_only_and_says_what_is_empty() -> None:
    both = plan(aggregates.count("2m", "10m"), aggregates.sum("x", "2m", "10m"))
    entity = Entity(both)
    for minute in (1, 4, 5):
        entity.add(both, minute * EVERY, {"x": float(minute)})
    assert both.read(entity, 5 * EVERY) == [2.0, 3.0, 9.0, 10.0]
    assert both.read(entity, 8 * EVERY) == [0.0, 3.0, None, 10.0]
    assert both.read(entity, 3 * EVERY) == [0.0, 1.0, None, 1.0]
    assert both.read(entity, 99 * EVERY) == [0.0, 0.0, None, None]


def test_a_sum_that_overflows_is_missing_not_infinite_and_its_tile_is_json() -> None:
    made = plan(
        SUM,
        aggregates.mean("x", "10m"),
        aggregates.std("x", "10m"),
        aggregates.decayed_mean("x", "1m", "10m"),
        aggregates.ratio(aggregates.count("10m"), SUM),
    )
    entity = Entity(made)
    for t in range(8):
        entity.add(made, t * EVERY // 4, {"x": 1e308})
    found = made.read(entity, 4 * EVERY)
    assert all(value is None or math.isfinite(value) for value in found)
    assert found[0] is found[-1] is None
    tiles = {str(tile * EVERY): entity.dump(tile) for tile in entity.starts}
    for text in tiles.values():
        json.loads(text, parse_constant=pytest.fail)
    again = Entity.load(made, tiles)
    assert str(again.columns) == str(entity.columns)  # by name, for NaN is not equal to itself
    assert made.read(again, 4 * EVERY) == found


def test_the_deviation_does_not_cancel_beside_a_large_mean() -> None:
    entity = Entity(made := plan(aggregates.std("x", "10m")))
    values = [1e9 + x for x in (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)]
    for index, x in enumerate(values):
        entity.add(made, index * EVERY // 2, {"x": x})
    assert made.read(entity, 2 * EVERY)[0] == pytest.approx(pd.Series(values).std(), rel=1e-9)


@pytest.mark.parametrize(
    "text",
    ['{"n":1.0,"time":5}', '{"n":1.0,"time":5,"n:x":1.0,"std:x":2.0}', '{"n":1.0,"time":5,"n:x":1.0,"std:x":[1.0]}', "{"],
)  # fmt: skip
def test_a_tile_of_another_declaration_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"columns|can't be read|Expecting"):
        Entity.load(plan(aggregates.mean("x", "10m"), aggregates.std("x", "10m")), {"0": text})


@pytest.mark.parametrize("text", ["", "0m", "1", "m", "1 m", "-1m", "1.5h", "1w"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        milliseconds(text)
