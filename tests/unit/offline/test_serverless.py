"""A function that a platform calls with a batch answers what the river would, by the river's own steps."""

from __future__ import annotations

import base64
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import small

from tidemill import Pipeline, rules
from tidemill.errors import SettingsError
from tidemill.serverless import Handler, aws_records
from tidemill.testing import Pipeline as InMemory

NOW = 1_700_000_000_000


def plain(**changes: object) -> Pipeline:
    return small.make(views=[], **changes)


def learned(memory: InMemory) -> list[SimpleNamespace]:
    """Return the versions that a pipeline in memory serves, as the scorer's feed hands them over."""
    return [
        SimpleNamespace(
            manifest=SimpleNamespace(model=name, version=fold.version, epoch=0),
            snapshot=SimpleNamespace(model=fold.running),
        )
        for name, fold in memory.folds.items()
    ]


def aws(*values: bytes | None, headers: list | None = None) -> dict[str, object]:
    """Return what AWS Lambda is called with."""
    records = [
        {
            "topic": "small.events", "partition": 0, "offset": number, "timestamp": NOW, "timestampType": "CREATE_TIME",
            "key": base64.b64encode(b"JFK").decode(), "headers": headers or [],
            **({"value": base64.b64encode(value).decode()} if value is not None else {}),
        }
        for number, value in enumerate(values)
    ]  # fmt: skip
    return {"eventSource": "aws:kafka", "records": {"small.events-0": records}}


@pytest.mark.slow
def test_its_answers_are_the_rivers_predictions_of_the_same_versions() -> None:
    river = InMemory(plain())
    for number in range(20):
        river.send(small.event(f"l{number}", NOW, distance=100.0 * number))
        river.send_labels(small.label(f"l{number}", NOW + 1, arr_delay=float(number)))
    events = [small.event(f"e{number}", NOW, distance=50.0 * number) for number in range(10)]
    handle = Handler(plain(), lambda: learned(river))
    answers = handle(aws_records(aws(*map(small.as_json, events))))
    assert [{**answer, "state": ""} for answer in answers] == [
        {**p, "state": ""} for p in river.send(*events).predictions
    ]
    assert {answer["state"] for answer in answers} == {"predicted"}
    assert {answer["champion"]["version"] for answer in answers} == {20}
    assert len({answer["champion"]["score"] for answer in answers}) == 10
    avro = [river.records.event.encode(event) for event in events]
    assert handle(avro) == answers, "whatever they come in, and again when a batch is repeated"


@pytest.mark.slow
def test_with_views_it_is_the_river_that_has_seen_what_this_process_was_given() -> None:
    declared = small.make()
    river, handle = InMemory(declared), Handler(declared, tuple, forgets=True)
    events = [small.event(f"e{number}", NOW + number, distance=50.0 * number) for number in range(6)]
    predictions = [prediction for event in events for prediction in river.send(event).predictions]
    answers = handle(map(small.as_json, events))
    assert [answer["champion"] for answer in answers] == [prediction["champion"] for prediction in predictions]


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"views": [small.VIEW]}, "views"), ({"views": [], "rules": [rules.unique("flight_id", within="1h")]}, "rules that remember")],
)  # fmt: skip
def test_what_a_function_does_not_keep_is_refused_unless_that_is_meant(changes: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError, match=f"{words}.*forgets=True"):
        Handler(small.make(**changes), tuple)
    assert Handler(small.make(**changes), tuple, forgets=True)


def test_what_is_refused_has_the_words_of_its_dead_letter_and_the_others_go_on() -> None:
    odd, good = small.as_json(small.event("a", NOW, sched_hour=77)), small.as_json(small.event("b", NOW))
    given = aws(odd, None, b"\xff", good)
    answers = Handler(plain(), tuple)(aws_records(given))
    assert [answer["state"] for answer in answers] == ["refused", "refused", "refused", "predicted"]
    assert (answers[0]["reason"], answers[0]["field"], answers[0]["service"]) == (
        "out_of_range",
        "sched_hour",
        "validator",
    )
    assert [answer["reason"] for answer in answers[1:3]] == ["empty", "bad_magic"]


def test_headers_come_as_bytes_in_numbers() -> None:
    (record,) = aws_records(aws(b"{}", headers=[{"content-type": list(b"application/json")}, {"a": []}]))
    assert record.headers() == [("content-type", b"application/json"), ("a", b"")]
    assert (record.key(), record.timestamp()[1], record.offset()) == (b"JFK", NOW, 0)


def test_the_program_in_the_docs_answers_what_lambda_calls_it_with(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[3] / "docs" / "how-to" / "serverless.md").read_text()
    program = page.partition("```python\n")[2].partition("```")[0]
    (tmp_path / "shop.py").write_text("import small\n\nshop = small.make(views=[])\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tidemill.serverless._feed", lambda pipeline: tuple)
    names: dict[str, Any] = {}
    exec(program, names)
    (answer,) = names["handler"](aws(small.as_json(small.event("a", NOW))), None)
    assert (answer["state"], answer["event_id"], answer["champion"]["model"]) == ("predicted", "a", "linear")
