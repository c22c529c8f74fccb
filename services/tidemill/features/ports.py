"""What an online store of views does: Redis in production, memory in tests and backtests."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

#: Ids of entities by view.
EntitiesByView = Mapping[str, Collection[str]]

#: By (view, entity): the entity's tiles as JSON, by their start in ms.
StoredTiles = dict[tuple[str, str], dict[str, str]]

#: By view: the note of each partition; None where the store holds nothing of one.
StoredNotes = dict[str, list[str | None]]


@dataclass
class Change:
    """What one entity's keys shall hold: features (None: has no value now), tiles set, tiles gone; `whole`: only these.

    A whole change without tiles removes the entity.
    """

    features: Mapping[str, Any]
    tiles: Mapping[str, str]
    gone: tuple[str, ...] = ()
    whole: bool = False


class ViewReader(Protocol):
    """Reads the stores of several views at once."""

    def read(self, wanted: EntitiesByView, partitions: int) -> tuple[StoredTiles, StoredNotes]:
        """Return the tiles of the wanted entities, and each view's notes. Raises StoreError where the store is away."""


class ViewStore(Protocol):
    """A store of one view's entities that knows the source offset it stands at, per partition."""

    def load(self, partition: int) -> tuple[int, dict[str, dict[str, str]]] | None:
        """Return (offset, tiles by entity) of a partition; None where the store holds nothing of it."""

    def reset(self, partition: int) -> None:
        """Delete a partition: what the store holds of it belongs to another log or another declaration."""

    def note(self, partition: int) -> str:
        """Return the note that was written beside the offset; empty where there is none."""

    def write(self, partition: int, base: int, offset: int, changes: Mapping[str, Change], note: str = "") -> str:
        """Write the state at `offset`, given that the store stands at `base` or later, and a note beside the offset.

        Returns "written"; "behind" where the store stands before `base` (it was emptied or rolled back) and needs
        everything again; or "refused" where it already stands after `offset`.
        """
