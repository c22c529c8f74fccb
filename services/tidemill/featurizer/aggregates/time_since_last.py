"""How long ago the latest event was."""

from __future__ import annotations

import math
from typing import Any

from tidemill.featurizer.aggregates.base import Aggregate, Number, Window


class Time(Number):
    """A cell is the latest event time in the tile, in ms since the epoch."""

    start = -math.inf

    def __init__(self) -> None:
        super().__init__("time")

    def add(self, cells: list[float], index: int, value: Any, now: int) -> None:  # noqa: ARG002
        if now > cells[index]:
            cells[index] = now


TIME = Time()
"""Every view keeps this column."""


def time_since_last(window: str) -> list[Aggregate]:
    """Seconds since the entity's latest event in the window, by event time; never negative."""

    def read(w: Window, now: int) -> float:
        latest: float = w["time"][-1]
        return max(0.0, (now - latest) / 1000)

    return [Aggregate("time_since_last", "", window, (TIME,), read)]
