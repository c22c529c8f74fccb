"""The state of views: entities' tiles by partition, and what of it the online store does not have yet.

Kept by the featurizer, of the views of the events' own key, and by the materializer, of all others. State is a function
of the offsets of one topic; the store is brought to what is committed, and filled again where it was emptied.
"""

from __future__ import annotations

import heapq
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from tidemill.declare.pipeline import Pipeline
from tidemill.declare.view import View
from tidemill.errors import Retry, StoreError
from tidemill.features.ports import Change, ViewStore
from tidemill.features.tiles import Entity, Plan
from tidemill.watermark import NEVER, SLACK_PART, State, Watermark

log = logging.getLogger(__name__)

#: How often a store is asked whether it still holds what was written, when there is nothing to write.
RECHECK_SECONDS = 1.0
PARTIAL = " partial until "
#: Begins, in the note beside a store's offset, the state of the watermark.
WATERMARK = " watermark "


class Note(NamedTuple):
    """What a store holds beside an offset: the tiles' shape, until when (ms) they are partial, and the watermark."""

    shape: str
    until: int
    watermark: State


@lru_cache(maxsize=1_000)  # of each partition, for each entity that is read
def read_note(note: str | None) -> Note:
    """Return what `ViewState.note` wrote.

    The shape is empty where nothing is stored, or something that no service has written.
    """
    rest, _, state = (note or "").partition(WATERMARK)
    shape, _, until = rest.partition(PARTIAL)
    try:
        return Note(shape, int(until or 0), tuple(map(int, state.split())))
    except ValueError:
        return Note("", 0, ())


def stored_entity(plan: Plan, tiles: Mapping[str, str]) -> Entity:
    """Return the entity whose tiles a store holds. Raises ValueError where features can't be read of them."""
    entity = Entity.load(plan, tiles)
    try:
        plan.read(entity, entity.time)
    except Exception as error:  # cells that no service has written may make any aggregate raise anything
        raise ValueError(f"its tiles can't be read: {type(error).__name__}: {error}") from error
    return entity


class ViewState:
    """One view's state for one partition, and what of it the store does not have yet, where there is a store."""

    def __init__(self, plan: Plan, *, has_store: bool = True) -> None:
        self.plan, self._has_store = plan, has_store
        self.entities: dict[str, Entity] = {}
        self.base = 0
        self.offset = 0
        self.is_stored = False
        #: Whether the store could not be asked when this began: it may hold anything.
        self.is_unread = False
        self._until = 0
        self._is_cut = False
        self._watermark = Watermark(plan.longest // SLACK_PART)
        self._dirty: dict[str, tuple[set[int], set[int]]] = {}
        self._forgotten: set[str] = set()
        self._by_time: list[tuple[int, str]] = []

    def restore(self, entities: dict[str, Entity], offset: int, until: int, watermark: State) -> None:
        """Go on from what a store held at `offset`, partial until `until`."""
        self.entities, self.base, self.offset, self.is_stored = entities, offset, offset, True
        self._until = until
        if self.plan.expires:
            self._by_time = [(entity.time, name) for name, entity in entities.items()]
            heapq.heapify(self._by_time)
        self._watermark = Watermark(self._watermark.slack, watermark)

    @property
    def watermark(self) -> int:
        """The event time, in ms, that the view has reached: its windows are complete, and entities expire, by it."""
        return self._watermark.time

    @property
    def event_time(self) -> int:
        """The watermark; of the first few events, before there is one, the time of the newest, in ms."""
        newest = (entity.time for entity in self.entities.values() if entity.starts)
        return self.watermark if self.watermark > NEVER else max(newest, default=NEVER)

    def cut(self) -> None:
        """Some of what came before the next event is missing."""
        self._is_cut = True

    def begins(self, now: int) -> None:
        """Nothing from before `now` (ms) has come: windows that reach further back are partial."""
        self._until = max(self._until, now + self.plan.longest)

    def fill(self) -> None:
        """What was missing has come."""
        self._until = 0

    def is_partial(self, now: int) -> bool:
        """Whether a window that ends at `now` may reach back to events that are missing."""
        if self._is_cut:
            self._is_cut = False
            self.begins(now)
        return now < self._until

    @property
    def partial_until(self) -> int:
        """Until which event time (ms) windows lack events, after the latest event; 0 where they lack none."""
        return self._until if self._until > self.watermark else 0

    @property
    def note(self) -> str:
        """What is written beside the offset in the store; `read_note` reads it."""
        until = f"{PARTIAL}{self._until}" if self.partial_until else ""
        state = " ".join(map(str, self._watermark.state))
        return f"{self.plan.shape}{until}{WATERMARK}{state}"

    def add(self, entity_id: str, now: int, event: Mapping[str, Any]) -> bool:
        """Add an event of time `now` (ms); returns whether it was still in time."""
        watermark = self._watermark
        watermark.add(now)
        entity = self.entities.get(entity_id)
        if entity is None:
            entity = self.entities[entity_id] = Entity(self.plan)
            if self.plan.expires:
                heapq.heappush(self._by_time, (now, entity_id))
        added = entity.add(self.plan, now, event, watermark.time)
        if added is None:
            return False
        if self._has_store:
            self._note_change(entity_id, *added)
        if self.plan.expires:
            self._expire()
        return True

    def _note_change(self, entity_id: str, tile: int, gone: Sequence[int]) -> None:
        dirty = self._dirty.get(entity_id)
        if dirty is None:
            self._dirty[entity_id] = ({tile}, set(gone))
        else:
            tiles, dropped = dirty
            tiles.add(tile)
            if gone:
                dropped.update(gone)
                tiles.difference_update(gone)

    def _expire(self) -> None:
        """Forget entities whose last event is too old; of equal offsets the same ones, whenever it was restarted."""
        limit = self.watermark - self.plan.expires
        while self._by_time and self._by_time[0][0] <= limit:
            _, name = heapq.heappop(self._by_time)
            entity = self.entities.get(name)
            if entity is None:
                continue
            if entity.time > limit:
                heapq.heappush(self._by_time, (entity.time, name))
                continue
            del self.entities[name]
            self._dirty.pop(name, None)
            if self._has_store:
                self._forgotten.add(name)

    def changes(self) -> dict[str, Change]:
        """Return what the store needs to come from `base` to `offset`."""
        changes = {
            name: self._change(name, tiles, gone, whole=name in self._forgotten)
            for name, (tiles, gone) in self._dirty.items()
        }
        return changes | self._removals()

    def everything(self) -> dict[str, Change]:
        """Return what the store needs to come from anything before `offset`, or nothing, to `offset`."""
        kept = {
            name: self._change(name, entity.starts, (), whole=True)
            for name, entity in self.entities.items()
            if entity.starts
        }
        return kept | self._removals()

    def _removals(self) -> dict[str, Change]:
        return {name: Change({}, {}, whole=True) for name in self._forgotten - self.entities.keys()}

    def written(self) -> None:
        """The store stands at `offset`."""
        self.base, self.is_stored, self.is_unread = self.offset, True, False
        self._dirty.clear()
        self._forgotten.clear()

    def _change(self, name: str, tiles: Iterable[int], gone: Iterable[int], *, whole: bool) -> Change:
        entity, every = self.entities[name], self.plan.every
        features = dict(zip(self.plan.names, self.plan.read(entity, entity.time), strict=True))
        return Change(
            {**features, "event_time": entity.time},
            {str(tile * every): entity.dump(tile) for tile in (entity.starts if whole else tiles)},
            tuple(str(tile * every) for tile in gone),
            whole,
        )


class Views:
    """Several views over one topic, by partition.

    Parameters
    ----------
    stores
        The online store of each view, by the view's name; views without one are kept in memory only.
    counts
        Where a step counts what happens.
    clock
        Seconds, for how often a store is looked at.
    """

    def __init__(
        self,
        plans: Sequence[Plan],
        stores: Mapping[str, ViewStore],
        counts: Counter[tuple[str, str]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.plans, self.stores, self.counts, self.clock = plans, dict(stores), counts, clock
        self.states: dict[int, list[ViewState]] = {}
        self._behind: set[str] = set()
        self._looked = self._ask_again_at = float("-inf")

    def assign(self, partition: int, committed: int, *, from_log: bool = False) -> int:
        """Load a partition from the stores; returns the offset from which the rest is to be rebuilt.

        `from_log`: what the stores hold was made from another log than there is now, and is dropped.
        Where a store is away everything is rebuilt from the log: what is asked of the state does not wait for a store.
        """
        self.states[partition] = [self._load(plan, partition, committed, from_log=from_log) for plan in self.plans]
        return min((state.base for state in self.states[partition]), default=committed)

    def _load(self, plan: Plan, partition: int, committed: int, *, from_log: bool) -> ViewState:
        store = self.stores.get(plan.view.label)
        if store is None:
            return ViewState(plan, has_store=False)
        if self.clock() >= self._ask_again_at:
            began = self.clock()
            try:
                if from_log:
                    store.reset(partition)
                return self._stored(store, plan, partition, committed)
            except StoreError as error:
                self._store_is_away(plan.view.label, error, began)
        state = ViewState(plan)
        state.is_unread = True
        return state

    def _stored(self, store: ViewStore, plan: Plan, partition: int, committed: int) -> ViewState:
        """Return the state as the store holds it; a new one where it holds none, or one that does not fit."""
        state, name = ViewState(plan), plan.view.label
        stored = store.load(partition)
        if stored is None:
            return state
        offset, entities = stored
        note = read_note(store.note(partition))
        if offset > committed:
            wrong = f"the online store stands at {offset}, ahead of what Kafka has committed, {committed}"
        elif note.shape != plan.shape:
            wrong = f"the view was declared differently: {note.shape!r} where {plan.shape!r} is declared"
        else:
            try:
                loaded = {n: stored_entity(plan, t) for n, t in entities.items() if t}
                state.restore(loaded, offset, note.until, note.watermark)
                return state
            except ValueError as error:
                wrong = f"the view was declared differently: {error}"
        log.error("the view is rebuilt", extra={"view": name, "partition": partition, "cause": wrong})
        store.reset(partition)
        return ViewState(plan)

    def truncated(self, partition: int) -> None:
        """The log does not reach back to where `assign` asked to rebuild from."""
        for state in self.states[partition]:
            state.cut()

    def revoke(self, partition: int) -> None:
        """Drop a partition's state."""
        self.states.pop(partition, None)

    def committed(self) -> None:
        """Bring the stores to what is committed. A store that is away stops nothing: it is caught up later.

        Once a second also where nothing is new: a store that was emptied is filled again, however quiet the topic is.
        """
        now = self.clock()
        if now < self._ask_again_at:
            return
        recheck = now - self._looked >= RECHECK_SECONDS
        if recheck:
            self._looked = now
        for partition, views in self.states.items():
            for state in views:
                store = self.stores.get(state.plan.view.label)
                if store is None or not (recheck or state.base != state.offset or not state.is_stored):
                    continue
                if not self._write(store, partition, state):
                    return

    def _write(self, store: ViewStore, partition: int, state: ViewState) -> bool:
        """Return whether the store answered. Raises Retry where what it holds is to be loaded first."""
        name, began = state.plan.view.label, self.clock()
        has_news = state.base != state.offset
        try:
            if state.is_unread:
                has_news, outcome = True, self._write_unread(store, partition, state)
            else:
                outcome = store.write(partition, state.base, state.offset, state.changes(), state.note)
            if outcome == "behind":
                log.warning(
                    "the online store was emptied and is filled again", extra={"view": name, "partition": partition}
                )
                has_news, outcome = True, store.write(partition, 0, state.offset, state.everything(), state.note)
        except StoreError as error:
            self.counts["view_writes", "failed"] += 1
            self._store_is_away(name, error, began)
            return False
        if name in self._behind:
            self._behind.discard(name)
            log.info("the online store can be written again", extra={"view": name})
        if has_news or outcome != "written":
            self.counts["view_writes", outcome] += 1
        if outcome == "written":
            state.written()
        return True

    def _write_unread(self, store: ViewStore, partition: int, state: ViewState) -> str:
        """Replace what a store holds that could not be asked before, by the state that the log alone has given.

        Raises Retry where the store has more than that: where windows reach back to what the log does not hold any
        more, or where another process has written. Kafka says then who goes on from where, and the store is loaded.
        """
        name = state.plan.view.label
        note = read_note(store.note(partition))
        if note.shape == state.plan.shape and note.until < state.partial_until:
            raise Retry(f"view {name}: the online store is back, and holds what the log does not: it is loaded")
        if note.shape not in ("", state.plan.shape):
            store.reset(partition)
        outcome = store.write(partition, 0, state.offset, state.everything(), state.note)
        if outcome == "refused":
            raise Retry(f"view {name}: the online store is back, and further on than this process: it is loaded")
        return outcome

    def _store_is_away(self, name: str, error: StoreError, began: float) -> None:
        now = self.clock()
        # One that hangs costs its timeout: at most half of the time is spent on waiting for it.
        self._ask_again_at = now + max(RECHECK_SECONDS, now - began)
        if name not in self._behind:
            self._behind.add(name)
            log.error(
                "the online store does not answer; vectors go on without it, and it is caught up later",
                extra={"view": name, "cause": str(error)},
            )

    def gauges(self) -> dict[tuple[str, str], float]:
        """Return by view the number of entities, the time in s of their newest event, and whether a store is behind."""
        gauges: dict[tuple[str, str], float] = {}
        for index, plan in enumerate(self.plans):
            name = plan.view.label
            gauges["entities", name] = sum(len(views[index].entities) for views in self.states.values())
            newest = max((views[index].event_time for views in self.states.values()), default=NEVER)
            if newest > NEVER:
                gauges["view_event_time", name] = newest / 1000
            is_unread = any(views[index].is_unread for views in self.states.values())
            gauges["view_behind", name] = float(is_unread or name in self._behind)
        return gauges


def schema(pipeline: Pipeline, view: View) -> dict[str, Any]:
    """Return what is kept beside a view in Redis: what its hashes are called and what their fields mean."""
    return {
        "pipeline": pipeline.name,
        "view": view.label,
        "entity": view.entity,
        "source": view.source,
        "key": f"{pipeline.name}:{view.label}:<{view.entity}>",
        "event_time": "ms since the epoch of the entity's latest event; the features are as of it",
        "every": view.every,
        "expires": view.expires,
        "fresh": view.fresh,
        "features": {
            name: {"type": "double", "kind": aggregate.kind, "of": aggregate.field, "window": aggregate.window}
            for name, aggregate in zip(view.features, view.flat, strict=True)
        },
    }
