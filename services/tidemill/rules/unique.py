"""A value that has not come before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tidemill.durations import milliseconds
from tidemill.rules.base import Rule
from tidemill.rules.recent import Recent


def unique(field: str, within: str, *, warn: bool = False) -> Rule:
    """No earlier record of its partition with the same value is less than `within` away, in event time.

    Producers must send equal values to one partition, by taking the field or the entity as Kafka's key: partitions are
    checked one by one, by whatever instance holds each. Memory: one entry a value within the horizon, some 150 bytes.

    Examples
    --------
    >>> from tidemill.testing import try_rule
    >>> flights = [{"id": "a", "time": 0}, {"id": "a", "time": 60_000}, {"id": "a", "time": 7_200_000}]
    >>> try_rule(unique("id", within="1h"), *flights)
    [True, False, True]
    """
    horizon = milliseconds(within)
    return Rule(
        name="unique",
        field=field,
        reason="duplicate",
        condition="",
        expected=f"a value that has not come within {within}",
        text=f"unique within {within}",
        warn=warn,
        memory=lambda: _Seen(horizon),
    )


class _Seen:
    """Values with the time of their latest record."""

    def __init__(self, horizon: int) -> None:
        self.horizon, self.recent = horizon, Recent[Any, int](horizon)

    def check(self, value: Any, record: Mapping[str, Any], time: int) -> str | None:
        """Return what was expected where the value was seen less than the horizon ago, or ahead."""
        del record
        seen = self.recent.get(value)
        return None if seen is None or abs(time - seen) >= self.horizon else "no record before it"

    def add(self, value: Any, record: Mapping[str, Any], time: int, offset: int) -> None:
        """Remember the value's latest time."""
        del record
        seen = self.recent.get(value)
        self.recent.put(value, time if seen is None else max(time, seen), time, offset)

    def begin(self) -> int | None:
        """Return the first offset that is still needed."""
        return self.recent.begin()
