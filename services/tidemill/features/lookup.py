"""Views of other entities than the event's own, as the featurizer reads them: for a whole batch in one round trip.

An event (or an example) becomes one update for each entity that views are kept of, keyed by that entity, so that all
updates of one entity are in one partition, whichever partition the event was in. The materializer keeps the views.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from tidemill.declare.pipeline import Pipeline
from tidemill.errors import StoreError
from tidemill.features.ports import EntitiesByView, ViewReader
from tidemill.features.tiles import Entity, Plan
from tidemill.features.views import Views, read_note

log = logging.getLogger(__name__)

#: A store that did not answer is not asked again for so long.
PAUSE_SECONDS = 1.0


@dataclass
class RemoteLookup:
    """What was read: entities by (view, entity), plans of the views that could be read, and names of the others.

    `complete_from`: by view, from which event time (ms) on its windows lack nothing.
    """

    entities: Mapping[tuple[str, str], Entity] = field(default_factory=dict)
    plans: Mapping[str, Plan] = field(default_factory=dict)
    stale: list[str] = field(default_factory=list)
    complete_from: Mapping[str, int] = field(default_factory=dict)

    def stale_at(self, now: int) -> list[str]:
        """Return the names of the views that can't be asked for event time `now` (ms)."""
        return [*self.stale, *(name for name, begin in self.complete_from.items() if begin > now)]


class RemoteViews(Protocol):
    """The views of other entities, as they are at this moment."""

    def lookup(self, wanted: EntitiesByView) -> RemoteLookup:
        """Return the state of the wanted entities."""


def complete_from(plan: Plan, notes: Iterable[str | None]) -> int | None:
    """Return the event time (ms) from which on a store holds all that a view's windows need; `notes` by partition.

    None where it is of another declaration, or lacks a partition.
    """
    parsed = [read_note(note) for note in notes]
    if any(note.shape != plan.shape for note in parsed):
        return None
    return max((note.until for note in parsed), default=0)


def is_complete(plan: Plan, notes: Iterable[str | None], now: int) -> bool:
    """Whether a store holds all that a view's windows need at event time `now` (ms); `notes` are by partition."""
    begin = complete_from(plan, notes)
    return begin is not None and begin <= now


class StoredRemoteViews:
    """Views in the online store, where the materializer keeps them."""

    def __init__(
        self, pipeline: Pipeline, reader: ViewReader, partitions: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.plans = {view.label: Plan(view) for view in pipeline.remote_views}
        self.reader, self.partitions, self.clock = reader, partitions, clock
        self._away_until = float("-inf")

    def lookup(self, wanted: EntitiesByView) -> RemoteLookup:
        """Read them in one round trip; a view of another declaration, or one that lacks a partition, is stale."""
        began = self.clock()
        if began < self._away_until:
            return RemoteLookup(stale=list(self.plans))
        try:
            tiles, notes = self.reader.read(wanted, self.partitions)
        except StoreError as error:
            if self._away_until == float("-inf"):
                log.error("the online store can't be read; vectors go on without it", extra={"cause": str(error)})
            answered = self.clock()
            # One that hangs costs its timeout: at most half of the time is spent on waiting for it.
            self._away_until = answered + max(PAUSE_SECONDS, answered - began)
            return RemoteLookup(stale=list(self.plans))
        if self._away_until != float("-inf"):
            log.info("the online store can be read again")
            self._away_until = float("-inf")
        begins = {name: complete_from(plan, notes[name]) for name, plan in self.plans.items()}
        complete = {name: plan for name, plan in self.plans.items() if begins[name] is not None}
        entities: dict[tuple[str, str], Entity] = {}
        for (name, entity), stored in tiles.items():
            if stored and name in complete:
                try:
                    entities[name, entity] = Entity.load(complete[name], stored)
                except ValueError:  # columns of another declaration
                    del complete[name]
        stale = [name for name in self.plans if name not in complete]
        return RemoteLookup(entities, complete, stale, {name: begins[name] or 0 for name in complete})


class InMemoryRemoteViews:
    """Views in the same process, as a backtest has them."""

    def __init__(self, views: Views, partition: int = 0) -> None:
        self.views, self.partition = views, partition

    def lookup(self, wanted: EntitiesByView) -> RemoteLookup:
        """Return what they hold."""
        states = {state.plan.label: state for state in self.views.states[self.partition]}
        entities = {
            (name, entity): states[name].entities[entity]
            for name, ids in wanted.items()
            for entity in ids
            if entity in states[name].entities
        }
        return RemoteLookup(entities, {name: state.plan for name, state in states.items()})
