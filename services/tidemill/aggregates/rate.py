"""How often events come."""

from __future__ import annotations

from tidemill.aggregates.base import EVENTS, Aggregate, Read, asked
from tidemill.durations import milliseconds


def _per_second(window: str) -> Read:
    seconds = milliseconds(window) / 1000
    return lambda w, _: sum(w["n"]) / seconds


def rate(*windows: str) -> list[Aggregate]:
    """Events per second: the window's events by the window's whole length; 0 where there were none."""
    return [
        Aggregate("rate", "", window, (EVENTS,), _per_second(window), empty=0.0)
        for window in asked("rate", (), windows)
    ]
