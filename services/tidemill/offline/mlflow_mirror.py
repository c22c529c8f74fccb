"""The mirror copies versions to MLflow, for tools that read models from it. The log stays the registry.

reads   <pipeline>.models, the artifact store
writes  MLflow: a run of each model (its metrics over versions), a registered model `<pipeline>.<model>` with a version
        for each of ours, the aliases `champion` and `challenger`; never back
twice   a version is known by its tag, so it is copied once; only one mirror may run at a time
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

# Else MLflow reports over the network what is done, to its makers.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import mlflow
import river
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema

import tidemill
from tidemill.declare.pipeline import Pipeline
from tidemill.errors import ArtifactError, StoreError
from tidemill.registry import pyfunc
from tidemill.registry.latest import models_partition
from tidemill.registry.manifests import Manifest, Registry
from tidemill.registry.signing import Chains
from tidemill.registry.versions import Version
from tidemill.stream.api import Broker

#: Tags that mark our versions and runs in MLflow.
VERSION, SHA256, DECLARATION = "tidemill.version", "tidemill.sha256", "tidemill.declaration"
#: Most versions in one answer of MLflow.
PAGE_VERSIONS = 500


class Mirror:
    """Copies versions of a pipeline's models to the MLflow at `uri`. Raises StoreError if that is away or refuses."""

    def __init__(self, pipeline: Pipeline, registry: Registry, uri: str) -> None:
        self.pipeline, self.registry, self.uri = pipeline, registry, uri
        self.chains = Chains(registry.codec)
        self.counts: Counter[str] = Counter()
        self._runs: dict[tuple[str, str], str] = {}
        with self._mlflow_errors():
            self.client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            experiment = self.client.get_experiment_by_name(pipeline.name)
            self._experiment = experiment.experiment_id if experiment else self.client.create_experiment(pipeline.name)
            self._known = {model: self._versions(self.name(model)) for model in pipeline.model_names}

    @contextlib.contextmanager
    def _mlflow_errors(self) -> Iterator[None]:
        try:
            yield
        except (MlflowException, OSError) as error:
            raise StoreError(f"MLflow at {self.uri}: {' '.join(str(error).split())[:400]}") from error

    def name(self, model: str) -> str:
        """Return the name that a model is registered under."""
        return f"{self.pipeline.name}.{model}"

    def _versions(self, name: str) -> dict[int, str]:
        """Return MLflow's versions of one registered model, by ours."""
        versions: dict[int, str] = {}
        token = None
        while True:
            page = self.client.search_model_versions(f"name = '{name}'", max_results=PAGE_VERSIONS, page_token=token)
            versions |= {int(v.tags[VERSION]): str(v.version) for v in page if VERSION in v.tags}
            token = page.token
            if not token:
                return versions

    def catch_up(self, versions: Iterable[Version], last: int | None = None) -> None:
        """Copy versions that MLflow lacks, oldest first. `versions`: newest first; `last`: at most so many a model."""
        wanted: dict[tuple[str, int], Manifest] = {}
        counts: Counter[str] = Counter()
        for version in versions:
            manifest = version.manifest
            if manifest is None or version.refused or (manifest.model, manifest.version) in wanted:
                continue
            if last is None or counts[manifest.model] < last:
                wanted[manifest.model, manifest.version] = manifest
                counts[manifest.model] += 1
        for manifest in reversed(wanted.values()):
            self.copy(manifest)

    def copy(self, manifest: Manifest) -> None:
        """Copy one version. One that MLflow has, or that no service would open, is counted and passed over."""
        known = self._known.get(manifest.model)
        if known is None:
            self.counts["of a model that is not declared"] += 1
            return
        if manifest.version in known:
            self.counts["there already"] += 1
            return
        try:
            self.registry.open(manifest)
            opened, artifact = self.registry.artifact(manifest)
        except ArtifactError:
            self.counts["that can't be opened"] += 1
            return
        with self._mlflow_errors():
            known[manifest.version] = self._copied(manifest, opened, artifact)
        self.counts["mirrored"] += 1

    def _copied(self, manifest: Manifest, opened: Manifest, artifact: bytes) -> str:
        """Write the run's part first and the version last, so that an interrupted copy is repeated."""
        run, place = self._run(manifest), f"versions/{manifest.version}"
        self.client.log_batch(run, self._metrics(manifest))
        with tempfile.TemporaryDirectory(prefix="tidemill-mirror-") as folder:
            self._save(Path(folder), opened, artifact)
            self.client.log_artifacts(run, f"{folder}/model", place)
        tags = {VERSION: f"{manifest.version}", SHA256: opened.sha256, DECLARATION: manifest.declaration}
        tags |= {
            f"tidemill.{name}": f"{getattr(manifest, name)}"
            for name in ("examples", "begin", "parent", "learned_until", "created_at", "river", "python")
        }
        source = f"{self.client.get_run(run).info.artifact_uri}/{place}"
        return str(self.client.create_model_version(self.name(manifest.model), source, run, tags=tags).version)

    def _metrics(self, manifest: Manifest) -> list[Metric]:
        """Return metrics with the version as their step, and its time, so that metrics sent twice are stored once."""
        values = {**manifest.metrics, "examples": float(manifest.examples), "learning_seconds": manifest.seconds}
        return [Metric(name, value, manifest.created_at, manifest.version) for name, value in values.items()]

    def _run(self, manifest: Manifest) -> str:
        """Return the run of a model; a new declaration of it is another run."""
        key = manifest.model, manifest.declaration
        if key not in self._runs:
            if not self._known[manifest.model]:
                self._register(self.name(manifest.model))
            tags = {"tidemill.model": manifest.model, DECLARATION: manifest.declaration}
            wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
            runs = self.client.search_runs([self._experiment], wanted, max_results=1)
            self._runs[key] = runs[0].info.run_id if runs else self._new_run(manifest, tags)
        return self._runs[key]

    def _register(self, name: str) -> None:
        if not self.client.search_registered_models(f"name = '{name}'", max_results=1):
            self.client.create_registered_model(name, {"tidemill.pipeline": self.pipeline.name})

    def _new_run(self, manifest: Manifest, tags: Mapping[str, str]) -> str:
        run: str = self.client.create_run(
            self._experiment, manifest.created_at, dict(tags), self.name(manifest.model)
        ).info.run_id
        parameters = {
            "task": self.pipeline.task,
            "hyperparameters": " ".join(manifest.hyperparameters.split())[:6000],
            "river": manifest.river,
            "python": manifest.python,
            "tidemill": manifest.tidemill,
            "vector_features": len(self.pipeline.vector),
        }
        for name, value in parameters.items():
            self.client.log_param(run, name, value)
        return run

    def _save(self, folder: Path, opened: Manifest, artifact: bytes) -> None:
        """Write a folder `model` that MLflow loads by our own loader."""
        data = folder / "data"
        data.mkdir()
        (data / pyfunc.MANIFEST).write_bytes(self.registry.encode(opened))
        (data / pyfunc.ARTIFACT).write_bytes(artifact)
        declared = {"task": self.pipeline.task, "vector": self.pipeline.vector_schema}
        (data / pyfunc.DECLARED).write_text(json.dumps(declared))
        kinds = {"number": "double", "category": "string", "flag": "boolean"}
        inputs = [ColSpec(kinds[kind], name, required=False) for name, kind in self.pipeline.vector.items()]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*An input example was not provided")  # there are golden vectors
            mlflow.pyfunc.save_model(
                f"{folder}/model",
                loader_module="tidemill.registry.pyfunc",
                data_path=str(data),
                signature=ModelSignature(inputs=Schema(inputs)),
                pip_requirements=[f"tidemill=={tidemill.__version__}", f"river=={river.__version__}"],
            )

    def name_roles(self, champion: str) -> None:
        """Point the alias `champion` to the champion's newest version, and `challenger` to that of each challenger."""
        with self._mlflow_errors():
            for model, known in self._known.items():
                if not known:
                    continue
                name, newest = self.name(model), known[max(known)]
                aliases = self.client.get_registered_model(name).aliases
                is_challenger = model != champion and self.pipeline.role(model) != "baseline"
                own = {"champion": model == champion, "challenger": is_challenger}
                for alias, is_own in own.items():
                    if is_own and str(aliases.get(alias)) != newest:
                        self.client.set_registered_model_alias(name, alias, newest)
                    elif not is_own and alias in aliases:
                        self.client.delete_registered_model_alias(name, alias)

    def as_text(self) -> str:
        """Return what was done, in words."""
        left = "".join(f"; {count:,} {what}" for what, count in sorted(self.counts.items()) if what != "mirrored")
        return f"mirrored {self.counts['mirrored']:,} versions to {self.uri}{left}"

    def follow(
        self,
        broker: Broker,
        offset: int,
        champion: Callable[[], str],
        report: Callable[[str], None],
        rounds: int | None = None,
    ) -> None:
        """Copy every new version, from an offset of the models topic on; for ever, or so many rounds."""
        follower = broker.follow(models_partition(self.registry), offset)
        try:
            while rounds is None or rounds > 0:
                rounds = None if rounds is None else rounds - 1
                manifests = [self.chains.take(record) for record in follower.poll(100, 1.0)]
                for manifest in filter(None, manifests):
                    self.copy(manifest)
                    report(f"{self.name(manifest.model)} version {manifest.version}")
                self.name_roles(champion())
        finally:
            follower.close()
