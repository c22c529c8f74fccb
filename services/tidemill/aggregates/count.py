"""How many events there were."""

from __future__ import annotations

from tidemill.aggregates.base import EVENTS, Aggregate, Window, require_windows


def count(*windows: str) -> list[Aggregate]:
    """Events in the window; 0 where there were none.

    Examples
    --------
    >>> from tidemill.testing import try_aggregates
    >>> delays = [("1m", {"delay": 4.0}), ("2m", {"delay": None}), ("3m", {"delay": 10.0})]
    >>> try_aggregates(count("1h"), delays, at="10m")
    {'count_1h': 3.0}
    """

    def read(w: Window, _: int) -> float:
        return float(sum(w["n"]))

    return [
        Aggregate("count", "", window, (EVENTS,), read, empty=0.0) for window in require_windows("count", (), windows)
    ]
