"""A record whose output Kafka refuses for ever becomes a dead letter of its stage; all others go on, once each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

import pytest
import small
from commits import FailingCommits
from hypothesis import example, given, settings
from hypothesis import strategies as st
from river_in_memory import River

from tidemill import View, aggregates
from tidemill.errors import BrokerError, Reject
from tidemill.runtime.run import topic_table
from tidemill.stages.featurizer import service as featurizer
from tidemill.stages.joiner import service as joiner
from tidemill.stages.scorer import service as scorer
from tidemill.stages.validator import service as validator
from tidemill.stream.api import Emit, Processor, Record
from tidemill.stream.group import Service
from tidemill.stream.loop import BACKOFF_SECONDS, Loop
from tidemill.stream.memory import MemoryBroker
from tidemill.stream.narrowing import LETTER_BYTES, PARTS
from tidemill.stream.topic import Topic
from tidemill.wire import topics
from tidemill.wire.dead_letters import read_dead_letter

MANY = 12
PIPELINE = small.make(
    views=[
        View("origin", every="1h", aggregates=[aggregates.count("1h")]),
        View("carrier", every="1h", aggregates=[aggregates.mean("distance", "1h")]),
    ]
)
STAGES: dict[str, tuple[Callable[[], Service], tuple[Topic, ...], tuple[Topic, ...]]] = {
    "validator": (
        lambda: validator.build(PIPELINE),
        (topics.EVENTS, topics.LABELS),
        (topics.EVENTS_VALID, topics.LABELS_VALID),
    ),
    "featurizer": (
        lambda: featurizer.build(PIPELINE, {}),
        (topics.EVENTS_VALID,),
        (topics.FEATURES, topics.UPDATES),
    ),
    "scorer": (
        lambda: scorer.build(PIPELINE, tuple),
        (topics.FEATURES,),
        (topics.PREDICTION_LOG, topics.PREDICTIONS),
    ),
    "joiner": (lambda: joiner.build(PIPELINE), (topics.PREDICTION_LOG, topics.LABELS_VALID), (topics.EXAMPLES,)),
}
TARGETS = [(stage, target) for stage, (_, _, outputs) in STAGES.items() for target in outputs]
DLQ = topics.DLQ.name(PIPELINE.name)


def id_of(number: int) -> bytes:
    return b"e%02d" % number


@cache
def undisturbed() -> River:
    river = River(PIPELINE)
    for number in range(MANY):
        river.event(small.event(id_of(number).decode(), number * 60_000, "JFK" if number % 3 else "EWR"))
        river.label(small.label(id_of(number).decode(), number * 60_000 + 1000))
    river.run()
    assert not river.letters()
    return river


def before(stage: str, *, exactly_once: bool = True) -> MemoryBroker:
    """Return a broker that holds what a stage reads."""
    broker = MemoryBroker({name: count for _, name, count in topic_table(PIPELINE)}, exactly_once=exactly_once)
    for topic in STAGES[stage][1]:
        for one in undisturbed().of(topic):
            broker.append(one.topic(), one.value(), one.key(), one.timestamp()[1], one.headers(), one.partition())
    return broker


def drive(service: Service, broker: MemoryBroker, batch: int = 5) -> None:
    """Run a service until nothing comes any more; to go back, again and again, is no such time."""
    loop = Loop(service, broker, max_delay=0.0, max_batch=batch, sleep=lambda _: None)
    producer, consumer = broker.producer(loop.instance), broker.consumer(service.group, service.topics, loop.instance)
    quiet = 0
    while quiet < 30:
        quiet = 0 if loop.run_once(consumer, producer) else quiet + 1
    consumer.close()


def content(records: Sequence[Record], without: Sequence[int] = ()) -> Counter[tuple[bytes | None, bytes | None]]:
    return Counter(
        (record.key(), record.value())
        for record in records
        if not any(id_of(number) in (record.value() or b"") for number in without)
    )


@pytest.mark.slow
@pytest.mark.parametrize("way", ["exactly_once", "exactly_once, known", "exactly_once, learns", "at_least_once"])
@pytest.mark.parametrize(("stage", "target"), TARGETS, ids=lambda one: one if isinstance(one, str) else one.suffix)
@settings(max_examples=15, deadline=None)
@given(refused=st.sets(st.integers(0, MANY - 1)), batch=st.integers(1, 2 * MANY + 1))
@example(refused={7, 8, 9}, batch=8)  # two that make an example come in another order than before
def test_what_is_refused_is_a_dead_letter_and_all_else_is_as_if_nothing_had_been(
    stage: str, target: Topic, way: str, refused: set[int], batch: int
) -> None:
    build, _, outputs = STAGES[stage]
    exactly_once = way != "at_least_once"
    broker = before(stage, exactly_once=exactly_once)
    broker.refuses_early, broker.learns = "known" in way, "learns" in way
    name = target.name(PIPELINE.name)
    broker.refuses = lambda topic, value, _: topic == name and any(id_of(n) in value for n in refused)
    drive(build(), broker, batch=batch)
    for output in outputs:
        # In a transaction a record's outputs are all written or none.
        lacks = sorted(refused) if output is target or (exactly_once and refused_at(stage, output)) else ()
        actual = content(broker.records(output.name(PIPELINE.name)))
        assert actual == content(undisturbed().of(output), lacks), output.suffix
    letters = [read_dead_letter(one) for one in broker.records(DLQ)]
    assert {(letter.stage, letter.reason) for letter in letters} <= {(stage, "not_written")}
    assert len({(letter.topic, letter.partition, letter.offset) for letter in letters}) == len(letters)
    letter_ids = [n for one in broker.records(DLQ) for n in range(MANY) if id_of(n) in (one.value() or b"")]
    assert sorted(set(letter_ids)) == sorted(refused)
    assert len(letter_ids) == len(refused)  # an example is made of two records: the one that came last is the letter


def refused_at(stage: str, output: Topic) -> bool:
    """Whether this output is made of the same record as the other outputs of its stage."""
    return stage != "validator" and output is not topics.EXAMPLES


@pytest.mark.slow
@pytest.mark.parametrize("learns", [True, False], ids=["of a size that is known then", "for another reason"])
def test_one_of_five_thousand_is_found_in_few_turns_and_with_few_answers_of_the_broker(
    learns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What takes the time is to give up a transaction, a second each, and to wait for the broker, some ms each."""
    many, bad = 5_000, {1_234, 3_456}
    broker, service = MemoryBroker({"in": 1, "out": 1, "letters": 1, "progress": 1}), Letters()
    for number in range(many):
        broker.append("in", b"%d" % number)
    broker.refuses = lambda topic, value, _: topic == "out" and int(value) in bad
    broker.learns = learns
    loop = Loop(Service("test", "group", ["in"], service), broker, max_delay=0.0, max_batch=many, sleep=lambda _: None)
    producer, consumer = broker.producer(loop.instance), broker.consumer("group", ["in"], loop.instance)
    waits, aborts, turns, wait, abort = 0, 0, 0, producer.wait, producer.abort

    def counted_wait() -> None:
        nonlocal waits
        waits += 1
        wait()

    def counted_abort() -> None:
        nonlocal aborts
        aborts += 1
        abort()

    monkeypatch.setattr(producer, "wait", counted_wait)
    monkeypatch.setattr(producer, "abort", counted_abort)
    while len(broker.records("out")) < many - len(bad):
        loop.run_once(consumer, producer)
        turns += 1
        assert turns < 100, "what is good is held back"
    assert sorted(int(one.value() or b"") for one in broker.records("letters")) == sorted(bad)
    if learns:
        assert (aborts, waits) <= (2, 10)  # all of one size are found before it goes back a second time
    else:
        assert aborts <= 6  # PARTS of the batch, then one of a part, then its letter: for each of the two
        assert waits <= 4 * PARTS


@pytest.mark.parametrize("exactly_once", [True, False], ids=["exactly_once", "at_least_once"])
def test_the_next_process_has_the_refused_record_in_its_state_as_this_one_has(exactly_once: bool) -> None:
    broker = before("featurizer", exactly_once=exactly_once)
    features = topics.FEATURES.name(PIPELINE.name)
    broker.refuses = lambda topic, value, _: topic == features and id_of(3) in value
    service = featurizer.build(PIPELINE, {})
    loop = Loop(service, broker, max_delay=0.0, max_batch=5, sleep=lambda _: None)
    producer, consumer = broker.producer(loop.instance), broker.consumer(service.group, service.topics, loop.instance)
    for _ in range(20):
        loop.run_once(consumer, producer)
    consumer.close()
    assert len(broker.records(DLQ)) == 1
    later = small.event("later", MANY * 60_000)
    served = []
    for again in (broker, before("featurizer")):  # one goes on where the first left off, the other begins
        again.append(topics.EVENTS_VALID.name(PIPELINE.name), undisturbed().records.event.encode(later), b"JFK", 99)
        drive(featurizer.build(PIPELINE, {}), again)
        last = [one for one in again.records(features) if b"later" in (one.value() or b"")]
        served.append([undisturbed().records.features.decode(one.value() or b"")["vector"] for one in last])
    assert served[0] == served[1] != []


def test_a_dead_letter_that_is_refused_is_cut_until_its_topic_takes_it() -> None:
    broker = before("scorer")
    log = topics.PREDICTION_LOG.name(PIPELINE.name)
    largest = 8000

    def refuses(topic: str, value: bytes, _: bytes | None) -> bool:
        return (topic == log and id_of(3) in value) or (topic == DLQ and len(value) > largest)

    features = topics.FEATURES.name(PIPELINE.name)
    broker.append(features, b"\0" + id_of(3) * 3000, b"k", 1)
    broker.refuses = refuses
    drive(scorer.build(PIPELINE, tuple), broker)
    letters = [read_dead_letter(one) for one in broker.records(DLQ)]
    sizes = {letter.cut_from is not None: letter.size for letter in letters}
    assert len(letters) == 2
    assert sizes[True] <= min(LETTER_BYTES)
    assert content(broker.records(log)) == content(undisturbed().of(topics.PREDICTION_LOG), [3])


@pytest.mark.slow
@pytest.mark.parametrize("exactly_once", [True, False], ids=["exactly_once", "at_least_once"])
def test_while_no_dead_letter_is_taken_it_waits_ever_longer_and_then_nothing_is_missing(exactly_once: bool) -> None:
    broker = before("scorer", exactly_once=exactly_once)
    log = topics.PREDICTION_LOG.name(PIPELINE.name)
    broker.refuses = lambda topic, value, _: topic == DLQ or (topic == log and id_of(3) in value)
    pauses: list[float] = []
    service = scorer.build(PIPELINE, tuple)
    loop = Loop(service, broker, max_delay=0.0, max_batch=5, sleep=pauses.append)
    producer, consumer = broker.producer(loop.instance), broker.consumer(service.group, service.topics, loop.instance)
    for _ in range(200):
        loop.run_once(consumer, producer)
    assert pauses[: len(BACKOFF_SECONDS)] == list(BACKOFF_SECONDS)
    assert set(pauses[len(BACKOFF_SECONDS) :]) == {BACKOFF_SECONDS[-1]}
    broker.refuses = lambda topic, value, _: topic == log and id_of(3) in value
    for _ in range(60):
        loop.run_once(consumer, producer)
    assert len(broker.records(DLQ)) == 1
    assert set(content(broker.records(log))) == set(content(undisturbed().of(topics.PREDICTION_LOG), [3]))


class Letters(Processor):
    """Passes records on; what can't be is a dead letter."""

    dlq = "letters"

    def process(self, records: Sequence[Record], emit: Emit) -> bool:
        for self.in_hand in records:
            emit("out", self.in_hand.value() or b"")
        return True

    def refuse(self, record: Record, reject: Reject, emit: Emit, max_bytes: int = 0) -> None:
        emit(self.dlq, record.value() or b"")


class Failing(Processor):
    """Emits nothing, and is told by Kafka that it can't commit."""

    def process(self, records: Sequence[Record], emit: Emit) -> bool:
        for _ in records:
            emit("out", b"x")
        return True


def test_what_can_make_no_dead_letters_ends_and_says_why() -> None:
    broker = MemoryBroker({"in": 1, "out": 1})
    broker.append("in", b"x")
    broker.refuses = lambda topic, _value, _key: topic == "out"
    with pytest.raises(BrokerError, match=r"refused; .* raise max\.message\.bytes"):
        drive(Service("test", "group", ["in"], Failing()), broker)


def test_pauses_grow_up_to_a_cap_and_begin_again_after_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = MemoryBroker({"in": 1, "out": 1})
    broker.append("in", b"x")
    pauses: list[float] = []
    loop = Loop(Service("test", "group", ["in"], Failing()), broker, max_delay=0.0, sleep=pauses.append)
    producer, consumer = broker.producer(loop.instance), broker.consumer("group", ["in"], loop.instance)
    commits = FailingCommits(monkeypatch, producer, 9)
    for _ in range(40):
        loop.run_once(consumer, producer)
    assert pauses == [*BACKOFF_SECONDS, *[BACKOFF_SECONDS[-1]] * (9 - len(BACKOFF_SECONDS))]
    commits.left = 1
    broker.append("in", b"y")
    for _ in range(4):
        loop.run_once(consumer, producer)
    assert pauses[9:] == [BACKOFF_SECONDS[0]]


def test_turns_between_two_commits_do_not_make_the_pauses_begin_again(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = MemoryBroker({"in": 1, "out": 1}, exactly_once=False)
    broker.append("in", b"x")
    pauses: list[float] = []
    now = 0.0
    loop = Loop(
        Service("test", "group", ["in"], Failing()), broker, max_delay=0.0, commit_every=0.2, clock=lambda: now,
        sleep=pauses.append,
    )  # fmt: skip
    producer, consumer = broker.producer(loop.instance), broker.consumer("group", ["in"], loop.instance)
    commits = FailingCommits(monkeypatch, producer, 0)
    for turn in range(60):
        if turn == 10:  # the first commit is made at once, before anything is read
            broker.append("in", b"y")
            commits.left = 4
        loop.run_once(consumer, producer)
        now += 0.11
    assert pauses == list(BACKOFF_SECONDS[:4])
