"""What swapping a large model costs those who wait for predictions: the wait of batches, with and without new versions.

    python -m benchmarks.swap
    python -m benchmarks.swap --trees 10 --examples 3000        a forest, of some 30 MB

The real scorer under the real loop, with the real feed of models in its thread, in one process over a broker in memory. A batch
is due every few milliseconds; its wait is from then until its predictions are committed, so what holds the interpreter's lock
shows, wherever it does. Rounds without new versions, with them, and with them opened as if nobody waited take turns: machines
are shared, so read one beside the other.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from river import compose, forest, tree

from tidemill import Pipeline, load
from tidemill.demo import data
from tidemill.keys import Keyring
from tidemill.models.fold import Fold
from tidemill.models.snapshot import Snapshot
from tidemill.offline.backtest import Backtest
from tidemill.registry.manifests import Manifest, Registry
from tidemill.registry.store import ArtifactStore
from tidemill.runtime.run import topic_table
from tidemill.stages.scorer import service as scorer
from tidemill.stages.scorer.feed import ModelFeed
from tidemill.stream.api import Record
from tidemill.stream.loop import Loop, tune_collector
from tidemill.stream.memory import MemoryBroker
from tidemill.wire import topics
from tidemill.wire.records import Example, Records


class Watched(Registry):
    """A registry that notes how long opening took."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.opened: list[float] = []
        self.pauses = True

    def open(self, manifest: Manifest, pause: float = 0.0) -> Snapshot:
        """Open a version, and note the seconds."""
        began = time.perf_counter()
        try:
            return super().open(manifest, pause if self.pauses else 0.0)
        finally:
            self.opened.append(time.perf_counter() - began)


def declared(trees: int) -> Pipeline:
    """Return the flights' pipeline without views, with a tree, or a forest of several, that grows large soon."""
    grown = (
        tree.HoeffdingTreeClassifier(grace_period=25, delta=0.01)
        if trees == 1
        else forest.ARFClassifier(n_models=trees, grace_period=50, seed=1)
    )
    model = compose.Discard("dow") | grown
    return replace(load("plain"), models={"grown": model}, champion="grown")


def examples_of(pipeline: Pipeline, most: int) -> list[Example]:
    """Return January's first examples, as a backtest with a model that costs nothing makes them."""
    backtest, found = (
        Backtest(replace(pipeline, models={"baseline": pipeline.model("baseline")}, champion="baseline")),
        [],
    )

    def keep(record: Record) -> None:
        found.append(backtest.records.example.decode(record.value() or b""))

    backtest.examples = keep
    flights = [f for f in data.flights((1,), days=1 + most // 800) if f.label]
    backtest.run([f.event for f in flights], data.labels(flights))
    return found[:most]


class Stream:
    """A scorer that is asked a batch at a time, while versions come."""

    def __init__(self, registry: Watched, examples: Sequence[Example], batch: int) -> None:
        self.registry = registry
        self.broker = MemoryBroker({name: partitions for _, name, partitions in topic_table(registry.pipeline)})
        codec = Records(registry.pipeline).features
        self.questions = [codec.encode(example["prediction"]["features"]) for example in examples[-batch:]]
        self.kept = dict.fromkeys(self.broker.log, 0)
        self.feed = ModelFeed(registry, self.broker)
        self.loop = Loop(scorer.build(registry.pipeline, self.feed.take), self.broker, max_delay=0.0)
        self.consumer = self.broker.consumer(self.loop.service.group, self.loop.service.topics, self.loop.instance)
        self.producer = self.broker.producer(self.loop.instance)
        self.features = topics.FEATURES.name(registry.pipeline.name)
        self.models = topics.MODELS.name(registry.pipeline.name)

    def publish(self, manifest: Manifest) -> None:
        """Say on the models topic that there is a version; it is in the store already."""
        self.broker.append(self.models, self.registry.encode(manifest), manifest.model.encode())

    def run(self, batches: int, every: float, manifests: Sequence[Manifest], apart: int) -> list[float]:
        """Ask so many batches, one due every so many seconds; a version comes after each `apart`. Returns waits, in ms."""
        waits, coming = [], iter(manifests)
        due = time.perf_counter()
        for number in range(batches):
            due += every
            time.sleep(max(0.0, due - time.perf_counter()))
            if number % apart == apart // 2 and (manifest := next(coming, None)):
                self.publish(manifest)
            for question in self.questions:
                self.broker.append(self.features, question, b"k", 1)
            while not self.loop.run_once(self.consumer, self.producer):
                pass
            waits.append((time.perf_counter() - due) * 1000)
            for slot, entries in self.broker.log.items():  # no broker of ours holds records in our memory
                if slot.topic != self.models:
                    entries[self.kept[slot] :] = [None] * (len(entries) - self.kept[slot])  # type: ignore[list-item]
                    self.kept[slot] = len(entries)
        return waits


def versions(registry: Registry, pipeline: Pipeline, examples: Sequence[Example], many: int) -> list[Manifest]:
    """Learn all examples, and publish so many versions of what came of it."""
    fold = Fold(pipeline, pipeline.champion)
    for offset, example in enumerate(examples):
        fold.learn(example, offset)
    whole = fold.snapshot()
    return [
        registry.publish(pipeline.champion, dataclasses.replace(whole, version=whole.version + at), tuple(fold.vectors))
        for at in range(many)
    ]


def in_runs(waits: Sequence[float], apart: int) -> list[list[float]]:
    """Return waits in runs of as many batches as have one new version in their middle."""
    return [list(waits[at : at + apart]) for at in range(0, len(waits), apart)]


def told(name: str, runs: Sequence[Sequence[float]]) -> None:
    """Print a line. The worst wait of a run is that for one version; its median is what a busy machine disturbs least."""
    waits, worst = [wait for run in runs for wait in run], [max(run) for run in runs]
    p50, p99 = np.percentile(waits, [50, 99])
    half, most = np.percentile(worst, [50, 90])
    print(f"{name:<28}{len(waits):>9,}{p50:>8.2f}{p99:>8.2f}{max(waits):>8.2f}{half:>25.2f}{most:>8.2f}")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trees", type=int, default=1, help="more than one: a forest")
    parser.add_argument("--examples", type=int, default=8000, help="that it has learned")
    parser.add_argument("--rounds", type=int, default=2, help="of each kind")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a round")
    parser.add_argument("--every-ms", type=float, default=10.0, help="between two batches")
    parser.add_argument("--batch", type=int, default=20, help="questions of a batch")
    parser.add_argument("--swap-ms", type=float, default=500.0, help="between two versions")
    given = parser.parse_args()
    batches, apart = int(given.seconds * 1000 / given.every_ms), int(given.swap_ms / given.every_ms)
    pipeline = declared(given.trees)
    examples = examples_of(pipeline, given.examples)
    with tempfile.TemporaryDirectory() as folder:
        registry = Watched(pipeline, ArtifactStore(folder), Keyring.generate())
        made = versions(registry, pipeline, examples, 1 + 2 * given.rounds * (batches // apart))
        size = len(registry.store.get(made[0].sha256))
        stream = Stream(registry, examples, given.batch)
        stream.publish(made.pop())
        stream.feed.start()
        gc.collect()
        tune_collector()
        calm: list[float] = []
        found: dict[bool, list[list[float]]] = {False: [], True: []}
        opened: dict[bool, list[float]] = {False: [], True: []}
        stream.run(100, given.every_ms / 1000, [], apart)  # the first version is taken, caches are warm
        registry.opened.clear()
        for _ in range(given.rounds):
            for registry.pauses, waits in found.items():
                calm += stream.run(batches, given.every_ms / 1000, [], apart)
                registry.opened.clear()
                of = [made.pop() for _ in range(batches // apart)]
                waits += in_runs(stream.run(batches, given.every_ms / 1000, of, apart), apart)
                opened[registry.pauses] += registry.opened
        stream.feed.stop()
    print(f"{pipeline.champion}, {len(examples):,} examples, an artifact of {size / 1e6:.1f} MB\n")
    print(f"{'wait, ms':<28}{'batches':>9}{'p50':>8}{'p99':>8}{'max':>8}{'worst of a run: median':>25}{'90%':>8}")
    told("no new version", in_runs(calm, apart))
    for pauses, waits in found.items():
        told("new versions" if pauses else "opened without pauses", waits)
        seconds = opened[pauses]
        print(
            f"    {len(seconds)} opened, ms: median {np.median(seconds) * 1000:.0f}, longest {max(seconds) * 1000:.0f}"
        )


if __name__ == "__main__":
    main()
