"""How long ago the latest event was."""

from __future__ import annotations

from tidemill.aggregates.base import TIME, Aggregate, Window


def time_since_last(window: str) -> list[Aggregate]:
    """Seconds since the entity's latest event in the window, by event time; never negative."""

    def read(w: Window, now: int) -> float:
        latest: float = w["time"][-1]
        return max(0.0, (now - latest) / 1000)

    return [Aggregate("time_since_last", "", window, (TIME,), read)]
