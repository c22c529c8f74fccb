"""One prediction with all that made it, and one entity's features: found when asked, in the log and in Redis."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tidemill.declare.pipeline import Pipeline
from tidemill.encoding.codec import HEADER
from tidemill.errors import StoreError
from tidemill.registry.latest import backwards
from tidemill.stream.api import Broker, Record, TopicPartition
from tidemill.stream.partition import partition_of
from tidemill.stream.topic import Topic
from tidemill.wire import topics
from tidemill.wire.records import Features, PredictionLog, Records

STEP = 50_000
"""Offsets that are read at a time, backwards from the end."""
PATIENCE_SECONDS = 20.0


class TooFarBackError(StoreError):
    """A look-up took longer than somebody waits."""


class Lookup:
    """Finds things in one pipeline's log.

    Parameters
    ----------
    features
        Takes a view's name and an entity's id; returns its hash in the online store.
    newest
        Returns the newest event time, in ms, that any view has come to; None where nobody knows.
    """

    def __init__(
        self, pipeline: Pipeline, broker: Broker, features: Callable[[str, str], Mapping[str, str]],
        manifest: Callable[[str, int], Mapping[str, Any] | None], newest: Callable[[], int | None] = lambda: None,
    ) -> None:  # fmt: skip
        self.pipeline, self.broker, self.features, self.manifest = pipeline, broker, features, manifest
        self.newest = newest
        self.records = Records(pipeline)

    def _backwards(self, slot: TopicPartition, until: float) -> Iterator[Record]:
        """Yield what a slot holds, the newest chunk first."""
        low, high = self.broker.offset_range(slot)
        for begin, end in backwards(low, high, STEP):
            for batch in self.broker.read({slot: (begin, end)}):
                yield from batch
                if time.monotonic() > until:
                    raise TooFarBackError(
                        f"not among the latest records of {slot.topic}: looked for {PATIENCE_SECONDS:.0f} s, back to "
                        f"offset {begin:,} of {low:,} to {high:,}"
                    )

    def _find(self, topic: Topic, key: bytes, until: float) -> Record | None:
        """Return the record of a topic that has this key; where keys decide the partition, only that one is read."""
        name = topic.name(self.pipeline.name)
        partitions = self.broker.partitions(name)
        if not partitions:
            return None
        slot = TopicPartition(name, 0 if topic.partitions == 1 else partition_of(key, partitions))
        return next((record for record in self._backwards(slot, until) if record.key() == key), None)

    def prediction(self, event_id: str) -> dict[str, Any] | None:
        """Return one prediction: its event, vector, scores, versions and label; None where there is none in the log.

        Raises TooFarBackError where it is not among the latest, and the log holds more than can be read while somebody waits.
        """
        until, key = time.monotonic() + PATIENCE_SECONDS, event_id.encode()
        found = self._find(topics.PREDICTION_LOG, key, until)
        if found is None:
            return None
        log = self.records.prediction_log.decode(found.value() or b"")
        return self.told(found, log) | {
            "found_in": "log",
            "scores": [
                self._score(log["champion"], "champion", until),
                *(self._score(score, "challenger", until) for score in log["challengers"]),
            ],
            "outcome": self._outcome(key, until),
        }

    def told(self, found: Record, log: PredictionLog) -> dict[str, Any]:
        """Return what a record of the prediction log says of its event and vector, and what the log holds of that event."""
        of = log["features"]
        return {
            "event_id": of["event_id"],
            "entity_id": of["entity_id"],
            "event_time": of["event_time"],
            "event": self._event(of),
            "vector": of["vector"],
            "entities": of["entities"],
            "as_of": of["as_of"],
            "stale": of["stale"],
            "views": self._views(of),
            "log": {**_place(found), "partial": of["partial"]},
        }

    def _views(self, of: Features) -> list[dict[str, Any]]:
        """Return of each view whose entity was asked and how old, in s of event time, what it knew then was."""
        views = []
        for view in self.pipeline.views:
            name, at = view.label, of["as_of"].get(view.label)
            is_key = view.entity == self.pipeline.events.key
            views.append(
                {
                    "view": name,
                    "entity": view.entity,
                    "entity_id": of["entity_id"] if is_key else of["entities"].get(view.entity),
                    "as_of": at,
                    "age": _age(of["event_time"], at),
                    "stale": name in of["stale"],
                }
            )
        return views

    def _event(self, of: Features) -> dict[str, Any]:
        slot, offset = TopicPartition(topics.EVENTS_VALID.name(self.pipeline.name), of["partition"]), of["offset"]
        low, high = self.broker.offset_range(slot)
        place = {"topic": slot.topic, "partition": slot.partition, "offset": offset}
        gone = place | {"record": None, "why": "the log does not hold it any more"}
        if not low <= offset < high:
            return gone
        for batch in self.broker.read({slot: (offset, offset + 1)}):
            for record in batch:
                value = record.value() or b""
                place["schema_id"] = int.from_bytes(value[1:HEADER], "big")
                event = self.records.event.of(value)
                if event is None:
                    return place | {"record": None, "why": "its schema is not one of those declared now"}
                if event[self.pipeline.events.id] != of["event_id"]:
                    return place | {"record": None, "why": "another event lies there: the topic was begun again"}
                return place | {"record": event}
        return gone

    def _score(self, score: Mapping[str, Any], role: str, until: float) -> dict[str, Any]:
        manifest = self.manifest(score["model"], score["version"])
        if manifest is None:
            with contextlib.suppress(TooFarBackError):  # the rest of the answer stands without it
                manifest = self._manifest(score["model"], score["version"], until)
        return {**score, "role": "baseline" if score["model"] == "baseline" else role, "manifest": manifest}

    def _manifest(self, model: str, version: int, until: float) -> Mapping[str, Any] | None:
        """Return the manifest of a version that is not among the latest; version 0, which has learned nothing, has none."""
        if not version:
            return None
        key = model.encode()
        for record in self._backwards(TopicPartition(topics.MODELS.name(self.pipeline.name), 0), until):
            manifest = self.records.manifest.of(record.value()) if record.key() == key else None
            if manifest and manifest["version"] == version:
                return shown(manifest)
        return None

    def _outcome(self, key: bytes, until: float) -> dict[str, Any]:
        try:
            found = self._find(topics.EXPIRED, key, until)
            if found is not None:
                return {"state": "expired", **_place(found)}
            found = self._find(topics.EXAMPLES, key, until)
        except TooFarBackError as error:
            return {"state": "pending", "why": str(error)}
        if found is None:
            return {"state": "pending"}
        example = self.records.example.decode(found.value() or b"")
        return {"state": "joined", "label": example["label"], "label_time": example["label_time"], **_place(found)}

    def entity(self, entity_id: str) -> dict[str, Any] | None:
        """Return an entity's features by view; None where no view knows it. Raises StoreError where Redis is away.

        The age of a view is in s of event time: how long before the newest event of any view the last of this entity was.
        """
        views, newest = [], self.newest()
        for view in self.pipeline.views:
            found = dict(self.features(view.label, entity_id))
            if found:
                text = found.pop("event_time", None)
                time_ = None if text is None else int(float(text))
                views.append(
                    {
                        "view": view.label,
                        "key": f"{self.pipeline.name}:{view.label}:{entity_id}",
                        "event_time": time_,
                        "age": _age(newest, time_),
                        "features": {name: _value(text) for name, text in sorted(found.items())},
                    }
                )
        return {"entity_id": entity_id, "views": views} if views else None


def shown(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest without what only a loader needs."""
    return {name: value for name, value in manifest.items() if name not in ("golden", "signature")}


def _age(now: int | None, at: int | None) -> float | None:
    """Return how long before `now` something was, in s, from two times in ms; what came later is as new as can be."""
    return None if now is None or at is None else max(0, now - at) / 1000


def _place(record: Record) -> dict[str, Any]:
    return {"topic": record.topic(), "partition": record.partition(), "offset": record.offset()}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
