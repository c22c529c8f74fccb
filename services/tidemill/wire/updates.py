"""Updates: what views of other entities, and over outcomes, are made from."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from tidemill.declare.pipeline import Pipeline
from tidemill.encoding.codec import carried
from tidemill.stream.api import Emit, Headers, Position
from tidemill.stream.commit_metadata import CommitMetadata
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
        self.source, self._records, self._encode = source, records, records.update.encode
        fields: dict[str, dict[str, None]] = {}
        for view in pipeline.remote_views:
            if view.source == source:
                fields.setdefault(view.entity, {}).update(dict.fromkeys(name for a in view.flat for name in a.fields))
        self._routes = [(entity, entity.encode() + b":", tuple(of)) for entity, of in fields.items()]
        self._partitions = pipeline.partitions

    def started(self, new: Collection[str]) -> tuple[str, ...]:
        """Return the entities that have had all updates so far, or a "begins" first; `new` have had neither yet."""
        return tuple(entity for entity, _, _ in self._routes if entity not in new)

    def new(self, committed: Position) -> tuple[str, ...]:
        """Return the entities that had no updates of what came before `committed`; the views of them lack it."""
        if committed.offset == 0:
            return ()
        started = CommitMetadata.decode(committed.metadata).entities
        return tuple(entity for entity, _, _ in self._routes if entity not in started)

    def emit_control(self, control: str, entities: Iterable[str], time: int, emit: Emit) -> None:
        """Emit a control record ("begins" or "filled") for each entity to all partitions, at event time `time` (ms)."""
        for entity in entities:
            for partition in range(self._partitions):
                update = {
                    "control": control,
                    "source": self.source,
                    "entity": entity,
                    "entity_id": "",
                    "time": time,
                    "event_id": "",
                    "numbers": {},
                    "texts": {},
                }
                emit(self.topic, self._encode(update), entity.encode(), 0, None, partition)

    def __bool__(self) -> bool:
        return bool(self._routes)

    def emit(
        self,
        entities: Mapping[str, str],
        values: Mapping[str, Any],
        event_id: str,
        time: int,
        origin: int,
        emit: Emit,
        trace: Headers | None = None,
    ) -> None:
        """Emit one update for each of the entities that views are kept of; `time` and `origin` in ms."""
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
            records = self._records
            data = self._encode(update) if records.are_seen else records.update.header
            if records.carries:
                data = carried(data, update)
            emit(self.topic, data, prefix + entity_id.encode(), origin, trace)
