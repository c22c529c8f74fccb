"""Value rules: what a field's value must be. Each compiles once to a check that costs well under a microsecond.

A rule looks at one field. A missing (null) value passes every rule but `not_null`: whether a field may be missing is
said by its schema, or by `not_null`. NaN, infinities and numbers beyond `LARGEST_NUMBER` need no rule: they are refused
in every float field. Nor does the time of a stream: unless it has a `not_after_now` of its own, it gets one of
`FUTURE_TOLERANCE`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tidemill.durations import milliseconds

LARGEST_NUMBER = 1e15
"""The largest magnitude of a float field, of a number feature that a function returns, and of a label that is a number.

Squares and sums of such values stay finite, and with them windows, scalers and gradients: 1e308 is finite and its
square is not, and one infinity leaves a model NaN for ever. It is also about where a double stops counting in steps
that matter (a quarter at 1e15, one at 9e15), so hardly anything that is measured lies beyond.
"""

FUTURE_TOLERANCE = "1h"
"""How far a stream's time may lie ahead of this machine's clock where its declaration does not say.

One record from a producer whose clock is a day ahead would otherwise push a watermark on by a day, and expire what waits.
"""

Check = Callable[[Any], "str | None"]
"""Takes the field's value (never None); returns None if it is fine, else what was expected, for the message."""


@dataclass(frozen=True)
class Rule:
    """One declared rule: the field it looks at, its name, the reason word that its rejects carry, and its check."""

    name: str
    field: str
    reason: str
    check: Check
    text: str
    nullable: bool = True


def between(field: str, low: float, high: float) -> Rule:
    """`low` <= value <= `high`, both ends allowed."""
    if not low <= high:
        raise ValueError(f"between({field!r}, {low!r}, {high!r}): the low end must not be above the high end")

    def check(value: Any) -> str | None:
        return None if low <= value <= high else f"{low} to {high}"

    return Rule("between", field, "out_of_range", check, f"{low} to {high}")


def one_of(field: str, values: Iterable[Any]) -> Rule:
    """The value is one of `values`."""
    allowed = frozenset(values)
    if not allowed:
        raise ValueError(f"one_of({field!r}): give at least one allowed value")
    shown = ", ".join(map(str, sorted(allowed, key=str)[:20])) + (", ..." if len(allowed) > 20 else "")

    def check(value: Any) -> str | None:
        return None if value in allowed else f"one of {shown}"

    return Rule("one_of", field, "not_allowed", check, f"one of {shown}")


def matches(field: str, pattern: str) -> Rule:
    """The whole text matches the regular expression `pattern`."""
    fullmatch = re.compile(pattern).fullmatch

    def check(value: Any) -> str | None:
        return None if fullmatch(value) else f"text that matches {pattern}"

    return Rule("matches", field, "no_match", check, f"matches {pattern}")


def not_null(field: str) -> Rule:
    """The field has a value, although its schema would allow null."""
    return Rule("not_null", field, "missing_value", lambda _: None, "not null", nullable=False)


def finite(field: str) -> Rule:
    """Neither NaN nor infinite. Every float field is checked without being told to; this one says it aloud."""

    def check(value: Any) -> str | None:
        return None if value - value == 0 else "a finite number"

    return Rule("finite", field, "not_finite", check, "finite")


def not_after_now(field: str, tolerance: str = "5m", clock: Callable[[], float] = time.time) -> Rule:
    """A time in milliseconds since the epoch that lies at most `tolerance` in the future of this machine's clock."""
    slack = milliseconds(tolerance)

    def check(value: Any) -> str | None:
        return None if value <= clock() * 1000 + slack else f"a time at most {tolerance} after now"

    return Rule("not_after_now", field, "in_the_future", check, f"at most {tolerance} after now")


def not_before(field: str, moment: str) -> Rule:
    """A time in milliseconds since the epoch that is not before `moment`, an ISO date or time (UTC unless it says)."""
    import datetime as dt

    parsed = dt.datetime.fromisoformat(moment)
    earliest = int((parsed if parsed.tzinfo else parsed.replace(tzinfo=dt.UTC)).timestamp() * 1000)

    def check(value: Any) -> str | None:
        return None if value >= earliest else f"a time not before {moment}"

    return Rule("not_before", field, "too_old", check, f"not before {moment}")
