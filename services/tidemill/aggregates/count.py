"""How many events there were."""

from __future__ import annotations

from tidemill.aggregates.base import EVENTS, Aggregate, Window, asked


def count(*windows: str) -> list[Aggregate]:
    """Events in the window; 0 where there were none."""

    def read(w: Window, _: int) -> float:
        return float(sum(w["n"]))

    return [Aggregate("count", "", window, (EVENTS,), read, empty=0.0) for window in asked("count", (), windows)]
