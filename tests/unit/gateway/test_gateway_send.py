"""Events and labels are sent in batches, each with its own outcome; bodies and streams are bounded."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import pytest
from fastapi.routing import APIRoute
from gateway_in_memory import BOTH_KEY, COMMANDERS_KEY, Shop
from small import declaration, event, label

from tidemill import Pipeline
from tidemill.gateway.app import _stream, router
from tidemill.limits import GATEWAY_BODY_BYTES, GATEWAY_QUESTIONS, GATEWAY_RECORDS, GATEWAY_STREAMS, MESSAGE_BYTES

pytestmark = pytest.mark.slow

NOW = 1_700_000_000_000
NDJSON = {"Content-Type": "application/x-ndjson"}


@pytest.fixture
def shop():
    with Shop(Pipeline(**declaration())) as shop:
        yield shop


def as_lines(*records: object) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def test_labels_meet_the_predictions_of_events_that_were_sent(shop: Shop) -> None:
    events = [event(id_, NOW) for id_ in "abc"]
    answers = shop.client.post("/v1/events", json=events).json()
    assert [(answer["state"], answer["event_id"]) for answer in answers] == [("written", id_) for id_ in "abc"]
    labels = [label(id_, NOW + 5) for id_ in "abc"]
    assert [answer["state"] for answer in shop.client.post("/v1/labels", json=labels).json()] == ["written"] * 3
    assert len(shop.pipeline.broker.records("small.examples")) == 3
    assert all(key == id_.encode() for (_, _, key, _), id_ in zip(shop.sender.sent[3:], "abc", strict=True))


def test_lines_are_answered_by_lines_each_for_itself(shop: Shop) -> None:
    body = as_lines(event("a", NOW), event("b", NOW, sched_hour=77)) + b"\n{nothing\n" + as_lines(event("a", NOW))
    answer = shop.client.post("/v1/events", content=body, headers=NDJSON)
    assert answer.headers["content-type"] == "application/x-ndjson"
    states = [json.loads(line) for line in answer.text.splitlines()]
    assert [state["state"] for state in states] == ["written", "refused", "refused", "repeated"]
    assert states[2]["reason"] == "not_json"
    assert len(shop.predictions()) == 1


def test_a_stream_of_lines_is_sent_as_it_comes(shop: Shop) -> None:
    def lines():
        for number in range(5):
            data = as_lines(event(f"e{number}", NOW))
            yield data[:20]
            yield data[20:]

    answer = shop.client.post("/v1/events", content=lines(), headers=NDJSON)
    assert [json.loads(line)["state"] for line in answer.text.splitlines()] == ["written"] * 5


def test_an_event_that_was_only_sent_can_be_asked_for(shop: Shop) -> None:
    assert shop.client.post("/v1/events", json=event("a", NOW)).status_code == 200
    assert shop.client.get("/v1/predictions/a?timeout_ms=5000").json()["state"] == "predicted"


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/events", "/v1/labels"])
@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"5", b'"text"', b"{", b"[{]", b"\xff\xfe{}", b"[" * 100_000, b'{"a":' * 100_000, b"[null, 5]", b"[]",
        b"\0\0\0\0\0", b'{"flight_id": "\\ud800"}', b"[" + b"[" * 5_000 + b"]" * 5_000 + b"]",
    ],
    ids=lambda body: body[:12].decode(errors="replace") + str(len(body)),
)  # fmt: skip
def test_a_malformed_or_deep_body_is_refused(shop: Shop, path: str, body: bytes) -> None:
    for headers in ({"Content-Type": "application/json"}, NDJSON):
        answer = shop.client.post(path, content=body, headers=headers)
        outcomes = [json.loads(line) for line in answer.text.splitlines()] if answer.status_code == 200 else []
        refused = all(
            one["state"] == "refused" for part in outcomes for one in (part if isinstance(part, list) else [part])
        )
        assert answer.status_code in (400, 413, 422) or (answer.status_code == 200 and refused), answer.text
    assert shop.sent_events() == 0


def test_a_body_that_is_too_large_is_refused_before_it_is_read(shop: Shop) -> None:
    head = {"Content-Length": str(GATEWAY_BODY_BYTES.max + 1)}
    assert shop.client.post("/v1/predict", content=iter([b"{"]), headers=head).status_code == 413

    def endless():
        read = 0
        while read <= GATEWAY_BODY_BYTES.max + 2_000_000:
            read += 1_000_000
            yield b" " * 1_000_000

    for path, headers in (("/v1/predict", {}), ("/v1/events", NDJSON)):
        assert shop.client.post(path, content=endless(), headers=headers).status_code == 413


def test_no_route_takes_a_body_that_does_not_end_or_is_packed_and_every_refusal_has_its_ids(shop: Shop) -> None:
    routes = [route for route in router.routes if isinstance(route, APIRoute) and "POST" in route.methods]
    assert len(routes) >= 6
    for route in routes:
        key = COMMANDERS_KEY if route.path == "/v1/commands" else BOTH_KEY
        head = {"Authorization": f"Bearer {key}"}
        parts = (b" " * 1_000_000 for _ in range(GATEWAY_BODY_BYTES.max // 1_000_000 + 2))
        refused = [
            shop.client.post(route.path, content=parts, headers=head),
            shop.client.post(route.path, content=gzip.compress(b"{}"), headers=head | {"Content-Encoding": "gzip"}),
            shop.client.post(f"{route.path}?timeout_ms=x", content=b"no JSON", headers=head),
        ]
        assert [one.status_code for one in refused] == [413, 415, 422], route.path
        assert all({"x-request-id", "traceparent"} <= one.headers.keys() for one in refused), route.path
    assert shop.gateway.body_bytes == 0


@pytest.mark.parametrize("headers", [{}, NDJSON], ids=["list", "lines"])
def test_a_request_has_so_many_records(shop: Shop, headers: dict[str, str]) -> None:
    questions = b"[" + b",".join([b"1"] * (GATEWAY_QUESTIONS.max + 1)) + b"]"
    assert shop.client.post("/v1/predict", content=questions).status_code == 413
    many = GATEWAY_RECORDS.max + 1
    body = b"[" + b",".join([b"1"] * many) + b"]" if not headers else b"1\n" * many
    assert shop.client.post("/v1/labels", content=body, headers=headers).status_code == 413


def outcomes(answer: Any) -> list[tuple[str, str]]:
    rows = [json.loads(line) for line in answer.text.splitlines()]
    return [(row["state"], row.get("event_id") or row.get("reason") or row["message"]) for row in rows]


def test_a_line_that_is_too_large_is_refused_alone_however_it_comes(shop: Shop) -> None:
    large = b'{"carrier": "' + b"x" * MESSAGE_BYTES.max + b'"}\n'
    body = as_lines(event("a", NOW)) + large + as_lines(event("b", NOW))
    for content in (body, (body[at : at + 70_000] for at in range(0, len(body), 70_000))):
        answer = shop.client.post("/v1/events", content=content, headers=NDJSON)
        assert [answer.status_code, [one[1] for one in outcomes(answer)]] == [200, ["a", "too_large", "b"]]


def test_where_lines_end_too_early_those_that_were_sent_have_their_outcomes(shop: Shop, monkeypatch) -> None:
    limit = type("L", (), {"max": 2, "excess": lambda _, size: f"{size} records"})()
    monkeypatch.setattr("tidemill.gateway.app.GATEWAY_RECORDS", limit)
    answer = shop.client.post("/v1/events", content=as_lines(*(event(id_, NOW) for id_ in "abc")), headers=NDJSON)
    assert answer.status_code == 413
    assert outcomes(answer) == [
        ("written", "a"),
        ("written", "b"),
        ("unwritten", "3 records: from here on nothing was read"),
    ]
    assert shop.sent_events() == 2


def test_an_idempotency_key_stands_for_all_lines(shop: Shop) -> None:
    head = {**NDJSON, "Idempotency-Key": "k"}
    codes = [
        shop.client.post("/v1/events", content=as_lines(*(event(id_, NOW) for id_ in ids)), headers=head).status_code
        for ids in ("ab", "ab", "ac")
    ]
    assert codes == [200, 200, 409]
    assert shop.sent_events() == 2


def test_of_many_ids_the_latest_are_remembered(shop: Shop, monkeypatch) -> None:
    monkeypatch.setattr("tidemill.gateway.river.GATEWAY_IDS", type("L", (), {"max": 2}))
    for id_ in "abc":
        shop.predict(event(id_, NOW))
    assert [*shop.river.events] == ["b", "c"]


def test_so_many_streams_are_open_and_no_more(shop: Shop) -> None:
    shop.river.streams.update(asyncio.Queue() for _ in range(GATEWAY_STREAMS.max))
    answer = shop.client.get("/v1/stream/predictions")
    assert (answer.status_code, answer.json()["detail"]) == (503, f"{GATEWAY_STREAMS.excess(101)}; close one")


class Asked:
    """A request whose client is there until it has seen enough."""

    def __init__(self) -> None:
        self.is_gone = False

    async def is_disconnected(self) -> bool:
        return self.is_gone


def test_a_stream_has_the_predictions_that_fit_and_ends_with_its_reader(shop: Shop) -> None:
    asked = Asked()

    async def read() -> list[bytes]:
        parts = []
        async for part in _stream(asked, shop.gateway, lambda one: one["event_id"] != "b"):
            parts.append(part)
            if len(parts) == 1:
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(None, lambda: [shop.predict(event(id_, NOW)) for id_ in "abc"])
            asked.is_gone = len(parts) == 3
        return parts

    # The gateway's loop is that of the test client: the stream's queue is filled there, and read here.
    seen = shop.client.portal.call(read)[1:]
    events = [dict(line.split(b": ", 1) for line in part.splitlines() if line) for part in seen]
    assert [one[b"event"] for one in events] == [b"prediction"] * 2
    assert [json.loads(one[b"data"])["event_id"] for one in events] == ["a", "c"]
    assert not shop.river.streams


def test_a_reader_that_is_too_slow_is_told_that_it_lost(shop: Shop, monkeypatch) -> None:
    monkeypatch.setattr("tidemill.gateway.river.GATEWAY_STREAM_RECORDS", type("L", (), {"max": 2}))

    async def read() -> list[bytes]:
        stream = _stream(Asked(), shop.gateway, lambda _: True)
        parts = [await anext(stream)]
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, lambda: [shop.predict(event(id_, NOW)) for id_ in "abcd"])
        parts += [part async for part in stream]
        return parts

    parts = shop.client.portal.call(read)
    assert parts[-1] == b"event: lost\ndata: {}\n\n"


def test_a_stream_ends_when_the_gateway_does(shop: Shop) -> None:
    async def read() -> list[bytes]:
        stream = _stream(Asked(), shop.gateway, lambda _: True)
        parts = [await anext(stream)]
        shop.gateway.is_draining = True
        return parts + [part async for part in stream]

    assert len(shop.client.portal.call(read)) == 1


def test_who_waits_for_kafka_hears_of_it_however_rarely_it_is_asked_while_nothing_is_sent(monkeypatch) -> None:
    monkeypatch.setattr("tidemill.gateway.river.IDLE_CHECK_SECONDS", 3600.0)
    with Shop(Pipeline(**declaration())) as shop:
        for id_ in ("a", "b", "c"):
            assert shop.client.post("/v1/events", json=event(id_, NOW)).json()["state"] == "written"
