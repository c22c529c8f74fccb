"""The feed of model versions: a thread that reads the registry, opens and checks each new version, and hands it over.

The scorer takes what is ready between two batches, so reading, unpickling and checking never make a batch wait for
more than the interpreter's lock; and that is let go of piece by piece, when a version is opened and when an old one is freed.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterable
from typing import NamedTuple

from tidemill.errors import ArtifactError, BrokerError, StoreError
from tidemill.registry.latest import latest, slot_of, sound
from tidemill.registry.manifests import Manifest, Registry, Snapshot
from tidemill.scorer.release import release
from tidemill.stream.api import Broker, Record

log = logging.getLogger(__name__)


PAUSE = 0.002
"""Seconds between two pieces of a version that is opened or freed: batches go on meanwhile (see `python -m benchmarks.swap`)."""


class Loaded(NamedTuple):
    """A version that passed every check; `snapshot` None: it did not, and the one in use stays."""

    manifest: Manifest
    snapshot: Snapshot | None


class ModelFeed:
    """Follows the models topic of the registry's pipeline."""

    def __init__(self, registry: Registry, broker: Broker) -> None:
        self.registry, self.broker = registry, broker
        self._ready: queue.SimpleQueue[Loaded] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="models", daemon=True)
        self._next = 0
        self._given: dict[str, Snapshot] = {}
        self._replaced: list[Snapshot] = []
        self._spent: queue.SimpleQueue[Snapshot] = queue.SimpleQueue()

    def start(self) -> None:
        """Open the newest version of each model, so that the first batch meets them; then follow the registry."""
        self._catch_up()
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def take(self) -> list[Loaded]:
        """Return versions that became ready since the last call, oldest first; never waits.

        Who asks again uses what it was given last time: the versions before that may go.
        """
        while self._replaced:
            self._spent.put(self._replaced.pop())
        found: list[Loaded] = []
        while True:
            try:
                loaded = self._ready.get_nowait()
            except queue.Empty:
                return found
            found.append(loaded)
            if loaded.snapshot is not None:
                if loaded.manifest.model in self._given:
                    self._replaced.append(self._given[loaded.manifest.model])
                self._given[loaded.manifest.model] = loaded.snapshot

    def _free(self) -> None:
        """Let go of versions that nobody uses any more; who still holds one keeps it."""
        while not self._spent.empty():
            release([self._spent.get_nowait()], PAUSE)

    def _catch_up(self) -> None:
        found, self._next = latest(
            self.broker, self.registry, dict.fromkeys(self.registry.pipeline.roster, 1), self._next
        )
        for manifests in found.values():
            for manifest in manifests:
                self._open(manifest)

    def _newest(self, batch: Iterable[Record]) -> dict[str, Manifest]:
        manifests = (sound(self.registry, record) for record in batch)
        return {manifest.model: manifest for manifest in manifests if manifest}

    def _open(self, manifest: Manifest) -> None:
        try:
            self._ready.put(Loaded(manifest, self.registry.open(manifest, PAUSE)))
        except (ArtifactError, StoreError) as error:
            log.error("version refused; the one in use stays", extra={"cause": str(error)})
            self._ready.put(Loaded(manifest, None))

    def _run(self) -> None:
        follower = self.broker.follow(slot_of(self.registry), self._next)
        try:
            while not self._stop.is_set():
                self._free()
                try:
                    # Of several versions that came together only the newest of each model is worth opening.
                    for manifest in self._newest(follower.poll(1000, 0.1)).values():
                        self._open(manifest)
                except BrokerError as error:
                    log.warning("models can't be followed for the moment", extra={"cause": str(error)})
                    self._stop.wait(1.0)
        finally:
            follower.close()
