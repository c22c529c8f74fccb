"""For people who try the pipeline in a browser: an event to begin with, and its way through the river, from the log."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Any

from tidemill.declare.pipeline import Pipeline
from tidemill.declare.stream import Stream
from tidemill.encoding.codec import Codec
from tidemill.encoding.json_schema import example
from tidemill.offline.lookup import LogLookup
from tidemill.stream.api import Broker, TopicPartition
from tidemill.stream.topic import Topic
from tidemill.wire import topics
from tidemill.wire.records import Records

#: So many of a partition's latest offsets are read for an example: the last ones may be the ends of transactions.
LATEST_OFFSETS = 20


class Journeys:
    """Reads the log, in the caller's thread."""

    def __init__(self, pipeline: Pipeline, broker: Broker, lookup: LogLookup) -> None:
        self.pipeline, self.broker, self.lookup, self._records = pipeline, broker, lookup, Records(pipeline)

    def example(self, *, like_others: bool = True) -> dict[str, Any]:
        """Return an event with a new id, and a label for it.

        They are like the latest in the log; where it has none, or unless `like_others`, made up.
        """
        pipeline, number = self.pipeline, secrets.randbits(31)
        are_texts = all(one.types[one.id] == "string" for one in (pipeline.events, pipeline.labels))
        id_ = f"try-{number:08x}" if are_texts else str(number)
        event = self._like(pipeline.events, topics.EVENTS_VALID if like_others else None, self._records.event, id_)
        label = self._like(pipeline.labels, topics.LABELS_VALID if like_others else None, self._records.label, id_)
        return {"event": event, "label": label}

    def _like(self, stream: Stream, topic: Topic | None, codec: Codec, id_: str) -> Mapping[str, Any]:
        record: Mapping[str, Any] = example(stream.avro)
        if stream.as_millis is None:  # else valid records have another form of time than those that are sent
            record = (topic and self._latest(topic, codec)) or {**record, stream.time: int(time.time() * 1000)}
        return {**record, stream.id: id_ if stream.types[stream.id] == "string" else int(id_)}

    def _latest(self, topic: Topic, codec: Codec) -> dict[str, Any] | None:
        name = topic.name(self.pipeline)
        for number in range(self.broker.partitions(name)):
            begin, end = self.broker.offset_range(place := TopicPartition(name, number))
            for batch in self.broker.read({place: (max(begin, end - LATEST_OFFSETS), end)}):
                for record in reversed(batch):
                    known: dict[str, Any] | None = codec.of(record.value())
                    if known is not None:
                        return known
        return None

    def of(self, event_id: str) -> dict[str, Any] | None:
        """Return event, vector, scores and label of an id, and where in the log each is; None before its prediction.

        Raises StoreError where the log can't be searched that far.
        """
        known = self.lookup.prediction(event_id)
        if known is not None:  # manifests are the status service's, which verifies them
            known["scores"] = [{n: v for n, v in score.items() if n != "manifest"} for score in known["scores"]]
        return known
