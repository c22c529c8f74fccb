"""A time after a moment."""

from __future__ import annotations

import datetime as dt

from tidemill.durations import moment
from tidemill.rules.base import NUMBERS, Rule


def not_before(field: str, earliest: str | dt.date, *, warn: bool = False) -> Rule:
    """A time in milliseconds since the epoch that is not before `earliest`, an ISO date or time (UTC unless it says).

    Examples
    --------
    >>> from tidemill.testing import try_rule
    >>> try_rule(not_before("at", "1970-01-02"), {"at": 86_400_000}, {"at": 86_399_999})
    [True, False]
    """
    return Rule(
        name="not_before",
        field=field,
        reason="too_old",
        condition="v >= earliest",
        expected=f"a time not before {earliest}",
        text=f"not before {earliest}",
        names={"earliest": moment(earliest)},
        warn=warn,
        types=NUMBERS,
    )
