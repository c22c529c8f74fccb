"""The values that a parameter may have, and how one of them is drawn.

Values are those of JSON: numbers, text, true, false, None. The model's function makes everything else of them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Value = float | int | str | bool | None

#: How often one of some choices is drawn again, where one like it is asked for; a number is moved by a tenth of its
#: range.
STEP = 0.25

__all__ = ["choice", "log_uniform", "uniform", "whole"]


@dataclass(frozen=True)
class Range:
    """The values of one parameter: `description` in words, `draw` takes one at random, `near` one close to another."""

    description: str
    draw: Callable[[random.Random], Value] = field(repr=False)
    near: Callable[[random.Random, Any], Value] = field(repr=False)


def choice(*values: Value) -> Range:
    """Any of these, equally likely. Raises ValueError where there is none, or one that JSON can't hold."""
    if not values:
        raise ValueError("choice() of nothing: give at least one value")
    for value in values:
        if not (value is None or isinstance(value, (bool, int, float, str))) or value != value:
            raise ValueError(
                f"choice({value!r}): numbers, text, True, False and None can be chosen; make the rest of them"
            )

    def draw(rng: random.Random) -> Value:
        return rng.choice(values)

    return Range(
        f"one of {', '.join(map(repr, values))}", draw, lambda rng, value: draw(rng) if rng.random() < STEP else value
    )


def uniform(low: float, high: float) -> Range:
    """A number from `low` to `high`, equally likely. Raises ValueError where none is between."""
    _check("uniform", low, high)
    return Range(
        f"{low:g} to {high:g}",
        lambda rng: _short(rng.uniform(low, high)),
        lambda rng, value: _short(_step(rng, value, low, high)),
    )


def log_uniform(low: float, high: float) -> Range:
    """A number from `low` to `high`, each order of magnitude equally likely: for rates.

    Raises ValueError where `low` is not above 0.
    """
    _check("log_uniform", low, high)
    if low <= 0:
        raise ValueError(f"log_uniform({low!r}, {high!r}): its numbers are above 0")
    ends = math.log(low), math.log(high)
    return Range(
        f"{low:g} to {high:g}, by its logarithm",
        lambda rng: _short(math.exp(rng.uniform(*ends))),
        lambda rng, value: _short(math.exp(_step(rng, math.log(value), *ends))),
    )


def whole(low: int, high: int) -> Range:
    """A whole number from `low` to `high`, both included. Raises ValueError where none is between."""
    _check("whole", low, high)
    if type(low) is not int or type(high) is not int:
        raise ValueError(f"whole({low!r}, {high!r}): two whole numbers were expected")
    return Range(
        f"{low} to {high}",
        lambda rng: rng.randint(low, high),
        lambda rng, value: round(_step(rng, value, low, high)),
    )


def _step(rng: random.Random, value: float, low: float, high: float) -> float:
    return min(high, max(low, rng.gauss(value, (high - low) / 10)))


def _check(name: str, low: float, high: float) -> None:
    for end in (low, high):
        if isinstance(end, bool) or not isinstance(end, (int, float)) or not math.isfinite(end):
            raise ValueError(f"{name}({low!r}, {high!r}): two finite numbers were expected")
    if low >= high:
        raise ValueError(f"{name}({low!r}, {high!r}): no number is between")


def _short(value: float) -> float:
    """Return the number with four significant digits: more would be noise."""
    return float(f"{value:.4g}")
