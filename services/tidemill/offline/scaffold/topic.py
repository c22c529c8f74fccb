"""The newest records of somebody's topic, in JSON or in Avro, as rows."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import fastavro

from tidemill.encoding import schema_files
from tidemill.errors import SettingsError
from tidemill.offline.scaffold.plan import Data
from tidemill.stream.api import Broker, Record, TopicPartition


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
    rows = [decode(record) for record in newest[-records:]]
    if not rows:
        raise SettingsError(f"--from-topic {topic!r}: the topic has no records: produce some, or use --from FILE")
    names = dict.fromkeys(name for row in rows for name in row)
    return Data(f"topic {topic}", {name: [row.get(name) for row in rows] for name in names}, is_csv=False)


class _Decoder:
    def __init__(self, registry_url: str) -> None:
        self.registry_url = registry_url
        self.schemas: dict[int, Any] = {}

    def __call__(self, record: Record) -> Mapping[str, Any]:
        data, where = record.value() or b"", f"{record.topic()}[{record.partition()}]@{record.offset()}"
        if data[:1] == b"\0" and len(data) > 5:
            return self._avro(data, record.topic(), where)
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
                self.schemas[version.id] = schema_files.parsed(json.loads(version.schema))[0]
        if number not in self.schemas:
            raise SettingsError(f"{where} is Avro by schema {number}, which the registry's {topic}-value has not")
        return self.schemas[number]
