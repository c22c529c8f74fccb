"""What would be predicted of an event is what is predicted of it, and asking writes nothing."""

from __future__ import annotations

import pytest
from gateway_in_memory import SENDERS_KEY, Shop
from small import declaration, event, label

from tidemill import Pipeline, View, aggregates, number
from tidemill.errors import StoreError

NOW = 1_700_000_000_000
VIEWS = [
    View("origin", every="1m", aggregates=[aggregates.count("5m"), aggregates.mean("distance", "5m")]),
    View("dest", every="1m", aggregates=[aggregates.count("5m")]),
]


@pytest.fixture
def shop():
    with Shop(Pipeline(**declaration(views=VIEWS))) as shop:
        for number_ in range(5):
            shop.predict(event(f"e{number_}", NOW, distance=100.0 + number_))
            shop.pipeline.send_labels(label(f"e{number_}", NOW + 5, arr_delay=7.0))
        yield shop


def written(shop: Shop) -> int:
    return sum(map(len, shop.pipeline.broker.log.values()))


def test_it_is_the_vector_and_the_scores_that_the_river_makes_next(shop: Shop) -> None:
    before = written(shop)
    answer = shop.client.post("/v1/what-if", json=event("x", NOW + 60_000)).json()
    assert (answer["state"], answer["written"]) == ("what_if", False)
    assert written(shop) == before
    prediction = shop.predict(event("x", NOW + 60_000))
    (features,) = [
        features for record in shop.pipeline.broker.records("small.features")
        if (features := shop.pipeline.records.features.decode(record.value()))["event_id"] == "x"
    ]  # fmt: skip
    for name in ("event_id", "entity_id", "event_time", "vector", "as_of", "stale"):
        assert answer[name] == features[name], name
    assert answer["scores"][0] == prediction["champion"]
    assert prediction["champion"]["version"] > 0, "it has learned"
    assert [score["model"] for score in answer["scores"]] == ["linear", "slow", "baseline"]


def test_what_the_river_would_refuse_is_refused(shop: Shop) -> None:
    answer = shop.client.post("/v1/what-if", json=event("x", NOW, sched_hour=77))
    assert (answer.status_code, answer.json()["reason"]) == (422, "out_of_range")
    assert shop.client.post("/v1/what-if", json=[event("x", NOW)]).status_code == 422


def test_a_request_feature_that_fails_is_refused() -> None:
    def refuse(record):
        raise ValueError("never")

    with Shop(Pipeline(**declaration(request={"odd": number(refuse)}))) as shop:
        answer = shop.client.post("/v1/what-if", json=event("x", NOW))
        assert (answer.status_code, answer.json()["reason"]) == (422, "request_feature")


def test_a_store_or_a_registry_that_is_away_is_503_and_who_only_sends_asks_nothing(shop: Shop) -> None:
    asked = {"json": event("x", NOW)}
    sender = {"Authorization": f"Bearer {SENDERS_KEY}"}
    assert shop.client.post("/v1/what-if", headers=sender, **asked).status_code == 403

    def away(*_: object) -> None:
        raise StoreError("no store")

    shop.gateway.what_if._open_models = away
    assert shop.client.post("/v1/what-if", **asked).status_code == 503
    shop.store._store.read = away
    assert shop.client.post("/v1/what-if", **asked).json() == {"detail": "no store"}
