"""Manifests: what one version of a model is, signed; and the way from a manifest back to the model."""

from __future__ import annotations

import dataclasses
import hmac
import math
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import river

import tidemill
from tidemill.errors import ArtifactError
from tidemill.pipeline import Pipeline
from tidemill.records import Records, vector_to_x
from tidemill.registry import snapshots
from tidemill.registry.store import ArtifactStore


@dataclass(frozen=True)
class Manifest:
    """One version of a model; the fields are those of schemas/tidemill/manifest.v1.avsc."""

    pipeline: str
    model: str
    version: int
    examples: int
    uri: str
    sha256: str
    declaration: str
    hyperparameters: str
    tidemill: str
    river: str
    python: str
    metrics: Mapping[str, float]
    golden: Sequence[Mapping[str, Any]]
    learned_until: int
    created_at: int
    signature: str = ""


@dataclass(frozen=True)
class Snapshot:
    """What is saved of a learner: enough to serve, and to go on learning as if it had never stopped.

    `shares`: the sources of the last examples, where the pipeline limits a source's share.
    """

    model: Any
    metrics: list[Any]
    examples: int
    version: int
    learned_until: int
    shares: Sequence[str | None] | None = None

    def saved(self) -> dict[str, Any]:
        """Return what goes into an artifact: `shares` only where there are any, as who knows nothing of them reads it too."""
        found = dict(self.__dict__)
        if self.shares is None:
            del found["shares"]
        return found


def parse(records: Records, data: bytes) -> Manifest:
    """Return the manifest in `data`, whoever signed it. Raises ArtifactError for what is none."""
    try:
        manifest = Manifest(**records.manifest.decode(data))
        again = records.manifest.encode(dataclasses.asdict(manifest))
    except Exception as error:  # forged bytes may make the decoder raise anything
        raise ArtifactError(f"a manifest can't be decoded: {type(error).__name__}: {error}") from error
    if again != data:
        raise ArtifactError("a manifest can't be decoded: its bytes are not as any learner writes them")
    return manifest


class Registry:
    """Makes and opens versions of one pipeline's models.

    Parameters
    ----------
    key
        The secret that manifests are signed with; the same in learner and scorer.
    """

    def __init__(self, pipeline: Pipeline, store: ArtifactStore, key: bytes) -> None:
        self.pipeline = pipeline
        self.records = Records(pipeline)
        self.store = store
        self.key = key

    def _signature(self, manifest: Manifest) -> str:
        unsigned = dataclasses.asdict(dataclasses.replace(manifest, signature=""))
        return hmac.new(self.key, self.records.manifest.encode(unsigned), "sha256").hexdigest()

    def is_signed(self, manifest: Manifest) -> bool:
        """Whether the manifest's signature is by this registry's key, over just what it says."""
        return hmac.compare_digest(manifest.signature.encode(), self._signature(manifest).encode())

    def publish(self, name: str, snapshot: Snapshot, vectors: Sequence[Mapping[str, Any]]) -> Manifest:
        """Store a snapshot and return its signed manifest; `vectors` become the golden ones.

        Raises ScoreError where the model gives one of them what is no score of the task, ArtifactError where it fails or can't be saved.
        """
        what = f"model {name!r} version {snapshot.version}"
        golden = [
            {
                "vector": self.records.vector.body(vector),
                "score": self._score(what, snapshot.model, vector_to_x(vector)),
            }
            for vector in vectors
        ]
        values = (
            {type(metric).__name__: float(metric.get()) for metric in snapshot.metrics} if snapshot.examples else {}
        )
        digest = self.store.put(snapshots.dump(snapshot.saved()))
        manifest = Manifest(
            pipeline=self.pipeline.name,
            model=name,
            version=snapshot.version,
            examples=snapshot.examples,
            uri=self.store.path(digest),
            sha256=digest,
            declaration=self.pipeline.declaration_hash(name),
            hyperparameters=self.pipeline.printed(name),
            tidemill=tidemill.__version__,
            river=river.__version__,
            python=platform.python_version(),
            metrics={key: value for key, value in values.items() if math.isfinite(value)},
            golden=golden,
            learned_until=snapshot.learned_until,
            created_at=int(time.time() * 1000),
        )
        return dataclasses.replace(manifest, signature=self._signature(manifest))

    def _score(self, what: str, model: Any, x: Mapping[str, Any]) -> float:
        """Return the score that a version gives a golden vector; raises what `Task.ask` does, with the version's name."""
        try:
            return self.pipeline.kind.ask(model, x)
        except ArtifactError as error:
            raise type(error)(f"{what}: {error}") from error

    def encode(self, manifest: Manifest) -> bytes:
        """Return the manifest as it stands on the models topic."""
        return self.records.manifest.encode(dataclasses.asdict(manifest))

    def decode(self, data: bytes) -> Manifest:
        """Return a manifest whose signature is right. Raises ArtifactError for any other."""
        manifest = parse(self.records, data)
        if not self.is_signed(manifest):
            raise ArtifactError(
                f"the manifest of {manifest.model!r} version {manifest.version} has a wrong signature: it is damaged, forged, "
                f"or signed with another TIDEMILL_SIGNING_KEY"
            )
        return manifest

    def open(self, manifest: Manifest, pause: float = 0.0) -> Snapshot:
        """Return the snapshot behind a decoded manifest, after all checks. Raises ArtifactError where one fails.

        `pause`: see `snapshots.load`.
        """
        name = f"model {manifest.model!r} version {manifest.version}"
        if manifest.pipeline != self.pipeline.name or not self.pipeline.knows(manifest.model):
            raise ArtifactError(f"{name} of pipeline {manifest.pipeline!r} is not one of {self.pipeline.name!r}")
        if manifest.declaration != self.pipeline.declaration_hash(manifest.model):
            raise ArtifactError(
                f"{name} was learned under another declaration of the model, the vector or protect; "
                f"give the changed model a new name, so that the old versions stay what they are"
            )
        if manifest.river != river.__version__:
            raise ArtifactError(
                f"{name} was made by River {manifest.river}, this is {river.__version__}: scores may differ"
            )
        found = snapshots.load(self.store.get(manifest.sha256), pause)
        try:
            snapshot = Snapshot(**found)
        except TypeError as error:
            raise ArtifactError(f"{name}: the artifact is no snapshot: {error}") from error
        for index, golden in enumerate(manifest.golden):
            x = vector_to_x(self.records.vector.record(golden["vector"]))
            score = self._score(name, snapshot.model, x)
            if score != golden["score"]:
                raise ArtifactError(f"{name} gives golden vector {index} the score {score}; it was {golden['score']}")
        return snapshot
