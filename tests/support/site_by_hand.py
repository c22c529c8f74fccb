"""The status service's application without Kafka or Redis: what it knows is put in by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from fastapi.testclient import TestClient

from tidemill import load
from tidemill.offline.lookup import LogLookup
from tidemill.registry.decisions import NOBODY, ModelRef
from tidemill.registry.signing import UNSIGNED
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.stream.memory import MemoryBroker, MemoryRecord
from tidemill.stream.partition import partition_of
from tidemill.stream.topic import Topic
from tidemill.tokens import Holder, Role, Tokens, token_hash
from tidemill.watch.status.app import build
from tidemill.watch.status.bodies import CommandRequest
from tidemill.watch.status.follower import TopicFollower, _fields
from tidemill.watch.status.overview import Overview
from tidemill.watch.status.parts import Parts
from tidemill.watch.status.scrape import Scraper
from tidemill.web.access import Access
from tidemill.wire import topics
from tidemill.wire.records import Records

FLIGHTS = load("flights")
RECORDS = Records(FLIGHTS)
TOKEN = "a-token-for-these-tests-0123456789"
VIEWERS_TOKEN, ADMINS_TOKEN = f"viewer-{TOKEN}", f"admin-{TOKEN}"
HOLDERS = {
    TOKEN: Holder("anna", Role.OPERATOR), VIEWERS_TOKEN: Holder("vera", Role.VIEWER), ADMINS_TOKEN: Holder("adam", Role.ADMIN),
}  # fmt: skip


def figure(name: str, value: float, **of: Any) -> dict[str, Any]:
    return {"name": name, "model": "", "version": -1, "segment": "", "feature": "", "value": value} | of


def window(source: str, start: int, records: int = 100, figures: list[Any] | None = None, **more: Any) -> bytes:
    given = {
        "source": source, "start": start, "end": start + 100, "records": records, "rows": records, "late": 0,
        "interrupted": False, "compared": True, "closed_at": 5, "figures": figures or [],
    }  # fmt: skip
    return RECORDS.window.encode(given | more)


def alert(subject: str = "drift:distance", state: str = "opened", **more: Any) -> bytes:
    kind, _, feature = subject.partition(":")
    given = {
        "id": subject, "state": state, "by": "monitor", "kind": kind, "model": "", "segment": "", "feature": feature,
        "figure": "psi", "value": 0.9, "limit": 0.4, "since": 0, "start": 0, "end": 100, "opened_at": 3, "message": "moved",
        "look_at": "there", "evidence": {"psi": 0.9, "psi_usual_low": 0.1, "psi_usual_high": 0.2},
    }  # fmt: skip
    unsigned = dataclasses.asdict(UNSIGNED)
    unsigned["kind"] = "acknowledgement" if (given | more)["state"] == "acknowledged" else "alert"
    return RECORDS.alert.encode(given | {"signature": unsigned} | more)


def letter(
    reason: str = "out_of_range", message: str = "77 where 0 to 23 was expected", value: str = "77"
) -> MemoryRecord:
    headers = [
        ("__connect.errors.topic", b"flights.events"), ("__connect.errors.stage", b"validator"),
        ("tidemill.reason", reason.encode()), ("tidemill.field", b"sched_hour"), ("tidemill.value", value.encode()),
        ("__connect.errors.partition", b"2"), ("__connect.errors.offset", b"812"),
        ("__connect.errors.exception.message", message.encode()),
    ]  # fmt: skip
    return MemoryRecord("flights.dlq", b"bytes", b"key", 1000, headers)


def decision(number: int = 1, kind: str = "promoted", champion: str = "slow", **more: Any) -> bytes:
    """Return a decision about slow, who is held against logreg; `champion`: who serves after it, as MODEL@VERSION."""

    def model_ref(name: str) -> dict[str, Any]:
        return dataclasses.asdict(ModelRef.of(name) if name else NOBODY)

    line = {
        "segment": "all",
        "questions": 2000,
        "champion": 0.2,
        "challenger": 0.19,
        "difference": 0.01,
        "low": 0.005,
        "high": 0.015,
    }
    bad = line | {
        "segment": "carrier AA",
        "questions": 900,
        "challenger": 0.25,
        "difference": -0.05,
        "low": None,
        "high": None,
    }
    refs = {"subject": "slow", "before": "logreg", "on_probation_against": ""}
    given = {
        "id": f"d{number}", "kind": kind, "by": "gate", "why": "it is better", "time": 1000 + number, "event_time": 5,
        "examples": 9, "since": 9, "command": "", "champion": model_ref(champion), "pinned": False, "candidate": "",
        "loss": "Brier score", "rate": 0.05, "evidence": [line, bad, bad | {"segment": "carrier UA", "difference": 0.01}],
        "metrics": {}, "epochs": {}, "signature": dataclasses.asdict(UNSIGNED),
    } | {name: model_ref(more.pop(name, of)) for name, of in refs.items()}  # fmt: skip
    return RECORDS.decision.encode(given | more)


class Site:
    """The application, with what it knows put in by hand."""

    def __init__(self, *, reading_is_free: bool = True, hosts: Sequence[str] = ()) -> None:
        self.follower = TopicFollower(KafkaBroker("127.0.0.1:1"), FLIGHTS, None)
        self.scraper = Scraper({"validator": "http://validator:1", "learner-logreg": "http://learner:1"})
        self.broker = MemoryBroker({topic.name("flights"): topic.partitions or 4 for topic in topics.TOPICS})
        self.redis: dict[str, dict[str, str]] = {"JFK": {"event_time": "1000", "origin_count_1h": "12.0"}}
        self.away: Exception | None = None
        self.kafka_away: Exception | None = None
        self.token = TOKEN
        self.said: list[tuple[str, str, str]] = []
        self.asked: list[tuple[CommandRequest, ModelRef, str]] = []
        self.refused: list[str] = []
        self.now = 1000.0
        self.wrong: str | None = None
        self.newest: int | None = None
        self.lookup = LogLookup(FLIGHTS, self.broker, self._features, lambda model, version: {"uri": f"{model}@{version}"},
                             lambda: self.newest)  # fmt: skip
        overview = Overview(FLIGHTS, self.follower, self.scraper, lambda: [{"name": "kafka", "ok": True, "why": ""}])
        self.app = build(
            Parts(
                follower=self.follower, scraper=self.scraper, overview=overview, lookup=self.lookup, ready=lambda: self.wrong,
                acknowledge=lambda *said: self.said.append(said), ask=self._ask,
                access=Access(
                    Tokens({token_hash(token): holder for token, holder in HOLDERS.items()}), reading_is_free=reading_is_free,
                    count_refused=self.refused.append, clock=lambda: self.now,
                ),
            ),
            hosts,
        )  # fmt: skip
        self.client = TestClient(self.app, "http://localhost:8000", raise_server_exceptions=False)

    def _features(self, view: str, entity: str) -> dict[str, str]:
        if self.away:
            raise self.away
        return self.redis.get(entity, {})

    def _ask(self, wish: CommandRequest, target: ModelRef, by: str) -> None:
        """Write the command in a transaction, as the service does."""
        producer = self.broker.producer("status")
        producer.emit("flights.commands", wish.id.encode(), wish.id.encode())
        if self.kafka_away:
            producer.abort()
            raise self.kafka_away
        producer.commit({}, None)
        self.asked.append((wish, target, by))

    def tell(self, topic: Topic, *values: bytes) -> None:
        """Have the follower read records, without regard to their signatures."""
        name = topic.name("flights")
        for value in values:
            if name in self.follower._signed:
                codec, handler = self.follower._signed[name]
                handler(_fields(codec.parse(value)))
            else:
                self.follower._handlers[name](MemoryRecord(name, value, b"k", 1000))

    def get(self, path: str) -> Any:
        answer = self.client.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()


def predicted(site: Site, event_id: str = "e1", *, label: bool | None = None) -> None:
    """Have the log hold one prediction, the event it was made of, and perhaps its label."""
    event = {
        "flight_id": event_id, "asked_at": 5, "carrier": "UA", "flight": 1, "tailnum": None, "origin": "JFK", "dest": "LAX",
        "distance": 2475.0, "sched_hour": 9, "flight_date": 15706, "sched_minutes": 300.0, "dep_delay": None, "temp": None,
        "dewp": None, "wind_speed": None, "precip": None, "visib": None,
    }  # fmt: skip
    features = {
        "event_id": event_id, "entity_id": "JFK", "event_time": 5, "partition": 1, "offset": 0, "partial": False,
        "entities": {"dest": "LAX", "carrier": "UA", "origin": "JFK"}, "as_of": {"origin": 2, "carrier_outcome": 7},
        "stale": ["dest"],
        "vector": dict.fromkeys(FLIGHTS.vector) | {"distance": 2475.0},
    }  # fmt: skip
    scores = [
        {"model": m, "version": 7, "epoch": 0, "score": 0.25, "probabilities": {}, "answered": True}
        for m in FLIGHTS.model_names
    ]
    log = {"features": features, "champion": scores[0], "challengers": scores[1:]}
    key = event_id.encode()
    producer = site.broker.producer("test")
    producer.emit("flights.events.valid", RECORDS.event.encode(event), b"JFK", partition=1)
    producer.emit("flights.prediction-log", RECORDS.prediction_log.encode(log), key, partition=partition_of(key, 4))
    if label is not None:
        example = {"prediction": log, "label": label, "label_time": 9}
        producer.emit("flights.examples", RECORDS.example.encode(example), key, partition=0)
    consumer = site.broker.consumer("nobody", [], "0")
    producer.commit({}, consumer)
