"""How long the gateway takes to answer, at an even rate, with Kafka, Redis and the chain of services on this machine.

    make bench-gateway                              300 requests a second for 20 s
    make bench-gateway ARGS="--rate 1000 --seconds 20"

The load is vegeta's (`go install github.com/tsenart/vegeta/v12@latest`), which sends at its rate whether answers come or
not. Before, models learn from the warm-up; then their learners end. Afterwards every answer is held against the record on
the predictions topic, and a sample of the predictions is made again from the log and the models. Then the features of one
entity, of 5 (50 features) and of 100, each with the tiles of a real one, are asked for, one call after the other. The load
generator shares the cores with all the rest.

Where the time goes is told by the times at which the broker has appended the event and its prediction: before that is
HTTP and producing; between the two the chain, which gathers, handles and sends; after it the transaction's commit, and the
gateway that reads it.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime
from itertools import cycle, pairwise
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from real_kafka import RealKafka, missing

from benchmarks.pipeline import REFERENCE, cpu_seconds, say
from tidemill.client import Client
from tidemill.declare.load import load
from tidemill.demo import data
from tidemill.features.redis import connect, dump_keys, restore_keys
from tidemill.local.processes import end
from tidemill.local.servers import Redis
from tidemill.local.stack import Stack
from tidemill.offline.replay import Replay
from tidemill.runtime.run import registry_of, topic_table
from tidemill.settings import load as load_settings
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.tokens import new_token
from tidemill.wire import topics
from tidemill.wire.records import Records

CHAIN, LEARNING = "validator+featurizer+scorer", "joiner+learner"
FEATURES = {f"entities of one call: {count}": count for count in (1, 5, 100)}
CALLS = 200
#: Predictions that are made again from the log and the models, drawn at random.
REPLAYED = 2_000


def run(rate: int, seconds: int, warm_up: int, **chosen: Any) -> dict[str, Any]:
    """Start everything, send, and compare; `chosen` are further settings. Returns the figures."""
    pipeline, key = load(REFERENCE), new_token()
    with ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory()))
        say("starting Kafka, Redis, the chain and the gateway")
        kafka, redis = RealKafka(folder), Redis(folder)
        cleanup.callback(kafka.stop)
        cleanup.callback(redis.stop)
        broker = KafkaBroker(kafka.servers)
        broker.create(topic_table(pipeline))
        settings = {
            "brokers": kafka.servers,
            "redis_url": redis.url,
            "gateway_key": key,
            "log_level": "WARNING",
            "snapshot_seconds": 0.5,
        } | chosen
        stack = Stack(REFERENCE, pipeline, folder, settings)
        cleanup.callback(stack.stop)
        for role in (CHAIN, LEARNING, "gateway"):
            stack.start(role)
        stack.wait_ready()
        url = f"http://127.0.0.1:{stack.ports['gateway']}"
        reader = broker.follow_topics([topic.name(pipeline) for topic in (topics.EVENTS, topics.PREDICTIONS)])
        flights = data.flights(range(1, 5))[: warm_up + rate * seconds]
        events = [flight.event for flight in flights]
        with Client(url, key) as client:
            client.send(events[: warm_up // 2])
            client.label(flight.label for flight in flights[: warm_up // 2] if flight.label)
            for event in events[warm_up // 2 : warm_up]:
                learned = client.predict(event).version
        if not learned:
            sys.exit("no model has learned: give it more to warm up by --warm-up")
        end(stack.processes.pop(LEARNING))
        say(f"{rate * seconds:,} events at {rate:,} a second; load {os.getloadavg()[0]:.1f} before")
        processes = {**stack.processes, "broker": kafka.process}
        before = {name: cpu_seconds(process.pid) for name, process in processes.items()}
        results = attack(folder, url, key, events[warm_up:], rate)
        cpu = {name: cpu_seconds(processes[name].pid) - began for name, began in before.items()}
        stack.check()
        figures = summary(results)
        figures |= compared(reader, Records(pipeline), results, len(events))
        kept = {name: stack.env[f"TIDEMILL_{name.upper()}"] for name in ("brokers", "store_url", "verify_keys")}
        replay = Replay(pipeline, broker, registry_of(pipeline, load_settings(**kept)))
        again = replay.report((), sample=REPLAYED, seed=1).summary
        figures["replayed"] = {name: getattr(again, name) for name in ("predictions", "scores", "equal", "versions")}
        figures |= {f"{name}_cpu_ms_per_request": round(used / len(results) * 1000, 2) for name, used in cpu.items()}
        figures |= {
            "features": features(url, key, pipeline, redis.url, stack.processes["gateway"].pid),
            "load": [round(one, 1) for one in os.getloadavg()],
        }
        return figures


def attack(folder: Path, url: str, key: str, events: Sequence[dict[str, Any]], rate: int) -> list[dict[str, Any]]:
    """Have vegeta send the events; returns its results, one a request."""
    header = {"Authorization": [f"Bearer {key}"], "Content-Type": ["application/json"]}
    targets = folder / "targets"
    with targets.open("w") as file:
        for event in events:
            body = base64.b64encode(json.dumps(event).encode()).decode()
            file.write(
                json.dumps({"method": "POST", "url": f"{url}/v1/predict", "header": header, "body": body}) + "\n"
            )
    tool = shutil.which("vegeta") or sys.exit("vegeta is not on the PATH: see the first lines of this file")
    sent = subprocess.run(
        [tool, "attack", "-format=json", f"-targets={targets}", f"-rate={rate}", f"-duration={len(events) // rate}s",
         "-timeout=30s", "-max-workers=2000"],
        stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    read = subprocess.run([tool, "encode", "--to=json"], input=sent.stdout, stdout=subprocess.PIPE, check=True)
    return [json.loads(line) for line in read.stdout.splitlines()]


def summary(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return codes and delays in ms of requests."""
    took = sorted(result["latency"] / 1e6 for result in results)
    return {
        "requests": len(results),
        "codes": dict(Counter(str(result["code"]) for result in results)),
        **{f"p{int(q * 100)}_ms": round(took[int(q * (len(took) - 1))], 1) for q in (0.5, 0.9, 0.99, 1.0)},
    }


def compared(reader: Any, records: Records, results: Sequence[dict[str, Any]], expected: int) -> dict[str, Any]:
    """Return how many answers equal the record on the topic, and how many ids have other than one."""
    predictions: dict[str, list[Any]] = {}
    appended: dict[str, dict[str, int]] = {"events": {}, "predictions": {}}
    quiet = time.monotonic()
    while sum(map(len, predictions.values())) < expected and time.monotonic() - quiet < 5:
        for record in reader.poll(timeout=0.05):
            quiet, is_event = time.monotonic(), record.topic().endswith(".events")
            codec = records.sent_event if is_event else records.prediction
            one = codec.decode(record.value())
            event_id = one[records.pipeline.events.id] if is_event else one["event_id"]
            appended["events" if is_event else "predictions"][event_id] = record.timestamp()[1]
            if not is_event:
                predictions.setdefault(event_id, []).append(one)
    reader.close()
    answers = [json.loads(base64.b64decode(result["body"])) for result in results if result["code"] == 200]
    equal = [all(predictions[a["event_id"]][0][name] == a[name] for name in ("champion", "as_of")) for a in answers]
    twice = sum(len(several) != 1 for several in predictions.values())
    return {
        "predictions": len(predictions),
        "equal_answers": sum(equal),
        "ids_not_once": twice,
        "where_p50_ms": parts(appended, results),
    }


def parts(appended: dict[str, dict[str, int]], results: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the median time to the event in the log, from there to its prediction, and from there to the answer."""
    times = []
    for result in results:
        if result["code"] == 200:
            event_id = json.loads(base64.b64decode(result["body"]))["event_id"]
            began = datetime.fromisoformat(result["timestamp"]).timestamp() * 1000
            at = began, *(of[event_id] for of in appended.values()), began + result["latency"] / 1e6
            times.append([after - before for before, after in pairwise(at)])
    names = ("to_the_event_in_the_log", "to_the_prediction_in_the_log", "to_the_answer")
    return {name: round(median(several), 1) for name, several in zip(names, zip(*times, strict=True), strict=True)}


def features(url: str, key: str, pipeline: Any, redis_url: str, gateway: int) -> dict[str, Any]:
    """Return how long a call for features takes, and the CPU of the gateway's process, in ms, by the number of entities."""
    view, ids = pipeline.views[0], [f"E{number:02}" for number in range(max(FEATURES.values()))]
    place, entity = f"{pipeline.name}:{view.label}/tiles:", view.entity
    store, names = connect(redis_url), [f"{place}{one}" for one in ids]
    stored = dict(dump_keys(store, pipeline.name, [view.label]))
    real = [tiles for name, tiles in stored.items() if name.startswith(place) and name not in names]
    restore_keys(store, zip(names, cycle(real), strict=False))
    figures = {}
    with Client(url, key) as client:
        for name, count in FEATURES.items():
            asked, took = {entity: ids[:count]}, []
            before = cpu_seconds(gateway)
            for _ in range(CALLS):
                began = time.perf_counter()
                client.features(asked, at="latest")
                took.append((time.perf_counter() - began) * 1000)
            took.sort()
            used = (cpu_seconds(gateway) - before) / CALLS * 1000
            figures[name] = {"p50_ms": round(took[CALLS // 2], 1), "p99_ms": round(took[int(CALLS * 0.99)], 1)}
            figures[name]["gateway_cpu_ms"] = round(used, 2)
    return figures


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=300)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=200)
    parser.add_argument("--max-delay-ms", type=int, default=20, help="as TIDEMILL_MAX_DELAY_MS")
    given = parser.parse_args()
    if lacking := missing():
        sys.exit(lacking)
    print(json.dumps(run(given.rate, given.seconds, given.warm_up, max_delay_ms=given.max_delay_ms), indent=2))


if __name__ == "__main__":
    main()
