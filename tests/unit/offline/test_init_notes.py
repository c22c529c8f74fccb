"""`tidemill init`: what looks right in the data and is not is said in a note, or asked."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill import rows
from tidemill.errors import SettingsError
from tidemill.offline import scaffold
from tidemill.offline.scaffold.columns import columns_of
from tidemill.offline.scaffold.plan import Data, Options, Plan, plan

pytestmark = pytest.mark.slow

MIDNIGHT = dt.datetime(2026, 1, 5)


def at(n: int, form: str = "%Y-%m-%dT%H:%M:%S") -> str:
    return (MIDNIGHT + dt.timedelta(hours=n)).strftime(form)


def planned(number: int = 60, *, is_csv: bool = True, options: Options | None = None, **columns: Any) -> Plan:
    """Plan for rows with these columns, each made by a function of the row's number."""
    given = (
        {"id": lambda n: f"o{n}"} | columns | ({} if "label" in columns else {"label": lambda n: str(n * 7 % 3 % 2)})
    )
    values = {name: [make(n) for n in range(number)] for name, make in given.items()}
    return plan("shop", Data("orders", values, is_csv=is_csv), None, options or Options())


def notes(made: Plan) -> str:
    return "\n".join(made.notes)


@pytest.mark.parametrize("cut", ["%Y-%m-%d", "%Y-%m-01", "%Y-01-01"])
@pytest.mark.parametrize("order", [("day", "moment"), ("moment", "day")])
def test_a_time_that_was_cut_to_its_day_month_or_year_is_no_time_of_its_own(cut: str, order: tuple[str, str]) -> None:
    times: dict[str, Callable[[int], str]] = {"day": lambda n: at(n * 7, cut), "moment": lambda n: at(n * 7)}
    made = planned(**{name: times[name] for name in order}, x=lambda n: f"{n}.5")
    assert made.time == "moment"
    assert made.label_time == "known_at"  # of its own; the day is not when the label is known, nor is the moment
    assert "the time of an event is 'moment'" in notes(made)


def test_a_day_is_a_label_time_where_it_is_another_day() -> None:
    made = planned(ordered=lambda n: at(n * 24 + 3), paid=lambda n: at(n * 24 + 48, "%Y-%m-%d"), x=lambda n: f"{n}.5")
    assert (made.time, made.label_time) == ("ordered", "paid")


def test_the_time_of_day_in_a_column_of_its_own_is_noted() -> None:
    made = planned(date=lambda n: at(n, "%Y-%m-%d"), time=lambda n: at(n, "%H:%M"), x=lambda n: f"{n}.5")
    assert "'date' is a day; its time of day is not read, from: 'time'" in notes(made)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (lambda n: str(1_767_571_200 * (1_000 if n % 2 else 1) + n), "do not all count seconds"),
        (lambda n: str(1_767_571_200 + n if n else 0), "do not all count seconds"),
        (lambda n: f"{46_000 + n / 24}", "do not all count seconds"),  # as spreadsheets count days
        (lambda n: at(n, "%Y-%m-%d %H:%M CEST"), "are of no form that is known"),
    ],
)
def test_what_is_called_a_time_and_is_none_is_noted(value: Callable[[int], str], why: str) -> None:
    made = planned(created_ts=value, x=lambda n: f"{n}.5")
    assert "'created_ts' is no time: its" in notes(made)
    assert why in notes(made)
    assert "is no time: its" not in notes(planned(created_ts=value, x=lambda n: f"{n}.5", options=Options(time="none")))


def test_whole_numbers_that_a_feature_can_not_have_are_names() -> None:
    made = planned(user=lambda n: str(1_400_000_000_000_000_000 + n % 5), x=lambda n: str(n * 10**13))
    assert made.numbers == ["x"]
    assert "'user' (whole numbers beyond 1e+15, which are names)" in notes(made)


def test_numbers_that_the_validator_would_refuse_are_not_in_the_schema() -> None:
    made = planned(far=lambda n: f"{n}.5e17", few=lambda n: "inf" if n == 3 else f"{n}.5")
    assert [part.name for part in made.events] == ["id", "at", "few"]
    assert "'far' (most of its numbers lie beyond 1e+15; not in the schema)" in notes(made)


@pytest.mark.slow
def test_what_the_validator_refuses_of_the_data_is_noted(tmp_path: Path) -> None:
    lines = [f"o{n},{at(n) if n != 7 else '9999-12-31'},{'inf' if n == 3 else n / 2},{n % 2}" for n in range(60)]
    source = tmp_path / "orders.csv"
    source.write_text("\n".join(["id,ts,x,label", *lines]))
    text = notes(scaffold.make(tmp_path / "shop", [scaffold.of_file(source)], Options()))
    assert "1 of 60 events are refused: not_finite, the first: field 'x' is inf" in text
    assert "1 of 60 events are refused: in_the_future" in text


@pytest.mark.slow
def test_old_times_are_history_and_no_wrong_unit(tmp_path: Path) -> None:
    source = tmp_path / "rivers.csv"
    source.write_text("\n".join(["id,year,x,label", *(f"r{n},{1900 + n},{n / 2},{n % 2}" for n in range(60))]))
    made = scaffold.make(tmp_path / "rivers", [scaffold.of_file(source)], Options())
    assert (made.time, "lie outside" in notes(made)) == ("year", False)


def test_of_several_labels_one_is_asked_for() -> None:
    columns = {"x": lambda n: f"{n}.5", "label_a": lambda n: str(n % 2), "label": lambda n: str(n % 3 % 2)}
    with pytest.raises(SettingsError, match=r"Say so with --label: 'label', 'label_a', 'none'"):
        planned(**columns)
    assert planned(**columns, options=Options(label="label_a")).label == "label_a"


def test_a_column_that_is_the_label_in_other_words_is_noted() -> None:
    text = notes(planned(alive=lambda n: "no" if n * 7 % 3 % 2 else "yes", x=lambda n: f"{n}.5"))
    assert "these say the label in every row; leave out what is not known when the event comes: 'alive'" in text
    assert "these say the label" not in notes(planned(x=lambda n: f"{n}.5", y1=lambda n: str(n % 5)))


def test_values_of_a_label_that_differ_in_blanks_or_case_alone_are_noted() -> None:
    text = notes(planned(x=lambda n: f"{n}.5", label=lambda n: ("yes", " yes", "no", "maybe")[n % 4]))
    assert "differ in blanks or case alone, and are classes of their own: 'yes', ' yes'" in text


@pytest.mark.parametrize("only", ["0", "1"])
def test_a_label_of_zeros_or_of_ones_is_binary(only: str) -> None:
    assert planned(x=lambda n: f"{n}.5", label=lambda n: only).task == "binary"
    assert planned(x=lambda n: n / 2, label=lambda n: int(only), is_csv=False).task == "binary"
    assert planned(x=lambda n: f"{n}.5", label=lambda n: "7").task == "regression"


@pytest.mark.parametrize("value", [b"\x00", dt.timedelta(seconds=1), [1], {"a": 1}])
def test_what_a_column_holds_is_called_by_its_name(value: Any) -> None:
    made = planned(odd=lambda n: value, x=lambda n: n / 2, label=lambda n: n % 2 == 0, is_csv=False)
    kind = {bytes: "bytes", dt.timedelta: "durations"}.get(type(value), "lists or objects")
    assert f"'odd' ({kind}; not in the schema)" in notes(made)


def test_a_first_line_of_values_is_noted() -> None:
    made = planned(**{"0.5": lambda n: f"{n}.5", "2026-01-05": lambda n: at(n)})
    assert "the first line is taken for one of names, and holds values: '0.5', '2026-01-05'" in notes(made)


@pytest.mark.parametrize("separator", [" ", "^", "  ", "~"])
def test_one_column_whose_name_has_a_separator_that_is_not_known_is_refused(separator: str) -> None:
    text = "\n".join(separator.join(["id", "x", "label"]) for _ in range(3)).encode()
    with pytest.raises(SettingsError, match=r"one column, '.*': see that its values are separated by one of , ; \| or"):
        Data("orders.csv", rows.columns_of(text, ".csv"), is_csv=True)


def test_an_error_of_json_lines_says_once_that_they_can_not_be_read() -> None:
    with pytest.raises(ValueError, match=r"^can't be read: row 1 goes on") as caught:
        rows.columns_of(b'{\n "a": 1\n}\n', ".jsonl")
    assert str(caught.value).count("can't be read") == 1


def european(number: float, digits: int) -> str:
    return f"{number:,.{digits}f}".translate(str.maketrans(",.", ".,"))


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=8), st.lists(st.integers(0, 10**9), min_size=8, max_size=8))
def test_numbers_with_decimal_commas_are_the_numbers_with_points(cents: list[int], counts: list[int]) -> None:
    prices = [european(cent / 100, 2) for cent in cents]
    counted = [european(count, 0) for count in counts[: len(cents)]]
    price, count = columns_of({"price": prices, "count": counted}, is_csv=True)
    assert price.numbers == [cent / 100 for cent in cents]
    if count.kind != "text":  # of several points, without a comma, a column alone may be anything
        assert count.numbers == counts[: len(cents)]
