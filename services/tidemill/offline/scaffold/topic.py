"""The newest records of somebody's topic, in JSON or Avro: as rows, and whether a pipeline reads them as they are."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import fastavro

from tidemill.declare.pipeline import Pipeline
from tidemill.encoding import schema_files
from tidemill.errors import SettingsError
from tidemill.offline import file_check, history
from tidemill.offline.scaffold.plan import Data, Sample
from tidemill.stages.validator.schema_follower import SchemaFollower
from tidemill.stages.validator.service import Validator
from tidemill.stream.api import Broker, Position, Record, TopicPartition
from tidemill.stream.topic import Topic
from tidemill.wire import topics


def of_topic(broker: Broker, topic: str, records: int, registry_url: str = "") -> Data:
    """Return the newest records of a topic, oldest first in each partition.

    Records without a value are left out. Raises SettingsError where the topic does not exist, is empty, or a record is
    neither a JSON object nor Avro by a schema that the registry knows.
    """
    count = broker.partitions(topic)
    if not count:
        raise SettingsError(f"--from-topic {topic!r}: the topic does not exist")
    ranges = {}
    for number in range(count):
        partition = TopicPartition(topic, number)
        begin, end = broker.offset_range(partition)
        ranges[partition] = (max(begin, end - -(-records // count)), end)
    decode = _Decoder(registry_url)
    newest = [record for batch in broker.read(ranges) for record in batch if record.value() is not None]
    newest.sort(key=lambda record: record.timestamp()[1])
    newest = newest[-records:]
    rows = [decode(record) for record in newest]
    if not rows:
        raise SettingsError(f"--from-topic {topic!r}: the topic has no records: produce some, or use --from FILE")
    names = dict.fromkeys(name for row in rows for name in row)
    sample = Sample(topic, count, newest, registry_url, decode.only_schema)
    return Data(
        f"topic {topic}", {name: [row.get(name) for row in rows] for name in names}, is_csv=False, sample=sample
    )


def why_not_live(pipeline: Pipeline, stream: str, sample: Sample, data: Path) -> str:
    """Return why a pipeline can't read a topic as its `events` or `labels`; empty where it can.

    It can where its validator makes of the records what it makes of the rows that were made of them.
    """
    if sample.partitions != pipeline.partitions:
        return f"it has {sample.partitions} partitions, and the topic of the events {pipeline.partitions}"
    raw: Topic = topics.EVENTS if stream == "events" else topics.LABELS
    declared = pipeline.events if stream == "events" else pipeline.labels
    sent = [history.Message(record.timestamp()[1], "", record.value() or b"") for record in sample.records]
    writers = None
    if sample.schema:
        from tidemill.encoding.schema_registry import SchemaRegistry

        writers = SchemaFollower(pipeline, SchemaRegistry(sample.registry_url), 1.0)
        writers.connect()
    live, expected = file_check.StreamFiles(stream, sample.topic, ""), file_check.StreamFiles(stream, str(data), "")
    records = _valid(Validator(pipeline, writers, any_encoding=True, fuse=False), raw, sent, live)
    rows = _valid(Validator(pipeline, any_encoding=True, fuse=False), raw, history.messages(data, declared), expected)
    if live.dead_letters and not expected.dead_letters:
        reason, message = next(iter(live.first_letters.items()))
        return f"{live.dead_letters.total():,} of its {len(sent):,} newest records are refused: {reason}: {message}"
    different = [id_ for id_ in rows if id_ in records and repr(rows[id_]) != repr(records[id_])]
    if different or not rows.keys() & records.keys():
        return f"its records say something else: {_difference(rows, records, declared.id)}"
    return ""


def _difference(rows: Mapping[str, Any], records: Mapping[str, Any], id_field: str) -> str:
    for id_, row in rows.items():
        for name, value in row.items():
            if id_ in records and repr(records[id_][name]) != repr(value):
                return f"{name} {records[id_][name]!r} where the row made of it has {value!r}"
    return f"they have no such {id_field}"


def _valid(
    validator: Validator, raw: Topic, messages: Sequence[history.Message], files: file_check.StreamFiles
) -> dict[str, Any]:
    """Return the valid records, by id."""
    pipeline, is_event = validator.records.pipeline, raw is topics.EVENTS
    codec, valid = (
        (validator.records.event, topics.EVENTS_VALID) if is_event else (validator.records.label, topics.LABELS_VALID)
    )
    id_ = (pipeline.events if is_event else pipeline.labels).id
    validator.assign(TopicPartition(raw.name(pipeline), 0), Position(0))
    records = file_check.valid_records(validator, raw.name(pipeline), valid.name(pipeline), messages, codec, files)
    return {str(record[id_]): record for record in records}


class _Decoder:
    def __init__(self, registry_url: str) -> None:
        self.registry_url = registry_url
        self.declared: dict[int, Any] = {}
        self.schemas: dict[int, Any] = {}
        self.used: set[int] = set()
        self.has_json = False

    @property
    def only_schema(self) -> Mapping[str, Any] | None:
        """The one schema of all records, where they have one."""
        return None if self.has_json or len(self.used) != 1 else self.declared[next(iter(self.used))]

    def __call__(self, record: Record) -> Mapping[str, Any]:
        data, where = record.value() or b"", f"{record.topic()}[{record.partition()}]@{record.offset()}"
        if data[:1] == b"\0" and len(data) > 5:
            return self._avro(data, record.topic(), where)
        self.has_json = True
        try:
            row = json.loads(data)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise SettingsError(
                f"{where} is no JSON object and no Avro behind a schema id: {data[:40]!r}. Use --from FILE instead"
            )
        return row

    def _avro(self, data: bytes, topic: str, where: str) -> Mapping[str, Any]:
        number = int.from_bytes(data[1:5], "big")
        try:
            row = fastavro.schemaless_reader(BytesIO(data[5:]), self._schema(number, topic, where), None)
        except (ValueError, EOFError, IndexError, KeyError, TypeError) as error:
            raise SettingsError(f"{where} can't be decoded by its schema {number}: {error}") from None
        if not isinstance(row, dict):
            raise SettingsError(f"{where} is no Avro record: {row!r:.60}")
        return row

    def _schema(self, number: int, topic: str, where: str) -> Any:
        if number not in self.schemas:
            if not self.registry_url:
                raise SettingsError(
                    f"{where} is Avro by schema {number}: name the registry that knows it with --registry-url"
                )
            try:
                from tidemill.encoding.schema_registry import SchemaRegistry
            except ModuleNotFoundError as error:
                raise SettingsError(
                    f"schemas are read from a registry with {error.name}: pip install 'tidemill[registry]'"
                ) from None
            registry, subject = SchemaRegistry(self.registry_url), f"{topic}-value"
            for version in map(registry.version, itertools.repeat(subject), registry.versions(subject)):
                self.declared[version.id] = json.loads(version.schema)
                self.schemas[version.id] = schema_files.parsed(self.declared[version.id])[0]
        if number not in self.schemas:
            raise SettingsError(f"{where} is Avro by schema {number}, which the registry's {topic}-value has not")
        self.used.add(number)
        return self.schemas[number]
