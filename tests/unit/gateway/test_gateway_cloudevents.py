"""CloudEvents over HTTP in every mode are the events that they carry, and a prediction is answered as one."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from gateway_in_memory import Shop
from small import EVENTS, declaration, event, label

from tidemill import Pipeline, Stream

pytestmark = pytest.mark.slow

NOW = 1_700_000_000_000
ATTRIBUTES = {"specversion": "1.0", "id": "ce-1", "source": "/shop", "type": "departure.v1"}
BINARY = {f"ce-{name}": value for name, value in ATTRIBUTES.items()} | {"Content-Type": "application/json"}
STRUCTURED = {"Content-Type": "application/cloudevents+json; charset=utf-8"}
BATCHED = {"Content-Type": "application/cloudevents-batch+json"}
WRAPPED = Stream(
    "flights/departure.v1.avsc", id="flight_id", time="asked_at", key="origin", encoding="json", unwrap="cloudevents"
)


@pytest.fixture(params=[EVENTS, WRAPPED], ids=["any stream", "a stream that is declared to take them"])
def shop(request: pytest.FixtureRequest):
    with Shop(Pipeline(**declaration(events=request.param))) as shop:
        yield shop


def wrapped(data: Any, **more: Any) -> dict[str, Any]:
    return {**ATTRIBUTES, "data": data, **more}


@pytest.mark.parametrize("mode", ["binary", "structured", "structured, in base64"])
def test_an_event_is_predicted_as_one_that_comes_bare_and_its_answer_is_a_cloud_event(shop: Shop, mode: str) -> None:
    one = event("a 1", NOW)
    if mode == "binary":
        answer = shop.client.post("/v1/predict", json=one, headers=BINARY)
    else:
        in_base64 = {"data_base64": base64.b64encode(json.dumps(one).encode()).decode(), **ATTRIBUTES}
        body = wrapped(one) if mode == "structured" else in_base64
        answer = shop.client.post("/v1/predict", content=json.dumps(body), headers=STRUCTURED)
    assert answer.json()["state"] == "predicted", answer.text
    (prediction,) = shop.predictions()
    assert {name: answer.json()[name] for name in prediction} == prediction
    assert {name: value for name, value in answer.headers.items() if name.startswith("ce-")} == {
        "ce-specversion": "1.0", "ce-type": "tidemill.prediction.v1", "ce-source": "/tidemill/small", "ce-id": "a%201",
        "ce-subject": "JFK",
    }  # fmt: skip


def test_a_batch_has_an_answer_for_each(shop: Shop) -> None:
    bad = wrapped(event("b", NOW))
    del bad["source"]
    batch = [wrapped(event("a", NOW)), bad, wrapped(event("c", NOW, sched_hour=77)), wrapped(event("d", NOW))]
    answers = shop.client.post("/v1/events", content=json.dumps(batch), headers=BATCHED).json()
    assert [one["state"] for one in answers] == ["written", "refused", "refused", "written"]
    assert (answers[1]["reason"], answers[1]["field"]) == ("missing_field", "ce_source")
    assert answers[2]["reason"] == "out_of_range"
    assert shop.sent_events() == 2


def test_an_answer_to_an_event_that_came_bare_is_none() -> None:
    with Shop(Pipeline(**declaration())) as shop:
        answer = shop.client.post("/v1/predict", json=event("a", NOW))
        assert not [name for name in answer.headers if name.startswith("ce-")]


def test_labels_come_as_cloud_events_too_and_attributes_become_fields_of_their_names(
    tmp_path: Path,
) -> None:
    avro = {
        "type": "record", "name": "Order", "fields": [
            {"name": "ce_id", "type": "string"}, {"name": "at", "type": "long"}, {"name": "ce_subject", "type": "string"},
            {"name": "distance", "type": "double"}, {"name": "sched_hour", "type": "int"}, {"name": "origin", "type": "string"},
        ],
    }  # fmt: skip
    (tmp_path / "order.avsc").write_text(json.dumps(avro))
    stream = Stream(str(tmp_path / "order.avsc"), id="ce_id", time="at", key="ce_subject")
    with Shop(Pipeline(**declaration(events=stream, views=[]))) as shop:
        data = {"at": NOW, "distance": 3.0, "sched_hour": 4, "origin": "JFK"}
        answer = shop.client.post("/v1/predict", json=data, headers={**BINARY, "ce-subject": "Z%C3%BCrich"}).json()
        assert (answer["event_id"], answer["entity_id"]) == ("ce-1", "Zürich")
        given = shop.client.post("/v1/labels", content=json.dumps(wrapped(label("ce-1", NOW + 5))), headers=STRUCTURED)
        assert given.json() == {"state": "written", "event_id": "ce-1"}


@pytest.mark.parametrize(
    ("body", "headers", "why"),
    [
        ("{", BINARY, "no JSON"),
        ('{} , "specversion": "1.0"', BINARY, "no JSON"),
        ("{}", BINARY | {"ce-specversion": "0.3"}, "where 1.0 was expected"),
        ("[]", STRUCTURED, "a CloudEvent"),
        (json.dumps({**ATTRIBUTES, "data_base64": "?"}), STRUCTURED, "no JSON"),
        ("{}", BATCHED, "no JSON"),
    ],
    ids=["no JSON", "more than one value", "of another version", "a list", "no base64", "no list"],
)
def test_what_is_no_cloud_event_is_refused(shop: Shop, body: str, headers: dict[str, str], why: str) -> None:
    answer = shop.client.post("/v1/predict", content=body, headers=headers)
    assert answer.status_code == 422
    assert why in answer.text
    assert shop.sent_events() == 0


def test_what_if_takes_them_as_well(shop: Shop) -> None:
    answer = shop.client.post("/v1/what-if", json=event("a", NOW), headers=BINARY).json()
    assert (answer["state"], answer["event_id"], shop.sent_events()) == ("what_if", "a", 0)
