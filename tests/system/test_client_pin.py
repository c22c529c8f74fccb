"""The pin of Kafka's client is still needed: a newer one hangs where a broker goes away. When this fails, it can go."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from real_kafka import RealKafka

from tidemill.stream.api import TopicPartition
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.stream.topic import Topic

pytestmark = pytest.mark.long

COPIES, SECONDS = 6, 30.0
HANGS = "the Kafka client hangs"
TOPIC = Topic("t", "any", "bytes", ("test",), ("test",))


def copied(broker: KafkaBroker, name: str) -> int:
    """Return up to which offset a topic's copy has come, in all partitions together."""
    return sum(broker.end_offset(TopicPartition(f"{name}-copied", number)) for number in range(2))


def test_the_newest_client_still_hangs_when_its_broker_was_killed(tmp_path: Path) -> None:
    """librdkafka#5511: measured with 2.16.1, four of six processes hang after one kill."""
    newest = tmp_path / "newest"
    install = [
        Path(sys.executable).with_name("uv"),
        "pip",
        "install",
        "-q",
        "--target",
        newest,
        "confluent-kafka>=2.10",
    ]
    if (done := subprocess.run(install, capture_output=True, text=True, check=False)).returncode:
        pytest.skip(f"a newer client can't be had: {done.stderr[-300:]}")
    kafka, copies = RealKafka(tmp_path), list[subprocess.Popen[bytes]]()
    try:
        broker = KafkaBroker(kafka.servers)
        names = [f"t{number}" for number in range(COPIES)]
        broker.create([(TOPIC, f"{name}{suffix}", 2) for name in names for suffix in ("", "-copied")])
        sender = broker.producer("sender")
        consumer = broker.consumer("sender", ["t0"], "sender")
        for name in names:
            for _ in range(50):
                sender.emit(name, b"x", b"k")
        sender.commit({}, consumer)
        sender.close()
        consumer.close()
        service = Path(__file__).parents[1] / "support" / "copying.py"
        env = {**os.environ, "PYTHONPATH": f"{newest}:{Path(__file__).parents[2] / 'services'}"}
        logs = [tmp_path / f"{name}.log" for name in names]
        for name, log in zip(names, logs, strict=True):
            with log.open("wb") as out:
                command = [sys.executable, service, kafka.servers, name, f"{name}-copied"]
                copies.append(subprocess.Popen(command, stdout=out, stderr=out, env=env))
        deadline = time.monotonic() + 60
        while min(copied(broker, name) for name in names) < 100:
            assert time.monotonic() < deadline, [log.read_text()[-300:] for log in logs]
            time.sleep(0.2)
        kafka.kill()
        kafka.start()
        deadline = time.monotonic() + SECONDS
        while not (hung := [log.name for log in logs if HANGS in log.read_text()]) and time.monotonic() < deadline:
            time.sleep(0.5)
    finally:
        for copy in copies:
            copy.kill()
            copy.wait()
        kafka.stop()
    (version,) = newest.glob("confluent_kafka-*.dist-info")
    assert hung, (
        f"none of {COPIES} processes hung with {version.stem}: lift the pin in pyproject.toml, and run "
        "`make faults ARGS='--only broker'` with it"
    )
