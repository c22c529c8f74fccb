"""The backtest says what River's own delayed evaluation says, to the last digit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tidemill import load, rules
from tidemill.demo import data
from tidemill.offline.backtest import Backtest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("pipeline", "question", "labelled", "expected"),
    [
        (
            "plain", "scheduled", 26_398,
            {"Accuracy": 0.7709296158799909, "ROCAUC": 0.6625249708140929, "LogLoss": 0.5512921572505889},
        ),
        pytest.param(
            "delays", "departure", 26_398,
            {"MAE": 12.129685537328031, "RMSE": 16.19006913823114, "R2": 0.8395877647427231},
            marks=pytest.mark.long,
        ),
    ],
)  # fmt: skip
def test_january_equals_the_oracle(pipeline: str, question, labelled: int, expected: dict[str, float]) -> None:
    found = data.flights((1,), question)
    declared = load(pipeline)
    report = Backtest(declared).run([f.event for f in found], data.labels(found))
    assert report.metrics[declared.champion] == expected
    assert report.joined == labelled
    assert report.predictions == report.joined + report.expired + report.pending == len(found)
    assert report.dead_letters == {}
    assert report.over_time[-1]["metrics"][declared.champion] == expected


def test_a_model_that_comes_later_is_another_result() -> None:
    found = data.flights((1,), days=6)
    events, labels = [f.event for f in found], data.labels(found)
    at_once = Backtest(load("plain")).run(events, labels)
    later = Backtest(load("plain"), model_delay_ms=6 * 3_600_000).run(events, labels)
    assert later.joined == at_once.joined
    assert later.metrics["logreg"] != at_once.metrics["logreg"]


def test_rules_that_remember_hold_in_a_backtest_and_no_fuse_stops_it() -> None:
    found = data.flights((1,), days=2)
    events, labels = [f.event for f in found], data.labels(found)
    declared = replace(load("plain"), rules=[rules.unique("flight_id", within="48h")])
    report = Backtest(declared).run([*events, *events], labels)
    assert report.dead_letters == {"duplicate": len(events)}
    assert report.predictions == len(events)
