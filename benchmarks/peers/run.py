"""CPU of an event in Tidemill and in its peers, on the same work and one Kafka, run by run in turns.

    make bench-peers                                   five runs of each; writes docs/explanation/peers.md and its plot
    make bench-peers ARGS="--runs 1 --only quix"       one of them, and nothing is written

Topics of one partition hold a month of flights and their labels, with event times as timestamps. Each peer is a process
of its own, pinned to a core, the broker and Redis to the others. CPU is that of the process, client threads included,
from the first event to the last commit. What it predicted is counted, and its metrics are compared with a backtest's.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from benchmarks.declared import bench
from benchmarks.peers import report
from benchmarks.peers.work import PROBE
from benchmarks.pipeline import cpu_seconds, pin, say
from tidemill.demo import data
from tidemill.demo.script import script
from tidemill.encoding.codec import HEADER
from tidemill.errors import Aborted, BrokerError, Retry
from tidemill.keys import VERIFY_FILE, make_keys
from tidemill.local.servers import Redis
from tidemill.offline.backtest import Backtest, BacktestReport
from tidemill.stream.api import TopicPartition
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.stream.memory import MemoryRecord
from tidemill.stream.origin import with_origin
from tidemill.wire import topics
from tidemill.wire.records import Records, vector_to_x

from real_kafka import RealKafka, missing  # isort: skip  benchmarks.pipeline has put it on the path

#: Event times are of 2013: Kafka shall not delete them while it is measured.
KEEP = ("log.retention.check.interval.ms=86400000", "log.initial.task.delay.ms=86400000")
#: How far metrics and the last answer may be from the backtest's. What has the same arithmetic and order is equal; by
#: hand sums round otherwise; Quix takes an event before a label of the same time. Elsewhere windows differ a little, or
#: labels are learned in another order than that of time. In the chain of all five versions are seconds old when they
#: serve, which are days of flights: what was served is not compared.
METRICS_OFF = {"river": 0.0, "handwritten": 1e-9, "quix-own": 0.01, "chain": math.inf, "faust-own": 0.25}
PROBE_OFF = {"river": 0.0, "handwritten": 1e-9, "quix-own": 1e-9}
NEAR = 0.1
#: What takes milliseconds an event is run once, on the first days.
SLOW_DAYS = 3
#: In a replay the learner's versions are seconds old when they serve, and those seconds are days of flights.
SERVES_LATE = ("chain",)


class Work(NamedTuple):
    """What everybody is given: messages by suffix of their topic, as (key, value, time), and what comes of them."""

    messages: dict[str, list[tuple[bytes | None, bytes, int]]]
    steps: list[tuple[Any, str]]
    events: int
    labels: int
    outcome: BacktestReport
    probe: float


def prepare(days: int) -> Work:
    """Run a backtest over days of January, and keep what its services write to topics."""
    found = data.flights(days=days)
    kept: dict[str, list[tuple[bytes | None, bytes, int]]] = {}
    test, questions = Backtest(bench), list[tuple[int, int, Any, str]]()

    def keep(record: MemoryRecord) -> None:
        suffix = record.topic().removeprefix(f"{bench.name}.")
        kept.setdefault(suffix, []).append((record.key(), bytes(record.value() or b""), record.timestamp()[1]))

    test.emitted = keep
    test.predictions = lambda log: questions.append(
        (log["features"]["event_time"], 1, vector_to_x(log["features"]["vector"]), log["features"]["event_id"])
    )
    outcome = test.run([f.event for f in found], data.labels(found))
    probe = test.folds[bench.champion].model.predict_proba_one(PROBE)[True]
    kept["events"], kept["labels"], codec = [], [], Records(bench).event
    for message in script(bench, found):  # as producers send them, but keyed by the airport
        key = codec.decode(message.value)["origin"].encode() if message.is_event else message.key
        kept["events" if message.is_event else "labels"].append((key, message.value, message.at))
    labels = [(label["landed_at"], 0, label["arr_delay"], label["flight_id"]) for label in data.labels(found)]
    steps = [(what, id_) for _, _, what, id_ in heapq.merge(labels, questions, key=lambda item: item[:2])]
    return Work(kept, steps, len(found), len(labels), outcome, probe)


def fill(servers: str, work: Work, suffixes: Sequence[str], pipeline: str = "") -> None:
    """Send messages to a pipeline's topics of these suffixes; without one to the peers' topics, as plain Avro."""
    producer = Producer({"bootstrap.servers": servers, "linger.ms": 50, "queue.buffering.max.messages": 1_000_000})
    records = Records(replace(bench, name=pipeline or bench.name))  # the name is part of the schemas
    codecs = {"features": records.features, "prediction-log": records.prediction_log, "examples": records.example}
    for suffix in suffixes:
        is_raw = suffix in ("events", "labels")
        for key, value, at in work.messages[suffix]:
            headers = None if is_raw else with_origin(at, None)
            if suffix in codecs:
                value = codecs[suffix].header + value[HEADER:]
            if pipeline:
                producer.produce(f"{pipeline}.{suffix}", value, key, 0, headers=headers, timestamp=at)  # type: ignore[arg-type]
            else:
                producer.produce(suffix, value[HEADER:], key, 0, timestamp=at)
    producer.flush()


def settled(broker: KafkaBroker, partition: TopicPartition) -> None:
    """Wait until a new partition has its leader."""
    for _ in range(100):
        try:
            broker.offset_range(partition)
            return
        except (Aborted, BrokerError, Retry):
            time.sleep(0.1)


class Bench:
    """One run of everything on a broker of its own."""

    def __init__(self, work: Work, core: int, peers_python: Path, cleanup: ExitStack) -> None:
        self.work, self.core, self.peers_python = work, core, peers_python
        self.folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory()))
        self.kafka, redis = RealKafka(self.folder, *KEEP), Redis(self.folder)
        cleanup.callback(self.kafka.stop)
        cleanup.callback(redis.stop)
        others = set(range(os.cpu_count() or 1)) - {core}
        if others:
            pin(self.kafka.process.pid, others)
            pin(redis.process.pid, others)
        make_keys(self.folder / "keys")
        self.env = {
            **os.environ,
            "PYTHONHASHSEED": "0",
            "PEER_SERVERS": self.kafka.servers,
            "TIDEMILL_BROKERS": self.kafka.servers,
            "TIDEMILL_REDIS_URL": redis.url,
            "TIDEMILL_STORE_URL": str(self.folder / "artifacts"),
            "TIDEMILL_SIGNING_KEY": str(self.folder / "keys"),
            "TIDEMILL_VERIFY_KEYS": str(self.folder / "keys" / VERIFY_FILE),
            "BENCH_PARTITIONS": "1",
        }
        self.admin = AdminClient({"bootstrap.servers": self.kafka.servers})
        self.topics("events", "labels")
        fill(self.kafka.servers, self.work, ["events", "labels"])

    def topics(self, *names: str) -> None:
        """Make topics of one partition."""
        for made in self.admin.create_topics([NewTopic(name, 1, 1) for name in names]).values():
            made.result()

    def child(self, command: Sequence[str | Path], **env: str) -> dict[str, Any]:
        """Run a process on the core, and return what it printed."""
        broker = cpu_seconds(self.kafka.process.pid)
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=self.env | env, cwd=Path(__file__).parents[2],
            preexec_fn=lambda: os.sched_setaffinity(0, {self.core}),
        )  # fmt: skip
        if done.returncode or not done.stdout.strip():
            raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stderr[-3000:]}")
        row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return row | {"broker": cpu_seconds(self.kafka.process.pid) - broker}

    def count(self, topic: str) -> int:
        """Return the number of committed records of a topic."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.kafka.servers,
                "group.id": f"count-{topic}",
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
            }
        )
        consumer.subscribe([topic])
        records, is_over = 0, False
        while not is_over:
            for message in consumer.consume(5_000, 1.0):
                is_over |= message.error() is not None
                records += message.error() is None
        consumer.close()
        return records

    def peer(self, name: str) -> dict[str, Any]:
        """Run a peer; its topic of predictions has its name."""
        module, *options = report.PEERS[name].command
        if module == "river_alone":
            steps = self.folder / "steps"
            steps.write_bytes(pickle.dumps(self.work.steps))
            options = [str(steps)]
        else:
            self.topics(f"predictions-{name}")
        row = self.child(
            [
                self.peers_python,
                "-m",
                f"benchmarks.peers.{module}",
                str(self.work.events),
                str(self.work.labels),
                *options,
            ],
            PEER_NAME=name,
        )
        return row | {"predictions": self.work.events if name == "river" else self.count(f"predictions-{name}")}

    def tidemill(self, name: str) -> dict[str, Any]:
        """Run Tidemill's services, each process by itself; the last first, so that models are there to be served."""
        pipeline, processes = f"bench-{name}", report.PEERS[name].command
        broker, names = KafkaBroker(self.kafka.servers), [f"{pipeline}.{t.suffix}" for t in topics.TOPICS]
        broker.create([(t, name, 1) for t, name in zip(topics.TOPICS, names, strict=True)])
        for name in names:
            settled(broker, TopicPartition(name, 0))
        reads = {process: self.inputs(process) for process in processes}
        suffixes = dict.fromkeys(suffix for read in reads.values() for suffix in read)
        fill(self.kafka.servers, self.work, list(suffixes), pipeline)
        total: dict[str, Any] = {"cpu": 0.0, "wall": 0.0, "broker": 0.0, "parts": {}}
        for process in reversed(processes):
            expected = sum(len(self.work.messages[suffix]) for suffix in reads[process])
            row = self.child(
                [sys.executable, "-m", "benchmarks.peers.services", process, str(expected)], BENCH_NAME=pipeline
            )
            total["parts"][process] = row.pop("cpu")
            total["cpu"] += total["parts"][process]
            total["wall"] += row.pop("wall")
            total["broker"] += row.pop("broker")
            total |= row
        return total | {"predictions": self.count(f"{pipeline}.predictions")}

    @staticmethod
    def inputs(process: str) -> list[str]:
        """Return the suffixes of the topics that a process reads, and does not write itself."""
        names = process.split("+")
        read = dict.fromkeys(t for name in names for t in topics.consumes(name))
        return [t.suffix for t in read if not set(t.writers) & set(names)]


def check(name: str, row: dict[str, Any], work: Work) -> None:
    """Raise AssertionError where a peer has not done the work."""
    want = work.outcome
    expected = {"predictions": want.predictions, "learned": want.joined}
    if any(row.get(key) != value for key, value in expected.items()):
        raise AssertionError(
            f"{name} has {row.get('predictions')} predictions and learned {row.get('learned')}: {expected}"
        )
    off = {"probe": row["probe"] - work.probe}
    off |= {metric: row["metrics"][metric] - value for metric, value in want.metrics[bench.champion].items()}
    for what, by in off.items():
        allowed = PROBE_OFF if what == "probe" else METRICS_OFF
        if abs(by) > allowed.get(name, NEAR):
            raise AssertionError(f"{name}: {what} differs from a backtest's by {by}")
    row["off"] = off


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        prog="make bench-peers ARGS=...", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5, help="how often each is run, in turns")
    parser.add_argument("--days", type=int, default=31, help="days of January")
    parser.add_argument("--only", action="append", choices=report.PEERS, help="only this one; may be given often")
    parser.add_argument("--core", type=int, default=0, help="the core that a peer is pinned to")
    parser.add_argument("--peers-python", type=Path, default=Path(".cache/peers-venv/bin/python"))
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    given = parser.parse_args()
    if missing():
        raise SystemExit(f"the benchmark needs a real Kafka broker: {missing()}; install Java 17 and Maven")
    chosen = given.only or list(report.PEERS)
    slow = [name for name in chosen if report.PEERS[name].is_slow]
    rounds = [(given.days, [name for name in chosen if name not in slow])] * given.runs + [(SLOW_DAYS, slow)]
    say("running backtests: what is expected, and what fills topics")
    works = {days: prepare(days) for days, names in rounds if names}
    work, loads = works.get(given.days) or works[SLOW_DAYS], list[float]()
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    figures = {"events": work.events, "labels": work.labels, "loads": loads, "rows": rows}
    for number, (days, names) in enumerate(rounds):
        if not names:
            continue
        loads.append(psutil.getloadavg()[0])
        say(f"starting Kafka and Redis, and filling topics, for {', '.join(names)}")
        with ExitStack() as cleanup:
            run = Bench(works[days], given.core, given.peers_python.absolute(), cleanup)
            for name in names:
                row = (run.tidemill if report.PEERS[name].is_ours else run.peer)(name)
                try:
                    check(name, row, run.work)
                except AssertionError as error:
                    say(f"this run of it does not count: {error}")
                    continue
                row["run"] = number
                row["us"] = row["cpu"] / run.work.events * 1e6
                row["broker_us"] = row["broker"] / run.work.events * 1e6
                rows[name].append(row)
                say(f"{report.PEERS[name].title}: {row['us']:.1f} us an event")
                if given.json:
                    given.json.write_text(json.dumps(figures, indent=1) + "\n")
    print(report.table(figures))
    if not given.only:
        report.write(figures)


if __name__ == "__main__":
    main()
