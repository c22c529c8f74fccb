"""What comes in as JSON is checked as the validator checks it, and becomes the message that a producer would send."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from tidemill.declare.pipeline import Pipeline
from tidemill.encoding.envelopes import SkippedError
from tidemill.errors import Reject
from tidemill.gateway.cloudevents import data_of
from tidemill.stages.validator.service import Validator
from tidemill.stream.api import Headers
from tidemill.stream.topic import Topic
from tidemill.wire import topics

_JSON: Headers = [("content-type", b"application/json")]
_items = msgspec.json.Decoder(list[msgspec.Raw]).decode


@dataclass(frozen=True, slots=True)
class Checked:
    """A record that passed: its id, its Kafka key and message, and a digest of what it says."""

    id: str
    key: bytes
    data: bytes
    digest: bytes


class Checker:
    """Checks one stream's records by its schema and by all rules that look at one record alone.

    Rules that remember, as `unique`, are the validator's own: it alone sees all records in their order.

    Parameters
    ----------
    topic
        `topics.EVENTS` or `topics.LABELS`.
    clock
        Wall time in seconds.
    """

    def __init__(self, pipeline: Pipeline, topic: Topic, clock: Callable[[], float] = time.time) -> None:
        stream = pipeline.events if topic is topics.EVENTS else pipeline.labels
        self._is_json, self._clock = stream.encoding == "json", clock
        # What goes on as Avro may come bare; what goes on as it came has to be as producers send it.
        validator = Validator(pipeline, any_encoding=not self._is_json)
        self._examine = validator.route(topic.name(pipeline)).examine
        self._takes_cloud_events = stream.unwrap == "cloudevents"
        self._fields = [field["name"] for field in stream.avro["fields"]]
        self._id, self._key = stream.id, (stream.key or stream.id) if topic is topics.EVENTS else stream.id

    def read(self, data: bytes, *, is_cloud_event: bool = False) -> tuple[dict[str, Any], bytes]:
        """Return a JSON record, and its Avro message. Raises Reject as the validator does."""
        data = self._unwrapped(data, is_cloud_event=is_cloud_event)
        try:
            return self._examine(data, lambda: _JSON, self._clock() * 1000)[:2]
        except SkippedError as skipped:
            raise Reject("skipped", f"a change event without a record: {skipped.kind}") from None

    def check(self, data: bytes, *, is_cloud_event: bool = False) -> Checked:
        """Return a JSON record as it is sent. Raises Reject as the validator does."""
        data = self._unwrapped(data, is_cloud_event=is_cloud_event)
        record, message = self.read(data)
        digest = hashlib.blake2b(message, digest_size=12).hexdigest().encode()
        sent = data if self._is_json else message
        return Checked(str(record[self._id]), str(record[self._key]).encode(), sent, digest)

    def _unwrapped(self, data: bytes, *, is_cloud_event: bool) -> bytes:
        """Return the data of a CloudEvent, unless the stream is declared to take them as they are."""
        return data_of(data, self._fields) if is_cloud_event and not self._takes_cloud_events else data


def split(body: bytes) -> tuple[list[bytes], bool]:
    """Return the records of a body, and whether they came as a list. Raises Reject where that is no JSON."""
    if body.lstrip(b" \t\r\n")[:1] != b"[":
        return [body], False
    try:
        return [bytes(item) for item in _items(body)], True
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise Reject("not_json", f"the bytes begin like a JSON list and are none: {error}") from error
