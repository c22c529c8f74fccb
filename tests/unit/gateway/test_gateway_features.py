"""Online features of many entities in one call, with ages and staleness, as the store itself has them."""

from __future__ import annotations

import pytest
from gateway_in_memory import SENDERS_KEY, Shop
from small import declaration, event

from tidemill import Pipeline, View, aggregates
from tidemill.errors import StoreError
from tidemill.limits import GATEWAY_QUESTIONS

pytestmark = pytest.mark.slow

NOW = 1_700_000_000_000
VIEWS = [
    View("origin", every="1m", aggregates=[aggregates.count("5m")]),
    View("dest", every="1m", aggregates=[aggregates.count("5m"), aggregates.mean("distance", "5m")]),
]


@pytest.fixture
def shop():
    with Shop(Pipeline(**declaration(views=VIEWS))) as shop:
        for id_, origin in (("a", "JFK"), ("b", "JFK"), ("c", "EWR")):
            shop.predict(event(id_, NOW, origin=origin))
        yield shop


def test_many_entities_of_several_kinds_are_read_in_one_round_trip(shop: Shop) -> None:
    trips, read = [], shop.store._store.read
    shop.store._store.read = lambda *asked: trips.append(asked) or read(*asked)
    asked = {"entities": {"origin": ["JFK", "EWR", "SFO"], "dest": ["LAX"]}, "at": NOW + 60_000}
    rows = shop.client.post("/v1/features", json=asked).json()
    assert len(trips) == 1
    assert [(row["entity"], row["entity_id"]) for row in rows] == [
        ("origin", "JFK"), ("origin", "EWR"), ("origin", "SFO"), ("dest", "LAX"),
    ]  # fmt: skip
    assert [row["views"][0]["features"]["origin_count_5m"] for row in rows[:3]] == [2.0, 1.0, 0.0]
    assert [row["views"][0]["age_seconds"] for row in rows] == [60.0, 60.0, None, 60.0]
    for row in rows:
        (stored,) = shop.store.get(row["entity"], row["entity_id"], NOW + 60_000)
        assert {name: row["views"][0][name] for name in stored.as_dict()} == stored.as_dict()
        assert row["views"][0]["stale"] is not stored.whole


def test_an_entity_that_is_named_twice_is_read_and_answered_once(shop: Shop) -> None:
    wanted, read = [], shop.store._store.read
    shop.store._store.read = lambda *asked: wanted.append(asked[0]) or read(*asked)
    asked = {"entities": {"origin": ["JFK", "EWR", "JFK", "JFK"], "dest": ["LAX", "LAX"]}, "at": NOW}
    rows = shop.client.post("/v1/features", json=asked).json()
    assert [(row["entity"], row["entity_id"]) for row in rows] == [
        ("origin", "JFK"),
        ("origin", "EWR"),
        ("dest", "LAX"),
    ]
    assert {view: sorted(ids) for view, ids in wanted[0].items()} == {"origin": ["EWR", "JFK"], "dest": ["LAX"]}


def test_as_of_now_windows_have_moved_on_and_as_of_the_latest_event_they_have_not(shop: Shop) -> None:
    def of(at: object) -> dict:
        (row,) = shop.client.post("/v1/features", json={"entities": {"origin": ["JFK"]}, "at": at}).json()
        return row["views"][0]

    assert of("latest")["features"] == {"origin_count_5m": 2.0}
    assert of("now")["features"] == {"origin_count_5m": 0.0}
    assert of("now")["age_seconds"] > 1_000


def test_only_the_views_that_are_asked_for(shop: Shop) -> None:
    asked = {"entities": {"origin": ["JFK"], "dest": ["LAX"]}, "views": ["dest"]}
    read, names = shop.store._store.read, []
    shop.store._store.read = lambda wanted, count: names.extend(wanted) or read(wanted, count)
    assert [len(row["views"]) for row in shop.client.post("/v1/features", json=asked).json()] == [0, 1]
    assert names == ["dest"], "what nobody asked for is not read"


def test_each_entity_that_is_asked_for_counts() -> None:
    with Shop(Pipeline(**declaration(views=VIEWS)), rate=2) as shop:
        codes = [
            shop.client.post("/v1/features", json={"entities": {"origin": ids}}).status_code
            for ids in (["JFK"], ["JFK", "EWR", "BOS", "LAX", "SFO"], ["JFK"])
        ]
    assert codes == [200, 200, 429]


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"entities": {"carrier": ["UA"]}}, 422),
        ({"entities": {"origin": ["x" * 501]}}, 422),
        ({"entities": {"origin": "JFK"}}, 422),
        ({"entities": {"origin": ["JFK"]}, "at": 10**18}, 422),
        ({"entities": {"origin": ["JFK"] * (GATEWAY_QUESTIONS.max + 1)}}, 413),
        ({}, 422),
        ({"entities": {"origin": ["JFK"]}, "views": ["origin", "origins"]}, 422),
        ({"entities": {"origin": ["JFK"]}, "as_of": NOW}, 422),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_can_not_be_asked_is_refused(shop: Shop, asked: dict, code: int) -> None:
    assert shop.client.post("/v1/features", json=asked).status_code == code


def test_a_store_that_is_away_is_503_and_who_only_sends_reads_none(shop: Shop) -> None:
    asked = {"entities": {"origin": ["JFK"]}}
    assert (
        shop.client.post("/v1/features", json=asked, headers={"Authorization": f"Bearer {SENDERS_KEY}"}).status_code
        == 403
    )

    def away(*_: object) -> None:
        raise StoreError("no Redis")

    shop.store._store.read = away
    answer = shop.client.post("/v1/features", json=asked)
    assert (answer.status_code, answer.json()["detail"]) == (503, "no Redis")
