"""CloudEvents come in by the Kafka binding, in either mode, and predictions go out as such where that is declared."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import pytest
from river import linear_model

from tidemill import Pipeline, Stream
from tidemill.encoding.envelopes import unwrapped
from tidemill.testing import Pipeline as InMemory


@dataclass
class Order:
    ce_id: str
    ce_time: datetime
    ce_type: str
    amount: float


@dataclass
class Paid:
    ce_id: str
    paid_at: datetime
    paid: bool


ORDERS = Pipeline(
    name="orders",
    events=Stream(Order, id="ce_id", time="ce_time", key="ce_id", unwrap="cloudevents"),
    labels=Stream(Paid, id="ce_id", time="paid_at", value="paid"),
    task="binary",
    request={"amount": "amount"},
    models={"logreg": linear_model.LogisticRegression()},
    champion="logreg",
    predictions_headers="cloudevents",
)
ATTRIBUTES = {
    "specversion": "1.0", "id": "a-17", "source": "/shop/till", "type": "shop.order.v1", "time": "2024-11-05T12:00:00Z",
}  # fmt: skip
DATA = {"amount": 49.5}


def binary(changes: dict[str, str | None] | None = None, content_type: str = "application/json") -> list:
    attributes = {**ATTRIBUTES, **(changes or {})}
    headers = [(f"ce_{name}", value.encode()) for name, value in attributes.items() if value is not None]
    return [("content-type", content_type.encode()), *headers]


def outcome(value: bytes, headers: list | None = None, pipeline: Pipeline = ORDERS) -> tuple[InMemory, Any]:
    memory = InMemory(pipeline)
    memory.broker.append("orders.events", value, headers=headers)
    return memory, memory.send()


MESSAGES = {
    "binary": (json.dumps(DATA).encode(), binary()),
    "binary, with an extension and no content type": (json.dumps(DATA).encode(), [*binary()[1:], ("ce_region", b"x")]),
    "structured": (
        json.dumps({**ATTRIBUTES, "data": DATA}).encode(),
        [("content-type", b"application/cloudevents+json; charset=UTF-8")],
    ),
    "structured, by itself": (json.dumps({**ATTRIBUTES, "data": DATA, "comexampleextension": 5}).encode(), None),
    "structured, with data in base64": (
        json.dumps({**ATTRIBUTES, "data_base64": base64.b64encode(json.dumps(DATA).encode()).decode()}).encode(),
        None,
    ),
}


@pytest.mark.parametrize("mode", MESSAGES)
def test_attributes_are_fields_where_the_schema_has_them(mode: str) -> None:
    memory, what = outcome(*MESSAGES[mode])
    assert not what.dead_letters
    (valid,) = [memory.records.event.decode(record.value()) for record in memory.broker.records("orders.events.valid")]
    assert valid == {"ce_id": "a-17", "ce_time": 1_730_808_000_000, "ce_type": "shop.order.v1", "amount": 49.5}
    assert [prediction["event_id"] for prediction in what.predictions] == ["a-17"]


@pytest.mark.parametrize(
    ("value", "headers", "reason", "field"),
    [
        (DATA, None, "missing_field", "specversion"),
        ({**ATTRIBUTES, "id": "", "data": DATA}, None, "missing_field", "ce_id"),
        ({**ATTRIBUTES, "type": 5, "data": DATA}, None, "missing_field", "ce_type"),
        ({**ATTRIBUTES, "specversion": "0.3", "data": DATA}, None, "wrong_type", "ce_specversion"),
        (ATTRIBUTES, None, "not_json", ""),
        ({**ATTRIBUTES, "data": [1]}, None, "not_json", ""),
        ({**ATTRIBUTES, "data_base64": "?"}, None, "not_json", "data_base64"),
        ({**ATTRIBUTES, "data_base64": 5}, None, "not_json", "data_base64"),
        (DATA, binary({"source": None}), "missing_field", "ce_source"),
        (DATA, binary({"specversion": None}), "missing_field", "ce_specversion"),
        (DATA, [("ce_id", b"\xff"), *binary({"id": None})], "wrong_type", "ce_id"),
        (DATA, binary({"time": None}), "missing_field", "ce_time"),
        (DATA, binary({"time": "soon"}), "bad_time", "ce_time"),
        ({**DATA, "more": 1}, binary(), "unexpected_field", "more"),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_what_is_none_is_a_dead_letter(value: Any, headers: list | None, reason: str, field: str) -> None:
    _, what = outcome(json.dumps(value).encode(), headers)
    (letter,) = what.dead_letters
    assert (letter.reason in (reason, "wrong_type" if reason == "bad_time" else ""), letter.field) == (True, field)


@pytest.mark.parametrize(("encoding", "form"), [("avro", b"application/avro"), ("json", b"application/json")])
def test_predictions_are_cloudevents_where_that_is_declared(encoding: str, form: bytes) -> None:
    trace = ("traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
    memory, _ = outcome(json.dumps(DATA).encode(), [*binary(), trace], replace(ORDERS, predictions_encoding=encoding))
    (prediction,) = memory.broker.records("orders.predictions")
    assert dict(prediction.headers()[1:]) == {
        "ce_specversion": b"1.0", "ce_type": b"tidemill.prediction.v1", "ce_source": b"/tidemill/orders", "content-type": form,
        "ce_id": b"a-17", "ce_subject": b"a-17", trace[0]: trace[1],
    }  # fmt: skip
    (logged,) = memory.broker.records("orders.prediction-log")
    assert [name for name, _ in logged.headers()] == ["tidemill.origin", "traceparent"]


def test_files_may_hold_events_or_their_data() -> None:
    record = {**DATA, "ce_id": "a"}
    assert unwrapped(record, "cloudevents", bare=True) == record
    assert unwrapped({**ATTRIBUTES, "data": DATA}, "cloudevents", bare=True, fields=["ce_id"]) == {
        **DATA,
        "ce_id": "a-17",
    }
