"""Artifacts and manifests that are damaged, and a store that is full: the old model serves, and what was learned stays."""

from __future__ import annotations

import errno
import os
import pickle
import random
import resource
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from river_in_memory import River, flights
from signing_keys import KEY

from tidemill import load
from tidemill.errors import ArtifactError, StoreError
from tidemill.models.fold import Fold
from tidemill.registry import pickles
from tidemill.registry.manifests import Manifest, Registry
from tidemill.registry.store import ArtifactStore, sha256
from tidemill.runtime.run import topic_table
from tidemill.stages.learner import service as learner
from tidemill.stages.learner.service import Learner
from tidemill.stages.scorer.feed import ModelFeed
from tidemill.stages.scorer.service import Scorer
from tidemill.stream.loop import Loop
from tidemill.stream.memory import MemoryBroker, MemoryRecord
from tidemill.wire import topics
from tidemill.wire.records import Records, vector_to_x

PIPELINE = load("flights")
RECORDS = Records(PIPELINE)
MODELS = topics.MODELS.name(PIPELINE.name)
EXAMPLES = topics.EXAMPLES.name(PIPELINE.name)
FLIPS = 1_000


@pytest.fixture(scope="module")
def examples() -> list[bytes]:
    river = River(PIPELINE)
    for flight in flights():
        river.event(flight.event)
        if flight.label:
            river.label(flight.label)
    river.run(10**6)
    found = [record.value() or b"" for record in river.of(topics.EXAMPLES)]
    assert len(found) > 600
    return found


def made(folder: Path) -> Registry:
    return Registry(PIPELINE, ArtifactStore(str(folder)), KEY)


def folded(examples: list[bytes]) -> Fold:
    fold = Fold(PIPELINE, "logreg")
    for offset, value in enumerate(examples):
        fold.learn(RECORDS.example.decode(value), offset)
    return fold


def publish(registry: Registry, examples: list[bytes]) -> Manifest:
    fold = folded(examples)
    return registry.publish("logreg", fold.snapshot(), tuple(fold.vectors))


def new_broker() -> MemoryBroker:
    return MemoryBroker({name: partitions for _, name, partitions in topic_table(PIPELINE)})


# Damage ------------------------------------------------------------------------------------------------------------------


class Unpicklers:
    """Counts every way into a pickle, ours and Python's own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = 0
        tried = pickles.tried

        def counted(trial: Any, size: int) -> list[Any]:
            self.opened += 1
            return tried(trial, size)

        monkeypatch.setattr(pickles, "tried", counted)
        for name in ("load", "loads", "Unpickler", "_Unpickler"):
            monkeypatch.setattr(pickle, name, self._never)

    def _never(self, *_: Any, **__: Any) -> None:
        self.opened += 1
        raise AssertionError("pickle was asked directly")


def test_a_thousand_flipped_bytes_are_refused_before_unpickling_and_the_old_model_serves(
    tmp_path: Path, examples: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, broker = made(tmp_path), new_broker()
    old, new = publish(registry, examples[:300]), publish(registry, examples)
    assert old.sha256 != new.sha256
    path = tmp_path / registry.store.path(new.sha256)
    whole, manifest = path.read_bytes(), registry.encode(new)
    feed = ModelFeed(registry, broker)
    step = Scorer(PIPELINE, feed.take)
    unpicklers, open_, tries = Unpicklers(monkeypatch), registry.open, Counter[str]()

    def counted(*arguments: Any, **named: Any) -> Any:
        try:
            return open_(*arguments, **named)
        except ArtifactError:
            tries["refused"] += 1
            raise

    monkeypatch.setattr(registry, "open", counted)
    question = MemoryRecord(
        topics.FEATURES.name(PIPELINE.name),
        RECORDS.features.encode(RECORDS.example.decode(examples[-1])["prediction"]["features"]),
    )

    def served(offered: bytes) -> tuple[int, float]:
        """Offer a manifest; return the version and the score that are served afterwards."""
        broker.append(MODELS, offered, b"logreg")
        feed._catch_up()
        out: list[Any] = []
        step.process([question], lambda topic, value, *_: out.append((topic, value)))
        (champion,) = [
            RECORDS.prediction.decode(value)["champion"] for topic, value in out if topic.endswith(".predictions")
        ]
        return champion["version"], champion["score"]

    before = served(registry.encode(old))
    assert before[0] == 300
    assert unpicklers.opened == 1, "the sound one is opened, and we see it"
    refused, rng = Counter[str](), random.Random(5)
    for _ in range(FLIPS):
        place, flip = rng.randrange(len(whole) + len(manifest)), rng.randrange(1, 256)
        forged, damaged = bytearray(manifest), bytearray(whole)
        if place < len(manifest):
            forged[place] ^= flip
            refused["manifest"] += 1
        else:
            damaged[place - len(manifest)] ^= flip
            path.write_bytes(damaged)
            refused["artifact"] += 1
        assert served(bytes(forged)) == before
        if place >= len(manifest):
            path.write_bytes(whole)
    assert refused.total() == FLIPS
    assert min(refused["manifest"], refused["artifact"]) > 20
    assert unpicklers.opened == 1, "nothing of the thousand was unpickled"
    assert tries["refused"] == refused["artifact"], "each was tried, and refused"
    assert step.counts["model_loads", "refused"] == 1, "the version is told once"
    assert served(manifest)[0] == len(examples), "the whole one is taken after all that"
    assert unpicklers.opened == 2


@pytest.mark.parametrize("damage", ["flipped", "zeros", "torn", "empty", "longer", "absent"])
def test_a_damaged_artifact_is_put_again_whole(damage: str, tmp_path: Path) -> None:
    store, data = ArtifactStore(str(tmp_path)), random.Random(1).randbytes(5_000)
    digest = store.put(data)
    path = tmp_path / store.path(digest)
    broken = {
        "flipped": data[:99] + bytes([data[99] ^ 4]) + data[100:], "zeros": data[:2_000] + bytes(3_000), "torn": data[:1_000],
        "empty": b"", "longer": data + b"\0",
    }  # fmt: skip
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes(broken[damage])
    with pytest.raises(ArtifactError):
        store.get(digest)
    assert store.put(data) == digest
    assert store.get(digest) == data
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]


def test_a_whole_artifact_is_not_written_again(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    path = tmp_path / store.path(store.put(b"whole"))
    os.utime(path, (1, 1))
    store.put(b"whole")
    assert path.stat().st_mtime == 1


def test_the_same_holds_for_a_store_that_is_no_folder() -> None:
    store = ArtifactStore("memory://artifacts-of-this-test")
    digest = store.put(b"whole data")
    store._files.write(store.path(digest), b"other data")
    with pytest.raises(ArtifactError, match="damaged"):
        store.get(digest)
    store.put(b"whole data")
    assert store.get(digest) == b"whole data"


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_in_the_place_of_an_artifact_is_not_read(kind: str, tmp_path: Path) -> None:
    """Reading a pipe waits for who writes to it, and a device has no end."""
    store = ArtifactStore(str(tmp_path))
    digest = store.put(b"a model")
    for place in (tmp_path / store.path(digest), tmp_path / f"{store.path(digest)}.again"):
        place.unlink(missing_ok=True)
        {"pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero"), "folder": os.mkdir}[kind](place)
    assert store.state(digest) == "corrupted"
    for read in (store.get, store.note):
        with pytest.raises(ArtifactError, match="is no file"):
            read(digest)


# A store that is full -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_files() -> Iterator[Callable[[bool], None]]:
    """Let this process write no file beyond 1,000 bytes: a real error in the middle of a real write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(on: bool) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000 if on else soft, hard))

    yield limit
    limit(False)


def test_a_write_that_breaks_off_leaves_nothing_behind(tmp_path: Path, small_files: Callable[[bool], None]) -> None:
    store, data = ArtifactStore(str(tmp_path)), random.Random(2).randbytes(200_000)
    small_files(True)
    with pytest.raises(StoreError, match="writing failed"):
        store.put(data)
    small_files(False)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
    assert store.get(store.put(data)) == data


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_is_full_at_the_last_moment_leaves_nothing_behind(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ArtifactStore(str(tmp_path))
    with monkeypatch.context() as patched:

        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patched.setattr(os, call, full)
        with pytest.raises(StoreError, match="No space left"):
            store.put(b"data")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
    with pytest.raises(ArtifactError, match="is not in"):
        store.get(sha256(b"data"))


class Full(ArtifactStore):
    """A store whose disk can be full."""

    full = False
    refused = 0

    def put(self, data: bytes) -> str:
        if not self.full:
            return super().put(data)
        self.refused += 1
        error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise StoreError(f"artifact store {self.url}: writing failed: {error}") from error


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Learning:
    """A learner under its loop, fed example by example; `taught` is what came to the model's `learn_one`."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = Full(str(folder))
        self.registry = Registry(PIPELINE, self.store, KEY)
        self.broker, self.clock = new_broker(), Clock()
        self.taught = 0
        self._count(monkeypatch)
        self.start()

    def _count(self, monkeypatch: pytest.MonkeyPatch) -> None:
        learn = Fold.learn

        def counted(fold: Fold, *arguments: Any) -> None:
            self.taught += 1
            learn(fold, *arguments)

        monkeypatch.setattr(Fold, "learn", counted)

    def start(self) -> None:
        """Be a new process."""
        built = learner.build(
            PIPELINE, "logreg", self.registry, self.broker, every_examples=50, every_seconds=10.0
        )  # fmt: skip
        self.step: Learner = built.processor  # type: ignore[assignment]
        self.step.clock = self.clock
        self.pauses: list[float] = []
        self.loop = Loop(built, self.broker, max_delay=0.0, max_batch=10, sleep=self.pauses.append)
        self.producer = self.broker.producer(self.loop.instance)
        self.consumer = self.broker.consumer(built.group, built.topics, self.loop.instance)
        self.idle()

    def feed(self, values: list[bytes]) -> None:
        for value in values:
            self.broker.append(EXAMPLES, value, b"k")
        self.idle()

    def idle(self) -> None:
        quiet = 0
        while quiet < 3:
            quiet = 0 if self.loop.run_once(self.consumer, self.producer) else quiet + 1

    @property
    def versions(self) -> list[int]:
        return [self.registry.decode(record.value() or b"").version for record in self.broker.records(MODELS)]

    @property
    def committed(self) -> int:
        found = self.broker.groups[self.loop.service.group].committed
        return max((position.offset for position in found.values()), default=0)


def assert_is_the_fold_of(fold: Fold, examples: list[bytes]) -> None:
    whole = folded(examples)
    assert (fold.version, fold.examples) == (whole.version, whole.examples) == (len(examples), len(examples))
    for value in examples[::25]:
        x = vector_to_x(RECORDS.example.decode(value)["prediction"]["features"]["vector"])
        assert PIPELINE.kind.predict(fold.model, x) == PIPELINE.kind.predict(whole.model, x)


def test_a_full_store_loses_nothing_that_was_learned_and_learns_nothing_twice(
    tmp_path: Path, examples: list[bytes], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="tidemill.stages.learner.training_run")
    live = Learning(tmp_path, monkeypatch)
    live.feed(examples[:100])
    assert live.versions == [50, 100]
    live.store.full = True
    live.feed(examples[100:420])
    assert live.store.refused == 6, "tried again at every interval, and no more often"
    assert live.taught == 420, "each example was learned once"
    assert live.pauses == [], "the loop never went back"
    assert live.versions == [50, 100]
    assert live.committed == 100, "nothing is committed beyond the last version"
    said = [r.message for r in caplog.records if r.name == "tidemill.stages.learner.training_run"]
    assert [m for m in said if "can't be stored" in m] == [
        "a version can't be stored; learning goes on, it is tried again"
    ]

    for seconds in (9.0, 2.0, 9.0, 2.0):  # without another example: time alone brings the next tries
        live.clock.now += seconds
        live.idle()
    assert live.store.refused == 8
    live.store.full = False
    live.clock.now += 11.0
    live.idle()
    assert live.versions == [50, 100, 420]
    assert live.committed == 420
    assert [r.message for r in caplog.records].count("versions can be stored again") == 1
    live.clock.now += 11.0
    live.idle()
    assert live.versions == [50, 100, 420], "what is published is not published again"
    live.feed(examples[420:])
    assert live.taught == len(examples)
    assert_is_the_fold_of(live.step.fold, examples)
    assert len([r for r in caplog.records if r.levelname == "ERROR"]) == 1


def test_after_a_restart_with_a_full_store_the_last_snapshot_loads(
    tmp_path: Path, examples: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    live = Learning(tmp_path, monkeypatch)
    live.feed(examples[:120])
    assert live.versions == [50, 100]
    live.store.full = True
    live.feed(examples[120:300])
    live.start()  # killed: what was learned since 100 is learned again, from 100 on
    assert live.taught == 300 + 200
    assert_is_the_fold_of(live.step.fold, examples[:300])
    assert live.versions == [50, 100]
    live.store.full = False
    live.feed(examples[300:])
    assert live.versions[:2] == [50, 100]
    assert live.versions[2] >= 300
    assert_is_the_fold_of(live.step.fold, examples)
    snapshot = live.registry.open(live.registry.decode(live.broker.records(MODELS)[-1].value() or b""))
    assert snapshot.examples == live.versions[-1]


def test_a_clean_stop_with_a_full_store_loses_nothing_either(
    tmp_path: Path, examples: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    live = Learning(tmp_path, monkeypatch)
    live.feed(examples[:60])
    live.store.full = True
    live.feed(examples[60:90])
    assert live.step.finish(live.producer.emit) is False
    live.store.full = False
    live.start()
    assert live.step.finish(live.producer.emit) is True
    assert_is_the_fold_of(live.step.fold, examples[:90])


def test_what_is_counted_is_a_metric() -> None:
    from tidemill.metrics import COUNTS

    assert "not_stored" in COUNTS
