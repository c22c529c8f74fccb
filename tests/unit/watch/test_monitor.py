"""The monitor's figures against plain definitions, its windows and its alerts."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from aiokafka import TopicPartition
from aiokafka.consumer.subscription_state import SubscriptionState
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread
from hypothesis import given, settings
from hypothesis import strategies as st
from join_definition import highest

from tidemill import Monitor, Pipeline, load
from tidemill.errors import DeclarationError, SettingsError
from tidemill.stream.memory import MemoryRecord
from tidemill.watch.monitor.alerts import Alerts, Thresholds, UsualRanges
from tidemill.watch.monitor.core import Core
from tidemill.watch.monitor.drift import MIN_SHARE, CategoryReference, NumberReference
from tidemill.watch.monitor.figures import Columns, FigureKey, example_figures, prediction_figures
from tidemill.watch.monitor.performance import Answers, WindowMetrics
from tidemill.watch.monitor.service import MonitorService, _FetchThread, _Tables, credentials
from tidemill.watch.monitor.windows import SourceWindows, hash_of

pytestmark = pytest.mark.slow

FLIGHTS, DELAYS = load("flights"), load("delays")
numbers = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=80).map(lambda v: np.array(v))


def answers(label: Sequence[object], score: Sequence[float]) -> Answers:
    return Answers(np.array(label), np.array(score, dtype=float), np.zeros(len(score), dtype=int))


# How good predictions were.


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 10)), min_size=2, max_size=60))
def test_rocauc_is_the_share_of_pairs_in_the_right_order(rows: list[tuple[bool, int]]) -> None:
    found = WindowMetrics(FLIGHTS).metrics(answers([y for y, _ in rows], [s / 10 for _, s in rows]))
    pairs = [(a > b) + (a == b) / 2 for y, a in rows if y for z, b in rows if not z]
    if pairs:
        assert found["ROCAUC"] == pytest.approx(sum(pairs) / len(pairs))
    else:
        assert "ROCAUC" not in found


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1, max_size=60))
def test_accuracy_log_loss_and_calibration_are_those_of_their_definitions(rows: list[tuple[bool, float]]) -> None:
    window_metrics = WindowMetrics(FLIGHTS)
    said = answers([y for y, _ in rows], [p for _, p in rows])
    found, n = window_metrics.metrics(said) | window_metrics.calibration(said), len(rows)
    assert found["Accuracy"] == pytest.approx(sum((p > 0.5) == y for y, p in rows) / n)
    clipped = [(y, min(1 - 1e-15, max(1e-15, p))) for y, p in rows]
    assert found["LogLoss"] == pytest.approx(-sum(math.log(p if y else 1 - p) for y, p in clipped) / n)
    assert found["bias"] == pytest.approx(sum(p - y for y, p in rows) / n)
    bins: dict[int, float] = {}
    for y, p in rows:
        bins[min(9, int(p * 10))] = bins.get(min(9, int(p * 10)), 0.0) + p - y
    assert found["calibration_error"] == pytest.approx(sum(map(abs, bins.values())) / n)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-500, 500).map(float), st.floats(-1e3, 1e3)), min_size=2, max_size=60))
def test_the_metrics_of_a_regression_are_rivers_own(rows: list[tuple[float, float]]) -> None:
    window_metrics = WindowMetrics(DELAYS)
    found = window_metrics.metrics(answers([y for y, _ in rows], [s for _, s in rows]))
    for metric in DELAYS.metric():
        for label, score in rows:
            metric.update(label, score)
        name = type(metric).__name__
        if name in found:
            assert found[name] == pytest.approx(metric.get(), rel=1e-6, abs=1e-6)


def test_a_gain_is_positive_where_it_is_better() -> None:
    window_metrics = WindowMetrics(FLIGHTS)
    assert window_metrics.gain("ROCAUC", 0.7, 0.6) == pytest.approx(0.1)
    assert window_metrics.gain("LogLoss", 0.5, 0.6) == pytest.approx(0.1)


@pytest.mark.parametrize(("version", "measured"), [(0, False), (7, True)])
def test_a_baseline_that_has_learned_nothing_is_no_measure(version: int, measured: bool) -> None:
    columns, rows = Columns(FLIGHTS), []
    for at in range(40):
        log = served(event_time=at)
        for score in (log["champion"], *log["challengers"]):  # type: ignore[misc]
            score["version"] = version if score["model"] == "baseline" else at
        example = {"prediction": log, "label": at % 2 == 0, "label_time": at + 1}
        rows.append(columns.example_row(example))
    frame = pd.DataFrame(rows, columns=list(columns.example))
    found = example_figures(FLIGHTS, WindowMetrics(FLIGHTS), frame, [], 10, None)
    assert any(key.name.endswith("_gain") and key.version < 0 for key in found) == measured
    assert FigureKey("LogLoss", "baseline") in found


# How old features were.


def served(**of: object) -> dict[str, object]:
    """Return a record of the prediction log, with all that the figures of views do not look at left empty."""
    scores = [
        {"model": m, "version": 0, "epoch": 0, "score": 0.5, "probabilities": {}, "answered": True}
        for m in FLIGHTS.model_names
    ]
    features = {"event_id": "e", "entity_id": "JFK", "event_time": 0, "partition": 0, "offset": 0, "partial": False,
                "entities": {}, "as_of": {}, "stale": [], "vector": dict.fromkeys(FLIGHTS.vector)}  # fmt: skip
    return {"features": features | of, "champion": scores[0], "challengers": scores[1:]}


VIEWS = [view.label for view in FLIGHTS.views]
looks = st.one_of(st.none(), st.just("stale"), st.integers(0, 200_000))


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 100_000), st.fixed_dictionaries(dict.fromkeys(VIEWS, looks))), min_size=1, max_size=40
    )
)
def test_the_figures_of_a_view_are_those_of_a_plain_computation(rows: list[tuple[int, dict[str, object]]]) -> None:
    columns = Columns(FLIGHTS)
    logs = [
        served(event_time=time, as_of={v: at for v, at in seen.items() if isinstance(at, int)},
               stale=[v for v, at in seen.items() if at == "stale"])
        for time, seen in rows
    ]  # fmt: skip
    frame = pd.DataFrame([columns.prediction_row(log, None) for log in logs], columns=list(columns.prediction))
    found = prediction_figures(FLIGHTS, frame, None)
    for view in VIEWS:
        ages = pd.Series(
            [max(0, time - seen[view]) / 1000 for time, seen in rows if isinstance(seen[view], int)], dtype=float
        )
        for share, name in ((0.5, "freshness_p50"), (0.99, "freshness_p99")):
            if len(ages):
                assert found[FigureKey(name, feature=view)] == pytest.approx(ages.quantile(share))
            else:
                assert FigureKey(name, feature=view) not in found
        assert found[FigureKey("stale", feature=view)] == pytest.approx(
            np.mean([seen[view] == "stale" for _, seen in rows])
        )
        assert found[FigureKey("unknown", feature=view)] == pytest.approx(
            np.mean([seen[view] is None for _, seen in rows])
        )


# How far values are from the reference.


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(numbers, numbers)
def test_ks_is_the_largest_distance_between_the_distribution_functions(a: np.ndarray, b: np.ndarray) -> None:
    expected = max(abs((a <= x).mean() - (b <= x).mean()) for x in np.concatenate([a, b]))
    assert NumberReference(a).ks(b) == pytest.approx(expected)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(numbers, numbers)
def test_psi_of_numbers_is_that_of_their_bins(a: np.ndarray, b: np.ndarray) -> None:
    reference = NumberReference(a)
    assert reference.psi(a) == pytest.approx(0.0)
    low, high = a.min(), a.max()
    deciles = sorted({np.quantile(a, k, method="inverted_cdf") for k in np.linspace(0, 1, 11)[1:-1]})
    edges = [-math.inf, np.nextafter(low, -math.inf), *[d for d in deciles if d < high], high, math.inf]
    expected = 0.0
    for begin, end in itertools.pairwise(edges):
        p, q = (max(MIN_SHARE, ((begin < x) & (x <= end)).mean()) for x in (b, a))
        expected += (p - q) * math.log(p / q)
    assert reference.psi(b) == pytest.approx(expected)


def test_what_lies_beyond_all_that_was_seen_is_told_from_what_moved_inside() -> None:
    values = np.arange(1000.0)
    reference = NumberReference(values)
    assert reference.psi(np.full(100, 999.0)) < 9 < 15 < reference.psi(np.full(100, 1000.5))


def test_categories_that_were_never_seen_are_counted_and_shift_the_index() -> None:
    reference = CategoryReference(["a"] * 80 + ["b"] * 20)
    assert reference.unseen(["a", "b", "c", "d"]) == 0.5
    assert reference.psi(["a"] * 8 + ["b"] * 2) == pytest.approx(0.0)
    assert reference.psi(["a"] * 8 + ["c"] * 2) > 1


def test_many_rare_categories_share_a_bin() -> None:
    many = [f"c{n:03d}" for n in range(200) for _ in range(2)]
    assert CategoryReference(many).psi(many) == pytest.approx(0.0)


# Windows.


def test_a_window_is_closed_when_every_partition_has_passed_its_end_by_the_lateness() -> None:
    windows = SourceWindows(100, 20, 1000, highest)
    for time, partition in ((10, 0), (50, 1), (150, 0)):
        assert windows.window(time, partition)
    assert windows.due() == []  # partition 1 stands at 50
    windows.window(119, 1)
    assert windows.due() == []
    windows.window(120, 1)
    (closed,) = windows.due()
    assert (closed.start, closed.end, closed.records) == (0, 100, 2)


def test_a_quiet_partition_is_not_waited_for_but_one_that_is_all_is() -> None:
    windows = SourceWindows(100, 0, 1000, highest)
    windows.window(10, 0)
    windows.window(500, 1)
    assert windows.due() == []
    assert len(windows.due(idle=[0])) == 1
    assert windows.due(idle=[0, 1]) == []


def test_what_comes_for_a_closed_window_is_late_and_told_with_the_next_one() -> None:
    windows = SourceWindows(100, 0, 1000, highest)
    windows.window(10, 0)
    windows.window(110, 0)
    assert len(windows.due()) == 1
    assert windows.window(20, 0) is None
    windows.window(210, 0)
    (closed,) = windows.due()
    assert (closed.start, closed.records, closed.late) == (100, 1, 1)


def test_windows_that_had_begun_before_an_interruption_say_so() -> None:
    windows = SourceWindows(100, 30, 1000, highest)
    windows.interrupt(280)
    for time in (250, 310, 420, 600):
        windows.window(time, 0)
    assert [(w.start, w.interrupted) for w in windows.due()] == [(200, True), (300, True), (400, False)]


def test_of_many_rows_a_uniform_sample_stays_the_same_in_any_order() -> None:
    ids = [f"event-{n}" for n in range(5000)]
    kept = []
    for seed in (1, 2):
        random.Random(seed).shuffle(ids)
        windows = SourceWindows(100, 0, 500, highest)
        for name in ids:
            window = windows.window(50, 0)
            if hash_of(name.encode()) < window.limit:
                window.add(hash_of(name.encode()), (name,))
        assert window.records == 5000
        assert 200 < len(window.rows) <= 500
        kept.append({name for (name,) in window.rows})
    assert kept[0] == kept[1]
    mean = np.mean([int(name.split("-")[1]) for name in kept[0]])
    assert mean == pytest.approx(2500, abs=300)


# Alerts.


def rules(**declared: object) -> Thresholds:
    made = Thresholds(Monitor(**declared), WindowMetrics(FLIGHTS))
    usual = [
        {FigureKey("psi", feature="distance"): value, FigureKey("Accuracy", "logreg"): 0.7 + value}
        for value in (0.1, 0.2, 0.3)
    ]
    made.usual = UsualRanges.of(
        [*usual, {FigureKey("label_mean"): 0.2}, {FigureKey("label_mean"): 0.3}, {FigureKey("label_mean"): 0.25}]
    )
    return made


DISTANCE = FigureKey("psi", feature="distance")


def course(
    values: Sequence[float | None], key: FigureKey = DISTANCE, windows: int = 2, **declared: object
) -> list[str | None]:
    alerts = Alerts(rules(**declared), windows)
    found = []
    for n, value in enumerate(values):
        told = alerts.update({} if value is None else {key: value}, n * 100, (n + 1) * 100, 0)
        assert len(told) <= 1
        found.append(told[0].state if told else None)
    return found


def test_an_alert_opens_goes_on_and_is_resolved_each_after_two_windows() -> None:
    assert course([0.2, 0.9, 0.9, 0.9, 0.2, 0.2, 0.2]) == [
        None,
        None,
        "opened",
        "continuing",
        "continuing",
        "resolved",
        None,
    ]


def test_one_bad_window_alerts_nobody_and_one_good_one_resolves_nothing() -> None:
    assert course([0.9, 0.2, 0.9, 0.2]) == [None] * 4
    assert course([0.9, 0.9, 0.2, 0.9, 0.2, 0.9]) == [None, "opened"] + ["continuing"] * 4


def test_a_window_without_the_figure_changes_nothing() -> None:
    assert course([0.9, None, 0.9, None, 0.2, None, 0.2]) == [
        None,
        None,
        "opened",
        None,
        "continuing",
        None,
        "resolved",
    ]


def test_what_is_usual_and_what_is_declared_both_have_to_be_passed() -> None:
    assert course([0.39] * 2) == [None, None]  # usual reaches to 0.3, and half of its range further
    assert course([0.41] * 2) == [None, "opened"]
    assert course([0.41] * 2, limits={"psi": 0.5}) == [None, None]
    assert course([0.6] * 2, limits={"psi": 0.5}) == [None, "opened"]
    assert course([0.6] * 2, limits={"psi": 0.5, "psi:distance": 0.7}) == [None, None]
    assert course([9.0] * 2, limits={"psi": None}) == [None, None]


def test_metrics_alert_where_they_are_worse_whichever_way_that_is() -> None:
    assert course([0.66, 0.66], FigureKey("Accuracy", "logreg")) == [None, "opened"]
    assert course([0.99, 0.99], FigureKey("Accuracy", "logreg")) == [None, None]
    assert course([0.1, 0.1], FigureKey("label_mean")) == [None, "opened"]
    assert course([0.5, 0.5], FigureKey("label_mean")) == [None, "opened"]


def test_the_baseline_and_single_versions_alert_nobody() -> None:
    assert course([0.0, 0.0], FigureKey("Accuracy", "baseline")) == [None, None]
    assert course([0.0, 0.0], FigureKey("Accuracy", "logreg", 17)) == [None, None]


def test_before_there_is_a_reference_only_what_has_a_limit_of_its_own_alerts() -> None:
    alerts = Alerts(Thresholds(Monitor(), WindowMetrics(FLIGHTS)), 1)
    figures = {DISTANCE: 9.0, FigureKey("calibration_error", "logreg"): 0.9, FigureKey("missing", feature="temp"): 0.5}
    assert [str(alert.key) for alert in alerts.update(figures, 0, 100, 0)] == ["missing:temp"]


def test_an_alert_says_what_how_much_and_where_to_look() -> None:
    alerts = Alerts(rules(), 1)
    (alert,) = alerts.update({DISTANCE: 0.9, FigureKey("ks", feature="distance"): 0.1}, 100, 200, 5)
    assert alert.message == "the distribution of distance has moved: psi 0.9, above 0.4"
    assert alert.evidence == {"psi": 0.9, "ks": 0.1, "psi_usual_low": 0.1, "psi_usual_high": 0.3}
    assert (alert.since, alert.start, alert.end, alert.opened_at) == (100, 100, 200, 5)
    assert "quantiles" in alert.look_at


def test_an_alert_that_an_earlier_process_left_open_goes_on() -> None:
    before, after = Alerts(rules(), 2), Alerts(rules(), 2)
    for n in range(2):
        told = before.update({DISTANCE: 0.9}, n * 100, n * 100 + 100, 7)
    after.restore(told[0])
    (again,) = after.update({DISTANCE: 0.9}, 200, 300, 9)
    assert (again.state, again.since, again.opened_at) == ("continuing", 0, 7)
    assert after.open == [again]


def test_a_declaration_may_silence_a_figure() -> None:
    assert replace(FLIGHTS, monitor=Monitor(limits={"ks": None})).monitor.silent("ks", "distance")


def with_objective(fresh: str = "10m") -> Pipeline:
    return replace(FLIGHTS, views=[replace(FLIGHTS.views[0], fresh=fresh), *FLIGHTS.views[1:]])


def of_views(key: FigureKey, values: Sequence[float], **declared: object) -> list[str | None]:
    """Return what a view's figure leads to, one window after the other, with usual ranges in which it was ever so large."""
    made = Thresholds(Monitor(**declared), WindowMetrics(with_objective()))
    made.usual = UsualRanges({key: (0.0, 1e9)})
    alerts, found = Alerts(made, 2), []
    for n, value in enumerate(values):
        told = alerts.update({key: value}, n * 100, (n + 1) * 100, 0)
        found.append(told[0].state if told else None)
    return found


def test_features_older_than_their_objective_are_alerted_whatever_was_usual() -> None:
    origin = FigureKey("freshness_p99", feature="origin")
    assert of_views(origin, [601.0, 601.0, 600.0, 600.0]) == [None, "opened", "continuing", "resolved"]
    assert of_views(origin, [600.0, 601.0, 600.0, 601.0]) == [None] * 4
    assert of_views(origin, [601.0] * 2, limits={"freshness_p99": None}) == [None, None]
    assert of_views(origin, [601.0] * 2, limits={"freshness_p99:origin": None}) == [None, None]


def test_a_view_without_an_objective_may_be_as_old_as_it_is() -> None:
    assert of_views(FigureKey("freshness_p99", feature="dest"), [1e12] * 3) == [None] * 3
    assert of_views(FigureKey("freshness_p50", feature="origin"), [1e12] * 3) == [None] * 3
    assert of_views(FigureKey("unknown", feature="origin"), [1.0] * 3) == [None] * 3


def test_stale_features_are_alerted_by_view_without_any_reference() -> None:
    dest = FigureKey("stale", feature="dest")
    assert of_views(dest, [0.02, 0.02]) == [None, "opened"]
    assert of_views(dest, [0.01, 0.01]) == [None, None]
    assert of_views(dest, [0.02, 0.02], limits={"stale:dest": 0.05}) == [None, None]
    assert of_views(dest, [0.02, 0.02], limits={"stale:origin": 0.05}) == [None, "opened"]
    alerts = Alerts(Thresholds(Monitor(), WindowMetrics(with_objective())), 1)
    stale, old = alerts.update({dest: 0.5, FigureKey("freshness_p99", feature="origin"): 700.0}, 0, 100, 0)
    assert (str(stale.key), str(old.key)) == ("stale:dest", "freshness:origin")
    assert stale.message == "the features of dest could not be read: stale 0.5, above 0.01"
    assert old.message == "the features of origin are older than their objective: freshness_p99 700, above 600"
    assert "materializer" in stale.look_at
    assert "materializer" in old.look_at


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"stale:distance": 0.1}, "'distance' is no view: there are origin, dest"),
        ({"psi:origin_outcome": 0.1}, "'origin_outcome' is no feature"),
        ({"freshness_p99:origin": 600}, "held to its view's fresh"),
        ({"freshness_p50:origin": 600}, "no figure that can alert"),
    ],
)
def test_limits_of_views_name_views(limits: dict[str, float], said: str) -> None:
    with pytest.raises(DeclarationError, match=said):
        replace(FLIGHTS, monitor=Monitor(limits=limits))


def test_an_alert_is_taken_over_where_its_view_is_still_declared() -> None:
    service = MonitorService.__new__(MonitorService)
    service.pipeline = FLIGHTS
    told = {"kind": "stale", "figure": "stale", "model": "", "feature": "origin_outcome"}
    assert service._declared(told)
    assert not service._declared(told | {"feature": "distance"})  # a feature, and no view
    assert not service._declared(told | {"figure": "psi"})
    assert service._declared(told | {"figure": "psi", "feature": "distance"})


def test_an_alert_about_a_reason_that_does_not_come_any_more_is_resolved() -> None:
    alerts, total = Alerts(rules(), 2), {FigureKey("rejected_records"): 0.0}
    corrupted = total | {FigureKey("rejected", segment="out_of_range:between", feature="sched_hour"): 0.5}
    states = []
    for n, figures in enumerate((corrupted, corrupted, {}, total, total, total)):
        states.append([alert.state for alert in alerts.update(figures, n * 100, n * 100 + 100, 0)])
    assert states == [[], ["opened"], [], ["continuing"], ["resolved"], []]


def test_what_a_quiet_window_says_is_true() -> None:
    alerts = Alerts(rules(), 2)
    for n in range(2):
        alerts.update({DISTANCE: 0.9}, n * 100, n * 100 + 100, 0)
    (quiet,) = alerts.update({DISTANCE: 0.2}, 200, 300, 0)
    assert quiet.message == "the distribution of distance has moved: psi is back at 0.2, within the limit 0.4"
    (again,) = alerts.update({DISTANCE: 0.8}, 300, 400, 0)
    assert again.message.endswith("psi 0.8, above 0.4")


# The core on records that producers may well send.


def test_windows_have_the_figures_of_views_and_what_was_usual_of_them() -> None:
    made, minute = core(least=2), 60_000
    # A vector a minute, each a second after the last event of its entity; of those from 300 on, "dest" is cut off.
    for n in range(520):
        stale = ["dest"] if n >= 300 else []
        as_of = {"origin": n * minute - 1000} | ({} if stale else {"dest": n * minute - 5000})
        log = served(event_id=f"e{n}", event_time=n * minute, as_of=as_of, stale=stale)
        example = {"prediction": log, "label": n % 3 == 0, "label_time": n * minute}
        for take, record in ((made.predictions, made.records.prediction_log.encode(log)),
                             (made.examples, made.records.example.encode(example))):  # fmt: skip
            take([MemoryRecord("flights.any", record, f"e{n}".encode(), 0, None, 0, n)])
    closed = [window for window in made.close({}) if window.source == "prediction-log"]
    assert len(closed) == 8
    figures = closed[0].figures
    assert (
        figures[FigureKey("freshness_p99", feature="origin")],
        figures[FigureKey("freshness_p50", feature="dest")],
    ) == (
        1.0,
        5.0,
    )
    assert (figures[FigureKey("stale", feature="dest")], figures[FigureKey("unknown", feature="carrier_outcome")]) == (
        0.0,
        1.0,
    )
    assert closed[-1].figures[FigureKey("stale", feature="dest")] == 1.0
    assert FigureKey("freshness_p99", feature="dest") not in closed[-1].figures
    assert made.thresholds.usual.ranges[FigureKey("freshness_p99", feature="origin")] == (1.0, 1.0)
    opened = [str(a.key) for window in closed for a in window.alerts if a.state == "opened"]
    assert "stale:dest" in opened


def core(clock: Callable[[], float] = lambda: 0.0, **declared: object) -> Core:
    return Core(replace(FLIGHTS, monitor=Monitor(window="1h", reference="3h", **declared)), clock)


def test_a_source_that_falls_silent_is_told_once_and_once_more_when_it_speaks_again() -> None:
    now = 1000.0
    made = core(lambda: now, limits={"silent_seconds": 60})
    now = 1060.0
    made.examples([])
    assert made.silence() == []
    now = 1061.0
    (alert,) = made.silence()
    assert (str(alert.key), alert.state) == ("silence:prediction-log", "opened")
    assert (alert.since, alert.end, alert.opened_at) == (1_000_000, 1_061_000, 1_061_000)
    assert alert.message == "no more records: prediction-log: silent_seconds 61, above 60"
    now = 1100.0
    assert made.silence() == []
    again = core(lambda: now, limits={"silent_seconds": 60})
    again.alerts.restore(alert)
    for monitor in (made, again):  # the second is another process, which has taken the alert over
        monitor.predictions([])
        (alert,) = monitor.silence()
        assert (alert.state, str(alert.key)) == ("resolved", "silence:prediction-log")
        assert monitor.silence() == []
    now = 1121.0
    assert [str(alert.key) for alert in made.silence()] == ["silence:examples"]


def test_windows_do_not_move_an_alert_about_silence() -> None:
    alerts = Alerts(rules(limits={"silent_seconds": 60}), 2)
    silent = FigureKey("silent_seconds", segment="examples")
    assert alerts.check(silent, 61, 100_000).state == "opened"
    assert alerts.update({FigureKey("rejected_records"): 0.0, DISTANCE: 0.9}, 0, 100, 0) == []
    assert [str(alert.key) for alert in alerts.open] == ["silence:examples"]


def test_silence_may_be_declared_to_be_usual() -> None:
    now = 0.0
    made = core(lambda: now, limits={"silent_seconds": None})
    now = 1e6
    assert made.silence() == []


def test_a_dead_letter_with_a_header_that_is_null_is_counted() -> None:
    made = core()
    made.windows["prediction-log"].window(5, 0)
    made.letters([MemoryRecord("flights.dlq", b"x", None, 0, [("trace", None), ("tidemill.reason", b"truncated")])])
    assert made._rejected == {0: {("truncated", "", ""): 1}}


def test_one_long_category_costs_its_own_length_only() -> None:
    values = ["a"] * 20_000 + ["x" * 100_000]
    tracemalloc.start()
    reference = CategoryReference(values)
    assert reference.psi(values) == pytest.approx(0.0)
    assert reference.unseen(["y" * 100_000]) == 1.0
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000_000


def test_labels_that_come_later_than_the_reference_is_long_do_not_end_it() -> None:
    made, hour = core(), 3_600_000
    vector = dict.fromkeys(FLIGHTS.vector) | {"carrier": "UA"}
    scores = [
        {"model": m, "version": 0, "epoch": 0, "score": 0.5, "probabilities": {}, "answered": True}
        for m in FLIGHTS.model_names
    ]
    for n in range(500):
        features = {"event_id": f"e{n}", "entity_id": "JFK", "event_time": n * hour // 100, "partition": 0, "offset": n,
                    "partial": False, "entities": {}, "as_of": {}, "stale": [], "vector": vector}  # fmt: skip
        log = {"features": features, "champion": scores[0], "challengers": scores[1:]}
        example = {"prediction": log, "label": n % 3 == 0, "label_time": n * hour // 100 + 40 * 24 * hour}
        made.examples([MemoryRecord("flights.examples", made.records.example.encode(example), b"k", 0, None, 0, n)])
    assert made.reference is not None
    assert made.reference.rows >= 300


def test_a_score_beyond_all_bins_is_in_the_nearest() -> None:
    found = WindowMetrics(FLIGHTS).calibration(answers([True, False], [-0.5, 7.0]))
    assert found["calibration_error"] == pytest.approx((1.5 + 7.0) / 2)


def test_label_mean_has_no_limit_of_its_own() -> None:
    with pytest.raises(DeclarationError, match="label_mean"):
        replace(FLIGHTS, monitor=Monitor(limits={"label_mean": 0.3}))
    alerts = Alerts(Thresholds(Monitor(), WindowMetrics(FLIGHTS)), 1)
    assert alerts.update({FigureKey("label_mean"): 0.9}, 0, 100, 0) == []


# How the monitor reaches a broker that is secured.


def test_librdkafkas_words_are_fausts_credentials() -> None:
    assert credentials({}) is None
    assert credentials({"client.dns.lookup": "use_all_dns_ips"}) is None
    made = credentials(
        {
            "security.protocol": "sasl_plaintext",
            "sasl.mechanism": "SCRAM-SHA-256",
            "sasl.username": "anna",
            "sasl.password": "x",
        }
    )
    assert (made.protocol.value, made.mechanism.value, made.username) == ("SASL_PLAINTEXT", "SCRAM-SHA-256", "anna")
    assert credentials({"security.protocol": "SSL"}).protocol.value == "SSL"
    assert credentials({"security.protocol": "SASL_SSL", "sasl.username": "anna"}).protocol.value == "SASL_SSL"


def test_what_fausts_client_cannot_do_is_said() -> None:
    with pytest.raises(SettingsError, match=r"OAUTHBEARER.*expected PLAIN") as error:
        credentials({"security.protocol": "SASL_SSL", "sasl.mechanism": "OAUTHBEARER", "sasl.password": "secret"})
    assert "secret" not in str(error.value)


def test_a_partition_whose_next_record_is_gone_does_not_end_the_monitor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faust looks every few seconds whether partitions get on, and asserts that each knows where it reads."""
    looked: list[float] = []
    monkeypatch.setattr(AIOKafkaConsumerThread, "verify_event_path", lambda _, now, __: looked.append(now))

    async def look() -> None:
        tp, state = TopicPartition("flights.examples", 0), SubscriptionState()
        state.assign_from_user({tp})
        thread = object.__new__(_FetchThread)
        monkeypatch.setattr(thread, "_ensure_consumer", lambda: SimpleNamespace(_subscription=state), raising=False)
        thread.verify_event_path(1.0, tp)
        assert looked == []
        state.subscription.assignment.state_value(tp).reset_to(7)
        thread.verify_event_path(2.0, tp)

    asyncio.run(look())
    assert looked == [2.0]


@pytest.mark.parametrize("figure", ["rejected", "warned"])
def test_an_alert_about_a_rule_is_opened_and_resolved(figure: str) -> None:
    alerts, total = Alerts(rules(), 2), {FigureKey("rejected_records"): 0.0}
    broken = total | {FigureKey(figure, segment="out_of_range:between", feature="sched_hour"): 0.5}
    states = [
        [(a.state, a.key.kind) for a in alerts.update(figures, n * 100, n * 100 + 100, 0)]
        for n, figures in enumerate((broken, broken, total, total))
    ]
    assert states == [[], [("opened", figure)], [("continuing", figure)], [("resolved", figure)]]


def test_warnings_are_shares_of_the_records_of_their_window() -> None:
    made = core()
    told = {"stream": "events", "time": 1, "stopped": "", "rules": [
        {"rule": "between", "field": "temp", "reason": "out_of_range", "records": 3, "example": "a", "message": "m"}]}  # fmt: skip
    record = MemoryRecord("flights.warnings", made.records.warnings.encode(told), None, 0)
    made.warnings([record])  # before any prediction: there is no window that it belongs to
    window = made.windows["prediction-log"].window(5, 0)
    assert window is not None
    window.records = 9
    made.warnings([record, record, MemoryRecord("flights.warnings", b"of an earlier declaration", None, 0)])
    made.letters([MemoryRecord("flights.dlq", b"x", None, 0, [("tidemill.reason", b"truncated")])])
    assert made._rule_shares(window) == {
        FigureKey("warned", segment="out_of_range:between", feature="temp"): 0.6,
        FigureKey("rejected", segment="truncated"): 0.1,
        FigureKey("rejected_records"): 1.0,
    }
    assert made._rule_shares(window) == {FigureKey("rejected_records"): 0.0}, "each is counted once"


def test_it_does_not_wait_for_tables_which_it_has_none_of(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(self: object, n: float, **_: object) -> None:
        slept.append(n)

    monkeypatch.setattr("faust.tables.manager.TableManager.sleep", sleep)
    asyncio.run(object.__new__(_Tables).sleep(1.0))
    assert slept == [0]


@pytest.mark.parametrize("assigned", [set(), {TopicPartition("examples", 0)}])
def test_it_is_ready_as_soon_as_it_has_partitions(assigned: set[TopicPartition]) -> None:
    monitor = object.__new__(MonitorService)
    monitor.app = SimpleNamespace(consumer=SimpleNamespace(assignment=lambda: assigned))
    asyncio.run(monitor._assigned(None, assigned))
    assert monitor.ready is bool(assigned)
