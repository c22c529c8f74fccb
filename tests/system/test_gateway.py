"""The gateway before a real Kafka: every answer is the record on the predictions topic, and each id is predicted once."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import pytest
from running import until, worker
from trace_picture import svg
from tracing import Collector, paths

from tidemill.demo import data
from tidemill.tokens import new_token
from tidemill.wire import topics

CHAIN = "validator+featurizer+scorer"
EVENTS, CLIENTS = 160, 6


UNIQUE = 'rules=[*_base.rules, __import__("tidemill").rules.unique("flight_id", within="48h")]'


@contextmanager
def client_of(run: Any, key: str, name: str = "gateway") -> Iterator[httpx.Client]:
    base = f"http://127.0.0.1:{run.stack.ports[name]}"
    with httpx.Client(base_url=base, headers={"Authorization": f"Bearer {key}"}, timeout=30) as client:
        yield client


def asked(clients: Iterator[httpx.Client], event: dict[str, Any], check: Any) -> dict[str, Any]:
    """Ask as a client does that does not give up: it repeats the event until it is answered."""
    while True:
        check()
        try:
            answer = next(clients).post("/v1/predict", json=event, params={"timeout_ms": 10_000})
        except httpx.TransportError:
            continue
        if answer.status_code in (200, 409, 422):
            return answer.json()
        assert answer.status_code in (202, 503), answer.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "changes", "killed"),
    [
        pytest.param(["gateway"], "", ("gateway", CHAIN, "gateway"), id="one gateway"),
        pytest.param(["gateway"], "", ("broker", CHAIN, "broker"), marks=pytest.mark.long, id="and the broker"),
        pytest.param(
            ["gateway", "gateway#1"],
            UNIQUE,
            ("gateway", CHAIN, "gateway"),
            marks=pytest.mark.long,
            id="two, asked in turns, and a rule that refuses repeated ids",
        ),
    ],
)
def test_each_id_is_predicted_once_though_clients_repeat_and_gateway_and_scorer_are_killed(
    running, kafka, names: list[str], changes: str, killed: tuple[str, ...]
) -> None:
    key = new_token()
    run = running("plain", partitions=2, gateway_key=key, changes=changes)
    events = [flight.event for flight in data.flights((1,), days=1)[:EVENTS]]
    reader = run.reader(topics.PREDICTIONS)
    for role in (CHAIN, *names):
        run.stack.start(*role.split("#"))
    run.stack.wait_ready()
    answers: dict[int, list[dict[str, Any]]] = {}
    done = threading.Semaphore(0)

    def client(number: int) -> None:
        """Ask for every event, each client from another one on: so most are asked for by several at once."""
        mine = answers[number] = []
        with ExitStack() as several:
            https = cycle(
                [several.enter_context(client_of(run, key, name)) for name in names[:: -1 if number % 2 else 1]]
            )
            for event in events[number // 2 * 7 :] + events[: number // 2 * 7]:
                mine.append(asked(https, event, run.stack.check))
                done.release()

    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(client, number) for number in range(CLIENTS)]
        for role in killed:
            for _ in range(EVENTS * CLIENTS // 6):
                done.acquire()
            if role == "broker":
                kafka.kill()
                kafka.start()
            else:
                os.kill(worker(run.stack.processes[role]), signal.SIGKILL)  # its parent starts it again
        for one in clients:
            one.result()

    predictions: list[dict[str, Any]] = []

    def all_read() -> bool:
        predictions.extend(run.records.prediction.decode(record.value()) for record in reader.poll(timeout=0.05))
        return len(predictions) >= EVENTS

    until(all_read, "predictions are missing", 30, run.stack.check)
    for _ in range(10):
        all_read()
    reader.close()
    times = Counter(prediction["event_id"] for prediction in predictions)
    assert times == Counter(event["flight_id"] for event in events), times.most_common(3)
    record = {prediction["event_id"]: prediction for prediction in predictions}
    for mine in answers.values():
        assert len(mine) == EVENTS
        for answer in mine:
            assert answer["state"] == "predicted"
            assert {name: answer[name] for name in record[answer["event_id"]]} == record[answer["event_id"]]
    assert any(answer["repeated"] for mine in answers.values() for answer in mine)
    with client_of(run, key) as http:
        logged = http.get(f"/v1/predictions/{events[0]['flight_id']}?log=true").json()
        assert logged["champion"] == record[events[0]["flight_id"]]["champion"]
    run.stack.processes["gateway"].terminate()
    assert run.stack.processes.pop("gateway").wait(20) == 0, "it drains, and ends by itself"


@pytest.mark.long
def test_one_trace_leads_from_the_request_to_the_learned_label(running, tmp_path: Path) -> None:
    """The picture of it is in docs/: TIDEMILL_TRACE_PICTURE=docs/trace.svg writes that."""
    key, flight = new_token(), data.flights((1,), days=1)[0]
    run = running("plain", partitions=1, gateway_key=key, snapshot_seconds=0.2)
    with Collector() as collector:
        run.stack.env |= {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "50"}
        for role in (CHAIN, "joiner+learner", "gateway"):
            run.stack.start(role)
        run.stack.wait_ready()
        with client_of(run, key) as http:
            predicted = http.post("/v1/predict", json=flight.event)
            assert predicted.json()["state"] == "predicted", predicted.text
            trace = {"traceparent": predicted.headers["traceparent"]}
            assert http.post("/v1/labels", json=flight.label, headers=trace).json()["state"] == "written"
        until(lambda: any(hop.name.startswith("learn ") for hop in collector.hops), "no span of the learner", 20)
    name, own = run.pipeline.name, [hop for hop in collector.hops if hop.trace == predicted.json()["trace_id"]]
    known = paths(own)
    scored = f"POST /v1/predict > validate {name}.events > featurize {name}.events.valid > score {name}.features"
    assert known[f"learn {name}.examples"] == f"{scored} > join {name}.labels.valid > learn {name}.examples"
    assert known[f"validate {name}.labels"] == f"POST /v1/predict > POST /v1/labels > validate {name}.labels"
    assert {hop.service for hop in own} == {f"{name}.{process}" for process in (CHAIN, "joiner+learner", "gateway")}
    picture = svg(
        [hop._replace(name=hop.name.replace(f"{name}.", "flights.")) for hop in own],
        "One trace: from the request to the learned label",
    )
    Path(os.environ.get("TIDEMILL_TRACE_PICTURE", tmp_path / "trace.svg")).write_text(picture)
    assert picture.count("<rect ") == len(own) >= 8
