"""Retention: artifacts that the declaration does not keep leave the store, while the learner runs.

kept    see `tidemill.Retention`; and any artifact that a kept version of any model shares
input   the models topic, verified: what is refused deletes nothing, and keeps nothing; and the decisions
crash   what goes follows from the log alone, so a run that breaks off is done again. Manifests stay: one whose artifact
        is gone says so wherever it is opened, and a fold makes it again
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from tidemill import metrics
from tidemill.declare.pipeline import Pipeline
from tidemill.declare.retention import Retention
from tidemill.durations import milliseconds
from tidemill.errors import BrokerError, TidemillError
from tidemill.keys import RefusedError
from tidemill.registry.decisions import kept_versions, readable_decisions
from tidemill.registry.latest import MAX_MANIFESTS_BACK, Version, models_partition
from tidemill.registry.manifests import Manifest, Registry
from tidemill.registry.signing import Vouched, refusals
from tidemill.registry.versions import Versions
from tidemill.stream.api import Broker

log = logging.getLogger(__name__)

#: How often the learner looks for what may go.
LOOK_EVERY_SECONDS = 60.0
#: While the topic is read there is a pause after so many records, for the learner.
PAUSE_EVERY_RECORDS, PAUSE_SECONDS = 200, 0.02
#: Rounds of the gate's guard that it may go back to: the versions that answered in them stay.
GUARD_ROUNDS = 3

_HOUR, _DAY = milliseconds("1h"), milliseconds("1d")


class Stored(NamedTuple):
    """A version whose artifact, or its replacement, is in the store."""

    model: str
    newness: tuple[int, int]
    created_at: int
    digest: str
    bytes: int


def staying(
    versions: Iterable[Stored],
    retention: Retention,
    kept: Collection[Version] = (),
    guarded: int = 0,
    now: float = math.inf,
) -> set[Stored]:
    """Return which versions of one model stay.

    `kept` are named by decisions; `guarded` is how many examples before the newest version the gate may go back.
    `now` is the wall clock, in ms: versions of a clock that was ahead make no others old.
    """
    newest_first = sorted(versions, key=lambda one: one.newness, reverse=True)
    if not newest_first:
        return set()
    newest = newest_first[0]
    now = min(now, max(one.created_at for one in newest_first))
    steps = ((milliseconds(retention.all), 1), (milliseconds(retention.hourly), _HOUR))
    stays, periods = set(newest_first[:MAX_MANIFESTS_BACK]), set[tuple[int, int]]()
    for one in newest_first:
        age = now - one.created_at
        step = next((step for limit, step in steps if age <= limit), _DAY)
        # The last of an hour that is over may be the last of its day as well.
        first = [
            (size, one.created_at // size) for size in (_HOUR, _DAY) if (size, one.created_at // size) not in periods
        ]
        periods.update(first)
        is_first = step == 1 or any(size == step for size, _ in first)
        is_named = (one.model, one.newness[1]) in kept
        is_guarded = one.newness[0] == newest.newness[0] and one.newness[1] >= newest.newness[1] - guarded
        if (is_first and age <= milliseconds(retention.daily)) or is_named or (guarded and is_guarded):
            stays.add(one)
    return stays


class Retainer:
    """Deletes what one model's declaration does not keep, and measures what is stored; in a thread of its own."""

    def __init__(
        self,
        pipeline: Pipeline,
        model: str,
        registry: Registry,
        broker: Broker,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self.pipeline, self.model, self.registry, self.broker, self._sleep = pipeline, model, registry, broker, sleep
        self._partition, self._reading = models_partition(registry), Vouched(registry.codec)
        self._stored: dict[tuple[str, tuple[int, int]], Stored] = {}
        self._newest: dict[str, Manifest] = {}
        self._next = -1
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"retention-{model}", daemon=True)

    def start(self) -> None:
        """Start to look, after a while: a learner that starts has other things to do."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def _run(self) -> None:
        while not self._ending.wait(LOOK_EVERY_SECONDS):
            try:
                self.look()
            except Exception as error:  # whatever it is, the learner learns on, and it is tried again
                cause = str(error) if isinstance(error, TidemillError) else repr(error)
                log.warning("artifacts can't be pruned at the moment", extra={"model": self.model, "cause": cause})

    def look(self) -> list[str]:
        """Read what was published, delete what may go, and return its SHA-256. Raises BrokerError or StoreError."""
        self._read()
        gone = self._prune(self.pipeline.retention) if self.pipeline.retention else []
        own = [one for one in self._stored.values() if self._is_own(one.model)]
        metrics.STORED_VERSIONS.labels(self.model).set(len(own))
        metrics.STORED_BYTES.labels(self.model).set(sum({one.digest: one.bytes for one in own}.values()))
        return gone

    def _is_own(self, model: str) -> bool:
        """Whether a model is this learner's: its own, or a candidate of it."""
        return model.partition("~")[0] == self.model

    def _read(self) -> None:
        """Take the manifests that have come; at first all that the topic has."""
        low, high = self.broker.offset_range(self._partition)
        if self._next < low or self._next > high:  # at the start, or the topic was created again
            self._stored.clear()
            self._newest.clear()
            sizes = self.registry.store.sizes()
            for count, listed in enumerate(Versions(self.pipeline, self.broker, self.registry).read(), 1):
                if self._ending.is_set():
                    raise BrokerError("stopped while versions were read")
                if listed.manifest and not listed.refused:
                    self._take(listed.manifest, sizes.get(listed.manifest.sha256))
                if count % PAUSE_EVERY_RECORDS == 0:
                    self._sleep(PAUSE_SECONDS)
        elif high > self._next:
            for batch in self.broker.read({self._partition: (self._next, high)}):
                for record in batch:
                    try:
                        manifest = self._reading.check(record)
                    except RefusedError as error:
                        refusals.note(record.topic(), record.offset(), record.value() or b"", error)
                        continue
                    self._take(manifest, self.registry.store.size(manifest.sha256))
        self._next = high

    def _take(self, manifest: Manifest, size: int | None) -> None:
        key = manifest.model, manifest.newness
        if manifest.model not in self._newest or manifest.newness > self._newest[manifest.model].newness:
            self._newest[manifest.model] = manifest
        if size is None and not self.registry.store.has_note(manifest.sha256):
            return  # pruned before
        self._stored[key] = Stored(manifest.model, manifest.newness, manifest.created_at, manifest.sha256, size or 0)

    def _prune(self, retention: Retention) -> list[str]:
        kept = kept_versions(readable_decisions(self.pipeline, self.broker))
        guarded = GUARD_ROUNDS * self.pipeline.gate.watch if self.pipeline.gate else 0
        now = self._clock() * 1000
        by_model: dict[str, list[Stored]] = {}
        for one in self._stored.values():
            by_model.setdefault(one.model, []).append(one)
        stays = {one for own in by_model.values() for one in staying(own, retention, kept, guarded, now)}
        digests = {one.digest for one in stays}
        gone: list[str] = []
        for model in sorted(filter(self._is_own, by_model)):
            going = sorted({*by_model[model]} - stays, key=lambda one: one.newness)
            if not going:
                continue
            if not self.registry.is_intact(self._newest[model]):
                log.error("nothing is pruned: the newest version's artifact is lost", extra={"model": model})
                continue
            for one in going:
                if one.digest not in digests:
                    self._delete(one.digest, digests)
                    gone.append(one.digest)
                del self._stored[one.model, one.newness]
        if gone:
            metrics.PRUNED.labels(self.model).inc(len(gone))
            log.info("artifacts pruned", extra={"model": self.model, "artifacts": len(gone)})
        return gone

    def _delete(self, digest: str, staying: Collection[str]) -> None:
        replacement = self.registry.replacement_sha256(digest)
        if replacement and replacement not in staying:
            self.registry.store.delete(replacement)
        self.registry.store.delete(digest)
