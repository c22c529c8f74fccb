"""Pruning: the artifacts of old versions leave the store; their manifests stay in the log, and a fold makes them again.

kept    the newest versions of each model, more of them than a learner looks back at; the newest with an intact
        artifact; named ones (promoted, pinned); and any artifact that one of these shares
crash   what is deleted is planned from the manifests alone, so a run that breaks off is done again from the beginning
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tidemill.errors import ArtifactError
from tidemill.registry.latest import MAX_MANIFESTS_BACK, Version
from tidemill.registry.manifests import Manifest, Registry
from tidemill.registry.store import ArtifactStore
from tidemill.registry.versions import Version as ListedVersion
from tidemill.stream.api import Progress


@dataclass
class Model:
    """What becomes of one model's versions.

    `gone`: their artifact was deleted before. `shared`: a version that stays has the same artifact.
    """

    name: str
    versions: int = 0
    kept: int = 0
    gone: int = 0
    shared: int = 0
    pruned: int = 0
    bytes: int = 0


class _Known(NamedTuple):
    model: str
    newness: tuple[int, int]
    sha256: str
    replacement: str
    created_at: int


@dataclass
class Plan:
    """What is to be deleted: artifacts by their SHA-256; and by model what becomes of its versions.

    `is_done`: whether `prune` has deleted them.
    """

    artifacts: list[str] = field(default_factory=list)
    models: dict[str, Model] = field(default_factory=dict)
    is_done: bool = False

    @property
    def bytes(self) -> int:
        """How much space that will free."""
        return sum(model.bytes for model in self.models.values())

    def as_dict(self) -> dict[str, Any]:
        """Return the plan for programs."""
        return {
            "pruned": self.is_done,
            "artifacts": self.artifacts,
            "bytes": self.bytes,
            "models": [dataclasses.asdict(model) for model in self.models.values()],
        }


def plan(
    versions: Iterable[ListedVersion],
    registry: Registry,
    *,
    keep: int,
    before: int | None = None,
    kept: Collection[Version] = (),
) -> Plan:
    """Return which artifacts of a registry's store may go.

    Parameters
    ----------
    versions
        All records of the models topic, the newest first. What is refused decides nothing: a forged manifest must not
        have an artifact deleted.
    registry
        Its store holds the artifacts, and the replacements of lost ones.
    keep
        How many versions of each model stay, at least MAX_MANIFESTS_BACK.
    before
        Only versions that were created before this time go, ms since the epoch.
    kept
        Versions that stay, however old.
    """
    if keep < MAX_MANIFESTS_BACK:
        raise ValueError(
            f"keep is {keep} where at least {MAX_MANIFESTS_BACK} was expected: so far a learner looks back"
        )
    pruning, every = Plan(), list[_Known]()
    intact: dict[str, tuple[int, int]] = {}
    noted = registry.store.noted()
    for listed in versions:
        manifest = listed.manifest
        if manifest is None or listed.refused:
            continue
        replacement = _replacement_sha256(registry, manifest) if manifest.sha256 in noted else ""
        every.append(_Known(manifest.model, manifest.newness, manifest.sha256, replacement, manifest.created_at))
        is_newer = manifest.model not in intact or manifest.newness > intact[manifest.model]
        if is_newer and registry.is_intact(manifest):
            intact[manifest.model] = manifest.newness
    oldest_kept = _oldest_kept(every, keep)
    staying: set[str] = set()
    going: list[_Known] = []
    for known in every:
        model = pruning.models.setdefault(known.model, Model(known.model))
        model.versions += 1
        # The newest of which a learner can go on stays, even if all of the last ones are damaged.
        is_kept = known.newness >= oldest_kept[known.model] or known.newness == intact.get(known.model)
        is_young = before is not None and known.created_at >= before
        if is_kept or (known.model, known.newness[1]) in kept or is_young:
            staying |= {known.sha256, known.replacement}
            model.kept += 1
        else:
            going.append(known)
    _settle(pruning, going, staying, registry.store)
    return pruning


def everything(versions: Iterable[ListedVersion], registry: Registry) -> list[str]:
    """Return every artifact that a verified version of a pipeline has in the store, and replacements of lost ones."""
    noted, planned = registry.store.noted(), dict[str, None]()
    for listed in versions:
        if listed.manifest is None or listed.refused:
            continue
        digest = listed.manifest.sha256
        replacement = _replacement_sha256(registry, listed.manifest) if digest in noted else ""
        planned |= {one: None for one in (digest, replacement) if one and registry.store.holds(one)}
    return list(planned)


def _oldest_kept(every: Iterable[_Known], keep: int) -> dict[str, tuple[int, int]]:
    """Return, by model, the oldest of its newest `keep` versions, wherever they are on the topic."""
    by_model: dict[str, set[tuple[int, int]]] = {}
    for known in every:
        by_model.setdefault(known.model, set()).add(known.newness)
    return {model: sorted(newness, reverse=True)[:keep][-1] for model, newness in by_model.items()}


def _settle(pruning: Plan, going: Iterable[_Known], staying: Collection[str], store: ArtifactStore) -> None:
    """Put each artifact that nothing keeps into the plan, once."""
    planned: dict[str, None] = {}
    for known in going:
        model = pruning.models[known.model]
        sizes = {
            digest: store.size(digest)
            for digest in (known.sha256, known.replacement)
            if digest and digest not in staying and digest not in planned
        }
        if known.sha256 in staying:
            model.shared += 1
        elif any(size is not None for size in sizes.values()):
            planned |= dict.fromkeys(sizes)
            model.pruned += 1
            model.bytes += sum(size or 0 for size in sizes.values())
        else:
            model.gone += 1
    pruning.artifacts = list(planned)


def _replacement_sha256(registry: Registry, manifest: Manifest) -> str:
    """Return the SHA-256 of an artifact's replacement; empty where there is none, or a forged one."""
    try:
        replacement = registry.replacement(manifest)
    except ArtifactError:
        return ""
    return replacement.sha256 if replacement else ""


def prune(pruning: Plan, store: ArtifactStore, progress: Progress | None = None) -> None:
    """Delete the planned artifacts. Raises StoreError where the store is away; another run deletes the rest."""
    for digest in pruning.artifacts:
        store.delete(digest)
        if progress:
            progress(1)
    pruning.is_done = True
