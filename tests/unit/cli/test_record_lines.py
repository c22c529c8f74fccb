"""Lines of `send` and `tail`."""

from typing import Any

import pytest

from tidemill.cli.text.predictions import _scores
from tidemill.cli.text.records import RecordTable, outcome_line
from tidemill.cli.text.shared import render
from tidemill.offline.send import Outcome

ROW = {"event_time": 0, "label_time": 0, "event_id": "7", "entity_id": "7", "model": "m", "version": 9, "label": "fog"}
LETTER = {
    "refused_at": 0, "place": "1:0", "stage": "validator", "reason": "out_of_range", "field": "distance_km", "value": "25.5",
    "message": "field 'distance_km' is 25.5 where 0 to 18 was expected",
}  # fmt: skip


def line(what: str, row: dict[str, Any], entity: str = "place") -> str:
    return " ".join(RecordTable(what, entity).line(row).split())


def test_of_several_classes_the_one_that_is_predicted_is_named() -> None:
    answers = {"probabilities": {"rain": 0.25, "fog": 0.75}, "score": 0.75}
    sent = Outcome("7", "predicted", model="m", version=9, **answers)
    assert outcome_line(sent, "weather") == "7  predicted fog (0.75) by m@9"
    assert line("predictions", {**ROW, **answers}) == "1970-01-01 00:00:00 7 7 fog (0.75) m@9"
    assert line("examples", {**ROW, **answers}).endswith("fog fog (0.75) m@9")
    assert outcome_line(Outcome("7", "predicted", score=0.5, model="m"), "orders") == "7  predicted 0.5 by m@0"


def test_a_neutral_score_is_not_shown_as_an_answer() -> None:
    """A model that has learned nothing may have none: the score is there for who needs a number."""
    neutral = {"probabilities": None, "score": 0.0, "answered": False}
    assert line("predictions", {**ROW, **neutral}) == "1970-01-01 00:00:00 7 7 no answer yet m@9"
    sent = Outcome("7")
    sent.state = "predicted"
    sent.take({"model": "m", "version": 0, **neutral})
    assert outcome_line(sent, "orders") == "7  no answer yet of m@0"
    assert sent.as_dict()["answered"] is False
    then = {**neutral, "model": "m", "version": 0, "role": "champion", "state": "equal", "score_now": 0.0}
    shown = render(_scores([{**then, "probabilities": {}, "probabilities_now": {}}]))
    assert shown.count("no answer yet") == 2
    assert "0.0" not in shown


def test_rows_stand_below_the_headings_and_a_column_grows_with_its_values() -> None:
    table, answer = RecordTable("predictions", "place"), {"probabilities": None, "score": 0.5}
    first = table.line({**ROW, **answer, "event_id": "7" * 9})
    headings, second = table.headings(), table.line({**ROW, **answer, "event_id": "東京"})
    assert headings == "event time (UTC)     event      place  predicted  model"
    assert first == "1970-01-01 00:00:00  777777777  7      0.5        m@9"
    assert second == "1970-01-01 00:00:00  東京       7      0.5        m@9"  # two cells a character


def test_without_an_entity_the_id_is_printed_once() -> None:
    row = {**ROW, "probabilities": None, "score": 0.5}
    assert line("predictions", row, entity="") == "1970-01-01 00:00:00 7 0.5 m@9"
    assert "entity" not in RecordTable("predictions", "").headings()


def test_a_message_that_names_the_value_is_not_preceded_by_it() -> None:
    assert line("dlq", LETTER) == f"1970-01-01 00:00:00 1:0 validator out_of_range {LETTER['message']}"
    other = {**LETTER, "message": "too far"}
    assert line("dlq", other).endswith(" distance_km=25.5: too far")


@pytest.mark.parametrize("width", [80, 120])
def test_what_is_wider_than_the_terminal_goes_on_below(width: int) -> None:
    first, *rest = (
        RecordTable("dlq", "place", width).line({**LETTER, "message": f"{LETTER['message']} " * 2}).split("\n")
    )
    assert first.startswith("1970-01-01 00:00:00  1:0     validator  out_of_range   field 'distance_km'")
    assert rest
    for below in rest:
        assert below.startswith(" " * 21)
    assert all(len(part) <= width for part in (first, *rest))
    assert "\n" not in RecordTable("dlq", "place").line(LETTER)
