"""The status service's interface: what it tells, what it refuses, and that nothing makes it fail."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from site_by_hand import FLIGHTS, RECORDS, TOKEN, Site, alert, decision, figure, letter, predicted, window

from tidemill.errors import BrokerError, StoreError
from tidemill.limits import STATUS_BODY_BYTES
from tidemill.offline.lookup import TooFarBackError
from tidemill.registry.signing import UNSIGNED
from tidemill.watch.status import scrape
from tidemill.watch.status.overview import flow
from tidemill.watch.status.scrape import Instance, Scraper, _state_of, fetch, parse
from tidemill.wire import topics

pytestmark = pytest.mark.slow

SCRIPT = "<script>alert(1)</script>"


@pytest.fixture
def site() -> Site:
    return Site()


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
                figure("p50", 900.0, feature="distance"), figure("psi_limit", 0.4, feature="distance"),
                figure("psi_usual_low", 0.1, feature="distance"), figure("psi_usual_high", 0.3, feature="distance")]  # fmt: skip
        site.tell(topics.WINDOWS, window("prediction-log", n * 100, figures=said))
    site.tell(topics.ALERTS, alert())
    (distance,) = [f for f in site.get("/api/drift")["features"] if f["name"] == "distance"]
    assert (distance["psi"], distance["limit"], distance["alert"]) == ([0.1, 0.9], 0.4, True)
    assert (distance["usual"], distance["missing"], distance["quantiles"]) == ([0.1, 0.3], 0.0, {"p50": 900.0})


def test_freshness_by_view_over_time_with_its_objective_and_alert(site: Site) -> None:
    for n, value in enumerate((900.0, 9000.0)):
        said = [figure("freshness_p50", 60.0, feature="origin"), figure("freshness_p99", value, feature="origin"),
                figure("stale", 0.0, feature="origin"), figure("stale", 0.5, feature="dest"),
                figure("unknown", 0.25, feature="dest")]  # fmt: skip
        site.tell(topics.WINDOWS, window("prediction-log", n * 100, figures=said))
    site.tell(topics.ALERTS, alert("freshness:origin", figure="freshness_p99"))
    told = site.get("/api/freshness")
    assert told["windows"] == [100, 200]
    views = {view["view"]: view for view in told["views"]}
    assert list(views) == [view.label for view in FLIGHTS.views]
    assert views["origin"] == {
        "view": "origin", "entity": "origin", "source": "events", "kept_by": "featurizer", "objective": 7200.0,
        "stale_limit": 0.01, "alert": True, "p50": [60.0, 60.0], "p99": [900.0, 9000.0], "stale": [0.0, 0.0],
        "unknown": [None, None],
    }  # fmt: skip
    assert (views["dest"]["kept_by"], views["dest"]["objective"], views["dest"]["alert"]) == (
        "materializer",
        None,
        False,
    )
    assert (views["dest"]["p99"], views["dest"]["stale"], views["dest"]["unknown"]) == (
        [None] * 2,
        [0.5] * 2,
        [0.25] * 2,
    )
    assert views["origin_outcome"]["source"] == "examples"
    assert len(site.get("/api/freshness?last=1")["windows"]) == 1
    assert site.get("/api/overview")["freshness"] == told


def test_value_skew_by_rule_over_time(site: Site) -> None:
    between, sum_ = "out_of_range:between", "does_not_hold:holds"
    for n, said in enumerate((
        [figure("rejected", 0.1, segment=between, feature="sched_hour")],
        [figure("warned", 0.2, segment=between, feature="sched_hour"), figure("warned", 0.3, segment=sum_, feature="temp")],
        [],
    )):  # fmt: skip
        site.tell(topics.WINDOWS, window("prediction-log", n * 100, figures=said))
    told = site.get("/api/rules")
    assert told["windows"] == [100, 200, 300]
    assert told["rules"] == [
        {"reason": "does_not_hold", "rule": "holds", "field": "temp", "refused": [], "warned": [0.0, 0.3, 0.0]},
        {"reason": "out_of_range", "rule": "between", "field": "sched_hour", "refused": [0.1, 0.0, 0.0], "warned": [0.0, 0.2, 0.0]},
    ]  # fmt: skip
    assert site.get("/api/overview")["rules"] == told


def test_the_river_has_a_materializer_where_one_runs() -> None:
    without, with_ = (flow([Instance(name, "0", "") for name in names]) for names in ((), ("materializer",)))
    ends = {(edge["from"], edge["to"]) for edge in with_} - {(edge["from"], edge["to"]) for edge in without}
    assert ends == {("featurizer", "materializer"), ("joiner", "materializer"), ("materializer", "redis")}


def test_the_river_has_a_gate_where_one_runs() -> None:
    without, with_ = (flow([Instance(name, "0", "") for name in names]) for names in ((), ("gate",)))
    ends = {(edge["from"], edge["to"]) for edge in with_} - {(edge["from"], edge["to"]) for edge in without}
    assert ends == {("joiner", "gate")}


def test_the_newest_event_time_is_that_of_the_view_that_has_come_furthest() -> None:
    scraper = Scraper({"featurizer": "http://f", "materializer": "http://m"})
    assert scraper.event_time is None
    for name, time in (("featurizer", 1357.5), ("materializer", 9.0)):
        instance = scraper._instances[name, "0"] = Instance(name, "0", "")
        instance.values = parse(f'tidemill_view_event_time_seconds{{service="{name}",view="origin"}} {time}\n')
    assert scraper.event_time == 1_357_500


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
    site.follower._letter(letter())
    site.follower._letter(letter("truncated", SCRIPT))
    found = site.get("/api/dead-letters")
    assert (found["total"], len(found["by_reason"])) == (2, 2)
    assert found["latest"][1] | {"message": ""} == {
        "at": 1000, "stage": "validator", "topic": "flights.events", "partition": 2, "offset": 812, "reason": "out_of_range",
        "rule": "", "field": "sched_hour", "value": "77", "message": "", "key": "key", "size": 5,
        "letter": "0:0", "attempt": 1,
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
    assert (found["entities"]["dest"], found["as_of"]["origin"], found["stale"]) == ("LAX", 2, ["dest"])
    views = {view["view"]: view for view in found["views"]}
    assert views["origin"] == {
        "view": "origin", "entity": "origin", "entity_id": "JFK", "as_of": 2, "age": 0.003, "stale": False,
    }  # fmt: skip
    assert (views["dest"]["entity_id"], views["dest"]["age"], views["dest"]["stale"]) == ("LAX", None, True)
    assert views["carrier_outcome"]["age"] == 0.0  # what came true after the event: as new as can be
    assert (views["tailnum_outcome"]["entity_id"], views["tailnum_outcome"]["as_of"]) == (None, None)


def test_a_prediction_is_told_without_what_is_too_far_back_to_be_found(site: Site, monkeypatch) -> None:
    predicted(site, "e1", label=True)
    lookup = site.lookup
    monkeypatch.setattr(lookup, "manifest", lambda model, version: None)
    find, log = lookup._find, topics.PREDICTION_LOG

    def slow(*_: object) -> object:
        raise TooFarBackError("looked for 20 s")

    monkeypatch.setattr(lookup, "_find", lambda topic, *more: find(topic, *more) if topic is log else slow())
    monkeypatch.setattr(lookup, "_manifest", slow)
    found = site.get("/api/predictions/e1")
    assert [score["manifest"] for score in found["scores"]] == [None] * 3
    assert found["outcome"] == {"state": "pending", "why": "looked for 20 s"}


def test_an_entitys_features_by_view(site: Site) -> None:
    views = {view["view"]: view for view in site.get("/api/entities/JFK")["views"]}
    assert views["origin"] == {
        "view": "origin",
        "key": "flights:origin:JFK",
        "event_time": 1000,
        "age": None,
        "features": {"origin_count_1h": 12.0},
    }
    for newest, age in ((61_000, 60.0), (900, 0.0)):
        site.newest = newest
        assert site.get("/api/entities/JFK")["views"][0]["age"] == age
    assert site.client.get("/api/entities/nowhere").status_code == 404


def test_the_overview_holds_before_anything_is_known_and_after(site: Site) -> None:
    assert Site().get("/api/overview")["performance"]["windows"] == []
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
    asked = site.client.get("/metrics?name[]=python_info").text
    assert [line.partition("{")[0] for line in asked.splitlines() if line[0] != "#"] == ["python_info"]


def test_all_that_is_shown_of_a_service_is_asked_for() -> None:
    """Whatever the page reads of an instance is among the names that /metrics is asked for."""
    folder = Path(scrape.__file__).parent
    read = {name for file in folder.glob("*.py") for name in re.findall(r"tidemill_[a-z_]+", file.read_text())}
    summed = {f"tidemill_{name}" for name in ("records_total", "delay_seconds_sum", "delay_seconds_count")}
    assert (read | summed) - {"tidemill_"} == {*scrape.NAMES}


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
        one.sample(now)
    assert (one.rate, one.delay, one.as_dict()["lag"]) == (100.0, 0.05, 12.0)
    one.values = parse(text.format(7, 0.1, 1))  # started anew
    one.sample(13.0)
    assert (one.rate, one.delay) == (None, None)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\ncut", b"rubbish\r\n\r\n", b""])
def test_a_service_that_is_killed_in_the_middle_of_its_answer_is_down_and_nothing_else(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    connection.recv(1000)
                    connection.sendall(answer)
                    connection.close()

        threading.Thread(target=serve, daemon=True).start()
        scraper = Scraper({"validator": url})
        scraper._scrape(("validator", "0", url))
        (found,) = scraper.instances
        assert found.state == "down"
        assert url in found.why


def test_other_pipelines_are_listed_with_their_pages_and_how_they_are() -> None:
    site, answers = Site(), iter([b"200 OK", b"200 OK", b"503 Not Ready"])
    assert site.get("/api/overview")["pipelines"] == []
    with socket.create_server(("127.0.0.1", 0)) as server:
        urls = {"orders": f"http://127.0.0.1:{server.getsockname()[1]}", "clicks": "http://127.0.0.1:1"}

        def serve() -> None:
            for answer in answers:
                connection, _ = server.accept()
                connection.recv(1000)
                connection.sendall(
                    b"HTTP/1.1 " + answer + b"\r\nContent-Length: 13\r\nConnection: close\r\n\r\nredis: away \n"
                )
                connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        site.app.state.parts.overview.others = others = Scraper(urls)
        for name, url in urls.items():
            others._scrape((name, "0", url))
        listed = site.app.state.parts.overview.pipelines()
        assert [(one["name"], one["url"], one["state"]) for one in listed] == [
            ("orders", urls["orders"], "ok"),
            ("clicks", "http://127.0.0.1:1", "down"),
        ]
        assert site.get("/api/pipelines") == ["flights", "orders", "clicks"]
        status, answer = fetch(f"{urls['orders']}/readyz")
        assert _state_of(others.instances[0], status, answer) == ("starting", "redis: away")
        thread.join()


# Who may change something, and what nobody can do.


def acknowledge(site: Site, token: str | None, name: str = "drift:distance", body: Any = None) -> Any:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    given = {"why": "looking"} if body is None else body
    return site.client.post(f"/api/alerts/{name}/acknowledge", json=given, headers=headers)


def test_an_alert_is_acknowledged_with_the_token_only(site: Site) -> None:
    site.tell(topics.ALERTS, alert())
    assert acknowledge(site, None).status_code == 401
    assert acknowledge(site, "another").status_code == 401
    assert site.said == []
    assert acknowledge(site, TOKEN).status_code == 200
    assert site.said == [("drift:distance", "anna", "looking")]
    assert acknowledge(site, TOKEN, "no:such").status_code == 404
    assert acknowledge(site, TOKEN, body={"by": "bob", "why": ""}).status_code == 422


def decided(number: int, kind: str = "promoted", command: str = "", **champion: Any) -> bytes:
    """Return a decision; `champion`: its model and version."""
    ref = {"model": "slow", "version": 0} | champion
    return RECORDS.decision.encode(
        {
            "id": f"d{number}", "kind": kind, "by": "gate", "why": "it is better", "time": 1000 + number, "event_time": 5,
            "examples": 9, "since": 9, "command": command, "subject": ref, "champion": ref,
            "before": {"model": "logreg", "version": 0}, "on_probation_against": {"model": "", "version": 0}, "pinned": False,
            "candidate": "", "loss": "", "rate": 0.0, "evidence": [], "metrics": {}, "epochs": {},
            "signature": dataclasses.asdict(UNSIGNED),
        }
    )  # fmt: skip


def test_who_serves_is_whom_the_last_decision_names_and_before_the_first_the_declared_one(site: Site) -> None:
    assert [p["kind"] for p in site.get("/api/promotions")] == ["declared"]
    assert [m["name"] for m in site.get("/api/models") if m["champion"]] == ["logreg"]
    site.tell(topics.PROMOTIONS, decided(1), decided(2, "pinned", version=70))
    told = site.get("/api/promotions")
    assert [(p["kind"], p["model"], p["version"], p["by"]) for p in told] == [
        ("pinned", "slow", 70, "gate"), ("promoted", "slow", None, "gate"), ("declared", "logreg", None, "declaration"),
    ]  # fmt: skip
    assert "signature" not in told[0]["decision"]
    assert [m["name"] for m in site.get("/api/models") if m["champion"]] == ["slow"]
    overview = site.get("/api/overview")
    assert (overview["champion"], overview["champion_version"]) == ("slow", 70)
    site.tell(topics.PROMOTIONS, decided(3, model="gone"))
    assert [m["name"] for m in site.get("/api/models") if m["champion"]] == ["logreg"], (
        "a model that is declared no more serves no more"
    )


@pytest.mark.parametrize(
    ("before", "said", "compared"),
    [
        ({}, {}, ["logreg", "slow"]),  # a challenger against the champion
        ({"on_probation_against": "logreg"}, {"kind": "kept", "subject": "slow", "before": "slow"}, ["slow", "logreg"]),
        (
            {"on_probation_against": "logreg"},
            {"kind": "rolled_back", "subject": "slow", "before": "slow", "champion": "logreg"},
            ["slow", "logreg"],
        ),
        ({}, {"kind": "rolled_back", "subject": "slow", "before": "slow", "champion": "slow@70"}, ["slow", "baseline"]),
        ({}, {"kind": "refused", "subject": "slow@70", "before": "slow"}, ["slow", "baseline"]),
        ({}, {"evidence": []}, []),
    ],
)  # fmt: skip
def test_it_is_told_whom_the_evidence_compares(site: Site, before: Any, said: Any, compared: list[str]) -> None:
    site.tell(topics.PROMOTIONS, decision(1, **before), decision(2, **said))
    assert site.get("/api/promotions")[0]["compared"] == compared


def test_what_the_gate_asks_is_told(site: Site) -> None:
    assert (site.get("/api/overview")["gate"]["worse"], site.get("/api/overview")["gate"]["least"]) == (0.02, 200)


@pytest.mark.parametrize(
    ("champion", "held", "pinned"),
    [("slow@70", True, True), ("slow@70", False, False), ("gone@70", True, False)],  # the last is declared no more
)
def test_it_is_told_whether_a_person_holds_the_champion(site: Site, champion: str, *, held: bool, pinned: bool) -> None:
    site.tell(topics.PROMOTIONS, decision(1, "pinned", champion, pinned=held))
    assert site.get("/api/overview")["champion_pinned"] is pinned


def test_a_candidate_that_answers_is_among_the_models(site: Site) -> None:
    site.tell(topics.PROMOTIONS, decision(1, champion="slow~50", candidate="slow~90"))
    assert site.get("/api/overview")["model_names"] == ["logreg", "slow", "baseline", "slow~50", "slow~90"]
    assert [m["name"] for m in site.get("/api/models") if m["champion"]] == ["slow~50"]


def test_the_gate_is_asked_with_the_token_only_and_its_answer_is_told(site: Site) -> None:
    wish = {"id": "0123456789", "kind": "promote", "target": "slow@70", "by": "somebody else", "why": "it was better"}

    def ask(token: str = TOKEN, **changes: Any) -> Any:
        return site.client.post("/api/commands", json=wish | changes, headers={"Authorization": f"Bearer {token}"})

    assert ask("another").status_code == 401
    for changes in (
        {"kind": "dance"},
        {"target": "a b"},
        {"target": f"slow@{10**20}"},
        {"begin": 10**20},
        {"id": "short"},
        {"id": "with a space"},
        {"why": ""},
        {"steps": 0},
    ):
        assert ask(**changes).status_code == 422, changes
    assert site.asked == []
    answer = ask()
    assert (answer.status_code, answer.json()) == (202, {"id": "0123456789", "decision": None})
    ((said, target, by),) = site.asked
    assert (said.kind, target.model, target.version, by) == ("promote", "slow", 70, "anna")
    assert site.get("/api/commands/0123456789")["decision"] is None
    site.tell(topics.PROMOTIONS, decided(1, command="0123456789"))
    assert site.get("/api/commands/0123456789")["decision"]["kind"] == "promoted"
    assert ask().json()["decision"]["id"] == "d1"
    assert len(site.asked) == 1, "what was decided is not asked again"


def test_a_body_that_is_too_large_is_refused_before_it_is_read(site: Site) -> None:
    assert acknowledge(site, TOKEN, body={"by": "a", "why": "x" * STATUS_BODY_BYTES.max}).status_code == 413

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
