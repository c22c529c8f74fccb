"""Successive halving: candidates learn side by side, and at every rung the better half of them goes on.

A bracket is BRACKET_CANDIDATES candidates. All of them see the first quarter of the examples, the better half sees the
second quarter, and the better half of those sees all. Models go on learning from where they are, so nothing is done
twice (Jamieson and Talwalkar, Non-stochastic Best Arm Identification and Hyperparameter Optimization, AISTATS 2016).
The rungs are late: where data drifts and labels come late, an early lead means little (docs/how-to/tuning.md has the
figures). The first bracket is drawn at random; most candidates of later ones are drawn near the best so far. River's
`model_selection.SuccessiveHalvingClassifier` predicts each example right before it learns it, and so ranks by a figure
that production will not reach; here each prediction is made at its event's time.

The same seed, trials and examples give the same search. The clock only stops it: what has seen all examples by then
counts.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tidemill.declare.pipeline import Pipeline
from tidemill.declare.scorecard import Scorecard
from tidemill.declare.search import Parameters, Search, name_of
from tidemill.errors import SettingsError
from tidemill.models.linear import specialised
from tidemill.offline.tuning.questions import Questions
from tidemill.stream.api import Progress

#: Candidates of a bracket.
BRACKET_CANDIDATES = 8
#: Of so many candidates one goes on at a rung, and sees so many times as many examples.
REDUCTION_FACTOR = 2
#: Rungs of a bracket before the last one, which is all examples.
HALVINGS = 2
#: No candidate is out before it has seen so many examples.
MIN_RUNG_EXAMPLES = 500
#: Candidates of a bracket that are drawn near one of the best so far, once there are any. The others are drawn at
#: random.
BRACKET_NEIGHBOURS = 6
#: How many the best so far are.
BEST_CANDIDATES = 3
#: A space is exhausted after so many draws of candidates that were drawn before.
MAX_DRAWS = 100
#: Steps between two looks at the clock.
CLOCK_STEPS = 64


class TimeIsUpError(Exception):
    """The search is to stop here. Only the search itself sees this."""


@dataclass(frozen=True)
class SearchOptions:
    """What to search for.

    Parameters
    ----------
    trials
        How many candidates to draw.
    seconds
        When to stop the search.
    winners
        How many winners to report, at most.
    seed
        Of the random draws.
    metric
        The name of the pipeline's metric that decides; by default the one that a backtest shows over time.
    """

    trials: int
    seconds: float
    winners: int
    seed: int
    metric: str = ""

    def metric_of(self, pipeline: Pipeline) -> tuple[str, Any]:
        """Return the metric that decides, with its name. Raises SettingsError where it has none to tune by."""
        if not pipeline.search:
            raise SettingsError(
                f"pipeline {pipeline.name!r} declares nothing to search: give it "
                f"search={{'name': Search(function, {{parameter: range}})}}"
            )
        metrics = dict(Scorecard(pipeline.metric()))
        name = self.metric or list(metrics)[min(1, len(metrics) - 1)]
        if name not in metrics:
            raise SettingsError(f"--metric {name!r} is none of the pipeline's: it has {', '.join(metrics)}")
        if not hasattr(metrics[name], "bigger_is_better"):
            raise SettingsError(f"--metric {name!r} does not say whether more is better, by bigger_is_better")
        return name, metrics[name]


class PrequentialRun:
    """One model's run through the questions. Its metrics are updated when and with what the learner's would be."""

    def __init__(self, pipeline: Pipeline, questions: Questions, model: Any) -> None:
        self.questions, self.model, self.scorecard = questions, specialised(model), Scorecard(pipeline.metric())
        self.examples = 0
        self.seconds = 0.0
        self._kind = pipeline.kind
        self._steps_done = 0
        self._answers: dict[int, Any] = {}

    def run(self, until: int, in_time: Callable[[], bool] = lambda: True) -> None:
        """Go on until so many examples are learned. Raises TimeIsUpError, and whatever the model's own code raises."""
        questions, kind = self.questions, self._kind
        started = time.perf_counter()
        try:
            for step in questions.steps[self._steps_done : questions.until[until]]:
                if self._steps_done % CLOCK_STEPS == 0 and not in_time():
                    raise TimeIsUpError
                self._steps_done += 1
                if step >= 0:
                    answer = kind.predict(self.model, questions.x(step))
                    if not math.isfinite(answer[0]):
                        raise ValueError(f"a score was {answer[0]}")
                    self._answers[step] = answer
                    continue
                answer = self._answers.pop(~step)
                label = questions.examples[~step].label
                self.scorecard.update(label, kind.judged(*answer))
                kind.learn(self.model, questions.x(~step), label)
                self.examples += 1
        finally:
            self.seconds += time.perf_counter() - started

    @property
    def values(self) -> dict[str, float]:
        """The metrics over what was learned so far."""
        return self.scorecard.values() if self.examples else {}

    def release(self) -> None:
        """Drop the model; the figures stay."""
        self.model, self._answers = None, {}


@dataclass
class Candidate:
    """One model of the search: its parameters, the examples it saw, and why no more ("out", "time", or an error)."""

    name: str
    search: str
    parameters: Parameters
    examples: int = 0
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    ended: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether it has seen all examples."""
        return not self.ended


@dataclass
class TuningReport:
    """The result of a search.

    `candidates`: those that saw the most examples first, and of those the best; `winners`: better than the champion on
    all.
    """

    pipeline: str
    metric: str
    seed: int
    trials: int
    examples: int
    skipped: int
    champion: Candidate
    candidates: list[Candidate] = field(default_factory=list)
    winners: list[Candidate] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    stopped: bool = False
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return the report for programs."""
        return dataclasses.asdict(self)


class SuccessiveHalving:
    """One search over some questions."""

    def __init__(
        self,
        pipeline: Pipeline,
        questions: Questions,
        options: SearchOptions,
        *,
        progress: Progress | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        name, metric = options.metric_of(pipeline)
        self.pipeline, self.questions, self.options = pipeline, questions, options
        self.metric, self._sign = name, 1 if metric.bigger_is_better else -1
        self._progress, self._clock = progress or (lambda _: None), clock
        self._started = clock()
        if not len(questions):
            why = _skipped_text(questions) + "".join(f"; {text}" for text in questions.warnings)
            raise SettingsError(f"there is no example of {pipeline.name!r} to tune on{why}")
        name = pipeline.champion
        self.champion = Candidate(name, "", {})
        self.report = TuningReport(
            pipeline.name, self.metric, options.seed, options.trials, len(questions), questions.skipped, self.champion
        )
        self.report.warnings = questions.warnings

    @staticmethod
    def rungs(examples: int) -> list[int]:
        """Return after how many examples candidates are compared; the last is all of them."""
        smallest = min(MIN_RUNG_EXAMPLES, examples)
        return sorted({max(smallest, examples // REDUCTION_FACTOR**power) for power in range(HALVINGS + 1)})

    @classmethod
    def total_examples(cls, examples: int, trials: int, winners: int) -> int:
        """Return how many examples all candidates and the champion learn together in a complete search."""
        total = examples
        for begin in range(0, trials, BRACKET_CANDIDATES):
            candidates, learned = min(BRACKET_CANDIDATES, trials - begin), 0
            for rung in cls.rungs(examples):
                total += candidates * (rung - learned)
                candidates, learned = _survivors(candidates, winners), rung
        return total

    def run(self) -> TuningReport:
        """Search until all trials are done or the time is up. Raises SettingsError where the champion itself fails."""
        report = self.report
        try:
            self._run_champion()
            for bracket in self._brackets():
                self._run_bracket(bracket)
        except TimeIsUpError:
            report.stopped = True
        report.candidates.sort(key=lambda one: (-one.examples, bool(one.ended), *self._rank(one)))
        champions_rank = self._rank(self.champion)[0]
        better = [one for one in report.candidates if one.is_complete and self._rank(one)[0] < champions_rank]
        report.winners = better[: self.options.winners] if self.champion.is_complete else []
        report.seconds = self._clock() - self._started
        return report

    def _in_time(self) -> bool:
        return self._clock() - self._started < self.options.seconds

    def _run_champion(self) -> None:
        champion = self.champion
        run = PrequentialRun(self.pipeline, self.questions, self.pipeline.model(champion.name))
        self._run(champion, run, len(self.questions))
        if champion.ended:
            raise SettingsError(f"the champion {champion.name!r} can't be compared with: {champion.ended}")

    def _brackets(self) -> Iterator[list[tuple[Candidate, Any]]]:
        """Yield brackets of candidates, each with its model.

        They are drawn at random, each search as often as the others, and in later brackets near the best so far.
        """
        rng = random.Random(self.options.seed)  # noqa: S311  it hides nothing
        seen: set[str] = set()
        searches, left = itertools.cycle(self.pipeline.search), self.options.trials
        while left:
            best = sorted((one for one in self.report.candidates if one.is_complete), key=self._rank)[:BEST_CANDIDATES]
            bracket = []
            for place in range(min(BRACKET_CANDIDATES, left)):
                drawn = self._draw_near(rng.choice(best), rng, seen) if best and place < BRACKET_NEIGHBOURS else None
                draws = (self._draw(next(searches), rng, seen) for _ in self.pipeline.search)
                drawn = drawn or next(filter(None, draws), None)
                if drawn is not None:
                    bracket.append(drawn)
            if not bracket:
                return
            left -= len(bracket)
            yield bracket

    def _draw_near(self, best: Candidate, rng: random.Random, seen: set[str]) -> tuple[Candidate, Any] | None:
        search = self.pipeline.search[best.search]
        return _draw_new(best.search, search, lambda: search.near(best.parameters, rng), seen)

    def _draw(self, name: str, rng: random.Random, seen: set[str]) -> tuple[Candidate, Any] | None:
        search = self.pipeline.search[name]
        return _draw_new(name, search, lambda: search.draw(rng), seen)

    def _run_bracket(self, bracket: Sequence[tuple[Candidate, Any]]) -> None:
        self.report.candidates += [candidate for candidate, _ in bracket]
        runs = {
            one.name: PrequentialRun(self.pipeline, self.questions, model) for one, model in bracket if not one.ended
        }
        survivors = [one for one, _ in bracket if not one.ended]
        try:
            for rung in self.rungs(len(self.questions)):
                for one in survivors:
                    self._run(one, runs[one.name], rung)
                survivors = sorted((one for one in survivors if not one.ended), key=self._rank)
                if rung < len(self.questions):
                    count = _survivors(len(survivors), self.options.winners)
                    for one in survivors[count:]:
                        one.ended = "out"
                        runs.pop(one.name).release()
                    survivors = survivors[:count]
        except TimeIsUpError:
            for one in survivors:
                if one.examples < len(self.questions):
                    one.ended = one.ended or "time"
            raise

    def _run(self, one: Candidate, run: PrequentialRun, until: int) -> None:
        before = run.examples
        try:
            run.run(until, self._in_time)
        except TimeIsUpError:
            one.ended = "time"
            raise
        except Exception as error:  # a model's own code; in production its predictions would become dead letters
            one.ended = f"{type(error).__name__}: {error}"
        finally:
            one.examples, one.seconds, one.metrics = run.examples, run.seconds, run.values
            self._progress(run.examples - before)

    def _rank(self, one: Candidate) -> tuple[float, str]:
        """Return a key that sorts candidates: the best first, and one without a figure last."""
        value = one.metrics.get(self.metric, math.nan)
        return (math.inf if math.isnan(value) else -self._sign * value), one.name


def _draw_new(
    name: str, search: Search, draw: Callable[[], Parameters], seen: set[str]
) -> tuple[Candidate, Any] | None:
    """Return a candidate that was not drawn before, and its model; None where draws give no new one."""
    for _ in range(MAX_DRAWS):
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


def _survivors(candidates: int, winners: int) -> int:
    """Return how many candidates go on at a rung; never fewer than may win."""
    return min(candidates, max(winners, -(-candidates // REDUCTION_FACTOR)))


def _skipped_text(questions: Questions) -> str:
    return f"; {questions.skipped:,} are of an earlier declaration, with other vectors" if questions.skipped else ""


def file_of(report: TuningReport) -> dict[str, Any]:
    """Return what `tuned` reads: the winners, and the figures that they won by."""
    return {
        "pipeline": report.pipeline,
        "metric": report.metric,
        "examples": report.examples,
        "seed": report.seed,
        "champion": {"name": report.champion.name, "metrics": report.champion.metrics},
        "winners": [
            {"name": one.name, "search": one.search, "parameters": dict(one.parameters), "metrics": one.metrics}
            for one in report.winners
        ],
    }
