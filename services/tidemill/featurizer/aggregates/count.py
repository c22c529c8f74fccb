"""How many events there were."""

from __future__ import annotations

from typing import Any

from tidemill.featurizer.aggregates.base import Aggregate, Number, Window, asked


class Count(Number):
    """A cell is the number of values of `field`, or of events."""

    def __init__(self, field: str = "") -> None:
        super().__init__(f"n:{field}" if field else "n", field)

    def add(self, cells: list[float], index: int, value: Any, now: int) -> None:  # noqa: ARG002
        cells[index] += 1.0


EVENTS = Count()
"""Every view keeps this column."""


def count(*windows: str) -> list[Aggregate]:
    """Events in the window; 0 where there were none."""

    def read(w: Window, _: int) -> float:
        return float(sum(w["n"]))

    return [Aggregate("count", "", window, (EVENTS,), read, empty=0.0) for window in asked("count", (), windows)]
