"""A time that is not long ago."""

from __future__ import annotations

from tidemill.durations import milliseconds
from tidemill.rules.base import NUMBERS, Rule


def not_older_than(field: str, age: str, *, warn: bool = False) -> Rule:
    """A time in milliseconds since the epoch that lies at most `age` before this machine's clock.

    For what is asked and answered as it happens: history that is replayed through the pipeline is all older.

    Examples
    --------
    >>> from tidemill.testing import try_rule
    >>> noon = 43_200_000
    >>> try_rule(not_older_than("at", "2h"), {"at": noon - 3_600_000}, {"at": noon - 10_800_000}, now=noon)
    [True, False]
    """
    return Rule(
        name="not_older_than",
        field=field,
        reason="too_old",
        condition="v >= now - age",
        expected=f"a time at most {age} before now",
        text=f"at most {age} before now",
        names={"age": milliseconds(age)},
        warn=warn,
        types=NUMBERS,
    )
