"""Views of other entities than the event's own: what they are told, and how the featurizer reads them.

An event (or an example) becomes one update for each entity that views are kept of, keyed by that entity, so that all
updates of one entity are in one partition, whichever partition the event was in. The materializer keeps the views; the
featurizer reads them from the online store, for a whole batch in one round trip.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from tidemill.declare.pipeline import Pipeline
from tidemill.errors import StoreError
from tidemill.features.tiles import Entity, Plan
from tidemill.features.views import PARTIAL, Views
from tidemill.stream import api

log = logging.getLogger(__name__)

PAUSE_SECONDS = 1.0
"""How long a store that did not answer is not asked again."""


@dataclass
class Seen:
    """What was read of other entities: `plans` of the views that were whole, and the names of those that were not."""

    entities: Mapping[tuple[str, str], Entity] = field(default_factory=dict)
    plans: Mapping[str, Plan] = field(default_factory=dict)
    stale: list[str] = field(default_factory=list)


class Others(Protocol):
    """The views of other entities, as they are at this moment."""

    def look(self, wanted: Mapping[str, Collection[str]], now: int) -> Seen:
        """Return the state of the wanted entities, by view; `now`: the latest event time (ms) that it is wanted for."""


def is_whole(plan: Plan, notes: Iterable[str | None], now: int) -> bool:
    """Whether a store holds all that a view's windows need at event time `now` (ms); `notes` by partition, None: nothing."""
    for note in notes:
        shape, _, until = (note or "").partition(PARTIAL)
        if shape != plan.shape or int(until or 0) > now:
            return False
    return True


class StoredViews:
    """Views in the online store, where the materializer keeps them."""

    def __init__(
        self, pipeline: Pipeline, reader: api.Reader, partitions: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.plans = {view.label: Plan(view) for view in pipeline.remote_views}
        self.reader, self.partitions, self.clock = reader, partitions, clock
        self._away_until = float("-inf")

    def look(self, wanted: Mapping[str, Collection[str]], now: int) -> Seen:
        """Read them in one round trip; a view that is not whole, or of another declaration, is stale."""
        if self.clock() < self._away_until:
            return Seen(stale=list(self.plans))
        try:
            tiles, notes = self.reader.read(wanted, self.partitions)
        except StoreError as error:
            if self._away_until == float("-inf"):
                log.error("the online store can't be read; vectors go on without it", extra={"cause": str(error)})
            self._away_until = self.clock() + PAUSE_SECONDS
            return Seen(stale=list(self.plans))
        if self._away_until != float("-inf"):
            log.info("the online store can be read again")
            self._away_until = float("-inf")
        whole = {name: plan for name, plan in self.plans.items() if is_whole(plan, notes[name], now)}
        entities: dict[tuple[str, str], Entity] = {}
        for (name, entity), found in tiles.items():
            if found and name in whole:
                try:
                    entities[name, entity] = Entity.load(whole[name], found)
                except ValueError:  # columns of another declaration
                    del whole[name]
        return Seen(entities, whole, [name for name in self.plans if name not in whole])


class HeldViews:
    """Views in the same process, as a backtest has them."""

    def __init__(self, views: Views, partition: int = 0) -> None:
        self.views, self.partition = views, partition

    def look(self, wanted: Mapping[str, Collection[str]], now: int) -> Seen:
        """Return what they hold."""
        del now
        held = {each.plan.view.label: each for each in self.views.held[self.partition]}
        entities = {
            (name, entity): held[name].entities[entity]
            for name, ids in wanted.items()
            for entity in ids
            if entity in held[name].entities
        }
        return Seen(entities, {name: each.plan for name, each in held.items()})
