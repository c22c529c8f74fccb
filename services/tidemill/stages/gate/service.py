"""The gate: examples, people's commands and alerts in; decisions about who serves out.

reads   <pipeline>.examples (one partition: the order of learning), <pipeline>.commands, <pipeline>.alerts; at the start
        <pipeline>.promotions; for a version that somebody wants <pipeline>.models and the artifact store
writes  <pipeline>.promotions, signed, in one transaction with the offsets
state   trials of challengers since the last change of who serves; rebuilt from the examples since then
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tidemill.declare.gate import Gate
from tidemill.declare.pipeline import Pipeline
from tidemill.errors import ArtifactError, StoreError
from tidemill.models.evidence import Terms, round_rate
from tidemill.registry.decisions import NOBODY, Command, Decision, ModelRef, all_decisions, commands, decisions
from tidemill.registry.latest import latest, versions
from tidemill.registry.manifests import Registry
from tidemill.stages.gate.trial import Trial, said
from tidemill.stream.api import Broker, Emit, Position, Processor, Record, Start, TopicPartition, discard
from tidemill.stream.loop import Service
from tidemill.wire import topics
from tidemill.wire.records import Example, Records, Score
from tidemill.wire.services import service

log = logging.getLogger(__name__)

LOOK = 100
"""Examples between two looks at the trials. Looking is free of error, and costs what a hundred examples cost."""
LEAST_WATCHED = 200
"""Questions before a champion is called worse than the one before, or than the baseline."""
COLLAPSE_RATE = 0.001
"""The probability, round by round, of taking a champion for worse than the baseline that is not."""
BASELINE = "baseline"
CHANGES = frozenset({"champion", "held", "candidate"})
"""What begins the evidence anew when it changes."""

History = Callable[[], Sequence[Decision]]
"""Returns every decision so far, the oldest first."""
Check = Callable[[ModelRef], str]
"""Takes a seat; returns why it can't serve, or nothing."""


class PromotionGate(Processor):
    """Decides who serves.

    Parameters
    ----------
    history
        What was decided so far; asked whenever the examples are taken over.
    check
        Says why somebody can't serve.
    token
        What the status service signs commands with; without one none is carried out.
    clock
        Wall time in s, for the records.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        key: bytes,
        history: History,
        check: Check,
        *,
        token: bytes = b"",
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        self.pipeline, self.history, self.check, self.clock = pipeline, history, check, clock
        self.gate = pipeline.gate
        self.records = Records(pipeline)
        self._decisions, self._commands = decisions(pipeline, key), commands(pipeline, token) if token else None
        self.examples, self.asked = topics.EXAMPLES.name(pipeline.name), topics.COMMANDS.name(pipeline.name)
        self.promotions = topics.PROMOTIONS.name(pipeline.name)
        self._forget()

    def _forget(self) -> None:
        self.past: list[Decision] = []
        self.champion, self.watched, self.held, self.since = ModelRef(self.pipeline.champion), NOBODY, False, 0
        self.candidate = ""
        self.next = self._event_time = 0
        self.trials: dict[ModelRef, Trial] = {}
        self.watch: Trial | None = None
        self.guard: Trial | None = None
        self.good: list[int] = []

    def assign(self, slot: TopicPartition, committed: Position) -> Start:
        if slot.topic != self.examples or slot.partition:
            return Start(committed.offset, committed.offset)
        self._forget()
        for decision in self.history():
            self._follow(decision)
        begin = self.since if self.gate else committed.offset - LOOK  # people need no evidence
        if self.gate and committed.offset > self.since:
            done = committed.offset - self.since
            begin += min(
                done // self.gate.round * self.gate.round, max(0, done // self.gate.watch - 2) * self.gate.watch
            )
        self.next = max(begin, self.since)
        self._begin()
        return Start(self.next, max(committed.offset, self.next))

    def revoke(self, slots: Iterable[TopicPartition]) -> None:
        if any(slot.topic == self.examples and slot.partition == 0 for slot in slots):
            self._forget()

    def _follow(self, decision: Decision) -> None:
        """Take over what was decided. In the place of one that is declared no more the declared champion serves, as the scorer has it."""
        self.past.append(decision)
        self.since = decision.since
        if self.pipeline.knows(decision.champion.model):
            self.champion, self.watched, self.held = decision.champion, decision.watched, decision.held
            self.candidate = decision.candidate
        else:
            self.champion, self.watched, self.held = ModelRef(self.pipeline.champion), NOBODY, False
            self.candidate = ""

    # Examples -------------------------------------------------------------------------------------------------------------

    @property
    def challengers(self) -> list[ModelRef]:
        """Who might replace the champion: every model as it learns, but the baseline; also that of which one version serves."""
        names = dict.fromkeys((*self.pipeline.model_names, self.candidate, self.champion.model))
        return [seat for name in names if name not in ("", BASELINE) and (seat := ModelRef(name)) != self.champion]

    def _begin(self) -> None:
        """Begin trials for the round that the next example is in."""
        gate = self.gate
        if gate is None:
            return
        number = (self.next - self.since) // gate.round + 1
        challengers = self.challengers
        rate = round_rate(gate.rate, number, len(challengers))
        self.trials = {seat: self._trial(seat, gate.examples, rate) for seat in challengers}
        self.watch = self._trial(self.watched, LEAST_WATCHED, gate.rate) if self.watched else None
        self.good, self.guard = [], None
        self._guard()

    def _trial(self, challenger: ModelRef, first: int, rate: float) -> Trial:
        assert self.gate is not None  # noqa: S101  nothing is tried without one
        return Trial(self.pipeline, self.gate, self.champion, challenger, Terms(rate, first))

    def _guard(self) -> None:
        """Begin another round of the champion against the baseline; remember whether the last one was good."""
        if self.guard is not None:
            is_good = self.guard.questions >= LEAST_WATCHED and self.guard.mean < 0
            self.good = [*self.good, self.guard.middle_version if is_good else 0][-2:]
        has_baseline = BASELINE in self.pipeline.model_names and self.champion.model != BASELINE
        self.guard = self._trial(ModelRef(BASELINE), LEAST_WATCHED, COLLAPSE_RATE) if has_baseline else None

    def process(self, records: Sequence[Record], emit: Emit) -> bool:
        for record in records:
            topic = record.topic()
            if topic == self.examples:
                self._example(record, emit)
            elif topic == self.asked:
                self._command(record, emit)
            else:
                self._alert(record, emit)
        return True

    def _example(self, record: Record, emit: Emit) -> None:
        offset = record.offset()
        if offset < self.next:
            return  # known already: it was told with a decision that was made before the offsets were committed
        if offset > self.next:  # the ends of transactions lie between
            self._move(offset, emit)
        self._take(record)
        self._move(offset + 1, emit)

    def _take(self, record: Record) -> None:
        example: Example | None = self.records.example.of(record.value())
        if example is None:
            self.counts["skipped", "unknown_schema"] += 1
            return
        self._event_time = max(self._event_time, example["label_time"])
        prediction = example["prediction"]
        scores: list[Score] = [*prediction["challengers"], prediction["champion"]]
        for trial in self.trials.values():
            trial.take(example, scores)
        if self.watch:
            self.watch.take(example, scores)
        if self.guard:
            self.guard.take(example, scores)

    def _move(self, to: int, emit: Emit) -> None:
        """Come to an offset, and do what is due between the last one and this: a look, the end of a round."""
        at, self.next = self.next, to
        if self.gate is None:
            return
        if to // LOOK > at // LOOK:
            self._look(self.gate, emit)
        if at < self.since:
            return  # it was decided just now who serves: all begins here
        before, done = at - self.since, to - self.since
        if done // self.gate.round > before // self.gate.round:
            self._round_ends(emit)
        elif done // self.gate.watch > before // self.gate.watch:
            self._guard()

    def _look(self, gate: Gate, emit: Emit) -> None:
        if self.held:
            return
        if self.watch and self._watched(gate, self.watch, emit):
            return
        if self.guard and self._collapsed(self.guard, emit):
            return
        for trial in self.trials.values():
            verdict, why = trial.outcome()
            if not verdict or verdict == trial.said:
                continue
            kind = "refused" if verdict != "better" else "promoted" if gate.automatic else "proposed"
            if emit is discard and not self._is_told(kind, trial.challenger):
                continue  # nobody was told: another declaration decided then
            trial.said = verdict
            if kind == "promoted":
                self._decide(
                    "promoted",
                    why,
                    trial.challenger,
                    emit,
                    champion=trial.challenger,
                    watched=self.champion,
                    trial=trial,
                )
                return
            self._decide(kind, why, trial.challenger, emit, trial=trial)

    def _watched(self, gate: Gate, watch: Trial, emit: Emit) -> bool:
        """Give the place back where the old champion does better; end the watch when it was long enough."""
        found = watch.interval()
        if found and found.low > 0:
            why = (
                f"{self.champion} does worse than {self.watched}, which it replaced: {said(watch.loss, found)} for {self.watched}, in "
                f"{watch.questions:,} questions"
            )
            self._decide("rolled_back", why, self.champion, emit, champion=self.watched, watched=NOBODY, trial=watch)
            return True
        if self.next - self.since >= gate.watch:
            why = f"{self.champion} was not shown worse than {self.watched} in {watch.questions:,} questions"
            self._decide("kept", why, self.champion, emit, watched=NOBODY, trial=watch)
            self.watch = None if emit is not discard else watch
        return False

    def _collapsed(self, guard: Trial, emit: Emit) -> bool:
        """Put the last good version, or who served before, into the place of a champion that does worse than the baseline."""
        found = guard.interval()
        if self.champion.version or not (found and found.low > 0):
            return False
        good = next((version for version in reversed(self.good) if version), 0)
        before = next(
            (one.before for one in reversed(self.past) if one.changes and one.champion == self.champion), NOBODY
        )
        seat = ModelRef(self.champion.model, good) if good else before
        why = f"{self.champion} does worse than the baseline: {said(guard.loss, found)} for that, in {guard.questions:,} questions"
        wrong = self.check(seat) if seat else "no version of it is known to have done better, and nobody served before"
        if wrong:
            if guard.said != wrong:
                guard.said = wrong
                self._decide(
                    "refused", f"{why}; {seat or 'nobody'} can't serve instead: {wrong}", seat, emit, trial=guard
                )
            return False
        why += f"; {seat} is the last version that did better" if good else f"; {seat} served before"
        self._decide("rolled_back", why, self.champion, emit, champion=seat, watched=NOBODY, trial=guard)
        return True

    def _round_ends(self, emit: Emit) -> None:
        for trial in self.trials.values():
            if not trial.said and trial.questions:
                why = f"no difference was shown: {trial.outcome().why}; it is compared anew"
                self._decide("refused", why, trial.challenger, emit, trial=trial)
        watch, good, guard = self.watch, self.good, self.guard
        self._begin()
        self.watch, self.good, self.guard = watch, good, guard
        self._guard()

    # Decisions ------------------------------------------------------------------------------------------------------------

    def _decide(
        self, kind: str, why: str, subject: ModelRef, emit: Emit, *, trial: Trial | None = None, command: Command | None = None,
        named: str = "", **after: Any,
    ) -> None:  # fmt: skip
        """Write a decision, and follow it. `after`: what it changes of champion, watched, held, candidate."""
        if emit is discard or (trial and not command and self._is_told(kind, subject)):
            return  # it was decided, and written, before: what is read again only rebuilds the evidence
        before, champion = self.champion, after.get("champion", self.champion)
        now = int(self.clock() * 1000)
        decision = Decision(
            id=named or (command.id if command else f"{self.next}-{len(self.past) + 1}"),
            kind=kind,
            by=command.by if command else "gate",
            why=why,
            time=now,
            event_time=self._event_time,
            examples=self.next,
            since=self.next
            if any(after[name] != getattr(self, name) for name in CHANGES & after.keys())
            else self.since,
            command=command.id if command else "",
            subject=subject,
            champion=champion,
            before=before,
            watched=after.get("watched", self.watched),
            held=after.get("held", self.held),
            candidate=after.get("candidate", self.candidate),
            loss=trial.loss if trial else "",
            rate=trial.terms.rate if trial else 0.0,
            evidence=trial.evidence() if trial else (),
            metrics=trial.metrics() if trial else {},
        )
        emit(self.promotions, self._decisions.encode(decision), decision.id.encode(), now, None, 0)
        self.counts["decisions", kind] += 1
        log.info(kind, extra={"champion": str(champion), "subject": str(subject), "by": decision.by, "why": why})
        since = self.since
        self._follow(decision)
        if self.since != since:
            self._begin()

    def _is_told(self, kind: str, subject: ModelRef) -> bool:
        """Whether the gate has decided this already, at this very example: without transactions some are read twice."""
        return any(
            (one.kind, one.subject, one.examples, one.command) == (kind, subject, self.next, "") for one in self.past
        )

    def _command(self, record: Record, emit: Emit) -> None:
        """Carry out what a person asks, once, or say why not."""
        if self._commands is None:
            log.error(
                "a command was left: set TIDEMILL_STATUS_TOKEN, the same for gate and status",
                extra={"offset": record.offset()},
            )
        command = self._commands.sound(record) if self._commands else None
        if command is None:
            self.counts["skipped", "forged"] += 1
            return
        if any(decision.command == command.id for decision in self.past):
            return
        kinds: Mapping[str, Callable[[Command, Emit], str]] = {
            "promote": self._promote, "rollback": self._roll_back, "pin": self._pin, "unpin": self._unpin, "train": self._train,
        }  # fmt: skip
        obey = kinds.get(command.kind)
        wrong = obey(command, emit) if obey else f"no command {command.kind!r}: expected {', '.join(kinds)}"
        if wrong:
            self._decide("refused", wrong, command.target, emit, command=command)

    def _place(self, command: Command, seat: ModelRef, kind: str, emit: Emit, *, held: bool = False) -> str:
        if seat == self.champion and held == self.held:
            self._decide("unchanged", f"{seat} serves already", seat, emit, command=command)
            return ""
        wrong = self.check(seat)
        if wrong:
            return f"{seat} can't serve: {wrong}"
        watched = self.champion if kind == "promoted" and seat != self.champion else NOBODY
        self._decide(
            kind,
            command.why,
            seat,
            emit,
            command=command,
            trial=self.trials.get(seat),
            champion=seat,
            watched=watched,
            held=held,
        )
        return ""

    def _promote(self, command: Command, emit: Emit) -> str:
        return self._place(command, command.target, "promoted", emit)

    def _roll_back(self, command: Command, emit: Emit) -> str:
        """Give the place back to the champion of so many changes ago; one that came back is counted once."""
        champions = [seat for one in self.past if one.changes for seat in (one.before, one.champion)]
        row = [self.champion]
        for seat in reversed(champions):
            if seat not in row:
                row.append(seat)
        steps = max(1, command.steps)
        if steps >= len(row):
            there = ", ".join(map(str, row[1:])) or "none"
            return f"there is no champion {steps} back: earlier ones, the latest first: {there}"
        return self._place(command, row[steps], "rolled_back", emit)

    def _pin(self, command: Command, emit: Emit) -> str:
        seat = command.target
        if not seat.version:
            return f"a pin is of a version, and {seat or 'nobody'} is none: name one, as {seat.model or 'logreg'}@12000"
        return self._place(command, seat, "pinned", emit, held=True)

    def _unpin(self, command: Command, emit: Emit) -> str:
        """Let the gate decide again; the model of the version that was pinned serves as it has learned by now."""
        if not self.held:
            self._decide("unchanged", "nothing is pinned", self.champion, emit, command=command)
            return ""
        seat = ModelRef(self.champion.model)
        self._decide("unpinned", command.why, seat, emit, command=command, champion=seat, watched=NOBODY, held=False)
        return ""

    def _train(self, command: Command, emit: Emit) -> str:
        model, begin = command.target.model, command.begin
        if model not in self.pipeline.models:
            return f"the pipeline declares no model {model!r}: there are {', '.join(self.pipeline.models)}"
        begin = max(0, self.next + begin) if begin < 0 else begin
        if begin >= self.next:
            return f"there is nothing to learn from example {begin:,} on: there are {self.next:,}"
        name = f"{model}~{begin}"
        if name == self.candidate:
            self._decide("unchanged", f"{name} is the candidate already", ModelRef(name), emit, command=command)
        else:
            self._decide("training", command.why, ModelRef(name), emit, command=command, candidate=name)
        return ""

    def _alert(self, record: Record, emit: Emit) -> None:
        """Begin a candidate where the pipeline declares that an alert of this kind does."""
        training, alert = self.pipeline.training, self.records.alert.of(record.value())
        if training is None or alert is None or alert["state"] != "opened" or alert["kind"] not in training.on:
            return
        named = f"{alert['id']} {alert['opened_at']}"
        begun = max((one.examples for one in self.past if one.kind == "training"), default=-training.pause)
        if any(one.id == named for one in self.past) or self.next < begun + training.pause or not self.next:
            return
        begin = max(0, self.next - training.examples) if training.examples else 0
        name = f"{training.model}~{begin}"
        why = f"alert {alert['id']}: {alert['message']}; a candidate learns from example {begin:,} on"
        self._decide("training", why, ModelRef(name), emit, named=named, candidate=name)

    def gauges(self) -> Mapping[tuple[str, str], float]:
        return {("trial_questions", str(seat)): trial.questions for seat, trial in self.trials.items()}


def build(pipeline: Pipeline, registry: Registry, broker: Broker, token: bytes = b"") -> Service:
    """Wire the gate to its topics."""
    sealed = decisions(pipeline, registry.key)
    step = PromotionGate(
        pipeline, registry.key, lambda: all_decisions(pipeline, broker, sealed), check_of(registry, broker), token=token
    )
    return service("gate", pipeline.name, step)


def check_of(registry: Registry, broker: Broker) -> Check:
    """Return what says why somebody can't serve: no such model or version, or its artifact can't be opened."""

    def check(seat: ModelRef) -> str:
        pipeline = registry.pipeline
        if not pipeline.knows(seat.model):
            return f"the pipeline declares no model {seat.model!r}: there are {', '.join(pipeline.model_names)}"
        try:
            if seat.version:
                key = (seat.model, seat.version)
                found, refused = versions(broker, registry, [key])
                if key not in found:
                    return (
                        refused.get(key)
                        or f"there is no version {seat.version} of it; see `tidemill models list {pipeline.name}`"
                    )
                registry.open(found[key])
            elif not latest(broker, registry, {seat.model: 1})[0][seat.model]:
                return f"no version of it was published yet: run its learner, `tidemill run learner {pipeline.name} --model {seat.model}`"
        except (ArtifactError, StoreError) as error:
            return str(error)
        return ""

    return check
