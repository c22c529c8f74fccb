"""The feed of model versions: a thread that reads the registry, opens and checks each new version, and hands it over.

It follows the decisions as well: a version that is to serve is opened before the scorer gets it. The scorer
takes what is ready between two batches, so reading, unpickling and checking make a batch wait for the interpreter's
lock at most. The thread lets go of that lock piece by piece, when it opens a version and when it frees an old one.
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
from tidemill.registry.latest import latest, models_partition, versions
from tidemill.registry.manifests import Manifest, Registry
from tidemill.registry.signing import Chains
from tidemill.stages.scorer.release import release
from tidemill.stream.api import Broker, Follower, Record, TopicPartition
from tidemill.wire import topics

log = logging.getLogger(__name__)


#: Seconds between two pieces of a version that is opened or freed, for batches to go on (`python -m benchmarks.swap`).
PAUSE_SECONDS = 0.002


#: How often the feed tries again to open the gate's choice: a store comes back, an artifact is restored.
RETRY_SECONDS = 10.0

#: Versions of a model that the scorer holds: the one in use, and the one before.
MAX_VERSIONS_KEPT = 2


class Loaded(NamedTuple):
    """A version that passed every check; `snapshot` None: it failed one, and the version in use stays."""

    manifest: Manifest
    snapshot: Snapshot | None


@dataclass(frozen=True)
class ServingChange:
    """The champion from now on; nobody: the gate's choice could not be opened, and the serving model stays.

    `opened` has the version, model and epoch of every reference but the declared models as they learn; `follows` has
    the candidates.
    """

    champion: ModelRef
    opened: Mapping[ModelRef, tuple[int, Any, int]] = field(default_factory=dict)
    follows: Collection[str] = ()


class ModelFeed:
    """Follows the models and promotions topics of the registry's pipeline."""

    def __init__(self, registry: Registry, broker: Broker, clock: Callable[[], float] = time.monotonic) -> None:
        self.registry, self.broker, self.clock = registry, broker, clock
        self._manifests = Chains(registry.codec)
        self._decisions = Chains(decisions(registry.pipeline, registry.keys))
        self._ready: queue.SimpleQueue[Loaded | ServingChange] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="models", daemon=True)
        self._next = self._decided = 0
        self._followed: set[str] = set(registry.pipeline.model_names)
        self._serving: tuple[ModelRef, ...] = ()
        self._due: Decision | None = None
        self._tried_at, self._refused = 0.0, ""
        self._given: dict[str, deque[Snapshot]] = {}
        self._replaced: list[Snapshot] = []
        self._spent: queue.SimpleQueue[Snapshot] = queue.SimpleQueue()

    def start(self) -> None:
        """Open the serving model and each model's newest version before the first batch; then follow the registry."""
        self._catch_up()
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def take(self) -> list[Loaded | ServingChange]:
        """Return what became ready since the last call, oldest first; never waits.

        A caller that asks again uses the versions of last time, and keeps those before them: older ones may go.
        """
        while self._replaced:
            self._spent.put(self._replaced.pop())
        ready: list[Loaded | ServingChange] = []
        while True:
            try:
                item = self._ready.get_nowait()
            except queue.Empty:
                return ready
            ready.append(item)
            if isinstance(item, Loaded) and item.snapshot is not None:
                given = self._given.setdefault(item.manifest.model, deque())
                given.append(item.snapshot)
                if len(given) > MAX_VERSIONS_KEPT:
                    self._replaced.append(given.popleft())

    def _free(self) -> None:
        """Free versions that are no longer used; who still holds one keeps it."""
        while not self._spent.empty():
            release([self._spent.get_nowait()], PAUSE_SECONDS)

    @property
    def _promotions(self) -> TopicPartition:
        return TopicPartition(topics.PROMOTIONS.name(self.registry.pipeline.name), 0)

    def _catch_up(self) -> None:
        wanted = dict.fromkeys(self.registry.pipeline.model_names, 1)
        newest, self._next = latest(self.broker, self.registry, wanted, self._next, self._manifests)
        for manifests in newest.values():
            for manifest in manifests:
                self._open(manifest)
        self._decided = self.broker.offset_range(self._promotions)[1]
        codec = self._decisions.codec
        decided = all_decisions(self.registry.pipeline, self.broker, codec, self._decisions)
        if decided:
            self._due = decided[-1]
            self._serve(self._due)

    def _newest(self, batch: Iterable[Record]) -> dict[str, Manifest]:
        followed = {model.encode() for model in self._followed}
        manifests = (self._manifests.take(record) for record in batch if record.key() in followed)
        return {manifest.model: manifest for manifest in manifests if manifest}

    def _open(self, manifest: Manifest) -> None:
        try:
            self._ready.put(Loaded(manifest, self.registry.open(manifest, PAUSE_SECONDS)))
        except (ArtifactError, StoreError) as error:
            log.error("version refused; the version in use stays", extra={"cause": str(error)})
            self._ready.put(Loaded(manifest, None))

    def _serve(self, decision: Decision) -> None:
        """Open the models of a decision, and hand them over.

        Where the champion can't be opened, the serving model stays, and the decision is tried again.
        """
        pipeline, opened, wanted = self.registry.pipeline, {}, decision.model_refs
        self._tried_at = self.clock()
        if wanted == self._serving:
            self._due = None
            return
        if not pipeline.knows(decision.champion.model):
            log.error(
                "the champion is no longer declared; the declared one serves",
                extra={"champion": str(decision.champion)},
            )
            self._followed = set(pipeline.model_names)
            self._settle(wanted)
            self._ready.put(ServingChange(ModelRef(pipeline.champion)))
            return
        for ref in wanted:
            if not ref.version and ref.model in pipeline.model_names:
                continue
            try:
                opened[ref] = self._opened(ref)
            except (ArtifactError, StoreError) as error:
                if ref == decision.champion:
                    self._refuse(str(error))
                    return
                log.warning("not opened", extra={"model": str(ref), "cause": str(error)})
        # A candidate with a pinned version is one of them: it also answers as it learns.
        candidates = {ref.model for ref in wanted} - set(pipeline.model_names)
        self._followed = {*pipeline.model_names, *candidates}
        self._settle(wanted)
        log.info("serving", extra={"champion": str(decision.champion), "decision": decision.id})
        self._ready.put(ServingChange(decision.champion, opened, candidates))

    def _settle(self, wanted: tuple[ModelRef, ...]) -> None:
        self._serving, self._due, self._refused = wanted, None, ""

    def _refuse(self, why: str) -> None:
        """Log once that the gate's choice can't serve; it is tried again."""
        if why != self._refused:
            log.error("the gate's choice can't serve; the serving model stays", extra={"cause": why})
            self._ready.put(ServingChange(NOBODY))
        self._refused = why

    def _opened(self, ref: ModelRef) -> tuple[int, Any, int]:
        """Return version, model and epoch. Raises ArtifactError where there is none, or it is damaged or forged."""
        if ref.version:
            manifests, refused = versions(self.broker, self.registry, [(ref.model, ref.version)])
            manifest = manifests.get((ref.model, ref.version))
            if manifest is None:
                raise ArtifactError(refused.get((ref.model, ref.version)) or f"there is no version {ref}")
        else:
            newest = latest(self.broker, self.registry, {ref.model: 1}, chains=self._manifests)[0][ref.model]
            if not newest:
                raise ArtifactError(f"no version of {ref} was published yet")
            manifest = newest[0]
        return manifest.version, self.registry.open(manifest).model, manifest.epoch

    def _run(self) -> None:
        models = self.broker.follow(models_partition(self.registry), self._next)
        promotions = self.broker.follow(self._promotions, self._decided)
        try:
            while not self._stop.is_set():
                self._free()
                try:
                    self._look(models, promotions)
                except BrokerError as error:
                    log.warning("models can't be followed at the moment", extra={"cause": str(error)})
                    self._stop.wait(1.0)
        finally:
            models.close()
            promotions.close()

    def _look(self, models: Follower, promotions: Follower) -> None:
        # Of several versions that came together only the newest of each model is worth opening.
        for manifest in self._newest(models.poll(1000, 0.1)).values():
            self._open(manifest)
        decided = [one for record in promotions.poll(1000, 0.0) if (one := self._decisions.take(record))]
        if decided:
            self._due = decided[-1]
        if self._due and (decided or self.clock() - self._tried_at >= RETRY_SECONDS):
            self._serve(self._due)
