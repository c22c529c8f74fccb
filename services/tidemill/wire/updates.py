"""Updates: what views of other entities, and over outcomes, are told."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from tidemill.declare.pipeline import Pipeline
from tidemill.stream.api import Emit, Position
from tidemill.wire import topics
from tidemill.wire.records import Records


class Updates:
    """Makes the updates of one source.

    Parameters
    ----------
    source
        "events" or "examples".
    """

    def __init__(self, pipeline: Pipeline, records: Records, source: str) -> None:
        self.topic = topics.UPDATES.name(pipeline.name)
        self.source, self._encode = source, records.update.encode
        fields: dict[str, dict[str, None]] = {}
        for view in pipeline.remote_views:
            if view.source == source:
                fields.setdefault(view.entity, {}).update(dict.fromkeys(name for a in view.flat for name in a.fields))
        self._routes = [(entity, entity.encode() + b":", tuple(of)) for entity, of in fields.items()]
        self._partitions = pipeline.partitions

    def note(self, new: Collection[str]) -> str:
        """Return what to keep beside an offset: the entities told of all before it, or said to lack it; `new` are neither."""
        return ",".join(entity for entity, _, _ in self._routes if entity not in new)

    def new(self, committed: Position) -> tuple[str, ...]:
        """Return the entities that what came before `committed` was not told to; the views of them lack it."""
        if committed.offset == 0:
            return ()
        known = committed.note.rpartition(":")[2].split(",")
        return tuple(entity for entity, _, _ in self._routes if entity not in known)

    def say(self, control: str, entities: Iterable[str], time: int, emit: Emit) -> None:
        """Say something of these entities' views to all partitions, at event time `time` (ms)."""
        for entity in entities:
            for partition in range(self._partitions):
                said = {
                    "control": control,
                    "source": self.source,
                    "entity": entity,
                    "entity_id": "",
                    "time": time,
                    "event_id": "",
                    "numbers": {},
                    "texts": {},
                }
                emit(self.topic, self._encode(said), entity.encode(), 0, None, partition)

    def __bool__(self) -> bool:
        return bool(self._routes)

    def emit(
        self,
        entities: Mapping[str, str],
        values: Mapping[str, Any],
        event_id: str,
        time: int,
        timestamp: int,
        emit: Emit,
    ) -> None:
        """Emit one update for each of the entities that views are kept of; `time` and `timestamp` in ms."""
        for entity, prefix, fields in self._routes:
            entity_id = entities.get(entity)
            if entity_id is None:
                continue
            numbers: dict[str, float] = {}
            texts: dict[str, str] = {}
            for name in fields:
                value = values[name]
                if isinstance(value, str):
                    texts[name] = value
                elif value is not None:
                    numbers[name] = float(value)
            update = {
                "control": "",
                "source": self.source,
                "entity": entity,
                "entity_id": entity_id,
                "time": time,
                "event_id": event_id,
                "numbers": numbers,
                "texts": texts,
            }
            emit(self.topic, self._encode(update), prefix + entity_id.encode(), timestamp)
