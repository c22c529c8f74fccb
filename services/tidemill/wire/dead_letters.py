"""Dead letters: the original bytes on the dead-letter topic, and why they are there in the headers.

Names are Kafka Connect's (`__connect.errors.*`) where it has one for the thing, else `tidemill.*`, so that tools made
for Connect's dead-letter queues read ours. The producer's own headers are kept, before ours. A record that was redriven
carries a mark after its own headers: the letter that it was, and which attempt it is.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from tidemill.errors import Reject
from tidemill.stream.api import Emit, Headers, Record

LONGEST_VALUE = 256
"""Most characters of the offending value that go into a header; the whole is in the original bytes."""
LONGEST_MESSAGE = 1024

_FIRST = "__connect.errors.topic"
"""The first of our own headers: what stands before the last one of this name is the producer's."""
_REDRIVEN, _ATTEMPT = "tidemill.redriven", "tidemill.attempt"
_PLACE = re.compile(r"(\d{1,9}):(\d{1,18})", re.ASCII)
_COUNT = re.compile(r"\d{1,18}", re.ASCII)
"""Numbers in headers are of bounded length: anybody may have written them."""


class Place(NamedTuple):
    """Where a dead letter is: partition and offset on the dead-letter topic."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}:{self.offset}"


def place_of(text: str) -> Place:
    """Return the place in `partition:offset`. Raises ValueError for anything else."""
    found = _PLACE.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no dead letter: expected PARTITION:OFFSET, as in 0:17")
    return Place(int(found[1]), int(found[2]))


class Mark(NamedTuple):
    """What a redrive puts on a record: the letter that it was, and which attempt it is now."""

    letter: Place
    attempt: int

    def headers(self) -> Headers:
        """Return the two headers of the mark."""
        return [(_REDRIVEN, str(self.letter).encode()), (_ATTEMPT, str(self.attempt).encode())]


def headers(record: Record, reject: Reject, service: str, refused_at: int) -> Headers:
    """Return the dead letter's headers: the record's own, its coordinates, and the reason; `refused_at` is ms, wall time."""
    own, mark = split(record.headers())
    ours = {
        _FIRST: record.topic(),
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
        "tidemill.refused_at": refused_at,
        _ATTEMPT: mark.attempt if mark else 1,
    }
    if reject.entity:
        ours["tidemill.entity"] = shown(reject.entity)
    if mark:
        ours[_REDRIVEN] = mark.letter
    return own + [(name, str(value).encode(errors="backslashreplace")) for name, value in ours.items()]


def split(given: Headers | None) -> tuple[Headers, Mark | None]:
    """Return a record's own headers, and the mark after them; None where it was not redriven.

    Only the last two headers are looked at, and only in the form that a redrive writes: whatever else a producer calls
    `tidemill.attempt` is the producer's, and is kept.
    """
    found = list(given or [])
    if [name for name, _ in found[-2:]] != [_REDRIVEN, _ATTEMPT]:
        return found, None
    letter, attempt = _PLACE.fullmatch(_text(found[-2][1])), _COUNT.fullmatch(_text(found[-1][1]))
    if letter is None or attempt is None:
        return found, None
    return found[:-2], Mark(Place(int(letter[1]), int(letter[2])), int(attempt[0]))


def carried(given: Headers | None) -> Headers | None:
    """Return what goes on with a record that passed: its mark, so that whoever refuses it later knows the attempt."""
    if not given or given[-1][0] != _ATTEMPT:  # nearly all: asked of every record, so it has to cost next to nothing
        return None
    mark = split(given)[1]
    return mark.headers() if mark else None


def own(record: Record) -> Headers:
    """Return the headers that the producer of a dead letter's record had given it."""
    found = list(record.headers() or [])
    ours = [index for index, (name, _) in enumerate(found) if name == _FIRST]
    return found[: ours[-1]] if ours else found


def said(record: Record) -> Mapping[str, str]:
    """Return what a dead letter's headers say, by name; a producer's own header may hold anything, or nothing."""
    return {name: _text(data) for name, data in record.headers() or []}


@dataclass(frozen=True, slots=True)
class Letter:
    """What a dead letter says, without its bytes. Times are ms since the epoch; numbers are None where it says none."""

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


def letter_of(record: Record) -> Letter:
    """Return what a dead letter says. One of before there was `tidemill.refused_at` has its Kafka timestamp for it."""
    found = said(record)
    refused_at = _number(found.get("tidemill.refused_at"))
    return Letter(
        place=Place(record.partition(), record.offset()),
        refused_at=record.timestamp()[1] if refused_at is None else refused_at,
        sent_at=record.timestamp()[1],
        attempt=_number(found.get(_ATTEMPT)) or 1,
        redriven_from=found.get(_REDRIVEN, ""),
        stage=found.get("__connect.errors.stage", ""),
        topic=found.get(_FIRST, ""),
        partition=_number(found.get("__connect.errors.partition")),
        offset=_number(found.get("__connect.errors.offset")),
        reason=found.get("tidemill.reason", "?"),
        rule=found.get("tidemill.rule", ""),
        field=found.get("tidemill.field", ""),
        value=found.get("tidemill.value", ""),
        entity=found.get("tidemill.entity", ""),
        message=found.get("__connect.errors.exception.message", ""),
        key=_text(record.key()),
        size=len(record.value() or b""),
    )


def _number(text: str | None) -> int | None:
    return int(text) if text and _COUNT.fullmatch(text) else None


def _text(data: bytes | None) -> str:
    return (data or b"").decode(errors="replace")


def shown(value: object, longest: int = LONGEST_VALUE) -> str:
    """Return a value as people read it, cut to a bounded length."""
    text = "" if value is None else str(value)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def dead_letter(record: Record, reject: Reject, emit: Emit, topic: str, service: str) -> None:
    """Send the record, byte for byte, to the dead-letter topic."""
    found = headers(record, reject, service, int(time.time() * 1000))
    emit(topic, record.value() or b"", record.key(), record.timestamp()[1], found)
