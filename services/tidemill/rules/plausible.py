"""A time that can be true."""

from __future__ import annotations

from tidemill.durations import moment
from tidemill.rules.base import NUMBERS, Rule


def plausible(field: str, earliest: str, latest: str, *, warn: bool = False) -> Rule:
    """A time in milliseconds since the epoch from `earliest` to `latest`, ISO dates or times: the unit is right.

    Every stream whose time is a plain number has one, from 1971 to 2100, unless it declares its own: seconds that are
    read as milliseconds lie in January 1970, microseconds in the year 55,000.

    Examples
    --------
    >>> from tidemill.testing import try_rule
    >>> try_rule(plausible("at", "1971-01-01", "2100-01-01"), {"at": 1_700_000_000_000}, {"at": 1_700_000_000})
    [True, False]
    """
    begin, end = moment(earliest), moment(latest)
    if begin > end:
        raise ValueError(f"plausible({field!r}): {earliest} is later than {latest}")
    return Rule(
        name="plausible",
        field=field,
        reason="implausible_time",
        condition="earliest <= v <= latest",
        expected=f"a time in milliseconds from {earliest} to {latest}",
        text=f"from {earliest} to {latest}: else its unit is another",
        names={"earliest": begin, "latest": end},
        warn=warn,
        types=NUMBERS,
    )
