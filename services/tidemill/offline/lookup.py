"""One prediction with everything that made it, and one entity's features, read from the log and Redis."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tidemill.declare.pipeline import Pipeline
from tidemill.encoding.codec import HEADER
from tidemill.errors import StoreError
from tidemill.keys import Keyring, RefusedError
from tidemill.limits import LOG_LOOKUP_SECONDS
from tidemill.models.corrections import key_of
from tidemill.registry.manifests import Manifest, manifest_codec
from tidemill.registry.signing import backwards
from tidemill.stream.api import Broker, Record, TopicPartition
from tidemill.stream.partition import partition_of
from tidemill.stream.topic import Topic
from tidemill.wire import topics
from tidemill.wire.records import Correction, Features, PredictionLog, Records

#: Offsets of one chunk. Chunks are read backwards from the end.
CHUNK_OFFSETS = 50_000


class TooFarBackError(StoreError):
    """A look-up took too long: what it looks for lies too far back in the log."""

    http_status = 504


class AskerGoneError(StoreError):
    """A look-up was given up: nobody waits for its answer any more."""


@dataclass(frozen=True)
class _Search:
    """Until when, by the monotonic clock in s, one question may take, and whether nobody waits for it any more."""

    until: float
    is_unwanted: Callable[[], bool]


class LogLookup:
    """Finds records in one pipeline's log by their key.

    Parameters
    ----------
    features
        Takes a view's name and an entity's id; returns its hash in the online store.
    manifest
        Takes a model and a version; returns its manifest if it is among the latest ones, else None.
    newest
        Returns the newest event time, in ms, that any view has reached; None where that is unknown.
    keys
        Verify manifests; without any they are shown as they are.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        broker: Broker,
        features: Callable[[str, str], Mapping[str, str]],
        manifest: Callable[[str, int], Mapping[str, Any] | None],
        newest: Callable[[], int | None] = lambda: None,
        keys: Keyring | None = None,
    ) -> None:
        self.pipeline, self.broker, self.features, self.manifest = pipeline, broker, features, manifest
        self.newest = newest
        self.records = Records(pipeline)
        self.keys = keys
        self._manifests = manifest_codec(pipeline, keys, records=self.records)

    def _backwards(self, slot: TopicPartition, search: _Search) -> Iterator[Record]:
        """Yield a partition's records, the newest chunk first."""
        low, high = self.broker.offset_range(slot)
        for begin, end in backwards(low, high, CHUNK_OFFSETS):
            for batch in self.broker.read({slot: (begin, end)}):
                if search.is_unwanted():
                    raise AskerGoneError("the asker has gone")
                yield from batch
                if time.monotonic() > search.until:
                    raise TooFarBackError(
                        f"not among the latest records of {slot.topic}: looked for {LOG_LOOKUP_SECONDS.max} s, back to "
                        f"offset {begin:,} of {low:,} to {high:,}"
                    )

    def _find(self, topic: Topic, key: bytes, search: _Search) -> Record | None:
        """Return the newest record with this key; where the key decides the partition, only that one is read."""
        name = topic.name(self.pipeline)
        partitions = self.broker.partitions(name)
        if not partitions:
            return None
        slot = TopicPartition(name, 0 if topic.partitions == 1 else partition_of(key, partitions))
        return next((record for record in self._backwards(slot, search) if record.key() == key), None)

    def prediction(self, event_id: str, is_unwanted: Callable[[], bool] = lambda: False) -> dict[str, Any] | None:
        """Return one prediction: its event, vector, scores, versions and label; None where the log has none.

        `is_unwanted` is asked while the log is read. Raises TooFarBackError where it is not among the latest, and the
        rest of the log takes too long to read; AskerGoneError once it is not wanted any more.
        """
        search, key = _Search(time.monotonic() + LOG_LOOKUP_SECONDS.max, is_unwanted), event_id.encode()
        record = self._find(topics.PREDICTION_LOG, key, search)
        if record is None:
            return None
        log = self.records.prediction_log.of(record.value())
        if log is None:  # of an earlier declaration, or no prediction
            return None
        return self.event_and_vector(record, log) | {
            "found_in": "log",
            "scores": [
                self._score(log["champion"], "champion", search),
                *(self._score(score, "challenger", search) for score in log["challengers"]),
            ],
            "outcome": self._outcome(key, search),
        }

    def entry(self, event_id: str) -> PredictionLog | None:
        """Return the newest record of one event in the prediction log; None where there is none.

        Raises TooFarBackError as `prediction` does.
        """
        search = _Search(time.monotonic() + LOG_LOOKUP_SECONDS.max, lambda: False)
        record = self._find(topics.PREDICTION_LOG, event_id.encode(), search)
        return None if record is None else self.records.prediction_log.of(record.value())

    def event_and_vector(self, record: Record, log: PredictionLog) -> dict[str, Any]:
        """Return the vector of a record of the prediction log, and its event."""
        features = log["features"]
        return {
            "event_id": features["event_id"],
            "entity_id": features["entity_id"],
            "event_time": features["event_time"],
            "event": self._event(features),
            "vector": features["vector"],
            "entities": features["entities"],
            "as_of": features["as_of"],
            "stale": features["stale"],
            "views": self._views(features),
            "log": {**_place(record), "partial": features["partial"]},
        }

    def _views(self, features: Features) -> list[dict[str, Any]]:
        """Return each view's entity, and how old, in s of event time, its features were."""
        views = []
        for view in self.pipeline.views:
            name, at = view.label, features["as_of"].get(view.label)
            is_key = view.entity == self.pipeline.events.key
            views.append(
                {
                    "view": name,
                    "entity": view.entity,
                    "entity_id": features["entity_id"] if is_key else features["entities"].get(view.entity),
                    "as_of": at,
                    "age": _age(features["event_time"], at),
                    "stale": name in features["stale"],
                }
            )
        return views

    def _event(self, features: Features) -> dict[str, Any]:
        slot = TopicPartition(topics.EVENTS_VALID.name(self.pipeline.name), features["partition"])
        offset = features["offset"]
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
                if str(event[self.pipeline.events.id]) != features["event_id"]:
                    return place | {
                        "record": None,
                        "why": "another event is at this offset: the topic was deleted and created again",
                    }
                return place | {"record": event}
        return gone

    def _score(self, score: Mapping[str, Any], role: str, search: _Search) -> dict[str, Any]:
        manifest = self.manifest(score["model"], score["version"])
        if manifest is None:
            with contextlib.suppress(TooFarBackError):  # the answer is useful without it
                manifest = self._manifest(score["model"], score["version"], search)
        return {**score, "role": "baseline" if score["model"] == "baseline" else role, "manifest": manifest}

    def _manifest(self, model: str, version: int, search: _Search) -> Mapping[str, Any] | None:
        """Return an older version's manifest from the log; version 0, which has learned nothing, has none."""
        if not version:
            return None
        key = model.encode()
        for record in self._backwards(TopicPartition(topics.MODELS.name(self.pipeline.name), 0), search):
            manifest = self._signed(record) if record.key() == key else None
            if manifest and manifest.version == version:
                return public_manifest(dataclasses.asdict(manifest))
        return None

    def _signed(self, record: Record) -> Manifest | None:
        """Return a manifest that a key of ours has signed, be it one that has ended since; None for any other."""
        try:
            return self._manifests.decode(record.value() or b"")
        except RefusedError as error:
            return self._manifests.parse(record.value() or b"") if error.reason == "expired_key" else None

    def _outcome(self, key: bytes, search: _Search) -> dict[str, Any]:
        try:
            expired = self._find(topics.EXPIRED, key, search)
            if expired is not None:
                return {"state": "expired", **_place(expired)}
            record, last = self._find_example(key, search)
        except TooFarBackError as error:
            return {"state": "pending", "why": str(error)}
        if record is None:
            return {"state": "pending"}
        example = self.records.example.of(record.value())
        if example is None:
            return {"state": "joined", "label": None, "label_time": None, **_place(record)}
        joined = {"state": "joined", "label": example["label"], "label_time": example["label_time"], **_place(record)}
        if last is None or key_of(last) != key_of(example["prediction"]["features"]):
            return joined
        return joined | {"label": last["label"], "first_label": example["label"], "corrected_time": last["label_time"]}

    def _find_example(self, key: bytes, search: _Search) -> tuple[Record | None, Correction | None]:
        """Return the newest example with this key, and its last correction: it lies after it, among newer records."""
        if not self.pipeline.corrections_ms:
            return self._find(topics.EXAMPLES, key, search), None
        example: Record | None = None
        corrections: dict[int, Correction] = {}
        for record in self._backwards(TopicPartition(topics.EXAMPLES.name(self.pipeline.name), 0), search):
            if example is not None and record.offset() < example.offset():
                break
            if record.key() != key:
                continue
            correction: Correction | None = self.records.correction.of(record.value())
            if correction is None:
                example = record
            else:
                corrections[record.offset()] = correction
        return example, corrections[max(corrections)] if corrections else None

    def entity(self, entity_id: str) -> dict[str, Any] | None:
        """Return an entity's features by view; None where no view has it. Raises StoreError where Redis is away.

        A view's age is in s of event time: from this entity's last event to the newest event of any view.
        """
        views, newest = [], self.newest()
        for view in self.pipeline.views:
            stored = dict(self.features(view.label, entity_id))
            if stored:
                text = stored.pop("event_time", None)
                time_ = None if text is None else int(float(text))
                views.append(
                    {
                        "view": view.label,
                        "key": f"{self.pipeline.name}:{view.label}:{entity_id}",
                        "event_time": time_,
                        "age": _age(newest, time_),
                        "features": {name: _value(text) for name, text in sorted(stored.items())},
                    }
                )
        return {"entity_id": entity_id, "views": views} if views else None


def public_manifest(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest without the fields that only a loader needs."""
    return {name: value for name, value in manifest.items() if name not in ("golden", "signature")}


def _age(now: int | None, at: int | None) -> float | None:
    """Return the time from `at` to `now` in s, from two times in ms; at least 0."""
    return None if now is None or at is None else max(0, now - at) / 1000


def _place(record: Record) -> dict[str, Any]:
    return {"topic": record.topic(), "partition": record.partition(), "offset": record.offset()}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
