"""The online store in memory, with the guarantees of the Redis one: for tests and backtests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tidemill.features.ports import Change, EntitiesByView, StoredNotes, StoredTiles


@dataclass
class MemoryView:
    """A view in memory, with the guarantees of the Redis one."""

    features: dict[str, dict[str, Any]] = field(default_factory=dict)
    tiles: dict[int, dict[str, dict[str, str]]] = field(default_factory=dict)
    offsets: dict[int, int] = field(default_factory=dict)
    notes: dict[int, str] = field(default_factory=dict)

    def load(self, partition: int) -> tuple[int, dict[str, dict[str, str]]] | None:
        """Return (offset, tiles by entity), or None."""
        if partition not in self.offsets:
            return None
        return self.offsets[partition], {name: dict(tiles) for name, tiles in self.tiles.get(partition, {}).items()}

    def reset(self, partition: int) -> None:
        """Forget a partition."""
        self.offsets.pop(partition, None)
        for entity in self.tiles.pop(partition, {}):
            self.features.pop(entity, None)

    def note(self, partition: int) -> str:
        """Return the note beside the offset."""
        return self.notes.get(partition, "")

    def write(self, partition: int, base: int, offset: int, changes: Mapping[str, Change], note: str = "") -> str:
        """Write as `ViewStore.write` says."""
        stored = self.offsets.get(partition, 0)
        if stored > offset:
            return "refused"
        if stored < base:
            return "behind"
        held = self.tiles.setdefault(partition, {})
        for entity, change in changes.items():
            if change.whole and not change.tiles:
                self.features.pop(entity, None)
                held.pop(entity, None)
                continue
            self.features[entity] = {name: value for name, value in change.features.items() if value is not None}
            tiles = {} if change.whole else held.get(entity, {})
            tiles = {k: v for k, v in tiles.items() if k not in change.gone} | dict(change.tiles)
            held[entity] = tiles
        self.offsets[partition] = offset
        self.notes[partition] = note
        return "written"


class MemoryReader:
    """Reads views in memory, as the Redis one reads those in Redis."""

    def __init__(self, stores: Mapping[str, MemoryView]) -> None:
        self.stores = stores

    def read(self, wanted: EntitiesByView, partitions: int) -> tuple[StoredTiles, StoredNotes]:
        """Read as `ViewReader.read` says."""
        held = {view: {n: t for of in self.stores[view].tiles.values() for n, t in of.items()} for view in wanted}
        tiles = {(view, name): dict(held[view].get(name, {})) for view, names in wanted.items() for name in names}
        return tiles, {view: [self.stores[view].notes.get(p) for p in range(partitions)] for view in wanted}
