"""What an event costs in each data-plane service, alone on pre-filled topics of a real broker, pinned to one core.

    make bench                                 the table
    make bench ARGS="--json bench.json"        and as JSON
    make bench ARGS="--forgetting"             without and with unique keys, one after the other: CPU, and bytes on the log
    make bench ARGS="--latency 2000"           delay from event to prediction, all services, at 2,000 events a second

CPU is that of the whole process, the Kafka client's threads included, from the first batch to the last; the broker runs
on the other cores. "step" is the part spent in the service's own step. Beside each stands a bare loop that reads the
same events, decodes them, encodes them again and sends them on, in the same transactions: what no service can go below.
Machines are shared and noisy: compare ratios within one run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import psutil
from real_kafka import RealKafka, missing

from tidemill.declare.forgetting import Forgetting
from tidemill.declare.load import load
from tidemill.declare.pipeline import Pipeline
from tidemill.demo import data
from tidemill.demo.script import script
from tidemill.errors import TidemillError
from tidemill.features.redis import RedisView, connect
from tidemill.keys import Keyring
from tidemill.local.replay import Replay
from tidemill.local.servers import Redis
from tidemill.local.stack import Stack, chained
from tidemill.offline.backtest import Backtest
from tidemill.registry.manifests import Registry
from tidemill.registry.store import ArtifactStore
from tidemill.runtime.run import topic_table
from tidemill.stages.featurizer import service as featurizer
from tidemill.stages.joiner import service as joiner
from tidemill.stages.learner import service as learner
from tidemill.stages.scorer import service as scorer
from tidemill.stages.validator import service as validator
from tidemill.stream.api import Emit, Processor, Record, TopicPartition
from tidemill.stream.group import Service
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.stream.loop import Loop, tune_collector
from tidemill.stream.origin import origin_of
from tidemill.wire import topics
from tidemill.wire.records import Records

REFERENCE = "benchmarks.declared"
PROTOTYPE = {"validator": 6.0, "featurizer": 16.0, "scorer": 10.0, "joiner + learner": 13.0}
"""Microseconds of CPU per event that a prototype needed, on a machine of this kind."""
# From the end of the river to its beginning, so that what one writes is never another's pre-filled input.
ORDER = ("learner", "joiner", "scorer", "featurizer", "validator", "bare")


class Bare(Processor):
    """Decode, encode, send on."""

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__()
        self.codec = Records(pipeline).event
        self.to = topics.EVENTS_VALID.name(pipeline.name)

    def process(self, records: Sequence[Record], emit: Emit) -> bool:
        """Handle a batch."""
        codec, to = self.codec, self.to
        for record in records:
            emit(to, codec.encode(codec.decode(record.value() or b"")), record.key(), origin_of(record))
        return True


class Timed(Processor):
    """A step with a stop-watch on it, and an end."""

    def __init__(self, inner: Processor, expected: int) -> None:
        super().__init__()
        self.inner, self.expected = inner, expected
        self.handled, self.step_cpu = 0, 0.0
        self.began: tuple[float, float] | None = None
        for name, method in vars(Processor).items():
            if callable(method) and not name.startswith("_") and name != "process":
                setattr(self, name, getattr(inner, name))
        self.counts = inner.counts

    def process(self, records: Sequence[Record], emit: Emit) -> bool:
        """Handle a batch, and count it."""
        if records and self.began is None:
            self.began = (time.process_time(), time.perf_counter())
        before = time.thread_time()
        done = self.inner.process(records, emit)
        self.step_cpu += time.thread_time() - before
        self.handled += len(records)
        return done


def measure(name: str, servers: str, redis_url: str, expected: int, events: int) -> dict[str, float]:
    """Run one service in this process until it has handled `expected` records; per event of `events`."""
    pipeline = reference()
    broker = broker_of(servers, pipeline)
    step: Processor
    with tempfile.TemporaryDirectory() as folder:
        if name == "bare":
            group, names, step = "bench.bare", [topics.EVENTS.name(pipeline.name)], Bare(pipeline)
        else:
            built = build(name, pipeline, broker, redis_url, folder)
            group, names, step = built.group, list(built.topics), built.processor
        timed = Timed(step, expected)
        loop = Loop(Service(name, group, names, timed), broker)
        tune_collector()
        producer, consumer = broker.producer(loop.instance), broker.consumer(group, names, loop.instance)
        deadline = time.monotonic() + 120
        while timed.handled < expected:
            loop.run_once(consumer, producer)
            if time.monotonic() > deadline:
                raise TidemillError(f"{name}: {timed.handled} of {expected} records after 120 s")
        assert timed.began is not None
        cpu, wall = time.process_time() - timed.began[0], time.perf_counter() - timed.began[1]
        producer.close()
        consumer.close()
    return {
        "records": timed.handled,
        "cpu_us_per_event": cpu / events * 1e6,
        "step_us_per_event": timed.step_cpu / events * 1e6,
        "events_per_second": events / wall,
    }


def build(name: str, pipeline: Pipeline, broker: KafkaBroker, redis_url: str, folder: str) -> Service:
    """Return one service, wired as `tidemill run` does."""
    if name == "validator":
        return validator.build(pipeline)
    if name == "featurizer":
        client = connect(redis_url)
        return featurizer.build(pipeline, {v.label: RedisView(client, pipeline.name, v.label) for v in pipeline.views})
    if name == "scorer":
        return scorer.build(pipeline, tuple)
    if name == "joiner":
        return joiner.build(pipeline)
    registry = Registry(pipeline, ArtifactStore(folder), Keyring.generate())
    return learner.build(pipeline, pipeline.champion, registry, broker, every_examples=10_000, every_seconds=10.0)


def reference() -> Pipeline:
    """Return the benchmark's pipeline, with forgetting where that is asked for."""
    forgetting = Forgetting() if os.environ.get("BENCH_FORGETTING") else None
    return dataclasses.replace(load(REFERENCE), forgetting=forgetting)


def broker_of(servers: str, pipeline: Pipeline) -> KafkaBroker:
    """Return the broker, for who writes records of this pipeline."""
    broker = KafkaBroker(servers)
    broker.erasable = topics.erasable(pipeline, is_declared=pipeline.forgetting is not None)
    return broker


def fill(broker: KafkaBroker, pipeline: Pipeline, found: list[data.Flight]) -> dict[str, int]:
    """Fill every topic with what the services would have written; returns the number of records in each."""
    kept: dict[str, list[tuple[Any, ...]]] = {}

    class Recording(Backtest):
        def _emit(self, topic: str, value: bytes, key: bytes | None = None, timestamp: int = 0, *rest: Any) -> None:
            kept.setdefault(topic, []).append((bytes(value), key))  # without the record that it may carry
            super()._emit(topic, value, key, timestamp, *rest)

    Recording(pipeline).run([f.event for f in found], data.labels(found))
    producer = broker.producer("fill")
    for topic, records in kept.items():
        single = topic.endswith(".examples")
        for number, (value, key) in enumerate(records, 1):
            producer.emit(topic, value, key if not single else b"one")
            if number % 5_000 == 0 or number == len(records):
                producer.commit({}, None)
    producer.close()
    return {topic: len(records) for topic, records in kept.items()}


def throughput(months: int, chosen: Sequence[str], core: int) -> dict[str, Any]:
    """Measure each service in a process of its own."""
    pipeline = reference()
    found = data.flights(range(1, months + 1))
    results: dict[str, Any] = {}
    with ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory()))
        say("starting Kafka and Redis")
        kafka, redis = RealKafka(folder), Redis(folder)
        cleanup.callback(kafka.stop)
        cleanup.callback(redis.stop)
        others = set(range(os.cpu_count() or 1)) - {core}
        if others:
            pin(kafka.process.pid, others)
            os.sched_setaffinity(redis.process.pid, others)
        broker = broker_of(kafka.servers, pipeline)
        broker.create(topic_table(pipeline))
        say(f"filling topics with {len(found):,} flights")
        filled = fill(broker, pipeline, found)
        logged = sum(path.stat().st_size for path in folder.rglob(f"{pipeline.name}.*/*.log"))
        for name in ORDER:
            if name not in chosen:
                continue
            expected = sum(filled.get(t, 0) for t in inputs(name, pipeline))
            command = [sys.executable, "-m", "benchmarks.pipeline", "--child", name, "--servers", kafka.servers,
                       "--redis", redis.url, "--expected", str(expected), "--events", str(len(found))]  # fmt: skip
            say(f"{name}: {expected:,} records")
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, preexec_fn=lambda: os.sched_setaffinity(0, {core})
            )
            if done.returncode:
                raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
            results[name] = json.loads(done.stdout.splitlines()[-1])
    services = {name: results[name] for name in reversed(ORDER) if name in results}
    return {"events": len(found), "log_bytes_per_event": logged / len(found), "services": services}


def pin(pid: int, cores: set[int]) -> None:
    """Pin every thread of a process."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), cores)


def inputs(name: str, pipeline: Pipeline) -> list[str]:
    """Return the pre-filled topics that a service reads to their end."""
    if name == "bare":
        return [topics.EVENTS.name(pipeline.name)]
    return [t.name(pipeline.name) for t in topics.consumes(name)]


def show(report: dict[str, Any]) -> None:
    """Print the table."""
    services = report["services"]
    bare = services.get("bare", {}).get("cpu_us_per_event")
    print(f"\n{report['events']:,} flights; microseconds of CPU per event\n")
    print(f"{'service':<18}{'cpu':>8}{'step':>8}{'x bare':>8}{'prototype':>11}{'events/s':>12}")
    both = {}
    for name, row in services.items():
        line = f"{name:<18}{row['cpu_us_per_event']:>8.1f}{row['step_us_per_event']:>8.1f}"
        line += f"{row['cpu_us_per_event'] / bare:>8.2f}" if bare else f"{'':>8}"
        line += f"{PROTOTYPE[name]:>11.0f}" if name in PROTOTYPE else f"{'':>11}"
        print(line + f"{row['events_per_second']:>12,.0f}")
        both[name] = row["cpu_us_per_event"]
    if {"joiner", "learner"} <= both.keys():
        total = both["joiner"] + both["learner"]
        print(f"{'joiner + learner':<18}{total:>8.1f}{'':>16}{PROTOTYPE['joiner + learner']:>11.0f}")
    print(f"the log as it was filled: {report['log_bytes_per_event']:,.0f} bytes an event")
    print(f"{'all five':<18}{sum(v for k, v in both.items() if k != 'bare'):>8.1f}")


def latency(rate: int, seconds: float, delivery: str, *, chains: bool = False, warm: float = 5.0) -> dict[str, Any]:
    """Measure the delay from event sent to prediction read, with every service, Kafka and Redis on this machine.

    Nothing of the first `warm` seconds counts.
    """
    pipeline = load(REFERENCE)
    with ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory()))
        say("starting Kafka, Redis and all services")
        kafka, redis = RealKafka(folder), Redis(folder)
        cleanup.callback(kafka.stop)
        cleanup.callback(redis.stop)
        broker = KafkaBroker(kafka.servers)
        broker.create(topic_table(pipeline))
        settings = {"brokers": kafka.servers, "redis_url": redis.url, "delivery": delivery, "snapshot_seconds": 1}
        stack = Stack(REFERENCE, pipeline, folder, settings)
        cleanup.callback(stack.stop)
        apart = ["validator", "featurizer", "scorer", "joiner", f"learner:{pipeline.champion}"]
        for role in chained(apart) if chains else apart:
            stack.start(role)
        found = data.flights(range(1, 5))[: int(rate * seconds)]
        messages = script(pipeline, found)
        stack.wait_ready()
        reader = broker.follow_topics([topics.PREDICTIONS.name(pipeline.name)])
        paced = Paced(kafka.servers, messages, rate)
        used: Callable[[], dict[str, float]] = lambda: {  # noqa: E731
            "services": cpu_seconds(*(p.pid for p in stack.processes.values())),
            "broker": cpu_seconds(kafka.process.pid),
        }
        cpu, counts_from = used(), 0
        say(f"{len(found):,} events at {rate:,} a second")
        paced.start()
        delays: list[tuple[float, float]] = []
        records, versions = Records(pipeline), list[tuple[float, int]]()
        quiet = time.monotonic()
        while len(delays) < len(found) and time.monotonic() - quiet < 10:
            for record in reader.poll(timeout=0.05):
                quiet, now = time.monotonic(), time.time()
                delays.append((now, now - origin_of(record) / 1000))
                prediction = records.read_prediction(record.value())
                if prediction:
                    versions.append((now, prediction["champion"]["version"]))
            if not counts_from and delays and delays[-1][0] - delays[0][0] > warm:
                cpu, counts_from = used(), len(delays)
        stack.check()
        paced.stop()
        now_cpu = used()
        partition = TopicPartition(topics.EXAMPLES.name(pipeline.name), 0)
        ends = broker.offset_range(partition)
        examples = [(one.offset(), origin_of(one) / 1000) for batch in broker.read({partition: ends}) for one in batch]
        end = broker.offset_range(TopicPartition(topics.PREDICTIONS.name(pipeline.name), 0))[1]
        took = delays[-1][0] - delays[0][0]
        commits = {"scorer": end - len(delays), "joiner": ends[1] - len(examples)}  # each takes an offset
    learned = sorted(until_served(examples, versions))
    counted = sorted(delay for _, delay in delays[counts_from:])
    quantile: Callable[[float], float] = lambda q: round(counted[int(q * (len(counted) - 1))] * 1000, 1)  # noqa: E731
    return {
        "delivery": delivery, "chains": chains, "partitions": pipeline.partitions, "rate": rate,
        **({"commits_per_s": {name: round(n / took, 1) for name, n in commits.items()}} if pipeline.partitions == 1 else {}),
        "sent": len(found), "predicted": len(delays), "counted": len(counted),
        **{f"{name}_cpu_us": round((now_cpu[name] - cpu[name]) / len(counted) * 1e6, 1) for name in cpu},
        **({"label_to_served_s": [round(learned[int(q * (len(learned) - 1))], 2) for q in (0.5, 0.99)]} if learned else {}),
        "p50_ms": quantile(0.5), "p90_ms": quantile(0.9), "p99_ms": quantile(0.99), "max_ms": quantile(1.0),
    }  # fmt: skip


def until_served(examples: Sequence[tuple[int, float]], versions: Sequence[tuple[float, int]]) -> Iterator[float]:
    """Yield how long it took from a label sent to a prediction of a version that has learned it, in seconds.

    `examples` are offsets and when their labels were sent; `versions` when predictions were read, and by which version.
    Examples that no version came to learn in time are left out.
    """
    at, newest = 0, 0
    for offset, sent in examples:
        while newest <= offset and at < len(versions):
            newest = max(newest, versions[at][1])
            at += 1
        if newest <= offset:
            return
        yield max(0.0, versions[at - 1][0] - sent)


def cpu_seconds(*pids: int) -> float:
    """Return the CPU time of processes and of what they have forked, in seconds."""
    found = [
        process for pid in pids for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True))
    ]
    return sum(sum(process.cpu_times()[:2]) for process in found)


class Paced(Replay):
    """Sends events at an even rate, whatever their event time; labels go between them as they fall."""

    def __init__(self, servers: str, messages: Sequence[Any], rate: int) -> None:
        super().__init__(
            servers, messages, 1.0, has_room=lambda: self.events < (time.monotonic() - self.started_at) * rate
        )
        self.speed = 1e15


def say(text: str) -> None:
    """Tell how far we are."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        prog="make bench ARGS=...", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--months", type=int, default=4, help="months of flights, 1 to 12 (about 27,000 a month)")
    parser.add_argument("--service", action="append", choices=ORDER, help="only this one; may be given often")
    parser.add_argument("--core", type=int, default=0, help="the core that the service is pinned to")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--latency", type=int, metavar="RATE", help="measure delay at RATE events a second instead")
    parser.add_argument("--seconds", type=float, default=20.0, help="with --latency: for how long")
    parser.add_argument(
        "--warm", type=float, default=5.0,
        help="with --latency: of which so many count for nothing (the JVM compiles for minutes with TIDEMILL_TEST_JAVA=-Xmx1g)",
    )  # fmt: skip
    parser.add_argument(
        "--delivery", default="exactly_once", choices=("exactly_once", "at_least_once"), help="with --latency"
    )
    parser.add_argument("--chains", action="store_true", help="with --latency: services share processes where they can")
    parser.add_argument("--forgetting", action="store_true", help="measure without Forgetting(), then with it")
    for hidden in ("--child", "--servers", "--redis", "--expected", "--events"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--partitions", type=int, default=4, help="partitions of each topic")
    given = parser.parse_args()
    os.environ["BENCH_PARTITIONS"] = str(given.partitions)
    if given.child:
        found = measure(given.child, given.servers, given.redis, int(given.expected), int(given.events))
        print(json.dumps(found))
        return
    if missing():
        raise SystemExit(f"the benchmark needs a real Kafka broker: {missing()}; install Java 17 and Maven")
    if given.latency:
        report = latency(given.latency, given.seconds, given.delivery, chains=given.chains, warm=given.warm)
        print(json.dumps(report, indent=2))
    elif given.forgetting:
        report = {}
        for declared in ("", "1"):
            os.environ["BENCH_FORGETTING"] = declared
            own = throughput(given.months, given.service or ORDER, given.core)
            report["with" if declared else "without"] = own
            print("\nwith forgetting" if declared else "\nwithout")
            show(own)
    else:
        report = throughput(given.months, given.service or ORDER, given.core)
        show(report)
    if given.json:
        given.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
