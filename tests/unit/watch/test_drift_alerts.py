"""What moves is alerted within two windows, by the name of what moved; what does not move alerts nobody."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from monitored import DAY_MS, drawn, logs_of, watched

from tidemill import load
from tidemill.demo import data
from tidemill.demo.data import Flight

pytestmark = pytest.mark.slow

_DECLARED = load("flights")
_VIEWS = [view for view in _DECLARED.views if view.label in ("origin", "dest", "carrier_outcome", "tailnum_outcome")]
FLIGHTS = replace(_DECLARED, models={"logreg": _DECLARED.models["logreg"]}, views=_VIEWS)
FIRST, MOVED, LAST = 15_706, 15_722, 15_727
"""Days since the epoch: 1, 17 and 22 January 2013."""
A_DAY = 600


@pytest.fixture(scope="module")
def january() -> list[Flight]:
    return data.flights((1,))


def nothing(event: dict[str, Any], label: dict[str, Any] | None, rng: random.Random) -> None:
    pass


def ten_times(event: dict[str, Any], label: dict[str, Any] | None, rng: random.Random) -> None:
    event["distance"] = min(12_500.0, event["distance"] * 10)


def unseen(event: dict[str, Any], label: dict[str, Any] | None, rng: random.Random) -> None:
    if rng.random() < 0.1:
        event["dest"] = "XYZ"


def missing(event: dict[str, Any], label: dict[str, Any] | None, rng: random.Random) -> None:
    if rng.random() < 0.3:
        event["temp"] = None


def three_things(event: dict[str, Any], label: dict[str, Any] | None, rng: random.Random) -> None:
    for shift in (ten_times, unseen, missing):
        shift(event, label, rng)


def flipped(event: dict[str, Any], label: dict[str, Any] | None, rng: random.Random) -> None:
    if label is not None:
        label["arr_delay"] = 0.0 if label["arr_delay"] > 15 else 60.0


def told(january: list[Flight], shift: Any = nothing, pool: list[Flight] | None = None, seed: int = 1) -> list[Any]:
    flights = drawn(january, range(FIRST, MOVED), A_DAY, seed)
    flights += drawn(pool or january, range(MOVED, LAST), A_DAY, seed + 100, shift)
    closed = watched(FLIGHTS, logs_of(FLIGHTS, flights))
    assert len(closed) >= 2 * (LAST - FIRST) - 4
    return [alert for window in closed for alert in window.alerts if alert.state == "opened"]


def test_what_does_not_move_alerts_nobody(january: list[Flight]) -> None:
    assert [alert.message for alert in told(january, seed=3)] == []


@pytest.mark.parametrize(
    ("shift", "subjects"),
    [
        (three_things, {"drift:distance", "unseen:dest", "missing:temp"}),
        (flipped, {"label_drift", "performance:logreg"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_shift_is_alerted_within_two_windows_and_named(january: list[Flight], shift: Any, subjects: set[str]) -> None:
    found = {str(alert.key): alert for alert in told(january, shift)}
    assert subjects <= set(found)
    for subject in subjects:
        assert found[subject].end <= (MOVED + 2) * DAY_MS + (DAY_MS if subject in LABELS else 0)
    others = {alert.key.feature for alert in found.values()} - {"", *(s.rpartition(":")[2] for s in subjects)}
    if "label_drift" in subjects:  # what is made of labels has moved with them
        others -= {feature for view in FLIGHTS.remote_views if view.source == "examples" for feature in view.features}
    assert others == set()  # no other feature is accused


@pytest.mark.long
def test_a_view_that_is_told_nothing_any_more_is_alerted_and_no_other(january: list[Flight]) -> None:
    views = [replace(view, fresh="30h" if view.label == "carrier_outcome" else view.fresh) for view in FLIGHTS.views]
    pipeline = replace(FLIGHTS, views=views)
    flights = drawn(january, range(FIRST, LAST), A_DAY, 1)
    closed = watched(pipeline, logs_of(pipeline, flights, cut=MOVED * DAY_MS))
    opened = [alert for window in closed for alert in window.alerts if alert.state == "opened"]
    told = {str(alert.key): alert for alert in opened if alert.key.kind in ("freshness", "stale")}
    assert set(told) == {"freshness:carrier_outcome"}  # dest grew as old, and has no objective; origin went on
    assert MOVED * DAY_MS < told["freshness:carrier_outcome"].end <= (MOVED + 3) * DAY_MS


LABELS = {"label_drift", "performance:logreg"}
"""Some labels of a window are of events before the shift: flights that land on the day after."""


@pytest.mark.long
def test_another_month_is_alerted_by_what_is_different_in_it(january: list[Flight]) -> None:
    found = {str(alert.key): alert for alert in told(january, pool=data.flights((7,)))}
    assert {"drift:temp", "drift:dewp"} <= set(found)
    assert found["drift:temp"].end <= (MOVED + 2) * DAY_MS
