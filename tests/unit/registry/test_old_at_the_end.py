"""A topic with hundreds of old signed records at its end: who starts finds the newest, at once, and nothing is refused for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import small
from signing_keys import KEY

from tidemill import metrics
from tidemill.errors import ArtifactError
from tidemill.keys import Keyring
from tidemill.models.fold import Fold
from tidemill.registry.alerts import alerts
from tidemill.registry.decisions import Command, ModelRef, commands
from tidemill.registry.latest import latest
from tidemill.registry.manifests import Manifest, Registry
from tidemill.registry.signing import FIRST_READ_OFFSETS, Chains, LogWriter
from tidemill.registry.store import ArtifactStore
from tidemill.runtime.run import topic_table
from tidemill.stages.learner.service import end_of_models, manifest_history
from tidemill.stream.api import TopicPartition
from tidemill.stream.memory import MemoryBroker
from tidemill.wire import topics

pytestmark = pytest.mark.slow

PIPELINE = small.make()
MODELS, COMMANDS = TopicPartition(topics.MODELS.name("small"), 0), TopicPartition(topics.COMMANDS.name("small"), 0)


class World:
    """A models topic with a thousand versions of two models, as learners publish them."""

    def __init__(self, folder: Path, versions: int = 500) -> None:
        self.broker = MemoryBroker({name: partitions for _, name, partitions in topic_table(PIPELINE)})
        self.store = ArtifactStore(str(folder))
        self.registry = self.learner()
        self.made = Registry(PIPELINE, self.store, KEY).publish("linear", Fold(PIPELINE, "linear").snapshot(), ())
        for version in range(1, versions + 1):
            for model in ("linear", "slow"):
                self.publish(version, model)

    def learner(self) -> Registry:
        registry = Registry(PIPELINE, self.store, KEY)
        registry.chains.position = end_of_models(self.broker, registry)
        return registry

    def publish(self, version: int, model: str = "linear", registry: Registry | None = None) -> Manifest:
        registry = registry or self.registry
        manifest = registry.sign(
            dataclasses.replace(self.made, model=model, version=version, examples=version, epoch=0)
        )
        self.broker.append(MODELS.topic, registry.encode(manifest), model.encode())
        return manifest

    def replay(self, begin: int, end: int, partition: TopicPartition = MODELS) -> None:
        """Append records again, as anybody can who may write to the topic."""
        for record in self.broker.log[partition][begin:end]:
            self.broker.append(partition.topic, record.value(), record.key())

    def reads(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
        """Return what returns how many records were read since."""
        read, count = self.broker.read, 0

        def counted(ranges):
            nonlocal count
            for batch in read(ranges):
                count += len(batch)
                yield batch

        monkeypatch.setattr(self.broker, "read", counted)
        return lambda: count


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("store"))


def fresh(world: World, wanted: int = 1) -> list[int]:
    newest, _ = latest(world.broker, Registry(PIPELINE, world.store, KEY), {"linear": wanted, "slow": wanted})
    return [newest[model][0].version for model in ("linear", "slow")]


def test_of_a_thousand_manifests_a_fresh_start_reads_the_last_and_verifies_one_a_model(
    thousand: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified, verify = 0, Keyring.verify

    def counted(self: Keyring, *arguments: object) -> None:
        nonlocal verified
        verified += 1
        verify(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Keyring, "verify", counted)
    reads = thousand.reads(monkeypatch)
    assert fresh(thousand) == [500, 500]
    assert reads() == FIRST_READ_OFFSETS
    assert verified == 2


@pytest.mark.parametrize("begin", [0, 400, 700])
def test_hundreds_of_old_ones_at_the_end_hide_the_newest_from_nobody(
    thousand: World, begin: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = list(thousand.broker.log[MODELS])
    try:
        thousand.replay(begin, begin + 300)
        reads = thousand.reads(monkeypatch)
        assert fresh(thousand) == [500, 500]
        assert reads() <= len(thousand.broker.log[MODELS])  # each once
        history = manifest_history(thousand.broker, thousand.learner())("linear")
        assert [manifest.version for manifest in history] == list(range(500, 480, -1))
    finally:
        thousand.broker.log[MODELS] = log


def test_a_learner_that_starts_then_goes_on_after_the_newest_and_readers_follow_it(tmp_path: Path) -> None:
    world = World(tmp_path, versions=200)
    reader = Chains(Registry(PIPELINE, world.store, KEY).codec)
    latest(world.broker, Registry(PIPELINE, world.store, KEY), {"linear": 1}, chains=reader)
    world.replay(0, 300)
    again = world.learner()
    manifest_history(world.broker, again)("linear")
    manifest = world.publish(201, registry=again)
    assert manifest.signature.sequence == 201
    assert manifest.signature.position == 700
    assert reader.next(world.broker.log[MODELS][-1]).version == 201  # type: ignore[union-attr]


def test_who_signs_commands_goes_on_after_the_newest_as_well() -> None:
    broker = MemoryBroker({name: partitions for _, name, partitions in topic_table(PIPELINE)})

    def command(writer: LogWriter[Command], number: int) -> int:
        writer.begin()
        data = writer.sign(Command(f"c{number}", "promote", ModelRef("slow"), 0, 0, "ann", "why", 5))
        broker.append(COMMANDS.topic, data, b"c")
        return writer.chains.heads["status-0"].sequence

    writer = LogWriter(commands(PIPELINE, KEY), broker, "status-0")
    assert [command(writer, number) for number in range(3)] == [1, 2, 3]
    first = broker.log[COMMANDS][0]
    for _ in range(2 * FIRST_READ_OFFSETS):
        broker.append(COMMANDS.topic, first.value(), first.key())
    assert command(LogWriter(commands(PIPELINE, KEY), broker, "status-0"), 3) == 4


def test_a_reader_goes_on_after_a_gap_with_the_record_that_follows_what_it_has_refused() -> None:
    codec = commands(PIPELINE, KEY)
    writer, broker = Chains(codec), MemoryBroker({COMMANDS.topic: 1})
    refused: list[str] = []
    reader = Chains(codec, lambda _, error: refused.append(str(error)))
    records = []
    for number in range(8):
        data = writer.sign(Command(f"c{number}", "promote", ModelRef("slow"), 0, 0, "ann", "why", 5), "status-0")
        records.append(broker.append(COMMANDS.topic, data, b"c"))

    def took(*numbers: int) -> list[str]:
        return [content.id for number in numbers if (content := reader.take(records[number])) is not None]

    assert took(0) == ["c0"]
    assert took(2) == []
    assert "goes on with the one that follows, or when this process is started again" in refused[-1]
    assert took(2, 4) == []  # neither follows from what was refused
    assert took(5, 6) == ["c5", "c6"]
    assert took(3, 4, 1) == []  # what was missing comes too late
    assert took(7) == ["c7"]


def test_a_refused_record_is_counted_once_however_often_it_is_read() -> None:
    codec, broker = commands(PIPELINE, KEY), MemoryBroker({COMMANDS.topic: 1})
    counter = metrics.REFUSED.labels(COMMANDS.topic, "damaged")
    before = counter._value.get()
    record = broker.append(COMMANDS.topic, b"no command, and read three times", b"c")
    for _ in range(3):
        Chains(codec).take(record)
        Chains(codec).restore([record])
    assert counter._value.get() == before + 1
    Chains(codec).take(broker.append(COMMANDS.topic, record.value(), b"c"))  # at another place
    assert counter._value.get() == before + 2


DEEP = 3_000_000
NESTED = {
    "tuples": b")" + b"\x85" * DEEP,
    "lists": b"]" * DEEP + b"a" * (DEEP - 1),
    "dicts": b"}K\x01" * DEEP + b"}" + b"s" * DEEP,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", NESTED)
def test_what_is_nested_three_million_deep_is_refused_and_ends_no_process(thousand: World, kind: str) -> None:
    digest = thousand.store.put(b"\x80\x04" + NESTED[kind] + b".")
    manifest = dataclasses.replace(thousand.made, uri=thousand.store.path(digest), sha256=digest)
    with pytest.raises(ArtifactError) as raised:
        thousand.registry.open(thousand.learner().sign(manifest))
    assert len(str(raised.value)) < 1_000


def test_alerts_have_their_position_too() -> None:
    broker = MemoryBroker({name: partitions for _, name, partitions in topic_table(PIPELINE)})
    writer = LogWriter(alerts(PIPELINE, KEY), broker, "monitor")
    writer.begin()
    assert writer.chains.position() == 0
