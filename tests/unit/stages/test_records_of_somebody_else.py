"""Records that somebody else wrote to a topic of ours: each is a decision, and what comes after it is processed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import small
from river_in_memory import Letter, River, drive
from signing_keys import KEY

from tidemill import Gate, Training, View, aggregates, metrics
from tidemill.encoding.codec import HEADER
from tidemill.files import Files
from tidemill.registry.manifests import Registry
from tidemill.registry.store import ArtifactStore
from tidemill.runtime.run import topic_table
from tidemill.stages.featurizer import service as featurizer
from tidemill.stages.gate import service as gate
from tidemill.stages.joiner import service as joiner
from tidemill.stages.learner import service as learner
from tidemill.stages.materializer import service as materializer
from tidemill.stages.scorer import service as scorer
from tidemill.stages.validator import service as validator
from tidemill.stream.loop import Service
from tidemill.stream.memory import MemoryBroker, MemoryRecord
from tidemill.stream.topic import Topic
from tidemill.watch.archiver import service as archiver
from tidemill.watch.monitor.core import EXAMPLES, PREDICTIONS, Core
from tidemill.wire import topics
from tidemill.wire.records import Records

pytestmark = pytest.mark.slow

SHOPS = View("carrier", every="1m", aggregates=[aggregates.mean("distance", "5m")])
OUTCOMES = View("carrier", source="examples", every="1m", aggregates=[aggregates.mean("label", "5m")])
PIPELINE = small.make(views=[small.VIEW, SHOPS, OUTCOMES], gate=Gate(examples=200), training=Training("linear"))
RECORDS = Records(PIPELINE)
EVENTS = 40
#: Services that make no dead letters count what they pass over, but for alerts that nobody has signed.
READERS = [(name, topic) for name in (*topics.SERVICES, "archiver") for topic in topics.consumes(name)]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> MemoryBroker:
    """All topics, with what a pipeline has written to them."""
    river = River(PIPELINE, tmp_path_factory.mktemp("store"))
    for n in range(EVENTS):
        river.event(small.event(f"e{n}", n * 1000, carrier=f"c{n % 3}"))
        if n % 4:
            river.label(small.label(f"e{n}", n * 1000 + 500, float(n)))
    river.run()
    drive(materializer.build(PIPELINE, {}), river.broker)
    return river.broker


def damaged(sample: bytes) -> Iterator[bytes | None]:
    """Yield what is no record of this kind: noise, other formats, and a sound record cut at each place, or longer."""
    chance = random.Random(5)
    yield from (None, b"", b"\0", b"{}", b'{"flight_id": "a"}', b"\xff" * 100, sample[HEADER:], sample + b"\0")
    yield RECORDS.head.header + sample[HEADER:]  # of another schema
    yield from (sample[:size] for size in range(1, len(sample)))
    for size in range(0, 200, 10):
        yield chance.randbytes(size)
        yield sample[:HEADER] + b"\xff" * (size + 1)


class Written:
    """What a service reads, with damaged records among the sound ones of one topic."""

    def __init__(self, sound: MemoryBroker, topic: Topic, service: str) -> None:
        self.broker = MemoryBroker({name: partitions for _, name, partitions in topic_table(PIPELINE)})
        self.name, self.places = topic.name(PIPELINE.name), list[tuple[str, str, str]]()
        sample = next((r.value() or b"" for r in sound.records(self.name)), b"\0\0\0\0\0 nothing has been written")
        bad = [*damaged(sample)]
        read = {one.name(PIPELINE.name) for one in topics.consumes(service)}
        for partition, log in sound.log.items():
            if partition.topic not in read:
                continue
            share = bad[partition.partition :: PIPELINE.partitions] if partition.topic == self.name else []
            if partition.topic == self.name and topic.partitions == 1:
                share = bad
            for index in range(max(len(log), len(share))):
                if index < len(share):
                    record = self.append(partition.partition, partition.topic, share[index], b"k")
                    self.places.append((self.name, str(partition.partition), str(record.offset())))
                if index < len(log):
                    self.append(partition.partition, partition.topic, log[index].value(), log[index].key(), log[index])

    def append(self, partition: int, topic: str, value: bytes | None, key: Any, of: Any = None) -> MemoryRecord:
        headers, timestamp = (of.headers(), of.timestamp()[1]) if of else (None, 0)
        return self.broker.append(topic, value, key, timestamp, headers, partition)


def build(name: str, broker: MemoryBroker, folder: Path) -> Service:
    registry = Registry(PIPELINE, ArtifactStore(str(folder / "store")), KEY)
    builders: dict[str, Callable[[], Service]] = {
        "validator": partial(validator.build, PIPELINE, fuse=False),
        "featurizer": partial(featurizer.build, PIPELINE, {}),
        "materializer": partial(materializer.build, PIPELINE, {}),
        "scorer": partial(scorer.build, PIPELINE, tuple),
        "joiner": partial(joiner.build, PIPELINE),
        "learner": partial(learner.build, PIPELINE, "linear", registry, broker, every_examples=10, every_seconds=1e9),
        "gate": partial(gate.build, PIPELINE, registry, broker),
        "archiver": partial(archiver.build, PIPELINE, Files(str(folder / "archive"), "archive_url", "archive"), 0.0),
    }
    return builders[name]()


def skipped(service: str) -> float:
    samples = next(iter(metrics.COUNTS["skipped"].collect())).samples
    return sum(s.value for s in samples if s.name.endswith("_total") and s.labels["service"] == service)


def ids(broker: MemoryBroker, topic: Topic) -> Counter[bytes | None]:
    return Counter(record.key() for record in broker.records(topic.name(PIPELINE.name)))


@pytest.mark.parametrize(("name", "topic"), READERS, ids=[f"{name}-{topic.suffix}" for name, topic in READERS])
def test_each_is_decided_and_the_stream_goes_on(name: str, topic: Topic, sound: MemoryBroker, tmp_path: Path) -> None:
    written = Written(sound, topic, name)
    service = build(name, written.broker, tmp_path)
    before, letters_before = skipped(service.name), len(written.broker.records(topics.DLQ.name(PIPELINE.name)))
    drive(service, written.broker)
    committed = written.broker.groups[service.group].committed
    for partition, log in written.broker.log.items():
        if partition.topic in service.topics and log and name != "learner":  # which commits what it has published
            assert committed[partition].offset == len(log)
    letters = [Letter(r) for r in written.broker.records(topics.DLQ.name(PIPELINE.name))[letters_before:]]
    if service.processor.dlq:
        assert Counter(letter.source for letter in letters) == Counter(written.places)
        assert {letter.stage for letter in letters} == {name}
    elif topic != topics.ALERTS:
        assert skipped(service.name) - before == len(written.places)
    for output in topics.outputs(name):
        if output not in (topics.MODELS, topics.PROMOTIONS, topics.WARNINGS):
            assert ids(written.broker, output) == ids(sound, output)
    if name == "learner":
        folded: Any = service.processor
        assert folded.fold.examples == len(sound.records(topics.EXAMPLES.name(PIPELINE.name))) == 30


@pytest.mark.parametrize(
    "topic",
    [t for t in topics.consumes("monitor") if t not in (topics.ALERTS, topics.COMMANDS)],
    ids=lambda topic: topic.suffix,
)
def test_the_monitor_passes_over_them(topic: Topic, sound: MemoryBroker) -> None:
    core, written = Core(PIPELINE, lambda: 0.0), Written(sound, topic, "monitor")
    take = {
        topics.PREDICTION_LOG: core.predictions, topics.EXAMPLES: core.examples, topics.EXPIRED: core.expired,
        topics.DLQ: core.letters, topics.WARNINGS: core.warnings,
    }[topic]  # fmt: skip
    records = written.broker.records(written.name)
    take(records)
    core.restore_reference(records)
    assert all(core.time_of(topic.suffix, record) >= 0 for record in records)
    if topic.suffix in (PREDICTIONS, EXAMPLES):
        rows = sum(len(window.rows) for window in core.windows[topic.suffix].open.values())
        assert rows == len(sound.records(written.name)) > 0


def test_a_rebuild_makes_the_same_of_them(sound: MemoryBroker, tmp_path: Path) -> None:
    """Nothing of them is in the state: a service that is started again in the middle goes on as if they were not there."""
    written = Written(sound, topics.PREDICTION_LOG, "joiner")
    halves = [written.broker.log, {p: log[: len(log) // 2] for p, log in written.broker.log.items()}]
    written.broker.log = halves[1]
    drive(build("joiner", written.broker, tmp_path), written.broker)
    for partition, log in halves[0].items():
        if partition.topic in (written.name, topics.LABELS_VALID.name(PIPELINE.name)):
            written.broker.log[partition] += log[len(log) // 2 :]
    drive(build("joiner", written.broker, tmp_path), written.broker)
    assert ids(written.broker, topics.EXAMPLES) == ids(sound, topics.EXAMPLES)
