"""What a person begins with, and an event's way through the river, are read from the log."""

from __future__ import annotations

import datetime as dt
from dataclasses import make_dataclass
from typing import Any

import pytest
from gateway_in_memory import READERS_KEY, SENDERS_KEY, Shop
from river import linear_model
from small import declaration, event, label

from tidemill import Pipeline, Stream
from tidemill.demo.flights import flights

NOW = 1_700_000_000_000


@pytest.fixture
def shop():
    with Shop(Pipeline(**declaration())) as shop:
        yield shop


@pytest.mark.slow
def test_an_example_is_like_the_latest_with_a_new_id(shop: Shop) -> None:
    shop.predict(event("a", NOW, origin="EWR"))
    shop.client.post("/v1/labels", json=label("a", NOW + 5))
    shop.pipeline._run()
    first, second = (shop.client.get("/v1/example").json() for _ in range(2))
    assert first["event"] == {**event("a", NOW, origin="EWR"), "flight_id": first["event"]["flight_id"]}
    assert first["label"] == {**label("a", NOW + 5), "flight_id": first["event"]["flight_id"]}
    assert first["event"]["flight_id"] != second["event"]["flight_id"]
    assert shop.predict(first["event"])["repeated"] is False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("of_event", "of_label"),
    [(int, int), (int, str), (str, int)],
    ids=["numbers", "number and text", "text and number"],
)
def test_an_example_has_a_new_id_where_ids_are_numbers_and_all_of_it_is_shown(of_event: Any, of_label: Any) -> None:
    asked = make_dataclass("Asked", [("order_id", of_event), ("at", dt.datetime), ("amount", float)])
    paid = make_dataclass("Paid", [("order_id", of_label), ("paid_at", dt.datetime), ("late", bool)])
    pipeline = Pipeline(
        name="orders",
        events=Stream(asked),
        labels=Stream(paid, value="late"),
        task="binary",
        request={"amount": "amount"},
        models={"linear": linear_model.LogisticRegression()},
        champion="linear",
    )
    with Shop(pipeline) as shop:
        shop.predict({"order_id": of_event(7), "at": NOW, "amount": 2.0})
        first, second = (shop.client.get("/v1/example").json() for _ in range(2))
        ids = {str(one[part]["order_id"]) for one in (first, second) for part in ("event", "label")}
        assert len(ids) == 2
        assert "7" not in ids
        assert shop.predict(first["event"])["repeated"] is False
        way = shop.client.get("/v1/journeys/7").json()
        assert way["event"]["record"] == {"order_id": of_event(7), "at": NOW, "amount": 2.0}


@pytest.mark.parametrize(
    "pipeline", [Pipeline(**declaration()), flights], ids=["small", "flights, whose label is a function"]
)
def test_where_the_log_has_none_it_is_made_up_by_the_schemas(pipeline: Pipeline) -> None:
    with Shop(pipeline) as shop:
        made = shop.client.get("/v1/example").json()
    assert made["event"].keys() == {field["name"] for field in pipeline.events.avro["fields"]}
    assert made["event"][pipeline.events.id] == made["label"][pipeline.labels.id]


def test_a_way_has_each_step_with_its_place_and_ends_with_the_label(shop: Shop) -> None:
    assert shop.client.get("/v1/journeys/a").status_code == 404
    shop.predict(event("a", NOW))
    way = shop.client.get("/v1/journeys/a").json()
    assert way["event"]["record"] == event("a", NOW)
    assert (way["event"]["topic"], way["log"]["topic"]) == ("small.events.valid", "small.prediction-log")
    assert [score["role"] for score in way["scores"]] == ["champion", "challenger", "baseline"]
    assert not any("manifest" in score for score in way["scores"])
    assert way["outcome"] == {"state": "pending"}
    shop.client.post("/v1/labels", json=label("a", NOW + 5))
    shop.pipeline._run()
    outcome = shop.client.get("/v1/journeys/a").json()["outcome"]
    assert (outcome["state"], outcome["topic"]) == ("joined", "small.examples")


def test_the_page_is_for_everybody_and_what_it_shows_for_readers(shop: Shop) -> None:
    anybody, sender, reader = (
        {"Authorization": f"Bearer {key}"} if key else {"Authorization": ""} for key in ("", SENDERS_KEY, READERS_KEY)
    )
    for path in ("/", "/page/try.js", "/page/try.css", "/page/dom.js", "/page/provenance.js"):
        assert shop.client.get(path, headers=anybody).status_code == 200, path
    assert "default-src 'self'" in shop.client.get("/", headers=anybody).headers["content-security-policy"]
    for path in ("/v1/example", "/v1/journeys/a"):
        assert [shop.client.get(path, headers=headers).status_code for headers in (anybody, sender)] == [401, 403]
        assert shop.client.get(path, headers=reader).status_code in (200, 404)
