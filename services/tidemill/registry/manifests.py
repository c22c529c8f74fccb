"""Manifests: signed descriptions of a model's versions, and the way from a manifest back to the model."""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import river

import tidemill
from tidemill.declare.pipeline import Pipeline
from tidemill.declare.scorecard import Scorecard
from tidemill.errors import ArtifactError
from tidemill.keys import Keyring, RefusedError
from tidemill.models.segments import segment_metrics
from tidemill.models.snapshot import Snapshot
from tidemill.registry import snapshots
from tidemill.registry.parts import Parts, parts_of
from tidemill.registry.signing import UNSIGNED, Chains, Head, Signature, SignedCodec
from tidemill.registry.store import ArtifactStore, sha256
from tidemill.wire import topics
from tidemill.wire.records import Records, vector_to_x


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
    begin: int = 0
    parent: int = 0
    seconds: float = 0.0
    schemas: Mapping[str, int] = field(default_factory=dict)
    segments: Sequence[Mapping[str, Any]] = ()
    epoch: int = 0
    signature: Signature = UNSIGNED

    @property
    def newness(self) -> tuple[int, int]:
        """What orders the versions of one model: its life, then the version; the higher, the newer."""
        return self.epoch, self.version


#: The schemas whose ids are in a manifest.
SCHEMA_KINDS = ("event", "label", "vector", "example")

#: In these fields a version that was folded again may differ from the first one.
_BUILD_FIELDS = ("uri", "sha256", "tidemill", "river", "python", "created_at", "signature")


def manifest_codec(
    pipeline: Pipeline, keys: Keyring | None, kind: str = "manifest", records: Records | None = None
) -> SignedCodec[Manifest]:
    """Return the codec of a pipeline's manifests, or of the "replacement" of one; without keys it verifies nothing."""
    return SignedCodec(
        pipeline.name,
        topics.MODELS.name(pipeline.name),
        (kind,),
        (records or Records(pipeline)).manifest,
        keys,
        lambda fields: Manifest(**{**fields, "signature": Signature(**fields["signature"])}),
        lambda manifest: manifest.model,
    )


class Registry:
    """Makes and opens versions of one pipeline's models.

    Parameters
    ----------
    keys
        Verify manifests; `publish` and `restore` need a private key as well.

    `chains` has the newest manifest of each model that is published here: `publish` goes on after it.
    """

    def __init__(self, pipeline: Pipeline, store: ArtifactStore, keys: Keyring) -> None:
        self.pipeline = pipeline
        self.records = Records(pipeline)
        self.store = store
        self.keys = keys
        self.codec = manifest_codec(pipeline, keys, records=self.records)
        self.chains = Chains(self.codec)
        self._replacements = manifest_codec(pipeline, keys, "replacement", self.records)
        self._parts: dict[str, Parts] = {}

    def publish(
        self,
        name: str,
        snapshot: Snapshot,
        vectors: Sequence[Mapping[str, Any]],
        *,
        parent: int = 0,
        seconds: float = 0.0,
        epoch: int = 0,
    ) -> Manifest:
        """Store a snapshot and return its signed manifest; `vectors` become the golden ones.

        `parent` is the version that it went on from, `seconds` the CPU time that learning all of it took, `epoch` the
        model's life.
        Raises ScoreError where the model gives one of them a value that is no score of the task, ArtifactError where it
        fails or can't be saved.
        """
        what = f"model {name!r} version {snapshot.version}"
        golden = [
            {
                "vector": self.records.vector.body(vector),
                "score": self._score(what, snapshot.model, vector_to_x(vector)),
            }
            for vector in vectors
        ]
        scorecard = Scorecard(snapshot.metrics, declared=self.pipeline.metric())
        values = scorecard.values() if snapshot.examples and scorecard.has_judged else {}
        digest = self.store.put(snapshots.dump(snapshot.saved()))
        manifest = Manifest(
            pipeline=self.pipeline.name,
            model=name,
            version=snapshot.version,
            examples=snapshot.examples,
            uri=self.store.path(digest),
            sha256=digest,
            declaration=self.pipeline.declaration_hash(name),
            hyperparameters=self.pipeline.stable_repr(name),
            tidemill=tidemill.__version__,
            river=river.__version__,
            python=platform.python_version(),
            metrics=values,
            golden=golden,
            learned_until=snapshot.learned_until,
            created_at=int(time.time() * 1000),
            begin=snapshot.begin,
            parent=parent,
            seconds=seconds,
            schemas={kind: getattr(self.records, kind).id for kind in SCHEMA_KINDS},
            segments=segment_metrics(self.pipeline, snapshot.segments),
            epoch=epoch,
        )
        return self.sign(manifest)

    def sign(self, manifest: Manifest) -> Manifest:
        """Return the manifest signed as the next one of its model, which goes on after it."""
        return self.codec.parse(self.chains.sign(manifest, manifest.model))

    def _score(self, what: str, model: Any, x: Mapping[str, Any]) -> float:
        """Return the score that a version gives a golden vector. Raises as `Task.ask` does, with the version's name."""
        try:
            return self.pipeline.kind.ask(model, x)
        except ArtifactError as error:
            raise type(error)(f"{what}: {error}") from error

    def encode(self, manifest: Manifest) -> bytes:
        """Return the manifest as it stands on the models topic."""
        return self.codec.encode(manifest)

    def decode(self, data: bytes) -> Manifest:
        """Return a manifest whose signature is right, wherever it is in its chain. Raises RefusedError."""
        return self.codec.decode(data)

    def artifact(self, manifest: Manifest) -> tuple[Manifest, bytes]:
        """Return the bytes to open for a manifest, the artifact's or its replacement's, and their own manifest.

        Raises ArtifactError where no bytes are stored, or none of this version of River.
        """
        name = f"model {manifest.model!r} version {manifest.version}"
        try:
            if manifest.river != river.__version__:
                raise ArtifactError(
                    f"{name} was made by River {manifest.river}, this is {river.__version__}: scores may differ"
                )
            return manifest, self.store.get(manifest.sha256)
        except ArtifactError:
            replacement = self.replacement(manifest)
            if replacement is None or replacement.river != river.__version__:
                raise
        return replacement, self.store.get(replacement.sha256)

    def is_intact(self, manifest: Manifest) -> bool:
        """Whether a manifest has an intact artifact or replacement; the bytes are read for that, and not opened."""
        try:
            self.artifact(manifest)
        except ArtifactError:
            return False
        return True

    def replacement(self, manifest: Manifest) -> Manifest | None:
        """Return the manifest of the replacement of a version's artifact; None where there is none.

        Raises ArtifactError where that is forged, or of another manifest than the version's own.
        """
        data = self.store.note(manifest.sha256)
        if data is None:
            return None
        copy, own = self._replacements.decode(data), self.codec.head(manifest)
        if (copy.signature.sequence, copy.signature.previous) != (own.sequence, own.sha256):
            raise RefusedError(
                "foreign",
                f"the replacement of model {manifest.model!r} version {manifest.version} is of another manifest",
            )
        same = dataclasses.replace(manifest, **{name: getattr(copy, name) for name in _BUILD_FIELDS})
        if self.encode(same) != self.encode(copy):
            raise ArtifactError(
                f"the replacement of model {manifest.model!r} version {manifest.version} is of model "
                f"{copy.model!r} version {copy.version}, or differs from its manifest"
            )
        return copy

    def replacement_sha256(self, digest: str) -> str:
        """Return the SHA-256 of a lost artifact's replacement; empty where there is none, or a forged one."""
        try:
            data = self.store.note(digest)
            return self._replacements.decode(data).sha256 if data is not None else ""
        except ArtifactError:
            return ""

    def restore(self, manifest: Manifest, snapshot: Snapshot) -> Manifest:
        """Store a version that was folded again, to the same scores, and return the manifest of the stored bytes.

        Where the bytes are the lost ones, that is the version's own manifest. Other bytes are a replacement with a hash
        of their own: a signed copy of the manifest with that hash is stored beside the lost artifact's place. Nothing
        is written to the log.
        """
        data = snapshots.dump(snapshot.saved())
        if sha256(data) == manifest.sha256 and manifest.river == river.__version__:
            self.store.put(data)
            return manifest
        digest = self.store.put(data)
        made = dataclasses.replace(
            manifest,
            uri=self.store.path(digest),
            sha256=digest,
            tidemill=tidemill.__version__,
            river=river.__version__,
            python=platform.python_version(),
            created_at=int(time.time() * 1000),
        )
        # It takes the place of this very manifest: the same sequence, and that one's hash.
        own = self.codec.head(manifest)
        data = self._replacements.sign(made, Head(own.sequence - 1, own.sha256), chain=manifest.model)
        self.store.put_note(manifest.sha256, data)
        return self._replacements.parse(data)

    def parts(self, model: str) -> Parts:
        """Return what a version of a declared model may consist of: what the model and the metrics do."""
        name = self.pipeline.parts(model)[0]
        if name not in self._parts:
            self._parts[name] = parts_of(self.pipeline.model(name), self.pipeline.metric())
        return self._parts[name]

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
        fields = snapshots.load(self.artifact(manifest)[1], pause, parts=self.parts(manifest.model))
        try:
            snapshot = Snapshot(**fields)
        except TypeError as error:
            raise ArtifactError(f"{name}: the artifact is no snapshot: {error}") from error
        for index, golden in enumerate(manifest.golden):
            x = vector_to_x(self.records.vector.record(golden["vector"]))
            score = self._score(name, snapshot.model, x)
            if score != golden["score"]:
                raise ArtifactError(f"{name} gives golden vector {index} the score {score}; it was {golden['score']}")
        return snapshot

    def compare(self, manifest: Manifest, snapshot: Snapshot) -> tuple[int, str]:
        """Return how many golden scores of a version that was folded again were compared, and what differs."""
        if snapshot.examples != manifest.examples:
            return 0, f"{snapshot.examples:,} examples were folded where it had learned {manifest.examples:,}"
        if not manifest.golden:
            return 0, "its manifest has no golden vector to compare with"
        for index, golden in enumerate(manifest.golden):
            x = vector_to_x(self.records.vector.record(golden["vector"]))
            try:
                score = self._score(f"model {manifest.model!r} folded again", snapshot.model, x)
            except ArtifactError as error:
                return index + 1, str(error)
            if score != golden["score"]:
                return index + 1, f"golden vector {index} scores {score}; it was {golden['score']}"
        return len(manifest.golden), ""
