"""A pipeline in memory, as a user's unit tests run it."""

from __future__ import annotations

import datetime as dt
import enum
import json
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Annotated, Any

import numpy as np
import pytest
from river import linear_model, preprocessing

from tidemill import Pipeline, Stream, View, aggregates, number, rules, testing
from tidemill.offline.backtest import Backtest
from tidemill.stream.api import TopicPartition
from tidemill.wire import topics

pytestmark = pytest.mark.slow


class Channel(enum.Enum):
    WEB = "web"
    SHOP = "shop"


@dataclass
class Asked:
    order_id: str
    asked_at: dt.datetime
    amount: float
    price: Annotated[Decimal, (10, 2)] = Decimal("1.50")
    channel: Channel = Channel.WEB
    customer: str | None = None


@dataclass
class Paid:
    order_id: str
    paid_at: dt.datetime
    late: bool


START = dt.datetime.now(dt.UTC).replace(microsecond=0) - dt.timedelta(days=3)


def minutes(n: float) -> dt.datetime:
    return START + dt.timedelta(minutes=n)


@pytest.fixture
def declared() -> Pipeline:
    return Pipeline(
        name="orders",
        events=Stream(Asked),
        labels=Stream(Paid, value="late"),
        task="binary",
        rules=[rules.between("amount", 0, 1000)],
        request={"amount": "amount", "root": number(lambda e: e["amount"] ** 0.5)},
        views=[
            View("customer", every="1m", aggregates=[aggregates.count("6h")]),
            View("channel", source="examples", every="1m", aggregates=[aggregates.mean("label", "6h")]),
        ],
        models={"logreg": preprocessing.StandardScaler() | linear_model.LogisticRegression()},
        champion="logreg",
    )


def test_events_become_features_and_predictions_and_labels_become_examples(declared: Pipeline) -> None:
    pipeline = testing.Pipeline(declared)
    first = pipeline.send(Asked("a", minutes(0), 9.0, Decimal("12.34"), Channel.SHOP, "ann"))
    assert first.features[0]["vector"]["root"] == 3.0
    assert (first.predictions[0]["event_id"], first.predictions[0]["champion"]["version"]) == ("a", 0)
    assert first.dead_letters == first.examples == []
    labelled = pipeline.send_labels(Paid("a", minutes(60), late=True))
    assert [(e["label"], e["prediction"]["features"]["event_id"]) for e in labelled.examples] == [(True, "a")]
    assert pipeline.folds["logreg"].examples == 1
    second = pipeline.send(
        {"order_id": "b", "asked_at": minutes(90), "amount": 4, "channel": "shop", "customer": "ann"}
    )
    assert second.predictions[0]["champion"]["version"] == 1
    vector = second.features[0]["vector"]
    assert (vector["customer_count_6h"], vector["channel_outcome_mean_label_6h"]) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        ({"order_id": "a", "asked_at": minutes(0), "amount": "nine"}, "wrong_type"),
        ({"order_id": "a", "asked_at": minutes(0)}, "missing_field"),
        ({"order_id": "a", "asked_at": minutes(0), "amount": 9, "extra": 1}, "unexpected_field"),
        (Asked("a", minutes(0), 5000.0), "out_of_range"),
        (Asked("a", dt.datetime.now(dt.UTC) + dt.timedelta(days=1), 5.0), "in_the_future"),
        (b"\x07nothing", "bad_magic"),
    ],
)
def test_what_is_refused_is_a_dead_letter_with_its_reason(declared: Pipeline, event: Any, reason: str) -> None:
    outcome = testing.Pipeline(declared).send(event)
    assert [letter.reason for letter in outcome.dead_letters] == [reason]
    assert outcome.predictions == []


def test_a_stream_that_takes_avro_alone_is_sent_avro(declared: Pipeline) -> None:
    avro = replace(declared, events=replace(declared.events, encoding="avro"))
    pipeline = testing.Pipeline(avro)
    assert len(pipeline.send(Asked("a", minutes(0), 9.0, Decimal("-12.34"))).predictions) == 1
    (record,) = pipeline.broker.records(topics.EVENTS.name("orders"))
    assert (record.value() or b"")[:1] == b"\0"


def test_without_an_entity_events_and_labels_meet_whatever_the_partitions(declared: Pipeline) -> None:
    """Keyed by the id, prediction and label of an event lie in partitions of one number."""
    declared = replace(declared, partitions=5)
    pipeline = testing.Pipeline(declared)
    events = [Asked(f"o{i}", minutes(i), float(i), customer="ann") for i in range(60)]
    assert len(pipeline.send(*events).predictions) == 60
    labels = [Paid(f"o{i}", minutes(100 + i), late=i % 2 == 0) for i in range(60)]
    outcome = pipeline.send_labels(*labels)
    assert (len(outcome.examples), outcome.dead_letters) == (60, [])
    broker = pipeline.broker
    used = [p for p in range(5) if broker.end_offset(TopicPartition(topics.EVENTS_VALID.name("orders"), p))]
    assert len(used) > 1
    by_id = {
        name: {r.key(): r.partition() for r in broker.records(topic.name("orders"))}
        for name, topic in (
            ("log", topics.PREDICTION_LOG),
            ("labels", topics.LABELS_VALID),
            ("events", topics.EVENTS_VALID),
        )
    }
    assert by_id["log"] == by_id["labels"] == by_id["events"]


def test_one_at_a_time_it_gives_the_scores_of_a_backtest(declared: Pipeline) -> None:
    declared = replace(declared, views=declared.views[:1], partitions=1)
    pipeline = testing.Pipeline(declared)
    events = [Asked(f"o{i}", minutes(30 * i), float(i * 37 % 50), customer="ann") for i in range(20)]
    labels = [Paid(f"o{i}", minutes(30 * i + 15), late=i * 37 % 50 > 25) for i in range(20)]
    scores = []
    for event, label in zip(events, labels, strict=True):
        scores += [p["champion"]["score"] for p in pipeline.send(event).predictions]
        pipeline.send_labels(label)

    def millis(record: Any, time: str) -> dict[str, Any]:
        row = dict(vars(record))
        row[time] = int(row[time].timestamp() * 1000)
        return row | ({"channel": "web", "price": b"\0"} if time == "asked_at" else {})

    seen: list[float] = []
    run = Backtest(declared)
    run.predictions = lambda prediction: seen.append(prediction["champion"]["score"])
    run.run([millis(e, "asked_at") for e in events], [millis(label, "paid_at") for label in labels])
    assert scores == seen
    assert len(set(scores)) > 10


def test_predictions_in_json_have_the_fields_of_those_in_avro(declared: Pipeline) -> None:
    event = Asked("a", minutes(0), 9.0, customer="ann")
    (avro,) = testing.Pipeline(declared).send(event).predictions
    pipeline = testing.Pipeline(replace(declared, predictions_encoding="json"))
    (by_json,) = pipeline.send(event).predictions
    (record,) = pipeline.broker.records(topics.PREDICTIONS.name("orders"))
    assert json.loads(record.value() or b"") == by_json == avro
    assert pipeline.records.read_prediction(b'{"event_id": 5}') is None
    assert pipeline.records.read_prediction(None) is None


@dataclass
class Line:
    price: Annotated[Decimal, (10, 2)]
    channel: Channel = Channel.WEB


@dataclass
class Basket:
    basket_id: str
    asked_at: dt.datetime
    first: Line
    lines: list[Line]
    by_day: dict[str, Annotated[Decimal, (8, 3)]]
    tip: Annotated[Decimal, (10, 2)] | None = None
    last: Line | None = None
    items: int = 0
    express: bool = False


@pytest.mark.parametrize("encoding", ["", "avro"])
@pytest.mark.parametrize("kind", ["instance", "mapping", "numpy"])
def test_decimals_and_classes_inside_of_records_are_sent_as_the_schema_has_them(
    declared: Pipeline, encoding: str, kind: str
) -> None:
    baskets = replace(
        declared,
        events=Stream(Basket, id="basket_id", encoding=encoding),
        labels=Stream(Paid, id="order_id", value="late"),
        rules=[],
        request={
            "items": "items",
            "first": number(lambda e: e["first"]["price"]),
            "lines": number(lambda e: sum(line["price"] for line in e["lines"])),
            "by_day": number(lambda e: e["by_day"]["mon"]),
            "last": number(lambda e: e["last"]["price"]),
        },
        views=[],
    )
    line = Line(Decimal("1.25"), Channel.SHOP)
    basket: Any = Basket(
        "a", minutes(0), line, [line, Line(Decimal("-0.50"))], {"mon": Decimal("0.125")}, last=line, items=3
    )
    if kind != "instance":
        basket = dict(vars(basket))
    if kind == "numpy":
        basket |= {"items": np.int64(3), "express": np.bool_(True), "lines": np.array(basket["lines"], dtype=object)}
    outcome = testing.Pipeline(baskets).send(basket)
    assert outcome.dead_letters == []
    vector = outcome.features[0]["vector"]
    assert vector == {"items": 3.0, "first": 1.25, "lines": 0.75, "by_day": 0.125, "last": 1.25}


def test_a_decimal_with_more_digits_than_the_schema_s_is_not_cut(declared: Pipeline) -> None:
    with pytest.raises(ValueError, match=r"1\.005 has more digits after the point than the schema's 2"):
        testing.Pipeline(declared).send(Asked("a", minutes(0), 1.0, Decimal("1.005")))


def test_a_decimal_is_a_feature_by_its_name(declared: Pipeline) -> None:
    priced = replace(declared, request={"price": "price"})
    outcome = testing.Pipeline(priced).send(Asked("a", minutes(0), 1.0, Decimal("-12.34")))
    assert outcome.features[0]["vector"]["price"] == -12.34
