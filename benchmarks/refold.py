"""How long a model's life takes to be folded again: its own learner, in a process of its own, from a real broker.

    python -m benchmarks.refold --examples 5000000

The topic is filled with January's examples, again and again. Measured is from when the learner has learned the first
tenth of them, with what it takes to start behind it, to the last. No version is published meanwhile, as after a reset.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from real_kafka import RealKafka

from tidemill.declare.load import load
from tidemill.demo import data
from tidemill.local.stack import Stack
from tidemill.offline.backtest import Backtest
from tidemill.runtime.run import topic_table
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.wire import topics

REFERENCE = "flights"


def fill(broker: KafkaBroker, wanted: int) -> int:
    """Write so many examples; returns how many bytes their values have."""
    pipeline = load(REFERENCE)
    found, examples = data.flights((1,)), list[bytes]()
    test = Backtest(pipeline)
    test.examples = lambda record: examples.append(bytes(record.value() or b""))
    test.run([one.event for one in found], data.labels(found))
    topic, producer, size = topics.EXAMPLES.name(pipeline), broker.producer("fill"), 0
    for number in range(wanted):
        value = examples[number % len(examples)]
        producer.emit(topic, value, b"%d" % number, 0, None, 0)
        size += len(value)
        if number % 5_000 == 4_999:
            producer.commit({}, None)
    producer.commit({}, None)
    producer.close()
    return size


def learned(stack: Stack, role: str, model: str) -> int:
    """Return how many examples a learner has learned, by its own metrics."""
    text = stack.fetch(role, "/metrics")[1]
    found = re.search(rf'^tidemill_examples_learned\{{[^}}]*"{model}"[^}}]*\}} (\S+)', text, re.MULTILINE)
    return int(float(found.group(1))) if found else 0


def refold(model: str, wanted: int) -> None:
    """Measure one model."""
    pipeline = load(REFERENCE)
    with ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory()))
        kafka = RealKafka(folder)
        cleanup.callback(kafka.stop)
        broker = KafkaBroker(kafka.servers)
        broker.create(topic_table(pipeline))
        began = time.monotonic()
        size = fill(broker, wanted)
        print(f"{wanted:,} examples, {size / wanted:,.0f} bytes each, written in {time.monotonic() - began:.0f} s")
        never = {"snapshot_examples": 10**9, "snapshot_seconds": 86_400.0}
        stack = Stack(REFERENCE, pipeline, folder, {"brokers": kafka.servers, **never})
        cleanup.callback(stack.stop)
        role = f"learner:{model}"
        stack.start(role)
        first = at = 0
        while not at or at < wanted:
            stack.check()
            at, now = learned(stack, role, model), time.monotonic()
            if not first and at >= wanted // 10:
                first, since = at, now
            time.sleep(0.2)
        rate = (at - first) / (now - since)
        print(f"{model}: {rate:,.0f} examples a second, {1e6 / rate / 60:.1f} minutes a million")


def main() -> None:
    """Parse, and measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--examples", type=int, default=1_000_000, help="how many")
    parser.add_argument("--model", default="logreg", help="of which model of the flights")
    chosen = parser.parse_args()
    refold(chosen.model, chosen.examples)


if __name__ == "__main__":
    main()
