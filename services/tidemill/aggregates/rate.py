"""How often events come."""

from __future__ import annotations

from tidemill.aggregates.base import EVENTS, Aggregate, Read, require_windows
from tidemill.durations import milliseconds


def _per_second(window: str) -> Read:
    seconds = milliseconds(window) / 1000
    return lambda w, _: sum(w["n"]) / seconds


def rate(*windows: str) -> list[Aggregate]:
    """Events per second: the window's events by the window's whole length; 0 where there were none.

    Examples
    --------
    >>> from tidemill.testing import try_aggregates
    >>> delays = [("1m", {"delay": 4.0}), ("2m", {"delay": None}), ("3m", {"delay": 10.0})]
    >>> try_aggregates(rate("1m", "5m"), delays, at="3m")
    {'rate_1m': 0.016666666666666666, 'rate_5m': 0.01}
    """
    return [
        Aggregate("rate", "", window, (EVENTS,), _per_second(window), empty=0.0)
        for window in require_windows("rate", (), windows)
    ]
