"""The joiner: the prediction log and the labels in; examples, in one order, out.

reads   <pipeline>.prediction-log and <pipeline>.labels.valid, both by event id, partition n of both together
writes  <pipeline>.examples (one partition: the order of learning), where corrections of labels are declared those as
        well; <pipeline>.expired, <pipeline>.dlq; <pipeline>.updates, for the views over outcomes
state   what waits or was settled lately, in memory or in tables on this machine's disk; rebuilt by reading both logs
        again from where the tables were saved, or else from the oldest record that still matters, whose offset and
        watermark are kept beside the committed offset
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from tidemill.declare.pipeline import Pipeline
from tidemill.encoding.codec import HEADER, Carried, carried
from tidemill.errors import Reject, Retry
from tidemill.limits import DEAD_LETTER_BYTES
from tidemill.stages.joiner.join import Event, Join, Label, Outcomes
from tidemill.stages.joiner.stored_join import StoredJoin
from tidemill.stream.api import Emit, Headers, Position, Record, Start, TopicPartition, discard
from tidemill.stream.commit_metadata import CommitMetadata
from tidemill.stream.group import Service
from tidemill.stream.local_state import OpenState
from tidemill.stream.origin import origin_of
from tidemill.stream.trace import trace_of
from tidemill.watermark import State, Watermark
from tidemill.wire import topics
from tidemill.wire.dead_letters import DeadLetterProcessor
from tidemill.wire.records import Records
from tidemill.wire.services import service
from tidemill.wire.updates import Updates

log = logging.getLogger(__name__)


class Joiner(DeadLetterProcessor):
    """Joins each prediction with its label, once.

    Parameters
    ----------
    watermark
        Makes the watermark of a log, from its slack in ms and an earlier state.
    open_state
        Opens the tables of a partition; without it everything is in memory.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        watermark: Callable[[int, State], Watermark] = Watermark,
        open_state: OpenState | None = None,
    ) -> None:
        super().__init__(pipeline.name, "joiner")
        self._watermark, self._open_state = watermark, open_state
        self.records = Records(pipeline)
        name = pipeline.name
        self.log_topic = topics.PREDICTION_LOG.name(name)
        self.labels_topic = topics.LABELS_VALID.name(name)
        self.examples = topics.EXAMPLES.name(name)
        self.expired_topic = topics.EXPIRED.name(name)
        self.timeout, self.corrections = pipeline.label_timeout_ms, pipeline.corrections_ms
        self.joins: dict[int, Join] = {}
        self._next: dict[TopicPartition, int] = {}
        self._topic_ids: dict[TopicPartition, str] = {}
        self._new: dict[int, tuple[str, ...]] = {}
        self._id, self._time = pipeline.labels.id, pipeline.labels.time
        self._value, self._as_label = pipeline.label_value(), pipeline.kind.label
        self._updates = Updates(pipeline, self.records, "examples")
        self._emit: Emit = discard

    def assign(self, topic_partition: TopicPartition, committed: Position) -> Start:
        number = topic_partition.partition
        join = self.joins.get(number)
        if join is None:
            join = self.joins[number] = self._join(number)
        metadata = CommitMetadata.decode(committed.metadata)
        saved = self._saved(topic_partition, committed, metadata)
        if topic_partition.topic == self.log_topic:
            self._new[number] = self._updates.new(committed)
            if saved is None:
                self.joins[number].restore_log(metadata.watermark)
        elif saved is None:
            self.joins[number].restore_labels(metadata.watermark)
        rebuild_from = committed.offset if metadata.rebuild_from is None else metadata.rebuild_from
        begin = rebuild_from if saved is None else saved
        self._next[topic_partition] = begin
        self._topic_ids[topic_partition] = metadata.topic_id
        return Start(begin, committed.offset)

    def _join(self, number: int) -> Join:
        if self._open_state is None:
            return Join(self.timeout, self._outcomes(), self._watermark, self.corrections)
        schemas = self.records.prediction_log.header + self.records.label.header
        if self.erased:  # what was saved before has what was erased
            schemas += b"%d" % self.erased
        state = self._open_state(number)
        try:
            return StoredJoin(self.timeout, self._outcomes(), state, self._watermark, schemas, self.corrections)
        except Retry:
            state.close()
            raise

    def _saved(self, topic_partition: TopicPartition, committed: Position, metadata: CommitMetadata) -> int | None:
        """Return up to where the saved state has read the log that was committed; None where none is of use.

        Raises Retry where the partition's other topic goes on with it, and this one can't.
        """
        number, begin = topic_partition.partition, metadata.rebuild_from
        saved = self.joins[number].saved
        if not saved:
            return None
        offset, topic_id = saved[topic_partition.topic]
        if begin is not None and begin <= offset <= committed.offset and topic_id == metadata.topic_id:
            return offset
        log.warning(
            "the saved state is of another time than what is committed: it is made again from the log",
            extra={"partition": f"{topic_partition.topic}[{number}]", "saved": offset, "committed": committed.offset},
        )
        self.joins[number].clear()
        if any(partition.partition == number for partition in self._next):
            raise Retry(f"the state of partition {number} is made again")
        self.joins[number].close()
        self.joins[number] = self._join(number)
        return None

    def commit_metadata(self, topic_partition: TopicPartition) -> CommitMetadata:
        """Return where a rebuild must begin: at the first record that still matters, with the watermark before it.

        Beside the log's offset, the entities whose updates have started as well.
        """
        join, following = self.joins[topic_partition.partition], self._next[topic_partition]
        if topic_partition.topic == self.log_topic:
            begin, watermark = join.kept_events.begin(following, join.log)
            started = self._updates.started(self._new.get(topic_partition.partition, ()))
            return CommitMetadata(begin, watermark, started)
        return CommitMetadata(*join.kept_labels.begin(following, join.labels))

    def revoke(self, topic_partitions: Iterable[TopicPartition]) -> None:
        for topic_partition in topic_partitions:
            if join := self.joins.pop(topic_partition.partition, None):
                join.close()
            self._topic_ids.pop(topic_partition, None)
            self._next.pop(topic_partition, None)
            self._new.pop(topic_partition.partition, None)

    def committed(self) -> None:
        for number, join in self.joins.items():
            join.save(partial(self._positions, number))

    def _positions(self, number: int) -> dict[str, tuple[int, str]]:
        partitions = [TopicPartition(topic, number) for topic in (self.log_topic, self.labels_topic)]
        return {partition.topic: (self._next[partition], self._topic_ids[partition]) for partition in partitions}

    def process(self, records: Sequence[Record], emit: Emit) -> bool:
        self._emit = emit
        for record in records:
            self.in_hand = record
            self._next[TopicPartition(record.topic(), record.partition())] = record.offset() + 1
            try:
                if record.topic() == self.log_topic:
                    self._add_event(record)
                else:
                    self._add_label(record)
            except Reject as reject:
                self._reject(record, reject)
        return True

    def _add_event(self, record: Record) -> None:
        value = record.value() or b""
        # All of it is decoded: an example that is made of a part would be read as another one.
        event = self.records.prediction_log.decode(value)["features"]
        id_, time, entity = event["event_id"], event["event_time"], event["entity_id"]
        join = self.joins[record.partition()]
        if not self.records.carries:  # its record would take several times the memory until the label comes
            value = bytes(value)
        origin, trace, source = origin_of(record), trace_of(record), (event["partition"], event["offset"])
        if not join.add_event(id_, time, record.offset(), value, origin, entity, trace, source):
            raise Reject("duplicate_event", f"event {id_!r} was predicted already")

    def _add_label(self, record: Record) -> None:
        label = self.records.label.decode(record.value())
        try:
            value = self._as_label(self._value(label))
        except Exception as error:  # the declaration's own function; the validator has refused what it raises on
            raise Reject("bad_label", f"no label: {error}", rule="label") from error
        self.joins[record.partition()].add_label(
            str(label[self._id]), label[self._time], value, record.offset(), record
        )

    def _outcomes(self) -> Outcomes:
        return Outcomes(self._joined, self._expired, self._duplicate, self._unmatched, self._corrected)

    def refuse(self, record: Record, reject: Reject, emit: Emit, max_bytes: int = DEAD_LETTER_BYTES.max) -> None:
        super().refuse(record, reject, emit, max_bytes)
        if reject.reason != "not_written":
            return
        # The two that make an example may come in another order than before: the other must not make it again.
        is_label, value = record.topic() != self.log_topic, record.value()
        content = (self.records.label if is_label else self.records.prediction_log).of(value)
        if content is not None:
            id_ = str(content[self._id]) if is_label else content["features"]["event_id"]
            self.joins[record.partition()].refuse_at(id_, record.offset(), label=is_label)

    def _joined(self, event: Event, label: Label) -> None:
        if event.is_refused:
            return
        prediction, outcome = event.value or b"", {"label": label.value, "label_time": label.time}
        value = self.records.example.header
        if self.records.are_seen:
            value += prediction[HEADER:] + self.records.outcome.body(outcome)
        if type(prediction) is Carried:
            value = carried(value, {"prediction": prediction.record, **outcome})
        # The prediction's trace goes on; the label's where that has none, as of an event that another system has sent.
        labels_trace = trace_of(label.record)
        trace = event.trace or labels_trace
        if trace and self._emit is not discard:
            trace = self.traces.span(trace, label.record, labels_trace)
        self._emit(self.examples, value, event.id.encode(), origin_of(label.record), trace, 0)
        self.counts["joined", self.examples] += 1
        if self._updates and self._emit is not discard:
            self._update_views(event, label, trace)

    def _update_views(self, event: Event, label: Label, trace: Headers | None) -> None:
        """Emit the outcome to the views over outcomes; it counts from when its label was known."""
        features = self.records.prediction_log.trusted(event.value or b"")["features"]
        for partition in list(self._new):
            self._updates.emit_control("begins", self._new.pop(partition), label.time, self._emit)
        label_record = self.records.label.decode(label.record.value() or b"")
        values = {**features["vector"], **label_record, "label": label.value}
        origin = origin_of(label.record)
        self._updates.emit(features["entities"], values, event.id, label.time, origin, self._emit, trace)

    def _corrected(self, event: Event, label: Label) -> None:
        """Emit a correction. What views over outcomes have counted stays: vectors are learned as they were served."""
        (partition, offset), first = event.source, event.label
        correction = {
            "event_id": event.id,
            "entity_id": event.entity,
            "event_time": event.time,
            "partition": partition,
            "offset": offset,
            "label": label.value,
            "label_time": label.time,
            "first_label": first.value if first else None,
            "replaced_label": event.current,
        }
        value, record = self.records.correction.encode(correction), label.record
        self._emit(self.examples, value, event.id.encode(), origin_of(record), trace_of(record), 0)
        self.counts["corrected", self.examples] += 1

    def _expired(self, event: Event) -> None:
        self._emit(self.expired_topic, event.value or b"", event.id.encode(), event.origin, event.trace)
        self.counts["expired", self.expired_topic] += 1

    def _duplicate(self, event: Event, label: Label) -> None:
        """Refuse a further label of an event: a repetition, or a contradiction, which names the entity."""
        if label.value == event.current:
            reason, message = "duplicate_label", f"event {label.id!r} has this label already"
        else:
            reason = "contradictory_label"
            message = f"event {label.id!r} was labelled {event.current!r} and now {label.value!r}; the first stays"
        self._reject(label.record, Reject(reason, message, value=label.value, entity=event.entity))

    def _unmatched(self, label: Label) -> None:
        message = f"no prediction for event {label.id!r} came within {self.timeout // 1000} s of this label"
        self._reject(label.record, Reject("unmatched_label", message, value=label.id))

    def _reject(self, record: Record, reject: Reject) -> None:
        in_hand, emit = self.in_hand, self._emit
        self.refuse(record, reject, emit)
        self.in_hand = in_hand

    def gauges(self) -> Mapping[tuple[str, str], float]:
        gauges: dict[tuple[str, str], float] = {}
        for partition, join in self.joins.items():
            gauges["pending", str(partition)] = join.pending
            gauges["waiting_labels", str(partition)] = join.waiting_labels
        return gauges


def build(
    pipeline: Pipeline,
    watermark: Callable[[int, State], Watermark] = Watermark,
    open_state: OpenState | None = None,
) -> Service:
    """Wire the joiner to its topics."""
    return service("joiner", pipeline, Joiner(pipeline, watermark, open_state))
