"""The feed of schemas: a thread that reads the raw topics' subjects in a registry, again and again, and keeps what it found.

Nothing is ever asked of the registry for a message. What is not known when a message names it is looked for once, by
the thread, while the message waits in its topic; so a producer may register a schema and send by it at once, and an id
that nobody registered costs one look every ten seconds, however many messages name it.
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
from tidemill.errors import Retry, StoreError
from tidemill.stages.validator.writers import Name, Writer, WriterSchemas, refused, writer
from tidemill.wire import topics
from tidemill.wire.records import Records

log = logging.getLogger(__name__)

DEAF_SECONDS = 10.0
"""After a look that did not find what was asked for, no further one is asked for so long."""


class Version(Protocol):
    """One version of a subject, as a registry tells it."""

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
    """What the feed asks of a registry; both raise StoreError where it does not answer."""

    def versions(self, subject: str) -> list[int]:
        """Return the numbers of a subject's versions."""

    def version(self, subject: str, number: int) -> Version:
        """Return one version."""


def subject_of(topic: str) -> str:
    """Return the subject of a topic's values, as Confluent's serializers name it by default."""
    return f"{topic}-value"


class SchemaFeed(WriterSchemas):
    """Follows the subjects of a pipeline's raw topics. What it once found stays known as long as the process runs."""

    def __init__(
        self,
        pipeline: Pipeline,
        registry: Subjects,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        records = Records(pipeline)
        self.registry, self.seconds, self.clock = registry, seconds, clock
        self._codecs: Mapping[str, Codec] = {
            topics.EVENTS.name(pipeline.name): records.event,
            topics.LABELS.name(pipeline.name): records.label,
        }
        self._known: dict[tuple[str, Name], Writer] = {}
        self._read: set[tuple[str, int]] = set()
        self._lock = threading.Lock()
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="schemas", daemon=True)
        self._asked: tuple[str, Name] | None = None
        self._asked_at = self._deaf_until = float("-inf")
        self._away = False

    def start(self) -> None:
        """Read all that there is, so that the first batch meets it; then follow. Raises StoreError where nobody answers."""
        self._read_subjects()
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def find(self, topic: str, name: Name) -> Writer | None:
        """Return the schema, None where the registry has none of that name; raises Retry until it has been asked."""
        found = self._known.get((topic, name))
        if found is not None:
            return found
        with self._lock:
            now = self.clock()
            if now < self._deaf_until:
                return None
            if self._asked is None:
                self._asked, self._asked_at = (topic, name), now
                self._wake.set()
        shown = name if isinstance(name, int) else name.hex()
        raise Retry(f"schema {shown} of {topic} is not known yet: the registry is being asked")

    def look(self) -> None:
        """Read the subjects once, and answer whoever has asked before it began."""
        began = self.clock()
        try:
            self._read_subjects()
            if self._away:
                log.warning("the schema registry is back")
            self._away = False
        except Exception as error:  # whatever a registry answers, the thread must go on: messages may be waiting for it
            if not self._away:
                said = "schemas can't be read for the moment; those that are known stay"
                log.warning(said, exc_info=not isinstance(error, StoreError), extra={"cause": str(error)})
            self._away = True
        with self._lock:
            if self._asked is not None and self._asked_at <= began:
                if self._asked not in self._known:
                    self._deaf_until = self.clock() + DEAF_SECONDS
                self._asked = None

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(self.seconds)
            self._wake.clear()
            if not self._stop.is_set():
                self.look()

    def _read_subjects(self) -> None:
        for topic, codec in self._codecs.items():
            subject = subject_of(topic)
            for number in self.registry.versions(subject):
                if (subject, number) in self._read:
                    continue
                version = self.registry.version(subject, number)
                found = _writer(version, codec)
                self._known[topic, version.id] = found
                if version.guid:
                    self._known[topic, version.guid] = found
                self._read.add((subject, number))
                self._tell(version, found)

    @staticmethod
    def _tell(version: Version, found: Writer) -> None:
        if found.refused:
            log.warning(
                "schema refused: its messages will be dead letters",
                extra={"schema": found.name, "cause": found.refused},
            )
        else:
            log.info("schema known", extra={"schema": found.name, "id": version.id})


def _writer(version: Version, codec: Codec) -> Writer:
    if version.kind != "AVRO":
        return refused(version.name, f"it is {version.kind} where AVRO was expected")
    if version.refers:
        return refused(version.name, "it refers to other subjects; register it with everything written out in it")
    try:
        avro = json.loads(version.schema)
    except (ValueError, RecursionError) as error:
        return refused(version.name, f"it is not JSON: {error}")
    return writer(version.name, avro, codec)
