"""The learner: one model's fold over the examples, and its candidates'; signed versions of them out.

reads   <pipeline>.examples (one partition: the order of learning); at the start <pipeline>.models; now and then
        <pipeline>.promotions, for the candidates that the gate has started
writes  <pipeline>.models, signed manifests; the artifact store
state   the models; each resumed from its newest version, or rebuilt to it from the examples: never to an older one
outage  a store that is away or full does not stop the learning: nothing is committed meanwhile, and a version is tried
        again at every interval. A model that has diverged goes on learning, and no version of it is published
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial

from tidemill.declare.pipeline import Pipeline
from tidemill.errors import ArtifactError, BrokerError, Retry, StoreError, VersionsError
from tidemill.models.fold import Fold
from tidemill.registry.decisions import Decision, all_decisions, decisions
from tidemill.registry.latest import MAX_MANIFESTS_BACK, latest, models_partition, why_none
from tidemill.registry.manifests import Manifest, Registry
from tidemill.stages.learner.training_run import ANY_LOG, TrainingRun
from tidemill.stream.api import Broker, Emit, Position, Processor, Record, Start, TopicPartition, discard
from tidemill.stream.group import Service
from tidemill.wire import topics
from tidemill.wire.records import Records
from tidemill.wire.services import service

log = logging.getLogger(__name__)

#: Earlier examples that a candidate learns between two batches: a second or less, for which the others wait.
MAX_CATCH_UP_EXAMPLES = 2_000

#: Earlier records that are searched for corrections between two batches: a second or less.
MAX_GATHERED_EXAMPLES = 20_000

#: How often the learner looks for new candidates.
LOOK_EVERY_SECONDS = 1.0

#: Takes a model's name; returns its latest manifests, newest first.
History = Callable[[str], Sequence[Manifest]]

#: Returns the names of the model's candidates.
CandidateNames = Callable[[], Collection[str]]

#: Returns the model's life by the last decision.
PresentEpoch = Callable[[], int]

#: Takes a range of offsets [begin, end); returns its examples, or None where the log does not reach back to it.
ExampleReader = Callable[[int, int], Iterator[Sequence[Record]] | None]


def manifest_history(broker: Broker, registry: Registry) -> History:
    """Return the function that finds a model's manifests on the models topic; forged ones are passed over.

    It raises ArtifactError where no manifest is verified although there are some.
    """

    def find(model: str) -> Sequence[Manifest]:
        manifests = latest(broker, registry, {model: MAX_MANIFESTS_BACK}, chains=registry.chains)[0][model]
        why = "" if manifests else why_none(broker, registry, model)
        if why:
            raise ArtifactError(why)
        return manifests

    return find


def end_of_models(broker: Broker, registry: Registry) -> Callable[[], int]:
    """Return the function that returns where the models topic ends; -1 where Kafka does not answer."""

    def end() -> int:
        try:
            return broker.offset_range(models_partition(registry))[1]
        except BrokerError:
            return -1

    return end


def candidate_names(broker: Broker, registry: Registry, model: str) -> CandidateNames:
    """Return the function that returns the candidates of a model, by the last decision."""
    pipeline, last = registry.pipeline, _last_decision(broker, registry)

    def names() -> Collection[str]:
        decision = last()
        models = {ref.model for ref in decision.model_refs} if decision else set()
        return frozenset(name for name in models if "~" in name and pipeline.parts(name)[0] == model)

    return names


def present_epoch(broker: Broker, registry: Registry, model: str) -> PresentEpoch:
    """Return the function that returns a model's life, by the last decision."""
    last = _last_decision(broker, registry)

    def epoch() -> int:
        decision = last()
        return decision.epochs.get(model, 0) if decision else 0

    return epoch


def _last_decision(broker: Broker, registry: Registry) -> Callable[[], Decision | None]:
    """Return the function that returns the last decision; the topic is read when it has grown."""
    pipeline = registry.pipeline
    codec, partition = decisions(pipeline, registry.keys), TopicPartition(topics.PROMOTIONS.name(pipeline.name), 0)
    end, decision = -1, None

    def last() -> Decision | None:
        nonlocal end, decision
        now = broker.offset_range(partition)[1]
        if now != end:
            decided = all_decisions(pipeline, broker, codec)
            end, decision = now, decided[-1] if decided else None
        return decision

    return last


def example_reader(broker: Broker, pipeline: Pipeline) -> ExampleReader:
    """Return the function that reads examples again."""
    partition = TopicPartition(topics.EXAMPLES.name(pipeline.name), 0)

    def read(begin: int, end: int) -> Iterator[Sequence[Record]] | None:
        return broker.read({partition: (begin, end)}) if broker.offset_range(partition)[0] <= begin else None

    return read


class Learner(Processor):
    """Folds examples into one model, and into its candidates, and publishes versions of them.

    Parameters
    ----------
    every_examples, every_seconds
        A version is published when this many examples were learned since the last one, or this time has passed.
    first_examples
        The first version is published after so many, and the next soon after it; see `TrainingRun`.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        model: str,
        registry: Registry,
        history: History,
        candidate_names: CandidateNames = tuple,
        read_examples: ExampleReader = lambda _begin, _end: None,
        present_epoch: PresentEpoch = lambda: 0,
        log_range: Callable[[], tuple[int, int]] = lambda: ANY_LOG,
        *,
        every_examples: int = 10_000,
        every_seconds: float = 10.0,
        first_examples: int = 0,
        clock: Callable[[], float] = time.monotonic,
        on_published: Callable[[str, int], None] = lambda _model, _version: None,
    ) -> None:
        super().__init__()
        self.pipeline, self.model, self.registry, self.history = pipeline, model, registry, history
        self.candidate_names, self.read_examples, self.clock = candidate_names, read_examples, clock
        self.present_epoch, self.log_range = present_epoch, log_range
        self.records = Records(pipeline)
        self.models = topics.MODELS.name(pipeline.name)
        self.on_published = on_published
        self.every_examples, self.every_seconds = every_examples, every_seconds
        self.first_examples = first_examples
        self._begin()

    def _begin(self) -> None:
        self.training, self.candidates = self._new(self.model), dict[str, TrainingRun]()
        self._unreachable: set[str] = set()
        self._uncommitted: list[tuple[str, int]] = []
        self._looked_at = -LOOK_EVERY_SECONDS

    def _new(self, name: str) -> TrainingRun:
        return TrainingRun(
            self.pipeline,
            name,
            self.registry,
            self.counts,
            every_examples=self.every_examples,
            every_seconds=self.every_seconds,
            first_examples=self.first_examples,
            clock=self.clock,
        )

    @property
    def fold(self) -> Fold:
        """The model's own fold."""
        return self.training.fold

    def assign(self, topic_partition: TopicPartition, committed: Position) -> Start:
        if topic_partition.partition != 0:  # the order of learning is partition 0
            return Start(committed.offset, committed.offset)
        self._begin()
        epoch, log_range = self.present_epoch(), self.log_range()
        self.training.resume(self._past(epoch), epoch, log_range, committed.offset)
        return Start(self.training.at, max(self.training.target, log_range[0]))

    def _past(self, epoch: int) -> Sequence[Manifest]:
        """Return the model's manifests; none where a reset has ended the life of those that can't be verified."""
        try:
            return self.history(self.model)
        except ArtifactError as error:
            if epoch:
                return ()
            raise VersionsError(str(error)) from None

    def revoke(self, topic_partitions: Iterable[TopicPartition]) -> None:
        if any(one.partition == 0 for one in topic_partitions):
            self._begin()

    def process(self, records: Sequence[Record], emit: Emit) -> bool:
        before = self.fold.version
        if emit is discard:  # up to the newest version: what was published before is not published again
            self.training.learn(records, self.records.example)
            return False
        self.training.pass_over(self.training.target)
        self.training.learn(records, self.records.example)
        self.traces.took(records)
        written = self._publish(self.training.due(), emit)
        self._look()
        for candidate in list(self.candidates.values()):
            try:
                self._advance(candidate, records, before)
                written |= self._publish(candidate.due(), emit)
            except VersionsError as error:
                self._give_up(candidate.name, str(error))
        for run in (self.training, *self.candidates.values()):
            written |= self._publish(self._signed_again(run), emit)
        self.has_written |= written
        return written

    def _advance(self, candidate: TrainingRun, records: Sequence[Record], before: int) -> None:
        if candidate.is_gathering:
            self._gather(candidate)
            return
        if candidate.at >= before:  # level with the model: it learns these records next
            candidate.learn([record for record in records if record.offset() >= candidate.at], self.records.example)
            candidate.at = max(candidate.at, self.fold.version)
        else:
            self._catch_up(candidate)
        candidate.pass_over(candidate.at)

    def _give_up(self, name: str, why: str) -> None:
        """Train a candidate no more; its versions stay, and the other models learn on."""
        log.error(f"a candidate can't be trained: {why}", extra={"model": name})
        self._unreachable.add(name)
        self.candidates.pop(name, None)

    def finish(self, emit: Emit) -> bool:
        written = [self._publish(run.last(), emit) for run in (self.training, *self.candidates.values())]
        return any(written)

    def _look(self) -> None:
        """Start or resume the candidates of the last decision, and drop the others."""
        if self.clock() - self._looked_at < LOOK_EVERY_SECONDS:
            return
        self._looked_at = self.clock()
        self._follow_epoch()
        try:
            wanted = set(self.candidate_names())
            for name in self.candidates.keys() - wanted:
                del self.candidates[name]
            for name in sorted(wanted - self.candidates.keys() - self._unreachable):
                candidate = self._new(name)
                try:
                    candidate.resume(self.history(name), log_range=self.log_range())
                except (ArtifactError, VersionsError) as error:
                    self._give_up(name, str(error))
                    continue
                self.candidates[name] = candidate
                log.info("training a candidate", extra={"model": name, "from": candidate.at})
        except (BrokerError, StoreError) as error:
            log.warning("candidates can't be looked up at the moment", extra={"cause": str(error)})

    def _follow_epoch(self) -> None:
        """Raise Retry where a decision has begun another life of the model: it is restored as at a start."""
        try:
            epoch = self.present_epoch()
        except BrokerError:
            return  # it is looked at again
        if epoch > self.training.epoch:
            raise Retry(f"model {self.model!r} was reset: life {epoch} begins")

    def _gather(self, candidate: TrainingRun) -> None:
        begin = candidate.gathered_until
        end = min(candidate.corrections.before, begin + MAX_GATHERED_EXAMPLES)
        if self._read(candidate, begin, end, candidate.gather):
            candidate.gathered_until = end

    def _catch_up(self, candidate: TrainingRun) -> None:
        begin = candidate.at
        end = min(self.fold.version, begin + MAX_CATCH_UP_EXAMPLES)
        if begin >= end:
            return
        learn = partial(candidate.learn, codec=self.records.example)
        candidate.at = end if self._read(candidate, begin, end, learn) else max(begin, candidate.fold.version)

    def _read(self, candidate: TrainingRun, begin: int, end: int, take: Callable[[Sequence[Record]], None]) -> bool:
        """Give a candidate earlier examples; returns whether it has all of them."""
        try:
            batches = self.read_examples(begin, end)
            for batch in batches or ():
                take(batch)
        except BrokerError as error:
            log.warning(
                "a candidate's examples can't be read at the moment",
                extra={"model": candidate.name, "cause": str(error)},
            )
            return False
        if batches is None:
            self._give_up(candidate.name, "the log does not reach back to its examples")
            return False
        return True

    def _signed_again(self, run: TrainingRun) -> Manifest | None:
        """Return a model's newest manifest with the new key where the key was changed: it vouches for all before it."""
        if run.newest is None or self.registry.chains.is_by_present_key(run.name):
            return None
        run.newest = self.registry.sign(run.newest)
        return run.newest

    def _publish(self, manifest: Manifest | None, emit: Emit) -> bool:
        if manifest is None:
            return False
        emit(self.models, self.registry.encode(manifest), manifest.model.encode(), 0, None, 0)
        self.counts["snapshots", manifest.model] += 1
        self._uncommitted.append((manifest.model, manifest.version))
        return True

    def committed(self) -> None:
        published, self._uncommitted = self._uncommitted, []
        for model, version in published:
            self.on_published(model, version)

    def gauges(self) -> Mapping[tuple[str, str], float]:
        gauges: dict[tuple[str, str], float] = {}
        for run in (self.training, *self.candidates.values()):
            gauges |= run.gauges()
        return gauges


def build(
    pipeline: Pipeline,
    model: str,
    registry: Registry,
    broker: Broker,
    *,
    every_examples: int,
    every_seconds: float,
    first_examples: int = 0,
    on_published: Callable[[str, int], None] = lambda _model, _version: None,
) -> Service:
    """Wire one model's learner to its topics."""
    registry.chains.position = end_of_models(broker, registry)
    step = Learner(
        pipeline,
        model,
        registry,
        manifest_history(broker, registry),
        candidate_names(broker, registry, model),
        example_reader(broker, pipeline),
        present_epoch(broker, registry, model),
        partial(broker.offset_range, TopicPartition(topics.EXAMPLES.name(pipeline.name), 0)),
        every_examples=every_examples,
        every_seconds=every_seconds,
        first_examples=first_examples,
        on_published=on_published,
    )
    return service("learner", pipeline, step, model)
