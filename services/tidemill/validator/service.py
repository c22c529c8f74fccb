"""The validator: raw events and labels in; valid ones, keyed for what follows, and dead letters out.

reads   <pipeline>.events and <pipeline>.labels, as producers send them
writes  <pipeline>.events.valid by entity, <pipeline>.labels.valid by event id, <pipeline>.dlq with the original bytes
state   none
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from tidemill import topics
from tidemill.errors import Reject
from tidemill.pipeline import Pipeline, Stream
from tidemill.records import Codec, Records
from tidemill.stream.api import Emit, Record, Step
from tidemill.stream.loop import Service
from tidemill.validator.decode import Decoder
from tidemill.validator.letters import dead_letter
from tidemill.validator.rules import LARGEST_NUMBER, Rule
from tidemill.validator.writers import NoWriters, Writers, accepted


def judge(stream: Stream, rules: Sequence[Rule]) -> Callable[[Mapping[str, Any]], None]:
    """Return the function that raises Reject where a record breaks a rule, or has a float that is not finite or too large."""
    floats = tuple(name for name, kind in stream.types.items() if kind in ("float", "double"))
    compiled = tuple((rule, rule.field, rule.check) for rule in rules)
    identity = stream.id
    lowest, largest = -LARGEST_NUMBER, LARGEST_NUMBER

    def check(record: Mapping[str, Any]) -> None:
        for name in floats:
            value = record[name]
            if value is not None and not lowest <= value <= largest:  # NaN is not between any two numbers
                raise _no_number(name, value)
        for rule, name, passes in compiled:
            value = record[name]
            if value is None:
                if not rule.nullable:
                    raise Reject(rule.reason, f"field {name!r} has no value", rule=rule.name, field=name)
                continue
            expected = passes(value)
            if expected is not None:
                raise Reject(
                    rule.reason, f"field {name!r} is {value!r} where {expected} was expected",
                    rule=rule.name, field=name, value=value,
                )  # fmt: skip
        if record[identity] == "":
            raise Reject("missing_value", f"field {identity!r} is empty", rule="id", field=identity)

    return check


def _no_number(name: str, value: float) -> Reject:
    if math.isfinite(value):
        reason, rule, expected = "out_of_range", "magnitude", f"a number from {-LARGEST_NUMBER:g} to {LARGEST_NUMBER:g}"
    else:
        reason, rule, expected = "not_finite", "finite", "a finite number"
    return Reject(
        reason, f"field {name!r} is {value} where {expected} was expected", rule=rule, field=name, value=value
    )


class Validator(Step):
    """Checks events and labels; what passes goes on with its bytes untouched, or as the declared schema reads them.

    Parameters
    ----------
    writers
        Knows by which schemas producers write beside those that are declared.
    any_encoding
        Take Avro and JSON whatever is declared: for history, which no producer sends.
    """

    def __init__(self, pipeline: Pipeline, writers: Writers | None = None, *, any_encoding: bool = False) -> None:
        super().__init__()
        records = Records(pipeline)
        name = pipeline.name
        self._writers = writers or NoWriters()
        self._any_encoding = any_encoding
        self.dlq = topics.DLQ.name(name)
        self._ways = {
            topics.EVENTS.name(name): self._way(
                topics.EVENTS.name(name),
                pipeline.events,
                records.event,
                pipeline.event_checks,
                topics.EVENTS_VALID.name(name),
            ),
            topics.LABELS.name(name): self._way(
                topics.LABELS.name(name),
                pipeline.labels,
                records.label,
                pipeline.label_checks,
                topics.LABELS_VALID.name(name),
            ),
        }
        self._label_value = pipeline.label_value()
        self._label = pipeline.kind.label
        self._labels = topics.LABELS.name(name)

    def _way(
        self, topic: str, stream: Stream, codec: Codec, rules: Sequence[Rule], to: str
    ) -> tuple[Any, Any, str, str]:
        others, find = accepted(stream.others, codec), partial(self._writers.find, topic)
        encoding = "" if self._any_encoding else stream.encoding
        decoder = Decoder(codec, others, find, encoding, self.counts)
        return decoder.decode, judge(stream, rules), stream.key or stream.id, to

    def process(self, records: Sequence[Record], emit: Emit) -> bool:
        ways, labels = self._ways, self._labels
        for record in records:
            topic = record.topic()
            decode, check, key, to = ways[topic]
            try:
                decoded, data = decode(record.value(), record.headers)
                check(decoded)
                if topic == labels:
                    self._check_label(decoded)
            except Reject as reject:
                dead_letter(record, reject, emit, self.dlq, "validator")
                self.counts["dead_letters", reject.reason] += 1
            else:
                emit(to, data, str(decoded[key]).encode(), record.timestamp()[1])
        return True

    def _check_label(self, record: Mapping[str, Any]) -> None:
        try:
            self._label(self._label_value(record))
        except Exception as error:  # the declaration's own function may raise anything
            raise Reject("bad_label", f"no label: {error}", rule="label") from error


def build(pipeline: Pipeline, writers: Writers | None = None) -> Service:
    """Wire the validator to its topics."""
    return Service(
        "validator",
        f"{pipeline.name}.validator",
        [t.name(pipeline.name) for t in topics.reads("validator")],
        Validator(pipeline, writers),
    )
