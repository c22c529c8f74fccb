"""A version is trusted only when its signature, its bytes, its classes and its scores are right."""

from __future__ import annotations

import dataclasses
import os
import pickle
import random
from pathlib import Path

import pytest
from signing_keys import KEY, forged

from tidemill import load
from tidemill.demo import data
from tidemill.errors import ArtifactError, DeclarationError
from tidemill.keys import Keyring
from tidemill.models.fold import Fold
from tidemill.offline.backtest import Backtest
from tidemill.registry import snapshots
from tidemill.registry.latest import latest, models_partition
from tidemill.registry.manifests import Manifest, Registry
from tidemill.registry.store import ArtifactStore
from tidemill.stages.learner.service import Learner
from tidemill.stream.api import Position, TopicPartition
from tidemill.stream.memory import MemoryBroker, MemoryRecord
from tidemill.wire import topics
from tidemill.wire.records import Records, vector_to_x

PIPELINE = load("flights")
SLOT = TopicPartition("flights.examples", 0)


@pytest.fixture(scope="module")
def examples() -> list[MemoryRecord]:
    found: list[MemoryRecord] = []

    class Recording(Backtest):
        def _emit(self, topic, value, *rest) -> None:
            if topic == SLOT.topic:
                found.append(MemoryRecord(topic, value, b"k", 1, None, 0, 3 * len(found)))  # offsets have gaps
            super()._emit(topic, value, *rest)

    flights = data.flights((1,), days=1)
    Recording(PIPELINE).run([f.event for f in flights], data.labels(flights))
    return found


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(PIPELINE, ArtifactStore(str(tmp_path / "store")), KEY)


def folded(examples: list[MemoryRecord]) -> Fold:
    fold, codec = Fold(PIPELINE, "logreg"), Records(PIPELINE).example
    for record in examples:
        fold.learn(codec.decode(record.value()), record.offset())
    return fold


def published(registry: Registry, examples: list[MemoryRecord]) -> Manifest:
    fold = folded(examples)
    return registry.publish("logreg", fold.snapshot(), tuple(fold.vectors))


@pytest.mark.slow
def test_a_version_comes_back_with_its_scores(registry: Registry, examples) -> None:
    manifest = published(registry, examples)
    again = registry.decode(registry.encode(manifest))
    assert again == manifest
    assert (again.version, again.examples) == (examples[-1].offset() + 1, len(examples))
    assert len(again.golden) == 8
    assert set(again.metrics) == {"Accuracy", "ROCAUC", "LogLoss"}
    assert registry.open(again).examples == len(examples)


@pytest.mark.slow
def test_every_flipped_byte_of_a_manifest_is_refused(registry: Registry, examples) -> None:
    encoded = registry.encode(published(registry, examples[:50]))
    for place in range(len(encoded)):
        forged = encoded[:place] + bytes([encoded[place] ^ 1]) + encoded[place + 1 :]
        with pytest.raises(ArtifactError):
            registry.decode(forged)


@pytest.mark.slow
def test_flipped_bytes_of_an_artifact_are_refused_before_it_is_opened(
    registry: Registry, examples, monkeypatch
) -> None:
    manifest = published(registry, examples[:50])
    path = Path(registry.store.url) / registry.store.path(manifest.sha256)
    whole, rng = path.read_bytes(), random.Random(7)

    def never(_: bytes) -> None:
        raise AssertionError("it was unpickled")

    monkeypatch.setattr(snapshots, "load", never)
    for _ in range(200):
        place = rng.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << rng.randrange(8))]) + whole[place + 1 :])
        with pytest.raises(ArtifactError, match="damaged"):
            registry.open(manifest)
    path.unlink()
    with pytest.raises(ArtifactError, match="is not in"):
        registry.open(manifest)


@pytest.mark.slow
def test_another_key_another_river_another_declaration_and_other_scores_are_refused(
    registry: Registry, examples
) -> None:
    manifest = published(registry, examples[:50])
    other = Registry(PIPELINE, registry.store, Keyring.generate())
    with pytest.raises(ArtifactError, match="is not in TIDEMILL_VERIFY_KEYS"):
        other.decode(registry.encode(manifest))
    with pytest.raises(ArtifactError, match=r"River 0\.1"):
        registry.open(dataclasses.replace(manifest, river="0.1"))
    with pytest.raises(ArtifactError, match="another declaration"):
        registry.open(dataclasses.replace(manifest, declaration="0" * 64))
    golden = [{**manifest.golden[0], "score": 0.25}, *manifest.golden[1:]]
    with pytest.raises(ArtifactError, match="golden vector 0"):
        registry.open(dataclasses.replace(manifest, golden=golden))
    for digest in ("../../etc/passwd", "A" * 64, "0" * 63, ""):
        with pytest.raises(ArtifactError, match="is no SHA-256"):
            registry.open(dataclasses.replace(manifest, sha256=digest))


class Exploit:
    def __init__(self, call, *arguments) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.slow
@pytest.mark.parametrize(
    "payload",
    [
        lambda mark: pickle.dumps(Exploit(os.mkdir, mark)),
        lambda mark: pickle.dumps(Exploit(eval, f"__import__('os').mkdir({mark!r})")),
        lambda mark: b"\x80\x04\x8c\x0ariver.anomaly\x8c\x0abase.os.x\x93.",
        lambda mark: f"cos\nmkdir\n(V{mark}\ntR.".encode(),
        lambda mark: f"criver.datasets.base\nos.mkdir\n(V{mark}\ntR.".encode(),
        lambda mark: (
            b"\x80\x04\x8c\x13river.datasets.base\x8c\x08os.mkdir\x93"
            + b"\x8c"
            + bytes([len(mark)])
            + mark.encode()
            + b"\x85R."
        ),
        lambda mark: b"not a pickle",
    ],
)
def test_a_snapshot_with_anything_but_models_is_refused_and_runs_nothing(payload, tmp_path: Path) -> None:
    mark = str(tmp_path / "was_run")
    with pytest.raises(ArtifactError):
        snapshots.load(payload(mark))
    assert not Path(mark).exists()


def test_a_lambda_in_a_model_is_refused_when_it_is_saved() -> None:
    with pytest.raises(ArtifactError, match="no lambdas"):
        snapshots.dump({"model": lambda x: x})


@pytest.mark.slow
def test_saving_does_not_change_what_is_learned(registry: Registry, examples) -> None:
    codec, saved, plain = Records(PIPELINE).example, Fold(PIPELINE, "logreg"), Fold(PIPELINE, "logreg")
    for record in examples[:300]:
        for fold in (saved, plain):
            fold.learn(codec.decode(record.value()), record.offset())
        registry.publish("logreg", saved.snapshot(), tuple(saved.vectors))
    x = vector_to_x(codec.decode(examples[-1].value())["prediction"]["features"]["vector"])
    assert PIPELINE.kind.predict(saved.model, x) == PIPELINE.kind.predict(plain.model, x)


def learner(registry: Registry, published_so_far: list[Manifest]) -> Learner:
    def history(model: str) -> list[Manifest]:
        return [m for m in reversed(published_so_far) if m.model == model]

    return Learner(PIPELINE, "logreg", registry, history, every_examples=100, every_seconds=1e9)


def feed(step: Learner, records: list[MemoryRecord], registry: Registry, into: list[Manifest]) -> None:
    for start in range(0, len(records), 10):
        step.process(records[start : start + 10], lambda topic, value, *_: into.append(registry.decode(value)))


@pytest.mark.slow
def test_a_learner_resumed_anywhere_ends_like_one_never_stopped(registry: Registry, examples) -> None:
    whole = folded(examples)
    for stop in (0, 90, 100, 333, 700):
        manifests: list[Manifest] = []
        first = learner(registry, manifests)
        first.assign(SLOT, Position(0))
        feed(first, examples[:stop], registry, manifests)  # killed here: no last word
        second = learner(registry, manifests)
        begin = second.assign(SLOT, Position(0)).live_from
        assert begin == (manifests[-1].version if manifests else 0)
        feed(second, [r for r in examples if r.offset() >= begin], registry, manifests)
        assert (second.fold.version, second.fold.examples) == (whole.version, whole.examples)
        assert [m.get() for m in second.fold.metrics] == [m.get() for m in whole.metrics]
        for record in examples[::20]:
            x = vector_to_x(Records(PIPELINE).example.decode(record.value())["prediction"]["features"]["vector"])
            assert PIPELINE.kind.predict(second.fold.model, x) == PIPELINE.kind.predict(whole.model, x)


@pytest.mark.slow
def test_a_learner_whose_last_artifact_is_damaged_takes_an_older_one(registry: Registry, examples) -> None:
    manifests: list[Manifest] = []
    first = learner(registry, manifests)
    first.assign(SLOT, Position(0))
    feed(first, examples[:400], registry, manifests)
    assert len(manifests) == 4
    path = Path(registry.store.url) / registry.store.path(manifests[-1].sha256)
    path.write_bytes(b"damaged")
    second = learner(registry, manifests)
    start = second.assign(SLOT, Position(0))
    assert (start.rebuild_from, start.live_from) == (manifests[-2].version, manifests[-1].version)


@pytest.mark.slow
def test_a_learner_of_a_changed_declaration_says_what_to_do(registry: Registry, examples) -> None:
    changed = dataclasses.replace(published(registry, examples[:50]), declaration="0" * 64)
    with pytest.raises(DeclarationError, match="give the changed model a new name"):
        learner(registry, [changed]).assign(SLOT, Position(0))


@pytest.mark.slow
def test_a_model_that_has_exploded_is_not_published(registry: Registry, examples) -> None:
    step = learner(registry, [])
    step.assign(SLOT, Position(0))
    emitted: list = []
    feed(step, examples[:90], registry, emitted)
    step.fold.model = type(
        "Broken", (), {"predict_proba_one": lambda _, x: {True: float("nan")}, "learn_one": lambda *_: None}
    )()
    step.process(examples[90:110], lambda *record: emitted.append(record))
    assert emitted == []
    assert step.counts["stopped", "logreg"] == 1


@pytest.mark.slow
def test_the_newest_manifests_are_found_from_the_end(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    broker = MemoryBroker({topics.MODELS.name(PIPELINE.name): 1})
    slot = models_partition(registry)
    sound = Registry(PIPELINE, registry.store, KEY).publish("logreg", Fold(PIPELINE, "logreg").snapshot(), ())
    read: list[tuple[int, int]] = []
    whole = broker.read
    broker.read = lambda ranges: read.append(ranges[slot]) or whole(ranges)

    def append(model: str, version: int, *, is_forged: bool = False, key: str = "") -> None:
        manifest = registry.sign(dataclasses.replace(sound, model=model, version=version))
        manifest = forged(manifest) if is_forged else manifest
        broker.append(slot.topic, registry.encode(manifest), (key or model).encode())

    append("slow", 7)
    for version in range(3000):
        append("logreg", version)
    append("logreg", 9000, is_forged=True)
    append("logreg", 9001, key="slow")
    for version in range(40):
        append("baseline", version)
    found, end = latest(broker, registry, {"logreg": 3, "baseline": 1})
    assert ([m.version for m in found["logreg"]], [m.version for m in found["baseline"]]) == ([2999, 2998, 2997], [39])
    assert (end, read) == (3043, [(2793, 3043)])
    assert "signed record refused" in caplog.text
    read.clear()
    found, _ = latest(broker, registry, {"slow": 2, "baseline": 1})
    assert [m.version for m in found["slow"]] == [7], "who has few is looked for to the beginning"
    assert read == [(2793, 3043), (1793, 2793), (0, 1793)]
    read.clear()
    assert latest(broker, registry, {"slow": 1}, since=3000) == ({"slow": []}, 3043)
    assert read == [(3000, 3043)]
