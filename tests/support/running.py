"""A whole pipeline on a real broker and a real Redis, as processes, under a name of its own."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable
from pathlib import Path

from fork_server import spawn_forked

from tidemill.declare.load import load
from tidemill.declare.pipeline import Pipeline
from tidemill.local.stack import Stack
from tidemill.runtime.run import topic_table
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.stream.kafka.consumer import KafkaFollower
from tidemill.stream.topic import Topic
from tidemill.wire.records import Records

_names = itertools.count(1)

DECLARATION = """
from dataclasses import replace
from tidemill.demo.flights import {base} as _base
pipeline = replace(_base, name="{name}", partitions={partitions}, {changes})
"""


class Running:
    """One pipeline with its broker, its processes, and what its topics hold."""

    def __init__(
        self,
        servers: str,
        redis_url: str,
        folder: Path,
        base: str,
        partitions: int,
        *,
        changes: str = "",
        **settings: object,
    ) -> None:
        name = f"t{next(_names)}"
        declaration = folder / f"{name}.py"
        declaration.write_text(DECLARATION.format(base=base, name=name, partitions=partitions, changes=changes))
        self.reference = str(declaration)
        self.pipeline: Pipeline = load(self.reference)
        self.records = Records(self.pipeline)
        self.broker = KafkaBroker(servers)
        self.broker.create(topic_table(self.pipeline))
        self.stack = Stack(
            self.reference, self.pipeline, folder, {"brokers": servers, "redis_url": redis_url, **settings}
        )
        self.stack.spawn = spawn_forked

    def name(self, topic: Topic) -> str:
        return topic.name(self.pipeline.name)

    def reader(self, *topics: Topic) -> KafkaFollower:
        return self.broker.follow_topics([self.name(topic) for topic in topics])


def worker(process) -> int:
    """Return the process id of what does a service's work: the child of the one that was started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    with contextlib.suppress(OSError):
        found = children.read_text().split()
        if found:
            return int(found[0])
    return process.pid


def gone(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def until(what: Callable[[], bool], why: str, patience: float = 60.0, check: Callable[[], None] = lambda: None) -> None:
    """Wait until `what` holds; fail, saying why, after `patience` seconds. `check` may raise earlier."""
    deadline = time.monotonic() + patience
    while not what():
        check()
        assert time.monotonic() < deadline, f"after {patience:.0f} s: {why}"
        time.sleep(0.005)
