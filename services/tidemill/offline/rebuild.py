"""Versions made again from the log and compared with the registry; an artifact that is not intact is restored.

reads   <pipeline>.models; <pipeline>.examples, once for all versions; the artifact store
writes  the artifact store, where an artifact is gone, damaged or of another River
equal   to the last digit, on the manifest's golden vectors, and where an artifact exists also on the fold's latest
memory  the manifests, and two models of each name
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from tidemill.declare.pipeline import Pipeline
from tidemill.errors import ArtifactError, SettingsError
from tidemill.models.refold import FoldRange, Refold, Refolded
from tidemill.registry.forgetting import Requests
from tidemill.registry.latest import Version, versions
from tidemill.registry.manifests import Manifest, Registry
from tidemill.registry.versions import Versions
from tidemill.stream.api import Broker, Progress
from tidemill.wire import topics
from tidemill.wire.records import vector_to_x

#: Of a version that was rebuilt: the artifact was complete; its very bytes were restored; other bytes that give the
#: same scores replace it; or nothing was written.
Artifact = Literal["intact", "restored", "replaced", "not restored"]


@dataclass(frozen=True)
class RebuiltVersion:
    """What came of one version. `scores`: how many were compared; `why`: what differs, or why it can't be folded."""

    manifest: Manifest
    state: Literal["equal", "different", "gone"]
    scores: int = 0
    artifact: Artifact = "not restored"
    why: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the version and what came of it, for programs."""
        return {
            "model": self.manifest.model,
            "version": self.manifest.version,
            "examples": self.manifest.examples,
            "state": self.state,
            "scores": self.scores,
            "artifact": self.artifact,
            "why": self.why,
        }


@dataclass(frozen=True)
class RebuildReport:
    """What came of some versions; `others`: how many versions of another declaration were left out."""

    versions: Sequence[RebuiltVersion]
    others: int = 0

    @property
    def is_equal(self) -> bool:
        """Whether every version was rebuilt with equal scores."""
        return all(one.state == "equal" for one in self.versions)

    def as_dict(self) -> dict[str, Any]:
        """Return the report for programs."""
        return {"equal": self.is_equal, "others": self.others, "versions": [one.as_dict() for one in self.versions]}


class Rebuild:
    """Rebuilds versions of one pipeline's models."""

    def __init__(self, pipeline: Pipeline, broker: Broker, registry: Registry) -> None:
        self.pipeline, self.broker, self.registry = pipeline, broker, registry
        self.models = topics.MODELS.name(pipeline.name)

    @cached_property
    def requests(self) -> Requests:
        """The requests to forget, which say why something is gone."""
        return Requests(self.pipeline, self.broker, self.registry.keys)

    def named(self, wanted: Collection[Version]) -> list[Manifest]:
        """Return the manifests of these versions.

        Raises SettingsError where one has none, or is of another declaration.
        """
        manifests, refused = versions(self.broker, self.registry, wanted)
        for model, number in wanted:
            manifest = manifests.get((model, number))
            if manifest is None:
                why = refused.get((model, number), f"{self.models} has no manifest of model {model!r} version {number}")
                if request := self.requests.of_version(model, number):
                    why = request.why_gone
                raise SettingsError(f"{model}@{number} can't be rebuilt: {why}")
            if not self._is_declared(manifest):
                raise SettingsError(
                    f"{model}@{number} can't be rebuilt: it was learned under another declaration of the model or the "
                    f"vector; name the pipeline's file as it was then"
                )
        return [manifests[version] for version in wanted]

    def every(self, progress: Progress | None = None) -> tuple[list[Manifest], int]:
        """Return the manifests of all versions as declared now, and how many are of another declaration."""
        manifests: dict[tuple[str, int, int], Manifest] = {}
        others = 0
        for listed in Versions(self.pipeline, self.broker, self.registry).read(progress=progress):
            manifest = listed.manifest
            if manifest is None or listed.refused or (manifest.model, *manifest.newness) in manifests:
                continue
            if self._is_declared(manifest):
                manifests[manifest.model, *manifest.newness] = manifest
            else:
                others += 1
        return list(manifests.values()), others

    def _is_declared(self, manifest: Manifest) -> bool:
        model = manifest.model
        return self.pipeline.knows(model) and manifest.declaration == self.pipeline.declaration_hash(model)

    def run(
        self, manifests: Sequence[Manifest], *, write: bool = True, progress: Progress | None = None
    ) -> Iterator[RebuiltVersion]:
        """Fold each version, compare it, and with `write` restore its artifact where that is not intact."""
        wanted: dict[FoldRange, list[Manifest]] = {}
        for one in manifests:  # two lives of a model may have a version of the same examples
            wanted.setdefault(FoldRange(one.model, one.version, one.begin), []).append(one)
        for refolded in Refold(self.pipeline, self.broker).snapshots(wanted, progress):
            for manifest in wanted[refolded.target]:
                yield self._rebuilt(manifest, refolded, write=write)

    def _rebuilt(self, manifest: Manifest, refolded: Refolded, *, write: bool) -> RebuiltVersion:
        fold = refolded.fold
        if request := self.requests.of_version(manifest.model, manifest.version, manifest.epoch, manifest.begin):
            return RebuiltVersion(manifest, "gone", why=request.why_gone)
        if fold is None:
            return RebuiltVersion(manifest, "gone", why=refolded.why)
        scores, why = self.registry.compare(manifest, fold.snapshot())
        if why:
            return RebuiltVersion(manifest, "different", scores, why=why)
        try:
            opened = self.registry.open(manifest).model
        except ArtifactError as error:
            if not write:
                return RebuiltVersion(manifest, "equal", scores, why=str(error))
            kept = self.registry.restore(manifest, fold.snapshot())
            return RebuiltVersion(manifest, "equal", scores, "restored" if kept == manifest else "replaced")
        for vector in fold.vectors:
            x = vector_to_x(vector)
            own, other = self._score(fold.model, x), self._score(opened, x)
            scores += 1
            if own != other:
                return RebuiltVersion(
                    manifest, "different", scores, why=f"the artifact scores {other} where the fold scores {own}"
                )
        return RebuiltVersion(manifest, "equal", scores, "intact")

    def _score(self, model: Any, x: Mapping[str, Any]) -> float:
        return self.pipeline.kind.predict(model, x)[0]
