"""The doctor on what services trust: schemas in a registry, versions and their artifacts, keys, files, tokens."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import small
from click.testing import CliRunner
from registry_server import RegistryServer

from tidemill import settings
from tidemill.cli.doctor import doctor
from tidemill.encoding.schema_registry import SchemaRegistry
from tidemill.keys import Keyring, make_keys
from tidemill.models.fold import Fold
from tidemill.registry.decisions import GATE, Decision, ModelRef, decisions
from tidemill.registry.manifests import Manifest, Registry
from tidemill.registry.signing import Chains
from tidemill.registry.store import ArtifactStore
from tidemill.runtime.doctor import Finding
from tidemill.runtime.doctor_trust import MIN_KEY_DAYS, examine_schemas, examine_trust
from tidemill.runtime.run import topic_table
from tidemill.stream.memory import MemoryBroker
from tidemill.wire import topics

pytestmark = pytest.mark.slow

PIPELINE = small.make()


class World:
    """A pipeline's topics, keys and store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        make_keys(folder / "keys")
        self.chosen = settings.load(
            signing_key=str(folder / "keys"),
            verify_keys=str(folder / "keys/public/verify.json"),
            store_url=str(folder / "store"),
        )
        self.broker = MemoryBroker({name: partitions for _, name, partitions in topic_table(PIPELINE)})
        self.registry = Registry(PIPELINE, ArtifactStore(str(folder / "store")), self.chosen.keyring("learner"))

    def publish(self, model: str) -> Manifest:
        fold = Fold(PIPELINE, model)
        fold.learn(small.example(PIPELINE, "e", 1.0, distance=3.0), 0)  # type: ignore[arg-type]
        manifest = self.registry.publish(model, fold.snapshot(), ())
        self.broker.append(topics.MODELS.name("small"), self.registry.encode(manifest), model.encode())
        return manifest

    def serve(self, target: str) -> None:
        codec = decisions(PIPELINE, self.chosen.keyring("gate"))
        ref = ModelRef.of(target)
        made = Decision(
            "d", "pinned", "ann", "so", 1, 1, 1, 1, "c", ref, ref, ref, ModelRef("", 0), True, "", "", 0.0, (), {}
        )
        self.broker.append(topics.PROMOTIONS.name("small"), Chains(codec).sign(made, GATE), b"d")

    def findings(self) -> dict[str, Finding]:
        return {one.what: one for one in examine_trust(PIPELINE, self.broker, self.chosen)}

    def bad(self) -> dict[str, Finding]:
        return {what: one for what, one in self.findings().items() if one.level != "ok"}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.chdir(tmp_path)
    return World(tmp_path)


def test_where_all_is_well_each_is_named_and_nothing_is_wrong(world: World) -> None:
    version = world.publish("linear").version
    assert world.bad() == {}
    assert {f"model linear: version {version}", "model slow"} <= world.findings().keys()


def test_a_version_whose_artifact_is_gone_is_wrong_with_what_makes_it_again(world: World) -> None:
    version = world.publish("linear").version
    shutil.rmtree(world.folder / "store")
    finding = world.bad()[f"model linear: version {version}"]
    assert finding.level == "wrong"
    assert "tidemill models rebuild small" in finding.fix


@pytest.mark.parametrize("target", ["slow@7", "linear@99"])
def test_a_serving_version_that_does_not_exist_is_wrong(world: World, target: str) -> None:
    world.publish("linear")
    world.serve(target)
    finding = world.bad()[f"serving version {target}"]
    assert (finding.level, finding.value) == ("wrong", "missing")
    assert "tidemill models promote small" in finding.fix


def test_manifests_that_no_key_of_ours_has_signed_are_wrong(world: World) -> None:
    other = Registry(PIPELINE, ArtifactStore(str(world.folder / "store")), Keyring.generate())
    manifest = other.publish("linear", Fold(PIPELINE, "linear").snapshot(), ())
    world.broker.append(topics.MODELS.name("small"), other.encode(manifest), b"linear")
    finding = world.bad()["model linear"]
    assert finding.level == "wrong"
    assert "models reset" in finding.fix


def test_versions_without_keys_are_not_examined_and_that_is_said(world: World) -> None:
    world.publish("linear")
    world.chosen = settings.load(store_url=str(world.folder / "store"), verify_keys=str(world.folder / "none.json"))
    assert "not examined" in world.bad()["versions"].value
    assert "TIDEMILL_VERIFY_KEYS" in world.bad()["versions"].fix


def test_a_private_key_that_others_may_read_and_public_ones_that_they_may_write_are_warnings(world: World) -> None:
    private, public = world.folder / "keys/gate/gate.key", world.folder / "keys/public/verify.json"
    (world.folder / ".env").write_text("TIDEMILL_BROKERS=k:1\n")
    for path, mode in ((private, 0o640), (public, 0o666), (world.folder / ".env", 0o644)):
        path.chmod(mode)
    found = {what: one.fix for what, one in world.bad().items()}
    assert found == {
        f"private key {private}": f"chmod go-rwx {private}",
        f"public keys {public}": f"chmod go-w {public}",
        "settings .env": "chmod go-rwx .env",
    }


@pytest.mark.parametrize(("days", "level"), [(-1, "wrong"), (MIN_KEY_DAYS - 1, "warning"), (MIN_KEY_DAYS + 1, "ok")])
def test_a_key_that_ends_is_named_with_when_and_how_to_rotate_it(world: World, days: int, level: str) -> None:
    path = world.folder / "keys/public/verify.json"
    keys: list[dict[str, Any]] = json.loads(path.read_text())
    until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + days * 86_400))
    path.write_text(json.dumps([{**key, "until": until} if key.get("name") == "gate" else key for key in keys]))
    finding = world.findings()["key of gate"]
    assert (finding.level, finding.value[:18]) == (level, "counts until 20" + until[2:5])
    assert "tidemill keys rotate gate" in finding.fix


def test_who_holds_a_token_is_named_and_no_token_is_shown(world: World) -> None:
    token = "a-token-for-these-tests-0123456789"
    world.chosen = world.chosen.model_copy(update={"status_token": settings.load(status_token=token).status_token})
    assert world.findings()["tokens"].value == "admin (admin)"
    assert token not in str([one.as_dict() for one in world.findings().values()])


@pytest.fixture
def server() -> Iterator[RegistryServer]:
    server = RegistryServer()
    yield server
    server.stop()


def test_registered_schemas_are_judged_as_the_validator_does(server: RegistryServer) -> None:
    avro = PIPELINE.events.avro
    fewer = {**avro, "fields": [field for field in avro["fields"] if field["name"] != "distance"]}
    server.add("small.events-value", json.dumps(avro))
    found = list(examine_schemas(PIPELINE, SchemaRegistry(server.url)))
    assert [one.level for one in found] == ["ok"]
    server.add("small.events-value", json.dumps(fewer))
    server.add("small.labels-value", '"string"')
    found = list(examine_schemas(PIPELINE, SchemaRegistry(server.url)))
    assert [one.level for one in found] == ["ok", "wrong", "wrong"]
    assert "distance" in found[1].value
    assert "tidemill schema check small events" in found[1].fix
    server.add("small.events-value", json.dumps({**avro, "doc": "fixed"}))
    assert [one.level for one in examine_schemas(PIPELINE, SchemaRegistry(server.url))] == [
        "ok",
        "warning",
        "ok",
        "wrong",
    ]


def test_a_registry_that_is_away_is_wrong(server: RegistryServer) -> None:
    server.stop()
    found = list(examine_schemas(PIPELINE, SchemaRegistry(server.url)))
    assert {one.level for one in found} == {"wrong"}
    assert "no schema registry" in found[0].fix


@pytest.mark.parametrize(("missing", "looked_at"), [("access", True), ("windows", True), ("models", False)])
def test_a_topic_that_is_missing_hides_no_versions_that_are_elsewhere(
    monkeypatch: pytest.MonkeyPatch, missing: str, looked_at: bool
) -> None:
    """After an upgrade a new topic may be missing, and a version that can't be opened is wrong all the same."""
    brokers: list[Any] = []
    findings = [Finding("wrong", f"plain.{missing}", "missing", "1 partition", "create it")]
    monkeypatch.setattr("tidemill.runtime.run.broker_of", lambda _: "a broker")
    monkeypatch.setattr("tidemill.runtime.doctor.examine", lambda *_: list(findings))
    monkeypatch.setattr("tidemill.runtime.doctor.examine_settings", lambda *_: [])
    monkeypatch.setattr(
        "tidemill.runtime.doctor_trust.examine_trust", lambda _, broker, __: brokers.append(broker) or []
    )
    assert CliRunner().invoke(doctor, ["plain"]).exit_code == 1
    assert brokers == ["a broker" if looked_at else None]
