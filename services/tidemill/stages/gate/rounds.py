"""The evidence since the last change of who serves: trials of challengers, the champion's probation, and its guard.

Every object here is a function of the standing and the examples since then, so that a restart rebuilds it.
"""

from __future__ import annotations

from collections.abc import Callable

from tidemill.declare.gate import Gate
from tidemill.declare.pipeline import Pipeline
from tidemill.models.evidence import Terms, round_rate
from tidemill.registry.decisions import NOBODY, ModelRef
from tidemill.stages.gate.standing import BASELINE, Draft, Standing
from tidemill.stages.gate.trial import Outcome, Trial, loss_text
from tidemill.wire.records import Example, Score

#: Questions before a champion is called worse than the one before it, or than the baseline.
MIN_GUARD_QUESTIONS = 200

#: The probability, in each round, of taking a champion for worse than the baseline that is not.
GUARD_RATE = 0.001

#: Takes a model or a version; returns why it can't serve, or nothing.
Check = Callable[[ModelRef], str]


def rebuild_from(gate: Gate, since: int, committed: int) -> int:
    """Return the offset from which the evidence is rebuilt: this round of trials, and the two guard rounds before."""
    done = max(0, committed - since)
    return since + min(done // gate.round * gate.round, max(0, done // gate.watch - 2) * gate.watch)


class Rounds:
    """The trials of one pipeline.

    `trials` are the challengers' of this round. `probation` compares the champion with the one before it. `guard`
    compares it with the baseline, `watch` questions at a time.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline, self.gate = pipeline, pipeline.gate
        self.trials: dict[ModelRef, Trial] = {}
        self.probation: Trial | None = None
        self.guard: Trial | None = None
        self._good_versions: list[int] = []

    def begin(self, standing: Standing, offset: int) -> None:
        """Start all evidence for who serves now; `offset` is the next example's."""
        gate = self.gate
        if gate is None:
            return
        self._begin_trials(gate, standing, offset)
        probation = Terms(gate.rate, MIN_GUARD_QUESTIONS)
        against = standing.on_probation_against
        self.probation = self._trial(gate, standing, against, probation) if against else None
        self._good_versions, self.guard = [], self._new_guard(gate, standing)

    def next_round(self, standing: Standing, offset: int) -> None:
        """Start the challengers' next round; the probation goes on."""
        assert self.gate is not None  # noqa: S101  without a gate there are no rounds
        self._begin_trials(self.gate, standing, offset)
        self.next_guard(standing)

    def next_guard(self, standing: Standing) -> None:
        """Start another round against the baseline; remember the version of the middle of a good one."""
        assert self.gate is not None  # noqa: S101  without a gate there is no guard
        guard = self.guard
        if guard is not None:
            is_good = guard.questions >= MIN_GUARD_QUESTIONS and guard.mean < 0
            self._good_versions = [*self._good_versions, guard.middle_version if is_good else 0][-2:]
        self.guard = self._new_guard(self.gate, standing)

    def _begin_trials(self, gate: Gate, standing: Standing, offset: int) -> None:
        number, challengers = (offset - standing.since) // gate.round + 1, standing.challengers
        terms = Terms(round_rate(gate.rate, number, len(challengers)), gate.examples)
        self.trials = {ref: self._trial(gate, standing, ref, terms) for ref in challengers}

    def _new_guard(self, gate: Gate, standing: Standing) -> Trial | None:
        terms = Terms(GUARD_RATE, MIN_GUARD_QUESTIONS)
        return self._trial(gate, standing, ModelRef(BASELINE), terms) if standing.has_baseline else None

    def _trial(self, gate: Gate, standing: Standing, challenger: ModelRef, terms: Terms) -> Trial:
        return Trial(self.pipeline, gate, standing.champion, challenger, terms)

    def take(self, example: Example) -> None:
        """Take the next example."""
        prediction = example["prediction"]
        scores: list[Score] = [*prediction["challengers"], prediction["champion"]]
        for trial in (*self.trials.values(), self.probation, self.guard):
            if trial:
                trial.take(example, scores)

    @property
    def last_good(self) -> int:
        """The champion's last version that did better than the baseline; 0 where none is known."""
        return next((version for version in reversed(self._good_versions) if version), 0)


def verdict(gate: Gate, trial: Trial, outcome: Outcome) -> Draft:
    """Return what follows of a challenger's outcome: it is promoted, proposed or refused."""
    if outcome.verdict != "better":
        return Draft("refused", outcome.why, trial.challenger, trial=trial)
    if not gate.automatic:
        return Draft("proposed", outcome.why, trial.challenger, trial=trial)
    changes = {"champion": trial.challenger, "on_probation_against": trial.champion}
    return Draft("promoted", outcome.why, trial.challenger, changes, trial)


def undecided(trial: Trial) -> Draft:
    """Return the refusal of a challenger that a whole round has shown neither better nor worse."""
    why = f"no difference was shown: {trial.outcome().why}; it is compared again"
    return Draft("refused", why, trial.challenger, trial=trial)


def end_of_probation(gate: Gate, standing: Standing, trial: Trial, offset: int) -> Draft | None:
    """Return a rollback where the champion before does better, or the end of a probation that was long enough."""
    champion, before = standing.champion, standing.on_probation_against
    interval, questions = trial.interval(), f"{trial.questions:,} questions"
    if interval and interval.low > 0:
        why = (
            f"{champion} does worse than {before}, which it replaced: "
            f"{loss_text(trial.loss, interval)} for {before}, in {questions}"
        )
        return Draft("rolled_back", why, champion, {"champion": before, "on_probation_against": NOBODY}, trial)
    if offset - standing.since >= gate.watch:
        why = f"{champion} was not shown worse than {before} in {questions}"
        return Draft("kept", why, champion, {"on_probation_against": NOBODY}, trial)
    return None


def collapse(standing: Standing, guard: Trial, last_good: int, check: Check) -> Draft | None:
    """Return the replacement of a champion that does worse than the baseline: its last good version or predecessor.

    Where neither can serve, the draft is a refusal, once for each reason.
    """
    champion, interval = standing.champion, guard.interval()
    if champion.version or not (interval and interval.low > 0):
        return None
    replacement = ModelRef(champion.model, last_good) if last_good else standing.predecessor
    shown = f"{loss_text(guard.loss, interval)} for that, in {guard.questions:,} questions"
    why = f"{champion} does worse than the baseline: {shown}"
    nobody = "no version of it is known to have done better, and nobody served before"
    why_not = check(replacement) if replacement else nobody
    if why_not:
        if guard.reported == why_not:
            return None
        guard.reported = why_not
        why += f"; {replacement or 'nobody'} can't serve instead: {why_not}"
        return Draft("refused", why, replacement, trial=guard)
    why += f"; {replacement} " + ("is the last version that did better" if last_good else "served before")
    changes = {"champion": replacement, "on_probation_against": NOBODY}
    return Draft("rolled_back", why, champion, changes, guard)
