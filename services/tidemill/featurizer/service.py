"""The featurizer: valid events in, feature vectors out.

reads   <pipeline>.events.valid, keyed by entity
writes  <pipeline>.features, keyed by entity; Redis: each view's features by entity
state   event-time tiles of every entity of the partitions it holds; rebuilt from Redis and the log
order   a vector holds what was known before its event; the event is added afterwards
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tidemill import topics
from tidemill.errors import Reject, StoreError
from tidemill.featurizer.tiles import Entity, Plan
from tidemill.pipeline import Feature, Pipeline, View
from tidemill.records import Records
from tidemill.stream import api
from tidemill.stream.api import Emit, Position, Record, Slot, Start, Step
from tidemill.stream.loop import Service
from tidemill.stream.view import Change
from tidemill.validator.letters import dead_letter
from tidemill.validator.rules import LARGEST_NUMBER

log = logging.getLogger(__name__)

Extract = Callable[[Mapping[str, Any]], Any]


def extractor(name: str, feature: Feature) -> Extract:
    """Return the function that takes an event and returns the request feature, in its declared kind, or None."""
    source = feature.source
    if feature.kind == "number":
        return _number(name, source)
    convert = {"category": str, "flag": bool}[feature.kind]
    if isinstance(source, str):
        return lambda event: None if event[source] is None else convert(event[source])

    def value(event: Mapping[str, Any]) -> Any:
        found = source(event)
        return None if found is None else convert(found)

    return value


def _number(name: str, source: Any) -> Extract:
    del name
    if isinstance(source, str):

        def field(event: Mapping[str, Any]) -> float | None:
            found = event[source]
            return None if found is None else float(found)

        return field  # an event's own floats are finite and of bounded size: the validator saw to it

    lowest, largest = -LARGEST_NUMBER, LARGEST_NUMBER

    def value(event: Mapping[str, Any]) -> float | None:
        found = source(event)
        if found is None:
            return None
        found = float(found)
        return found if lowest <= found <= largest else None  # NaN is not between any two numbers

    return value


class Held:
    """One view's state for one partition, and what of it the store does not have yet."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.entities: dict[str, Entity] = {}
        self.base = 0
        self.offset = 0
        self.dirty: dict[str, tuple[int, set[int], set[int]]] = {}

    def changed(self, entity_id: str, now: int, tile: int, gone: list[int]) -> None:
        """Remember that a tile of `entity_id` changed, and that others were dropped."""
        found = self.dirty.get(entity_id)
        if found is None:
            self.dirty[entity_id] = (now, {tile}, set(gone))
            return
        latest, tiles, dropped = found
        tiles.add(tile)
        if gone:
            dropped.update(gone)
            tiles.difference_update(gone)
        if now > latest:
            self.dirty[entity_id] = (now, tiles, dropped)

    def changes(self) -> dict[str, Change]:
        """Return what the store needs to come from `base` to `offset`."""
        return {name: self._change(name, tiles, gone) for name, (_, tiles, gone) in self.dirty.items()}

    def everything(self) -> dict[str, Change]:
        """Return what the store needs to come from nothing to `offset`."""
        return {
            name: self._change(name, entity.starts, (), whole=True)
            for name, entity in self.entities.items()
            if entity.starts
        }

    def _change(self, name: str, tiles: Iterable[int], gone: Iterable[int], *, whole: bool = False) -> Change:
        entity, every = self.entities[name], self.plan.every
        now = int(entity.columns["time"][-1])
        features = dict(zip(self.plan.names, self.plan.read(entity, now), strict=True))
        return Change(
            {**features, "event_time": now},
            {str(tile * every): entity.dump(tile) for tile in tiles},
            tuple(str(tile * every) for tile in gone),
            whole,
        )


class Featurizer(Step):
    """Turns events into vectors and keeps the views.

    Parameters
    ----------
    stores
        The online store of each view, by the view's name; views without one are kept in memory only.
    """

    def __init__(self, pipeline: Pipeline, stores: Mapping[str, api.View] | None = None) -> None:
        super().__init__()
        self.records = Records(pipeline)
        self.topic = topics.FEATURES.name(pipeline.name)
        self.dlq = topics.DLQ.name(pipeline.name)
        self.plans = [Plan(view) for view in pipeline.views]
        self.stores = dict(stores or {})
        self.extract = [(name, extractor(name, feature)) for name, feature in pipeline.request_features.items()]
        self.held: dict[int, list[Held]] = {}
        #: Partitions whose log was cut: until which event time their windows may lack events; None: not known yet.
        self.partial: dict[int, int | None] = {}
        self._behind: set[str] = set()
        events = pipeline.events
        self._id, self._time, self._key = events.id, events.time, events.key

    def assign(self, slot: Slot, committed: Position) -> Start:
        self.partial.pop(slot.partition, None)
        self.held[slot.partition] = [
            self._load(plan.view, plan, slot.partition, committed.offset) for plan in self.plans
        ]
        return Start(min((held.base for held in self.held[slot.partition]), default=committed.offset), committed.offset)

    def _load(self, view: View, plan: Plan, partition: int, committed: int) -> Held:
        held = Held(plan)
        store = self.stores.get(view.label)
        found = store.load(partition) if store else None
        if store is None or found is None:
            return held
        offset, entities = found
        shape, _, until = store.note(partition).partition(" partial until ")
        if offset > committed:
            wrong = f"the online store stands at {offset}, ahead of what Kafka has committed, {committed}"
        elif shape != plan.shape:
            wrong = f"the view was declared differently: {shape!r} where {plan.shape!r} is declared"
        else:
            try:
                held.entities = {name: Entity.load(plan, tiles) for name, tiles in entities.items()}
                held.base = held.offset = offset
                if until:
                    self.partial[partition] = max(int(until), self.partial.get(partition) or 0)
                return held
            except ValueError as error:
                wrong = f"the view was declared differently: {error}"
        log.error("the view is built anew", extra={"view": view.label, "partition": partition, "cause": wrong})
        held.entities = {}
        store.reset(partition)
        return held

    def truncated(self, slot: Slot) -> None:
        self.partial[slot.partition] = None

    def revoke(self, slots: Iterable[Slot]) -> None:
        for slot in slots:
            self.held.pop(slot.partition, None)

    def process(self, records: Sequence[Record], emit: Emit) -> bool:
        # Local names: this loop is the service's whole cost.
        decode, encode = self.records.event.decode, self.records.features.encode
        event_id, event_time, key, topic = self._id, self._time, self._key, self.topic
        extract, counts = self.extract, self.counts
        for record in records:
            event = decode(record.value() or b"")
            partition, offset, now = record.partition(), record.offset(), event[event_time]
            entity_id = str(event[key])
            try:
                vector = {name: take(event) for name, take in extract}
            except Exception as error:  # the declaration's own functions may raise anything
                self._reject(record, error, emit)
                vector = None
            for held in self.held[partition]:
                if offset < held.offset:
                    continue  # this view's store was further on than another's: it has the event already
                held.offset = offset + 1
                plan = held.plan
                entity = held.entities.get(entity_id)
                if entity is None:
                    entity = held.entities[entity_id] = Entity(plan)
                if vector is not None:
                    vector.update(zip(plan.names, plan.read(entity, now), strict=True))
                added = entity.add(plan, now, event)
                if added is None:
                    counts["tile_too_old", plan.view.label] += 1
                else:
                    held.changed(entity_id, now, *added)
            if vector is not None:
                emit(
                    topic,
                    encode(
                        {
                            "event_id": str(event[event_id]),
                            "entity_id": entity_id,
                            "event_time": now,
                            "partition": partition,
                            "offset": offset,
                            "partial": partition in self.partial and self._is_partial(partition, now),
                            "vector": vector,
                        }
                    ),
                    record.key(),
                    record.timestamp()[1],
                )
        return True

    def _is_partial(self, partition: int, now: int) -> bool:
        """Whether a window that ends at `now` may reach into what was cut off before the first event still there."""
        until = self.partial[partition]
        if until is None:
            until = self.partial[partition] = now + max((plan.longest for plan in self.plans), default=0)
        return now < until

    def _reject(self, record: Record, error: Exception, emit: Emit) -> None:
        reject = Reject("request_feature", f"a request feature raised {type(error).__name__}: {error}", rule="request")
        dead_letter(record, reject, emit, self.dlq, "featurizer")
        self.counts["dead_letters", reject.reason] += 1

    def committed(self) -> None:
        """Bring the stores to what is committed. A store that is away does not stop the vectors: it is caught up later."""
        for partition, views in self.held.items():
            for held in views:
                store = self.stores.get(held.plan.view.label)
                if store is not None and held.base != held.offset:
                    self._write(store, partition, held)

    def _write(self, store: api.View, partition: int, held: Held) -> None:
        name = held.plan.view.label
        try:
            note = held.plan.shape
            if self.partial.get(partition):
                note += f" partial until {self.partial[partition]}"
            outcome = store.write(partition, held.base, held.offset, held.changes(), note)
            if outcome == "behind":
                log.warning(
                    "the online store was emptied and is filled anew", extra={"view": name, "partition": partition}
                )
                outcome = store.write(partition, 0, held.offset, held.everything(), note)
        except StoreError as error:
            self.counts["view_writes", "failed"] += 1
            if name not in self._behind:
                self._behind.add(name)
                log.error(
                    "the online store can't be written; vectors go on, it is caught up later",
                    extra={"cause": str(error)},
                )
            return
        if name in self._behind:
            self._behind.discard(name)
            log.info("the online store can be written again", extra={"view": name})
        self.counts["view_writes", outcome] += 1
        if outcome == "written":
            held.base = held.offset
            held.dirty.clear()

    def gauges(self) -> Mapping[tuple[str, str], float]:
        found: dict[tuple[str, str], float] = {}
        for index, plan in enumerate(self.plans):
            name = plan.view.label
            found["entities", name] = sum(len(views[index].entities) for views in self.held.values())
            found["view_behind", name] = float(name in self._behind)
        return found


def build(pipeline: Pipeline, stores: Mapping[str, api.View]) -> Service:
    """Wire the featurizer to its topics."""
    return Service(
        "featurizer",
        f"{pipeline.name}.featurizer",
        [t.name(pipeline.name) for t in topics.reads("featurizer")],
        Featurizer(pipeline, stores),
    )
