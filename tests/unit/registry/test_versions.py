"""Versions for people: each is told with what is wrong with it, whoever wrote it, and no artifact is opened for that."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from signing_keys import KEY, forged, set_keys

from tidemill import load
from tidemill.cli.main import cli
from tidemill.cli.text.models import version_text, versions_text
from tidemill.errors import SettingsError
from tidemill.keys import Keyring
from tidemill.models.fold import Fold
from tidemill.registry import snapshots
from tidemill.registry.manifests import Manifest, Registry
from tidemill.registry.store import ArtifactStore, sha256
from tidemill.registry.versions import MAX_RECORDS_HELD, Versions
from tidemill.runtime.run import topic_table
from tidemill.stream.embedded import EmbeddedBroker
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.stream.memory import MemoryBroker
from tidemill.wire import topics

pytestmark = pytest.mark.slow

PIPELINE = load("flights")
TOPIC = topics.MODELS.name("flights")


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "store"))


@pytest.fixture
def registry(store: ArtifactStore) -> Registry:
    return Registry(PIPELINE, store, KEY)


def made(registry: Registry, model: str = "logreg", version: int = 0, **changes: Any) -> Manifest:
    """Return the next manifest of a model, which says `changes`, signed."""
    manifest = Registry(PIPELINE, registry.store, KEY).publish(model, Fold(PIPELINE, model).snapshot(), ())
    return registry.sign(dataclasses.replace(manifest, version=version, examples=version, **changes))


def appended(
    registry: Registry, broker: MemoryBroker | None = None, *manifests: Manifest, key: str = ""
) -> MemoryBroker:
    broker = broker or MemoryBroker({TOPIC: 1})
    for manifest in manifests:
        broker.append(TOPIC, registry.encode(manifest), (key or manifest.model).encode())
    return broker


def usual(registry: Registry) -> MemoryBroker:
    """Return three models' versions, among them what no service takes."""
    broker = appended(
        registry, None, *(made(registry, model, version) for version in (5, 10) for model in PIPELINE.model_names)
    )
    appended(registry, broker, forged(made(registry, "slow", 15)))
    appended(registry, broker, made(registry, "logreg", 16), key="baseline")
    appended(registry, broker, made(Registry(load("plain"), registry.store, KEY), "logreg", 17, pipeline="plain"))
    appended(registry, broker, made(registry, "old", 18))
    broker.append(TOPIC, b"no manifest", b"slow")
    return broker


class TestVersions:
    def test_the_newest_come_first_and_each_models_newest_sound_one_is_marked(self, registry: Registry) -> None:
        found = list(Versions(PIPELINE, usual(registry), registry).read())
        assert [version.offset for version in found] == list(range(10, -1, -1))
        marked = {(v.manifest.model, v.manifest.version) for v in found if v.is_newest}
        assert marked == {("logreg", 10), ("slow", 10), ("baseline", 10), ("old", 18)}
        assert [v.refused for v in found if v.refused] == [
            "a manifest can't be decoded: Reject: header 6e6f206d61 where "
            f"{registry.records.manifest.header.hex()} (tidemill.Manifest) was expected",
            "it is of pipeline 'plain' where 'flights' is read",
            "it is of 'logreg', and under the key 'baseline'",
            f"it has a wrong signature by key {KEY.signs_with}: it is damaged or forged",
        ]  # fmt: skip

    def test_without_a_key_no_signature_is_called_right_or_wrong(
        self, registry: Registry, store: ArtifactStore
    ) -> None:
        there = Versions(PIPELINE, usual(registry), None)
        assert not [v for v in there.read("slow") if "wrong signature" in v.refused]
        found, _ = there.find("slow")
        assert found.manifest.version == 15
        assert "not checked: TIDEMILL_VERIFY_KEYS is not set" in version_text(there, store, found, 0)
        assert there.as_dict(found, store)["signature"] == "not checked"

    def test_another_key_is_a_wrong_signature(self, registry: Registry, store: ArtifactStore) -> None:
        other = Registry(PIPELINE, store, Keyring.generate())
        found = list(Versions(PIPELINE, appended(registry, None, made(registry)), other).read())
        assert [(v.refused, v.is_newest) for v in found] == [
            (f"it is signed with key {KEY.signs_with!r}, which is not in TIDEMILL_VERIFY_KEYS", False)
        ]

    def test_one_is_found_by_its_version_and_a_sound_one_before_a_forged_one(self, registry: Registry) -> None:
        broker = usual(registry)
        appended(registry, broker, forged(made(registry, "slow", 5)))
        there = Versions(PIPELINE, broker, registry)
        found, refused = there.find("slow")
        assert (found.manifest.version, refused) == (10, 3)
        found, refused = there.find("slow", 5)
        assert (found.offset, found.refused, refused) == (1, "", 3)
        found, refused = there.find("slow", 15)
        assert ("wrong signature" in found.refused, refused) == (True, 0)

    @pytest.mark.parametrize(
        ("model", "version", "words"),
        [
            ("logreg", 7, r"model 'logreg' has no version 7 in flights.models: its newest are 10, 5; `tidemill models list flights"),
            ("nobody", None, r"no version of model 'nobody' in flights.models: the pipeline declares logreg, slow, baseline"),
            ("nobody", 7, r"no version of model 'nobody'"),
        ],
    )  # fmt: skip
    def test_what_is_not_there_is_said(self, registry: Registry, model: str, version: int | None, words: str) -> None:
        with pytest.raises(SettingsError, match=words):
            Versions(PIPELINE, usual(registry), registry).find(model, version)

    def test_records_that_are_all_no_manifests_are_said_to_be(self, registry: Registry) -> None:
        broker = MemoryBroker({TOPIC: 1})
        broker.append(TOPIC, b"", b"slow")
        with pytest.raises(SettingsError, match=r"what flights\.models holds of model 'slow' is no manifest: "):
            Versions(PIPELINE, broker, registry).find("slow")

    def test_however_many_there_are_it_stays_small(self, registry: Registry) -> None:
        manifest = made(registry)
        data, broker = registry.encode(manifest), MemoryBroker({TOPIC: 1})
        for _ in range(3 * MAX_RECORDS_HELD):
            broker.append(TOPIC, data, b"logreg")
        held: list[int] = []
        whole = broker.read
        broker.read = lambda ranges: held.append(max(e - b for b, e in ranges.values())) or whole(ranges)
        tracemalloc.start()
        try:
            assert sum(1 for _ in Versions(PIPELINE, broker, None).read("nobody")) == 0
            assert tracemalloc.get_traced_memory()[1] < 2_000_000
        finally:
            tracemalloc.stop()
        assert max(held) == MAX_RECORDS_HELD
        next(Versions(PIPELINE, broker, registry).read())
        assert held[-1] < MAX_RECORDS_HELD, "the newest are read without the rest"


class TestTold:
    def test_the_artifact_there_damaged_or_gone_and_never_opened(
        self, registry: Registry, store: ArtifactStore, monkeypatch
    ) -> None:
        def never(_: bytes) -> None:
            raise AssertionError("it was unpickled")

        manifest = made(registry, "slow", 3)
        there = Versions(PIPELINE, appended(registry, None, manifest), registry)
        monkeypatch.setattr(snapshots, "load", never)
        found, _ = there.find("slow")
        path = Path(store.url) / store.path(manifest.sha256)
        whole = path.read_bytes()
        assert "in the store, and its hash is right" in version_text(there, store, found, 0)
        path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        assert store.state(manifest.sha256) == "corrupted"
        assert "CORRUPTED: its bytes have another hash" in version_text(there, store, found, 0)
        assert there.as_dict(found, store)["artifact"] == "stored", "a list does not read artifacts"
        path.unlink()
        shown = "".join(version_text(there, store, found, 0).split())  # a long path is folded
        assert "".join(f"missing: nothing of that name is in {store.url}".split()) in shown
        assert there.as_dict(found, store)["artifact"] == "missing"

    def test_a_forged_manifest_is_told_and_obeyed_in_nothing(self, registry: Registry, store: ArtifactStore) -> None:
        bad = made(registry, "slow", 3, sha256="../../etc/passwd", hyperparameters="[red]\x1b[31mx")
        bad = dataclasses.replace(bad, signature=dataclasses.replace(bad.signature, value="\x1b[2J", key_id="\x1b[2J"))
        there = Versions(PIPELINE, appended(registry, None, bad), registry)
        found, _ = there.find("slow")
        text = version_text(there, store, found, 0) + versions_text(there, store, [found])
        assert r"REFUSED: it is signed with key '\x1b[2J', which is not in TIDEMILL_VERIFY_KEYS" in text
        assert "refused: it is signed with key" in " ".join(text.split())
        assert r"[red]\x1b[31mx" in text
        assert "\x1b" not in text
        assert "missing" in text

    def test_the_declaration_of_then_and_of_now(self, registry: Registry, store: ArtifactStore) -> None:
        broker = appended(
            registry, None, made(registry, version=1, declaration="0" * 64, river="0.1"), made(registry, "slow", 2)
        )
        there = Versions(PIPELINE, broker, registry)
        old, new = there.find("logreg")[0], there.find("slow")[0]
        assert "NOT as declared now: another model, vector or task" in version_text(there, store, old, 0)
        assert "0.1, this is 0.26.1: no service loads it" in version_text(there, store, old, 0)
        assert "another declaration" in versions_text(there, store, [old]).replace("\n", " ")
        assert "as declared now" in version_text(there, store, new, 0)
        assert [there.as_dict(one, store)["declared"] for one in (old, new)] == [False, True]

    def test_roles_are_as_declared(self, registry: Registry, store: ArtifactStore) -> None:
        there = Versions(PIPELINE, usual(registry), registry)
        roles = {v.key: there.as_dict(v, store)["role"] for v in there.read() if v.is_newest}
        assert roles == {"logreg": "champion", "slow": "challenger", "baseline": "baseline", "old": "not declared"}


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> tuple[EmbeddedBroker, ArtifactStore]:
    store = ArtifactStore(str(tmp_path_factory.mktemp("store")))
    registry, broker = Registry(PIPELINE, store, KEY), EmbeddedBroker()
    broker.create([name for _, name, _ in topic_table(PIPELINE)])
    producer = KafkaBroker(broker.servers).producer("test")
    for version in (5, 10):
        for model in PIPELINE.model_names:
            manifest = made(registry, model, version, metrics={"ROCAUC": 0.75, "LogLoss": 0.5})
            producer.emit(TOPIC, registry.encode(manifest), model.encode(), partition=0)
    producer.emit(TOPIC, registry.encode(forged(made(registry, "slow", 15))), b"slow", partition=0)
    producer.emit(TOPIC, b"junk", b"slow", partition=0)
    producer.commit({}, None)
    producer.close()
    return broker, store


class TestCommands:
    @pytest.fixture(autouse=True)
    def _key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        set_keys(monkeypatch, KEY)

    def run(self, embedded: tuple[EmbeddedBroker, ArtifactStore], name: str, *arguments: str, store: str = "") -> str:
        where = ["--brokers", embedded[0].servers, "--store-url", store or embedded[1].url]
        return CliRunner().invoke(cli, ["models", name, "flights", *arguments, *where], catch_exceptions=False).stdout

    @pytest.mark.slow
    def test_list(self, embedded) -> None:
        listed = [json.loads(line) for line in self.run(embedded, "list", "--json").splitlines()]
        assert len(listed) == 8
        assert (listed[0]["model"], listed[0]["newest"]) == ("slow", False)
        assert set(listed[0]) == {"offset", "model", "refused", "newest"}
        assert "wrong signature" in listed[1]["refused"]
        assert [one["model"] for one in listed if one["newest"]] == ["baseline", "slow", "logreg"]
        whole = {f.name for f in dataclasses.fields(Manifest)} - {"golden", "signature"}
        assert set(listed[2]) == whole | set(listed[0]) | {"role", "declared", "artifact", "signature"}
        assert listed[2]["metrics"] == {"ROCAUC": 0.75, "LogLoss": 0.5}
        of_one = [json.loads(line) for line in self.run(embedded, "list", "--model", "logreg", "--json").splitlines()]
        assert [one["version"] for one in of_one] == [10, 5]
        text = self.run(embedded, "list", "--limit", "3")
        for words in ("refused: it has a", "0.7500", "newest", "signatures checked", f"artifacts in {embedded[1].url}"):
            assert words in text
        assert "logreg" not in text
        with pytest.raises(
            SettingsError, match=r"no version of model 'fast' in flights\.models: the pipeline declares logreg"
        ):
            self.run(embedded, "list", "--model", "fast")

    @pytest.mark.slow
    def test_show(self, embedded, monkeypatch: pytest.MonkeyPatch) -> None:
        text = self.run(embedded, "show", "slow")
        for words in ("slow@10 of flights.models, offset 4: newest", "challenger", "valid", "LogisticRegression", "0.26.1",
                      "ROCAUC          0.750000", PIPELINE.declaration_hash("slow"), "in the store, and its hash is right",
                      "that no service takes: 2; `models list --model` shows why", "flights.examples[0..10)"):  # fmt: skip
            assert words in text
        assert "slow@5 of flights.models, offset 1\n" in self.run(embedded, "show", "slow@5")
        assert "REFUSED: it has a wrong" in self.run(embedded, "show", "slow@15")
        monkeypatch.delenv("TIDEMILL_VERIFY_KEYS")
        assert "not checked" in self.run(embedded, "show", "slow@15")
        for named in ("slow@", "slow@x", "slow@-1"):
            with pytest.raises(
                SettingsError, match=f"'{named}' is not a version: expected MODEL or MODEL@VERSION, as in slow@"
            ):
                self.run(embedded, "show", named)

    @pytest.mark.slow
    def test_a_store_that_is_not_there_is_not_made(self, embedded, tmp_path: Path) -> None:
        assert "missing" in self.run(embedded, "show", "slow", store=str(tmp_path / "nowhere"))
        assert list(tmp_path.iterdir()) == []


def test_a_store_tells_what_it_holds(store: ArtifactStore) -> None:
    digest = store.put(b"bytes")
    assert (store.holds(digest), store.state(digest)) == (True, "stored")
    for other in (sha256(b"other"), "../../etc/passwd", ""):
        assert (store.holds(other), store.state(other)) == (False, "missing")


def test_the_champion_is_who_serves_and_not_who_was_declared(registry: Registry, store: ArtifactStore) -> None:
    broker = appended(registry, None, made(registry, "slow", 3), made(registry, "logreg", 5))
    for champion, roles in (("", ["champion", "challenger"]), ("slow", ["challenger", "champion"])):
        there = Versions(PIPELINE, broker, registry, champion)
        assert [there.as_dict(version, store)["role"] for version in there.read()] == roles
