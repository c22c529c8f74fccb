"""The learner: one model's fold over the examples; signed versions of it out.

reads   <pipeline>.examples (one partition: the order of learning); at the start <pipeline>.models
writes  <pipeline>.models, signed manifests; the artifact store
state   the model; resumed from its last snapshot, which knows the offset that it stands for
outage  a store that is away or full does not stop the learning: nothing is committed meanwhile, and a version is tried
        again at every interval
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from tidemill import topics
from tidemill.errors import ArtifactError, DeclarationError, StoreError
from tidemill.learner.fold import Fold
from tidemill.pipeline import Pipeline
from tidemill.records import Records
from tidemill.registry.latest import REMEMBERED, latest
from tidemill.registry.manifests import Manifest, Registry
from tidemill.stream.api import Broker, Emit, Position, Record, Slot, Start, Step
from tidemill.stream.loop import Service

log = logging.getLogger(__name__)

History = Callable[[str], Sequence[Manifest]]
"""Takes a model's name; returns its latest manifests, newest first."""


def history_of(broker: Broker, registry: Registry) -> History:
    """Return the function that finds a model's manifests on the models topic; forged ones are passed over."""

    def find(model: str) -> Sequence[Manifest]:
        found, _ = latest(broker, registry, {model: REMEMBERED})
        return sorted(found[model], key=lambda manifest: -manifest.version)

    return find


class Learner(Step):
    """Folds examples into one model and publishes a version every so often.

    Parameters
    ----------
    every_examples, every_seconds
        A version is published when this many examples were learned since the last one, or this time has passed.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        model: str,
        registry: Registry,
        history: History,
        *,
        every_examples: int = 10_000,
        every_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self.pipeline, self.model, self.registry, self.history = pipeline, model, registry, history
        self.records = Records(pipeline)
        self.models = topics.MODELS.name(pipeline.name)
        self.every_examples, self.every_seconds, self.clock = every_examples, every_seconds, clock
        self.fold = Fold(pipeline, model)
        self._parent, self._seconds = 0, 0.0
        self._settle()
        self._store_is_away = False

    def _settle(self) -> None:
        """Note that there is nothing to publish until another example comes."""
        self._published = self._tried = self.fold.examples
        self._tried_at = self.clock()

    def assign(self, slot: Slot, committed: Position) -> Start:
        if slot.partition != 0:  # the order of learning is partition 0
            return Start(committed.offset, committed.offset)
        self.fold = Fold(self.pipeline, self.model)
        self._parent, self._seconds = 0, 0.0
        self._resume()
        self._settle()
        return Start(self.fold.version, self.fold.version)

    def _resume(self) -> None:
        """Go on from the newest version that is whole; without one, learn everything again from the first example."""
        declared = self.pipeline.declaration_hash(self.model)
        for manifest in self.history(self.model):
            if manifest.declaration != declared:
                raise DeclarationError(
                    f"pipeline {self.pipeline.name!r}: models[{self.model!r}] or the vector was declared differently when "
                    f"version {manifest.version} was learned: give the changed model a new name"
                )
            try:
                self.fold.resume(self.registry.open(manifest))
            except ArtifactError as error:
                log.error("version refused; an older one is tried", extra={"cause": str(error)})
                continue
            self._parent, self._seconds = manifest.version, manifest.seconds
            log.info("resumed", extra={"model": self.model, "version": manifest.version, "examples": manifest.examples})
            return

    def revoke(self, slots: Iterable[Slot]) -> None:
        if any(slot.partition == 0 for slot in slots):
            self.fold = Fold(self.pipeline, self.model)
            self._settle()

    def process(self, records: Sequence[Record], emit: Emit) -> bool:
        codec, fold, begun = self.records.example, self.fold, time.thread_time()
        for record in records:
            value = record.value() or b""
            if not value.startswith(codec.header):
                # An example of an earlier declaration of the vector: no model declared now could be asked about it.
                self.counts["skipped", "unknown_schema"] += 1
                continue
            try:
                fold.learn(codec.decode(value), record.offset())
            except Exception as error:  # a model's own code; what it raises on one example must not stop the others
                self.counts["skipped", "learn_failed"] += 1
                log.error(
                    "learn_one raised", extra={"model": self.model, "offset": record.offset(), "cause": repr(error)}
                )
        self._seconds += time.thread_time() - begun
        if fold.examples == self._published:
            return False
        due = fold.examples - self._tried >= self.every_examples or self.clock() - self._tried_at >= self.every_seconds
        return self._publish(emit) if due else False

    def finish(self, emit: Emit) -> bool:
        return self._publish(emit) if self.fold.examples > self._published else False

    def _publish(self, emit: Emit) -> bool:
        self._tried, self._tried_at = self.fold.examples, self.clock()
        try:
            manifest = self.registry.publish(
                self.model, self.fold.snapshot(), tuple(self.fold.vectors), parent=self._parent, seconds=self._seconds
            )
        except ArtifactError as error:
            self.counts["not_finite", "model"] += 1
            log.error("version not published; the last good one goes on serving", extra={"cause": str(error)})
            self._published = self.fold.examples  # only another example can make it well
            return False
        except StoreError as error:
            # To go back would be to learn the same examples again and again, and to be no further when it is over.
            self.counts["not_stored", self.model] += 1
            if not self._store_is_away:
                log.error("a version can't be stored; learning goes on, it is tried again", extra={"cause": str(error)})
            self._store_is_away = True
            return False
        if self._store_is_away:
            log.info("versions can be stored again", extra={"model": self.model, "version": manifest.version})
        self._published, self._parent, self._store_is_away = self.fold.examples, manifest.version, False
        emit(self.models, self.registry.encode(manifest), self.model.encode(), 0, None, 0)
        self.counts["snapshots", self.model] += 1
        return True

    def gauges(self) -> Mapping[tuple[str, str], float]:
        return {("model_version", self.model): self.fold.version, ("examples", self.model): self.fold.examples}


def build(
    pipeline: Pipeline, model: str, registry: Registry, broker: Broker, *, every_examples: int, every_seconds: float
) -> Service:
    """Wire one model's learner to its topics."""
    step = Learner(
        pipeline, model, registry, history_of(broker, registry),
        every_examples=every_examples, every_seconds=every_seconds,
    )  # fmt: skip
    return Service(f"learner-{model}", f"{pipeline.name}.learner.{model}", [topics.EXAMPLES.name(pipeline.name)], step)
