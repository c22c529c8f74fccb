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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from tidemill.errors import ArtifactError, BrokerError, StoreError
from tidemill.models.linear import specialised
from tidemill.models.snapshot import Snapshot
from tidemill.registry.decisions import NOBODY, Decision, ModelRef, all_decisions, decisions
from tidemill.registry.latest import latest, models_partition, versions, why_none
from tidemill.registry.manifests import Manifest, Registry
from tidemill.registry.signing import Chains
from tidemill.stages.scorer.release import release
from tidemill.stream.api import Broker, Follower, Record, TopicPartition
from tidemill.stream.ranges import full_range
from tidemill.wire import topics
from tidemill.wire.records import newness

log = logging.getLogger(__name__)


#: Seconds between two pieces of a version that is opened or freed, for batches to go on (`python -m benchmarks.swap`).
PAUSE_SECONDS = 0.002


#: How often the feed tries again to open the gate's choice: a store comes back, an artifact is restored.
RETRY_SECONDS = 10.0

#: Older than every version.
NONE_SEEN = (-1, 0)

#: Versions of a model that the scorer holds: the one in use, and the one before.
MAX_VERSIONS_KEPT = 2


#: Offsets at the end of each partition of the prediction log in which the versions that served last are looked for.
TAIL_OFFSETS = 100


class Loaded(NamedTuple):
    """A version that passed every check."""

    manifest: Manifest
    snapshot: Snapshot


class Unopened(NamedTuple):
    """A model's newest version can't be opened: the version in use stays; without one, the model can't answer."""

    model: str
    why: str


@dataclass(frozen=True)
class ServingChange:
    """The champion from now on; nobody: the gate's choice could not be opened, and the serving model stays.

    `refused` names the gate's choice, and why it can't be opened, where the scorer has just started: nothing serves.

    `opened` has the version, model and epoch of every reference but the declared models as they learn; `follows` has
    the candidates.
    """

    champion: ModelRef
    opened: Mapping[ModelRef, tuple[int, Any, int]] = field(default_factory=dict)
    follows: Collection[str] = ()
    refused: Unopened | None = None


Ready = Loaded | Unopened | ServingChange


class ModelFeed:
    """Follows the models and promotions topics of the registry's pipeline."""

    def __init__(self, registry: Registry, broker: Broker, clock: Callable[[], float] = time.monotonic) -> None:
        self.registry, self.broker, self.clock = registry, broker, clock
        self._manifests = Chains(registry.codec)
        self._decisions = Chains(decisions(registry.pipeline, registry.keys))
        self._ready: queue.SimpleQueue[Ready] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="models", daemon=True)
        self._next = self._decided = 0
        self._followed: set[str] = set(registry.pipeline.model_names)
        self._serving: tuple[ModelRef, ...] = ()
        self._due: Decision | None = None
        self._tried_at, self._refused = 0.0, ""
        #: By model, the newest version that was opened or, before this process, has served: no older one is opened.
        self._newest_seen: dict[str, tuple[int, int]] = {}
        self._unopened: dict[str, Manifest] = {}
        self._models_tried_at = 0.0
        self._followers: tuple[Follower, ...] = ()
        self._topic_ids: Mapping[str, str] = {}
        self._checked_at = clock()
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

    def take(self) -> list[Ready]:
        """Return what became ready since the last call, oldest first; never waits.

        A caller that asks again uses the versions of last time, and keeps those before them: older ones may go.
        """
        while self._replaced:
            self._spent.put(self._replaced.pop())
        ready: list[Ready] = []
        while True:
            try:
                item = self._ready.get_nowait()
            except queue.Empty:
                return ready
            ready.append(item)
            if isinstance(item, Loaded):
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
        is_start = not self._next
        self._decided = self.broker.offset_range(self._promotions)[1]
        decided = all_decisions(self.registry.pipeline, self.broker, self._decisions.codec, self._decisions)
        wanted = dict.fromkeys(self.registry.pipeline.model_names, 1)
        newest, self._next = latest(self.broker, self.registry, wanted, self._next, self._manifests)
        if is_start:
            self._remember(newest, decided[-1].epochs if decided else {})
        for model, manifests in newest.items():
            if manifests and manifests[0].newness > self._newest_seen.get(model, NONE_SEEN):
                self._open(manifests[0])
            elif is_start:
                self._miss(model, manifests)
        if decided:
            self._due = decided[-1]
            self._serve(self._due, is_start=is_start)

    def _remember(self, newest: Mapping[str, Sequence[Manifest]], epochs: Mapping[str, int]) -> None:
        """Note what served before this process: a version that is older is not opened.

        The prediction log is not signed: of a life that neither a manifest nor a decision names, nothing is believed.
        """
        for model, served in self._served().items():
            known = max([epochs.get(model, 0), *(manifest.epoch for manifest in newest.get(model, ()))])
            if served > (0, 0) and served[0] <= known:
                self._newest_seen[model] = (served[0], served[1] - 1)

    def _served(self) -> dict[str, tuple[int, int]]:
        """Return, by model, epoch and version of the newest version that is at the end of the prediction log."""
        topic, codec = topics.PREDICTION_LOG.name(self.registry.pipeline.name), self.registry.records.prediction_log
        ranges = full_range(self.broker, topic)
        tails = {partition: (max(low, high - TAIL_OFFSETS), high) for partition, (low, high) in ranges.items()}
        served: dict[str, tuple[int, int]] = {}
        for record in (record for batch in self.broker.read(tails) for record in batch):
            prediction = codec.of(record.value())
            for score in (prediction["champion"], *prediction["challengers"]) if prediction else ():
                served[score["model"]] = max(served.get(score["model"], (0, 0)), newness(score))
        return served

    def _miss(self, model: str, manifests: Sequence[Manifest]) -> None:
        """Hand over why a model that has had versions has none to open; without any it is the model's first start."""
        topic, served = models_partition(self.registry).topic, self._newest_seen.get(model)
        why = "" if manifests else why_none(self.broker, self.registry, model)
        if served and not why:
            newest = f"the newest in {topic} is {manifests[0].version}" if manifests else f"{topic} has none"
            why = (
                f"version {served[1] + 1} of {model!r} has served before, and {newest}: the topic was created again or "
                f"restored; its learner publishes a version again"
            )
        if why:
            log.error("a model can't answer", extra={"model": model, "cause": why})
            self._ready.put(Unopened(model, why))

    def _newest(self, batch: Iterable[Record]) -> dict[str, Manifest]:
        manifests = (self._manifests.take(record) for record in self._of_followed(batch))
        return self._newest_of(manifest for manifest in manifests if manifest)

    def _of_followed(self, batch: Iterable[Record]) -> Iterator[Record]:
        followed = {model.encode() for model in self._followed}
        return (record for record in batch if record.key() in followed)

    def _newest_of(self, manifests: Iterable[Manifest]) -> dict[str, Manifest]:
        newest: dict[str, Manifest] = {}
        for manifest in manifests:
            if manifest.newness > max(self._newest_known(manifest.model), _newness(newest.get(manifest.model))):
                newest[manifest.model] = manifest
            elif manifest.newness < self._newest_known(manifest.model):  # an equal one was signed again
                log.error(
                    "an older version was published again; it is passed over",
                    extra={"model": manifest.model, "version": manifest.version, "epoch": manifest.epoch},
                )
        return newest

    def _newest_known(self, model: str) -> tuple[int, int]:
        return max(self._newest_seen.get(model, NONE_SEEN), _newness(self._unopened.get(model)))

    def _open(self, manifest: Manifest) -> None:
        """Open a version that is newer than all before, and hand it over; it is tried again where that fails."""
        is_first_try = self._unopened.get(manifest.model) != manifest
        try:
            snapshot = self.registry.open(manifest, PAUSE_SECONDS)
        except (ArtifactError, StoreError) as error:
            self._unopened[manifest.model] = manifest
            if is_first_try:
                log.error("version refused; the version in use stays", extra={"cause": str(error)})
                self._ready.put(Unopened(manifest.model, str(error)))
            return
        self._unopened.pop(manifest.model, None)
        self._newest_seen[manifest.model] = manifest.newness
        self._ready.put(Loaded(manifest, replace(snapshot, model=specialised(snapshot.model))))

    def _try_again(self) -> None:
        if self._unopened and self.clock() - self._models_tried_at >= RETRY_SECONDS:
            self._models_tried_at = self.clock()
            for manifest in list(self._unopened.values()):
                self._open(manifest)

    def _serve(self, decision: Decision, *, is_start: bool = False) -> None:
        """Open the models of a decision, and hand them over.

        Where the champion can't be opened, the serving model stays, or at the start none serves, and the decision is
        tried again.
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
                opened[ref] = version, _, epoch = self._opened(ref)
            except (ArtifactError, StoreError) as error:
                if ref == decision.champion:
                    self._refuse(str(error), Unopened(ref.model, str(error)) if is_start else None)
                    return
                log.warning("not opened", extra={"model": str(ref), "cause": str(error)})
                continue
            if not ref.version:
                self._newest_seen[ref.model] = max(self._newest_seen.get(ref.model, NONE_SEEN), (epoch, version))
        # A candidate with a pinned version is one of them: it also answers as it learns.
        candidates = {ref.model for ref in wanted} - set(pipeline.model_names)
        self._followed = {*pipeline.model_names, *candidates}
        self._settle(wanted)
        log.info("serving", extra={"champion": str(decision.champion), "decision": decision.id})
        self._ready.put(ServingChange(decision.champion, opened, candidates))

    def _settle(self, wanted: tuple[ModelRef, ...]) -> None:
        self._serving, self._due, self._refused = wanted, None, ""

    def _refuse(self, why: str, refused: Unopened | None) -> None:
        """Log once that the gate's choice can't serve; it is tried again."""
        if why != self._refused:
            stays = "nobody serves" if refused else "the serving model stays"
            log.error(f"the gate's choice can't serve; {stays}", extra={"cause": why})
            self._ready.put(ServingChange(NOBODY, refused=refused))
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
            if manifest.newness < self._newest_seen.get(ref.model, NONE_SEEN):
                raise ArtifactError(f"version {manifest.version} of {ref} is the newest, and a newer one has served")
        return manifest.version, specialised(self.registry.open(manifest).model), manifest.epoch

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._free()
                try:
                    self._follow()
                except BrokerError as error:
                    log.warning("models can't be followed at the moment", extra={"cause": str(error)})
                    self._stop.wait(1.0)
        finally:
            self._stop_following()

    def _follow(self) -> None:
        """Take what has come; where the topics are others than were read, all of it. Raises BrokerError."""
        if self._followers and self._are_others():
            self._read_again()
            self._stop_following()
        if not self._followers:
            positions = self._positions
            self._topic_ids = self.broker.topic_ids([partition.topic for partition in positions])
            self._followers = tuple(self.broker.follow(partition, at) for partition, at in positions.items())
        self._look(*self._followers)

    def _stop_following(self) -> None:
        for follower in self._followers:
            follower.close()
        self._followers = ()

    @property
    def _positions(self) -> dict[TopicPartition, int]:
        """Up to where the topics were read."""
        return {models_partition(self.registry): self._next, self._promotions: self._decided}

    def _are_others(self) -> bool:
        """Whether a topic was created again, or ends before what was read of it; looked at now and then."""
        if self.clock() - self._checked_at < RETRY_SECONDS:
            return False
        self._checked_at = self.clock()
        ids = self.broker.topic_ids([partition.topic for partition in self._positions])
        if any(id_ and self._topic_ids.get(topic, id_) != id_ for topic, id_ in ids.items()):
            return True
        return any(self.broker.offset_range(one)[1] < position for one, position in self._positions.items())

    def _read_again(self) -> None:
        """Read topics that are others than were followed from their beginning. Nothing goes back by them."""
        log.error("versions and decisions are read again: their topics were created again, cut or restored")
        models, next_ = self._read_all(models_partition(self.registry))
        promotions, decided_until = self._read_all(self._promotions)
        for manifest in self._newest_of(self._manifests.read_again(self._of_followed(models))).values():
            self._open(manifest)
        if decided := self._decisions.read_again(promotions):
            self._due = decided[-1]
            self._serve(self._due)
        self._next, self._decided = next_, decided_until

    def _read_all(self, partition: TopicPartition) -> tuple[Iterator[Record], int]:
        """Return all records of a partition, and its end."""
        low, high = self.broker.offset_range(partition)
        batches = self.broker.read({partition: (low, high)}) if high > low else ()
        return (record for batch in batches for record in batch), high

    def _look(self, models: Follower, promotions: Follower) -> None:
        # Of several versions that came together only the newest of each model is worth opening.
        versions, decisions = models.poll(1000, 0.1), promotions.poll(1000, 0.0)
        self._next, self._decided = _after(versions, self._next), _after(decisions, self._decided)
        for manifest in self._newest(versions).values():
            self._open(manifest)
        decided = [one for record in decisions if (one := self._decisions.take(record))]
        if decided:
            self._due = decided[-1]
        if self._due and (decided or self.clock() - self._tried_at >= RETRY_SECONDS):
            self._serve(self._due)
        self._try_again()


def _after(records: Sequence[Record], position: int) -> int:
    """Return the offset after the last of these records; `position` where there is none."""
    return records[-1].offset() + 1 if records else position


def _newness(manifest: Manifest | None) -> tuple[int, int]:
    return NONE_SEEN if manifest is None else manifest.newness
