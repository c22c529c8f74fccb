"""What is mirrored to MLflow is there once, says what the manifest says, and scores as our registry's does, in another process too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import small
from click.testing import CliRunner
from river import compose, linear_model, optim, preprocessing
from signing_keys import KEY, SETTINGS, set_keys

from tidemill import Pipeline, category, flag, number
from tidemill.cli.main import cli
from tidemill.errors import ArtifactError, SettingsError, StoreError
from tidemill.keys import Keyring
from tidemill.limits import ARTIFACT_BYTES
from tidemill.models.fold import Fold
from tidemill.offline.mlflow_mirror import Mirror
from tidemill.registry import pyfunc, snapshots
from tidemill.registry.manifests import Manifest, Registry
from tidemill.registry.store import ArtifactStore
from tidemill.registry.versions import Versions
from tidemill.runtime.run import topic_table
from tidemill.stream.embedded import EmbeddedBroker
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.stream.memory import MemoryBroker
from tidemill.wire import topics
from tidemill.wire.records import Records, vector_to_x

pytestmark = pytest.mark.slow

MODELS = topics.MODELS.name("small")


def linear(rate: float) -> Any:
    categories = compose.SelectType(str) | preprocessing.OneHotEncoder()
    numbers = compose.SelectType(float) | preprocessing.StandardScaler()
    return (categories + numbers) | linear_model.LinearRegression(optim.SGD(rate))


PIPELINE: Pipeline = small.make(
    views=[], models={"linear": linear(0.01), "slow": linear(0.001)},
    request={"distance": number("distance"), "carrier": category("carrier"),
             "far": flag(lambda event: event["distance"] > 100)},
)  # fmt: skip
EXAMPLES = [
    small.example(
        PIPELINE, f"e{i}", (i * 7 % 13) - 6.0, i, far=i % 3 == 0,
        distance=None if i % 5 == 0 else float(i % 11) * 50, carrier=None if i % 7 == 0 else ("UA", "B6")[i % 2],
    )
    for i in range(40)
]  # fmt: skip


class Registered:
    """A registry with three models' versions at 10, 20, 30 examples."""

    def __init__(self, folder: Path) -> None:
        self.registry = Registry(PIPELINE, ArtifactStore(str(folder / "store")), KEY)
        self.broker = MemoryBroker({MODELS: 1})
        self.folds = {model: Fold(PIPELINE, model) for model in PIPELINE.model_names}
        for offset in range(30):
            self.learn(offset)
            if offset % 10 == 9:
                for model in self.folds:
                    self.publish(model)

    def learn(self, offset: int) -> None:
        for fold in self.folds.values():
            fold.learn(EXAMPLES[offset], offset)

    def publish(self, model: str) -> Manifest:
        fold = self.folds[model]
        manifest = self.registry.publish(model, fold.snapshot(), tuple(fold.vectors), parent=7, seconds=0.5)
        self.broker.append(MODELS, self.registry.encode(manifest), model.encode())
        return manifest

    def versions(self) -> Iterator[Any]:
        return Versions(PIPELINE, self.broker, self.registry).read()

    def find(self, model: str, version: int) -> Manifest:
        found, _ = Versions(PIPELINE, self.broker, self.registry).find(model, version)
        assert found.manifest
        return found.manifest


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # where MLflow keeps artifacts of a database without a server
        yield f"sqlite:///{folder}/mlflow.db"


@pytest.fixture(scope="module")
def mirrored(uri: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Registered, Mirror]:
    registered = Registered(tmp_path_factory.mktemp("registered"))
    mirror = Mirror(PIPELINE, registered.registry, uri)
    mirror.catch_up(registered.versions())
    mirror.name_roles(PIPELINE.champion)
    return registered, mirror


def of(mirror: Mirror, model: str) -> dict[int, Any]:
    found = mirror.client.search_model_versions(f"name = 'small.{model}'")
    return {int(version.tags["tidemill.version"]): version for version in found}


def test_every_version_is_there_with_what_its_manifest_says(mirrored: tuple[Registered, Mirror]) -> None:
    registered, mirror = mirrored
    for model in PIPELINE.model_names:
        found = of(mirror, model)
        assert sorted(found) == [10, 20, 30]
        for number_, version in found.items():
            manifest = registered.find(model, number_)
            assert version.tags["tidemill.sha256"] == manifest.sha256
            assert version.tags["tidemill.parent"] == "7"
            run = mirror.client.get_run(version.run_id)
            assert run.data.tags["tidemill.declaration"] == manifest.declaration
            assert run.data.params["hyperparameters"] == " ".join(manifest.hyperparameters.split())
            for name, value in manifest.metrics.items():
                history = {m.step: m.value for m in mirror.client.get_metric_history(version.run_id, name)}
                assert history[number_] == value


def test_the_champion_and_the_challenger_have_their_aliases(mirrored: tuple[Registered, Mirror]) -> None:
    _, mirror = mirrored

    def aliases() -> dict[str, dict[str, str]]:
        found = {}
        for model in PIPELINE.model_names:
            given = mirror.client.get_registered_model(f"small.{model}").aliases
            by_number = {str(v.version): str(n) for n, v in of(mirror, model).items()}
            found[model] = {alias: by_number[str(version)] for alias, version in given.items()}
        return found

    assert aliases() == {"linear": {"champion": "30"}, "slow": {"challenger": "30"}, "baseline": {}}
    mirror.name_roles("slow")
    assert aliases() == {"linear": {"challenger": "30"}, "slow": {"champion": "30"}, "baseline": {}}
    mirror.name_roles("linear")


def test_twice_is_once(mirrored: tuple[Registered, Mirror], uri: str) -> None:
    registered, mirror = mirrored
    metrics = {v.run_id: mirror.client.get_metric_history(v.run_id, "examples") for v in of(mirror, "linear").values()}
    again = Mirror(PIPELINE, registered.registry, uri)
    again.catch_up(registered.versions())
    assert again.counts == {"there already": 9}
    assert len(mirror.client.search_model_versions("name = 'small.linear'")) == 3
    assert len(metrics) == 1, "one run a model"
    # One that broke off before its version was registered is done again, and its metrics are not there twice.
    last = of(mirror, "linear")[30]
    mirror.client.delete_registered_model_alias("small.linear", "champion")
    mirror.client.delete_model_version("small.linear", last.version)
    again = Mirror(PIPELINE, registered.registry, uri)
    again.catch_up(registered.versions())
    again.name_roles("linear")
    assert again.counts == {"there already": 8, "mirrored": 1}
    assert sorted(of(mirror, "linear")) == [10, 20, 30]
    for run, history in metrics.items():
        now = mirror.client.get_metric_history(run, "examples")
        assert [(m.step, m.value) for m in now] == [(m.step, m.value) for m in history]


SCORING = """
import json, sys
import mlflow, pandas as pd
mlflow.set_tracking_uri(sys.argv[1]); mlflow.set_registry_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
rows = pd.DataFrame(json.load(sys.stdin))
print(json.dumps(model.predict(rows)["score"].tolist()))
"""


def scored(uri: str, model: str, rows: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **SETTINGS}
    return subprocess.run(
        [sys.executable, "-c", SCORING, uri, model], input=json.dumps(rows), capture_output=True, text=True, env=environment,
        check=False,
    )  # fmt: skip


def test_mlflow_in_another_process_scores_as_our_registry_does(mirrored: tuple[Registered, Mirror], uri: str) -> None:
    registered, _ = mirrored
    vectors = [example["prediction"]["features"]["vector"] for example in EXAMPLES]
    done = scored(uri, "models:/small.linear@champion", vectors)
    assert done.returncode == 0, done.stderr[-2000:]
    model = registered.registry.open(registered.find("linear", 30)).model
    ours = [PIPELINE.kind.predict(model, vector_to_x(vector))[0] for vector in vectors]
    assert json.loads(done.stdout.splitlines()[-1]) == ours
    assert len(set(ours)) > 20


def sign_again(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a mirrored manifest, as one who has the key could."""
    registry = Registry(PIPELINE, ArtifactStore("memory://none"), KEY)
    path = folder / pyfunc.MANIFEST
    fields = registry.records.manifest.decode(path.read_bytes())
    change(fields)
    path.write_bytes(registry.codec.sign(Manifest(**fields)))


class TestChecks:
    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        set_keys(monkeypatch, KEY)
        registered = Registered(tmp_path)
        manifest = registered.find("linear", 30)
        data = tmp_path / "data"
        data.mkdir()
        (data / pyfunc.MANIFEST).write_bytes(registered.registry.encode(manifest))
        (data / pyfunc.ARTIFACT).write_bytes(registered.registry.store.get(manifest.sha256))
        declared = {"task": PIPELINE.task, "vector": PIPELINE.vector_schema}
        (data / pyfunc.DECLARED).write_text(json.dumps(declared))
        assert pyfunc._load_pyfunc(str(data)).manifest["version"] == 30
        return data

    def test_flipped_bytes_are_refused_before_anything_is_opened(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def never(_: bytes) -> None:
            raise AssertionError("it was unpickled")

        monkeypatch.setattr(snapshots, "load", never)
        path = folder / pyfunc.ARTIFACT
        whole = path.read_bytes()
        for place in range(0, len(whole), 50):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(ArtifactError, match="damaged"):
                pyfunc._load_pyfunc(str(folder))
        path.unlink()
        with pytest.raises(ArtifactError, match="holds no mirrored version"):
            pyfunc._load_pyfunc(str(folder))

    def test_flipped_bytes_of_a_manifest_are_refused_where_there_is_a_key(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        set_keys(monkeypatch, KEY)
        path = folder / pyfunc.MANIFEST
        whole = path.read_bytes()
        for place in range(0, len(whole), 7):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(ArtifactError):
                pyfunc._load_pyfunc(str(folder))

    @pytest.mark.parametrize("name", [pyfunc.MANIFEST, pyfunc.ARTIFACT, pyfunc.DECLARED])
    def test_what_is_no_file_is_not_read(self, folder: Path, name: str) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(ArtifactError, match="is no file"):
            pyfunc._load_pyfunc(str(folder))

    def test_a_file_without_end_is_not_read(self, folder: Path) -> None:
        os.truncate(folder / pyfunc.ARTIFACT, ARTIFACT_BYTES.max + 1)
        with pytest.raises(ArtifactError, match="bytes where at most 1,000,000,000 are allowed"):
            pyfunc._load_pyfunc(str(folder))

    def test_another_key_is_refused(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        set_keys(monkeypatch, Keyring.generate())
        with pytest.raises(ArtifactError, match="is not in TIDEMILL_VERIFY_KEYS"):
            pyfunc._load_pyfunc(str(folder))

    def test_without_a_key_nothing_is_opened(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mark = tmp_path / "was_run"
        evil = f"cos\nmkdir\n(V{mark}\ntR.".encode()
        codec = Records(PIPELINE).manifest
        manifest = codec.decode((folder / pyfunc.MANIFEST).read_bytes())
        monkeypatch.delenv("TIDEMILL_VERIFY_KEYS")
        with pytest.raises(ArtifactError, match="TIDEMILL_VERIFY_KEYS is not set"):
            pyfunc._load_pyfunc(str(folder))
        (folder / pyfunc.ARTIFACT).write_bytes(evil)
        (folder / pyfunc.MANIFEST).write_bytes(codec.encode({**manifest, "sha256": pyfunc.sha256(evil)}))
        with pytest.raises(ArtifactError, match="TIDEMILL_VERIFY_KEYS is not set"):
            pyfunc._load_pyfunc(str(folder))
        set_keys(monkeypatch, KEY)
        with pytest.raises(ArtifactError, match="wrong signature"):
            pyfunc._load_pyfunc(str(folder))
        assert not mark.exists()

    def test_with_the_key_a_forged_artifact_runs_nothing_either(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mark = tmp_path / "was_run"
        evil = f"cos\nmkdir\n(V{mark}\ntR.".encode()
        (folder / pyfunc.ARTIFACT).write_bytes(evil)
        read = pyfunc._verified
        monkeypatch.setattr(pyfunc, "_verified", lambda *of: read(*of) | {"sha256": pyfunc.sha256(evil)})
        with pytest.raises(ArtifactError, match=r"may not contain os\.mkdir"):
            pyfunc._load_pyfunc(str(folder))
        assert not mark.exists()

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"river": "0.1"}, "made by River 0.1"),
            ({"schemas": {"vector": 5}}, "learned on another vector"),
        ],
    )
    def test_another_river_and_another_vector_are_refused(
        self, folder: Path, change: dict[str, Any], words: str
    ) -> None:
        sign_again(folder, lambda manifest: manifest.update(change))
        with pytest.raises(ArtifactError, match=words):
            pyfunc._load_pyfunc(str(folder))

    def test_other_scores_are_refused(self, folder: Path) -> None:
        def lie(manifest: dict[str, Any]) -> None:
            manifest["golden"][3]["score"] += 1e-9

        sign_again(folder, lie)
        with pytest.raises(ArtifactError, match="gives golden vector 3 the score"):
            pyfunc._load_pyfunc(str(folder))


def test_what_comes_is_followed_and_what_is_pruned_is_counted(uri: str, tmp_path: Path) -> None:
    registered = Registered(tmp_path)
    registered.registry.store.delete(registered.find("slow", 10).sha256)
    mirror = Mirror(PIPELINE, registered.registry, uri.replace("mlflow.db", "followed.db"))
    mirror.catch_up(registered.versions(), last=2)
    mirror.catch_up(registered.versions())
    assert mirror.counts == {"mirrored": 8, "there already": 6, "that can't be opened": 1}
    end = len(registered.broker.records(MODELS))
    registered.learn(30)
    registered.publish("linear")
    said: list[str] = []
    mirror.follow(registered.broker, end, lambda: "linear", said.append, rounds=2)
    assert said == ["small.linear version 31"]
    champion = mirror.client.get_model_version_by_alias("small.linear", "champion")
    assert champion.tags["tidemill.version"] == "31"


def test_an_mlflow_that_is_not_there_is_said_in_one_sentence(tmp_path: Path) -> None:
    registry = Registry(PIPELINE, ArtifactStore(str(tmp_path)), KEY)
    with pytest.raises(StoreError, match="MLflow at nowhere://x: ") as caught:
        Mirror(PIPELINE, registry, "nowhere://x")
    assert "\n" not in str(caught.value)


def test_the_command_asks_where_mlflow_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(SettingsError, match="no MLflow server: give --tracking-uri or set MLFLOW_TRACKING_URI"):
        CliRunner().invoke(cli, ["models", "mirror", "flights"], catch_exceptions=False)


def test_the_command_mirrors_what_the_broker_holds(tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "declared.py").write_text("from test_mlflow_mirror import PIPELINE as pipeline\n")
    registered = Registered(tmp_path)
    broker = EmbeddedBroker()
    broker.create([name for _, name, _ in topic_table(PIPELINE)])
    producer = KafkaBroker(broker.servers).producer("test")
    for record in registered.broker.records(MODELS):
        producer.emit(MODELS, record.value() or b"", record.key(), partition=0)
    producer.commit({}, None)
    producer.close()
    set_keys(monkeypatch, KEY)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", there := uri.replace("mlflow.db", "commanded.db"))
    where = ["--brokers", broker.servers, "--store-url", registered.registry.store.url]
    for words in (f"mirrored 6 versions to {there}\n", f"mirrored 0 versions to {there}; 6 there already\n"):
        command = ["models", "mirror", str(tmp_path / "declared.py"), "--last", "2", *where]
        assert CliRunner().invoke(cli, command, catch_exceptions=False).stdout == words
