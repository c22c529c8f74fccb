"""A time that can be true."""

from __future__ import annotations

import datetime as dt

from tidemill.durations import moment
from tidemill.rules.base import NUMBERS, SECONDS_AS_MILLIS, Rule


def plausible(field: str, earliest: str | dt.date, latest: str | dt.date, *, warn: bool = False) -> Rule:
    """A time in milliseconds since the epoch from `earliest` to `latest`, ISO dates or times: the unit is right.

    Every stream whose time is a plain number, or in micros or nanos, has one, from 1971 to 2100, unless it declares its
    own: seconds that are read as milliseconds lie in January 1970, microseconds in the year 55,000.

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


def no_seconds(field: str) -> Rule:
    """Return the rule that warns of times that seconds of this century make where milliseconds are declared."""
    return Rule(
        name="plausible",
        field=field,
        reason="implausible_time",
        condition="not earliest <= v <= latest",
        expected="a time in milliseconds, and this looks like one in seconds,",
        text="not of January or February 1970, where seconds lie that are taken for milliseconds",
        names=dict(zip(("earliest", "latest"), SECONDS_AS_MILLIS, strict=True)),
        warn=True,
        types=NUMBERS,
    )
