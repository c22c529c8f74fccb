"""Values that a declaration can't have are refused in words of ours; those that mean something are taken."""

from __future__ import annotations

import datetime as dt
import enum
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from river import linear_model

from tidemill import Pipeline, Stream, View, aggregates, load, number, rules
from tidemill.errors import DeclarationError
from tidemill.testing import Pipeline as InMemory
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


async def waits(record: Any) -> float:
    return 1.0


def yields(record: Any) -> Any:
    yield 1.0


class Asks:
    async def __call__(self, record: Any) -> float:
        return 1.0

    def method(self, record: Any) -> float:
        return float(record["x"])

    @classmethod
    def of_class(cls, record: Any) -> float:
        return float(record["x"])


WITHOUT_ANSWER = [
    (waits, "its function is async"),
    (partial(waits), "its function is async"),
    (Asks(), "its function is async"),
    (yields, "its function yields"),
    (lambda: 1.0, "called with one record: too many positional arguments"),
    (lambda record, more: 1.0, "called with one record: missing a required argument: 'more'"),
]


@pytest.mark.parametrize(("function", "why"), WITHOUT_ANSWER)
def test_a_function_that_has_no_answer_for_one_record_is_refused(function: Any, why: str) -> None:
    with pytest.raises(DeclarationError, match=rf"request\['f'\]: .*{why}"):
        make(request={"f": number(function)})
    with pytest.raises(DeclarationError, match=rf"labels\.value: .*{why}"):
        make(labels=Stream(Known, id="id", value=function))
    with pytest.raises(ValueError, match=rf"^holds\(\.\.\.\): .*{why}"):
        rules.holds(function, "x", that="it is so")


@pytest.mark.parametrize(
    "function",
    [Asks().method, Asks.of_class, partial(lambda by, e: e["x"] * by, 2.0), lambda e, by=2: e["x"] * by, len, str],
)
def test_any_other_callable_of_one_record_is_taken(function: Any) -> None:
    assert make(request={"f": number(function)}, rules=[rules.holds(function, "x", that="it is so")])


def test_a_request_feature_that_raises_is_named() -> None:
    orders = InMemory(make(request={"x": "x", "ratio": number(lambda e: 1 / e["x"])}))
    event = {"id": "a", "at": "2026-01-05", "user": "u", "x": 0.0, "size": "small", "level": 1}
    (letter,) = orders.send(event).dead_letters
    assert letter.message == "request feature 'ratio' raised ZeroDivisionError: float division by zero"


PIPELINE = """
import datetime as dt
from dataclasses import dataclass
from river import linear_model
from tidemill import Pipeline, Stream, number
{imports}

@dataclass
class Asked:
    id: str
    at: dt.datetime
    x: float

@dataclass
class Known:
    id: str
    at: dt.datetime
    y: bool

pipeline = Pipeline(
    name="p", events=Stream(Asked), labels=Stream(Known, value="y"), task="binary", request={{"f": number({function})}},
    models={{"m": linear_model.LogisticRegression()}}, champion="m",
)
"""


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def test_a_pipeline_imports_what_lies_beside_it(tmp_path: Path) -> None:
    """Each its own, where two of one process have modules of one name, or packages; what is installed goes first."""
    for folder, factor in (("a", 2), ("b", 3)):
        (tmp_path / folder / "ours").mkdir(parents=True)
        (tmp_path / folder / "json.py").write_text("raise RuntimeError('not the library')")
        (tmp_path / folder / "helper_beside.py").write_text("from ours.deep import BY\ndef f(e): return e['x'] * BY")
        (tmp_path / folder / "ours" / "__init__.py").write_text("")
        (tmp_path / folder / "ours" / "deep.py").write_text(f"import json\nBY = {factor}")
        text = PIPELINE.format(imports="from helper_beside import f", function="f")
        (tmp_path / folder / "pipeline.py").write_text(text)
    for folder, factor in (("a", 2), ("b", 3), ("a", 2)):
        source = load(str(tmp_path / folder / "pipeline.py")).request_features["f"].source
        assert callable(source)
        assert source({"x": 1}) == factor


def test_a_pipeline_in_a_package_is_named_as_a_module_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shop_package").mkdir()
    (tmp_path / "shop_package" / "__init__.py").write_text("")
    (tmp_path / "shop_package" / "own.py").write_text("def f(e): return e['x']")
    text = PIPELINE.format(imports="from .own import f", function="f")
    (tmp_path / "shop_package" / "orders.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert load("shop_package.orders").name == "p"
    with pytest.raises(DeclarationError, match=r"orders\.py line 6: .*name it as a module, as shop_package\.orders"):
        load("shop_package/orders.py")


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ("", "unknown pipeline '': expected a file as flights.py"),
        (".", r"unknown pipeline '\.': \. is a folder, so name a file in it"),
        (".orders", r"unknown pipeline '\.orders': expected a file"),
        ("shop", "unknown pipeline 'shop': shop is a folder, so name a file in it"),
        ("shop.py", r"pipeline file shop\.py is no file"),
        ("no_such_package.orders", r"unknown pipeline 'no_such_package\.orders': expected a file"),
    ],
)
def test_what_names_no_pipeline_is_refused_in_one_line(
    reference: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop.py").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DeclarationError, match=f"^{why}"):
        load(reference)
