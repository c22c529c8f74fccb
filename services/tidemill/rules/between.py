"""A value within bounds."""

from __future__ import annotations

from numbers import Number

from tidemill.rules.base import NUMBERS, Rule


def between(field: str, low: float, high: float, *, warn: bool = False) -> Rule:
    """`low` <= value <= `high`, both ends allowed.

    Examples
    --------
    >>> from tidemill.testing import try_rule
    >>> try_rule(between("hour", 0, 23), {"hour": 0}, {"hour": 23}, {"hour": 77}, {"hour": None})
    [True, True, False, True]
    """
    if not isinstance(low, Number) or not isinstance(high, Number):
        raise ValueError(f"between({field!r}, {low!r}, {high!r}): both ends are numbers")
    if not low <= high:
        raise ValueError(f"between({field!r}, {low!r}, {high!r}): the low end must not be above the high end")
    return Rule(
        name="between",
        field=field,
        reason="out_of_range",
        condition="low <= v <= high",
        expected=f"{low} to {high}",
        names={"low": low, "high": high},
        warn=warn,
        types=NUMBERS,
    )
