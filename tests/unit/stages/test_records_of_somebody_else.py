"""Records that somebody else wrote to a topic of ours: each is a decision, and what comes after it is processed."""

from __future__ import annotations

import copy
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import small
from odd_numbers import filled, odd_numbers
from river_in_memory import Letter, River, drive
from signing_keys import KEY

from tidemill import Gate, Training, View, aggregates, metrics, rules
from tidemill.durations import FIRST_TIME_MS
from tidemill.encoding.codec import HEADER, Codec
from tidemill.errors import Reject
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
from tidemill.stream.group import Service
from tidemill.stream.memory import MemoryBroker, MemoryRecord
from tidemill.stream.topic import Topic
from tidemill.watch.archiver import service as archiver
from tidemill.watch.monitor.core import EXAMPLES, PREDICTIONS, Core
from tidemill.watch.monitor.service import window_record
from tidemill.wire import topics
from tidemill.wire.records import Records

pytestmark = pytest.mark.slow

SHOPS = View("carrier", every="1m", aggregates=[aggregates.mean("distance", "5m")])
OUTCOMES = View("carrier", source="examples", every="1m", aggregates=[aggregates.mean("label", "5m")])
PIPELINE = small.make(
    views=[small.VIEW, SHOPS, OUTCOMES],
    gate=Gate(examples=200),
    training=Training("linear"),
    rules=[rules.between("sched_hour", 0, 23), rules.between("distance", 0, 50, warn=True)],
)
RECORDS = Records(PIPELINE)
EVENTS = 40
#: Services that make no dead letters count what they pass over, but for alerts that nobody has signed.
READERS = [(name, topic) for name in (*topics.SERVICES, "archiver") for topic in topics.consumes(name)]
#: Topics with records of ours that nobody signs, and what producers sent and the validator passed on.
NUMBERS = (
    topics.EVENTS_VALID, topics.LABELS_VALID, topics.UPDATES, topics.FEATURES, topics.PREDICTIONS, topics.PREDICTION_LOG,
    topics.EXAMPLES, topics.EXPIRED, topics.WARNINGS, topics.WINDOWS, topics.REDRIVES,
)  # fmt: skip


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


def avro_of(topic: Topic) -> Any:
    """Return a topic's schema: of a stream's record, only what the validator looks at in every pipeline."""
    codec = codec_of(topic)
    stream = {topics.EVENTS_VALID: PIPELINE.events, topics.LABELS_VALID: PIPELINE.labels}.get(topic)
    if stream is None:
        return codec.avro
    checked = [f for f in codec.avro["fields"] if stream.types[f["name"]] == "double" or f["name"] == stream.time]
    return {**codec.avro, "fields": checked}


def codec_of(topic: Topic) -> Codec:
    codec = RECORDS.of_topic(topic)
    assert codec is not None
    return codec


def with_odd_numbers(topic: Topic, sample: bytes) -> list[tuple[str, bytes]]:
    """Return complete records, each with one number that no service writes: (its field, the record)."""
    codec = codec_of(topic)
    record = codec.record(sample, HEADER)
    return [(field, codec.encode(odd)) for field, odd in odd_numbers(avro_of(topic), record)]


class Written:
    """What a service reads, with other records among the sound ones of one topic: by default damaged ones."""

    def __init__(self, sound: MemoryBroker, topic: Topic, service: str, others: Sequence[bytes] | None = None) -> None:
        self.broker = MemoryBroker({name: partitions for _, name, partitions in topic_table(PIPELINE)})
        self.name, self.places = topic.name(PIPELINE.name), list[tuple[str, str, str]]()
        bad = [*damaged(sample_of(sound, topic))] if others is None else list(others)
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


def sample_of(sound: MemoryBroker, topic: Topic) -> bytes:
    records = sound.records(topic.name(PIPELINE.name))
    return next((record.value() or b"" for record in records), b"\0\0\0\0\0 nothing has been written")


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
    check(name, topic, sound, Written(sound, topic, name), tmp_path)


@pytest.mark.parametrize(
    ("name", "topic"),
    [(name, topic) for name, topic in READERS if topic in NUMBERS],
    ids=[f"{name}-{topic.suffix}" for name, topic in READERS if topic in NUMBERS],
)
def test_a_complete_record_with_a_number_that_no_service_writes_is_one_of_them(
    name: str, topic: Topic, sound: MemoryBroker, tmp_path: Path
) -> None:
    odd = with_odd_numbers(topic, sample_of(sound, topic))
    assert len(odd) > 5
    letters = check(name, topic, sound, Written(sound, topic, name, [data for _, data in odd]), tmp_path)
    if letters:
        assert {letter.reason for letter in letters} == {"not_finite", "out_of_range"}
        assert Counter(letter.field for letter in letters) == Counter(field for field, _ in odd)


@pytest.mark.parametrize("topic", NUMBERS, ids=lambda topic: topic.suffix)
def test_no_reader_takes_a_record_with_such_a_number(topic: Topic) -> None:
    """Whatever reads the topic, a command or the status service too."""
    codec = codec_of(topic)
    record = filled(codec.avro)
    assert codec.of(codec.encode(record)) == record
    for field, odd in odd_numbers(avro_of(topic), record):
        with pytest.raises(Reject, match=r"no service of this pipeline writes that") as refused:
            codec.decode(codec.encode(odd))
        assert refused.value.field == field
        assert refused.value.reason in ("not_finite", "out_of_range")


def check(name: str, topic: Topic, sound: MemoryBroker, written: Written, tmp_path: Path) -> list[Letter]:
    """Check that each record is decided and changes nothing else; returns the dead letters."""
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
        alone = build(name, sound, tmp_path / "alone")
        drive(alone, copy.deepcopy(sound))
        undisturbed: Any = alone.processor
        assert folded.fold.examples == len(sound.records(topics.EXAMPLES.name(PIPELINE.name))) == 30
        assert str(folded.fold.metrics) == str(undisturbed.fold.metrics)
        assert math.isfinite(folded.fold.model.predict_one({"distance": 1.0, "hour": 5.0}))
    return letters


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


@pytest.mark.parametrize(
    ("topic", "path", "number"),
    [
        (topics.FEATURES, ("vector", "distance"), 1.1e30),
        (topics.FEATURES, ("vector", "hour"), -1.1e30),
        (topics.EXAMPLES, ("label",), 1.1e15),
        (topics.UPDATES, ("numbers", "distance"), 1.1e30),
    ],
    ids=lambda value: value.suffix if isinstance(value, Topic) else None,
)
def test_a_finite_number_that_would_make_a_model_infinite_is_refused(topic: Topic, path: Any, number: float) -> None:
    """Its square, or a product of it with other features, is beyond any double."""
    codec = codec_of(topic)
    record = holder = filled(codec.avro)
    for step in path[:-1]:
        holder = holder[step]
    for value in (number, number / 1.2):
        holder[path[-1]] = value
        assert (codec.of(codec.encode(record)) is None) == (value == number)


@pytest.mark.parametrize("topic", [topics.PREDICTION_LOG, topics.EXAMPLES, topics.EXPIRED], ids=lambda t: t.suffix)
def test_the_monitor_passes_over_such_numbers(topic: Topic, sound: MemoryBroker) -> None:
    sample = sample_of(sound, topics.PREDICTION_LOG if topic == topics.EXPIRED else topic)
    odd = [data for _, data in with_odd_numbers(topic, sample)]
    core, written = Core(PIPELINE, lambda: 0.0), Written(sound, topic, "monitor", odd)
    take = {topics.PREDICTION_LOG: core.predictions, topics.EXAMPLES: core.examples, topics.EXPIRED: core.expired}[
        topic
    ]
    records = written.broker.records(written.name)
    take(records)
    core.restore_reference(records)
    closed = core.finish()
    assert sum(window.rows for window in closed) == (0 if topic == topics.EXPIRED else len(sound.records(written.name)))
    for window in closed:
        assert all(math.isfinite(value) for value in window.figures.values())
        assert core.records.window.of(core.records.window.encode(window_record(window, core, 0.0)))


def test_an_event_of_a_time_that_no_calendar_has_is_a_dead_letter_in_every_pipeline(tmp_path: Path) -> None:
    """The windows of one of the year -292,000,000 end the monitor, and the tiles of it can't be read again."""
    river = River(PIPELINE, tmp_path)
    assert not PIPELINE.events.is_time_plain
    for n, time in enumerate((-(2**63), FIRST_TIME_MS - 1, FIRST_TIME_MS, 0)):
        river.event(small.event(f"e{n}", time))
        river.label(small.label(f"e{n}", time))
    river.run()
    letters = river.letters("validator")
    assert {(letter.reason, letter.field) for letter in letters} == {
        ("implausible_time", "asked_at"), ("implausible_time", "landed_at")
    }  # fmt: skip
    assert len(letters) == 4
    assert {p["event_id"] for p in river.decoded(topics.PREDICTIONS)} == {"e2", "e3"}
