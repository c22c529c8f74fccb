"""When a producer sent the record that this one came from.

Kafka keeps records by their timestamp, and takes none that is far from now. So what a service writes has the time at
which it was written, and its origin, the producer's time, travels in the first header. Delay and order are told from
the origin: they are the same whenever a record was written.
"""

from __future__ import annotations

from tidemill.stream.api import Headers, Record

#: The first header of a record that a service has written: ms since the epoch, in decimal digits.
ORIGIN = "tidemill.origin"
#: The producer's timestamp as it was, where its clock can't have been right, so that the origin is when it was read.
IMPLAUSIBLE = "tidemill.implausible_timestamp"
#: How far ahead of ours a producer's clock may be: as far as brokers take records by default.
MAX_AHEAD_MS = 3_600_000
#: Longer than any time has; a producer may give its own header this name.
_MAX_DIGITS = 18


def origin_of(record: Record) -> int:
    """Return when the producer sent what this record came from, in ms; its own timestamp where no service wrote it."""
    headers = record.headers()
    if headers:
        name, data = headers[0]
        if name == ORIGIN and data is not None and data.isdigit() and len(data) <= _MAX_DIGITS:
            return int(data)
    return record.timestamp()[1]


def with_origin(origin: int, headers: Headers | None) -> Headers | None:
    """Return the headers with the origin before them; 0 is none: then it is when the record is written."""
    if origin <= 0:
        return headers
    return [(ORIGIN, b"%d" % origin), *(headers or ())]


def without_origin(headers: Headers) -> Headers:
    """Return the headers that are not the origin."""
    return headers[1:] if headers and headers[0][0] == ORIGIN else headers


def plausible(timestamp: int, now: float) -> int:
    """Return a producer's timestamp; `now` where it is negative, as a missing one is, or far ahead. All are in ms."""
    return timestamp if 0 <= timestamp <= now + MAX_AHEAD_MS else int(now)
