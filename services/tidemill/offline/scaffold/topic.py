"""The newest records of somebody's topic, in JSON or Avro: as rows, and whether a pipeline reads them as they are."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fastavro
from fastavro.read import SchemaResolutionError

from tidemill import rows as rows_
from tidemill.declare.pipeline import Pipeline
from tidemill.encoding import schema_files
from tidemill.errors import SettingsError, TidemillError
from tidemill.offline import file_check, history
from tidemill.offline.scaffold.plan import Data, Sample
from tidemill.stages.validator.schema_follower import SchemaFollower, subject_of
from tidemill.stages.validator.service import Validator
from tidemill.stream.api import Broker, Position, Record, TopicPartition
from tidemill.stream.topic import Topic
from tidemill.wire import topics

if TYPE_CHECKING:
    from tidemill.encoding.schema_registry import Version

#: Of a message behind a schema id: a zero, and four bytes of the id.
HEADER_BYTES = 5

#: What it warns of is in the note of the topic.
logging.getLogger(SchemaFollower.__module__).addHandler(logging.NullHandler())


def of_topic(broker: Broker, topic: str, records: int, registry_url: str = "") -> Data:
    """Return the newest records of a topic, oldest first.

    Records without a value are left out. Raises SettingsError where the topic does not exist, is empty, or a record is
    neither a JSON object nor Avro by a schema that the registry knows.
    """
    count = broker.partitions(topic)
    if not count:
        raise SettingsError(f"--from-topic {topic!r}: the topic does not exist")
    newest = _newest(broker, [TopicPartition(topic, number) for number in range(count)], records)
    if not newest:
        raise SettingsError(
            f"--from-topic {topic!r}: the topic has no records that are committed and have a value: produce some, or "
            f"use --from FILE"
        )
    decode = _Decoder(topic, registry_url)
    rows = decode(newest)
    names = dict.fromkeys(name for row in rows for name in row)
    sample = Sample(topic, count, newest, registry_url, decode.schema, is_json=not decode.used)
    return Data(
        f"topic {topic}", {name: [row.get(name) for row in rows] for name in names}, is_csv=False, sample=sample
    )


def _newest(broker: Broker, partitions: Sequence[TopicPartition], records: int) -> list[Record]:
    """Return as many of the newest records with a value; offsets may hold none, as those of aborted transactions."""
    ranges = {partition: broker.offset_range(partition) for partition in partitions}
    ends = {partition: end for partition, (_, end) in ranges.items()}
    step, newest = -(-records // len(ranges)), list[Record]()
    while len(newest) < records and any(ends[partition] > begin for partition, (begin, _) in ranges.items()):
        before = {
            partition: (max(begin, ends[partition] - step), ends[partition]) for partition, (begin, _) in ranges.items()
        }
        newest += [record for batch in broker.read(before) for record in batch if record.value() is not None]
        ends, step = {partition: begin for partition, (begin, _) in before.items()}, step * 4
    newest.sort(key=lambda record: (record.timestamp()[1], record.partition(), record.offset()))
    return newest[-records:]


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
    if any(_is_framed(record.value() or b"") for record in sample.records):
        from tidemill.encoding.schema_registry import SchemaRegistry

        writers = SchemaFollower(pipeline, SchemaRegistry(sample.registry_url), 1.0)
        writers.connect()
    live, expected = file_check.StreamFiles(stream, sample.topic, ""), file_check.StreamFiles(stream, str(data), "")
    records = _valid(Validator(pipeline, writers, any_encoding=True, fuse=False), raw, sent, live)
    rows = _valid(Validator(pipeline, any_encoding=True, fuse=False), raw, history.messages(data, declared), expected)
    refused = live.dead_letters - expected.dead_letters or (live.dead_letters if not rows else None)
    if refused:
        reason, message = (most := refused.most_common(1)[0][0]), live.first_letters[most]
        return f"{live.dead_letters[reason]:,} of its {len(sent):,} newest records are refused: {reason}: {message}"
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


def _is_framed(data: bytes) -> bool:
    return data[:1] == b"\0" and len(data) > HEADER_BYTES


class _Decoder:
    """Makes rows of a topic's records; `used`: the ids of the Avro schemas that they were written with."""

    def __init__(self, topic: str, registry_url: str) -> None:
        self.topic, self.registry_url = topic, registry_url
        self.versions: dict[int, Version] = {}
        self.parsed: dict[int, Any] = {}
        self.used: list[int] = []
        self.schema: Mapping[str, Any] | None = None

    def __call__(self, records: Sequence[Record]) -> list[Mapping[str, Any]]:
        """Return a row of each record; of Avro as the newest of their schemas has it, `schema`, where it can."""
        rows = [self._row(record) for record in records]
        if not self.used or not all(_is_framed(record.value() or b"") for record in records):
            return rows
        newest = max(self.used, key=lambda number: self.versions[number].number)
        try:
            if len(self.used) > 1:
                rows = [self._row(record, self.parsed[newest]) for record in records]
        except SchemaResolutionError:
            return rows
        self.schema = json.loads(self.versions[newest].schema)
        return rows

    def _row(self, record: Record, reader: Any = None) -> Mapping[str, Any]:
        data, where = record.value() or b"", f"{record.topic()}[{record.partition()}]@{record.offset()}"
        number = int.from_bytes(data[1:HEADER_BYTES], "big") if _is_framed(data) else None
        version = self._version(number, where) if number is not None else None
        if version and version.kind == "AVRO":
            return self._avro(data, version, where, reader)
        if version and version.kind != "JSON":
            raise SettingsError(
                f"{where} is {version.kind} by schema {number}; JSON and Avro are read: use --from FILE"
            )
        try:
            row = json.loads(data[HEADER_BYTES:] if version else data, object_pairs_hook=rows_.with_each_name_once)
        except rows_.TwiceError as error:
            raise SettingsError(f"{where}: {error}: use --from FILE, with each once") from None
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise SettingsError(
                f"{where} is no JSON object and no Avro behind a schema id: {data[:40]!r}. Use --from FILE instead"
            )
        return row

    def _avro(self, data: bytes, version: Version, where: str, reader: Any) -> Mapping[str, Any]:
        if version.id not in self.parsed:
            self.parsed[version.id] = self._parsed(version, where)
            self.used.append(version.id)
        source, schema = BytesIO(data[HEADER_BYTES:]), self.parsed[version.id]
        try:
            row = fastavro.schemaless_reader(source, schema, None if reader is schema else reader)
        except (ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError) as error:
            why = "it ends too early" if isinstance(error, EOFError) else str(error)
            raise SettingsError(f"{where} can't be decoded by its schema {version.id}: {why}") from None
        if rest := source.read():
            raise SettingsError(
                f"{where} can't be decoded by its schema {version.id}: {len(rest):,} bytes follow the record"
            )
        if not isinstance(row, dict):
            raise SettingsError(f"{where} is no Avro record: {row!r:.60}")
        return row

    @staticmethod
    def _parsed(version: Version, where: str) -> Any:
        if version.refers:
            raise SettingsError(
                f"{where}: {version.name} refers to schemas of other subjects, which are not read: use --from FILE"
            )
        try:
            return schema_files.parsed(json.loads(version.schema))[0]
        except (ValueError, TidemillError) as error:
            raise SettingsError(f"{where} can't be decoded by its schema {version.id}: {error}") from None

    def _version(self, number: int, where: str) -> Version:
        if not self.versions:
            self.versions = self._of_registry(number, where)
        if number not in self.versions:
            raise SettingsError(
                f"{where} is written by schema {number}, which the registry's {subject_of(self.topic)} has not: "
                f"register it there, or use --from FILE"
            )
        return self.versions[number]

    def _of_registry(self, number: int, where: str) -> dict[int, Version]:
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
        registry, subject = SchemaRegistry(self.registry_url), subject_of(self.topic)
        versions = (registry.version(subject, number) for number in registry.versions(subject))
        return {version.id: version for version in versions}
