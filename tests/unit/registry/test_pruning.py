"""What is pruned is old, named by nobody, and needed by no learner; whatever stops it, nothing else goes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import small
from click.testing import CliRunner
from signing_keys import KEY, forged, set_keys

from tidemill.cli import versions as command
from tidemill.cli.main import cli
from tidemill.errors import ArtifactError, SettingsError, StoreError
from tidemill.registry.latest import MAX_MANIFESTS_BACK
from tidemill.registry.manifests import Manifest, Registry
from tidemill.registry.pruning import plan, prune
from tidemill.registry.store import ArtifactStore
from tidemill.registry.versions import Versions
from tidemill.runtime.run import topic_table
from tidemill.stages.learner.service import Learner, manifest_history
from tidemill.stream.api import Position, TopicPartition
from tidemill.stream.embedded import EmbeddedBroker
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.stream.memory import MemoryBroker
from tidemill.wire import topics

pytestmark = pytest.mark.slow

DECLARATION = "import small\npipeline = small.make(models={'linear': small.linear(), 'slow': small.linear(0.0001)})\n"
PIPELINE = small.make()
TOPIC = topics.MODELS.name("small")
MANY = 30


class Learned:
    """Two models that have published MANY versions each, and the store that holds them."""

    def __init__(self, folder: Path, store: ArtifactStore | None = None) -> None:
        self.store = store or ArtifactStore(str(folder / "store"))
        self.registry = Registry(PIPELINE, self.store, KEY)
        self.broker = MemoryBroker({TOPIC: 1})
        self.manifests: list[Manifest] = []
        records = small.example_records(PIPELINE, 2 * MANY)
        steps = {model: self.learner(model) for model in ("linear", "slow")}
        for begin in range(0, len(records), 2):
            for model, step in steps.items():
                step.process(records[begin : begin + 2], lambda _, value, *__, model=model: self.add(model, value))

    def learner(self, model: str) -> Learner:
        step = Learner(
            PIPELINE,
            model,
            self.registry,
            manifest_history(self.broker, self.registry),
            every_examples=2,
            every_seconds=1e9,
        )
        step.assign(TopicPartition("small.examples", 0), Position(0))
        return step

    def add(self, model: str, value: bytes) -> None:
        self.broker.append(TOPIC, value, model.encode())
        self.manifests.append(self.registry.decode(value))

    def append(self, manifest: Manifest, *, signed: bool = True) -> None:
        manifest = self.registry.sign(manifest) if signed else forged(manifest)
        self.broker.append(TOPIC, self.registry.encode(manifest), manifest.model.encode())

    def plan(self, **options: Any) -> Any:
        return plan(
            Versions(PIPELINE, self.broker, self.registry).read(),
            self.registry,
            **{"keep": MAX_MANIFESTS_BACK, **options},
        )

    def held(self, model: str) -> list[int]:
        return [m.version for m in self.manifests if m.model == model and self.store.holds(m.sha256)]


ALL = [2 * number for number in range(1, MANY + 1)]


@pytest.fixture
def learned(tmp_path: Path) -> Learned:
    found = Learned(tmp_path)
    assert found.held("linear") == found.held("slow") == ALL
    return found


def test_the_newest_of_each_model_stay_and_the_others_go(learned: Learned) -> None:
    found = learned.plan(keep=25)
    assert learned.held("slow") == ALL, "a plan deletes nothing"
    prune(found, learned.store)
    assert learned.held("linear") == learned.held("slow") == ALL[-25:]
    assert [(m.name, m.versions, m.kept, m.pruned, m.gone) for m in found.models.values()] == [
        ("slow", MANY, 25, 5, 0), ("linear", MANY, 25, 5, 0),
    ]  # fmt: skip
    assert found.bytes > 10 * 100
    again = learned.plan(keep=25)
    assert (again.artifacts, again.bytes) == ([], 0)
    assert [m.gone for m in again.models.values()] == [5, 5]


def test_manifests_stay_and_a_learner_resumes_as_before(learned: Learned) -> None:
    prune(learned.plan(), learned.store)
    assert len(list(Versions(PIPELINE, learned.broker, learned.registry).read())) == 2 * MANY
    assert learned.learner("linear").fold.version == ALL[-1]


def test_what_is_promoted_or_pinned_stays(learned: Learned) -> None:
    prune(learned.plan(kept={("linear", 4), ("slow", 2), ("slow", 999)}), learned.store)
    assert learned.held("linear") == [4, *ALL[-MAX_MANIFESTS_BACK:]]
    assert learned.held("slow") == [2, *ALL[-MAX_MANIFESTS_BACK:]]


def test_what_is_young_stays(learned: Learned) -> None:
    times = {m.version: m.created_at for m in learned.manifests if m.model == "linear"}
    assert learned.plan(before=min(m.created_at for m in learned.manifests)).artifacts == []
    assert len(learned.plan(before=max(times.values()) + 1).artifacts) == 2 * (MANY - MAX_MANIFESTS_BACK)


def test_the_newest_whole_one_stays_however_old(learned: Learned) -> None:
    for manifest in learned.manifests:
        if manifest.model == "linear" and manifest.version > 6:
            (Path(learned.store.url) / manifest.uri).write_bytes(b"damaged")
    prune(learned.plan(), learned.store)
    assert learned.held("linear") == [6, *ALL[-MAX_MANIFESTS_BACK:]]
    assert learned.registry.open(next(m for m in learned.manifests if (m.model, m.version) == ("linear", 6)))


def test_an_artifact_that_a_kept_version_shares_stays_and_goes_with_the_last(learned: Learned) -> None:
    first, last = learned.manifests[0], learned.manifests[-1]
    learned.append(dataclasses.replace(last, version=ALL[-1] + 2, sha256=first.sha256, uri=first.uri))
    found = learned.plan()
    assert first.sha256 not in found.artifacts
    assert found.models["linear"].shared == 1
    for number in range(MAX_MANIFESTS_BACK):
        learned.append(dataclasses.replace(last, version=ALL[-1] + 4 + 2 * number))
    assert learned.plan().artifacts.count(first.sha256) == 1, "two versions name it, and it is deleted once"


@pytest.mark.parametrize("pipeline", ["small", "other"])
def test_a_forged_manifest_neither_deletes_nor_keeps(learned: Learned, pipeline: str) -> None:
    newest, oldest = learned.manifests[-1], learned.manifests[0]
    before = learned.plan().artifacts
    forged = dataclasses.replace(newest, version=0, sha256="a" * 64, pipeline=pipeline)
    learned.append(forged, signed=False)
    for number in range(MANY):  # had they counted, the sound ones would have been beyond the newest
        changed = dataclasses.replace(newest, version=10_000 + number, sha256=oldest.sha256, pipeline=pipeline)
        learned.append(changed, signed=pipeline == "other")
    learned.broker.append(TOPIC, b"junk", b"linear")
    assert sorted(learned.plan().artifacts) == sorted(before)


def test_fewer_than_a_learner_looks_back_at_are_never_kept(learned: Learned) -> None:
    with pytest.raises(ValueError, match=f"keep is {MAX_MANIFESTS_BACK - 1} where at least {MAX_MANIFESTS_BACK}"):
        learned.plan(keep=MAX_MANIFESTS_BACK - 1)


class Failing(ArtifactStore):
    """A store that goes away after so many deletions."""

    left = 3

    def delete(self, digest: str) -> None:
        if self.left == 0:
            raise StoreError("away")
        self.left -= 1
        super().delete(digest)


@pytest.mark.slow
def test_one_that_breaks_off_is_gone_on_with(tmp_path: Path) -> None:
    learned = Learned(tmp_path, store := Failing(str(tmp_path / "store")))
    with pytest.raises(StoreError, match="away"):
        prune(learned.plan(), store)
    assert len(learned.held("linear")) + len(learned.held("slow")) == 2 * MANY - 3
    assert learned.learner("slow").fold.version == ALL[-1]
    store.left = 10**6
    prune(learned.plan(), store)
    assert learned.held("linear") == learned.held("slow") == ALL[-MAX_MANIFESTS_BACK:]


@pytest.mark.parametrize("url", ["folder", "memory://pruning"])
def test_a_store_deletes_once_and_says_how_large_a_thing_is(tmp_path: Path, url: str) -> None:
    store = ArtifactStore(str(tmp_path) if url == "folder" else url)
    digest = store.put(b"12345")
    assert (store.size(digest), store.holds(digest)) == (5, True)
    store.delete(digest)
    assert (store.size(digest), store.holds(digest)) == (None, False)
    store.delete(digest)
    with pytest.raises(ArtifactError, match="is no SHA-256"):
        store.delete("../../etc/passwd")
    assert store.size("../../etc/passwd") is None


class TestCommand:
    @pytest.fixture
    def run(self, learned: Learned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        (tmp_path / "declared.py").write_text(DECLARATION)
        broker = EmbeddedBroker()
        broker.create([name for _, name, _ in topic_table(PIPELINE)])
        producer = KafkaBroker(broker.servers).producer("test")
        for record in learned.broker.records(TOPIC):
            producer.emit(TOPIC, record.value() or b"", record.key(), partition=0)
        producer.commit({}, None)
        producer.close()
        set_keys(monkeypatch, KEY)

        def invoke(*arguments: str) -> str:
            where = ["--brokers", broker.servers, "--store-url", learned.store.url]
            return CliRunner().invoke(
                cli, ["models", "prune", str(tmp_path / "declared.py"), *arguments, *where], catch_exceptions=False
            ).stdout  # fmt: skip

        return invoke

    @pytest.mark.slow
    def test_all_of_it(self, run: Any, learned: Learned, monkeypatch: pytest.MonkeyPatch) -> None:
        assert "would prune 10 artifacts" in run("--keep", "25", "--dry-run")
        assert learned.held("linear") == ALL
        assert "pruned 0 artifacts" in run("--keep", "25", "--older-than", "1d")
        monkeypatch.setattr(command, "versions_to_keep", lambda *_: {("linear", 4)})
        told = json.loads(run("--keep", "25", "--json"))
        assert (told["pruned"], len(told["artifacts"])) == (True, 9)
        assert learned.held("linear") == [4, *ALL[-25:]]
        assert learned.held("slow") == ALL[-25:]
        with pytest.raises(SettingsError, match=r"--keep 19: expected at least 20"):
            run("--keep", "19")
        with pytest.raises(SettingsError, match=r"--older-than: 'soon' is not a duration"):
            run("--keep", "20", "--older-than", "soon")
        monkeypatch.delenv("TIDEMILL_VERIFY_KEYS")
        with pytest.raises(SettingsError, match="verify_keys"):
            run("--keep", "20")
