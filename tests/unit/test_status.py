"""The status service's interface: what it tells, what it refuses, and that nothing makes it fail."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, settings
from pydantic import SecretStr

from tidemill import load, topics
from tidemill.errors import BrokerError, StoreError
from tidemill.records import Records
from tidemill.status.app import MOST_BODY, Parts, build
from tidemill.status.feed import Feed
from tidemill.status.lookup import Lookup, TooFarBackError, partition_of
from tidemill.status.overview import Overview
from tidemill.status.scrape import Instance, Scraper, parse
from tidemill.stream.kafka import KafkaBroker
from tidemill.stream.memory import MemoryBroker, MemoryRecord

FLIGHTS = load("flights")
RECORDS = Records(FLIGHTS)
TOKEN = "a token for these tests"
SCRIPT = "<script>alert(1)</script>"


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
        "look_at": "there", "evidence": {"psi": 0.9, "psi_usual_least": 0.1, "psi_usual_most": 0.2},
    }  # fmt: skip
    return RECORDS.alert.encode(given | more)


def letter(reason: str = "out_of_range", message: str = "77 where 0 to 23 was expected") -> MemoryRecord:
    headers = [
        ("tidemill.reason", reason.encode()), ("tidemill.field", b"sched_hour"), ("tidemill.value", b"77"),
        ("__connect.errors.stage", b"validator"), ("__connect.errors.topic", b"flights.events"),
        ("__connect.errors.partition", b"2"), ("__connect.errors.offset", b"812"),
        ("__connect.errors.exception.message", message.encode()),
    ]  # fmt: skip
    return MemoryRecord("flights.dlq", b"bytes", b"key", 1000, headers)


class Site:
    """The application, with what it knows put in by hand."""

    def __init__(self) -> None:
        self.feed = Feed(KafkaBroker("127.0.0.1:1"), FLIGHTS)
        self.scraper = Scraper({"validator": "http://validator:1", "learner-logreg": "http://learner:1"})
        self.broker = MemoryBroker({topic.name("flights"): topic.partitions or 4 for topic in topics.TOPICS})
        self.redis: dict[str, dict[str, str]] = {"JFK": {"event_time": "1000", "origin_count_1h": "12.0"}}
        self.away: Exception | None = None
        self.said: list[tuple[str, str, str]] = []
        self.wrong: str | None = None
        lookup = Lookup(FLIGHTS, self.broker, self._features, lambda model, version: {"uri": f"{model}@{version}"})
        overview = Overview(FLIGHTS, self.feed, self.scraper, lambda: [{"name": "kafka", "ok": True, "why": ""}])
        self.app = build(
            Parts(
                feed=self.feed, scraper=self.scraper, overview=overview, lookup=lookup, ready=lambda: self.wrong,
                acknowledge=lambda *said: self.said.append(said), token=SecretStr(TOKEN),
            )
        )  # fmt: skip
        self.client = TestClient(self.app, raise_server_exceptions=False)

    def _features(self, view: str, entity: str) -> dict[str, str]:
        if self.away:
            raise self.away
        return self.redis.get(entity, {})

    def tell(self, topic: topics.Topic, *values: bytes) -> None:
        for value in values:
            self.feed._take[topic.name("flights")](MemoryRecord(topic.name("flights"), value, b"k", 1000))

    def get(self, path: str) -> Any:
        answer = self.client.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture
def site() -> Site:
    return Site()


def predicted(site: Site, event_id: str = "e1", *, label: bool | None = None) -> None:
    """Have the log hold one prediction, the event it was made of, and perhaps its label."""
    event = {
        "flight_id": event_id, "asked_at": 5, "carrier": "UA", "flight": 1, "tailnum": None, "origin": "JFK", "dest": "LAX",
        "distance": 2475.0, "sched_hour": 9, "flight_date": 15706, "sched_minutes": 300.0, "dep_delay": None, "temp": None,
        "dewp": None, "wind_speed": None, "precip": None, "visib": None,
    }  # fmt: skip
    features = {
        "event_id": event_id, "entity_id": "JFK", "event_time": 5, "partition": 1, "offset": 0, "partial": False,
        "vector": dict.fromkeys(FLIGHTS.vector) | {"distance": 2475.0},
    }  # fmt: skip
    scores = [{"model": m, "version": 7, "score": 0.25, "probabilities": {}} for m in FLIGHTS.roster]
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


# What it tells.


def test_of_a_window_that_was_told_twice_the_one_that_saw_more_counts(site: Site) -> None:
    site.tell(
        topics.WINDOWS,
        window("examples", 0, 100),
        window("examples", 0, 7, interrupted=True),
        window("examples", 100, 9),
    )
    assert [w["records"] for w in site.get("/api/windows?source=examples")] == [100, 9]


def test_performance_by_window_segment_and_version(site: Site) -> None:
    said = [
        figure("ROCAUC", 0.7, model="logreg"), figure("ROCAUC", 0.5, model="baseline"),
        figure("ROCAUC", 0.6, model="logreg", segment="carrier=UA"),
        figure("ROCAUC", 0.65, model="logreg", version=12), figure("ROCAUC_gain", 0.02, model="logreg", version=12),
    ]  # fmt: skip
    site.tell(topics.WINDOWS, window("examples", 0, figures=said))
    found = site.get("/api/performance")
    assert found["windows"][0]["models"] == {"logreg": {"ROCAUC": 0.7}, "slow": {}, "baseline": {"ROCAUC": 0.5}}
    assert found["segments"] == [{"segment": "carrier=UA", "models": {"logreg": {"ROCAUC": 0.6}}}]
    assert found["versions"] == [{"version": 12, "metrics": {"ROCAUC": 0.65}, "gain": {"ROCAUC": 0.02}}]


def test_drift_by_feature_over_time_with_its_limit_and_alert(site: Site) -> None:
    for n, value in enumerate((0.1, 0.9)):
        said = [figure("psi", value, feature="distance"), figure("missing", 0.0, feature="distance"),
                figure("p50", 900.0, feature="distance")]  # fmt: skip
        site.tell(topics.WINDOWS, window("prediction-log", n * 100, figures=said))
    site.tell(topics.ALERTS, alert())
    (distance,) = [f for f in site.get("/api/drift")["features"] if f["name"] == "distance"]
    assert (distance["psi"], distance["limit"], distance["alert"]) == ([0.1, 0.9], 0.25, True)
    assert (distance["usual"], distance["missing"], distance["quantiles"]) == ([0.1, 0.2], 0.0, {"p50": 900.0})


def test_an_alert_is_open_until_it_is_resolved_and_stays_acknowledged_meanwhile(site: Site) -> None:
    site.tell(
        topics.ALERTS, alert(), alert(state="acknowledged", by="anna", message="looking"), alert(state="continuing")
    )
    (found,) = site.get("/api/alerts")["alerts"]
    assert (found["state"], found["acknowledged"], found["by"], found["message"]) == (
        "continuing",
        True,
        "anna",
        "moved",
    )
    site.tell(topics.ALERTS, alert(state="resolved"))
    assert (site.get("/api/alerts")["alerts"], len(site.get("/api/alerts")["resolved"])) == ([], 1)


def test_dead_letters_by_reason_with_where_they_came_from(site: Site) -> None:
    site.feed._letter(letter())
    site.feed._letter(letter("truncated", SCRIPT))
    found = site.get("/api/dead-letters")
    assert (found["total"], len(found["by_reason"])) == (2, 2)
    assert found["latest"][1] | {"message": ""} == {
        "at": 1000, "stage": "validator", "topic": "flights.events", "partition": 2, "offset": 812, "reason": "out_of_range",
        "rule": "", "field": "sched_hour", "value": "77", "message": "", "key": "key", "size": 5,
    }  # fmt: skip
    assert [x["message"] for x in site.get("/api/dead-letters?reason=truncated")["latest"]] == [SCRIPT]


def test_a_prediction_with_all_that_made_it(site: Site) -> None:
    predicted(site, "e1", label=True)
    predicted(site, "e2")
    found = site.get("/api/predictions/e1")
    assert found["event"]["record"]["distance"] == found["vector"]["distance"] == 2475.0
    assert [(s["model"], s["role"], s["manifest"]["uri"]) for s in found["scores"]] == [
        ("logreg", "champion", "logreg@7"), ("slow", "challenger", "slow@7"), ("baseline", "baseline", "baseline@7"),
    ]  # fmt: skip
    assert (found["outcome"]["state"], found["outcome"]["label"], found["outcome"]["offset"]) == ("joined", True, 0)
    assert site.get("/api/predictions/e2")["outcome"]["state"] == "pending"
    assert site.client.get("/api/predictions/e3").status_code == 404


def test_an_entitys_features_by_view(site: Site) -> None:
    (view,) = site.get("/api/entities/JFK")["views"]
    assert view == {
        "view": "origin",
        "key": "flights:origin:JFK",
        "event_time": 1000,
        "features": {"origin_count_1h": 12.0},
    }
    assert site.client.get("/api/entities/nowhere").status_code == 404


def test_the_overview_holds_before_anything_is_known_and_after(site: Site) -> None:
    assert site.get("/api/overview")["performance"]["windows"] == []
    site.tell(topics.WINDOWS, window("examples", 0), window("prediction-log", 0))
    told = site.get("/api/overview")
    assert (told["champion"], told["event_time"], told["drift"]["compared"]) == ("logreg", 100, True)


# Health, and what is away.


def test_readiness_says_what_is_away(site: Site) -> None:
    assert site.client.get("/readyz").text == "ok\n"
    site.wrong = "redis: no Redis at localhost:6379"
    answer = site.client.get("/readyz")
    assert (answer.status_code, answer.text) == (503, "redis: no Redis at localhost:6379\n")
    assert site.client.get("/livez").status_code == 200
    assert "tidemill_" in site.client.get("/metrics").text


@pytest.mark.parametrize(
    ("error", "code"),
    [(StoreError("no Redis"), 503), (BrokerError("no Kafka"), 503), (TooFarBackError("too far"), 504)],
)
def test_what_is_away_is_a_sentence_and_not_a_fault_of_ours(site: Site, error: Exception, code: int) -> None:
    site.away = error
    answer = site.client.get("/api/entities/JFK")
    assert (answer.status_code, answer.json()) == (code, {"detail": str(error)})


def test_a_services_rate_lag_and_delay_come_from_its_own_metrics() -> None:
    text = (
        'tidemill_records_total{{service="v"}} {0}\ntidemill_delay_seconds_sum{{service="v"}} {1}\n'
        'tidemill_delay_seconds_count{{service="v"}} {2}\ntidemill_lag_records{{service="v",topic="t",partition="0"}} 5\n'
        'tidemill_lag_records{{service="v",topic="t",partition="1"}} 7\n'
    )
    one = Instance("v", "0", "http://v")
    for now, said in ((10.0, (100, 1.0, 10)), (12.0, (300, 2.0, 30))):
        one.values = parse(text.format(*said))
        one.note(now)
    assert (one.rate, one.delay, one.told()["lag"]) == (100.0, 0.05, 12.0)
    one.values = parse(text.format(7, 0.1, 1))  # started anew
    one.note(13.0)
    assert (one.rate, one.delay) == (None, None)


# Who may change something, and what nobody can do.


def acknowledge(site: Site, token: str | None, name: str = "drift:distance", body: Any = None) -> Any:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    given = {"by": "anna", "why": "looking"} if body is None else body
    return site.client.post(f"/api/alerts/{name}/acknowledge", json=given, headers=headers)


def test_an_alert_is_acknowledged_with_the_token_only(site: Site) -> None:
    site.tell(topics.ALERTS, alert())
    assert acknowledge(site, None).status_code == 401
    assert acknowledge(site, "another").status_code == 401
    assert site.said == []
    assert acknowledge(site, TOKEN).status_code == 200
    assert site.said == [("drift:distance", "anna", "looking")]
    assert acknowledge(site, TOKEN, "no:such").status_code == 404
    assert acknowledge(site, TOKEN, body={"by": "", "why": "x"}).status_code == 422


def test_a_body_that_is_too_large_is_refused_before_it_is_read(site: Site) -> None:
    assert acknowledge(site, TOKEN, body={"by": "a", "why": "x" * MOST_BODY}).status_code == 413

    def pieces() -> Iterator[bytes]:
        yield b"x" * 100

    answer = site.client.post(
        "/api/alerts/a/acknowledge", content=pieces(), headers={"Authorization": f"Bearer {TOKEN}"}
    )
    assert answer.status_code == 413


def test_every_answer_forbids_foreign_scripts_and_frames(site: Site) -> None:
    for path in ("/", "/api/overview", "/api/predictions/none", "/page/main.js", "/nowhere"):
        headers = site.client.get(path).headers
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


def test_no_file_beside_the_page_is_served(site: Site) -> None:
    for path in ("/page/../app.py", "/page/%2e%2e/app.py", "/page/..%2fapp.py", "/page//etc/passwd"):
        assert site.client.get(path).status_code == 404


def test_what_is_streamed_is_the_overview(site: Site) -> None:
    body = site.client.get("/openapi.json").json()
    assert "/api/live" in body["paths"]
    json.dumps(site.get("/api/overview"), allow_nan=False)


_FUZZED = Site()
_FUZZED.tell(topics.ALERTS, alert())
_FUZZED.tell(topics.WINDOWS, window("examples", 0), window("prediction-log", 0))
_FUZZED.feed._letter(letter())
predicted(_FUZZED, "e1", label=True)
schema = schemathesis.openapi.from_asgi("/openapi.json", _FUZZED.app).exclude(path="/api/live")  # never ends


@schema.parametrize()
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_nothing_that_is_asked_makes_it_fail(case: schemathesis.Case) -> None:
    answer = case.call(headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code < 500, answer.text
