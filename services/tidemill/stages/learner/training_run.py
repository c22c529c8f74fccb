"""A training run: one model's fold, and what has been published of it."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from tidemill.declare.pipeline import Pipeline
from tidemill.encoding.codec import Codec
from tidemill.errors import ArtifactError, DeclarationError, ScoreError, StoreError
from tidemill.models.fold import Fold
from tidemill.registry.manifests import Manifest, Registry
from tidemill.stream.api import Record

log = logging.getLogger(__name__)

Counts = Counter[tuple[str, str]]


class TrainingRun:
    """Learns, and returns versions to publish when they are due.

    Parameters
    ----------
    every_examples, every_seconds
        A version is due when this many examples were learned since the last one, or this time has passed.
    counts
        Counters of what happens.

    `at` is the offset of the next example to learn, `newest` the manifest that was published last.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        name: str,
        registry: Registry,
        counts: Counts,
        *,
        every_examples: int,
        every_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pipeline, self.name, self.registry, self.counts = pipeline, name, registry, counts
        self.every_examples, self.every_seconds, self.clock = every_examples, every_seconds, clock
        self.fold = Fold(pipeline, name)
        self.at = self.fold.version
        self.newest: Manifest | None = None
        self._parent, self._seconds = 0, 0.0
        self._is_stopped = self._store_is_away = False
        self._settle()

    def _settle(self) -> None:
        """Note that there is nothing to publish until another example comes."""
        self._published = self._tried = self.fold.examples
        self._tried_at = self.clock()

    def resume(self, history: Sequence[Manifest]) -> None:
        """Go on from the newest intact version; without one, learn everything again from the first example."""
        declared = self.pipeline.declaration_hash(self.name)
        self.newest = max(history, key=lambda manifest: manifest.signature.sequence, default=None)
        for manifest in history:
            if manifest.declaration != declared:
                raise DeclarationError(
                    f"pipeline {self.pipeline.name!r}: models[{self.name!r}], the vector or protect was declared "
                    f"differently when version {manifest.version} was learned: give the changed model a new name"
                )
            try:
                self.fold.resume(self.registry.open(manifest))
            except ArtifactError as error:
                log.error("version refused; an older one is tried", extra={"cause": str(error)})
                continue
            self._parent, self._seconds = manifest.version, manifest.seconds
            self._settle()
            self.at = self.fold.version
            log.info("resumed", extra={"model": self.name, "version": manifest.version, "examples": manifest.examples})
            return

    def learn(self, records: Sequence[Record], codec: Codec) -> None:
        """Learn examples."""
        fold, started = self.fold, time.thread_time()
        for record in records:
            value = record.value() or b""
            if not value.startswith(codec.header):
                # An example of an earlier declaration of the vector: no model declared now could be asked about it.
                self.counts["skipped", "unknown_schema"] += 1
                continue
            try:
                if not fold.learn(codec.decode(value), record.offset()):
                    self.counts["skipped", "over_share"] += 1
            except Exception as error:  # a model's own code; what it raises on one example must not stop the others
                self.counts["skipped", "learn_failed"] += 1
                log.error(
                    "learn_one raised", extra={"model": self.name, "offset": record.offset(), "cause": repr(error)}
                )
        self._seconds += time.thread_time() - started

    def due(self) -> Manifest | None:
        """Return the manifest of a version that was stored because it was due; None where none was."""
        fold = self.fold
        if fold.diverged:
            self._hold_back(fold.diverged)
            return None
        if fold.examples == self._published:
            return None
        due = fold.examples - self._tried >= self.every_examples or self.clock() - self._tried_at >= self.every_seconds
        return self._store() if due else None

    def last(self) -> Manifest | None:
        """Return the manifest of a last version, where there is anything new to publish."""
        return self._store() if self.fold.examples > self._published and not self.fold.diverged else None

    def _store(self) -> Manifest | None:
        self._tried, self._tried_at = self.fold.examples, self.clock()
        try:
            manifest = self.registry.publish(
                self.name, self.fold.snapshot(), tuple(self.fold.vectors), parent=self._parent, seconds=self._seconds
            )
        except ScoreError as error:
            self.fold.diverged = str(error)
            self._hold_back(self.fold.diverged)
            return None
        except ArtifactError as error:
            self._hold_back(str(error))
            return None
        except StoreError as error:
            # Going back would learn the same examples again and again, and be no further when the outage is over.
            self.counts["not_stored", self.name] += 1
            if not self._store_is_away:
                log.error("a version can't be stored; learning goes on, it is tried again", extra={"cause": str(error)})
            self._store_is_away = True
            return None
        if self._store_is_away:
            log.info("versions can be stored again", extra={"model": self.name, "version": manifest.version})
        if self._is_stopped:
            log.info("versions are published again", extra={"model": self.name, "version": manifest.version})
        self._published, self._parent, self.newest = self.fold.examples, manifest.version, manifest
        self._store_is_away = self._is_stopped = False
        return manifest

    def _hold_back(self, cause: str) -> None:
        """Publish nothing, and log it once.

        A diverged model is never published again: a version is the fold of all examples before it. It goes on
        learning, so that it is judged like the others, by the last good version's answers.
        """
        self._published = self.fold.examples  # only another example can change that
        if not self._is_stopped:
            self.counts["stopped", self.name] += 1
            log.error(
                "model stopped: no version is published; the last good one still serves",
                extra={"model": self.name, "version": self.fold.version, "cause": cause},
            )
        self._is_stopped = True

    def gauges(self) -> Mapping[tuple[str, str], float]:
        """Return its levels."""
        return {
            ("model_version", self.name): self.fold.version,
            ("examples", self.name): self.fold.examples,
            ("stopped", self.name): float(self._is_stopped),
        }
