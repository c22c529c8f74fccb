"""Backtest: the services' own steps in one process, in event-time order, without Kafka.

Every label is learned as soon as it is known, and before any question asked at that moment, as River's
`evaluate.progressive_val_score(moment=..., delay=...)` has it; `model_delay` adds the time that a learned label takes
to reach the scorer in production.

Where corrections of labels are declared, models learn the label that was known, as in production. The report's metrics,
and the examples that are handed on, have each example's last label: they are counted again at the end, from a temporary
file. `over_time` has what was known then.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import marshal
import tempfile
import time
from bisect import bisect_left, bisect_right
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from tidemill.declare.monitor import Monitor
from tidemill.declare.pipeline import Pipeline
from tidemill.declare.stream import Stream
from tidemill.durations import approximate
from tidemill.encoding.codec import HEADER, Codec
from tidemill.encoding.times import looks_like_date
from tidemill.errors import described
from tidemill.features.lookup import InMemoryRemoteViews
from tidemill.keys import Keyring
from tidemill.models.corrections import Corrections, Key, key_of
from tidemill.models.fold import Fold
from tidemill.offline.history import Message, as_message
from tidemill.registry.decisions import Decision, decisions
from tidemill.rules.base import SECONDS_AS_MILLIS
from tidemill.stages.featurizer.service import Featurizer
from tidemill.stages.gate.service import PromotionGate
from tidemill.stages.joiner.service import Joiner
from tidemill.stages.materializer.service import Materializer
from tidemill.stages.scorer.feed import ServingChange
from tidemill.stages.scorer.service import Scorer
from tidemill.stages.validator.service import Validator
from tidemill.stream.api import Emit, Headers, Position, Processor, Progress, Record, TopicPartition
from tidemill.stream.memory import MemoryRecord
from tidemill.wire import topics
from tidemill.wire.dead_letters import read_dead_letter
from tidemill.wire.records import Features, PredictionLog, Records

log = logging.getLogger(__name__)

Row = Mapping[str, Any]

#: A report warns first where more than this share of events or predictions is not in its figures.
MAX_SHARE_LEFT_OUT = 0.1
#: From so many on it is no chance that all labels are the same.
MIN_EXAMPLES_OF_ONE_LABEL = 50


@dataclass(frozen=True)
class LabelDelays:
    """How labels lie to their events: counts, and quantiles of the delay in ms, by percent."""

    without_event: int
    events_without_label: int
    before_event: int
    late: int
    quantiles: Mapping[int, int]

    @classmethod
    def of(
        cls, events: Mapping[Any, int], labels: Mapping[Any, int], timeout_ms: int, refused: Collection[Any] = ()
    ) -> LabelDelays:
        """Compare the times of events and labels, each by its id; labels of `refused` events are not looked at."""
        labels = {id_: at for id_, at in labels.items() if id_ in events or id_ not in refused} if refused else labels
        delays = sorted(at - events[id_] for id_, at in labels.items() if id_ in events)
        return cls(
            without_event=len(labels) - len(delays),
            events_without_label=sum(id_ not in labels for id_ in events),
            before_event=bisect_left(delays, 0),
            late=len(delays) - bisect_right(delays, timeout_ms),
            quantiles={p: delays[min(len(delays) - 1, len(delays) * p // 100)] for p in (50, 90, 99, 100) if delays},
        )

    @property
    def is_odd(self) -> bool:
        """Whether labels are not as they should be; that some have not come yet is nothing odd."""
        return bool(self.late or self.without_event or self.before_event)

    def as_text(self, timeout: str) -> str:
        """Return what is unusual, with what to do about it; nothing where nothing is."""
        parts = []
        if self.late:
            spread = ", ".join(f"{approximate(delay)} ({p}%)" for p, delay in self.quantiles.items())
            parts.append(
                f"{self.late:,} labels came later than label_timeout={timeout!r}: declare a longer one. Labels come "
                f"within {spread} of their events"
            )
        if self.without_event:
            parts.append(f"{self.without_event:,} labels match no event: see that both streams name the same id")
        if self.events_without_label:
            parts.append(f"{self.events_without_label:,} events have no label")
        if self.before_event:
            parts.append(
                f"{self.before_event:,} labels are dated before their event: see that both times are in the same zone "
                f"and unit"
            )
        return "; ".join(parts)


@dataclass
class BacktestReport:
    """The result of a backtest. Times are ms since the epoch; `over_time` has one row per checkpoint.

    `first_letters`: what was wrong with the first dead letter of each reason. `refused`: events that the validator
    refused, by reason; what is neither valid nor refused is no record (a delete in an envelope). `refused_labels`: the
    same of labels. `warned`: records of which a rule has only warned, by stream and rule; `first_warnings`: what it
    said of the first; `odd_times`: of events, those whose time looks like one of another unit. `corrections`: labels
    that replaced another; `corrected`: joined examples whose last label is not the one that was learned. `over_share`:
    joined examples that were not learned, as their source had used its share. `only_label`: the label of a
    classification that all joined examples have, empty where they have several.
    `learn_failed`: by model, examples at which its learn_one raised; `learn_errors`: what it raised first. `left_out`:
    figures that a model has not, and why.
    """

    pipeline: str
    task: str
    champion: str
    model_delay_ms: int
    events: int = 0
    valid: int = 0
    labels: int = 0
    predictions: int = 0
    joined: int = 0
    corrections: int = 0
    corrected: int = 0
    expired: int = 0
    pending: int = 0
    over_share: int = 0
    learn_failed: dict[str, int] = field(default_factory=dict)
    learn_errors: dict[str, str] = field(default_factory=dict)
    dead_letters: dict[str, int] = field(default_factory=dict)
    first_letters: dict[str, str] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    refused_labels: dict[str, int] = field(default_factory=dict)
    warned: dict[str, int] = field(default_factory=dict)
    first_warnings: dict[str, str] = field(default_factory=dict)
    odd_times: int = 0
    only_label: str = ""
    left_out: list[str] = field(default_factory=list)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    over_time: list[dict[str, Any]] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    first_event: int = 0
    last_event: int = 0
    seconds: float = 0.0
    label_timeout: str = ""
    label_delays: LabelDelays | None = None

    @property
    def metric_names(self) -> list[str]:
        """The metrics that any model has, in their declared order."""
        return list(dict.fromkeys(name for values in self.metrics.values() for name in values))

    @property
    def main_metric(self) -> str:
        """The metric that is shown over time: the second, or the only one; empty where no model was judged."""
        return next(iter((*self.metric_names[1:2], *self.metric_names)), "")

    @property
    def warnings(self) -> list[str]:
        """What a reader must know before the figures: what they leave out, and the setting to change."""
        return [
            text for text in (self._unanswered(), *self.history_warnings, self._unlearned(), *self.left_out) if text
        ]

    @property
    def history_warnings(self) -> list[str]:
        """Those that are about events and labels, and about no model."""
        texts = (
            self._other_unit(),
            self._refused(self.refused, self.events, "events", "no model was asked about them"),
            self._refused(self.refused_labels, self.labels, "labels", "no model has learned them"),
            self._unlabelled() or self._dated_before(),
            self._one_label(),
        )
        return [text for text in texts if text]

    @property
    def note(self) -> str:
        """What is odd about a few of the labels, too few for a warning; empty where nothing is."""
        if self.label_delays is None or not self.label_delays.is_odd or self._unlabelled() or self._dated_before():
            return ""
        return self.label_delays.as_text(self.label_timeout)

    def _other_unit(self) -> str:
        first, last = SECONDS_AS_MILLIS
        if self.events and looks_like_date(self.first_event) and looks_like_date(self.last_event):
            return (
                f"the times of all events lie in 1970, as {self.first_event} does, which looks like a date: give times "
                f"as ISO 8601 text, or in the unit that the schema, or time_unit, says"
            )
        if self.events and first <= self.first_event and self.last_event <= last:
            return (
                "the times of all events lie in January and February 1970, as a time does that is taken for one of a "
                "1,000 times finer unit: see that the stream's time is in the unit that its schema, or time_unit, says"
            )
        if self.odd_times > MAX_SHARE_LEFT_OUT * self.events:
            return (
                f"{self.odd_times / self.events:.0%} of the events have a time in January or February 1970, as seconds "
                f"have that are taken for milliseconds: see that all of them are in one unit"
            )
        return ""

    def _refused(self, by_reason: Mapping[str, int], total: int, what: str, so: str) -> str:
        refused = sum(by_reason.values())
        if not total or refused <= MAX_SHARE_LEFT_OUT * total:
            return ""
        reasons = ", ".join(f"{reason} {n:,}" for reason, n in sorted(by_reason.items()))
        return f"{refused / total:.0%} of the {what} were refused ({reasons}): {so}"

    def _unanswered(self) -> str:
        unanswered = self.valid - self.predictions
        if not self.valid or unanswered <= MAX_SHARE_LEFT_OUT * self.valid:
            return ""
        share = unanswered / self.valid
        return f"{share:.0%} of the valid events got no answer: see dead letters; `tidemill check` tries the models"

    def _unlabelled(self) -> str:
        without = self.predictions - self.joined
        if not self.predictions or without <= MAX_SHARE_LEFT_OUT * self.predictions:
            return ""
        text = f"the figures leave out {without / self.predictions:.0%} of the predictions, which got no label in time"
        why = self.label_delays.as_text(self.label_timeout) if self.label_delays else ""
        return f"{text}. {why}" if why else text

    def _dated_before(self) -> str:
        delays = self.label_delays
        if delays is None or delays.before_event <= MAX_SHARE_LEFT_OUT * self.labels:
            return ""
        return f"labels come sooner than they can: {delays.as_text(self.label_timeout)}"

    def _one_label(self) -> str:
        if not self.only_label or self.joined < MIN_EXAMPLES_OF_ONE_LABEL:
            return ""
        return (
            f"all {self.joined:,} labels are {self.only_label}: no figure tells a good model from a bad one. See that "
            f"value=, of the labels, gives what it should"
        )

    def _unlearned(self) -> str:
        failed = [name for name, n in self.learn_failed.items() if n > MAX_SHARE_LEFT_OUT * self.joined]
        if not failed:
            return ""
        return f"learn_one of {', '.join(failed)} raised on many examples: `tidemill check` says why"

    @property
    def events_per_second(self) -> float:
        """Events handled per second of wall time."""
        return self.events / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return the report for programs."""
        return dataclasses.asdict(self) | {"events_per_second": self.events_per_second, "warnings": self.warnings}


class KnownLabel(NamedTuple):
    """The label of one prediction, and when it was known, in ms since the epoch."""

    event_id: str
    label: Any
    label_time: int


class _PendingPredictions(Processor):
    """Keeps the prediction log's records by event, without their headers, until labels come."""

    def __init__(self) -> None:
        super().__init__()
        self.by_event: dict[str, bytes] = {}

    def process(self, records: Sequence[Record], emit: Emit) -> bool:
        del emit
        for record in records:
            self.by_event[(record.key() or b"").decode()] = (record.value() or b"")[HEADER:]
        return True


class _Spool:
    """Examples in their order, in a temporary file."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  it ends with the run

    def append(self, record: MemoryRecord) -> None:
        headers, sent = record.headers(), record.timestamp()[1]
        value = bytes(record.value() or b"")
        marshal.dump((record.topic(), value, record.key(), sent, headers, record.offset()), self._file)

    def records(self) -> Iterator[MemoryRecord]:
        self._file.seek(0)
        with contextlib.suppress(EOFError):
            while True:
                topic, value, key, timestamp, headers, offset = marshal.load(self._file)  # noqa: S302  our own
                yield MemoryRecord(topic, value, key, timestamp, headers, 0, offset)


class Backtest:
    """One run over history.

    Parameters
    ----------
    model_delay_ms
        How long after a label is known the model that learned it is in use; 0 as in River's evaluation.
    checkpoint_every_ms
        Event time between two rows of the report's `over_time`.
    """

    def __init__(
        self, pipeline: Pipeline, *, model_delay_ms: int = 0, checkpoint_every_ms: int = 24 * 3_600_000
    ) -> None:
        self.pipeline = pipeline
        self.records = Records(pipeline)
        self.model_delay = model_delay_ms
        self.every = checkpoint_every_ms
        self.report = BacktestReport(pipeline.name, pipeline.task, pipeline.champion, model_delay_ms)
        self.report.label_timeout = pipeline.label_timeout
        self.folds = {name: Fold(pipeline, name) for name in pipeline.model_names}
        self.scorer = Scorer(pipeline)
        self.predictions: Callable[[PredictionLog], None] | None = None
        self.updates: Callable[[Record], None] | None = None
        #: Called with each example; where corrections are declared at the end of the run, with its last label.
        self.examples: Callable[[Record], None] | None = None
        self.corrections, self.corrected = Corrections(self.records), set[Key]()
        self._spool = _Spool() if pipeline.corrections_ms else None
        #: Called with every record that a step emits, before the next step reads it.
        self.emitted: Callable[[Record], None] | None = None
        self._offsets: Counter[str] = Counter()
        self._learning: deque[tuple[int, MemoryRecord]] = deque()
        self._labels: set[Any] = set()
        self._wire()

    @property
    def is_watched(self) -> bool:
        """Whether somebody is to see records as they come; who puts an `_emit` of its own in place sees them, too."""
        has_own_emit = getattr(self._emit, "__func__", None) is not Backtest._emit
        return has_own_emit or any((self.predictions, self.updates, self.examples, self.emitted))

    def leave_out_unread(self) -> None:
        """Make nothing that nobody reads; with a score of each of very many classes, a message may be too large."""
        are_seen = self.is_watched or self._spool is not None or self.pipeline.task == "multiclass"
        for records in self._all_records:
            records.are_seen = are_seen
        if not self.is_watched:
            for fold in self.folds.values():
                fold.segments.features = ()  # they are in the report of who watches

    def _wire(self) -> None:
        name = self.pipeline.name
        validator = Validator(self.pipeline, any_encoding=True, fuse=False)  # history is what it is
        joiner, materializer = Joiner(self.pipeline), Materializer(self.pipeline)
        featurizer = Featurizer(self.pipeline, remote_views=InMemoryRemoteViews(materializer.views))
        self._joiner, self._featurizer = joiner, featurizer
        self._all_records = (validator.records, featurizer.records, self.scorer.records, joiner.records)
        for records in self._all_records:
            records.carries = True
        start = Position(0)
        materializer.assign(TopicPartition(topics.UPDATES.name(name), 0), start)
        featurizer.assign(TopicPartition(topics.EVENTS_VALID.name(name), 0), start)
        for service, step in (("validator", validator), ("joiner", joiner)):
            for topic in topics.consumes(service):
                step.assign(TopicPartition(topic.name(self.pipeline), 0), start)
        self.events_topic, self.labels_topic = topics.EVENTS.name(self.pipeline), topics.LABELS.name(self.pipeline)
        self._processors: dict[str, Processor] = {
            self.events_topic: validator,
            self.labels_topic: validator,
            topics.EVENTS_VALID.name(name): featurizer,
            topics.LABELS_VALID.name(name): joiner,
            topics.UPDATES.name(name): materializer,
            topics.FEATURES.name(name): self.scorer,
            topics.PREDICTION_LOG.name(name): joiner,
        }
        keys = Keyring.generate()  # decisions of a backtest leave it in its report alone
        self._gate = PromotionGate(self.pipeline, keys, tuple, lambda _: "")
        self._gate.assign(TopicPartition(topics.EXAMPLES.name(name), 0), start)
        self._decided = decisions(self.pipeline, keys)
        self._promotions = topics.PROMOTIONS.name(name)
        self._examples, self._dlq = topics.EXAMPLES.name(name), topics.DLQ.name(name)
        self._log, self._expired = topics.PREDICTION_LOG.name(name), topics.EXPIRED.name(name)
        self._updates = topics.UPDATES.name(name)
        self._valid, self._warnings = topics.EVENTS_VALID.name(name), topics.WARNINGS.name(name)

    def _emit(
        self,
        topic: str,
        value: bytes,
        key: bytes | None = None,
        timestamp: int = 0,
        headers: Headers | None = None,
        partition: int = -1,
    ) -> None:
        del partition
        record = MemoryRecord(topic, value, key, timestamp, headers, 0, self._offsets[topic])
        self._offsets[topic] += 1
        if self.emitted:
            self.emitted(record)
        step = self._processors.get(topic)
        if step is None:
            self._take(topic, record)
            return
        if self.predictions and topic == self._log:
            self.predictions(self.records.prediction_log.decode(value))
        if self.updates and topic == self._updates:
            self.updates(record)
        step.process((record,), self._emit)

    def _take(self, topic: str, record: MemoryRecord) -> None:
        """Take a record that no step reads."""
        if topic == self._dlq:
            letter, report = read_dead_letter(record), self.report
            if letter.stage == "validator":
                refused = report.refused if letter.topic == self.events_topic else report.refused_labels
                refused[letter.reason] = refused.get(letter.reason, 0) + 1
            report.first_letters.setdefault(letter.reason, letter.message)
            report.dead_letters[letter.reason] = report.dead_letters.get(letter.reason, 0) + 1
        elif topic == self._warnings:
            self._warn(self.records.warnings.decode(record.value() or b""))
        elif topic == self._examples and self.corrections.take(record):
            self.report.corrections += 1
            if self.pipeline.gate:
                self._gate.process((record,), self._emit)
        elif topic == self._examples:
            self._learning.append((self._now + self.model_delay, record))
            if self._spool is not None:
                self._spool.append(record)
            elif self.examples:
                self.examples(record)
            if self.pipeline.gate:
                self._gate.process((record,), self._emit)
        elif topic == self._promotions:
            self._decide(self._decided.decode(record.value() or b""))

    def _warn(self, warnings: Mapping[str, Any]) -> None:
        report = self.report
        for rule in warnings["rules"]:
            name = f"{warnings['stream']} by {rule['rule']}{rule['field'] and ':'}{rule['field']}"
            report.warned[name] = report.warned.get(name, 0) + rule["records"]
            report.first_warnings.setdefault(name, rule["message"])
            if warnings["stream"] == "events" and rule["reason"] == "implausible_time":
                report.odd_times += rule["records"]

    def _decide(self, decision: Decision) -> None:
        self.report.decisions.append(decision)
        # A backtest keeps no versions: where an earlier one is to serve, the serving model goes on.
        if not decision.champion.version:
            self.scorer.change(ServingChange(decision.champion))

    def run(
        self, events: Iterable[Row | Message], labels: Iterable[Row | Message], progress: Progress | None = None
    ) -> BacktestReport:
        """Run over events and labels as producers send them, each in order of its time (equal times as given).

        What does not fit its schema is a dead letter, as in production; without a time it follows the one before it.
        """
        started = time.perf_counter()
        self.leave_out_unread()
        report = self.report
        event_times: dict[str, int] = {}
        label_times: dict[str, int] = {}
        refused_ids = set[str]()

        def take_label(label: Message) -> None:
            refused = sum(report.refused_labels.values())
            self._take_label(label.time, label.data)
            if sum(report.refused_labels.values()) == refused:  # what is refused has no delay
                label_times.setdefault(label.id, label.time)

        waiting = _messages(labels, self.pipeline.labels, self.records.sent_label)
        label = next(waiting, None)
        for event in _messages(events, self.pipeline.events, self.records.sent_event):
            now = event.time
            while label is not None and label.time <= now:
                take_label(label)
                label = next(waiting, None)
            self._at(now)
            if report.events == 0:
                report.first_event = now
            report.last_event = now
            report.events += 1
            refused = sum(report.refused.values())
            self._emit(self.events_topic, event.data, None, now)
            if sum(report.refused.values()) == refused:
                event_times.setdefault(event.id, now)
            else:
                refused_ids.add(event.id)
            if progress:
                progress(1)
        while label is not None:
            take_label(label)
            label = next(waiting, None)
        self._learn_until(None)
        self._checkpoint(self._now)
        self._correct()
        self._count()
        timeout = self.pipeline.label_timeout_ms
        report.label_delays = LabelDelays.of(event_times, label_times, timeout, refused_ids)
        report.seconds = time.perf_counter() - started
        return report

    def replay(
        self, questions: Iterable[Features], labels: Iterable[KnownLabel], progress: Progress | None = None
    ) -> BacktestReport:
        """Run over vectors as they were served, in order of event time, and labels, in order of label time.

        An archive holds both. Validation, features and join were done before it was written, and are not repeated.
        """
        started = time.perf_counter()
        pending = _PendingPredictions()
        log, features = self._log, topics.FEATURES.name(self.pipeline.name)
        self._processors[log] = pending
        header, tail = self.records.example.header, self.records.outcome.body
        waiting = iter(labels)
        label = next(waiting, None)
        early: dict[str, KnownLabel] = {}

        def learn(known: KnownLabel, body: bytes) -> None:
            end = tail({"label": known.label, "label_time": known.label_time})
            self._emit(self._examples, header + body + end, known.event_id.encode(), known.label_time)

        def take_labels(until: int | None) -> None:
            nonlocal label
            while label is not None and (until is None or label.label_time <= until):
                self._at(label.label_time)
                self.report.labels += 1
                body = pending.by_event.pop(label.event_id, None)
                if body is None:
                    early[label.event_id] = label
                else:
                    learn(label, body)
                    self._learn_until(label.label_time)
                label = next(waiting, None)

        for question in questions:
            now = question["event_time"]
            take_labels(now)
            self._at(now)
            self.report.first_event = self.report.first_event or now
            self.report.last_event = now
            self.report.events += 1
            self._emit(features, self.records.features.encode(question), question["entity_id"].encode(), now)
            if question["event_id"] in early:  # its label has a time that is not after its own
                learn(early.pop(question["event_id"]), pending.by_event.pop(question["event_id"]))
            if progress:
                progress(1)
        take_labels(None)
        self._learn_until(None)
        self._checkpoint(self._now)
        self._correct()
        self._count()
        self.report.valid, self.report.pending = self.report.events, len(pending.by_event)
        self.report.seconds = time.perf_counter() - started
        return self.report

    _now = -(2**62)
    _next_checkpoint: int | None = None

    def _at(self, now: int) -> None:
        """Move event time on: learn what is due by `now`, and note the checkpoints that are due."""
        self._now = now
        self._learn_until(now)
        if self._next_checkpoint is None:
            self._next_checkpoint = (now // self.every + 1) * self.every
        if now >= self._next_checkpoint:
            self._checkpoint(self._next_checkpoint)
            # One row for a gap: where one event is of the year 23, there are 700,000 days between two.
            self._next_checkpoint = (now // self.every + 1) * self.every

    def _take_label(self, now: int, data: bytes) -> None:
        self._at(now)
        self.report.labels += 1
        self._emit(self.labels_topic, data, None, now)
        self._learn_until(now)

    def _learn_until(self, now: int | None) -> None:
        while self._learning and (now is None or self._learning[0][0] <= now):
            _, record = self._learning.popleft()
            example = self.records.example.decode(record.value() or b"")
            if len(self._labels) < 2:
                self._labels.add(example["label"])
            learned = True
            for name, fold in self.folds.items():
                try:
                    learned = fold.learn(example, record.offset())  # the same for every model
                except Exception as error:  # a model's own code: as in production, the others go on
                    self.report.learn_failed[name] = self.report.learn_failed.get(name, 0) + 1
                    if self.report.learn_failed[name] == 1:
                        self.report.learn_errors[name] = described(error)
                        log.error("learn_one raised", extra={"model": name, "cause": described(error)})
                self.scorer.put(name, fold.version, fold.running)
            self.report.over_share += not learned

    def _correct(self) -> None:
        """Hand on the examples with their last labels, and judge all answers by those."""
        if self._spool is None:
            return
        if self.corrections.labels:
            for fold in self.folds.values():
                fold.judge_again()
        for record in self._spool.records():
            example = self.records.example.decode(record.value() or b"")
            last = self.corrections.apply(example)
            if last is not example:
                self.corrected.add(key_of(last["prediction"]["features"]))
                value, key, sent = self.records.example.encode(last), record.key(), record.timestamp()[1]
                record = MemoryRecord(record.topic(), value, key, sent, record.headers(), 0, record.offset())
            if self.corrections.labels:
                for fold in self.folds.values():
                    fold.judge(last)
            if self.examples:
                self.examples(record)
        self.report.corrected = len(self.corrected)

    def _values(self) -> dict[str, dict[str, float]]:
        return {name: fold.scorecard.values() if fold.scorecard.judged else {} for name, fold in self.folds.items()}

    def _left_out(self) -> list[str]:
        """Return which figures models have not, and why."""
        texts = [
            f"model {name!r} answered none of the questions that have labels: it has no figures"
            for name, fold in self.folds.items()
            if fold.examples and not fold.scorecard.judged
        ]
        for name, fold in self.folds.items():
            if fold.scorecard.judged:
                without = fold.scorecard.without_number()
                texts += [f"{metric} of {name!r} is left out: {why}" for metric, why in without.items()]
        return texts

    def _checkpoint(self, at: int) -> None:
        examples = self.folds[self.pipeline.champion].examples
        self.report.over_time.append({"time": at, "examples": examples, "metrics": self._values()})

    def _count(self) -> None:
        report = self.report
        report.valid = self._offsets[self._valid]
        report.predictions = self._offsets[self._log]
        report.joined = self._offsets[self._examples] - report.corrections
        report.expired = self._offsets[self._expired]
        report.pending = sum(join.pending for join in self._joiner.joins.values())
        self._judge(report)

    def _judge(self, report: BacktestReport) -> None:
        """Put into a report what models came to, and what their examples have shown."""
        if len(self._labels) == 1 and self.pipeline.kind.label_type != "double":
            report.only_label = repr(next(iter(self._labels)))
        report.metrics, report.left_out = self._values(), self._left_out()


def _messages(rows: Iterable[Row | Message], stream: Stream, codec: Codec) -> Iterator[Message]:
    latest = 0
    for row in rows:
        if isinstance(row, Message):
            yield row
            continue
        at = stream.millis_of(row)
        latest = latest if at is None else at
        yield Message(latest, str(row.get(stream.id, "")), as_message(codec, row))


class _NullModel:
    """A model, and a metric, that cost nothing."""

    requires_labels = False

    def learn_one(self, x: object, y: object = None) -> None: ...

    def predict_one(self, x: object) -> float:
        del x
        return 0.0

    score_one = predict_one

    def predict_proba_one(self, x: object) -> dict[Any, float]:
        del x
        return {}

    def clone(self) -> _NullModel:
        return self

    def update(self, y: object, predicted: object) -> None: ...

    def get(self) -> float:
        return 0.0


def without_models(pipeline: Pipeline) -> Pipeline:
    """Return the pipeline with one model that costs nothing instead of its own: for its vectors and labels alone."""
    null = _NullModel()
    return replace(
        pipeline, models={"baseline": null}, champion="baseline", baseline=None, metrics=[null], monitor=Monitor()
    )
