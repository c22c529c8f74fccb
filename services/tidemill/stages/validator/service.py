"""The validator: raw events and labels in; valid ones, keyed for what follows, and dead letters out.

reads   <pipeline>.events and <pipeline>.labels, as producers send them
writes  <pipeline>.events.valid by entity, <pipeline>.labels.valid by event id, <pipeline>.dlq with the original bytes,
        <pipeline>.warnings with what the rules that only warn have found, batch by batch
state   what rules that remember need, by partition, rebuilt from the log; the fuse's counts, beside the offsets
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from tidemill.declare.fuse import Fuse
from tidemill.declare.pipeline import Pipeline
from tidemill.declare.stream import Stream
from tidemill.encoding.codec import HEADER, Codec, carried
from tidemill.encoding.envelopes import SkippedError
from tidemill.errors import Reject, Stopped
from tidemill.limits import ID_CHARACTERS
from tidemill.rules import Rule
from tidemill.stages.validator.circuit_breaker import CircuitBreaker
from tidemill.stages.validator.decode import Decoder, InMillis, stream_decoder
from tidemill.stages.validator.rule_check import RuleState, RuleWarning, compile_rules, text_check
from tidemill.stages.validator.writer_schemas import NoWriterSchemas, WriterSchemas
from tidemill.stream.api import Emit, Headers, Position, Record, Start, TopicPartition, discard
from tidemill.stream.commit_metadata import AT_COMMITTED_OFFSET, CommitMetadata
from tidemill.stream.group import Service
from tidemill.stream.origin import IMPLAUSIBLE, plausible
from tidemill.wire import topics
from tidemill.wire.dead_letters import DeadLetterProcessor, redrive_headers, shorten
from tidemill.wire.records import Records
from tidemill.wire.services import service

log = logging.getLogger(__name__)

MAX_ID_CHARACTERS = ID_CHARACTERS.max
#: The header of a valid record for each rule that has warned of it, as rule:field.
WARNING = "tidemill.warning"


class Route:
    """From a raw topic to a valid one: how one stream's records are decoded, checked and passed on."""

    def __init__(
        self,
        stream: Stream,
        decoder: Decoder | InMillis,
        rules: Sequence[Rule],
        entities: Collection[str],
        to: str,
        fuse: Fuse,
        check_value: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        self.name = to.rpartition(".")[0].rpartition(".")[2]
        self.stream, self.rules, self.to = stream, rules, to
        self.decode, self.check = decoder.decode, compile_rules(stream, rules)
        self.check_texts = text_check(stream, entities)
        self.key = stream.key or stream.id
        self.fuse, self.check_value = fuse, check_value
        #: Messages that begin so, and go on as they came, are handed on with their records; empty for none.
        self.carried_header = b""
        self.forget()

    def examine(
        self, data: bytes | None, headers: Callable[[], Any], now: float
    ) -> tuple[dict[str, Any], bytes, list[RuleWarning] | None]:
        """Return the record, its Avro message and its warnings, by all that one record shows; `now` is ms, wall time.

        Raises Reject, SkippedError or Retry.
        """
        decoded, data = self.decode(data, headers)
        if len(data) > MAX_ID_CHARACTERS:  # else no text in it is too long
            self.check_texts(decoded)
        warnings = self.check(decoded, now)
        if self.check_value:
            self.check_value(decoded)
        return decoded, data, warnings

    def forget(self) -> None:
        """Count from zero."""
        self.breaker = CircuitBreaker(self.fuse)
        self.stopped = ""
        self.warned: Counter[Rule] = Counter()
        self.example: dict[Rule, tuple[str, RuleWarning]] = {}


class Validator(DeadLetterProcessor):
    """Checks events and labels; what passes goes on with its bytes untouched, or as the declared schema reads them.

    Parameters
    ----------
    writers
        Knows by which schemas producers write beside those that are declared.
    any_encoding
        Take Avro and JSON whatever is declared: for history, which no producer sends.
    fuse
        Whether to stop where the pipeline's fuse says so; without it everything that is refused becomes a dead letter.
    clock
        Wall time in seconds.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        writers: WriterSchemas | None = None,
        *,
        any_encoding: bool = False,
        fuse: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(pipeline.name, "validator")
        self.records, self.clock = Records(pipeline), clock
        self._writers, self._any_encoding = writers or NoWriterSchemas(), any_encoding
        name = pipeline.name
        self.warnings = topics.WARNINGS.name(name)
        self._entities = {view.entity for view in pipeline.views}
        self._fuse = pipeline.fuse if fuse else Fuse(run=0, share=0)
        events = self.records.sent_event, self.records.event
        labels = self.records.sent_label, self.records.label
        self._routes = {
            raw.name(pipeline): self._route(raw.name(pipeline), stream, codecs, checks, valid.name(pipeline))
            for raw, stream, codecs, checks, valid in (
                (topics.EVENTS, pipeline.events, events, pipeline.event_checks, topics.EVENTS_VALID),
                (topics.LABELS, pipeline.labels, labels, pipeline.label_checks, topics.LABELS_VALID),
            )
        }
        # Labels wait in the joiner, where their records would take several times the memory.
        self._routes[topics.EVENTS.name(pipeline)].carried_header = self.records.event.header
        self._label_value = pipeline.label_value()
        self._label = pipeline.kind.label
        self._assigned: set[TopicPartition] = set()
        self._old: set[str] = set()
        self._rule_states: dict[tuple[str, int], RuleState] = {}

    def _route(self, topic: str, stream: Stream, codecs: tuple[Codec, Codec], rules: Sequence[Rule], to: str) -> Route:
        encoding = "" if self._any_encoding else stream.encoding
        decoder = stream_decoder(
            stream, *codecs, partial(self._writers.find, topic), encoding, self.counts, bare=self._any_encoding
        )
        check_value = self._check_label if topic == topics.LABELS.name(self.records.pipeline) else None
        return Route(stream, decoder, rules, self._entities, to, self._fuse, check_value)

    def route(self, topic: str) -> Route:
        """Return how the records of a raw topic are checked."""
        return self._routes[topic]

    def assign(self, topic_partition: TopicPartition, committed: Position) -> Start:
        metadata = CommitMetadata.decode(committed.metadata)
        route = self._routes[topic_partition.topic]
        self._assigned.add(topic_partition)
        if metadata.circuit_breaker:
            route.breaker.restore(*metadata.circuit_breaker)
        rule_state = RuleState(route.stream, route.rules)
        if not rule_state:
            return Start(committed.offset, committed.offset)
        self._rule_states[topic_partition] = rule_state
        begin = metadata.rebuild_from or 0  # None: the rule is new, and what the log has is remembered
        return Start(committed.offset if begin == AT_COMMITTED_OFFSET else begin, committed.offset)

    def revoke(self, topic_partitions: Iterable[TopicPartition]) -> None:
        for topic_partition in topic_partitions:
            self._assigned.discard(topic_partition)
            self._rule_states.pop(topic_partition, None)
        for topic, route in self._routes.items():
            if not any(topic_partition.topic == topic for topic_partition in self._assigned):
                route.forget()  # what was counted of records that were not committed is counted again

    def commit_metadata(self, topic_partition: TopicPartition) -> CommitMetadata:
        """Return the circuit breaker's counts, and where what rules remember begins."""
        begin = None
        if rule_state := self._rule_states.get(topic_partition):
            first = rule_state.begin()
            begin = AT_COMMITTED_OFFSET if first is None else first
        return CommitMetadata(rebuild_from=begin, circuit_breaker=self._routes[topic_partition.topic].breaker.counts)

    def process(self, records: Sequence[Record], emit: Emit) -> bool:
        is_live = emit is not discard
        routes, now = self._routes, self.clock() * 1000
        is_history, oldest = self._any_encoding, now - topics.EVENTS.retention_ms
        carries = is_live and self.records.carries
        for index, record in enumerate(records):
            self.in_hand, topic = record, record.topic()
            route = routes[topic]
            if not is_live:
                # What was refused for its time must not be remembered as if it had passed.
                now = plausible(record.timestamp()[1], self.clock() * 1000)
            try:
                decoded, data, warnings = route.examine(record.value(), record.headers, now)
                if self._rule_states:
                    warnings = self._remember(record, decoded, warnings)
            except SkippedError as skipped:
                self.counts["unwrapped", skipped.kind] += is_live
            except Reject as reject:
                if is_live:
                    self.refuse(record, reject, emit)
                    if why := route.breaker.refused(reject.reason):
                        route.stopped = why if route.breaker.has_opened else ""
                        self._warn(now, emit)
                        raise self._stopped(why, reject, records, index) from reject
            else:
                route.breaker.passed += 1
                headers = self._going_on(record) if is_live and record.headers() else None
                if warnings:
                    headers = [*self._note_warnings(route, decoded, warnings), *(headers or ())]
                origin = sent = record.timestamp()[1]
                if is_live and not is_history:
                    origin = plausible(sent, now)
                    if origin != sent:
                        self.counts["implausible_timestamps", topic] += 1
                        headers = [(IMPLAUSIBLE, str(sent).encode()), *(headers or ())]
                    elif 0 < sent < oldest:
                        self._note_old(topic, sent)
                if carries and data is record.value() and route.carried_header == data[:HEADER]:
                    data = carried(data, decoded)  # it was read as the next step would read it
                emit(route.to, data, str(decoded[route.key]).encode(), origin, headers)
        if is_live:
            self._warn(now, emit)
        return True

    def _going_on(self, record: Record) -> Headers | None:
        """Return the headers that go on with a record that passed: its trace, and last its redrive mark."""
        return [*(self.traces.of(record) or ()), *(redrive_headers(record.headers()) or ())] or None

    def _note_old(self, topic: str, timestamp: int) -> None:
        """Say once that a topic gets records which its retention may delete before they are read."""
        self.counts["old_timestamps", topic] += 1
        if topic not in self._old:
            self._old.add(topic)
            log.warning(
                "records are dated so far back that Kafka may delete them before they are read: set retention.ms=-1 on "
                "their topic until they are, or send history with the timestamp left to Kafka",
                extra={"topic": topic, "timestamp": timestamp},
            )

    def _remember(
        self, record: Record, decoded: Mapping[str, Any], warnings: list[RuleWarning] | None
    ) -> list[RuleWarning] | None:
        rule_state = self._rule_states.get((record.topic(), record.partition()))
        more = rule_state.check(decoded, record.offset()) if rule_state else None
        return [*(warnings or ()), *more] if more else warnings

    def _check_label(self, record: Mapping[str, Any]) -> None:
        try:
            self._label(self._label_value(record))
        except Exception as error:  # the declaration's own function may raise anything
            raise Reject("bad_label", f"no label: {error}", rule="label") from error

    def _note_warnings(self, route: Route, decoded: Mapping[str, Any], warnings: Sequence[RuleWarning]) -> Headers:
        for warned in warnings:
            route.warned[warned.rule] += 1
            route.example.setdefault(warned.rule, (str(decoded[route.stream.id]), warned))
            self.counts["warnings", str(warned.rule)] += 1
        return [(WARNING, str(warned.rule).encode()) for warned in warnings]

    def _warn(self, now: float, emit: Emit) -> None:
        """Emit what rules that only warn have found in this batch, and that a circuit breaker has opened."""
        for route in self._routes.values():
            if not route.warned and not route.stopped:
                continue
            batch_warnings = {
                "stream": route.name,
                "time": int(now),
                "rules": [
                    {
                        "rule": rule.name,
                        "field": rule.field,
                        "reason": rule.reason,
                        "records": count,
                        "example": shorten(route.example[rule][0]),
                        "message": shorten(
                            self.records.mask.message(rule.field, rule.name, route.example[rule][1].message)
                        ),
                    }
                    for rule, count in route.warned.items()
                ],
                "stopped": route.stopped,
            }
            route.stopped = ""
            route.warned.clear()
            route.example.clear()
            emit(self.warnings, self.records.warnings.encode(batch_warnings), route.name.encode(), int(now))

    def _stopped(self, why: str, last: Reject, records: Sequence[Record], index: int) -> Stopped:
        """Return the error that stops the service; what is up to this record is committed."""
        record = records[index]
        positions: dict[TopicPartition, int] = {}
        for later in reversed(records[index + 1 :]):
            positions[TopicPartition(later.topic(), later.partition())] = later.offset()
        for done in records[: index + 1]:
            topic_partition = TopicPartition(done.topic(), done.partition())
            positions[topic_partition] = max(done.offset() + 1, positions.get(topic_partition, 0))
        return Stopped(
            f"the circuit breaker of {record.topic()} is open: {why}; the last, {record.topic()}[{record.partition()}]"
            f"@{record.offset()}: {last}. They are in {self.dlq}, and what comes after them waits. Fix the producer or "
            f"the rule and start again: it goes on as soon as a record passes. To make dead letters of them all: "
            f"TIDEMILL_FUSE=false",
            positions,
        )


def build(pipeline: Pipeline, writers: WriterSchemas | None = None, *, fuse: bool = True) -> Service:
    """Wire the validator to its topics."""
    return service("validator", pipeline, Validator(pipeline, writers, fuse=fuse))
