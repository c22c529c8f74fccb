"""A time that has come."""

from __future__ import annotations

from tidemill.durations import milliseconds
from tidemill.rules.base import NUMBERS, Rule


def not_after_now(field: str, tolerance: str = "5m", *, warn: bool = False) -> Rule:
    """A time in milliseconds since the epoch that lies at most `tolerance` in the future of this machine's clock.

    Examples
    --------
    >>> from tidemill.testing import try_rule
    >>> noon = 43_200_000
    >>> try_rule(not_after_now("at", "5m"), {"at": noon + 240_000}, {"at": noon + 360_000}, now=noon)
    [True, False]
    """
    return Rule(
        name="not_after_now",
        field=field,
        reason="in_the_future",
        condition="v <= now + slack",
        expected=f"a time at most {tolerance} after now",
        text=f"at most {tolerance} after now",
        names={"slack": milliseconds(tolerance)},
        warn=warn,
        types=NUMBERS,
    )
