"""A trial: a challenger against the champion on the same questions, by what each answered at the time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tidemill.declare.gate import Gate
from tidemill.declare.pipeline import Pipeline
from tidemill.declare.scorecard import Scorecard
from tidemill.models.evidence import LOSSES, MAX_VALUES, Differences, Interval, Terms
from tidemill.registry.decisions import EvidenceLine, ModelRef
from tidemill.wire.records import Example, Score, newness


def answer(scores: Sequence[Score], ref: ModelRef) -> Score | None:
    """Return what a version answered, or the newest version of a model."""
    if ref.version:
        return next((s for s in scores if s["model"] == ref.model and s["version"] == ref.version), None)
    return max((s for s in scores if s["model"] == ref.model), key=newness, default=None)


def loss_text(loss: str, interval: Interval) -> str:
    """Return a challenger's loss beside the champion's, in words."""
    mean, low, high = interval
    if mean < 0:
        return f"{loss} higher by {-mean:.4g} ({-high:.4g} to {-low:.4g})"
    return f"{loss} lower by {mean:.4g} ({low:.4g} to {high:.4g})"


class Outcome(NamedTuple):
    """A trial's result: `better`, `blocked` (better, but not everywhere), `worse`, or nothing yet (empty); and why."""

    verdict: str
    why: str


class _SegmentLosses:
    """Questions of one segment."""

    __slots__ = ("challenger", "champion", "count")

    def __init__(self) -> None:
        self.count, self.champion, self.challenger = 0, 0.0, 0.0

    @property
    def difference(self) -> float:
        return (self.champion - self.challenger) / self.count

    def evidence(self, segment: str, low: float | None = None, high: float | None = None) -> EvidenceLine:
        champion, challenger = self.champion / self.count, self.challenger / self.count
        return EvidenceLine(segment, self.count, champion, challenger, self.difference, low, high)


class Trial:
    """The same questions to champion and challenger. A difference in loss above 0 speaks for the challenger.

    Parameters
    ----------
    terms
        The probability of ever being wrong, and the questions before there is a verdict.
    """

    def __init__(self, pipeline: Pipeline, gate: Gate, champion: ModelRef, challenger: ModelRef, terms: Terms) -> None:
        self.gate, self.champion, self.challenger, self.terms = gate, champion, challenger, terms
        self.loss, self._loss = LOSSES[pipeline.task]
        self._kind = pipeline.kind
        self._segments = pipeline.monitor.segments if gate.segments is None else gate.segments
        self._scorecards = [Scorecard([gate.metric.clone()]) for _ in (champion, challenger) if gate.metric is not None]
        self.differences = Differences()
        self._all = _SegmentLosses()
        self._lines: dict[tuple[str, Any], _SegmentLosses] = {}
        self.middle_version = 0
        self._newest = {champion: 0, challenger: 0}
        #: Questions that a version 0 answered, and a later one of the other model.
        self._untaught = Counter[ModelRef]()
        self.reported = ""

    @property
    def questions(self) -> int:
        """How many both have answered."""
        return self._all.count

    @property
    def mean(self) -> float:
        """The mean difference so far; 0 without questions."""
        return self._all.difference if self._all.count else 0.0

    def take(self, example: Example, scores: Sequence[Score]) -> None:
        """Take an example, where both have answered it."""
        a, b = answer(scores, self.champion), answer(scores, self.challenger)
        if a is None or b is None or not (a["answered"] and b["answered"]):
            return
        for ref, by in ((self.champion, a), (self.challenger, b)):
            self._newest[ref] = max(self._newest[ref], by["version"])
        label = example["label"]
        champion, challenger = self._loss(label, a), self._loss(label, b)
        if bool(a["version"]) != bool(b["version"]):
            self._untaught[self.challenger if a["version"] else self.champion] += 1
        if 2 * self.questions < self.gate.watch:
            self.middle_version = a["version"]
        self.differences.add(champion - challenger)
        vector = example["prediction"]["features"]["vector"]
        for line in (self._all, *(self._line(name, vector[name]) for name in self._segments)):
            line.count += 1
            line.champion += champion
            line.challenger += challenger
        for scorecard, score in zip(self._scorecards, (a, b), strict=False):
            scorecard.update(label, self._kind.judged(score["score"], score["probabilities"]))

    def _line(self, name: str, value: Any) -> _SegmentLosses:
        line = self._lines.get((name, value))
        if line is None:
            if sum(of == name for of, _ in self._lines) >= MAX_VALUES:
                value = "(others)"
            line = self._lines.setdefault((name, value), _SegmentLosses())
        return line

    def interval(self) -> Interval | None:
        """Return the confidence sequence as it is now."""
        return self.differences.interval(self.terms)

    def outcome(self) -> Outcome:
        """Return what the questions so far show."""
        interval, questions = self.interval(), f"{self.questions:,} questions"
        if interval is None:
            return Outcome("", f"{questions} of {self.terms.first:,}")
        if untaught := [ref for ref, version in self._newest.items() if not version]:
            return Outcome("", f"{untaught[0]} has learned nothing in {questions}: run its learner")
        for ref, count in self._untaught.items():
            if 2 * count > self.questions:
                return Outcome("", f"{ref} had learned nothing in {count:,} of {questions}")
        shown = f"{loss_text(self.loss, interval)}, in {questions}"
        if interval.high < 0:
            return Outcome("worse", f"{self.challenger} is worse than {self.champion}: {shown}")
        if interval.low <= self.gate.margin:
            return Outcome("", shown)
        why_not = self._worse_segments() or self._small_gain()
        if why_not:
            return Outcome("blocked", f"{self.challenger} is better ({shown}), but {why_not}")
        return Outcome("better", f"{self.challenger} is better than {self.champion}: {shown}")

    def _worse_segments(self) -> str:
        """Return in which segments the challenger is worse than it may be; empty where in none."""
        worse = [
            f"{name} {value} ({line.difference:.4g} in {line.count:,})"
            for (name, value), line in self._sorted()
            if line.count >= self.gate.least and line.difference < -self.gate.worse
        ]
        return f"worse where it may not be: {', '.join(worse)}" if worse else ""

    def _small_gain(self) -> str:
        """Return by how little the declared metric is better; empty where by enough, or where none is declared."""
        gate = self.gate
        if not self._scorecards:
            return ""
        without = [why for scorecard in self._scorecards for why in scorecard.without_number().values()]
        if without:
            return f"{type(gate.metric).__name__} has no number: {without[0]}"
        before, after = self.metrics().values()
        gain = after - before if gate.metric.bigger_is_better else before - after
        if gain >= gate.metric_margin:
            return ""
        return f"{type(gate.metric).__name__} only by {gain:.4g} where {gate.metric_margin:.4g} was asked"

    def _sorted(self) -> list[tuple[tuple[str, Any], _SegmentLosses]]:
        return sorted(self._lines.items(), key=lambda item: (item[0][0], -item[1].count, str(item[0][1])))

    def evidence(self) -> tuple[EvidenceLine, ...]:
        """Return the evidence: all questions first, then segment by segment, the most frequent value first."""
        if not self._all.count:
            return ()
        interval = self.interval()
        low, high = (interval.low, interval.high) if interval else (None, None)
        segments = (
            line.evidence(f"{name} {'(missing)' if value is None else value}") for (name, value), line in self._sorted()
        )
        return (self._all.evidence("all", low, high), *segments)

    def metrics(self) -> Mapping[str, float]:
        """Return the declared metric of champion and challenger over the same questions, where it has a number."""
        sides = zip(("champion", "challenger"), self._scorecards, strict=False)
        return {side: value for side, scorecard in sides for value in scorecard.values().values()}
