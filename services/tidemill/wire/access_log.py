"""The access log: who has read or commanded what by the status service or the gateway, on <pipeline>.access.

Nobody waits for it: what Kafka does not take is lost, counted, and said in the next record that it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from tidemill import metrics
from tidemill.declare.pipeline import Pipeline
from tidemill.encoding.codec import Codec
from tidemill.stream.api import Headers
from tidemill.wire import topics
from tidemill.wire.dead_letters import shorten
from tidemill.wire.records import Records

#: Records that wait for Kafka, at most, and for how long; librdkafka sends those of a tenth of a second together.
PRODUCER = {"linger.ms": 100, "queue.buffering.max.messages": 5_000, "delivery.timeout.ms": 30_000}
MAX_SUBJECT_CHARACTERS = 500


class TrySender(Protocol):
    """What takes a record without waiting, and says later where it was not written."""

    def try_send(
        self, topic: str, value: bytes, key: bytes, headers: Headers, on_delivery: Callable[[str], None]
    ) -> bool: ...
    def poll(self, seconds: float = 0.0) -> None: ...


def access_record(codec: Codec, access: Mapping[str, Any], service: str, instance: str, dropped: int = 0) -> bytes:
    """Return a record; `access` has the fields of schemas/tidemill/access.v1.avsc but service, instance, dropped."""
    subject = shorten(access["subject"], MAX_SUBJECT_CHARACTERS)
    return codec.encode({**access, "service": service, "instance": instance, "subject": subject, "dropped": dropped})


class AccessLog:
    """Writes what one process has answered. Not for several threads."""

    def __init__(self, pipeline: Pipeline, service: str, instance: str, sender: TrySender) -> None:
        self._topic, self._codec = topics.ACCESS.name(pipeline.name), Records(pipeline).access
        self._from, self._sender = (service, instance), sender
        self._dropped = metrics.ACCESS_DROPPED.labels(service)
        self._unsaid = 0

    def note(self, access: Mapping[str, Any]) -> None:
        """Write what was answered, with the fields that `access_record` takes."""
        said, self._unsaid = self._unsaid, 0
        value = access_record(self._codec, access, *self._from, said)

        def delivered(why_not: str) -> None:
            if why_not:
                self._drop(said)

        if not self._sender.try_send(self._topic, value, access["by"].encode(), [], delivered):
            self._drop(said)
        self._sender.poll()

    def _drop(self, said: int) -> None:
        """Count a record that is lost, with those that it told of."""
        self._unsaid += said + 1
        self._dropped.inc()
