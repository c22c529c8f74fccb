"""Dead letters: the original bytes on the dead-letter topic, and the reason in the headers.

Names are Kafka Connect's (`__connect.errors.*`) where it has one for the thing, else `tidemill.*`, so that tools made
for Connect's dead-letter queues read ours. The producer's own headers are kept, before ours. A record that was redriven
carries a mark after its own headers: the dead letter that it was, and which attempt it is.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from tidemill.encoding.json_values import shown
from tidemill.errors import Reject
from tidemill.limits import DEAD_LETTER_BYTES, ID_CHARACTERS
from tidemill.stream.api import Emit, Headers, Processor, Record, discard
from tidemill.stream.origin import origin_of, plausible, without_origin
from tidemill.stream.trace import trace_of
from tidemill.wire import topics
from tidemill.wire.records import Records

#: Of the offending value in a header; all of it is in the original bytes.
MAX_VALUE_CHARACTERS = 256
MAX_MESSAGE_CHARACTERS = 1024

#: The first of our own headers: those before the last one of this name are the producer's.
_FIRST = "__connect.errors.topic"
#: What it reads comes from producers; what the others read has headers of ours.
_FIRST_STAGE = "validator"
_REDRIVEN, _ATTEMPT = "tidemill.redriven", "tidemill.attempt"
#: How many bytes a record had that was cut.
_CUT = "tidemill.cut"
#: The SHA-256 of the value of a record that was cut.
_DIGEST = "tidemill.sha256"
#: Numbers in headers are of bounded length: anybody may have written them.
_PLACE = re.compile(r"(\d{1,9}):(\d{1,18})", re.ASCII)
_COUNT = re.compile(r"\d{1,18}", re.ASCII)


class Place(NamedTuple):
    """Where a dead letter is: partition and offset on the dead-letter topic."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}:{self.offset}"


def parse_place(text: str) -> Place:
    """Return the place in `partition:offset`. Raises ValueError for anything else."""
    numbers = _PLACE.fullmatch(text)
    if numbers is None:
        raise ValueError(f"{text!r} is no dead letter: expected PARTITION:OFFSET, as in 0:17")
    return Place(int(numbers[1]), int(numbers[2]))


class RedriveMark(NamedTuple):
    """What a redrive adds to a record: the dead letter that it was, and which attempt it is now."""

    letter: Place
    attempt: int

    def headers(self) -> Headers:
        """Return the two headers of the mark."""
        return [(_REDRIVEN, str(self.letter).encode()), (_ATTEMPT, str(self.attempt).encode())]


def dead_letter_headers(record: Record, reject: Reject, service: str, refused_at: int) -> Headers:
    """Return the headers: the record's own, its coordinates, and the reason; `refused_at` is ms, wall time."""
    own, mark = split_redrive_mark(record.headers())
    sent = _sent_at(record, service)
    if service != _FIRST_STAGE:
        own = without_origin(own)
    ours = {
        _FIRST: record.topic(),
        "__connect.errors.partition": record.partition(),
        "__connect.errors.offset": record.offset(),
        "__connect.errors.stage": service,
        "__connect.errors.exception.class.name": "tidemill.Reject",
        "__connect.errors.exception.message": shorten(reject, MAX_MESSAGE_CHARACTERS),
        "tidemill.reason": reject.reason,
        "tidemill.rule": reject.rule,
        "tidemill.field": shorten(reject.field),
        "tidemill.value": shorten(reject.value),
        "tidemill.timestamp": sent,
        "tidemill.refused_at": refused_at,
        _ATTEMPT: mark.attempt if mark else 1,
    }
    if reject.entity:
        ours["tidemill.entity"] = shorten(reject.entity)
    if mark:
        ours[_REDRIVEN] = mark.letter
    return own + [(name, str(value).encode(errors="backslashreplace")) for name, value in ours.items()]


def _sent_at(record: Record, service: str) -> int:
    """Return when its producer sent it, in ms. What the validator reads has no origin, whatever its headers are."""
    return record.timestamp()[1] if service == _FIRST_STAGE else origin_of(record)


def split_redrive_mark(headers: Headers | None) -> tuple[Headers, RedriveMark | None]:
    """Return a record's own headers, and the mark after them; None where it was not redriven.

    Only the last two headers are looked at, and only in the form that a redrive writes: any other header of a producer,
    whatever its name, is kept.
    """
    headers = list(headers or [])
    if [name for name, _ in headers[-2:]] != [_REDRIVEN, _ATTEMPT]:
        return headers, None
    place, attempt = _PLACE.fullmatch(_text(headers[-2][1])), _COUNT.fullmatch(_text(headers[-1][1]))
    if place is None or attempt is None:
        return headers, None
    return headers[:-2], RedriveMark(Place(int(place[1]), int(place[2])), int(attempt[0]))


def redrive_headers(headers: Headers | None) -> Headers | None:
    """Return what goes on with a record that passed: its redrive mark, so that a later dead letter has the attempt."""
    if not headers or headers[-1][0] != _ATTEMPT:  # nearly all records: this has to cost next to nothing
        return None
    mark = split_redrive_mark(headers)[1]
    return mark.headers() if mark else None


def producer_headers(record: Record) -> Headers:
    """Return the headers that the producer of a dead letter's record had given it."""
    return _split(record.headers())[0]


def _split(headers: Headers | None) -> tuple[Headers, Headers]:
    """Return the headers that the producer of a dead letter's record had given it, and ours."""
    headers = without_origin(list(headers or []))
    first = next((index for index in reversed(range(len(headers))) if headers[index][0] == _FIRST), len(headers))
    return headers[:first], headers[first:]


def text_headers(record: Record) -> Mapping[str, str]:
    """Return a dead letter's headers as text, by name; a producer's own header may hold anything, or nothing."""
    return {name: _text(data) for name, data in record.headers() or []}


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead letter's headers, without its bytes. Times are ms since the epoch; missing numbers are None.

    `cut_from` is how many bytes the record had of which this is a part; None where it is all of it.
    """

    place: Place
    refused_at: int
    sent_at: int
    attempt: int
    redriven_from: str
    stage: str
    topic: str
    partition: int | None
    offset: int | None
    reason: str
    rule: str
    field: str
    value: str
    entity: str
    message: str
    key: str
    size: int
    cut_from: int | None


def read_dead_letter(record: Record) -> DeadLetter:
    """Return what the headers of a dead letter hold; any may lack, for anybody may write to the topic."""
    theirs, ours = _split(record.headers())
    headers = {name: _text(data) for name, data in ours or theirs}
    refused_at = _number(headers.get("tidemill.refused_at"))
    return DeadLetter(
        place=Place(record.partition(), record.offset()),
        refused_at=record.timestamp()[1] if refused_at is None else refused_at,
        sent_at=origin_of(record),
        attempt=_number(headers.get(_ATTEMPT)) or 1,
        redriven_from=headers.get(_REDRIVEN, ""),
        stage=headers.get("__connect.errors.stage", ""),
        topic=headers.get(_FIRST, ""),
        partition=_number(headers.get("__connect.errors.partition")),
        offset=_number(headers.get("__connect.errors.offset")),
        reason=headers.get("tidemill.reason", "?"),
        rule=headers.get("tidemill.rule", ""),
        field=headers.get("tidemill.field", ""),
        value=headers.get("tidemill.value", ""),
        entity=headers.get("tidemill.entity", ""),
        message=headers.get("__connect.errors.exception.message", ""),
        key=_text(record.key()),
        size=len(record.value() or b""),
        cut_from=_number(headers.get(_CUT)),
    )


def _number(text: str | None) -> int | None:
    return int(text) if text and _COUNT.fullmatch(text) else None


def _text(data: bytes | None) -> str:
    return (data or b"").decode(errors="replace")


def shorten(value: object, max_characters: int = MAX_VALUE_CHARACTERS) -> str:
    """Return a value as text, cut to a bounded length."""
    text = "" if value is None else shown(value) if isinstance(value, (list, dict)) else str(value)
    return text if len(text) <= max_characters else text[: max_characters - 1] + "…"


def send_dead_letter(
    record: Record, reject: Reject, emit: Emit, topic: str, service: str, max_bytes: int = DEAD_LETTER_BYTES.max
) -> None:
    """Send the record to the dead-letter topic: byte for byte, unless it has more than `max_bytes`.

    Then its value and key are cut, of its producer's headers only the trace is kept, and the letter has the size and
    the SHA-256 of what they were. All of it is where it was.
    """
    value, key = record.value() or b"", record.key()
    now = int(time.time() * 1000)
    headers = dead_letter_headers(record, reject, service, now)
    size = _bytes(headers) + len(key or b"") + len(value)
    if size > max_bytes:
        digest = hashlib.sha256(value).hexdigest().encode()
        headers = [*(trace_of(record) or ()), *_split(headers)[1], (_CUT, str(size).encode()), (_DIGEST, digest)]
        key = key and key[: ID_CHARACTERS.max]
        value = value[: max(0, max_bytes - _bytes(headers) - len(key or b""))]
    emit(topic, value, key, plausible(_sent_at(record, service), now) or now, headers)


class DeadLetterProcessor(Processor):
    """A processor that makes dead letters of records that it refuses, as the stage `stage` of a pipeline."""

    records: Records

    def __init__(self, pipeline: str, stage: str) -> None:
        super().__init__()
        self.dlq, self.stage = topics.DLQ.name(pipeline), stage

    def refuse(self, record: Record, reject: Reject, emit: Emit, max_bytes: int = DEAD_LETTER_BYTES.max) -> None:
        self.in_hand = record
        reject = self.records.mask.reject(reject)
        send_dead_letter(record, reject, emit, self.dlq, self.stage, max_bytes)
        if emit is not discard:
            self.traces.refused(record, reject)
        self.counts["dead_letters", reject.reason] += 1


def _bytes(headers: Headers) -> int:
    """Return how many bytes headers take on the wire, at most."""
    return sum(len(name.encode()) + len(data or b"") + 10 for name, data in headers)
