"""A value that never goes back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tidemill.durations import milliseconds
from tidemill.rules.base import NUMBERS, Rule
from tidemill.rules.recent import Recent


def monotonic(field: str, by: str, within: str = "1d", *, warn: bool = False) -> Rule:
    """The value is not below an earlier record's with the same `by` and partition, for `within` in event time.

    A counter, an odometer, a sequence number. Records of one entity must come through one partition, and in order:
    those that come late are below what came before them. Memory: one entry an entity within the horizon, some 150
    bytes.

    Examples
    --------
    >>> from tidemill.testing import try_rule
    >>> readings = [{"car": "a", "mileage": m, "time": t} for t, m in enumerate([10, 10, 12, 11])]
    >>> try_rule(monotonic("mileage", by="car"), *readings)
    [True, True, True, False]
    """
    horizon = milliseconds(within)
    return Rule(
        name="monotonic",
        field=field,
        reason="went_back",
        condition="",
        expected=f"not below the last of its {by}",
        text=f"never goes back, by {by} within {within}",
        warn=warn,
        types=NUMBERS,
        also=(by,),
        memory=lambda: _Last(by, horizon),
    )


class _Last:
    """Each entity's largest value, with the time of its latest record."""

    def __init__(self, by: str, horizon: int) -> None:
        self.by, self.horizon, self.recent = by, horizon, Recent[Any, tuple[Any, int]](horizon)

    def check(self, value: Any, record: Mapping[str, Any], time: int) -> str | None:
        """Return what was expected where the entity's last value is above this one."""
        last = self.recent.get(record[self.by])
        if last is None or value >= last[0] or abs(time - last[1]) >= self.horizon:
            return None
        return f"at least {last[0]}, the last of {self.by} {record[self.by]}"

    def add(self, value: Any, record: Mapping[str, Any], time: int, offset: int) -> None:
        """Remember the entity's value; one that was only warned of does not lower it."""
        entity = record[self.by]
        last = self.recent.get(entity)
        if last is not None and abs(time - last[1]) < self.horizon:
            value, time = max(value, last[0]), max(time, last[1])
        self.recent.put(entity, (value, time), time, offset)

    def begin(self) -> int | None:
        """Return the first offset that is still needed."""
        return self.recent.begin()
