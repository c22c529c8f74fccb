"""The feed of model versions: a thread that reads the registry, opens and checks each new version, and hands it over.

It follows the decisions as well: a version that is to serve is opened before the scorer is told to seat it. The scorer
takes what is ready between two batches, so reading, unpickling and checking never make a batch wait for more than the
interpreter's lock; and that is let go of piece by piece, when a version is opened and when an old one is freed.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tidemill.errors import ArtifactError, BrokerError, StoreError
from tidemill.models.snapshot import Snapshot
from tidemill.registry.decisions import NOBODY, Decision, ModelRef, all_decisions, decisions
from tidemill.registry.latest import latest, models_partition, valid_manifest, versions
from tidemill.registry.manifests import Manifest, Registry
from tidemill.stages.scorer.release import release
from tidemill.stream.api import Broker, Follower, Record, TopicPartition
from tidemill.wire import topics

log = logging.getLogger(__name__)


#: Seconds between two pieces of a version that is opened or freed: batches go on meanwhile (see `python -m benchmarks.swap`).
PAUSE_SECONDS = 0.002


#: How often the feed tries again to open the gate's choice: a store comes back, an artifact is restored.
RETRY_SECONDS = 10.0

#: Versions of a model that the scorer holds: the one in use, and the one before.
MAX_VERSIONS_KEPT = 2


class Loaded(NamedTuple):
    """A version that passed every check; `snapshot` None: it did not, and the one in use stays."""

    manifest: Manifest
    snapshot: Snapshot | None


@dataclass(frozen=True)
class ServingChange:
    """Who serves from now on; nobody: whom the gate chose could not be opened, and who serves stays.

    `opened` has version and model of every seat that is no model of the model_names as it learns, `follows` the candidates.
    """

    champion: ModelRef
    opened: Mapping[ModelRef, tuple[int, Any]] = field(default_factory=dict)
    follows: Collection[str] = ()


class ModelFeed:
    """Follows the models and promotions topics of the registry's pipeline."""

    def __init__(self, registry: Registry, broker: Broker, clock: Callable[[], float] = time.monotonic) -> None:
        self.registry, self.broker, self.clock = registry, broker, clock
        self._decisions = decisions(registry.pipeline, registry.key)
        self._ready: queue.SimpleQueue[Loaded | ServingChange] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="models", daemon=True)
        self._next = self._decided = 0
        self._followed: set[str] = set(registry.pipeline.model_names)
        self._seated: tuple[ModelRef, ...] = ()
        self._due: Decision | None = None
        self._tried_at, self._refused = 0.0, ""
        self._given: dict[str, deque[Snapshot]] = {}
        self._replaced: list[Snapshot] = []
        self._spent: queue.SimpleQueue[Snapshot] = queue.SimpleQueue()

    def start(self) -> None:
        """Open the newest version of each model, and who serves, so that the first batch meets them; then follow the registry."""
        self._catch_up()
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def take(self) -> list[Loaded | ServingChange]:
        """Return what became ready since the last call, oldest first; never waits.

        Who asks again uses what it was given last time, and keeps the version before that: older ones may go.
        """
        while self._replaced:
            self._spent.put(self._replaced.pop())
        found: list[Loaded | ServingChange] = []
        while True:
            try:
                item = self._ready.get_nowait()
            except queue.Empty:
                return found
            found.append(item)
            if isinstance(item, Loaded) and item.snapshot is not None:
                given = self._given.setdefault(item.manifest.model, deque())
                given.append(item.snapshot)
                if len(given) > MAX_VERSIONS_KEPT:
                    self._replaced.append(given.popleft())

    def _free(self) -> None:
        """Let go of versions that nobody uses any more; who still holds one keeps it."""
        while not self._spent.empty():
            release([self._spent.get_nowait()], PAUSE_SECONDS)

    @property
    def _promotions(self) -> TopicPartition:
        return TopicPartition(topics.PROMOTIONS.name(self.registry.pipeline.name), 0)

    def _catch_up(self) -> None:
        wanted = dict.fromkeys(self.registry.pipeline.model_names, 1)
        found, self._next = latest(self.broker, self.registry, wanted, self._next)
        for manifests in found.values():
            for manifest in manifests:
                self._open(manifest)
        self._decided = self.broker.offset_range(self._promotions)[1]
        decided = all_decisions(self.registry.pipeline, self.broker, self._decisions)
        if decided:
            self._due = decided[-1]
            self._seat(self._due)

    def _newest(self, batch: Iterable[Record]) -> dict[str, Manifest]:
        manifests = (valid_manifest(self.registry, record) for record in batch)
        return {manifest.model: manifest for manifest in manifests if manifest and manifest.model in self._followed}

    def _open(self, manifest: Manifest) -> None:
        try:
            self._ready.put(Loaded(manifest, self.registry.open(manifest, PAUSE_SECONDS)))
        except (ArtifactError, StoreError) as error:
            log.error("version refused; the one in use stays", extra={"cause": str(error)})
            self._ready.put(Loaded(manifest, None))

    def _seat(self, decision: Decision) -> None:
        """Open whom a decision seats, and hand it over; where the champion can't be opened, whoever serves stays, and it is due."""
        pipeline, opened, wanted = self.registry.pipeline, {}, decision.model_refs
        self._tried_at = self.clock()
        if wanted == self._seated:
            self._due = None
            return
        if not pipeline.knows(decision.champion.model):
            log.error(
                "the champion is declared no more; the declared one serves", extra={"champion": str(decision.champion)}
            )
            self._followed = set(pipeline.model_names)
            self._settle(wanted)
            self._ready.put(ServingChange(ModelRef(pipeline.champion)))
            return
        for seat in wanted:
            if not seat.version and seat.model in pipeline.model_names:
                continue
            try:
                opened[seat] = self._opened(seat)
            except (ArtifactError, StoreError) as error:
                if seat == decision.champion:
                    self._refuse(str(error))
                    return
                log.warning("not opened", extra={"seat": str(seat), "cause": str(error)})
        candidates = {seat.model for seat in wanted} - set(
            pipeline.model_names
        )  # those that are held at a version shadow as well
        self._followed = {*pipeline.model_names, *candidates}
        self._settle(wanted)
        log.info("seated", extra={"champion": str(decision.champion), "decision": decision.id})
        self._ready.put(ServingChange(decision.champion, opened, candidates))

    def _settle(self, wanted: tuple[ModelRef, ...]) -> None:
        self._seated, self._due, self._refused = wanted, None, ""

    def _refuse(self, why: str) -> None:
        """Say once that whom the gate chose can't serve; it is tried again."""
        if why != self._refused:
            log.error("whom the gate chose can't serve; who serves stays", extra={"cause": why})
            self._ready.put(ServingChange(NOBODY))
        self._refused = why

    def _opened(self, seat: ModelRef) -> tuple[int, Any]:
        """Return version and model. Raises ArtifactError where there is none, or it is damaged or forged."""
        if seat.version:
            found, refused = versions(self.broker, self.registry, [(seat.model, seat.version)])
            manifest = found.get((seat.model, seat.version))
            if manifest is None:
                raise ArtifactError(refused.get((seat.model, seat.version)) or f"there is no version {seat}")
        else:
            newest = latest(self.broker, self.registry, {seat.model: 1})[0][seat.model]
            if not newest:
                raise ArtifactError(f"no version of {seat} was published yet")
            manifest = newest[0]
        return manifest.version, self.registry.open(manifest).model

    def _run(self) -> None:
        models = self.broker.follow(models_partition(self.registry), self._next)
        promotions = self.broker.follow(self._promotions, self._decided)
        try:
            while not self._stop.is_set():
                self._free()
                try:
                    self._look(models, promotions)
                except BrokerError as error:
                    log.warning("models can't be followed for the moment", extra={"cause": str(error)})
                    self._stop.wait(1.0)
        finally:
            models.close()
            promotions.close()

    def _look(self, models: Follower, promotions: Follower) -> None:
        # Of several versions that came together only the newest of each model is worth opening.
        for manifest in self._newest(models.poll(1000, 0.1)).values():
            self._open(manifest)
        decided = [one for record in promotions.poll(1000, 0.0) if (one := self._decisions.valid(record))]
        if decided:
            self._due = decided[-1]
        if self._due and (decided or self.clock() - self._tried_at >= RETRY_SECONDS):
            self._seat(self._due)
