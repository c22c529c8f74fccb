"""Follows a schema registry: a thread reads the raw topics' subjects again and again, and keeps the schemas.

No message waits for a request of its own. Where a message names an unknown schema, the thread reads the subjects once
while the message waits in its topic. So a producer may register a schema and send by it at once, and an id that nobody
registered costs one read every ten seconds, however many messages name it.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from tidemill.declare.pipeline import Pipeline
from tidemill.encoding.codec import Codec
from tidemill.encoding.envelopes import Unwrap
from tidemill.errors import Retry, StoreError
from tidemill.limits import SCHEMA_BYTES, SCHEMA_VERSIONS
from tidemill.stages.validator.writer_schemas import (
    SchemaName,
    WriterSchema,
    WriterSchemas,
    json_schema,
    protobuf_schema,
    refused_schema,
    writer_schema,
)
from tidemill.wire import topics
from tidemill.wire.records import Records

log = logging.getLogger(__name__)

#: After a read that did not find a schema, no further one is requested for so long.
NOT_FOUND_PAUSE_SECONDS = 10.0


class SchemaVersion(Protocol):
    """One version of a subject, as a registry has it."""

    @property
    def name(self) -> str: ...
    @property
    def id(self) -> int: ...
    @property
    def guid(self) -> bytes: ...
    @property
    def schema(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def refers(self) -> bool: ...


class Subjects(Protocol):
    """What is read of a registry; both raise StoreError where it does not answer."""

    def versions(self, subject: str) -> list[int]:
        """Return the numbers of a subject's versions."""

    def version(self, subject: str, number: int) -> SchemaVersion:
        """Return one version."""


def subject_of(topic: str) -> str:
    """Return the subject of a topic's values, as Confluent's serializers name it by default."""
    return f"{topic}-value"


class SchemaFollower(WriterSchemas):
    """Follows the subjects of a pipeline's raw topics. A schema stays known as long as the process runs."""

    def __init__(
        self,
        pipeline: Pipeline,
        registry: Subjects,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        records = Records(pipeline)
        self.registry, self.seconds, self.clock = registry, seconds, clock
        self._read_as: Mapping[str, tuple[Codec, Unwrap]] = {
            topics.EVENTS.name(pipeline): (records.sent_event, pipeline.events.unwrap),
            topics.LABELS.name(pipeline): (records.sent_label, pipeline.labels.unwrap),
        }
        self._known: dict[tuple[str, SchemaName], WriterSchema] = {}
        self._read: set[tuple[str, int]] = set()
        self._lock = threading.Lock()
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="schemas", daemon=True)
        self._requested: tuple[str, SchemaName] | None = None
        self._requested_at = self._paused_until = float("-inf")
        self._away = self._is_connected = self._is_unread = False

    def connect(self, must_answer: bool = True) -> None:
        """Read all schemas for the first batch. Raises StoreError where the registry is away, and `must_answer`.

        Otherwise a message that names a schema waits until the registry has answered once.
        """
        self._is_connected = True
        try:
            self._read_subjects()
        except StoreError:
            if must_answer:
                raise
            self._away = self._is_unread = True

    def start(self) -> None:
        """Connect, unless that was done; then follow. Raises StoreError where the registry is away."""
        if not self._is_connected:
            self.connect()
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def find(self, topic: str, name: SchemaName) -> WriterSchema | None:
        """Return the schema, None where the registry has none of that name; raises Retry until it has been asked."""
        schema = self._known.get((topic, name))
        if schema is not None:
            return schema
        with self._lock:
            now = self.clock()
            if now < self._paused_until:
                return None
            if self._requested is None:
                self._requested, self._requested_at = (topic, name), now
                self._wake.set()
        shown = name if isinstance(name, int) else name.hex()
        waits_for = "does not answer, and was not read yet" if self._is_unread else "is being asked"
        raise Retry(f"schema {shown} of {topic} is not known yet: the registry {waits_for}")

    def refresh(self) -> None:
        """Read the subjects once; this answers a request made before it began."""
        began = self.clock()
        try:
            self._read_subjects()
            self._is_unread = False
            if self._away:
                log.warning("the schema registry is back")
            self._away = False
        except Exception as error:  # whatever a registry answers, the thread must go on: messages may be waiting for it
            if not self._away:
                message = "schemas can't be read at the moment; those that are known stay"
                log.warning(message, exc_info=not isinstance(error, StoreError), extra={"cause": str(error)})
            self._away = True
        with self._lock:
            if self._requested is not None and self._requested_at <= began:
                if self._requested not in self._known and not self._is_unread:
                    self._paused_until = self.clock() + NOT_FOUND_PAUSE_SECONDS
                self._requested = None

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(self.seconds)
            self._wake.clear()
            if not self._stop.is_set():
                self.refresh()

    def _read_subjects(self) -> None:
        for topic, (codec, unwrap) in self._read_as.items():
            subject = subject_of(topic)
            for number in self.registry.versions(subject)[-SCHEMA_VERSIONS.max :]:
                if (subject, number) in self._read:
                    continue
                version = self.registry.version(subject, number)
                schema = registered_schema(version, codec, unwrap)
                self._known[topic, version.id] = schema
                if version.guid:
                    self._known[topic, version.guid] = schema
                self._read.add((subject, number))
                self._log(version, schema)

    @staticmethod
    def _log(version: SchemaVersion, schema: WriterSchema) -> None:
        if schema.refused:
            log.warning(
                "schema refused: its messages will be dead letters",
                extra={"schema": schema.name, "cause": schema.refused},
            )
        else:
            log.info("schema known", extra={"schema": schema.name, "id": version.id})


def registered_schema(version: SchemaVersion, codec: Codec, unwrap: Unwrap) -> WriterSchema:
    """Return how messages by one version of a subject are read, or why they are not."""
    if version.kind not in ("AVRO", "JSON", "PROTOBUF"):
        return refused_schema(version.name, f"it is {version.kind} where AVRO, JSON or PROTOBUF was expected")
    size = len(version.schema.encode(errors="replace"))
    if version.kind == "JSON":
        return json_schema(version.name, version.schema if size <= SCHEMA_BYTES.max else "", codec, unwrap)
    if version.refers:
        return refused_schema(
            version.name, "it refers to other subjects; register it with everything written out in it"
        )
    if size > SCHEMA_BYTES.max:
        return refused_schema(version.name, SCHEMA_BYTES.excess(size))
    if version.kind == "PROTOBUF":
        if unwrap:
            return refused_schema(version.name, f"it is PROTOBUF, and envelopes ({unwrap}) are read in Avro and JSON")
        return protobuf_schema(version.name, version.schema, codec)
    try:
        avro = json.loads(version.schema)
    except (ValueError, RecursionError) as error:
        return refused_schema(version.name, f"it is not JSON: {error}")
    return writer_schema(version.name, avro, codec, unwrap)
