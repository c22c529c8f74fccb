"""A whole pipeline in memory, for unit tests of a declaration: what its events and labels become, step by step."""

from __future__ import annotations

import datetime as dt
import enum
import json
import uuid
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from tidemill.declare.load import load
from tidemill.declare.pipeline import Pipeline as Declaration
from tidemill.declare.stream import Stream
from tidemill.encoding import json_values, schema_files
from tidemill.encoding.codec import Codec
from tidemill.encoding.python_schemas import as_dict, is_declaration
from tidemill.offline.river import River
from tidemill.stream.memory import MemoryRecord
from tidemill.stream.topic import Topic
from tidemill.wire import topics
from tidemill.wire.dead_letters import DeadLetter, read_dead_letter


class Outcome(NamedTuple):
    """What became of records, each in the order in which it was written.

    `features` are vectors with where they come from, `predictions` what consumers get, `examples` predictions with
    their labels, `expired` predictions without one, as in schemas/tidemill; `dead_letters` what was refused, and why;
    `corrections` labels that replaced another.
    """

    features: list[dict[str, Any]]
    predictions: list[dict[str, Any]]
    examples: list[dict[str, Any]]
    expired: list[dict[str, Any]]
    dead_letters: list[DeadLetter]
    corrections: list[dict[str, Any]]


class Pipeline:
    """One pipeline's services in memory: validator, featurizer, materializer, scorer, joiner, and models that learn.

    Every example is learned by every model before the next call, so the next prediction has it. Nothing is promoted.

    Parameters
    ----------
    pipeline
        A declared pipeline, or what names one: a file, a module, or a shipped pipeline.

    Examples
    --------
    >>> from tidemill.testing import Pipeline
    >>> flights = Pipeline("plain")
    >>> [letter.reason for letter in flights.send({"flight_id": 1}).dead_letters]
    ['wrong_type']
    """

    def __init__(self, pipeline: Declaration | str) -> None:
        self.declaration = declared = pipeline if isinstance(pipeline, Declaration) else load(str(pipeline))
        self._river = River(declared)
        self.records, self.broker, self.folds = self._river.records, self._river.broker, self._river.folds
        self.views = self._river.views
        self._seen: dict[Topic, set[tuple[int, int]]] = {}

    def send(self, *events: Any) -> Outcome:
        """Send events as a producer would, and return what became of them.

        Each is a mapping, an instance of the stream's class, or the bytes of a message.
        """
        return self._send(topics.EVENTS, self.declaration.events, self.records.sent_event, events)

    def send_labels(self, *labels: Any) -> Outcome:
        """Send labels as a producer would, and return what became of them: examples, or dead letters."""
        return self._send(topics.LABELS, self.declaration.labels, self.records.sent_label, labels)

    def _send(self, topic: Topic, stream: Stream, codec: Codec, records: tuple[Any, ...]) -> Outcome:
        for record in records:
            data = record if isinstance(record, bytes) else _message(stream, codec, record)
            self.broker.append(topic.name(self.declaration), data)
        self._run()
        of = self.records
        examples = self._new(topics.EXAMPLES)
        self._river.learn(examples)
        return Outcome(
            [of.features.decode(record.value() or b"") for record in self._new(topics.FEATURES)],
            [dict(of.read_prediction(record.value()) or {}) for record in self._new(topics.PREDICTIONS)],
            [example for record in examples if (example := of.example.of(record.value())) is not None],
            [of.prediction_log.decode(record.value() or b"") for record in self._new(topics.EXPIRED)],
            [read_dead_letter(record) for record in self._new(topics.DLQ)],
            [correction for record in examples if (correction := of.correction.of(record.value())) is not None],
        )

    def _run(self) -> None:
        """Let all services work until none has anything to do."""
        self._river.run()

    def _new(self, topic: Topic) -> list[MemoryRecord]:
        """Return what a topic has beyond what was returned before."""
        seen = self._seen.setdefault(topic, set())
        records = self.broker.records(topic.name(self.declaration))
        fresh = [record for record in records if (record.partition(), record.offset()) not in seen]
        seen.update((record.partition(), record.offset()) for record in fresh)
        return sorted(fresh, key=lambda record: record.timestamp()[1])


def _message(stream: Stream, codec: Codec, record: Any) -> bytes:
    """Return a record as a producer would send it: JSON; Avro where the stream takes nothing else."""
    given = _plain(record, stream.avro, {})
    if stream.encoding == "avro":
        return codec.encode(json_values.record_of(json_values.fields_of(codec.avro), given, "", codec.avro["name"]))
    return json.dumps(given).encode()


def _plain(value: Any, avro: Any, named: dict[str, Any]) -> Any:
    """Return a value as JSON has it by Avro's rules, be it of its type or not; `named` are the types met so far."""
    for branch in avro if isinstance(avro, list) else [avro]:
        if isinstance(branch, Mapping) and "name" in branch:
            named[branch["name"]] = branch
    if isinstance(avro, list):  # of a union with null
        avro = next((branch for branch in avro if branch != "null"), None)
    avro = named.get(avro, avro) if isinstance(avro, str) else avro
    of: Mapping[str, Any] = avro if isinstance(avro, Mapping) else {}
    if is_declaration(type(value)):
        value = as_dict(value)
    if isinstance(value, Mapping):
        fields = {field["name"]: field["type"] for field in of.get("fields", ())}
        return {str(name): _plain(one, fields.get(name, of.get("values")), named) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one, of.get("items"), named) for one in value]
    if type(value).__module__ == "numpy":  # as in a row of a data frame
        return _plain(value.tolist(), avro, named)
    return _scalar(value, avro)


def _scalar(value: Any, avro: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, dt.date):
        return value.isoformat()
    if isinstance(value, dt.time):
        return ((value.hour * 60 + value.minute) * 60 + value.second) * 1_000_000 + value.microsecond
    if isinstance(value, Decimal) and schema_files.logical_type(avro) == "decimal":
        unscaled = value.scaleb(int(avro.get("scale", 0)))
        digits = int(unscaled)
        if digits != unscaled:
            raise ValueError(f"{value} has more digits after the point than the schema's {avro.get('scale', 0)}")
        return digits.to_bytes((digits.bit_length() + 8) // 8, "big", signed=True).decode("latin-1")
    return str(value) if isinstance(value, (Decimal, uuid.UUID)) else value
