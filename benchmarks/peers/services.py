"""Tidemill: one service, or a chain of them, as `tidemill run` runs it, until it has read so many records."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks.declared import bench
from benchmarks.peers.work import PROBE
from tidemill import settings
from tidemill.runtime import run
from tidemill.stages.learner.service import Learner
from tidemill.stream.api import Consumer, Producer
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.stream.loop import Loop
from tidemill.wire.services import chain


class Counted(Loop):
    """A loop that ends after so many records; CPU is that of the process from its first batch on."""

    expected = 0
    began: tuple[float, float] | None = None

    def _process(self, records: Sequence[Any], producer: Producer) -> bool:
        if records and self.began is None:
            self.began = (time.process_time(), time.perf_counter())
        return super()._process(records, producer)

    def run_once(self, consumer: Consumer, producer: Producer) -> int:
        """Do one round; the last one has been committed when the loop ends."""
        handled = super().run_once(consumer, producer)
        self.expected -= handled
        if self.expected <= 0:
            self.stop()
        return handled


def main() -> None:
    """Run it, and print the figures."""
    names, expected = sys.argv[1].split("+"), int(sys.argv[2])
    chosen = settings.load()
    context = run.Context(bench, chosen, KafkaBroker(chosen.brokers))
    steps = [run.SERVICES[name].load()(context) for name in names]
    # What others would have written is there already; it is no sign that a service has lost its place.
    services = [replace(step.service, outputs=()) for step in steps if isinstance(step, run.Step)]
    service = chain(services, names, bench.name) if len(names) > 1 else services[0]
    delay, share = run.pace(service.name, chosen.max_delay_ms / 1000, exactly_once=True)
    loop = Counted(service, context.broker, max_delay=delay, busy_share=share)
    loop.expected = expected
    followers = [step.follower for step in steps if isinstance(step, run.Step) and step.follower]
    for follower in followers:
        follower.start()
    loop.run()
    assert loop.began is not None
    cpu, wall = time.process_time() - loop.began[0], time.perf_counter() - loop.began[1]
    for follower in followers:
        follower.stop()
    learned: dict[str, Any] = {}
    for one in services:
        if isinstance(one.processor, Learner):
            fold = one.processor.fold
            learned = {
                "learned": fold.examples,
                "probe": fold.model.predict_proba_one(PROBE)[True],
                "metrics": {type(m).__name__: m.get() for m in fold.metrics},
            }
    print(json.dumps({"cpu": cpu, "wall": wall, **learned}))


if __name__ == "__main__":
    main()
