"""A training run: one model's fold, and what has been published of it."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from tidemill.declare.pipeline import Pipeline
from tidemill.encoding.codec import Codec
from tidemill.errors import ArtifactError, DeclarationError, Reject, ScoreError, StoreError, VersionsError
from tidemill.models.corrections import Corrections
from tidemill.models.fold import Fold
from tidemill.registry.latest import reset_command
from tidemill.registry.manifests import Manifest, Registry
from tidemill.stream.api import Record
from tidemill.wire import topics

log = logging.getLogger(__name__)

Counts = Counter[tuple[str, str]]

#: The first and last offset, and one more, of a log of which nothing is known.
ANY_LOG = (0, sys.maxsize)


class TrainingRun:
    """Learns, and returns versions to publish when they are due.

    Parameters
    ----------
    every_examples, every_seconds
        A version is due when this many examples were learned since the last one, or this time has passed.
    first_examples
        The first version is due after so many examples, and then after 2, 5, 10, 20, 50, ... times as many, up to
        `every_examples`, so that what is learned first serves soon; 0: none is due sooner.
    counts
        Counters of what happens.

    `at` is the offset of the next example to learn. A candidate that learns corrected labels has to `gather` the
    corrections first, up to `corrections.before`. `epoch` is the model's present life. No version is published before
    the examples up to `target` are learned: a version with that number exists, or has existed. `newest` is
    the manifest that was published last.
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
        first_examples: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.first_examples = first_examples
        self.pipeline, self.name, self.registry, self.counts = pipeline, name, registry, counts
        self.every_examples, self.every_seconds, self.clock = every_examples, every_seconds, clock
        self.fold = Fold(pipeline, name)
        self.corrections = Corrections(registry.records, pipeline.corrected_before(name))
        self.gathered_until = 0
        self.at = self.target = self.fold.version
        self.epoch = 0
        self.newest: Manifest | None = None
        self._lost: Manifest | None = None
        self._restored_at = float("-inf")
        self._is_rebuilding = self._publishes_target = False
        self._examples_before = 0
        self._parent, self._seconds = 0, 0.0
        self._is_stopped = self._store_is_away = False
        #: By metric, why the newest version has no figure of it.
        self._without_number: Mapping[str, str] = {}
        self._settle()

    def _settle(self) -> None:
        """Note that there is nothing to publish until another example comes."""
        self._published = self._tried = self.fold.examples
        self._tried_at = self.clock()

    def resume(
        self,
        history: Sequence[Manifest],
        epoch: int = 0,
        log_range: tuple[int, int] = ANY_LOG,
        committed: int = 0,
    ) -> None:
        """Go on from the newest version of the model's present life.

        Where its artifact can't be opened, the examples are learned again up to it, from an older version or from the
        life's first example. A life that has no version begins with the first example that the log has.

        Parameters
        ----------
        history
            The newest manifests, newest first.
        epoch
            The life that the last decision names.
        log_range
            First offset of the examples, and the one after the last.
        committed
            The offset up to which examples were learned before this process.

        Raises VersionsError where the log does not have what is needed, DeclarationError where a version of the present
        life is of another declaration.
        """
        begin, end = log_range
        self.newest = max(history, key=lambda manifest: manifest.signature.sequence, default=None)
        self.epoch = max([epoch, *(manifest.epoch for manifest in history)])
        life = [manifest for manifest in history if manifest.epoch == self.epoch]
        if life:
            self._continue(life)
        elif history or self.epoch or committed <= begin:
            is_candidate = "~" in self.name  # its first example is in its name
            self.fold = Fold(self.pipeline, self.name, None if is_candidate else begin)
        newest = life[0].version if life else max((manifest.version for manifest in history), default=0)
        if life and newest > end:
            raise self._stuck(f"it has a version {newest}, and {self._log} ends at {end}")
        self.at = self.fold.version
        self.gathered_until = self.at  # a correction lies after its example
        self.target = max(self.at, min(max(newest, committed), end))
        self._lost = life[0] if life and life[0].version > self.at else None
        # What a scorer may wait for: the first version of another life, or one whose manifest is gone.
        is_another_life = not life and bool(history or self.epoch)
        self._publishes_target = is_another_life or self.target > max(newest, self.at)
        self._examples_before = -1 if is_another_life else self.fold.examples
        self._is_rebuilding = self._publishes_target or self.target > self.at
        if self.target > self.at and begin > self.at:
            what = "the artifacts of its versions can't be opened" if life else "its manifests are gone"
            raise self._stuck(f"{what}, and {self._log} begins at {begin} where {self.at} is needed")
        self._settle()
        if self._lost is not None or is_another_life:
            log.warning(
                "examples are learned again; no version is published before the newest is reached",
                extra={"model": self.name, "epoch": self.epoch, "from": self.at, "to": self.target},
            )

    def _continue(self, life: Sequence[Manifest]) -> None:
        """Open the newest version that can be opened; without one, go back to the life's first example."""
        declared = self.pipeline.declaration_hash(self.name)
        for manifest in life:
            if manifest.declaration != declared:
                raise DeclarationError(
                    f"pipeline {self.pipeline.name!r}: models[{self.name!r}], the vector or protect was declared "
                    f"differently when version {manifest.version} was learned: give the changed model a new name, or "
                    f"begin another life of this one: {reset_command(self.pipeline.name, self.name)}"
                )
            try:
                self.fold.resume(self.registry.open(manifest))
            except ArtifactError as error:
                log.error("version refused; an older one is tried", extra={"cause": str(error)})
                continue
            self._parent, self._seconds = manifest.version, manifest.seconds
            log.info("resumed", extra={"model": self.name, "version": manifest.version, "examples": manifest.examples})
            return
        self.fold = Fold(self.pipeline, self.name, life[0].begin)

    @property
    def _log(self) -> str:
        return topics.EXAMPLES.name(self.pipeline.name)

    def _stuck(self, why: str) -> VersionsError:
        return VersionsError(
            f"model {self.name!r} can't be continued: {why}; bring back artifact store, River and topics as they were, "
            f"or begin another life of the model: {reset_command(self.pipeline.name, self.name)}"
        )

    def pass_over(self, offset: int, *, moves_on: bool = False) -> None:
        """Do what is due once all examples before `offset` are learned; `moves_on`: the one there is learned next.

        A version whose artifact can't be opened is stored again, where it has the scores that it had. Raises
        VersionsError where it has others.
        """
        if self._lost is not None and offset >= self._lost.version:
            self._restore(self._lost, is_last_try=moves_on)
        if self._is_rebuilding and offset >= self.target:
            self._is_rebuilding = False
            self._settle()
            if self._publishes_target and self.fold.examples > self._examples_before:
                self._published, self._tried = -1, self.fold.examples - self.every_examples

    def _restore(self, lost: Manifest, *, is_last_try: bool) -> None:
        snapshot = self.fold.snapshot()
        why = (
            self.registry.compare(lost, snapshot)[1]
            if snapshot.version == lost.version
            else f"the last example before that offset is {snapshot.version - 1:,}"
        )
        if why:
            raise self._stuck(f"{self._log} does not fold to version {lost.version} again: {why}")
        if not is_last_try and self.clock() - self._restored_at < self.every_seconds:
            return
        self._restored_at = self.clock()
        try:
            self.registry.restore(lost, snapshot)
        except StoreError as error:
            self._note_store_away(error)
            self._lost = None if is_last_try else lost
            return
        self._lost, self._parent = None, lost.version
        log.warning("artifact stored again", extra={"model": self.name, "version": lost.version, "epoch": lost.epoch})

    @property
    def is_gathering(self) -> bool:
        """Whether corrections that it has to learn by are not read yet."""
        return self.gathered_until < self.corrections.before

    def gather(self, records: Sequence[Record]) -> None:
        """Take the corrections that these records of the examples hold."""
        for record in records:
            self.corrections.take(record)

    def learn(self, records: Sequence[Record], codec: Codec) -> None:
        """Learn examples; a correction of one that was learned is counted: a model never learns an event twice."""
        fold, corrections, started = self.fold, self.corrections, time.thread_time()
        for record in records:
            if corrections.is_one(record):
                self.counts["corrected", self.name] += 1
                continue
            if self._is_rebuilding or self._lost is not None:
                self.pass_over(record.offset(), moves_on=True)
            try:
                if not fold.learn(corrections.apply(codec.decode(record.value())), record.offset()):
                    self.counts["skipped", "over_share"] += 1
            except Reject as reject:
                # Of an earlier declaration of the vector: no model declared now could be asked about it. Or of somebody
                # else, and no example.
                self.counts["skipped", reject.reason] += 1
            except Exception as error:  # a model's own code; what it raises on one example must not stop the others
                self.counts["skipped", "learn_failed"] += 1
                cause = self.registry.records.mask.error(error)
                log.error("learn_one raised", extra={"model": self.name, "offset": record.offset(), "cause": cause})
        self._seconds += time.thread_time() - started

    def due(self) -> Manifest | None:
        """Return the manifest of a version that was stored because it was due; None where none was."""
        fold = self.fold
        if self._is_rebuilding:
            return None
        if fold.diverged:
            self._hold_back(fold.diverged)
            return None
        if fold.examples == self._published:
            return None
        due = (
            fold.examples - self._tried >= self.every_examples
            or self.clock() - self._tried_at >= self.every_seconds
            or self._is_early_due()
        )
        return self._store() if due else None

    def _is_early_due(self) -> bool:
        """Whether one of the first numbers of examples was reached since the last version."""
        early = self.first_examples
        while 0 < early < self.every_examples and early <= self.fold.examples:
            if self._tried < early:
                return True
            early = early * 5 // 2 if str(early)[0] == "2" else early * 2
        return False

    def last(self) -> Manifest | None:
        """Return the manifest of a last version, where there is anything new to publish."""
        is_new = self.fold.examples > self._published and not self._is_rebuilding
        return self._store() if is_new and not self.fold.diverged else None

    def _store(self) -> Manifest | None:
        self._tried, self._tried_at = self.fold.examples, self.clock()
        try:
            manifest = self.registry.publish(
                self.name,
                self.fold.snapshot(),
                tuple(self.fold.vectors),
                parent=self._parent,
                seconds=self._seconds,
                epoch=self.epoch,
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
            self._note_store_away(error)
            return None
        if self._store_is_away:
            log.info("versions can be stored again", extra={"model": self.name, "version": manifest.version})
        if self._is_stopped:
            log.info("versions are published again", extra={"model": self.name, "version": manifest.version})
        self._published, self._parent, self.newest = self.fold.examples, manifest.version, manifest
        self._store_is_away = self._is_stopped = False
        self._note_figures()
        return manifest

    def _note_figures(self) -> None:
        """Log once of each metric that versions have no figure of it, and once that they have again."""
        before, self._without_number = self._without_number, self.fold.scorecard.without_number()
        for metric, cause in self._without_number.items():
            if metric not in before:
                log.warning(
                    "a metric has no number: versions are published without its figure",
                    extra={"model": self.name, "version": self.fold.version, "metric": metric, "cause": cause},
                )
        for metric in before.keys() - self._without_number.keys():
            log.info("a metric has a number again", extra={"model": self.name, "metric": metric})

    def _note_store_away(self, error: StoreError) -> None:
        self.counts["not_stored", self.name] += 1
        if not self._store_is_away:
            log.error("a version can't be stored; learning goes on, it is tried again", extra={"cause": str(error)})
        self._store_is_away = True

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
            ("without_number", self.name): float(len(self._without_number)),
        }
