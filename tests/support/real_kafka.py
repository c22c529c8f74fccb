"""A real Kafka 4.1 broker of our own: KRaft, one node, from Maven Central's jars, on Java 17. Up in about 3 seconds."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from tidemill.errors import BrokerError
from tidemill.local.processes import end, free_port, spawn
from tidemill.stream.kafka.broker import KafkaBroker

JARS = Path(os.environ.get("TIDEMILL_TEST_JARS", Path(__file__).parents[2] / ".cache" / "kafka-jars"))
#: The JVM starts fast with these, and runs slower later than with its defaults.
FLAGS = os.environ.get("TIDEMILL_TEST_JAVA", "-Xmx1g -XX:+UseSerialGC -XX:TieredStopAtLevel=1").split()
CLUSTER = "AAAAAAAAQACAAAAAAAAAAQ"


def missing() -> str | None:
    """Return what this machine lacks to run Kafka, or None."""
    lacking = [tool for tool in ("java", "mvn") if shutil.which(tool) is None]
    return f"{' and '.join(lacking)} not found" if lacking else None


def fetch_jars() -> None:
    """Have Maven put the broker's jars into JARS, unless they are there."""
    if (JARS / "complete").is_file():
        return
    pom = Path(__file__).with_name("pom.xml")
    subprocess.run(
        ["mvn", "-q", "-B", "-f", str(pom), "dependency:copy-dependencies", f"-DoutputDirectory={JARS}"],
        check=True, timeout=300,
    )  # fmt: skip
    (JARS / "complete").touch()


class RealKafka:
    """One broker. `kill` and `start` are for tests of what happens when it goes away; `more` are lines of its settings."""

    def __init__(self, folder: Path, *more: str, listeners: Mapping[str, str] = MappingProxyType({})) -> None:
        """`listeners` are further ways in by their names, with the protocol of each: `ports` says where they are."""
        fetch_jars()
        self.folder = folder
        port, controller, behind = free_port(), free_port(), free_port()
        self.servers = f"127.0.0.1:{port}"
        #: A second way in, for clients that shall come through a proxy: what listens, and where it says that it does.
        self.behind_proxy, self.proxy_port = behind, free_port()
        self.ports = {name: free_port() for name in listeners}
        others = [f"{name}://127.0.0.1:{port}" for name, port in self.ports.items()]
        protocols = [f"{name}:{protocol}" for name, protocol in listeners.items()]
        self._config = folder / "server.properties"
        self._config.write_text(
            "\n".join(
                [
                    "process.roles=broker,controller",
                    "node.id=1",
                    f"controller.quorum.bootstrap.servers=127.0.0.1:{controller}",
                    "listeners="
                    + ",".join(
                        [
                            f"PLAINTEXT://127.0.0.1:{port}",
                            f"PROXIED://127.0.0.1:{behind}",
                            f"CONTROLLER://127.0.0.1:{controller}",
                            *others,
                        ]
                    ),
                    "advertised.listeners="
                    + ",".join([f"PLAINTEXT://{self.servers}", f"PROXIED://127.0.0.1:{self.proxy_port}", *others]),
                    "listener.security.protocol.map="
                    + ",".join(["PLAINTEXT:PLAINTEXT", "PROXIED:PLAINTEXT", "CONTROLLER:PLAINTEXT", *protocols]),
                    "controller.listener.names=CONTROLLER",
                    f"log.dirs={folder / 'log'}",
                    "offsets.topic.replication.factor=1",
                    "offsets.topic.num.partitions=4",
                    "transaction.state.log.replication.factor=1",
                    "transaction.state.log.min.isr=1",
                    "transaction.state.log.num.partitions=4",
                    "group.initial.rebalance.delay.ms=0",
                    "auto.create.topics.enable=false",
                    *more,
                ]
            )
        )
        self._java = ["java", *FLAGS, "-cp", f"{JARS}/*"]
        subprocess.run(
            [*self._java, "kafka.tools.StorageTool", "format", "--standalone", "-t", CLUSTER, "-c", str(self._config)],
            check=True, capture_output=True, timeout=60,
        )  # fmt: skip
        self.start()

    def start(self) -> None:
        self.process = spawn([*self._java, "kafka.Kafka", str(self._config)], self.folder / "kafka.log")
        deadline = time.monotonic() + 180
        while True:
            try:
                KafkaBroker(self.servers).connect()
                return
            except BrokerError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise
                time.sleep(0.2)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        end(self.process, 30)
