"""One trace from the request over the prediction to the learned label: spans of every hop, kept where their batch is committed."""

from __future__ import annotations

import pytest
import small
from gateway_in_memory import Shop
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from river_in_memory import drive
from signing_keys import KEY
from tracing import Hop, of_sdk, paths

from tidemill import View, aggregates, rules
from tidemill.errors import Aborted, Reject
from tidemill.registry.manifests import Registry
from tidemill.registry.store import ArtifactStore
from tidemill.runtime.tracing import provider_of, traces_by
from tidemill.stages.learner import service as learner
from tidemill.stages.scorer.service import Scorer
from tidemill.stream import spans
from tidemill.stream.api import discard
from tidemill.stream.group import Service
from tidemill.stream.loop import Loop
from tidemill.stream.memory import MemoryBroker, MemoryRecord
from tidemill.stream.trace import Traces, trace_of
from tidemill.testing import Pipeline as InMemory
from tidemill.wire import topics

NOW = 1_700_000_000_000
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
OTHER = "ab" * 16
SAMPLED = [("traceparent", f"00-{TRACE}-{SPAN}-01".encode()), ("tracestate", b"shop=1")]
UNSAMPLED = [("traceparent", f"00-{TRACE}-{SPAN}-00".encode())]
DEST = View("dest", every="1m", aggregates=[aggregates.count("5m")])


class Recorded:
    """What services made spans of."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.of = traces_by(provider_of("tests", SimpleSpanProcessor(self.exporter)))

    def hops(self) -> list[Hop]:
        return of_sdk(self.exporter.get_finished_spans())

    def names(self) -> list[str]:
        return [hop.name for hop in self.hops()]


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


def traced(recorded: Recorded, **changes: object) -> InMemory:
    memory = InMemory(small.make(**changes))
    for name, processor in memory._river.processors.items():
        processor.traces = recorded.of(name)
    return memory


def learn(memory: InMemory, recorded: Recorded, folder) -> None:
    registry = Registry(memory.declaration, ArtifactStore(str(folder)), KEY)
    service = learner.build(
        memory.declaration, "linear", registry, memory.broker, every_examples=1, every_seconds=1e9, first_examples=1
    )
    service.processor.traces = recorded.of(service.name)
    drive(service, memory.broker)


@pytest.mark.slow
def test_one_trace_leads_from_the_request_to_the_prediction_and_the_learned_label(tmp_path, recorded: Recorded) -> None:
    memory = traced(recorded, views=[small.VIEW, DEST])
    with Shop(None, pipeline=memory) as shop:
        shop.gateway.traces = recorded.of("gateway")
        answer = shop.predict(small.event("a", NOW))
        shop.client.post("/v1/labels", json=small.label("a", NOW + 1), headers={"traceparent": f"00-{OTHER}-{SPAN}-01"})
    learn(memory, recorded, tmp_path)
    own = [hop for hop in recorded.hops() if hop.trace == answer["trace_id"]]
    request, valid = "POST /v1/predict", "validate small.events"
    known = paths(own)
    assert known.pop("materialize small.updates").startswith(f"{request} > {valid} > featurize small.events.valid > ")
    assert known == {
        request: request,
        valid: f"{request} > {valid}",
        "featurize small.events.valid": f"{request} > {valid} > featurize small.events.valid",
        "score small.features": f"{request} > {valid} > featurize small.events.valid > score small.features",
        "join small.labels.valid": f"{request} > {valid} > featurize small.events.valid > score small.features > "
        "join small.labels.valid",
        "learn small.examples": f"{request} > {valid} > featurize small.events.valid > score small.features > "
        "join small.labels.valid > learn small.examples",
    }
    assert all(hop.begin_ns <= hop.end_ns for hop in own)
    assert next(hop.links for hop in own if hop.name.startswith("join")) == (OTHER,), "the label has a trace of its own"
    assert {hop.name for hop in recorded.hops() if hop.trace == OTHER} == {"POST /v1/labels", "validate small.labels"}


@pytest.mark.slow
@pytest.mark.parametrize("headers", [None, UNSAMPLED, [("traceparent", b"00-0-0-1")]])
def test_no_span_is_made_where_no_sampled_trace_came(headers: list | None, recorded: Recorded) -> None:
    memory = traced(recorded)
    memory.broker.append("small.events", small.as_json(small.event("a", NOW)), headers=headers)
    memory.broker.append("small.labels", small.as_json(small.label("a", NOW + 1)), headers=headers)
    memory._run()
    (example,) = memory.broker.records("small.examples")
    assert trace_of(example) == (UNSAMPLED if headers == UNSAMPLED else None), "it goes on as it came"
    assert not recorded.hops()


def test_each_hop_is_the_parent_of_what_comes_of_it_and_the_state_goes_on(recorded: Recorded) -> None:
    memory = traced(recorded)
    memory.broker.append("small.events", small.as_json(small.event("a", NOW)), headers=[("mine", b"1"), *SAMPLED])
    memory._run()
    ids = {hop.name: hop.id for hop in recorded.hops()}
    for topic, name in (
        ("small.events.valid", "validate small.events"),
        ("small.prediction-log", "score small.features"),
    ):
        (record,) = memory.broker.records(topic)
        assert trace_of(record) == [("traceparent", f"00-{TRACE}-{ids[name]}-01".encode()), SAMPLED[1]]


def test_a_refused_record_has_one_span_that_says_why_and_shows_no_value(recorded: Recorded) -> None:
    memory = traced(recorded)
    memory.broker.append("small.events", small.as_json(small.event("a", NOW, sched_hour=77)), headers=SAMPLED)
    memory._run()
    (hop,) = recorded.hops()
    assert (hop.name, hop.error, hop.parent) == ("validate small.events", "out_of_range", SPAN)
    (letter,) = memory.broker.records("small.dlq")
    assert trace_of(letter) == SAMPLED, "as it came"


def test_what_is_refused_after_its_trace_went_on_has_one_span(recorded: Recorded) -> None:
    own, record = recorded.of("scorer"), MemoryRecord("t", b"v", None, NOW, SAMPLED)
    own.begin()
    assert own.of(record) != SAMPLED
    own.refused(record, Reject("too_large", "secret"))
    own.committed()
    assert [hop.error for hop in recorded.hops()] == ["too_large"]


def scored(recorded: Recorded, many: int) -> tuple[Loop, MemoryBroker, object, object]:
    declared = small.make()
    broker = MemoryBroker({topic.name("small"): topic.partitions or 2 for topic in topics.TOPICS})
    step = Scorer(declared)
    step.traces = recorded.of("scorer")
    for number in range(many):
        value = step.records.features.encode(small.features(declared, f"e{number}", NOW, distance=1.0))
        broker.append("small.features", value, b"k", headers=SAMPLED, partition=0)
    loop = Loop(Service("scorer", "g", ["small.features"], step), broker, max_delay=0.0, sleep=lambda _: None)
    consumer, producer = broker.consumer("g", ["small.features"], loop.instance), broker.producer(loop.instance)
    loop.run_once(consumer, producer)
    return loop, broker, consumer, producer


def test_what_was_not_committed_leaves_no_span(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, broker, consumer, producer = scored(recorded, 3)
    with monkeypatch.context() as fails:
        fails.setattr(producer, "commit", lambda *_: (_ for _ in ()).throw(Aborted("a broker has gone")))
        assert loop.run_once(consumer, producer) == 0
    assert not recorded.hops()
    for _ in range(3):
        loop.run_once(consumer, producer)
    predicted = {trace_of(record)[0][1][36:52].decode() for record in broker.records("small.predictions")}
    assert {hop.id for hop in recorded.hops()} == predicted
    assert len(predicted) == 3


def test_the_spans_that_wait_for_a_commit_are_bounded(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "MAX_OPEN_SPANS", 2)
    loop, broker, consumer, producer = scored(recorded, 5)
    loop.run_once(consumer, producer)
    assert len(recorded.hops()) == 2
    assert [trace_of(record) == SAMPLED for record in broker.records("small.predictions")] == [False] * 2 + [True] * 3


def test_a_rebuild_is_no_hop(recorded: Recorded) -> None:
    memory = traced(recorded, views=[small.VIEW, DEST], rules=[rules.unique("flight_id", within="1h")])
    memory.broker.append("small.events", small.as_json(small.event("a", NOW)), headers=SAMPLED)
    memory.broker.append("small.labels", small.as_json(small.label("a", NOW + 1)), headers=SAMPLED)
    memory._run()
    before = recorded.names()
    for name, processor in memory._river.processors.items():
        for topic in topics.consumes(name) if name != "scorer" else ():  # it has nothing to rebuild
            records = memory.broker.records(topic.name("small"))
            assert records
            processor.process(records, discard)
        processor.traces.committed()
    assert recorded.names() == before


@pytest.mark.slow
@pytest.mark.parametrize(("path", "code"), [("/v1/predictions/none", 404), ("/v1/predictions/a?timeout_ms=x", 422)])
def test_a_request_without_a_trace_begins_one_whatever_is_answered(recorded: Recorded, path: str, code: int) -> None:
    with Shop(small.make()) as shop:
        shop.gateway.traces = recorded.of("gateway")
        answer = shop.client.get(path)
    assert answer.status_code == code
    (hop,) = recorded.hops()
    assert (hop.name.partition("{")[0], hop.parent, hop.error) == ("GET /v1/predictions/", "", "")
    assert code == 422 or answer.headers["traceparent"].startswith(f"00-{hop.trace}-{hop.id}-0")
    assert recorded.exporter.get_finished_spans()[0].attributes["http.response.status_code"] == code


def test_where_tracing_is_off_a_step_has_what_makes_no_spans() -> None:
    assert type(Scorer(small.make()).traces) is Traces
