"""A stream declared by a class, without a key, an id or a time: what is chosen, and what is asked for in one line."""

from __future__ import annotations

import datetime as dt
import json
import pickle
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fastavro
import pytest
import small
from click.testing import CliRunner
from river import linear_model

from tidemill import Pipeline, Protect, Stream, View, aggregates, load
from tidemill.cli.main import cli
from tidemill.cli.text.declaration import pipeline_text
from tidemill.encoding.python_schemas import record_of
from tidemill.errors import DeclarationError, SettingsError
from tidemill.offline.backtest import Backtest
from tidemill.wire import topics


@dataclass
class Asked:
    order_id: str
    asked_at: dt.datetime
    amount: float
    customer: str = ""


@dataclass
class Paid:
    order_id: str
    paid_at: dt.datetime
    late: bool


def make(events: Any = Asked, labels: Any = Paid, **changes: Any) -> Pipeline:
    as_stream = {"events": Stream(events) if not isinstance(events, Stream) else events}
    as_stream["labels"] = Stream(labels, value="late") if not isinstance(labels, Stream) else labels
    declared: dict[str, Any] = {
        "name": "orders",
        "task": "binary",
        "request": {"amount": "amount"},
        "models": {"logreg": linear_model.LogisticRegression()},
        "champion": "logreg",
    }
    return Pipeline(**(declared | as_stream | changes))


def fields(name: str, **types: Any) -> type:
    return dataclass(type(name, (), {"__annotations__": types}))


TIME = dt.datetime


def test_what_the_schemas_leave_one_choice_for_is_chosen_and_shown() -> None:
    pipeline = make()
    assert (pipeline.events.id, pipeline.events.time, pipeline.events.key) == ("order_id", "asked_at", "order_id")
    assert (pipeline.labels.id, pipeline.labels.time) == ("order_id", "paid_at")
    assert pipeline.entity == ""
    text = pipeline_text(pipeline)
    assert "no entity: events are keyed by their id" in text
    assert "of events, id='order_id' and time='asked_at'" in text
    assert "class Asked of test_streams_from_python.py" in text


def test_what_is_declared_is_not_chosen() -> None:
    pipeline = make(Stream(Asked, id="order_id", time="asked_at", key="customer"))
    assert (pipeline.events.key, pipeline.entity, pipeline.events.chosen) == ("customer", "customer", ())
    assert pipeline.labels.id == "order_id"
    assert pipeline_text(load("flights")) == pipeline_text(replace(load("flights")))
    assert "no other choice" not in pipeline_text(load("flights"))


@pytest.mark.parametrize(
    ("events", "labels", "words"),
    [
        (fields("A", id=str, at=TIME, seen=TIME, amount=float), Paid, ["events.time", "A", "at, seen", "time='at'"]),
        (fields("A", id=str, at=int, amount=float), Paid, ["events.time", "timestamp", "id, at, amount"]),
        (fields("A", id=str, at=TIME | None, amount=float), Paid, ["events.time", "none of its fields"]),
        (Asked, fields("B", order_id=str, late=bool), ["labels.time", "B", "order_id, late"]),
        (
            fields("A", order_id=str, user_id=str, at=TIME, amount=float),
            fields("B", order_id=str, user_id=str, at=TIME, late=bool),
            ["events.id", "several", "order_id, user_id"],
        ),
        (
            fields("A", nr=str, at=TIME, amount=float),
            fields("B", nr=str, at=TIME, late=bool),
            ["events.id", "id='nr'", "candidates: nr"],
        ),
        (Stream(Asked, id="order_id"), fields("B", order=str, at=TIME, late=bool), ["labels.id", "'order_id'", "order"]),
        (
            Stream(fields("A", order_id=float, at=TIME, amount=float)),
            Paid,
            ["events.id", "no field of events and labels"],
        ),
    ],
)  # fmt: skip
def test_what_could_be_several_is_asked_for_in_one_line_with_the_candidates(
    events: Any, labels: Any, words: list[str]
) -> None:
    with pytest.raises(DeclarationError) as caught:
        make(events, labels)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_entity_is_no_candidate_for_the_id() -> None:
    both = {"order_id": str, "user_id": str, "at": TIME}
    pipeline = make(Stream(fields("A", **both, amount=float), key="user_id"), fields("B", **both, late=bool))
    assert (pipeline.events.id, pipeline.labels.id) == ("order_id", "order_id") or pytest.fail("another")


def test_without_an_entity_no_source_is_its() -> None:
    with pytest.raises(DeclarationError, match=r"protect\.source: 'order_id' is neither.*there are none"):
        make(protect=Protect("order_id"))


def test_a_class_that_has_no_schema_is_refused_with_its_field() -> None:
    with pytest.raises(DeclarationError, match=r"events\.schema: field 'amount': complex"):
        make(fields("A", order_id=str, at=TIME, amount=complex))
    with pytest.raises(DeclarationError, match=r"events\.schema: 5 where the name of a file"):
        make(Stream(5))


def test_a_declaration_by_class_is_the_same_as_by_its_file(tmp_path: Path) -> None:
    for name, cls in (("asked.avsc", Asked), ("paid.avsc", Paid)):
        (tmp_path / name).write_text(json.dumps(record_of(cls)))
    by_file = make(Stream(str(tmp_path / "asked.avsc")), Stream(str(tmp_path / "paid.avsc"), value="late"))
    by_class = make()
    assert by_file.events.avro == by_class.events.avro
    assert by_file.declaration_hash("logreg") == by_class.declaration_hash("logreg")
    assert pickle.loads(pickle.dumps(by_class.events)) == by_class.events
    assert hash(by_class.events) == hash(pickle.loads(pickle.dumps(by_class.events)))


def test_views_of_other_fields_work_without_an_entity() -> None:
    pipeline = make(views=[View("customer", every="1m", aggregates=[aggregates.count("3h")])])
    assert [view.label for view in pipeline.remote_views] == ["customer"]
    ms = small.HOUR
    events = [{"order_id": str(i), "asked_at": i * ms, "amount": 1.0, "customer": "ann"} for i in range(1, 9)]
    labels = [{"order_id": str(i), "paid_at": i * ms + 1, "late": i % 2 == 0} for i in range(1, 9)]
    seen: list[Any] = []
    run = Backtest(pipeline)
    run.predictions = seen.append
    report = run.run(events, labels)
    assert (report.predictions, report.joined, report.dead_letters) == (8, 8, {})
    assert seen[3]["features"]["entity_id"] == "4"
    assert seen[3]["features"]["vector"]["customer_count_3h"] == 2.0


PROGRAM = """
import datetime as dt
from dataclasses import dataclass
from river import linear_model
from tidemill import Pipeline, Stream

@dataclass
class Earlier:
    __avro_name__ = "Asked"
    order_id: str
    asked_at: dt.datetime

@dataclass
class Asked:
    order_id: str
    asked_at: dt.datetime
    amount: float = 0

@dataclass
class Paid:
    order_id: str
    paid_at: dt.datetime
    late: bool

orders = Pipeline(
    name="orders", events=Stream(Asked, accepts=[Earlier]), labels=Stream(Paid, value="late"), task="binary",
    request={"amount": "amount"}, models={"logreg": linear_model.LogisticRegression()}, champion="logreg",
)
"""


@pytest.fixture
def program(tmp_path: Path) -> str:
    (tmp_path / "orders.py").write_text(PROGRAM)
    return str(tmp_path / "orders.py")


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli, arguments, catch_exceptions=False)


@pytest.mark.slow
def test_the_schema_of_every_topic_is_printed_complete_in_itself(program: str) -> None:
    table = run("schema", "show", program, "--json")
    shown = {row["short"]: row for row in json.loads(table.stdout)}
    assert set(shown) == {topic.suffix for topic in topics.TOPICS}
    for reference in (program, "flights"):
        for short, row in shown.items():
            if row["avro"] is None:
                with pytest.raises(SettingsError, match=row["framing"]):
                    run("schema", "show", reference, short)
                continue
            one = run("schema", "show", reference, short)
            avro = json.loads(one.stdout)
            fastavro.parse_schema(avro, named_schemas={})  # refers to nothing outside
            if reference == program:
                assert avro == row["avro"]
                assert f"id {row['id']}" in one.stderr
    assert run("schema", "show", program, "orders.events").stdout == run("schema", "show", program, "events").stdout
    text = run("schema", "show", program).stdout
    assert str(shown["predictions"]["id"]) in text


def test_an_unknown_topic_is_refused_with_those_there_are(program: str) -> None:
    with pytest.raises(SettingsError, match=r"'nothing' is no topic .* predictions"):
        run("schema", "show", program, "nothing")


def test_a_new_file_is_checked_against_classes(program: str, tmp_path: Path) -> None:
    avro = record_of(Asked)
    avro["fields"] = [f for f in avro["fields"] if f["name"] in ("order_id", "asked_at")]
    (tmp_path / "new.avsc").write_text(json.dumps(avro))
    result = run("schema", "check", program, "events", str(tmp_path / "new.avsc"))
    assert "the pipeline reads it with Asked: producers may use it now" in result.stdout


def test_schemas_of_classes_are_registered(program: str) -> None:
    url = "mock://streams-from-python"
    result = run("schema", "register", program, "--registry-url", url, "--json")
    assert [row["subject"] for row in json.loads(result.stdout)] == ["orders.events-value", "orders.labels-value"]


@pytest.mark.slow
def test_check_says_where_schemas_come_from(program: str, tmp_path: Path) -> None:
    text = run("check", program).stdout
    assert "class Asked of orders.py" in text
    assert "events are also taken by Earlier" in text
    assert "departure.v1.avsc" in run("check", "flights").stdout
