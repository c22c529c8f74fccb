"""Dead letters: the original bytes on the dead-letter topic, and why they are there in the headers.

Names are Kafka Connect's (`__connect.errors.*`) where it has one for the thing, else `tidemill.*`, so that tools made
for Connect's dead-letter queues read ours. The producer's own headers are kept, before ours.
"""

from __future__ import annotations

from collections.abc import Mapping

from tidemill.errors import Reject
from tidemill.stream.api import Emit, Headers, Record

LONGEST_VALUE = 256
"""Most characters of the offending value that go into a header; the whole is in the original bytes."""
LONGEST_MESSAGE = 1024


def headers(record: Record, reject: Reject, service: str) -> Headers:
    """Return the dead letter's headers: the record's own, its coordinates, and the reason."""
    ours = {
        "__connect.errors.topic": record.topic(),
        "__connect.errors.partition": record.partition(),
        "__connect.errors.offset": record.offset(),
        "__connect.errors.stage": service,
        "__connect.errors.exception.class.name": "tidemill.Reject",
        "__connect.errors.exception.message": shown(reject, LONGEST_MESSAGE),
        "tidemill.reason": reject.reason,
        "tidemill.rule": reject.rule,
        "tidemill.field": shown(reject.field),
        "tidemill.value": shown(reject.value),
        "tidemill.timestamp": record.timestamp()[1],
    }
    return list(record.headers() or []) + [
        (name, str(value).encode(errors="backslashreplace")) for name, value in ours.items()
    ]


def said(record: Record) -> Mapping[str, str]:
    """Return what a dead letter's headers say, by name; a producer's own header may hold anything, or nothing."""
    return {name: (data or b"").decode(errors="replace") for name, data in record.headers() or []}


def shown(value: object, longest: int = LONGEST_VALUE) -> str:
    """Return a value as people read it, cut to a bounded length."""
    text = "" if value is None else str(value)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def dead_letter(record: Record, reject: Reject, emit: Emit, topic: str, service: str) -> None:
    """Send the record, byte for byte, to the dead-letter topic."""
    emit(topic, record.value() or b"", record.key(), record.timestamp()[1], headers(record, reject, service))
