"""How long ago the latest event was."""

from __future__ import annotations

from tidemill.aggregates.base import TIME, Aggregate, Window


def time_since_last(window: str) -> list[Aggregate]:
    """Seconds since the entity's latest event in the window, by event time; never negative.

    Examples
    --------
    >>> from tidemill.testing import try_aggregates
    >>> delays = [("1m", {"delay": 4.0}), ("2m", {"delay": None}), ("3m", {"delay": 10.0})]
    >>> try_aggregates(time_since_last("1h"), delays, at="10m")
    {'time_since_last_1h': 420.0}
    """

    def read(w: Window, now: int) -> float:
        latest: float = w["time"][-1]
        return max(0.0, (now - latest) / 1000)

    return [Aggregate("time_since_last", "", window, (TIME,), read)]
