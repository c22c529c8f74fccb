"""Online features, for other services: what the views know of an entity, as stored or as of any time.

    from tidemill import features, load

    store = features.Store(load("flights"), "redis://localhost:6379/0")
    for view in store.get("dest", "BOS", at=features.now()):
        print(view.view, view.event_time, view.features)

Anything that speaks Redis can read the hashes as well: `HGETALL flights:dest:BOS` holds the features as of the entity's
latest event, whose time is in the field `event_time`; what they are is described, as JSON, in `flights:dest/schema`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tidemill.declare.pipeline import Pipeline
from tidemill.errors import SettingsError
from tidemill.features.lookup import is_complete
from tidemill.features.redis import OnlineStore
from tidemill.features.tiles import Entity, Plan
from tidemill.features.views import schema

__all__ = ["Known", "Store", "now", "schema"]


@dataclass(frozen=True)
class Known:
    """What one view knows of one entity. Times are ms of event time.

    `event_time`: of the entity's latest event in the view, None where it was never seen. `at`: the time as of which
    `features` are, None where it was never seen and no time was given. `whole`: False while the view is being filled,
    was emptied, or lacks what the log no longer held.
    """

    view: str
    at: int | None
    event_time: int | None
    whole: bool
    features: dict[str, float | None]

    @property
    def age_seconds(self) -> float | None:
        """How old, at `at`, the latest event was: freshness, in event time."""
        return None if self.at is None or self.event_time is None else max(0, self.at - self.event_time) / 1000

    def masked(self, mask: Callable[[dict[str, Any]], dict[str, Any]]) -> Known:
        """Return the same with its features as `mask` returns them, perhaps as text, for people."""
        return dataclasses.replace(self, features=mask(self.features))

    def as_dict(self) -> dict[str, Any]:
        """Return the features for programs."""
        return {**vars(self), "features": dict(self.features)}  # dataclasses.asdict would look into each value


class Store:
    """Reads a pipeline's views. Raises StoreError where Redis does not answer.

    Parameters
    ----------
    url
        Where Redis is, as redis://host:port/db.
    """

    def __init__(self, pipeline: Pipeline, url: str) -> None:
        self.pipeline = pipeline
        self._store = OnlineStore(url, pipeline.name)
        self._plans = {view.label: Plan(view) for view in pipeline.views}

    def get(self, entity: str, entity_id: str, at: int | None = None) -> list[Known]:
        """Return what each view of `entity` (the event field, as "dest") knows of `entity_id`, in declared order.

        `at`: event time in ms; windows end there. By default at the entity's latest event, as in the stored hashes.
        Raises SettingsError where no view is kept of such an entity.
        """
        return self.get_many({entity: (entity_id,)}, at)[entity, entity_id]

    def get_many(
        self, entities: Mapping[str, Sequence[str]], at: int | None = None, only: Collection[str] = ()
    ) -> dict[tuple[str, str], list[Known]]:
        """Return as `get` for several entities of several kinds, by (entity, id), in one round trip.

        `only`: the names of the views that are asked; by default all of them.
        """
        entities = {entity: tuple(dict.fromkeys(ids)) for entity, ids in entities.items()}  # each is read once
        views = {entity: [view for view in self.pipeline.views if view.entity == entity] for entity in entities}
        if unknown := [entity for entity, its in views.items() if not its]:
            known = ", ".join(dict.fromkeys(view.entity for view in self.pipeline.views)) or "none at all"
            raise SettingsError(
                f"pipeline {self.pipeline.name!r} keeps no view of {unknown[0]!r}: it keeps views of {known}"
            )
        if only:
            views = {entity: [view for view in its if view.label in only] for entity, its in views.items()}
        wanted = {view.label: entities[entity] for entity, its in views.items() for view in its}
        tiles, notes = self._store.read(wanted, self.pipeline.partitions)
        return {
            (entity, id_): [
                self._known(self._plans[view.label], tiles[view.label, id_], notes[view.label], id_, at)
                for view in views[entity]
            ]
            for entity, ids in entities.items()
            for id_ in ids
        }

    def _known(
        self, plan: Plan, tiles: dict[str, str], notes: list[str | None], entity_id: str, at: int | None
    ) -> Known:
        if not tiles:
            return Known(plan.view.label, at, None, is_complete(plan, notes, at or 0), dict(plan.nothing))
        try:
            entity = Entity.load(plan, tiles)
            event_time = entity.time
            as_of = at if at is not None else event_time
            values = dict(zip(plan.names, plan.read(entity, as_of), strict=True))
        except Exception as error:  # cells that no service has written may make any aggregate raise anything
            raise SettingsError(
                f"view {plan.view.label!r} of {entity_id!r} was stored by another declaration: {error}"
            ) from None
        return Known(plan.view.label, as_of, event_time, is_complete(plan, notes, as_of), values)


def now() -> int:
    """Return the present, in ms since the epoch."""
    return int(time.time() * 1000)
