"""The validator: raw events and labels in; valid ones, keyed for what follows, and dead letters out.

reads   <pipeline>.events and <pipeline>.labels, as producers send them
writes  <pipeline>.events.valid by entity, <pipeline>.labels.valid by event id, <pipeline>.dlq with the original bytes,
        <pipeline>.warnings with what the rules that only warn have found, batch by batch
state   what rules that remember need, by partition, rebuilt from the log; the fuse's counts, beside the offsets
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from tidemill.declare.fuse import Fuse
from tidemill.declare.pipeline import Pipeline
from tidemill.declare.stream import Stream
from tidemill.encoding.codec import Codec
from tidemill.errors import Reject, Stopped
from tidemill.rules import Rule
from tidemill.stages.validator.circuit_breaker import CircuitBreaker
from tidemill.stages.validator.decode import Decoder
from tidemill.stages.validator.judge import RuleState, Warned, judge
from tidemill.stages.validator.writers import NoWriterSchemas, WriterSchemas, accepted
from tidemill.stream.api import Emit, Headers, Position, Processor, Record, Start, TopicPartition, discard
from tidemill.stream.loop import Service
from tidemill.wire import topics
from tidemill.wire.dead_letters import carried, dead_letter, shown
from tidemill.wire.records import Records
from tidemill.wire.services import service

WARNING = "tidemill.warning"
"""The header by which a valid record says which rules have warned of it, one each, as rule:field."""


class _Way:
    """How one stream's records go."""

    def __init__(self, stream: Stream, decoder: Decoder, rules: Sequence[Rule], to: str, fuse: Fuse) -> None:
        self.name = to.rpartition(".")[0].rpartition(".")[2]
        self.stream, self.rules, self.to = stream, rules, to
        self.decode, self.check = decoder.decode, judge(stream, rules)
        self.key = stream.key or stream.id
        self.fuse = fuse
        self.forget()

    def forget(self) -> None:
        """Begin to count anew."""
        self.burning = CircuitBreaker(self.fuse)
        self.warned: Counter[Rule] = Counter()
        self.example: dict[Rule, tuple[str, Warned]] = {}


class Validator(Processor):
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
        self, pipeline: Pipeline, writers: WriterSchemas | None = None, *, any_encoding: bool = False, fuse: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        super().__init__()
        self.records, self.clock = Records(pipeline), clock
        self._writers, self._any_encoding = writers or NoWriterSchemas(), any_encoding
        name = pipeline.name
        self.dlq, self.warnings = topics.DLQ.name(name), topics.WARNINGS.name(name)
        self._fuse = pipeline.fuse if fuse else Fuse(run=0, share=0)
        self._ways = {
            raw.name(name): self._way(raw.name(name), stream, codec, checks, valid.name(name))
            for raw, stream, codec, checks, valid in (
                (topics.EVENTS, pipeline.events, self.records.event, pipeline.event_checks, topics.EVENTS_VALID),
                (topics.LABELS, pipeline.labels, self.records.label, pipeline.label_checks, topics.LABELS_VALID),
            )
        }
        self._label_value = pipeline.label_value()
        self._label = pipeline.kind.label
        self._labels = topics.LABELS.name(name)
        self._slots: set[TopicPartition] = set()
        self._memories: dict[tuple[str, int], RuleState] = {}

    def _way(self, topic: str, stream: Stream, codec: Codec, rules: Sequence[Rule], to: str) -> _Way:
        others, find = accepted(stream.others, codec), partial(self._writers.find, topic)
        encoding = "" if self._any_encoding else stream.encoding
        return _Way(stream, Decoder(codec, others, find, encoding, self.counts), rules, to, self._fuse)

    def assign(self, slot: TopicPartition, committed: Position) -> Start:
        note = json.loads(committed.note) if committed.note else {}
        way = self._ways[slot.topic]
        self._slots.add(slot)
        if "fuse" in note:
            way.burning.restore(note["fuse"])
        memories = RuleState(way.stream, way.rules)
        if not memories:
            return Start(committed.offset, committed.offset)
        self._memories[slot] = memories
        begin = note.get("from", 0)  # 0: the rule is new, and what the log has is remembered
        return Start(committed.offset if begin is None else begin, committed.offset)

    def revoke(self, slots: Iterable[TopicPartition]) -> None:
        for slot in slots:
            self._slots.discard(slot)
            self._memories.pop(slot, None)
        for topic, way in self._ways.items():
            if not any(slot.topic == topic for slot in self._slots):
                way.forget()  # what was counted of records that were not committed is counted again

    def note(self, slot: TopicPartition) -> str:
        """Return the fuse's counts, and where what rules remember begins."""
        note: dict[str, Any] = {}
        if fuse := self._ways[slot.topic].burning.note:
            note["fuse"] = fuse
        if memories := self._memories.get(slot):
            note["from"] = memories.begin()
        return json.dumps(note) if note else ""

    def process(self, records: Sequence[Record], emit: Emit) -> bool:
        is_live = emit is not discard
        ways, labels, now = self._ways, self._labels, self.clock() * 1000
        for index, record in enumerate(records):
            topic = record.topic()
            way = ways[topic]
            if not is_live:
                now = record.timestamp()[1]  # what was refused for its time must not be remembered as if it had passed
            try:
                decoded, data = way.decode(record.value(), record.headers)
                warnings = way.check(decoded, now)
                if topic == labels:
                    self._check_label(decoded)
                if self._memories:
                    warnings = self._remember(record, decoded, warnings)
            except Reject as reject:
                if is_live:
                    self._refuse(record, reject, emit)
                    if why := way.burning.refused(reject.reason):
                        self._warn(now, emit)
                        raise self._blown(why, reject, records, index) from reject
            else:
                way.burning.passed += 1
                headers = carried(record.headers())
                if warnings:
                    headers = [*self._note_warnings(way, decoded, warnings), *(headers or ())]  # the mark stays last
                emit(way.to, data, str(decoded[way.key]).encode(), record.timestamp()[1], headers)
        if is_live:
            self._warn(now, emit)
        return True

    def _remember(
        self, record: Record, decoded: Mapping[str, Any], warnings: list[Warned] | None
    ) -> list[Warned] | None:
        memories = self._memories.get((record.topic(), record.partition()))
        more = memories.check(decoded, record.offset()) if memories else None
        return [*(warnings or ()), *more] if more else warnings

    def _check_label(self, record: Mapping[str, Any]) -> None:
        try:
            self._label(self._label_value(record))
        except Exception as error:  # the declaration's own function may raise anything
            raise Reject("bad_label", f"no label: {error}", rule="label") from error

    def _refuse(self, record: Record, reject: Reject, emit: Emit) -> None:
        dead_letter(record, reject, emit, self.dlq, "validator")
        self.counts["dead_letters", reject.reason] += 1

    def _note_warnings(self, way: _Way, decoded: Mapping[str, Any], warnings: Sequence[Warned]) -> Headers:
        for warned in warnings:
            way.warned[warned.rule] += 1
            way.example.setdefault(warned.rule, (str(decoded[way.stream.id]), warned))
            self.counts["warnings", str(warned.rule)] += 1
        return [(WARNING, str(warned.rule).encode()) for warned in warnings]

    def _warn(self, now: float, emit: Emit) -> None:
        """Tell what rules that only warn have found in this batch."""
        for way in self._ways.values():
            if not way.warned:
                continue
            told = {
                "stream": way.name,
                "time": int(now),
                "rules": [
                    {"rule": rule.name, "field": rule.field, "reason": rule.reason, "records": count,
                     "example": shown(way.example[rule][0]), "message": shown(way.example[rule][1].message)}
                    for rule, count in way.warned.items()
                ],
            }  # fmt: skip
            way.warned.clear()
            way.example.clear()
            emit(self.warnings, self.records.warnings.encode(told), way.name.encode(), int(now))

    def _blown(self, why: str, last: Reject, records: Sequence[Record], index: int) -> Stopped:
        """Return the error that stops the service; what is up to this record is committed."""
        record = records[index]
        positions: dict[TopicPartition, int] = {}
        for later in reversed(records[index + 1 :]):
            positions[TopicPartition(later.topic(), later.partition())] = later.offset()
        for done in records[: index + 1]:
            slot = TopicPartition(done.topic(), done.partition())
            positions[slot] = max(done.offset() + 1, positions.get(slot, 0))
        return Stopped(
            f"the fuse of {record.topic()} has blown: {why}; the last, {record.topic()}[{record.partition()}]"
            f"@{record.offset()}: {last}. They are in {self.dlq}, and what comes after them waits. Mend the producer or the "
            f"rule and start again: it goes on as soon as a record passes. To make dead letters of them all: TIDEMILL_FUSE=false",
            positions,
        )


def build(pipeline: Pipeline, writers: WriterSchemas | None = None, *, fuse: bool = True) -> Service:
    """Wire the validator to its topics."""
    return service("validator", pipeline.name, Validator(pipeline, writers, fuse=fuse))
