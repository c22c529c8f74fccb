"""One contract for every aggregate: it equals its plain definition, whatever the order in which events come."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river_in_memory import flights

from tidemill import Monitor, View, aggregates, load
from tidemill.aggregates.base import MAX_TIME_MS, TIME, Aggregate, Column, columns_of
from tidemill.aggregates.distinct import digest
from tidemill.errors import DeclarationError
from tidemill.features.tiles import Entity, Plan
from tidemill.stages.featurizer.service import Featurizer
from tidemill.stream.api import Position, TopicPartition
from tidemill.stream.memory import MemoryRecord
from tidemill.testing.aggregates import (
    EVERY,
    assert_same,
    check_definition,
    check_order,
    check_size,
    many_events,
    plan_of,
    streams,
    tiles_of,
)
from tidemill.wire.records import Records

pytestmark = pytest.mark.slow

PACKAGE = Path(aggregates.__file__).parent


@dataclass(frozen=True)
class Case:
    """An aggregate and its definition over the window's events: columns t (ms), x (a number), s (a text), as they came."""

    keep: list[Aggregate]
    definition: Callable[[pd.DataFrame, int], Any]
    rel: float = 0.0
    """Relative error allowed; 0 where the arithmetic is exact."""
    largest: int = 60
    """Characters of one cell as JSON, whatever the tile has seen."""


def valued(field: str, definition: Callable[[pd.Series], Any], least: int = 1) -> Callable[[pd.DataFrame, int], Any]:
    def of(inside: pd.DataFrame, _: int) -> Any:
        values = inside[field].dropna()
        return definition(values) if len(values) >= least else None

    return of


def lasting(inside: pd.DataFrame, now: int) -> float | None:
    return max(0.0, (now - inside.t.max()) / 1000) if len(inside) else None


def earliest(inside: pd.DataFrame, _: int) -> float | None:
    there = inside.dropna(subset="x")
    return there.sort_values("t", kind="stable").x.iloc[0] if len(there) else None


def latest(inside: pd.DataFrame, _: int) -> float | None:
    there = inside.dropna(subset="x")
    return there.sort_values("t", kind="stable").x.iloc[-1] if len(there) else None


def decayed(inside: pd.DataFrame, now: int) -> float | None:
    there = inside.dropna(subset="x")
    weights = 2.0 ** -((now - there.t) / 120_000)
    return (weights * there.x).sum() / weights.sum() if len(there) else None


def shrunk(inside: pd.DataFrame, _: int) -> float:
    """As if five more values had been 0.125."""
    values = [*inside.x.dropna(), *[0.125] * 5]
    return sum(values) / len(values)


def sum_by_count(inside: pd.DataFrame, _: int) -> float | None:
    return inside.x.sum() / len(inside) if inside.x.notna().any() else None


def lower(q: float) -> Callable[[pd.Series], float]:
    return lambda values: values.quantile(q, interpolation="lower")


def share(values: pd.Series) -> float:
    return values.value_counts().max() / len(values)


def distinct(inside: pd.DataFrame, _: int) -> float:
    return float(inside.x.nunique())


BINS, HASHES, COUNTERS = 6_453 * 16, 256 * 16 + 2, 64 * 40
CASES = {
    "count": Case(aggregates.count("10m"), lambda inside, _: float(len(inside))),
    "decayed_mean": Case(aggregates.decayed_mean("x", "2m", "10m"), decayed, rel=1e-9, largest=90),
    "distinct": Case(aggregates.distinct("x", "10m"), distinct, largest=HASHES),
    "distinct of text": Case(aggregates.distinct("s", "10m"), lambda e, _: float(e.s.nunique()), largest=HASHES),
    "first": Case(aggregates.first("x", "10m"), earliest),
    "last": Case(aggregates.last("x", "10m"), latest),
    "max": Case(aggregates.max("x", "10m"), valued("x", pd.Series.max)),
    "mean": Case(aggregates.mean("x", "10m"), valued("x", pd.Series.mean)),
    "min": Case(aggregates.min("x", "10m"), valued("x", pd.Series.min)),
    "quantile": Case(aggregates.quantile("x", 0.9, "10m"), valued("x", lower(0.9)), rel=0.01, largest=BINS),
    "quantile 0": Case(aggregates.quantile("x", 0, "10m"), valued("x", lower(0)), rel=0.01, largest=BINS),
    "quantile of a half": Case(aggregates.quantile("x", 0.5, "10m"), valued("x", lower(0.5)), rel=0.01, largest=BINS),
    "rate": Case(aggregates.rate("10m"), lambda inside, _: len(inside) / 600),
    "ratio": Case(aggregates.ratio(aggregates.sum("x", "10m"), aggregates.count("10m")), sum_by_count),
    "shrunk_mean": Case(aggregates.shrunk_mean("x", 0.125, 5, "10m"), shrunk),
    "std": Case(aggregates.std("x", "10m"), valued("x", pd.Series.std, least=2), rel=1e-9, largest=90),
    "sum": Case(aggregates.sum("x", "10m"), valued("x", pd.Series.sum)),
    "time_since_last": Case(aggregates.time_since_last("10m"), lasting),
    "top_share": Case(aggregates.top_share("x", "10m"), valued("x", share), largest=COUNTERS),
    "top_share of text": Case(aggregates.top_share("s", "10m"), valued("s", share), largest=COUNTERS),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)

STREAMS = streams()


def test_every_aggregate_and_every_file_is_in_the_suite() -> None:
    assert {name.partition(" ")[0] for name in CASES} == set(aggregates.__all__)
    assert {p.stem for p in PACKAGE.glob("*.py")} - {"__init__", "base"} == set(aggregates.__all__)
    assert [p for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"] == []


@pytest.mark.slow
@every_case
def test_it_equals_its_definition_on_events_out_of_order_late_and_doubled(case: Case) -> None:
    check_definition(case.keep, case.definition, case.rel)


@pytest.mark.slow
@every_case
def test_the_order_of_arrival_does_not_matter(case: Case) -> None:
    check_order(case.keep, 1e-9 if case.rel else 0)


STORED = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(
    [MAX_TIME_MS, -MAX_TIME_MS, MAX_TIME_MS + 1, -MAX_TIME_MS - 1, 10**400, "inf", "nan", "1", "ab", "", {}, {"1": 2}]
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(STORED | st.lists(STORED, max_size=3), max_size=4), st.data())
def test_cells_are_read_together_as_each_is_by_itself(stored: list[Any], data: st.DataObject) -> None:
    columns = columns_of([aggregate for case in CASES.values() for aggregate in case.keep])
    column = data.draw(st.sampled_from([*columns.values(), TIME]))

    def outcome(read: Callable[[], list[Any]]) -> Any:
        try:
            return [(type(cell), repr(cell)) for cell in read()]
        except Exception as error:  # whatever somebody else has put there
            return type(error)

    one_by_one = outcome(lambda: [column.fresh() if one is None else column.load(one) for one in stored])
    assert outcome(lambda: column.load_all(iter(stored))) == one_by_one


@every_case
def test_nothing_known_is_what_it_says_for_nothing(case: Case) -> None:
    plan = plan_of(case.keep)
    (aggregate,) = case.keep
    assert plan.read(Entity(plan), 5) == [aggregate.empty]
    entity = Entity(plan)
    entity.add(plan, 0, {"x": None, "s": None})
    nothing = {"count": 1.0, "rate": 1 / 600, "time_since_last": 0.005}
    assert plan.read(entity, 5) == [nothing.get(aggregate.kind, aggregate.empty)], "no value is not 0"
    for column in aggregate.columns:
        assert column.dump(column.fresh()) is None


@every_case
def test_a_tile_stays_small_however_much_it_has_seen(case: Case) -> None:
    check_size(case.keep, case.largest)


@pytest.mark.slow
@pytest.mark.parametrize("many", [255, 256, 300, 2_000, 20_000])
def test_many_different_values_are_counted_within_the_stated_error(many: int) -> None:
    """Over fixed streams of eight tiles that overlap by half: the standard error is 6.3%, and there is no bias."""
    plan = plan_of(CASES["distinct"].keep)
    errors = []
    for seed in range(3 if many > 10_000 else 12):
        entity = Entity(plan)
        for i in range(many):
            entity.add(plan, i * 8 // many * EVERY, {"x": float(seed * 1_000_000 + i)})
            if i % 2:
                entity.add(plan, (i * 8 // many + 1) * EVERY, {"x": float(seed * 1_000_000 + i)})
        (found,) = plan.read(entity, 9 * EVERY)
        assert found is not None
        errors.append(found / many - 1)
    if many < 256:
        assert errors == [0] * len(errors)
    assert all(abs(error) < 3 * 0.063 for error in errors)
    assert abs(sum(errors) / len(errors)) < 3 * 0.063 / len(errors) ** 0.5
    assert sum(error**2 for error in errors) / len(errors) < (1.5 * 0.063) ** 2


def test_equal_values_are_one_value_and_others_are_not() -> None:
    assert digest(1) == digest(1.0)
    assert digest(0.0) == digest(-0.0)
    assert len({digest(value) for value in (2**60, 2**60 + 1, 0.5, "0.5 ", "", "\ud800", False, True)}) == 8


@pytest.mark.parametrize("seed", range(5))
def test_a_top_share_of_many_values_is_too_low_by_at_most_a_65th(seed: int) -> None:
    plan = plan_of(CASES["top_share"].keep)
    rng = random.Random(seed)
    values = [float(int(rng.paretovariate(0.4 + 0.2 * seed)) % 5_000) for _ in range(10_000)]
    entity = Entity(plan)
    for i, x in enumerate(values):
        entity.add(plan, i % 5 * EVERY, {"x": x})
    (found,) = plan.read(entity, 5 * EVERY)
    assert found is not None
    assert share(pd.Series(values)) - 1 / 65 <= found <= share(pd.Series(values))


@pytest.mark.slow
@pytest.mark.parametrize("q", [0.0, 0.01, 0.5, 0.99, 0.999, 1.0])
def test_a_quantile_of_values_of_all_sizes_is_within_one_per_cent(q: float) -> None:
    plan = Plan(View("e", every="1m", aggregates=[aggregates.quantile("x", q, "10m")]))
    entity = Entity(plan)
    events = many_events()[:20_000]
    for i, event in enumerate(events):
        entity.add(plan, i % 10 * EVERY, event)
    (found,) = plan.read(entity, 9 * EVERY)
    assert_same(found, lower(q)(pd.Series([event["x"] for event in events])), 0.01)


@pytest.mark.parametrize("values", [[2**63 - 1, -(2**63), 7], [1e15, -1e15, 1e-9], [9.9e-10, 0.0, -9.9e-10]])
def test_quantiles_of_the_largest_and_the_smallest_numbers(values: list[float]) -> None:
    plan = Plan(View("e", every="1m", aggregates=[aggregates.quantile("x", q, "10m") for q in (0, 0.5, 1)]))
    entity = Entity(plan)
    for x in values:
        entity.add(plan, 0, {"x": x})
    for found, expected in zip(plan.read(entity, 0), sorted(values), strict=True):
        assert_same(found, float(expected), 0.01 + 1e-12)


def test_a_half_life_short_beside_the_tile_leaves_the_latest() -> None:
    plan = Plan(View("e", every="1h", aggregates=[aggregates.decayed_mean("x", "1ms", "1d")]))
    entity = Entity(plan)
    for t, x in ((3_000_000, 5.0), (0, 1.0), (7_000_000, 2.0), (7_000_001, 8.0)):
        entity.add(plan, t, {"x": x})
    assert plan.read(entity, 23 * 3_600_000) == [pytest.approx(6.0)]


def test_features_are_called_by_what_they_are() -> None:
    made = [
        *aggregates.count("1h", "3h"), *aggregates.rate("1h"), *aggregates.mean("x", "1h"), *aggregates.quantile("x", 0.9, "1h"),
        *aggregates.quantile("x", 0.999, "1h"), *aggregates.quantile("x", 1, "1h"), *aggregates.quantile("x", 0.5, "1h"),
        *aggregates.decayed_mean("x", "30m", "3h"), *aggregates.top_share("x", "1h"), *aggregates.time_since_last("1h"),
        *aggregates.ratio(aggregates.sum("x", "60m"), aggregates.rate("1h")), *aggregates.shrunk_mean("label", 0.2, 20, "3h"),
    ]  # fmt: skip
    assert [one.name for one in made] == [
        "count_1h", "count_3h", "rate_1h", "mean_x_1h", "p90_x_1h", "p99_9_x_1h", "p100_x_1h", "p50_x_1h", "decayed_mean_x_30m_3h",
        "top_share_x_1h", "time_since_last_1h", "sum_x_60m_per_rate_1h", "shrunk_mean_label_3h",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: aggregates.quantile("x", 0.9), r"quantile\('x', 0.9, '1h'\)"),
        (lambda: aggregates.rate(), r"rate\('1h'\)"),
        (lambda: aggregates.distinct("x"), r"distinct\('x', '1h'\)"),
        (lambda: aggregates.quantile("x", 90, "1h"), "from 0 to 1"),
        (lambda: aggregates.quantile("x", "1h"), "from 0 to 1"),
        (lambda: aggregates.quantile("x", math.nan, "1h"), "from 0 to 1"),
        (lambda: aggregates.decayed_mean("x", "soon", "1h"), "soon"),
        (lambda: aggregates.decayed_mean("x", "1h", "soon"), "soon"),
        (lambda: aggregates.ratio(aggregates.count("1h", "3h"), aggregates.count("1h")), "one aggregate with one window"),
        (lambda: aggregates.shrunk_mean("x", 0.5, 10), r"shrunk_mean\('x', 0.5, 10, '1h'\)"),
        (lambda: aggregates.shrunk_mean("x", "1h", 10), "prior is '1h'"),
        (lambda: aggregates.shrunk_mean("x", math.nan, 10, "1h"), "prior is nan"),
        (lambda: aggregates.shrunk_mean("x", 0.5, math.inf, "1h"), "weight is inf"),
        (lambda: aggregates.shrunk_mean("x", 0.5, 0, "1h"), "weight is 0 where a number above 0"),
        (lambda: aggregates.ratio("count", aggregates.count("1h")), "'count' where one aggregate"),
        (lambda: aggregates.ratio(aggregates.count("1h"), aggregates.count("3h")), "count_1h and count_3h"),
    ],
)  # fmt: skip
def test_a_wrong_call_is_named(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_a_ratio_takes_an_aggregate_or_a_list_of_one_and_ratios_too() -> None:
    one = aggregates.count("10m")
    assert aggregates.ratio(one, one) == aggregates.ratio(one[0], (one[0],))
    deep = aggregates.ratio(aggregates.ratio(aggregates.sum("x", "10m"), one), one)
    plan = Plan(View("e", every="1m", aggregates=deep))
    entity = Entity(plan)
    for x in (4.0, 8.0):
        entity.add(plan, 0, {"x": x})
    assert plan.read(entity, 0) == [3.0]


def test_a_shrunk_mean_goes_from_what_is_expected_to_what_was_seen() -> None:
    plan = Plan(View("e", every="1m", aggregates=aggregates.shrunk_mean("x", 0.2, 4, "10m")))
    assert list(plan.nothing.values()) == [0.2]
    entity, seen = Entity(plan), []
    for _ in range(12):
        entity.add(plan, 0, {"x": 1.0})
        seen.append(plan.read(entity, 0)[0])
    assert seen[0] == pytest.approx((1 + 4 * 0.2) / 5)
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx((12 + 4 * 0.2) / 16)
    assert plan.read(entity, 10 * EVERY) == [0.2], "the window has gone by"


def test_two_shrunk_means_of_one_field_and_window_need_two_views() -> None:
    keep = [aggregates.shrunk_mean("distance", prior, 4, "1h") for prior in (0.2, 0.3)]
    with pytest.raises(DeclarationError, match="shrunk_mean_distance_1h' is declared twice"):
        replace(load("flights"), views=[View("origin", every="5m", aggregates=keep)])


class Clash(Column):
    """Another column called as one of ours."""


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        (aggregates.mean("carrier", "1h"), ["mean", "carrier", "string"]),
        (aggregates.quantile("carrier", 0.5, "1h"), ["p50", "carrier", "string"]),
        (aggregates.distinct("carriage", "1h"), ["distinct", "carriage"]),
        (aggregates.ratio(aggregates.sum("carrier", "1h"), aggregates.count("1h")), ["sum", "carrier", "string"]),
        (aggregates.ratio(aggregates.count("1h"), aggregates.sum("distanze", "1h")), ["sum", "distanze"]),
        (Aggregate("mine", "", "1h", (Column("mine", "carrier"),), lambda *_: None), ["mine", "carrier", "string"]),
        (Aggregate("my own", "", "1h", (), lambda *_: None), ["my own", "letters"]),
        ([*aggregates.sum("distance", "1h"), Aggregate("mine", "", "1h", (Clash("sum:distance"),), lambda *_: None)],
         ["mine_1h", "another column", "sum:distance"]),
        (Aggregate("mine", "", "1h", (Clash("time"),), lambda *_: None), ["mine_1h", "another column", "time"]),
    ],
)  # fmt: skip
def test_what_a_declaration_cannot_mean_is_named(keep: Any, words: list[str]) -> None:
    with pytest.raises(DeclarationError) as caught:
        replace(load("flights"), views=[View("origin", every="5m", aggregates=[keep])], monitor=Monitor())
    for word in words:
        assert word in str(caught.value)


def test_text_may_be_counted() -> None:
    keep = [aggregates.distinct("carrier", "1h"), aggregates.top_share("dest", "1h")]
    keep.append(aggregates.ratio(keep[0], aggregates.count("1h")))
    replace(load("flights"), views=[View("origin", every="5m", aggregates=keep)], monitor=Monitor())


OWN = '''
from dataclasses import replace

from tidemill import Monitor, View, aggregates, load


class Beyond(aggregates.Column):
    """A cell is [values beyond the limit, values]."""

    def __init__(self, field, limit):
        super().__init__(f"beyond {limit}:{field}", field)
        self.limit = limit

    def fresh(self):
        return [0, 0]

    def add(self, cells, index, value, now):
        cells[index][0] += value > self.limit
        cells[index][1] += 1


class Nights(aggregates.Column):
    """A cell is the number of events late in the day: of the event itself, not of one field."""

    def fresh(self):
        return 0

    def add(self, cells, index, value, now):
        cells[index] += value["sched_hour"] >= 20


def share_beyond(field, limit, window):
    column = Beyond(field, limit)

    def read(window, now):
        beyond, values = map(sum, zip(*window[column.name]))
        return beyond / values if values else None

    return aggregates.Aggregate(f"share_beyond_{limit}", field, window, (column,), read)


nights = aggregates.Aggregate("nights", "", "1h", (Nights("nights"),), lambda window, now: float(sum(window["nights"])), empty=0.0)
own = replace(
    load("flights"),
    name="own",
    views=[View("origin", every="5m", aggregates=[share_beyond("distance", 1000, "1h"), nights, aggregates.count("1h")])],
    monitor=Monitor(),
)
'''


@pytest.mark.slow
def test_a_pipelines_file_may_bring_its_own(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    pipeline = load(str(tmp_path / "own.py"))
    records, step, found = Records(pipeline), Featurizer(pipeline), []
    template = flights("departure")[0].event
    events = [
        {**template, "asked_at": i * 1_000, "distance": d, "sched_hour": h}
        for i, (d, h) in enumerate([(900.0, 21), (1100.0, 5), (50.0, 5)])
    ]
    step.assign(TopicPartition("own.events.valid", 0), Position(0))
    log = [MemoryRecord("own.events.valid", records.event.encode(e), b"k", 1, None, 0, i) for i, e in enumerate(events)]
    step.process(log, lambda _, value, *__: found.append(records.features.decode(value)["vector"]))
    names = ["origin_share_beyond_1000_distance_1h", "origin_nights_1h", "origin_count_1h"]
    assert [[vector[name] for name in names] for vector in found] == [
        [None, 0.0, 0.0],
        [0.0, 1.0, 1.0],
        [0.5, 1.0, 2.0],
    ]
    plan = Plan(pipeline.views[0])
    entity = Entity(plan)
    for i, event in enumerate(events):
        entity.add(plan, i * 400_000, event)
    again = Entity.load(plan, {str(tile * plan.every): entity.dump(tile) for tile in entity.starts})
    assert again.columns == entity.columns
    assert plan.read(again, 800_000) == [pytest.approx(1 / 3), 1.0, 3.0]


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(STREAMS, st.lists(st.integers(0, 16 * EVERY), min_size=45, max_size=45))
def test_what_is_kept_of_older_tiles_is_never_out_of_date(drawn: Any, asked: list[int]) -> None:
    plan = Plan(View("e", every="1m", aggregates=[case.keep for case in CASES.values()]))
    entity = Entity(plan)
    for (t, x, s), now in zip(drawn, asked, strict=False):
        entity.add(plan, t, {"x": x, "s": s})
        for moment in (t, now, max(t, now)):
            again = Entity.load(plan, tiles_of(entity))
            assert plan.read(entity, moment) == plan.read(again, moment)


def test_what_is_kept_of_older_tiles_moves_on_with_the_window() -> None:
    plan = Plan(View("e", every="1m", aggregates=[case.keep for case in CASES.values()]))
    entity = Entity(plan)
    for number in range(100):
        now = number * EVERY // 3
        entity.add(plan, now, {"x": float(number % 7), "s": str(number % 5)})
        assert plan.read(entity, now) == plan.read(Entity.load(plan, tiles_of(entity)), now)
