"""Values that a declaration can't have are refused in words of ours; those that mean something are taken."""

from __future__ import annotations

import datetime as dt
import enum
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest
from river import linear_model

from tidemill import Pipeline, Stream, View, aggregates, rules
from tidemill.errors import DeclarationError
from tidemill.testing import try_rule


class Size(enum.Enum):
    SMALL = "small"
    LARGE = "large"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@dataclass
class Asked:
    id: str
    at: dt.datetime
    user: str
    x: float
    size: Size
    level: Level


@dataclass
class Known:
    id: str
    at: dt.datetime
    y: bool


def make(**changes: Any) -> Pipeline:
    declared: dict[str, Any] = {
        "name": "odd",
        "events": Stream(Asked, key="user"),
        "labels": Stream(Known, id="id", value="y"),
        "task": "binary",
        "request": {"x": "x"},
        "models": {"m": linear_model.LogisticRegression()},
        "champion": "m",
    }
    return Pipeline(**(declared | changes))


def test_what_belongs_to_the_other_stream_is_refused() -> None:
    with pytest.raises(DeclarationError, match=r"events\.value: 'x': labels have a value, not events; move it there"):
        make(events=Stream(Asked, key="user", value="x"))
    with pytest.raises(DeclarationError, match=r"labels\.key: 'id': events have a key, not labels"):
        make(labels=Stream(Known, id="id", key="id", value="y"))


FIELDS = [None, 0, False, [], ["x"], {}, {"x": 1}, {"x"}, b"x", 1.5, object()]
RULES = {
    "between": lambda field, **more: rules.between(field, 0, 1, **more),
    "one_of": lambda field, **more: rules.one_of(field, [1], **more),
    "not_null": lambda field, **more: rules.not_null(field, **more),
    "not_before": lambda field, **more: rules.not_before(field, "2020-01-01", **more),
    "finite": lambda field, **more: rules.finite(field, **more),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_of_a_field_and_warns_or_not(rule: str) -> None:
    for field in FIELDS:
        with pytest.raises(ValueError, match=rf"^{rule}: .* where the name of a field was expected"):
            RULES[rule](field)
    for warn in (None, "no", "False", 0, 1, [], "warn"):
        with pytest.raises(ValueError, match=rf"^{rule}\('x'\): warn=.* where True or False was expected"):
            RULES[rule]("x", warn=warn)
    assert RULES[rule]("x", warn=True).warn


@pytest.mark.parametrize("kind", ["mean", "first", "last", "min", "distinct"])
def test_an_aggregate_is_of_a_field(kind: str) -> None:
    for field in FIELDS:
        with pytest.raises(ValueError, match=rf"^{kind}: .* where the name of a field was expected"):
            getattr(aggregates, kind)(field, "1h")
    assert make(views=[View("user", every="5m", aggregates=[getattr(aggregates, kind)("x", "1h")])]).views


@pytest.mark.parametrize("bounds", [("0", 1), (0, "1"), (None, 1), (0, None), ([0], 1), (0, dt.date(2026, 1, 1))])
def test_ends_of_between_are_numbers(bounds: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match=r"^between\('x', .*\): both ends are numbers"):
        rules.between("x", *bounds)
    assert make(rules=[rules.between("x", Decimal("0.5"), float("inf"))]).rules


@pytest.mark.parametrize("values", [None, 5, 1.5, True, [[1]], object()])
def test_one_of_takes_plain_values(values: Any) -> None:
    with pytest.raises(ValueError, match=r"^one_of\('x', .*\): give a list of texts, numbers, or true and false"):
        rules.one_of("x", values)


def test_one_of_takes_an_enum_for_its_values() -> None:
    assert make(rules=[rules.one_of("size", Size), rules.one_of("level", [Level.HIGH])]).rules
    assert try_rule(rules.one_of("size", Size), {"size": "small"}, {"size": "huge"}) == [True, False]
    assert try_rule(rules.one_of("level", Level), {"level": 2}, {"level": 3}) == [True, False]


@pytest.mark.parametrize("day", ["2026-01-05", dt.date(2026, 1, 5), dt.datetime(2026, 1, 5, tzinfo=dt.UTC)])
def test_rules_of_times_take_dates_of_python(day: Any) -> None:
    ms = 1_767_571_200_000
    for rule in (rules.not_before("at", day), rules.plausible("at", day, "2100-01-01")):
        assert try_rule(rule, {"at": ms}, {"at": ms - 1}) == [True, False]


@pytest.mark.parametrize("day", [None, 0, 1.5, True, [], b"2026-01-05", "soon"])
def test_rules_of_times_refuse_what_is_none(day: Any) -> None:
    with pytest.raises(ValueError, match=r"is no time: expected ISO 8601, as in 2013-01-31"):
        rules.not_before("at", day)
