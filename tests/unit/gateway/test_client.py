"""The client is answered as by the gateway, and what it sends again is never doubled; sync and async are the same."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from gateway_in_memory import BOTH_KEY, Shop
from small import declaration, event, label

from tidemill import Pipeline, View, aggregates, client
from tidemill.client import AsyncClient, Client, GatewayError, PendingError, Prediction, RefusedError

pytestmark = pytest.mark.slow

NOW = 1_700_000_000_000
VIEW = View("origin", every="1m", aggregates=[aggregates.count("5m")])
Failure = Callable[[httpx.Request], httpx.Response | None]


@pytest.fixture
def shop(monkeypatch):
    monkeypatch.setattr(client, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(client, "MAX_PAUSE_SECONDS", 0.002)
    with Shop(Pipeline(**declaration(views=[VIEW]))) as shop:
        yield shop


class Gateway:
    """The client's methods before a gateway in memory; `failures` happen first, each on its way there or back."""

    def __init__(self, shop: Shop, kind: str, *failures: str | int, **options: Any) -> None:
        self.shop, self.kind, self.failures, self.options, self.asked = shop, kind, list(failures), options, 0

    def handle(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        failure = self.failures.pop(0) if self.failures else None
        if failure == "refused":
            raise httpx.ConnectError("connection refused", request=request)
        if isinstance(failure, int):
            return httpx.Response(failure, json={"detail": "come later"})
        answer = self.shop.client.request(
            request.method, request.url.raw_path.decode(), content=request.content, headers=dict(request.headers)
        )
        if failure == "cut":  # the gateway has answered, and nobody heard it
            raise httpx.ReadError("connection reset", request=request)
        return httpx.Response(answer.status_code, content=answer.content, headers=answer.headers)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        transport = httpx.MockTransport(self.handle)
        options = {"timeout": 20.0, **self.options}

        def call(*given: Any, **more: Any) -> Any:
            if self.kind == "sync":
                with Client("http://gateway", BOTH_KEY, http=httpx.Client(transport=transport), **options) as sync:
                    return getattr(sync, name)(*given, **more)

            async def ask() -> Any:
                http = httpx.AsyncClient(transport=transport)
                async with AsyncClient("http://gateway", BOTH_KEY, http=http, **options) as other:
                    return await getattr(other, name)(*given, **more)

            return asyncio.run(ask())

        return call


both = pytest.mark.parametrize("kind", ["sync", "async"])


@both
def test_an_event_is_answered_with_its_prediction(shop: Shop, kind: str) -> None:
    answer = Gateway(shop, kind).predict(event("a", NOW))
    (record,) = shop.predictions()
    flat = {**record, **record["champion"]}
    del flat["champion"]
    assert isinstance(answer, Prediction)
    assert {name: getattr(answer, name) for name in flat} == flat
    assert not answer.repeated


@both
@pytest.mark.parametrize("failure", ["refused", "cut", 429, 502, 503, 504])
def test_what_fails_is_sent_again_and_predicted_once(shop: Shop, kind: str, failure: str | int) -> None:
    gateway = Gateway(shop, kind, failure, failure)
    answer = gateway.predict(event("a", NOW))
    assert gateway.asked == 3
    assert answer.repeated is (failure == "cut")
    assert len(shop.predictions()) == shop.sent_events() == 1


@both
def test_without_retries_the_first_failure_is_raised(shop: Shop, kind: str) -> None:
    with pytest.raises(GatewayError, match="connection refused"):
        Gateway(shop, kind, "refused", retries=False).predict(event("a", NOW))


@both
def test_a_refused_event_has_the_words_of_its_dead_letter(shop: Shop, kind: str) -> None:
    with pytest.raises(RefusedError, match="where 0 to 23 was expected") as refused:
        Gateway(shop, kind).predict(event("a", NOW, sched_hour=77))
    assert (refused.value.reason, refused.value.field, refused.value.code) == ("out_of_range", "sched_hour", 422)
    Gateway(shop, kind).predict(event("b", NOW))
    with pytest.raises(RefusedError) as conflict:
        Gateway(shop, kind).predict(event("b", NOW, distance=5.0))
    assert (conflict.value.code, conflict.value.event_id) == (409, "b")


@both
def test_what_is_not_predicted_in_time_is_pending_and_found_later(shop: Shop, kind: str) -> None:
    shop.sender.is_running = False
    with pytest.raises(PendingError) as pending:
        Gateway(shop, kind).predict(event("a", NOW), timeout=0.05)
    assert pending.value.event_id == "a"
    with pytest.raises(PendingError):
        Gateway(shop, kind).prediction("a")
    shop.pipeline._run()
    assert Gateway(shop, kind).prediction("a", timeout=10).event_id == "a"
    assert shop.sent_events() == 1


@both
def test_an_id_of_any_letters_is_found(shop: Shop, kind: str) -> None:
    id_ = "a/b c?d#\u00e9"
    Gateway(shop, kind).predict(event(id_, NOW))
    assert Gateway(shop, kind).prediction(id_).event_id == id_
    assert Gateway(shop, kind).prediction("nobody") is None
    shop.river.events.clear()
    assert Gateway(shop, kind).prediction(id_) is None
    assert Gateway(shop, kind).prediction(id_, log=True).event_id == id_


@both
def test_batches_have_an_outcome_for_each(shop: Shop, kind: str) -> None:
    gateway = Gateway(shop, kind)
    answers = gateway.predict_all([event("a", NOW), event("b", NOW, sched_hour=77)])
    assert (answers[0].event_id, answers[1].reason) == ("a", "out_of_range")
    assert [one["state"] for one in gateway.send([event("c", NOW), event("a", NOW)])] == ["written", "repeated"]
    assert [one["state"] for one in gateway.label([label("a", NOW + 5)])] == ["written"]
    assert gateway.what_if(event("d", NOW))["written"] is False
    (row,) = gateway.features({"origin": ["JFK"]}, at="latest")
    assert row["views"][0]["features"] == {"origin_count_5m": 2.0}


@both
def test_what_another_try_would_not_help_is_raised_at_once(shop: Shop, kind: str) -> None:
    for code in (401, 403, 413):
        gateway = Gateway(shop, kind, code)
        with pytest.raises(GatewayError, match=str(code)) as error:
            gateway.predict(event("a", NOW))
        assert (error.value.code, gateway.asked) == (code, 1)


def test_a_key_and_an_address_come_from_the_environment(monkeypatch) -> None:
    monkeypatch.setenv("TIDEMILL_GATEWAY_URL", "http://elsewhere:9/")
    monkeypatch.setenv("TIDEMILL_GATEWAY_KEY", "k")
    asked = []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, json=json.loads("[]"))

    with Client(http=httpx.Client(transport=httpx.MockTransport(handle))) as gateway:
        gateway.send([])
    assert str(asked[0].url) == "http://elsewhere:9/v1/events"
    assert asked[0].headers["authorization"] == "Bearer k"
