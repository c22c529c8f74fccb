"""Every version that was ever published, for people: newest first, with the reason where no service would take one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tidemill.declare.pipeline import Pipeline
from tidemill.errors import SettingsError
from tidemill.keys import RefusedError
from tidemill.registry.manifests import Manifest, Registry, manifest_codec
from tidemill.registry.signing import FIRST_READ_OFFSETS, UNSIGNED, Vouched, backwards, refusals
from tidemill.registry.store import ArtifactStore
from tidemill.stream.api import Broker, Progress, Record, TopicPartition
from tidemill.wire import topics

#: Records that are held at once; a manifest has some 3 kB, and 64 bytes more for each segment.
MAX_RECORDS_HELD = 4_000


@dataclass(frozen=True)
class Version:
    """A record of the models topic.

    Parameters
    ----------
    key
        The model that the record's key names.
    manifest
        None where the record holds none.
    refused
        Why no service takes it; empty where one would, or where there is no signing key to check with.
    is_newest
        Whether it is the newest of its model that is not refused.
    """

    offset: int
    key: str
    manifest: Manifest | None
    refused: str = ""
    is_newest: bool = False


class Versions:
    """The versions of a pipeline's models. Reads, and writes nothing.

    Parameters
    ----------
    registry
        It checks signatures; None where there is no signing key: then they are not checked.
    champion
        The serving model, where it is known; by default the declared champion.
    """

    def __init__(self, pipeline: Pipeline, broker: Broker, registry: Registry | None, champion: str = "") -> None:
        self.pipeline, self.broker, self.registry = pipeline, broker, registry
        self.champion = champion or pipeline.champion
        self.topic = topics.MODELS.name(pipeline.name)
        self._codec = registry.codec if registry else manifest_codec(pipeline, None)

    def read(self, model: str | None = None, progress: Progress | None = None) -> Iterator[Version]:
        """Yield versions, the newest first; `model`: only of this one."""
        partition = TopicPartition(self.topic, 0)
        newest: set[str] = set()
        reading = Vouched(self._codec)
        for begin, end in backwards(
            *self.broker.offset_range(partition), FIRST_READ_OFFSETS, growth=4, most=MAX_RECORDS_HELD
        ):
            records = [record for batch in self.broker.read({partition: (begin, end)}) for record in batch]
            records = [record for record in records if model is None or record.key() == model.encode()]
            for record, refused in _checked(records, reading):
                version = self._version(record, refused)
                is_newest = not version.refused and version.key not in newest
                if is_newest:
                    newest.add(version.key)
                yield dataclasses.replace(version, is_newest=is_newest)
            if progress:
                progress(end - begin)

    def _version(self, record: Record, refused: str) -> Version:
        key = (record.key() or b"").decode(errors="replace")
        try:
            manifest = self._codec.parse(record.value() or b"")
        except RefusedError:
            manifest = None
        return Version(record.offset(), key, manifest, refused)

    def as_dict(self, version: Version, store: ArtifactStore) -> dict[str, Any]:
        """Return a version for programs. Times are ms since the epoch.

        Of a record that holds no manifest only `offset`, `model`, `refused` and `newest` are known.
        """
        known = {
            "offset": version.offset,
            "model": version.key,
            "refused": version.refused,
            "newest": version.is_newest,
        }
        manifest = version.manifest
        if manifest is None:
            return known
        fields = dataclasses.asdict(manifest)
        del fields["golden"], fields["signature"], fields["model"]
        return (
            known
            | fields
            | {
                "role": self.pipeline.role(manifest.model, self.champion),
                "declared": self.is_declared(manifest),
                "artifact": artifact_state(store, manifest),
                "signature": self.signature(version),
            }
        )

    def is_declared(self, manifest: Manifest) -> bool:
        """Whether a manifest is of the pipeline as declared now."""
        model = manifest.model
        return self.pipeline.knows(model) and manifest.declaration == self.pipeline.declaration_hash(model)

    def signature(self, version: Version) -> str:
        """Return "valid", "refused" or, without keys, "not checked"."""
        if self.registry is None:
            return "not checked"
        return "refused" if version.refused else "valid"

    def find(self, model: str, version: int | None = None, progress: Progress | None = None) -> tuple[Version, int]:
        """Return a version of a model, the newest by default, and how many newer records of it are refused.

        One that is refused is returned only where there is no other. Raises SettingsError where there is none at all.
        """
        refused: Version | None = None
        known: list[str] = []
        passed = 0
        for listed in self.read(model, progress):
            if version is None and not (listed.refused or listed.is_newest):
                continue  # an older one that was appended again
            wanted = version is None or (listed.manifest is not None and listed.manifest.version == version)
            if wanted and not listed.refused:
                return listed, passed
            passed += bool(listed.refused)
            if wanted and (refused is None or (refused.manifest is None and listed.manifest is not None)):
                refused = listed
            if listed.manifest and not listed.refused and len(known) < 3:
                known.append(f"{listed.manifest.version}")
        if refused is not None and refused.manifest is not None:
            return refused, 0
        raise SettingsError(self._none(model, version, known, passed))

    def _none(self, model: str, version: int | None, known: list[str], passed: int) -> str:
        if known:
            return (
                f"model {model!r} has no version {version} in {self.topic}: its newest are {', '.join(known)}; "
                f"`tidemill models list {self.pipeline.name} --model {model}` shows more"
            )
        no = f"what {self.topic} holds of model {model!r} is no manifest"
        what = no if passed else f"no version of model {model!r} in {self.topic}"
        return f"{what}: the pipeline declares {', '.join(self.pipeline.model_names)}"


def _checked(records: Sequence[Record], reading: Vouched[Manifest]) -> Iterator[tuple[Record, str]]:
    """Yield records, newest first, each with the reason why it is refused."""
    places: list[tuple[str, int]] = []
    refused: list[str] = []
    for record in reversed(records):
        try:
            signature, why = reading.check(record).signature, ""
        except RefusedError as error:
            refusals.note(record.topic(), record.offset(), record.value() or b"", error)
            signature, why = UNSIGNED, str(error)
        places.append((signature.chain, signature.sequence))
        refused.append(why)
    last: dict[str, int] = {}
    for index in reversed(range(len(records))):  # in the order of the log
        chain, sequence = places[index]
        if refused[index]:
            continue
        if sequence <= last.get(chain, 0):
            refused[index] = "it is old: it was appended again after later ones"
        last[chain] = max(sequence, last.get(chain, 0))
    yield from zip(reversed(records), refused, strict=True)


def artifact_state(store: ArtifactStore, manifest: Manifest) -> str:
    """Return "stored", "replaced" by a rebuild with other bytes, or "missing". The artifact is not read."""
    if store.holds(manifest.sha256):
        return "stored"
    return "replaced" if store.has_note(manifest.sha256) else "missing"
