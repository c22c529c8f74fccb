"""A pipeline that stood still while its offsets, its Redis and its artifacts went: nothing is lost or doubled."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType
from ledger import Ledger, judge
from real_kafka import RealKafka, missing
from running import Running, until

from tidemill.demo import data
from tidemill.demo.script import script
from tidemill.local.replay import Replay
from tidemill.local.servers import Redis
from tidemill.offline.offsets import services
from tidemill.stream.api import Position, TopicPartition
from tidemill.wire import topics

pytestmark = [pytest.mark.kafka, pytest.mark.long]
IN_FLIGHT = 400


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealKafka]:
    """A broker that forgets a group's offsets after a minute of standstill."""
    if lacking := missing():
        pytest.skip(f"no real Kafka: {lacking}")
    broker = RealKafka(
        tmp_path_factory.mktemp("forgetful"),
        "offsets.retention.minutes=1", "offsets.retention.check.interval.ms=1000", "delete.topic.enable=true",
    )  # fmt: skip
    yield broker
    broker.stop()


def stop(run: Running) -> None:
    run.stack.stop()
    run.stack.processes.clear()


def lost(run: Running) -> bool:
    """Whether no group has an offset any more. Asked once a second: the broker has other things to do."""
    time.sleep(1.0)
    return not any(
        position
        for chosen in services(run.pipeline)
        for position in run.broker.committed(chosen.group, [TopicPartition(t, 0) for t in chosen.topics]).values()
    )


@pytest.fixture
def run(forgetful: RealKafka, redis_server: Redis, tmp_path: Path) -> Iterator[Running]:
    made = Running(forgetful.servers, redis_server.url, tmp_path, "flights", 2, snapshot_seconds=0.3)
    yield made
    made.stack.stop()


def test_stopped_for_long_with_redis_and_the_artifacts_gone(run: Running, forgetful: RealKafka, redis_server) -> None:
    messages = script(run.pipeline, data.flights((1,), days=2), corrupt_every=100)
    ledger, sent = Ledger(run), 0
    ledger.start()

    def replay(until_: int) -> None:
        nonlocal sent
        part = Replay(
            run.broker.servers, messages[sent:until_], speed=1e12,
            has_room=lambda: part.events + before - ledger.count(topics.PREDICTIONS, topics.DLQ) < IN_FLIGHT,
        )  # fmt: skip
        before = ledger.count(topics.PREDICTIONS, topics.DLQ)
        part.start()
        until(lambda: bool(part.ended_at) or part.error is not None, "the replay stalls", 120)
        assert part.error is None
        sent = until_
        ledger.arrive(sent)

    def loaded() -> float:
        """Return how many versions the scorer has opened."""
        lines = run.stack.fetch("scorer", "/metrics")[1].splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("tidemill_model_loads_total{"))

    def replay_in_two(until_: int) -> None:
        """Replay, with another version for the second half, however fast the first one was."""
        before = loaded()
        replay((sent + until_) // 2)
        until(lambda: loaded() > before, "no version is served", 60, run.stack.check)
        replay(until_)

    thirds = [len(messages) * n // 3 for n in (1, 2, 3)]
    run.stack.start_all()
    run.stack.wait_ready()
    replay_in_two(thirds[0])
    before = ledger.count(topics.PREDICTIONS)
    stop(run)

    # The broker as well: it stands still, and forgets as soon as it may.
    forgetful.kill()
    forgetful.start()
    until(lambda: lost(run), "the broker forgets no offsets", 150)
    redis.Redis.from_url(redis_server.url).flushall()
    shutil.rmtree(run.stack.env["TIDEMILL_STORE_URL"])
    run.stack.start_all()
    run.stack.wait_ready(120)
    replay_in_two(thirds[1])
    assert ledger.count(topics.PREDICTIONS) > before

    # Idle for longer than the broker remembers, running: the offsets stay.
    since = time.monotonic()
    until(lambda: time.monotonic() - since > 70, "", 80, run.stack.check)
    assert not lost(run)
    replay_in_two(thirds[2])
    ledger.end()
    assert not str(judge(run, ledger, messages, redis_url=redis_server.url))


def doctor(run: Running) -> tuple[int, list[dict]]:
    done = subprocess.run(
        [sys.executable, "-m", "tidemill.cli", "doctor", run.reference, "--json"],
        env=run.stack.env | {"PATH": "", "PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout)


def refused(run: Running, role: str) -> str:
    """Start a service that must not start; return its last log line."""
    process = run.stack.start(role)
    until(lambda: process.poll() is not None, f"the {role} has started", 60)
    assert process.returncode == 1
    assert "Traceback" not in run.stack.log(role).read_text()
    del run.stack.processes[role]
    return run.stack.last_line(role)


def test_what_can_not_be_known_is_refused_and_the_doctor_says_the_same(running, kafka: RealKafka) -> None:
    run = running("flights", partitions=2)
    admin = AdminClient({"bootstrap.servers": kafka.servers})
    messages = script(run.pipeline, data.flights((1,), days=1)[:40])
    ledger = Ledger(run)
    ledger.start()
    run.stack.start_all()
    run.stack.wait_ready()
    replay = Replay(run.broker.servers, messages, speed=1e12)
    replay.start()
    until(lambda: bool(replay.ended_at), "the replay stalls", 60)
    ledger.arrive(len(messages))
    stop(run)
    assert doctor(run) == (0, [])

    # A group that was set by hand.
    features = TopicPartition(run.name(topics.FEATURES), 0)
    until(lambda: _set(run, "scorer", {features: Position(0)}), "the scorer's session does not end", 30)
    assert "was set to 0 by something else" in refused(run, "scorer")

    # A topic that was deleted and created again.
    valid = run.name(topics.EVENTS_VALID)
    admin.delete_topics([valid])[valid].result(30)
    until(lambda: valid not in admin.list_topics(timeout=5).topics, "the topic stays", 30)
    again = type(run.broker)(kafka.servers)
    until(lambda: _created(run, again), "the topic does not come back", 30)
    assert "deleted and created again" in refused(run, "featurizer")
    code, findings = doctor(run)
    wrong = [finding for finding in findings if finding["level"] == "wrong"]
    assert code == 1
    assert {finding["what"].partition(":")[0] for finding in wrong} == {"scorer", "featurizer"}
    assert all("tidemill offsets set" in finding["fix"] for finding in wrong)

    # A setting that eats records.
    examples = ConfigResource(ResourceType.TOPIC, run.name(topics.EXAMPLES))
    examples.add_incremental_config(
        ConfigEntry("cleanup.policy", "compact", incremental_operation=AlterConfigOpType.SET)
    )
    for future in admin.incremental_alter_configs([examples]).values():
        future.result(30)
    assert "cleanup.policy is compact" in refused(run, "joiner")
    ledger.close()


def _set(run: Running, name: str, positions: dict[TopicPartition, Position]) -> bool:
    try:
        run.broker.set_offsets(f"{run.pipeline.name}.{name}", positions)
    except Exception:  # its session lasts for some seconds more
        return False
    return True


def _created(run: Running, broker) -> bool:
    from tidemill.runtime.run import topic_table

    try:
        return bool(broker.create(topic_table(run.pipeline)))
    except Exception:  # the name is still being deleted
        return False
