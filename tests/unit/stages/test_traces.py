"""The trace of an event goes on with everything that comes of it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import small

from tidemill import Pipeline, View, aggregates
from tidemill.errors import Reject
from tidemill.offline.grow import Copy
from tidemill.stages.featurizer import service as featurizer
from tidemill.stages.joiner.service import Joiner
from tidemill.stages.scorer import service as scorer
from tidemill.stages.validator import service as validator
from tidemill.stream.api import Position, TopicPartition, discard
from tidemill.stream.chain import Chain
from tidemill.stream.group import Group
from tidemill.stream.memory import MemoryBroker, MemoryRecord
from tidemill.stream.origin import ORIGIN
from tidemill.testing import Pipeline as InMemory
from tidemill.wire import topics
from tidemill.wire.dead_letters import producer_headers, send_dead_letter
from tidemill.wire.services import chain

NOW = 1_700_000_000_000
IDS = b"4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7"
TRACE = [("traceparent", b"00-" + IDS + b"-01"), ("tracestate", b"congo=t61rcWkgMzE")]
LABELS_TRACE = [("traceparent", b"00-" + IDS[::-1].replace(b"-", b"")[:32] + b"-00f067aa0ba902b7-01")]
DEST = View("dest", every="1m", aggregates=[aggregates.count("5m")])
LATE = View("dest", source="examples", every="1m", aggregates=[aggregates.mean("label", "5m")], name="late")
COMING_OF_IT = (
    topics.EVENTS_VALID, topics.UPDATES, topics.FEATURES, topics.PREDICTIONS, topics.PREDICTION_LOG, topics.EXAMPLES,
)  # fmt: skip


def pipeline(**changes: object) -> Pipeline:
    return small.make(**{"views": [small.VIEW, DEST, LATE], **changes})


def trace(record: MemoryRecord) -> list:
    return [header for header in record.headers() or () if header[0].startswith("trace")]


class Sent:
    """A pipeline in memory, and what its topics have."""

    def __init__(self) -> None:
        self.memory = InMemory(pipeline())

    def send(self, topic: topics.Topic, record: Mapping[str, object], headers: list | None) -> Sent:
        self.memory.broker.append(topic.name("small"), small.as_json(record), headers=headers)
        self.memory._run()
        return self

    def of(self, topic: topics.Topic) -> list[MemoryRecord]:
        return [r for r in self.memory.broker.records(topic.name("small")) if b"begins" not in (r.value() or b"")]


def test_every_record_that_comes_of_an_event_has_its_trace() -> None:
    sent = Sent().send(topics.EVENTS, small.event("a", NOW), [("mine", b"1"), *TRACE])
    sent.send(topics.LABELS, small.label("a", NOW + 1), None)
    assert {topic: [trace(record) for record in sent.of(topic)] for topic in COMING_OF_IT} == {
        topic: [TRACE] * (2 if topic is topics.UPDATES else 1) for topic in COMING_OF_IT
    }
    assert [trace(record) for record in sent.of(topics.LABELS_VALID)] == [[]]


@pytest.mark.parametrize("headers", [None, [("mine", b"1")], [("traceparent", b"00-0-0-0"), ("tracestate", b"a=1")]])
def test_without_a_trace_or_with_a_malformed_one_nothing_has_one(headers: list | None) -> None:
    sent = (
        Sent()
        .send(topics.EVENTS, small.event("a", NOW), headers)
        .send(topics.LABELS, small.label("a", NOW + 1), headers)
    )
    for topic in (*COMING_OF_IT, topics.LABELS_VALID):
        assert sent.of(topic)
        assert not any(trace(record) for record in sent.of(topic)), topic.suffix


def test_an_example_has_the_trace_of_its_event_else_that_of_its_label() -> None:
    sent = Sent().send(topics.EVENTS, small.event("a", NOW), TRACE).send(topics.EVENTS, small.event("b", NOW), None)
    sent.send(topics.LABELS, small.label("a", NOW + 1), LABELS_TRACE).send(
        topics.LABELS, small.label("b", NOW + 1), LABELS_TRACE
    )
    assert [trace(record) for record in sent.of(topics.LABELS_VALID)] == [LABELS_TRACE] * 2
    assert {record.key(): trace(record) for record in sent.of(topics.EXAMPLES)} == {b"a": TRACE, b"b": LABELS_TRACE}


@pytest.mark.slow
def test_what_expires_and_what_is_refused_have_it_as_well() -> None:
    sent = Sent().send(topics.EVENTS, small.event("a", NOW), TRACE)
    for minutes in range(0, 300, 4):  # the labels' clock goes on
        sent.send(topics.LABELS, small.label(f"n{minutes}", NOW + minutes * small.MINUTE), None)
    assert [trace(record) for record in sent.of(topics.EXPIRED)] == [TRACE]
    sent.send(topics.EVENTS, small.event("b", NOW, sched_hour=77), [("mine", b"1"), *TRACE])
    refused = [record for record in sent.of(topics.DLQ) if dict(record.headers())["tidemill.reason"] == b"out_of_range"]
    assert [producer_headers(record) for record in refused] == [[("mine", b"1"), *TRACE]], "as it came"


@pytest.mark.parametrize("stage", ["validator", "featurizer"])
def test_a_letter_that_is_cut_keeps_its_trace_of_all_its_headers(stage: str) -> None:
    out = small.Emitted()
    origin = [(ORIGIN, b"%d" % NOW)] if stage != "validator" else []
    record = MemoryRecord("small.events", b"v" * 5000, b"k", NOW, [*origin, ("mine", b"x" * 500), *TRACE])
    send_dead_letter(record, Reject("too_large", "it is"), out, "small.dlq", stage, 2_000)
    (letter,) = out.records
    assert len(letter.value()) < 2_000
    assert producer_headers(letter) == TRACE


def test_a_joiner_that_starts_again_knows_the_traces_of_what_waits() -> None:
    sent = Sent().send(topics.EVENTS, small.event("a", NOW), TRACE)
    (logged,) = sent.of(topics.PREDICTION_LOG)
    again, out = Joiner(pipeline()), small.Emitted()
    for topic in (topics.PREDICTION_LOG, topics.LABELS_VALID):
        again.assign(TopicPartition(topic.name("small"), logged.partition()), Position(0))
    again.process([logged], discard)
    label = again.records.label.encode(small.label("a", NOW + 1))
    again.process([MemoryRecord("small.labels.valid", label, b"a", NOW, None, logged.partition())], out)
    assert [trace(record) for record in out.of("small.examples")] == [TRACE]


def test_in_a_chain_it_goes_on_through_what_is_not_written() -> None:
    declared = pipeline(views=[small.VIEW])
    names = ("validator", "featurizer", "scorer")
    built = [validator.build(declared), featurizer.build(declared, {}), scorer.build(declared, tuple)]
    one = chain(built, names, "small")
    broker, out = MemoryBroker({t.name("small"): t.partitions or 2 for t in topics.TOPICS}), small.Emitted()
    groups = [Group(service, broker, "i") for service in (one, *one.chained)]
    steps = Chain(groups, broker)
    raw = [TopicPartition(topic, number) for topic in one.topics for number in range(2)]
    for partition in raw:
        one.processor.assign(partition, Position(0))
    for group, plan in steps.take_over(raw, lambda: None):
        for partition, offset in plan.read_from.items():
            group.processor.assign(partition, Position(offset))
    steps.process([MemoryRecord("small.events", small.as_json(small.event("a", NOW)), b"k", NOW, TRACE)], out)
    assert [trace(record) for record in out.of("small.predictions")] == [TRACE]
    assert not out.of("small.features")


def test_growing_a_pipeline_copies_it() -> None:
    copy, out = Copy(small.make(), small.make(name="larger", partitions=4), lambda _: None), small.Emitted()
    copy.process([MemoryRecord("small.events.valid", b"v", b"k", NOW, [(ORIGIN, b"1"), *TRACE])], out)
    assert [trace(record) for record in out.of("larger.events")] == [TRACE]
