"""A backtest says first what its figures leave out, with the setting to change."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small
from river import linear_model, metrics

from tidemill import rules
from tidemill.cli.text.reports import backtest_text, dataset_text
from tidemill.errors import SettingsError
from tidemill.offline import dataset, recompute
from tidemill.offline.backtest import Backtest, BacktestReport, LabelDelays
from tidemill.offline.tuning import questions

EVENTS = [small.event(f"f{number}", number * small.MINUTE) for number in range(100)]


def run(delay: int, labels: int = 100, labels_: Any = small.LABELS, **changes: Any) -> BacktestReport:
    """A backtest in which the label of each of the first events comes so many ms after it."""
    changes["labels"] = labels_
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


def test_seconds_among_milliseconds_are_counted_and_said() -> None:
    """A rule warns of them in production; a backtest shows what rules warned of."""
    begin = 1_700_000_000_000
    events = [
        small.event(f"f{number}", (begin + number * small.MINUTE) // (1000 if number % 4 == 0 else 1))
        for number in range(40)
    ]
    report = Backtest(small.make()).run(events, [])
    assert report.warned == {"events by plausible:asked_at": 10}
    text = backtest_text(report)
    assert "WARNING: 25% of the events have a time in January or February 1970" in text
    assert "warned of 10 events by plausible:asked_at, the first: field 'asked_at' is 1700000000 where" in text
    few = Backtest(small.make(rules=[rules.between("sched_hour", 6, 23, warn=True)])).run(EVENTS[:5], [])
    assert few.warned == {"events by between:sched_hour": 5}
    assert not any("warned" in text for text in few.warnings)


class _Dividing(metrics.MAE):
    """Has a number for three predictions, with which it is tried, and then none any more."""

    def get(self) -> float:
        return super().get() if self._mean.n < 4 else float("nan")


def test_a_metric_without_a_number_is_said() -> None:
    report = run(small.MINUTE, metrics=[metrics.RMSE(), _Dividing()])
    assert "_Dividing" not in report.metrics["linear"]
    assert "_Dividing of 'linear' is left out: it is nan" in report.warnings
    assert set(report.metrics["linear"]) == {"RMSE"}


def test_labels_that_are_all_the_same_are_said_as_accuracy_is_1_then() -> None:
    """As where the function that makes them of a record is wrong."""
    models = {"linear": linear_model.LogisticRegression()}
    stream = replace(small.LABELS, value=lambda label: label["arr_delay"] > 900)
    (warning,) = run(small.MINUTE, task="binary", labels_=stream, models=models).warnings
    assert warning.startswith("all 100 labels are False: no figure tells a good model from a bad one")
    late = replace(small.LABELS, value=lambda label: label["flight_id"] > "f5")
    assert run(small.MINUTE, task="binary", labels_=late, models=models).warnings == []
    assert run(small.MINUTE, 20, task="binary", labels_=stream, models=models).only_label == "False"


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


def test_labels_that_are_dated_before_their_event_are_said_though_all_are_joined() -> None:
    report = run(-small.MINUTE)
    assert report.joined == 100
    (warning,) = report.warnings
    assert warning.startswith("labels come sooner than they can: 100 labels are dated before their event")


def test_a_few_odd_labels_are_noted_and_one_that_has_not_come_yet_is_not() -> None:
    known = [small.label(f"f{number}", (number + 1) * small.MINUTE) for number in range(99)]
    assert Backtest(small.make()).run(EVENTS, known).note == ""
    few = [*known[:90], *(label | {"flight_id": f"x{number}"} for number, label in enumerate(known[90:]))]
    report = Backtest(small.make()).run(EVENTS, few)
    assert report.warnings == []
    assert "note: 9 labels match no event: see that both streams name the same id" in backtest_text(report)


@pytest.mark.slow
@pytest.mark.parametrize("at", [-(2**63), small.HOUR - 1, 2**62])
def test_the_label_of_an_event_that_is_refused_has_no_delay_and_is_not_of_nobody(at: int) -> None:
    """Its event may be dated millions of years ago: so late no label comes."""
    pipeline = small.make(rules=[rules.between("distance", 0, 1_000)])
    events = sorted([*EVENTS, small.event("odd", asked_at=at, distance=-1.0)], key=lambda event: event["asked_at"])
    known = [small.label(f"f{number}", (number + 1) * small.MINUTE) for number in range(99)]
    report = Backtest(pipeline).run(events, [*known, small.label("odd", 100 * small.MINUTE)])
    assert sum(report.refused.values()) == 1
    assert report.note == ""
    assert max(report.label_delays.quantiles.values()) < small.HOUR  # type: ignore[union-attr]


def test_what_is_refused_has_no_delay() -> None:
    report = run(2 * small.HOUR, label_rules=[rules.between("arr_delay", 900, 2880)])
    assert "later than label_timeout" not in "".join(report.warnings)


def test_what_learn_one_raised_first_is_in_the_report() -> None:
    report = run(small.MINUTE, models={"linear": small.linear(), "other": _LearnsNothing()})
    assert "learn_one of other raised on 100 examples, first ValueError: not this one" in backtest_text(report)


def test_a_training_set_and_a_search_say_what_history_lacks(tmp_path: Path) -> None:
    labels = [small.label(f"x{number}", number * small.MINUTE) for number in range(7)]
    assert "7 labels match no event" in questions.from_rows(small.make(), EVENTS, labels).warnings[0]
    out = tmp_path / "set.parquet"
    form = dataset.Form(small.make(), is_served=False)
    with (
        pytest.raises(SettingsError, match=r"nothing to write: .* 7 labels match no event"),
        dataset.written(out, form, dataset.Span()) as writer,
    ):
        recompute.recompute_rows(small.make(), EVENTS, labels, writer)
    with dataset.written(out, form, dataset.Span()) as writer:
        recompute.recompute_rows(small.make(), EVENTS, [small.label("f1", small.MINUTE), *labels], writer)
    assert dataset_text(writer.summary).startswith("WARNING: the figures leave out 99% of the predictions")


@pytest.mark.parametrize("at", [-(2**63), -99_999_999_999_999, 2**62, 2**63 - 1])
def test_times_that_no_calendar_has_are_printed_as_they_are(at: int) -> None:
    events = [small.event(f"f{number}", asked_at=at) for number in range(3)]
    report = Backtest(small.make()).run(events, [small.label("f0", at)])
    assert report.joined == 0
    assert f"{at}" in backtest_text(report)
    assert json.loads(json.dumps(report.as_dict()))["first_event"] == at
