"""A pipeline is kept as files; then all is lost, broker, Redis and artifacts, and it goes on as if nothing had been."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import redis
from confluent_kafka import Producer
from confluent_kafka import TopicPartition as KafkaPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from ledger import Ledger, judge
from real_kafka import RealKafka, missing
from running import Running, until

from tidemill.demo import data
from tidemill.demo.script import script
from tidemill.local.replay import Replay
from tidemill.local.servers import Redis
from tidemill.stream.api import TopicPartition
from tidemill.stream.kafka import exact_log
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.stream.kafka.exact_log import Kept, runs
from tidemill.wire import topics

pytestmark = pytest.mark.kafka


@pytest.fixture
def another(tmp_path: Path) -> Iterator[RealKafka]:
    """A broker that is empty."""
    if lacking := missing():
        pytest.skip(f"no real Kafka: {lacking}")
    (tmp_path / "another").mkdir()
    broker = RealKafka(tmp_path / "another")
    yield broker
    broker.stop()


def command(run: Running, *words: str, servers: str = "") -> tuple[int, str]:
    environment = {**os.environ, **run.stack.env} | ({"TIDEMILL_BROKERS": servers} if servers else {})
    done = subprocess.run(
        [sys.executable, "-m", "tidemill.cli", *words], env=environment, capture_output=True, text=True, timeout=120
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr


def held(broker: KafkaBroker, names: list[str]) -> dict[TopicPartition, list[Kept]]:
    """Return all that can be read, by partition."""
    made: dict[TopicPartition, list[Kept]] = {}
    for name in names:
        ranges = {
            TopicPartition(name, number): broker.offset_range(TopicPartition(name, number))
            for number in range(broker.partitions(name))
        }
        made |= {partition: [] for partition in ranges}
        for batch in broker.read(ranges):
            for r in batch:
                place = TopicPartition(r.topic(), r.partition())
                made[place].append(Kept(r.offset(), r.timestamp()[1], r.key(), r.value(), r.headers() or []))
    return made


def test_a_log_with_all_kinds_of_gaps_has_each_record_at_its_offset_on_another_broker(
    kafka: RealKafka, another: RealKafka
) -> None:
    """Transactions, aborted ones, records that are deleted, several partitions at once; what is not compacted."""
    chance, name, count = random.Random(7), f"gaps-{time.time_ns()}", 4
    admin = AdminClient({"bootstrap.servers": kafka.servers})
    admin.create_topics([NewTopic(name, count, config={"message.timestamp.type": "LogAppendTime"})])[name].result(20)
    shared = {"bootstrap.servers": kafka.servers}
    plain, transactional = Producer(shared), Producer({**shared, "transactional.id": name})
    transactional.init_transactions(20)
    for _ in range(60):
        producer = chance.choice((plain, transactional, transactional))
        if producer is transactional:
            producer.begin_transaction()
        for _ in range(chance.randint(1, 6)):
            value = chance.choice((None, b"", chance.randbytes(chance.randint(1, 2000))))
            headers = chance.choice(([], [("a", b"1"), ("a", None), ("tidemill.origin", b"7")]))
            producer.produce(name, value, key=chance.choice((None, b"k")), partition=chance.randrange(count - 1),
                             headers=headers)  # fmt: skip
        producer.flush()
        if producer is transactional:
            producer.commit_transaction(20) if chance.random() < 0.5 else producer.abort_transaction(20)
    old = KafkaBroker(kafka.servers)
    _, end = old.offset_range(TopicPartition(name, 1))
    for future in admin.delete_records([KafkaPartition(name, 1, end // 2), KafkaPartition(name, 2, -1)]).values():
        future.result(20)
    expected = held(old, [name])
    ranges = {partition: old.offset_range(partition) for partition in expected}
    assert ranges[TopicPartition(name, 2)][0] == ranges[TopicPartition(name, 2)][1] > 0, "nothing is left, but offsets"
    assert ranges[TopicPartition(name, 3)] == (0, 0)

    new = KafkaBroker(another.servers)
    log = new.exact_log("restore")
    for seconds in (exact_log.OPEN_SECONDS, 0.0):  # what fills gaps is aborted in as few of them as it can be; in many
        log.prepare({name: count}, 1)
        with patch.object(exact_log, "OPEN_SECONDS", seconds):
            log.write({p: runs(expected[p], *ranges[p]) for p in expected}, lambda _: None)
        log.delete_before({partition: begin for partition, (begin, _) in ranges.items()})
        log.finish({name: {"message.timestamp.type": "LogAppendTime", "retention.ms": "86400000"}})
        assert held(new, [name]) == expected
        assert {partition: new.offset_range(partition) for partition in expected} == ranges
        assert {p: new.end_offset(p) for p in expected} == {p: end for p, (_, end) in ranges.items()}
        assert new.topic_overrides([name]) == {
            name: {"message.timestamp.type": "LogAppendTime", "retention.ms": "86400000"}
        }
        new.delete([name])
        until(lambda: not new.topic_states([name]), "the topic is there", 30)
        log = new.exact_log("restore")


def test_after_the_loss_of_everything_a_pipeline_goes_on_where_it_was(
    running, another: RealKafka, redis_server: Redis, redis_url: str, tmp_path: Path
) -> None:
    run = running("flights", partitions=2, snapshot_seconds=0.3)
    messages, name = script(run.pipeline, data.flights((1,), days=1), corrupt_every=50), run.pipeline.name
    folder, half = tmp_path / "kept", len(messages) // 2

    def replay(ledger: Ledger, begin: int, end: int) -> None:
        """Send messages in parts, between which versions are published that serve the next."""
        for part in range(4):
            first, last = (begin + (end - begin) * n // 4 for n in (part, part + 1))
            replay = Replay(run.broker.servers, messages[first:last], speed=1e12)
            replay.start()
            until(lambda replay=replay: bool(replay.ended_at) or replay.error is not None, "the replay stalls", 120)
            assert replay.error is None
            ledger.arrive(last)

    before = Ledger(run)
    before.start()
    run.stack.start_all()
    run.stack.wait_ready()
    replay(before, 0, half)
    code, text = command(run, "backup", run.reference, str(folder), "--dry-run", "--json")
    assert code == 0, text
    assert json.loads(text)["running"]
    assert not folder.exists()
    code, text = command(run, "backup", run.reference, str(folder))
    assert (code, "stop them first" in text) == (1, True), text
    before.end()
    run.stack.processes.clear()
    code, text = command(run, "backup", run.reference, str(folder))
    assert (code, "the cut is made" in text) == (0, True), text
    code, text = command(run, "backup", run.reference, str(folder))
    assert (code, "nothing is overwritten" in text) == (1, True), text
    names = [topic.name(run.pipeline) for topic in topics.TOPICS]
    kept, ranges = held(run.broker, names), {}
    for partition in kept:
        ranges[partition] = run.broker.offset_range(partition)
    settings = run.broker.topic_overrides(names)
    manifests = [r.value for r in kept[TopicPartition(topics.MODELS.name(name), 0)]]
    assert len(manifests) > 3
    code, text = command(run, "restore", run.reference, str(folder), "--dry-run")
    assert (code, "has, or had, records" in text) == (1, True), text

    # All of it is lost.
    assert run.broker.servers != another.servers
    client = redis.Redis.from_url(redis_url)
    views = {key: client.hgetall(key) for key in client.scan_iter(f"{name}:*") if client.type(key) == b"hash"}
    assert views
    client.flushall()
    shutil.rmtree(run.stack.env["TIDEMILL_STORE_URL"])
    verify = Path(run.stack.env["TIDEMILL_VERIFY_KEYS"])
    public = verify.read_bytes()
    verify.unlink()
    run.broker, run.stack.env["TIDEMILL_BROKERS"] = KafkaBroker(another.servers), another.servers

    # A folder that is no complete backup, or is of another pipeline, restores nothing.
    shutil.copytree(folder, tmp_path / "half")
    (tmp_path / "half" / "backup.json").unlink()
    code, text = command(run, "restore", run.reference, str(tmp_path / "half"))
    assert (code, "no complete backup" in text) == (1, True), text
    code, text = command(run, "restore", "plain", str(folder))
    assert (code, f"the backup is of '{name}'" in text) == (1, True), text
    code, text = command(run, "restore", run.reference, str(folder))
    assert code == 0, text

    assert verify.read_bytes() == public
    restored = held(run.broker, names)
    progress = TopicPartition(topics.PROGRESS.name(name), 0).topic
    for partition, records in kept.items():
        if partition.topic != progress:
            assert restored[partition] == records, partition
            assert run.broker.offset_range(partition) == ranges[partition]
    assert run.broker.topic_overrides(names) == settings
    assert {key: client.hgetall(key) for key in views} == views
    code, text = command(run, "doctor", run.reference)
    assert (code, "0 wrong, 0 warnings" in text) == (0, True), text
    code, text = command(run, "restore", run.reference, str(folder))
    assert (code, "has, or had, records" in text) == (1, True), text

    # And it goes on: nothing is lost or doubled, every version is made again from the log, every prediction is repeated.
    after = Ledger(run)
    after.start()
    run.stack.start_all()
    run.stack.wait_ready(120)
    replay(after, half, len(messages))
    after.end()
    assert not str(judge(run, after, messages, redis_url=redis_server.url))
    assert [r.value() for r in after.of(topics.MODELS)][: len(manifests)] == manifests
    assert len(after.of(topics.MODELS)) > len(manifests)
