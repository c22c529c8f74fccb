"""What a pipeline declares about replacing its champion: how much better, on how much evidence, and worse nowhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Gate:
    """When a challenger replaces the champion.

    Both are held to what they answered, on the same questions, by the mean loss of an answer: the Brier score, or the absolute
    error. A challenger is promoted when its confidence sequence says that it is better by more than `margin`, in no
    declared segment worse than `worse`, and better by `metric_margin` in `metric` where one is declared.

    Parameters
    ----------
    margin
        How much better, in loss, is better; 0: any improvement that is shown.
    examples
        Questions, answered by both and labelled, before anything is decided.
    metric, metric_margin
        One of River's metrics, and how much better in it over the same questions; None: the loss alone.
    segments
        Categories of the vector; those of the monitor where None is given.
    worse
        How much worse, in loss, a challenger may be in one value of a segment.
    least
        Questions of a segment's value before it is looked at.
    rate
        The probability of ever promoting, between two decisions, a challenger that is not better.
    automatic
        False: what would be promoted is proposed, and a person promotes it or not.
    watch
        Questions after a promotion during which the old champion takes over again when the new one does worse; and how many
        in a row, later on, the champion is held to the baseline's answers.
    round
        Questions after which what has shown no difference is compared anew, with less of the rate.
    """

    margin: float = 0.0
    examples: int = 2_000
    metric: Any = None
    metric_margin: float = 0.0
    segments: Sequence[str] | None = None
    worse: float = 0.0
    least: int = 200
    rate: float = 0.05
    automatic: bool = True
    watch: int = 5_000
    round: int = 50_000


@dataclass(frozen=True)
class Training:
    """When a candidate is trained anew: a fresh copy of a declared model, folded over part of the history.

    It shadows as soon as it has caught up, and the gate holds it to the champion as any challenger.

    Parameters
    ----------
    model
        The declared model that is made anew.
    on
        Kinds of alert that start it; people start it by `tidemill models train`.
    examples
        How many of the latest examples it begins with; 0: all there are.
    pause
        Examples after a candidate was begun in which no alert begins another.
    """

    model: str
    on: Sequence[str] = ("drift", "performance")
    examples: int = 20_000
    pause: int = 20_000
