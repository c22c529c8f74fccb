"""What a declaration's own functions return is what it means: missing is missing, and text is neither true nor false."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from enum import Enum
from typing import Any

import numpy as np
import pandas as pd
import pytest
import small
from river import naive_bayes

from tidemill import category, flag, number, rules
from tidemill.declare.feature import Feature
from tidemill.declare.tasks import TASKS
from tidemill.errors import DeclarationError
from tidemill.offline.backtest import Backtest, BacktestReport
from tidemill.stages.featurizer.service import extractor


class _Colour(str, Enum):  # noqa: UP042  StrEnum gives its text itself
    RED = "red"


@pytest.mark.parametrize("make", [number, category, flag])
@pytest.mark.parametrize(
    "missing", [None, float("nan"), np.nan, np.float32("nan"), pd.NA, pd.NaT, np.datetime64("NaT")]
)
def test_what_is_missing_is_missing_in_every_kind(make: Any, missing: Any) -> None:
    assert extractor(make(lambda _: missing))({}) is None


@pytest.mark.parametrize(
    ("feature", "value"),
    [
        (number(lambda _: np.int64(3)), 3.0),
        (number(lambda _: np.float32(0.5)), 0.5),
        (number(lambda _: np.True_), 1.0),
        (category(lambda _: np.int64(3)), "3"),
        (category(lambda _: np.str_("a")), "a"),
        (category(lambda _: _Colour.RED), "red"),
        (number(lambda _: np.complex128(3)), 3.0),
        (flag(lambda _: np.True_), True),
        (flag(lambda _: np.int8(0)), False),
        (flag(lambda _: 1.0), True),
    ],
)
def test_numpys_values_are_what_they_mean(feature: Feature, value: Any) -> None:
    given = extractor(feature)({})
    assert (given, type(given)) == (value, type(value))


@pytest.mark.parametrize("text", ["no", "false", "0", "", "yes", b"1", 2, -1, [], {"a": 1}])
def test_a_flag_is_not_made_of_what_is_neither_true_nor_false(text: Any) -> None:
    with pytest.raises(TypeError, match="where true or false was expected"):
        extractor(flag(lambda _: text))({})


def test_a_flag_of_a_text_field_is_refused_with_the_mend() -> None:
    with pytest.raises(DeclarationError, match=r"request\['late'\]: field 'carrier' is string, .* e\['carrier'\] =="):
        small.make(request={"late": flag("carrier")})


class _Nameless:
    """Its text is its address, another in each process."""


@pytest.mark.parametrize(
    "value",
    [["a"], {"a": 1}, ("a",), {1}, b"x", np.array([1]), _Nameless(), _Nameless, len, (n for n in "a"), map(str, "a")],
)
def test_a_category_is_made_of_nothing_that_has_no_text_of_its_own(value: Any) -> None:
    with pytest.raises(TypeError, match="where text was expected"):
        extractor(category(lambda _: value))({})


@pytest.mark.parametrize("value", [1 + 2j, np.complex64(1 + 2j), np.fft.fft([1.0, 2.0, 4.0])[1]])
def test_a_number_is_not_a_part_of_a_complex_one(value: Any) -> None:
    with pytest.raises(TypeError, match=r"where a number was expected|not 'complex'"):
        extractor(number(lambda _: value))({})


def test_a_number_beyond_any_float_is_missing_as_an_infinite_one() -> None:
    assert extractor(number(lambda _: 10**400))({}) is None
    assert extractor(number(lambda _: Decimal("sNaN")))({}) is None


CHANGES: dict[str, Callable[[Any], Any]] = {
    "clear": lambda e: e.clear(),
    "pop": lambda e: e.pop("distance"),
    "update": lambda e: e.update(origin="nowhere"),
    "set": lambda e: e.__setitem__("distance", 9.0),
    "delete": lambda e: e.__delitem__("flight_id"),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("make", [number, category, flag])
def test_a_function_cannot_change_the_event_that_others_are_asked_of(make: Any, change: str) -> None:
    report, river = ran(request={"f": make(CHANGES[change])})
    assert report.dead_letters == {"request_feature": 2}
    assert "mappingproxy" in report.first_letters["request_feature"]
    assert river == []


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_nor_can_a_rule_or_a_label_change_it(change: str) -> None:
    def alters(record: Any) -> float:
        CHANGES[change](record)
        return 1.0

    labels = replace(small.LABELS, value=alters)
    assert ran(labels=labels)[0].dead_letters == {"bad_label": 2}
    rule = rules.holds(alters, "distance", that="it is right")
    assert ran(rules=[rule])[0].dead_letters == {"does_not_hold": 2}


def test_text_that_cannot_be_written_is_a_dead_letter() -> None:
    report, predictions = ran(request={"f": category(lambda e: "\ud800" if e["flight_id"] == "a" else "x")})
    assert report.dead_letters["request_feature"] == 1
    assert [one["features"]["event_id"] for one in predictions] == ["b"]
    labels = replace(small.LABELS, value=lambda e: "\ud800" if e["flight_id"] == "a" else "x")
    report, _ = ran(task="multiclass", labels=labels, models={"linear": naive_bayes.GaussianNB()})
    assert (report.dead_letters, report.joined) == ({"bad_label": 1}, 1)


@pytest.mark.parametrize(
    ("task", "value", "label"),
    [
        ("binary", np.True_, True),
        ("regression", np.float64(1.5), 1.5),
        ("regression", np.int32(2), 2.0),
        ("regression", Decimal("0.25"), 0.25),
        ("multiclass", np.str_("a"), "a"),
    ],
)
def test_a_label_of_numpys_is_what_it_means(task: str, value: Any, label: Any) -> None:
    given = TASKS[task].label(value)
    assert (given, type(given)) == (label, type(label))


@pytest.mark.parametrize(
    "value", [np.nan, np.float32("inf"), np.datetime64("NaT"), np.array([1.0]), Decimal("NaN"), True]
)
def test_what_is_no_number_is_no_label(value: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        TASKS["regression"].label(value)


def ran(**changes: Any) -> tuple[BacktestReport, list[Any]]:
    """A backtest of two events with their labels, and its predictions."""
    run, predictions = Backtest(small.make(views=[], **{"models": {"linear": small.linear()}, **changes})), []
    run.predictions = predictions.append
    events = [small.event(id_, at) for at, id_ in enumerate("ab")]
    return run.run(events, [small.label(id_, 5, 3.0) for id_ in "ab"]), predictions
