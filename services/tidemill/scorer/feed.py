"""The feed of model versions: a thread that reads the registry, opens and checks each new version, and hands it over.

The scorer takes what is ready between two batches, so reading, unpickling and checking never make a batch wait for
more than the interpreter's lock.
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
from tidemill.stream.api import Broker, Record

log = logging.getLogger(__name__)


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
        """Return versions that became ready since the last call, oldest first; never waits."""
        found = []
        while True:
            try:
                found.append(self._ready.get_nowait())
            except queue.Empty:
                return found

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
            self._ready.put(Loaded(manifest, self.registry.open(manifest)))
        except (ArtifactError, StoreError) as error:
            log.error("version refused; the one in use stays", extra={"cause": str(error)})
            self._ready.put(Loaded(manifest, None))

    def _run(self) -> None:
        follower = self.broker.follow(slot_of(self.registry), self._next)
        try:
            while not self._stop.is_set():
                try:
                    # Of several versions that came together only the newest of each model is worth opening.
                    for manifest in self._newest(follower.poll(1000, 0.1)).values():
                        self._open(manifest)
                except BrokerError as error:
                    log.warning("models can't be followed for the moment", extra={"cause": str(error)})
                    self._stop.wait(1.0)
        finally:
            follower.close()
