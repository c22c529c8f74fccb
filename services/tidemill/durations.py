"""Durations ("90s", "5m", "1h", "7d") and times (ISO 8601) as people write them, in milliseconds."""

from __future__ import annotations

import datetime as dt
import re

#: The first and the last ms since the epoch that a calendar has, of the years 1 and 9999.
FIRST_TIME_MS, LAST_TIME_MS = -62_135_596_800_000, 253_402_300_799_999

_UNITS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
#: What follows six digits of a fraction of a second.
_FINER = re.compile(r"[.,]\d{6}(\d+)")
_FORM = re.compile(r"(\d{1,15})(ms|s|m|h|d)")


def milliseconds(text: str) -> int:
    """Return the duration `text` in milliseconds.

    >>> milliseconds("5m")
    300000

    Raises ValueError for anything but a positive whole number with one of the units ms, s, m, h, d.
    """
    form = _FORM.fullmatch(text) if isinstance(text, str) else None
    if form is None or int(form[1]) == 0:
        raise ValueError(
            f"{text!r} is not a duration: expected a positive whole number and ms, s, m, h or d, as in '5m'"
        )
    return int(form[1]) * _UNITS[form[2]]


def duration(ms: int) -> str:
    """Return a duration as `milliseconds` reads it, in the largest unit that it is a whole number of.

    >>> duration(360_000)
    '6m'
    """
    size, unit = max((size, unit) for unit, size in _UNITS.items() if ms % size == 0)
    return f"{ms // size}{unit}"


def approximate(ms: int) -> str:
    """Return a number of milliseconds as people say it: three digits, and the largest unit of which it has two.

    >>> approximate(129_600_000)
    '36h'
    """
    unit = next((unit for unit in ("d", "h", "m", "s") if abs(ms) >= 2 * _UNITS[unit]), "ms")
    number = ms / _UNITS[unit]
    return f"{number:,.0f}{unit}" if abs(number) >= 1_000 else f"{number:.3g}{unit}"


def moment(text: str | dt.date, per_second: int = 1_000) -> int:
    """Return an ISO 8601 time in ms since the epoch, or in other parts of a second; UTC where it has no zone.

    A date or a datetime of Python's is taken as well.

    Finer fractions are cut.

    >>> moment("2013-01-31 18:00:00.123456789+01:00", 1_000_000_000)
    1359651600123456789

    Raises ValueError for anything else.
    """
    text = text.isoformat() if isinstance(text, dt.date) else text
    try:
        time = dt.datetime.fromisoformat(text.strip())
    except (AttributeError, TypeError, ValueError):
        raise ValueError(f"{text!r} is no time: expected ISO 8601, as in 2013-01-31 or 2013-01-31T18:00Z") from None
    if time.tzinfo is None:
        time = time.replace(tzinfo=dt.UTC)
    micros = (time - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1)
    if per_second <= 1_000_000:
        return micros * per_second // 1_000_000
    finer = _FINER.search(text)  # Python has no digits beyond these
    return micros * (per_second // 1_000_000) + int((finer[1] if finer else "")[:3].ljust(3, "0"))


def minute(ms: float) -> str:
    """Return a time to the minute, in UTC; the number itself where no calendar has such a time."""
    try:
        return dt.datetime.fromtimestamp(ms / 1000, dt.UTC).strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):
        return str(ms)
