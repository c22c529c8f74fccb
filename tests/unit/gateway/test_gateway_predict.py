"""What comes in over HTTP is answered by the river itself, once for each id."""

from __future__ import annotations

import json
import threading

import pytest
from gateway_in_memory import BOTH_KEY, READERS_KEY, SENDERS_KEY, Shop
from small import declaration, event

from tidemill import Pipeline, rules
from tidemill.stream.declared import DeclaredTopics

pytestmark = pytest.mark.slow

NOW = 1_700_000_000_000


def flight(id_: str, **more: object) -> dict[str, object]:
    return {**event(id_, NOW), **more}


@pytest.fixture
def shop():
    with Shop(Pipeline(**declaration())) as shop:
        yield shop


def test_the_answer_is_the_record_on_the_predictions_topic(shop: Shop) -> None:
    answer = shop.predict(flight("a"))
    (prediction,) = shop.predictions()
    assert {name: answer[name] for name in prediction} == prediction
    assert (answer["state"], answer["repeated"]) == ("predicted", False)
    topic, _, key, headers = shop.sender.sent[0]
    assert (topic, key) == ("small.events", str(flight("a")["origin"]).encode()), "keyed as declared"
    assert dict(headers)["traceparent"].decode()[3:35] == answer["trace_id"]


def test_a_trace_goes_on_and_a_request_keeps_its_id(shop: Shop) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    given = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01", "X-Request-Id": "order-17"}
    answer = shop.client.post("/v1/predict", json=flight("a"), headers=given)
    assert answer.json()["trace_id"] == trace
    assert answer.headers["x-request-id"] == "order-17"
    headers = dict(shop.sender.sent[0][3])
    assert headers["tidemill.request_id"] == b"order-17"
    assert headers["traceparent"].startswith(b"00-" + trace.encode())
    odd = shop.client.post("/v1/predict", json=flight("b"), headers={"traceparent": "00-0-0-0", "X-Request-Id": "a b"})
    assert odd.headers["x-request-id"] != "a b"
    assert odd.json()["trace_id"] != trace


def test_a_list_is_answered_one_by_one_in_its_order(shop: Shop) -> None:
    answers = shop.predict([flight("a"), flight("b", sched_hour=77), flight("c")])
    assert [answer["state"] for answer in answers] == ["predicted", "refused", "predicted"]
    assert [answers[0]["event_id"], answers[2]["event_id"]] == ["a", "c"]


def test_the_same_id_again_has_the_first_answer_and_no_second_prediction(shop: Shop) -> None:
    first = shop.predict(flight("a"))
    again = shop.predict(flight("a"))
    assert again["repeated"] is True
    assert {**again, "repeated": False, "trace_id": first["trace_id"]} == first
    assert len(shop.predictions()) == shop.sent_events() == 1


def test_the_same_id_with_other_values_is_a_conflict(shop: Shop) -> None:
    shop.predict(flight("a"))
    answer = shop.predict(flight("a", distance=999.0), 409)
    assert "an id stands for one event" in answer["message"]
    assert shop.sent_events() == 1


def test_a_gateway_that_starts_again_knows_what_was_sent_and_predicted(shop: Shop) -> None:
    first = shop.predict(flight("a"))
    with Shop(None, pipeline=shop.pipeline) as second:
        again = second.predict(flight("a"))
        second.predict(flight("a", distance=999.0), 409)
        assert again["repeated"] is True
        assert again["champion"] == first["champion"]
        assert second.sent_events() == 0


def test_a_gateway_that_starts_again_waits_for_what_was_sent_and_not_predicted(shop: Shop) -> None:
    shop.sender.is_running = False
    assert shop.predict(flight("a"), 202, timeout_ms=0)["state"] == "pending"
    with Shop(None, pipeline=shop.pipeline) as second:
        assert second.predict(flight("a"), 202, timeout_ms=50)["state"] == "pending"
        assert second.sent_events() == 0
        shop.pipeline._run()
        assert second.predict(flight("a"))["repeated"] is True
    assert len(shop.predictions()) == 1


def test_an_event_that_is_late_is_not_lost(shop: Shop) -> None:
    shop.sender.is_running = False
    assert shop.predict(flight("a"), 202, timeout_ms=20).items() >= {"state": "pending", "event_id": "a"}.items()
    assert shop.client.get("/v1/predictions/a").status_code == 202
    timer = threading.Timer(0.05, shop.pipeline._run)
    timer.start()
    answer = shop.client.get("/v1/predictions/a?timeout_ms=20000")
    assert answer.status_code == 200
    assert answer.json()["champion"] == shop.predictions()[0]["champion"]


@pytest.mark.parametrize(
    "wrong",
    [{"sched_hour": 77}, {"sched_hour": "late"}, {"asked_at": 10**17}, {"nothing": 1}, {"flight_id": ""}, {"flight_id": "x" * 501}],
    ids=str,
)  # fmt: skip
def test_what_the_validator_would_refuse_is_refused_in_the_words_of_its_dead_letter(shop: Shop, wrong) -> None:
    data = flight("a", **wrong)
    (letter,) = shop.pipeline.send(json.dumps(data).encode()).dead_letters
    answer = shop.predict(data, 422)
    expected = {name: getattr(letter, name) for name in ("reason", "rule", "field", "message", "value")}
    assert {name: answer.get(name, "") for name in expected} == expected
    assert shop.sent_events() == 0


def test_what_only_the_river_refuses_is_answered_with_its_dead_letter() -> None:
    def refuse(record):
        raise ValueError("never")

    from tidemill import number

    broken = declaration(request={"distance": number("distance"), "odd": number(refuse)})
    with Shop(Pipeline(**broken)) as shop:
        answer = shop.predict(flight("a"), 422)
        (letter,) = shop.pipeline.broker.records("small.dlq")
        assert answer["service"] == "featurizer"
        assert dict(letter.headers())["tidemill.reason"].decode() == answer["reason"]
        assert answer["letter"] == f"{letter.partition()}:{letter.offset()}"
        shop.predict(flight("a"), 422)
        assert shop.sent_events() == 2, "nothing was predicted, so it may be sent again"


def test_a_rule_that_refuses_a_repeated_id_gives_the_first_answer_however_long_ago() -> None:
    declared = Pipeline(**declaration(rules=[rules.unique("flight_id", within="48h")]))
    with Shop(declared) as shop:
        first = shop.predict(flight("a"))
        shop.river.events.clear()  # as after very many others
        again = shop.predict(flight("a"))
        assert again["repeated"] is True
        assert again["champion"] == first["champion"]
        assert len(shop.predictions()) == 1
        assert shop.sent_events() == 2


@pytest.mark.slow
def test_a_repeated_id_of_which_no_prediction_is_left_is_refused_and_does_not_hang() -> None:
    declared = Pipeline(**declaration(rules=[rules.unique("flight_id", within="48h")]))
    with Shop(declared) as shop:
        shop.predict(flight("a"))
        shop.river.events.clear()
        for partition in shop.pipeline.broker.log:
            if partition.topic == "small.prediction-log":
                shop.pipeline.broker.truncate(partition, 10)
        for _ in range(2):
            answer = shop.predict(flight("a"), 422, timeout_ms=500)
            assert (answer["reason"], answer["field"]) == ("duplicate", "flight_id")


def test_an_event_of_another_producer_is_known_too(shop: Shop) -> None:
    shop.pipeline.send(json.dumps(flight("a")).encode())
    answer = shop.client.get("/v1/predictions/a?timeout_ms=5000")
    assert answer.status_code == 200
    assert shop.predict(flight("a"))["repeated"] is True
    assert shop.sent_events() == 0


def test_a_prediction_that_is_not_among_the_latest_is_in_the_log(shop: Shop) -> None:
    first = shop.predict(flight("a"))
    shop.river.events.clear()
    assert shop.client.get("/v1/predictions/a").status_code == 404
    found = shop.client.get("/v1/predictions/a?log=true").json()
    assert found["champion"] == first["champion"]
    assert (found["as_of"], found["stale"]) == (first["as_of"], first["stale"])
    assert shop.client.get("/v1/predictions/b?log=true").status_code == 404


def test_an_idempotency_key_stands_for_one_body(shop: Shop) -> None:
    key = {"Idempotency-Key": "k1"}
    first = shop.predict(flight("a"), **key)
    assert shop.predict(flight("a"), **key)["champion"] == first["champion"]
    assert "another body" in shop.predict(flight("b"), 409, **key)["detail"]
    other = {**key, "Authorization": f"Bearer {SENDERS_KEY}"}
    assert shop.predict(flight("b"), **other)["state"] == "predicted", "a key is its holder's own"
    shop.predict(flight("b"), 400, **{"Idempotency-Key": "k" * 201})


def test_what_is_not_written_may_be_sent_again(shop: Shop) -> None:
    shop.sender.why_not = "no broker"
    answer = shop.predict(flight("a"), 503)
    assert answer["state"] == "unwritten"
    assert "no broker" in answer["message"]
    shop.sender.why_not = ""
    assert shop.predict(flight("a"))["repeated"] is False
    assert len(shop.predictions()) == 1


def test_a_full_queue_and_a_river_that_is_behind_ask_to_come_later(shop: Shop, monkeypatch) -> None:
    shop.sender.is_full = True
    answer = shop.client.post("/v1/predict", json=flight("a"))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    shop.sender.is_full, shop.sender.is_running = False, False
    monkeypatch.setattr("tidemill.gateway.river.GATEWAY_UNANSWERED", type("L", (), {"max": 2}))
    for id_ in "ab":
        shop.predict(flight(id_), 202, timeout_ms=0)
    behind = shop.client.post("/v1/predict", json=flight("c"))
    assert (behind.status_code, behind.headers["retry-after"]) == (503, "1")
    shop.pipeline._run()
    assert shop.client.get("/v1/predictions/b?timeout_ms=5000").status_code == 200
    shop.predict(flight("c"), 202, timeout_ms=0)


def test_a_key_may_send_so_many_records_a_second() -> None:
    with Shop(Pipeline(**declaration()), rate=2.0) as shop:
        shop.gateway.rates.clock = lambda: 100.0
        shop.predict([flight("a"), flight("b")])
        answer = shop.client.post("/v1/predict", json=flight("c"))
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        shop.predict(flight("d"), Authorization=f"Bearer {SENDERS_KEY}")
        shop.gateway.rates.clock = lambda: 101.0
        shop.predict(flight("c"))


@pytest.mark.parametrize(
    ("method", "path", "key", "code"),
    [
        ("POST", "/v1/predict", READERS_KEY, 403),
        ("POST", "/v1/events", READERS_KEY, 403),
        ("POST", "/v1/labels", READERS_KEY, 403),
        ("GET", "/v1/predictions/a", SENDERS_KEY, 403),
        ("GET", "/v1/stream/predictions", SENDERS_KEY, 403),
        ("POST", "/v1/predict", None, 401),
        ("GET", "/v1/predictions/a", None, 401),
        ("POST", "/v1/predict", BOTH_KEY[:-1], 401),
    ],
)
def test_no_answer_without_a_key_and_no_role_beyond_its_own(shop: Shop, method, path, key, code) -> None:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    shop.client.headers.pop("authorization")
    answer = shop.client.request(method, path, headers=headers, content=json.dumps(flight("a")))
    assert answer.status_code == code
    assert shop.sent_events() == 0


def test_the_probes_need_no_key_and_show_nothing(shop: Shop) -> None:
    shop.client.headers.pop("authorization")
    assert [shop.client.get(path).status_code for path in ("/livez", "/readyz", "/metrics")] == [200, 200, 200]
    shop.gateway.is_draining = True
    assert shop.client.get("/readyz").status_code == 503


def test_events_go_to_the_topic_that_the_stream_names() -> None:
    from dataclasses import replace

    from small import EVENTS

    declared = Pipeline(
        **declaration(events=replace(EVENTS, topic="shop.orders"), rules=[rules.unique("flight_id", "48h")])
    )
    with Shop(declared) as shop:
        shop.predict(flight("a"))
        assert [topic for topic, *_ in shop.sender.sent] == ["shop.orders"]
        shop.river.events.clear()
        assert shop.predict(flight("a"))["repeated"] is True, "its dead letter was understood"


def test_predictions_in_partitions_that_are_new_are_answered(monkeypatch) -> None:
    monkeypatch.setattr("tidemill.gateway.river.TOPICS_SECONDS", 0.0)
    with Shop(Pipeline(**declaration())) as shop:
        broker = shop.pipeline.broker
        broker.grow("small.predictions", 3)
        record = {"event_id": "z", "entity_id": "JFK", "event_time": NOW, "as_of": {}, "stale": []}
        record["champion"] = {
            "model": "m",
            "version": 0,
            "epoch": 0,
            "score": 0.5,
            "probabilities": {},
            "answered": True,
        }
        broker.append("small.predictions", shop.pipeline.records.prediction.encode(record), b"JFK", partition=2)
        assert shop.client.get("/v1/predictions/z?timeout_ms=10000").json()["champion"] == record["champion"]


def test_topics_that_are_not_as_declared_are_said_and_nothing_is_sent(monkeypatch) -> None:
    monkeypatch.setattr("tidemill.gateway.river.TOPICS_SECONDS", 0.0)
    shop = Shop(Pipeline(**declaration()))
    broker = shop.pipeline.broker
    shop.river._declared = DeclaredTopics(broker, {"small.predictions": 2})
    with shop:
        shop.predict(flight("a"))
        broker.grow("small.predictions", 3)
        while (answer := shop.client.get("/readyz")).status_code == 200:
            pass
        assert "topic small.predictions has 3 partitions where 2 are declared" in answer.text
        shop.predict(flight("b"), 503)
        assert shop.sent_events() == 1
