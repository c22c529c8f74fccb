"""A value within bounds."""

from __future__ import annotations

from tidemill.rules.base import NUMBERS, Rule


def between(field: str, low: float, high: float, *, warn: bool = False) -> Rule:
    """`low` <= value <= `high`, both ends allowed."""
    if not low <= high:
        raise ValueError(f"between({field!r}, {low!r}, {high!r}): the low end must not be above the high end")
    return Rule(
        "between", field, "out_of_range", "low <= v <= high", f"{low} to {high}",
        names={"low": low, "high": high}, warn=warn, types=NUMBERS,
    )  # fmt: skip
