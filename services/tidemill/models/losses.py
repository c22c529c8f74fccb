"""What an answer costs: losses that no single answer decides, for an average of them is what the gate goes by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tidemill.wire.records import Score


def _binary(label: bool, answer: Score) -> float:
    gap = answer["score"] - label
    return gap * gap


def _multiclass(label: str, answer: Score) -> float:
    said = answer["probabilities"]
    return sum(p * p for p in said.values()) - 2 * said.get(label, 0.0) + 1.0


def _regression(label: float, answer: Score) -> float:
    return abs(answer["score"] - label)


LOSSES: Mapping[str, tuple[str, Callable[[Any, Score], float]]] = {
    "binary": ("Brier score", _binary),
    "multiclass": ("Brier score", _multiclass),
    "regression": ("absolute error", _regression),
}
"""By task. Not the log loss: a model that was once sure and wrong has a loss of 35 in it, beside which nothing can be shown.

Source: Brier, Verification of forecasts expressed in terms of probability, Monthly Weather Review 78 (1950).
"""
