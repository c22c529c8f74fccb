"""The gate: examples, people's commands and alerts in; decisions about who serves out.

reads   <pipeline>.examples (one partition: the order of learning); <pipeline>.commands, <pipeline>.alerts, signed; at
        the start <pipeline>.promotions; for a version that somebody asks for <pipeline>.models and the artifact store
writes  <pipeline>.promotions, signed, in one transaction with the offsets
state   `standing`, from the decisions; `rounds`, rebuilt from the examples since the last change of who serves; where
        corrections are declared how many of them and of examples there were, kept beside the committed offset
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from tidemill.declare.gate import Gate
from tidemill.declare.pipeline import Pipeline
from tidemill.errors import ArtifactError, Reject, StoreError
from tidemill.keys import Keyring
from tidemill.models.corrections import Corrections
from tidemill.registry.alerts import alerts
from tidemill.registry.decisions import GATE, Command, Decision, ModelRef, all_decisions, commands, decisions
from tidemill.registry.latest import latest, versions
from tidemill.registry.manifests import Registry
from tidemill.registry.signing import Chains, Past, no_past, past_of
from tidemill.stages.gate.commands import EpochOf, alert_id, carry_out, train_on_alert, train_on_corrections
from tidemill.stages.gate.rounds import Check, Rounds, collapse, end_of_probation, rebuild_from, undecided, verdict
from tidemill.stages.gate.standing import Draft, Standing
from tidemill.stream.api import Broker, Emit, Position, Processor, Record, Start, TopicPartition, discard
from tidemill.stream.commit_metadata import CommitMetadata
from tidemill.stream.group import Service
from tidemill.wire import topics
from tidemill.wire.records import Example, Records
from tidemill.wire.services import service

log = logging.getLogger(__name__)

#: Examples between two looks at the trials. The interval holds at every look, so this is about CPU time alone.
LOOK_EVERY_EXAMPLES = 100

#: Returns every decision so far, the oldest first.
History = Callable[[], Sequence[Decision]]


class PromotionGate(Processor):
    """Decides who serves.

    Parameters
    ----------
    history
        Returns the decisions so far; called whenever the examples are assigned.
    check
        Says why a model or a version can't serve.
    past
        Returns the records of a topic before an offset; commands and alerts that are among them are not obeyed again.
    clock
        Wall time in s, for the records.
    epoch_of
        Returns the life of a model by its newest manifest.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        keys: Keyring,
        history: History,
        check: Check,
        *,
        past: Past = no_past,
        clock: Callable[[], float] = time.time,
        epoch_of: EpochOf = lambda _: 0,
    ) -> None:
        super().__init__()
        self.pipeline, self.history, self.check, self.clock = pipeline, history, check, clock
        self.epoch_of = epoch_of
        self.gate = pipeline.gate
        self.records = Records(pipeline)
        self._corrections = Corrections(self.records)
        self.past, self._chain = past, Chains(decisions(pipeline, keys))
        self._commands, self._alerts = Chains(commands(pipeline, keys)), Chains(alerts(pipeline, keys))
        self.examples, self.requests = topics.EXAMPLES.name(pipeline.name), topics.COMMANDS.name(pipeline.name)
        self.alerts, self.promotions = topics.ALERTS.name(pipeline.name), topics.PROMOTIONS.name(pipeline.name)
        self._forget()

    def _forget(self) -> None:
        self._chain.heads.clear()
        self.standing, self.rounds = Standing.initial(self.pipeline), Rounds(self.pipeline)
        self.next = self._event_time = 0
        self._examples_read = self._corrections_since = 0

    def commit_metadata(self, topic_partition: TopicPartition) -> CommitMetadata:
        if topic_partition.topic != self.examples or not self.pipeline.corrections_ms:
            return super().commit_metadata(topic_partition)
        return CommitMetadata(corrections=(self._examples_read, self._corrections_since))

    def assign(self, topic_partition: TopicPartition, committed: Position) -> Start:
        if topic_partition.topic == self.requests:
            self._commands.restore_before(self.past, committed.offset)
        elif topic_partition.topic == self.alerts and self.pipeline.training:
            self._alerts.restore_before(self.past, committed.offset)
        if topic_partition.topic != self.examples or topic_partition.partition:
            return Start(committed.offset, committed.offset)
        self._forget()
        for decision in self.history():
            self.standing = self.standing.after(decision)
            self._chain.heads[GATE] = self._chain.codec.head(decision)
        since = self.standing.since
        if self.gate:
            self.next = rebuild_from(self.gate, since, committed.offset)
        else:  # people need no evidence
            self.next = max(since, committed.offset - LOOK_EVERY_EXAMPLES)
        self.rounds.begin(self.standing, self.next)
        # Where corrections are declared later, no more is known than that there are at most so many examples.
        kept = CommitMetadata.decode(committed.metadata).corrections or (committed.offset, 0)
        self._examples_read, self._corrections_since = kept
        return Start(self.next, max(committed.offset, self.next))

    def revoke(self, topic_partitions: Iterable[TopicPartition]) -> None:
        if any(one.topic == self.examples and one.partition == 0 for one in topic_partitions):
            self._forget()

    def process(self, records: Sequence[Record], emit: Emit) -> bool:
        for record in records:
            topic = record.topic()
            if topic == self.examples:
                self._example(record, emit)
            elif topic == self.requests:
                self._command(record, emit)
            else:
                self._alert(record, emit)
        if not self._chain.is_by_present_key(GATE):
            # The key was changed: a decision with the new one vouches for all before it.
            key = self._chain.codec.keys.signs_with if self._chain.codec.keys else ""
            self._decide(Draft("unchanged", f"key {key} signs decisions from now on", self.standing.champion), emit)
            self.has_written = emit is not discard
        return True

    # Examples ---------------------------------------------------------------------------------------------------------

    def _example(self, record: Record, emit: Emit) -> None:
        offset = record.offset()
        is_correction = self._corrections.is_one(record)
        if emit is not discard:
            self._examples_read += not is_correction
            self._corrections_since += is_correction
        if offset < self.next:
            return  # a decision that was made before the offsets were committed covers it
        if offset > self.next:  # the ends of transactions lie between
            self._advance(offset, emit)
        if is_correction:  # evidence is of what was known when the question was counted
            self.counts["corrected", self.examples] += 1
        else:
            self._take(record)
        self._advance(offset + 1, emit)
        if is_correction and emit is not discard:
            self._train_on_corrections(emit)

    def _train_on_corrections(self, emit: Emit) -> None:
        training, corrections = self.pipeline.training, self._corrections_since
        if training is None:
            return
        draft = train_on_corrections(self.standing, training, corrections, self._examples_read, self.next)
        if draft:
            self._corrections_since = 0
            self._decide(draft, emit)

    def _take(self, record: Record) -> None:
        try:
            example: Example = self.records.example.decode(record.value())
        except Reject as reject:
            self.counts["skipped", reject.reason] += 1
            return
        self._event_time = max(self._event_time, example["label_time"])
        self.rounds.take(example)

    def _advance(self, to: int, emit: Emit) -> None:
        """Move to an offset, and do what is due between the last one and this: a look, the end of a round."""
        begin, self.next = self.next, to
        gate = self.gate
        if gate is None:
            return
        if to // LOOK_EVERY_EXAMPLES > begin // LOOK_EVERY_EXAMPLES:
            self._look(gate, emit)
        since = self.standing.since
        if begin < since:
            return  # who serves was decided just now: all evidence starts here
        before, done = begin - since, to - since
        if done // gate.round > before // gate.round:
            self._end_round(emit)
        elif done // gate.watch > before // gate.watch:
            self.rounds.next_guard(self.standing)

    def _look(self, gate: Gate, emit: Emit) -> None:
        if self.standing.pinned or self._guard_champion(gate, emit):
            return
        for trial in self.rounds.trials.values():
            outcome = trial.outcome()
            if outcome.verdict in ("", trial.reported):
                continue
            draft = verdict(gate, trial, outcome)
            if emit is discard and not self.standing.has_decided(draft.kind, draft.subject, self.next):
                continue  # nothing was decided here: another declaration was in force
            trial.reported = outcome.verdict
            self._decide(draft, emit)
            if draft.kind == "promoted":
                return

    def _guard_champion(self, gate: Gate, emit: Emit) -> bool:
        """Hold the champion to the one before it, and to the baseline; return whether it is replaced."""
        standing, rounds = self.standing, self.rounds
        draft = end_of_probation(gate, standing, rounds.probation, self.next) if rounds.probation else None
        if draft:
            self._decide(draft, emit)
            if draft.kind == "rolled_back":
                return True
            if emit is not discard:
                rounds.probation = None
        draft = collapse(standing, rounds.guard, rounds.last_good, self.check) if rounds.guard else None
        if draft:
            self._decide(draft, emit)
        return draft is not None and draft.kind == "rolled_back"

    def _end_round(self, emit: Emit) -> None:
        for trial in self.rounds.trials.values():
            if trial.questions and not trial.reported:
                self._decide(undecided(trial), emit)
        self.rounds.next_round(self.standing, self.next)

    # Commands and alerts ----------------------------------------------------------------------------------------------

    def _command(self, record: Record, emit: Emit) -> None:
        """Carry out a command once, or refuse it with a reason."""
        command = self._commands.take(record)
        if command is None:
            self.counts["skipped", "forged"] += 1
            return
        if any(decision.command == command.id for decision in self.standing.decisions):
            return
        draft = carry_out(self.standing, command, self.next, self.rounds.trials, self.check, self.epoch_of)
        self._decide(draft, emit, command=command)

    def _alert(self, record: Record, emit: Emit) -> None:
        """Start a candidate where the pipeline declares it for this kind of alert."""
        training = self.pipeline.training
        alert = self._alerts.take(record) if training else None
        if training is None or alert is None:
            return
        draft = train_on_alert(self.standing, training, alert, self.next)
        if draft:
            self._decide(draft, emit, id_=alert_id(alert))

    # Decisions --------------------------------------------------------------------------------------------------------

    def _decide(self, draft: Draft, emit: Emit, *, command: Command | None = None, id_: str = "") -> None:
        """Write a decision, and apply it; a decision of the gate that is already in the log is not written again."""
        is_repeated = draft.trial and not command and self.standing.has_decided(draft.kind, draft.subject, self.next)
        if emit is discard or is_repeated:
            return  # a rebuild brings back the evidence alone
        decision = self._decision(draft, command, id_)
        data = self._chain.sign(decision, GATE)
        decision = self._chain.codec.parse(data)
        emit(self.promotions, data, decision.id.encode(), decision.time, None, 0)
        self.counts["decisions", decision.kind] += 1
        log.info(
            decision.kind,
            extra={
                "champion": str(decision.champion),
                "subject": str(decision.subject),
                "by": decision.by,
                "why": decision.why,
            },
        )
        since, self.standing = self.standing.since, self.standing.after(decision)
        if self.standing.since != since:
            self.rounds.begin(self.standing, self.next)

    def _decision(self, draft: Draft, command: Command | None, id_: str) -> Decision:
        standing, trial, changes = self.standing, draft.trial, draft.changes
        return Decision(
            id=id_ or (command.id if command else f"{self.next}-{len(standing.decisions) + 1}"),
            kind=draft.kind,
            by=command.by if command else "gate",
            why=draft.why,
            time=int(self.clock() * 1000),
            event_time=self._event_time,
            examples=self.next,
            since=standing.since_with(changes, self.next),
            command=command.id if command else "",
            subject=draft.subject,
            champion=changes.get("champion", standing.champion),
            before=standing.champion,
            on_probation_against=changes.get("on_probation_against", standing.on_probation_against),
            pinned=changes.get("pinned", standing.pinned),
            candidate=changes.get("candidate", standing.candidate),
            loss=trial.loss if trial else "",
            rate=trial.terms.rate if trial else 0.0,
            evidence=trial.evidence() if trial else (),
            metrics=trial.metrics() if trial else {},
            epochs=changes.get("epochs", standing.epochs),
        )

    def gauges(self) -> Mapping[tuple[str, str], float]:
        return {("trial_questions", str(ref)): trial.questions for ref, trial in self.rounds.trials.items()}


def build(pipeline: Pipeline, registry: Registry, broker: Broker) -> Service:
    """Wire the gate to its topics."""
    codec = decisions(pipeline, registry.keys)
    step = PromotionGate(
        pipeline,
        registry.keys,
        lambda: all_decisions(pipeline, broker, codec),
        serving_check(registry, broker),
        past=past_of(broker),
        epoch_of=lambda model: next((one.epoch for one in latest(broker, registry, {model: 1})[0][model]), 0),
    )
    return service("gate", pipeline, step)


def serving_check(registry: Registry, broker: Broker) -> Check:
    """Return the function that says why a model or a version can't serve: it is missing, or can't be opened."""

    def check(ref: ModelRef) -> str:
        pipeline = registry.pipeline
        if not pipeline.knows(ref.model):
            return f"the pipeline declares no model {ref.model!r}: there are {', '.join(pipeline.model_names)}"
        try:
            return _version_check(registry, broker, ref) if ref.version else _model_check(registry, broker, ref.model)
        except (ArtifactError, StoreError) as error:
            return str(error)

    return check


def _version_check(registry: Registry, broker: Broker, ref: ModelRef) -> str:
    key = (ref.model, ref.version)
    manifests, refused = versions(broker, registry, [key])
    if key in manifests:
        try:
            registry.open(manifests[key])
        except ArtifactError as error:
            if registry.store.holds(manifests[key].sha256):
                raise
            again = f"`tidemill models rebuild {registry.pipeline.name} {ref}` folds it again"
            return f"{error}: it was pruned, or is lost; {again}"
        return ""
    missing = f"there is no version {ref.version} of it; see `tidemill models list {registry.pipeline.name}`"
    return refused.get(key) or missing


def _model_check(registry: Registry, broker: Broker, model: str) -> str:
    newest = latest(broker, registry, {model: 1})[0][model]
    if newest:
        registry.open(newest[0])
        return ""
    learner = f"`tidemill run learner {registry.pipeline.name} --model {model}`"
    return f"no version of it was published yet: run its learner, {learner}"
