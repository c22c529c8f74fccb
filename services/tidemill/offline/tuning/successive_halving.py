"""The race: candidates go through the examples side by side, and at every rung only the better half of them goes on.

They are raced in heats of HEAT: all of a heat see the first quarter of the examples, the better half of them the second, and
the better half of those all. Models learn on as they are, so nothing is done twice. That is successive halving (Jamieson and
Talwalkar, Non-stochastic Best Arm Identification and Hyperparameter Optimization, AISTATS 2016), with late rungs: where what is
asked drifts and labels come late, who is ahead early says little (docs/how-to/tuning.md has the figures). The first heat is drawn at
random, and of the later ones most near the best so far. River's `model_selection.SuccessiveHalvingClassifier` asks each model
right before it teaches it, so it ranks by something that production will not see; here each is asked in time.

The same seed, trials and examples give the same race. The clock only stops it: what has seen all examples by then counts.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tidemill.declare.pipeline import Pipeline
from tidemill.declare.search import Parameters, Search, name_of
from tidemill.errors import SettingsError
from tidemill.offline.backtest import Progress
from tidemill.offline.tuning.questions import Questions

HEAT = 8
"""Candidates that are raced at once."""
KEEP = 2
"""One in so many goes on at a rung, and sees so many times as many examples."""
RUNGS = 2
"""Times that the field is halved before the rest of it sees all examples."""
LEAST = 500
"""No candidate is out before it has seen so many examples."""
NEAR = 6
"""So many of a heat are drawn near one of the best so far, once there are such; the others at random."""
PARENTS = 3
"""How many the best so far are."""
DRAWS = 100
"""Draws until a space is taken for exhausted, where each gives what was there."""
LOOKS = 64
"""Steps between two looks at the clock."""


class TimeIsUpError(Exception):
    """The race is to stop here. Nobody outside of it sees this."""


@dataclass(frozen=True)
class Asked:
    """What is asked for: so many trials within so many seconds, the `best` of them by a metric (a name of the pipeline's)."""

    trials: int
    seconds: float
    best: int
    seed: int
    metric: str = ""

    def chosen(self, pipeline: Pipeline) -> Any:
        """Return the metric that decides. Raises SettingsError where the pipeline has no such, or searches nothing."""
        if not pipeline.search:
            raise SettingsError(
                f"pipeline {pipeline.name!r} declares nothing to search: give it search={{'name': Search(function, {{parameter: "
                f"range}})}}"
            )
        there = {type(metric).__name__: metric for metric in pipeline.metric()}
        name = self.metric or list(there)[min(1, len(there) - 1)]
        if name not in there:
            raise SettingsError(f"--metric {name!r} is none of the pipeline's: it has {', '.join(there)}")
        if not hasattr(there[name], "bigger_is_better"):
            raise SettingsError(f"--metric {name!r} does not say whether more is better, by bigger_is_better")
        return there[name]


class Runner:
    """One model on its way through the questions; its metrics are those that the learner would have, and told when it would."""

    def __init__(self, pipeline: Pipeline, questions: Questions, model: Any) -> None:
        self.questions, self.model, self.metrics = questions, model, pipeline.metric()
        self.examples = 0
        self.seconds = 0.0
        self._kind = pipeline.kind
        self._at = 0
        self._answers: dict[int, Any] = {}

    def run(self, until: int, in_time: Callable[[], bool] = lambda: True) -> None:
        """Go on until so many examples are learned. Raises TimeIsUpError, and whatever the model's own code raises."""
        questions, kind = self.questions, self._kind
        began = time.perf_counter()
        try:
            for step in questions.steps[self._at : questions.until[until]]:
                if self._at % LOOKS == 0 and not in_time():
                    raise TimeIsUpError
                self._at += 1
                if step >= 0:
                    score, probabilities = kind.predict(self.model, questions.x(step))
                    if not math.isfinite(score):
                        raise ValueError(f"a score was {score}")
                    self._answers[step] = score, probabilities
                    continue
                score, probabilities = self._answers.pop(~step)
                label = questions.examples[~step].label
                for metric in self.metrics:
                    kind.update(metric, label, score, probabilities)
                kind.learn(self.model, questions.x(~step), label)
                self.examples += 1
        finally:
            self.seconds += time.perf_counter() - began

    @property
    def values(self) -> dict[str, float]:
        """The metrics of what was learned so far."""
        return {type(metric).__name__: float(metric.get()) for metric in self.metrics} if self.examples else {}

    def let_go(self) -> None:
        """Keep the figures alone."""
        self.model, self._answers = None, {}


@dataclass
class Candidate:
    """One of the race: what it is made of, how far it came, and why no further ("out", "time", or what it raised)."""

    name: str
    search: str
    parameters: Parameters
    examples: int = 0
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    ended: str = ""

    @property
    def is_whole(self) -> bool:
        """Whether it has seen all examples."""
        return not self.ended


@dataclass
class Report:
    """What came of a race. `candidates`: the furthest first, of those the best; `winners`: better than the champion on all."""

    pipeline: str
    metric: str
    seed: int
    trials: int
    examples: int
    skipped: int
    champion: Candidate
    candidates: list[Candidate] = field(default_factory=list)
    winners: list[Candidate] = field(default_factory=list)
    stopped: bool = False
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return the report for programs."""
        return dataclasses.asdict(self)


class Race:
    """One race over some questions."""

    def __init__(
        self,
        pipeline: Pipeline,
        questions: Questions,
        asked: Asked,
        *,
        progress: Progress | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        metric = asked.chosen(pipeline)
        self.pipeline, self.questions, self.asked = pipeline, questions, asked
        self.metric, self._sign = type(metric).__name__, 1 if metric.bigger_is_better else -1
        self._progress, self._clock = progress or (lambda _: None), clock
        self._began = clock()
        if not len(questions):
            raise SettingsError(f"there is no example of {pipeline.name!r} to tune on{_of_before(questions)}")
        name = pipeline.champion
        self.champion = Candidate(name, "", {})
        self.report = Report(
            pipeline.name, self.metric, asked.seed, asked.trials, len(questions), questions.skipped, self.champion
        )

    @staticmethod
    def rungs(examples: int) -> list[int]:
        """Return after how many examples it is looked who goes on; the last is all of them."""
        return sorted({max(min(LEAST, examples), examples // KEEP**power) for power in range(RUNGS + 1)})

    @classmethod
    def work(cls, examples: int, trials: int, best: int) -> int:
        """Return how many examples are learned in a whole race, by all candidates together and the champion."""
        total = examples
        for begin in range(0, trials, HEAT):
            there, before = min(HEAT, trials - begin), 0
            for rung in cls.rungs(examples):
                total += there * (rung - before)
                there, before = _going_on(there, best), rung
        return total

    def run(self) -> Report:
        """Race until all trials are done or the time is up. Raises SettingsError where the champion itself fails."""
        report = self.report
        try:
            self._by_itself(self.champion)
            for heat in self._heats():
                self._heat(heat)
        except TimeIsUpError:
            report.stopped = True
        report.candidates.sort(key=lambda one: (-one.examples, bool(one.ended), *self._rank(one)))
        beaten = self._rank(self.champion)[0]
        better = [one for one in report.candidates if one.is_whole and self._rank(one)[0] < beaten]
        report.winners = better[: self.asked.best] if self.champion.is_whole else []
        report.seconds = self._clock() - self._began
        return report

    def _in_time(self) -> bool:
        return self._clock() - self._began < self.asked.seconds

    def _by_itself(self, champion: Candidate) -> None:
        runner = Runner(self.pipeline, self.questions, self.pipeline.model(champion.name))
        self._run(champion, runner, len(self.questions))
        if champion.ended:
            raise SettingsError(f"the champion {champion.name!r} can't be compared with: {champion.ended}")

    def _heats(self) -> Iterator[list[tuple[Candidate, Any]]]:
        """Yield what is drawn, heat by heat: at random, each kind as often as the others, and later near the best so far."""
        rng = random.Random(self.asked.seed)  # noqa: S311  it hides nothing
        seen: set[str] = set()
        turns, left = itertools.cycle(self.pipeline.search), self.asked.trials
        while left:
            best = sorted((one for one in self.report.candidates if one.is_whole), key=self._rank)[:PARENTS]
            heat = []
            for place in range(min(HEAT, left)):
                found = self._near(rng.choice(best), rng, seen) if best and place < NEAR else None
                found = found or next(
                    filter(None, (self._anew(next(turns), rng, seen) for _ in self.pipeline.search)), None
                )
                if found is not None:
                    heat.append(found)
            if not heat:
                return
            left -= len(heat)
            yield heat

    def _near(self, best: Candidate, rng: random.Random, seen: set[str]) -> tuple[Candidate, Any] | None:
        search = self.pipeline.search[best.search]
        return _drawn(best.search, search, lambda: search.near(best.parameters, rng), seen)

    def _anew(self, name: str, rng: random.Random, seen: set[str]) -> tuple[Candidate, Any] | None:
        search = self.pipeline.search[name]
        return _drawn(name, search, lambda: search.draw(rng), seen)

    def _heat(self, heat: Sequence[tuple[Candidate, Any]]) -> None:
        self.report.candidates += [candidate for candidate, _ in heat]
        running = {one.name: Runner(self.pipeline, self.questions, model) for one, model in heat if not one.ended}
        there = [one for one, _ in heat if not one.ended]
        try:
            for rung in self.rungs(len(self.questions)):
                for one in there:
                    self._run(one, running[one.name], rung)
                there = sorted((one for one in there if not one.ended), key=self._rank)
                if rung < len(self.questions):
                    on = _going_on(len(there), self.asked.best)
                    for one in there[on:]:
                        one.ended = "out"
                        running.pop(one.name).let_go()
                    there = there[:on]
        except TimeIsUpError:
            for one in there:
                if one.examples < len(self.questions):
                    one.ended = one.ended or "time"
            raise

    def _run(self, one: Candidate, runner: Runner, until: int) -> None:
        before = runner.examples
        try:
            runner.run(until, self._in_time)
        except TimeIsUpError:
            one.ended = "time"
            raise
        except Exception as error:  # a model's own code: production would set its answers aside one by one
            one.ended = f"{type(error).__name__}: {error}"
        finally:
            one.examples, one.seconds, one.metrics = runner.examples, runner.seconds, runner.values
            self._progress(runner.examples - before)

    def _rank(self, one: Candidate) -> tuple[float, str]:
        """Return by what candidates are put in order: the best first, and one without a figure last."""
        value = one.metrics.get(self.metric, math.nan)
        return (math.inf if math.isnan(value) else -self._sign * value), one.name


def _drawn(name: str, search: Search, draw: Callable[[], Parameters], seen: set[str]) -> tuple[Candidate, Any] | None:
    """Return a candidate that was not there yet, and its model; None where draws give only what was."""
    for _ in range(DRAWS):
        parameters = draw()
        key = json.dumps([name, parameters])
        if key in seen:
            continue
        seen.add(key)
        try:
            model = search.make(**parameters)
        except Exception as error:  # the declaration's own function
            return Candidate(name, name, parameters, ended=f"{type(error).__name__}: {error}"), None
        return Candidate(name_of(name, parameters, model), name, parameters), model
    return None


def _going_on(there: int, best: int) -> int:
    return min(there, max(best, -(-there // KEEP)))


def _of_before(questions: Questions) -> str:
    return f"; {questions.skipped:,} are of an earlier declaration, with other vectors" if questions.skipped else ""


def file_of(report: Report) -> dict[str, Any]:
    """Return what `tuned` reads: the winners, and what they won by."""
    keys: Mapping[str, Any] = {
        "pipeline": report.pipeline, "metric": report.metric, "examples": report.examples, "seed": report.seed,
        "champion": {"name": report.champion.name, "metrics": report.champion.metrics},
    }  # fmt: skip
    return {
        **keys,
        "winners": [
            {"name": one.name, "search": one.search, "parameters": dict(one.parameters), "metrics": one.metrics}
            for one in report.winners
        ],
    }
