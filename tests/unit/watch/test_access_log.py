"""Who reads and commands is written down: by name and role and never the token, slowing nobody, and what is lost is said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import small
from fastapi.routing import APIRoute
from gateway_in_memory import COMMANDERS_KEY, HOLDERS, READERS_KEY, SENDERS_KEY, Shop
from site_by_hand import ADMINS_TOKEN, FLIGHTS, RECORDS, TOKEN, VIEWERS_TOKEN, Site, alert
from test_status_access import BODIES, ROUTES, bearer, path_of

from tidemill import metrics
from tidemill.wire import topics
from tidemill.wire.access_log import MAX_SUBJECT_CHARACTERS, AccessLog

ACCESS: dict[str, Any] = {
    "time": 1, "request_id": "r", "by": "anna", "role": "operator", "method": "GET", "route": "/api/models", "subject": "",
    "status": 200,
}  # fmt: skip


class Kafka:
    """Takes records, or is full, or says later that one was not written."""

    def __init__(self) -> None:
        self.is_full = False
        self.sent: list[dict[str, Any]] = []
        self.reports: list[Callable[[str], None]] = []

    def try_send(self, topic: str, value: bytes, key: bytes, headers: Any, on_delivery: Callable[[str], None]) -> bool:
        assert (topic, headers) == (topics.ACCESS.name("flights"), [])
        if self.is_full:
            return False
        self.sent.append({**RECORDS.access.decode(value), "key": key})
        self.reports.append(on_delivery)
        return True

    def poll(self, seconds: float = 0.0) -> None:
        assert seconds == 0.0, "nobody waits"


def test_what_is_lost_is_counted_and_said_in_the_next_record() -> None:
    kafka = Kafka()
    log = AccessLog(FLIGHTS, "status", "0", kafka)
    before = metrics.ACCESS_DROPPED.labels("status")._value.get()
    log.note(ACCESS)
    kafka.is_full = True
    for _ in range(3):
        log.note(ACCESS)
    kafka.is_full = False
    log.note(ACCESS)
    kafka.reports[1]("away")  # the one that told of three is lost itself
    log.note({**ACCESS, "subject": "x" * 10_000})
    log.note(ACCESS)
    assert [one["dropped"] for one in kafka.sent] == [0, 3, 4, 0]
    assert metrics.ACCESS_DROPPED.labels("status")._value.get() == before + 4
    assert len(kafka.sent[2]["subject"]) == MAX_SUBJECT_CHARACTERS
    assert (kafka.sent[0]["key"], kafka.sent[0]["service"], kafka.sent[0]["instance"]) == (b"anna", "status", "0")


@pytest.mark.slow
@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.name} {route.path}")
def test_each_route_of_the_status_service_is_written_down_with_who_asked(route: APIRoute) -> None:
    if route.path == "/api/live":
        pytest.skip("it never ends")
    site, seen = Site(reading_is_free=False), list[dict[str, Any]]()
    site.tell(topics.ALERTS, alert())
    site.app.state.parts.access.on_access = seen.append
    (method,) = route.methods
    answers = [
        site.client.request(
            method, path_of(route), headers={**bearer(token), "X-Request-Id": "mine-1"}, json=BODIES.get(route.name)
        )
        for token in (ADMINS_TOKEN, VIEWERS_TOKEN, f"wrong-{TOKEN}", None)
    ]
    assert [answer.status_code for answer in answers[2:]] == [401, 401]
    assert [one["status"] for one in seen] == [answer.status_code for answer in answers[:3]], "no token: nobody"
    assert [(one["by"], one["role"]) for one in seen] == [("adam", "admin"), ("vera", "viewer"), ("", "")]
    assert {(one["method"], one["route"], one["request_id"]) for one in seen} == {(method, route.path, "mine-1")}
    assert answers[0].headers["X-Request-Id"] == "mine-1"
    assert not any(token in repr(seen) for token in (TOKEN, ADMINS_TOKEN, VIEWERS_TOKEN))
    RECORDS.access.encode({**seen[0], "service": "status", "instance": "0", "dropped": 0})


@pytest.mark.slow
def test_a_command_is_written_down_with_what_was_commanded() -> None:
    site, seen = Site(), list[dict[str, Any]]()
    site.app.state.parts.access.on_access = seen.append
    body = {"id": "12345678", "kind": "promote", "target": "slow", "why": "w"}
    assert site.client.post("/api/commands", json=body, headers=bearer(TOKEN)).status_code == 202
    (one,) = seen
    assert (one["by"], one["role"], one["subject"], one["status"]) == ("anna", "operator", "promote slow 12345678", 202)


@pytest.mark.slow
def test_the_gateway_writes_down_reads_commands_and_refusals_and_not_what_is_sent() -> None:
    seen: list[dict[str, Any]] = []
    with Shop(small.make()) as shop:
        shop.gateway.access.on_access = seen.append
        shop.predict(small.event("e1"))
        assert shop.client.post("/v1/events", json={}, headers=bearer(SENDERS_KEY)).status_code == 422
        assert seen == []
        shop.client.post("/v1/events", json={}, headers=bearer(READERS_KEY))
        shop.client.get("/v1/predictions/e9?timeout_ms=0")
        command = {"kind": "unpin", "id": "87654321"}
        shop.client.post("/v1/commands", json=command, headers=bearer(COMMANDERS_KEY))
        features = {"entities": {"origin": ["JFK"]}}
        shop.client.post("/v1/features", json=features)
    assert [(one["by"], one["route"], one["subject"], one["status"]) for one in seen] == [
        ("screen", "/v1/events", "", 403),
        ("shop", "/v1/predictions/{event_id:path}", "e9 timeout_ms=0", 404),
        ("ci", "/v1/commands", "unpin  87654321", 202),
        ("shop", "/v1/features", "origin=JFK", 200),
    ]
    assert not any(key in repr(seen) for key in HOLDERS)
