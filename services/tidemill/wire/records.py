"""Our records and how they look on the wire: Avro behind a 5-byte header, as Confluent's clients write and read it.

`Features` is nested in `PredictionLog`, and that in `Example`, always as the first field. An Avro record is the bytes
of its fields one after the other, so the scorer and the joiner append to the bytes that they received and never decode
and encode the vector again; and a reader that needs only the first fields decodes only those (`head`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypedDict, cast

import msgspec

from tidemill.aggregates.base import LARGEST_FEATURE
from tidemill.declare.pipeline import Pipeline
from tidemill.declare.stream import Stream
from tidemill.declare.tasks import ROUNDING
from tidemill.durations import FIRST_TIME_MS, LAST_TIME_MS
from tidemill.encoding import schema_files
from tidemill.encoding.codec import HEADER, Codec, carried
from tidemill.rules import LARGEST_NUMBER
from tidemill.stream.topic import Topic
from tidemill.wire import number_check

if TYPE_CHECKING:
    from tidemill.wire.personal import Mask

#: The type of each kind of feature in a vector that was decoded.
_TYPES: Mapping[str, type] = {"number": float, "category": str, "flag": bool}

#: Up to so many features and views, and characters in texts, a vector is small: 4 bytes a character, and ids of 500.
MAX_SMALL_FEATURES, MAX_SMALL_CHARACTERS = 100, 10_000

#: Records whose codec is not called as they are.
_ATTRIBUTES = {"PredictionLog": "prediction_log"}


class Score(TypedDict):
    """What one model answered; see schemas/tidemill/score.v1.avsc."""

    model: str
    version: int
    epoch: int
    score: float
    probabilities: Mapping[str, float]
    answered: bool


def newness(score: Score) -> tuple[int, int]:
    """Return what orders the versions of one model: its life, then the version; the higher, the newer."""
    return score["epoch"], score["version"]


class Features(TypedDict):
    """One event's vector as served; see schemas/tidemill/features.v1.avsc. Times are ms since the epoch."""

    event_id: str
    entity_id: str
    event_time: int
    partition: int
    offset: int
    partial: bool
    entities: dict[str, str]
    as_of: dict[str, int]
    stale: list[str]
    vector: dict[str, Any]


class Prediction(TypedDict):
    """A prediction for consumers; see schemas/tidemill/prediction.v1.avsc."""

    event_id: str
    entity_id: str
    event_time: int
    champion: Score
    as_of: dict[str, int]
    stale: list[str]


class PredictionLog(TypedDict):
    """Everything about one prediction; see schemas/tidemill/prediction-log.v1.avsc."""

    features: Features
    champion: Score
    challengers: list[Score]


class Example(TypedDict):
    """A prediction with its label; see schemas/tidemill/example.v1.avsc."""

    prediction: PredictionLog
    label: Any
    label_time: int


class Correction(TypedDict):
    """Another label of an event that has one; see schemas/tidemill/correction.v1.avsc."""

    event_id: str
    entity_id: str
    event_time: int
    partition: int
    offset: int
    label: Any
    label_time: int
    first_label: Any
    replaced_label: Any


def vector_to_x(vector: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a River model is given: the vector without its missing features, in the vector's order."""
    return {name: value for name, value in vector.items() if value is not None}


class Records:
    """The codecs of one pipeline."""

    #: Whether the messages that a step makes carry their records, for the next step in the same process.
    carries = False
    #: Whether anybody but the next step sees messages; else they carry their records, and may be no more than a header.
    are_seen = True

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self._types = {name: _TYPES[kind] for name, kind in pipeline.vector.items()}
        self._texts = [name for name, kind in pipeline.vector.items() if kind == "category"]
        self._named: dict[str, Any] = {
            "Vector": pipeline.vector_schema,
            "Label": pipeline.kind.label_type,
            "tidemill.Score": schema_files.own("score.v1"),
        }
        for name in ("features.v1", "prediction-log.v1", "example.v1"):
            avro = schema_files.own(name)
            self._named[avro["name"]] = avro
        low, high = pipeline.kind.range
        self._ranges = {
            pipeline.vector_schema["name"]: (-LARGEST_FEATURE, LARGEST_FEATURE),
            "tidemill.Update": (-LARGEST_FEATURE, LARGEST_FEATURE),
            # Of a number no more is asked than that it is finite: whoever compares models takes any.
            "tidemill.Score": (low - ROUNDING, high + ROUNDING) if high <= 1 else number_check.FINITE,
            "tidemill.Example": (-LARGEST_NUMBER, LARGEST_NUMBER),
            "tidemill.Correction": (-LARGEST_NUMBER, LARGEST_NUMBER),
        }

    def _own(self, name: str) -> Codec:
        """Return the codec of a record that anybody may have written: it refuses numbers that no service writes."""
        avro = schema_files.standalone(schema_files.own(name), self._named)
        return Codec(avro, check=number_check.compile_check(avro, self._ranges))

    @staticmethod
    def _signed(name: str) -> Codec:
        """Return the codec of a record whose signature says who has written it."""
        return Codec(schema_files.own(name))

    @staticmethod
    def _valid(stream: Stream) -> Codec:
        return Codec(stream.valid_avro, stream.valid_others, number_check.compile_stream_check(stream), stream.units)

    @cached_property
    def mask(self) -> Mask:
        """What is shown of these records to who may not see personal data."""
        from tidemill.wire.personal import Mask  # it knows dead letters, and they these

        return Mask(self.pipeline)

    @cached_property
    def event(self) -> Codec:
        """Events as the validator passes them on, with their time in milliseconds."""
        return self._valid(self.pipeline.events)

    @cached_property
    def label(self) -> Codec:
        """Labels as the validator passes them on, with their time in milliseconds."""
        return self._valid(self.pipeline.labels)

    @cached_property
    def sent_event(self) -> Codec:
        """Events as producers send them: the same as `event`, unless their time is in another unit."""
        stream = self.pipeline.events
        return Codec(stream.avro, units=stream.units) if stream.as_millis else self.event

    @cached_property
    def sent_label(self) -> Codec:
        """Labels as producers send them."""
        stream = self.pipeline.labels
        return Codec(stream.avro, units=stream.units) if stream.as_millis else self.label

    def of_topic(self, topic: Topic) -> Codec | None:
        """Return the codec of a topic's records; None where they are no Avro of the pipeline's."""
        if topic.is_raw:
            return self.sent_event if topic.record == "event" else self.sent_label
        codec: Codec | None = getattr(self, _ATTRIBUTES.get(topic.record, topic.record.lower()), None)
        return codec

    @cached_property
    def vector(self) -> Codec:
        """The vector alone."""
        return Codec(self.pipeline.vector_schema)

    @cached_property
    def update(self) -> Codec:
        """Update: what an event or an example adds to the views of one entity."""
        return self._own("update.v1")

    @cached_property
    def warnings(self) -> Codec:
        """Warnings: what rules that only warn have found in one batch."""
        return self._own("warnings.v1")

    @cached_property
    def features(self) -> Codec:
        """Features: the vector with its provenance."""
        return self._own("features.v1")

    def is_small(self, vector: Mapping[str, Any]) -> bool:
        """Whether features with this vector are far below the limit in bytes, whatever is in their other fields."""
        if len(self._types) + len(self.pipeline.views) > MAX_SMALL_FEATURES:
            return False
        return sum(map(len, filter(None, map(vector.get, self._texts)))) <= MAX_SMALL_CHARACTERS

    def carried_features(self, data: bytes, features: Mapping[str, Any]) -> bytes:
        """Return the message of features with its record, in the vector's order; without it where types differ."""
        given, types = features["vector"], self._types
        vector = {name: given[name] for name in types}
        for value, kind in zip(vector.values(), types.values(), strict=True):
            if value is not None and type(value) is not kind:
                return data
        return carried(data, {**features, "vector": vector})

    @cached_property
    def prediction(self) -> Codec:
        """Prediction: for consumers."""
        return self._own("prediction.v1")

    @cached_property
    def prediction_for_consumers(self) -> Callable[[Prediction], bytes]:
        """What makes a message of a Prediction, in the declared encoding."""
        return msgspec.json.encode if self.pipeline.predictions_encoding == "json" else self.prediction.encode

    def read_prediction(self, data: bytes | None) -> Prediction | None:
        """Return a Prediction as consumers get it, in either encoding; None for what is none."""
        if not data or data[:1] != b"{":
            return cast("Prediction | None", self.prediction.of(data))
        try:
            return msgspec.json.decode(data, type=Prediction)
        except msgspec.MsgspecError:
            return None

    @cached_property
    def prediction_log(self) -> Codec:
        """PredictionLog: Features, then the champion's and the challengers' scores."""
        return self._own("prediction-log.v1")

    @cached_property
    def scores(self) -> Codec:
        """The part of PredictionLog after Features."""
        return self._tail("prediction-log.v1")

    @cached_property
    def example(self) -> Codec:
        """Example: PredictionLog, then the label."""
        return self._own("example.v1")

    @cached_property
    def correction(self) -> Codec:
        """Correction: another label of an example, among the examples."""
        return self._own("correction.v1")

    @cached_property
    def outcome(self) -> Codec:
        """The part of Example after PredictionLog."""
        return self._tail("example.v1")

    @cached_property
    def head(self) -> Codec:
        """The first fields of Features, PredictionLog, Example and Correction alike."""
        return Codec(schema_files.own("head.v1"))

    def event_time(self, data: bytes | None) -> int | None:
        """Return the event time of one of those, of whatever declaration; None where the bytes are none of them."""
        try:
            time = int(self.head.record(data or b"", HEADER)["event_time"])
        except Exception:  # bytes of somebody else may make a decoder raise anything
            return None
        return time if FIRST_TIME_MS <= time <= LAST_TIME_MS else None

    @cached_property
    def _placed_head(self) -> Codec:
        fields = schema_files.own("correction.v1")["fields"][:5]
        return Codec({"type": "record", "name": "tidemill.PlacedHead", "fields": fields})

    def place(self, data: bytes | None) -> Mapping[str, Any] | None:
        """Return event_time, partition and offset of the event that Features, PredictionLog or Example are about.

        Of whatever declaration; None where the bytes are none of them.
        """
        try:
            head: Mapping[str, Any] = self._placed_head.record(data or b"", HEADER)
        except Exception:  # bytes of somebody else may make a decoder raise anything
            return None
        return head if head["partition"] >= 0 and head["offset"] >= 0 else None

    @cached_property
    def manifest(self) -> Codec:
        """Manifest of one model version."""
        return self._signed("manifest.v1")

    @cached_property
    def window(self) -> Codec:
        """Window: what a window of predictions or examples was like."""
        return self._own("window.v1")

    @cached_property
    def alert(self) -> Codec:
        """Alert: how it stands after a window."""
        return self._signed("alert.v1")

    @cached_property
    def access(self) -> Codec:
        """Access: somebody has read or commanded."""
        return self._own("access.v1")

    @cached_property
    def redrive(self) -> Codec:
        """Redrive: a dead letter went back."""
        return self._own("redrive.v1")

    @cached_property
    def decision(self) -> Codec:
        """Decision: who serves, and why."""
        return self._signed("decision.v1")

    @cached_property
    def command(self) -> Codec:
        """Command: what a person asks of the gate."""
        return self._signed("command.v1")

    @cached_property
    def forgetting(self) -> Codec:
        """Forgetting: a request to forget entities, or its end."""
        return self._signed("forgetting.v1")

    def _tail(self, name: str) -> Codec:
        avro = schema_files.own(name)
        return Codec(
            schema_files.standalone({**avro, "name": avro["name"] + "Tail", "fields": avro["fields"][1:]}, self._named)
        )
