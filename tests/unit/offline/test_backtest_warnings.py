"""A backtest says first what its figures leave out, with the setting to change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import small
from river import metrics

from tidemill import rules
from tidemill.cli.text.reports import backtest_text
from tidemill.offline.backtest import Backtest, BacktestReport, LabelDelays

EVENTS = [small.event(f"f{number}", number * small.MINUTE) for number in range(100)]


def run(delay: int, labels: int = 100, **changes: Any) -> BacktestReport:
    """A backtest in which the label of each of the first events comes so many ms after it."""
    known = [small.label(f"f{number}", number * small.MINUTE + delay) for number in range(labels)]
    return Backtest(small.make(**changes)).run(EVENTS, sorted(known, key=lambda label: label["landed_at"]))


def test_a_whole_backtest_warns_of_nothing() -> None:
    report = run(small.MINUTE)
    assert report.warnings == []
    assert backtest_text(report).startswith("pipeline small")


def test_labels_that_come_too_late_are_said_first_with_the_setting() -> None:
    report = run(2 * small.HOUR)
    first = backtest_text(report).splitlines()[0]
    assert first.startswith("WARNING: the figures leave out 100% of the predictions, which got no label in time.")
    assert "100 labels came later than label_timeout='1h': declare a longer one" in first
    assert "within 2h (50%), 2h (90%), 2h (99%), 2h (100%) of their events" in first
    assert report.as_dict()["warnings"] == report.warnings


def test_labels_of_nobody_and_events_without_a_label_are_counted() -> None:
    labels = [small.label(f"x{number}", number * small.MINUTE) for number in range(7)]
    (warning,) = Backtest(small.make()).run(EVENTS, labels).warnings
    assert "7 labels match no event" in warning
    assert "100 events have no label" in warning


def test_events_that_are_refused_are_said_with_the_reasons() -> None:
    events = [event | {"sched_hour": 77} if number % 4 == 0 else event for number, event in enumerate(EVENTS)]
    (warning, *_) = Backtest(small.make()).run(events, []).warnings
    assert warning.startswith("25% of the events were refused (")


@pytest.mark.parametrize("begin", [1_700_000_000, 1_356_998_400])
def test_times_of_another_unit_are_said_though_the_schema_says_the_unit(begin: int) -> None:
    events = [small.event(f"f{number}", begin + number) for number in range(10)]
    report = Backtest(small.make()).run(events, [small.label(f"f{n}", begin + n) for n in range(10)])
    (warning,) = report.warnings
    assert warning.startswith("the times of all events lie in January and February 1970")


def test_times_that_look_like_dates_are_said() -> None:
    events = [small.event(f"f{number}", 20240101 + number) for number in range(10)]
    (warning,) = Backtest(small.make()).run(events, [small.label(f"f{n}", 20240101 + n) for n in range(10)]).warnings
    assert "as 20240101 does, which looks like a date" in warning


class _Silent:
    def learn_one(self, x: Mapping[str, Any], y: Any) -> None: ...

    def predict_one(self, x: Mapping[str, Any]) -> float:
        raise ValueError("not yet")


def test_a_model_that_never_answers_is_said_and_no_empty_table_is_printed() -> None:
    report = Backtest(small.make(models={"linear": _Silent()}, baseline=_Silent())).run(EVENTS, [])
    text = backtest_text(report)
    assert text.startswith("WARNING: 100% of the valid events got no answer")
    assert text.endswith("no model has been judged: there are no figures\n")


class _NoAnswer(_Silent):
    def predict_one(self, x: Mapping[str, Any]) -> Any:
        return None


class _LearnsNothing(_Silent):
    def learn_one(self, x: Mapping[str, Any], y: Any) -> None:
        raise ValueError("not this one")

    def predict_one(self, x: Mapping[str, Any]) -> Any:
        return 2.0


def test_a_model_without_an_answer_has_no_figures_which_would_look_like_the_best() -> None:
    report = run(small.MINUTE, models={"linear": _NoAnswer(), "other": _LearnsNothing()})
    assert report.metrics["linear"] == {}
    assert report.metrics["other"]["MAE"] > 0
    assert report.warnings == [
        "learn_one of other raised on many examples: `tidemill check` says why",
        "model 'linear' answered none of the questions that have labels: it has no figures",
    ]


def test_labels_that_are_refused_are_said_with_the_reasons() -> None:
    first, *_ = run(small.MINUTE, label_rules=[rules.between("arr_delay", 900, 2880)]).warnings
    assert first == "100% of the labels were refused (out_of_range 100): no model has learned them"


def test_a_metric_that_raises_is_said_by_name() -> None:
    class Picky(metrics.MAE):
        def update(self, y_true: Any, y_pred: Any, w: float = 1.0) -> None:
            if y_pred == 0.0:
                raise ValueError("no zero")

    report = run(small.MINUTE, metrics=[Picky(), metrics.RMSE()])
    assert "Picky of 'linear' is left out: it raised ValueError: no zero" in report.warnings
    assert report.metric_names == ["RMSE"]


@pytest.mark.parametrize(
    ("events", "labels", "counts"),
    [
        ({}, {}, (0, 0, 0, 0)),
        ({1: 100}, {1: 100}, (0, 0, 0, 0)),
        ({1: 100, 2: 100}, {1: 99}, (0, 1, 1, 0)),
        ({1: 100}, {1: 151, 2: 0}, (1, 0, 0, 1)),
        ({1: 100}, {1: 150}, (0, 0, 0, 0)),
    ],
)
def test_delays_are_counted_by_the_edges(events: dict[int, int], labels: dict[int, int], counts: Sequence[int]) -> None:
    delays = LabelDelays.of(events, labels, 50)
    assert (delays.without_event, delays.events_without_label, delays.before_event, delays.late) == counts
