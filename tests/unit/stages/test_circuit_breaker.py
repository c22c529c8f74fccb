"""The fuse: too much refused stops the validator, with the reason, and loses nothing."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import small
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill import Fuse, Pipeline, metrics, rules
from tidemill.errors import DeclarationError, Stopped
from tidemill.runtime.run import topic_table
from tidemill.stages.validator import service as validator
from tidemill.stages.validator.circuit_breaker import CircuitBreaker
from tidemill.stream.api import TopicPartition
from tidemill.stream.loop import Loop
from tidemill.stream.memory import MemoryBroker
from tidemill.wire.dead_letters import text_headers
from tidemill.wire.records import Records

EVENTS, LETTERS, VALID = "small.events", "small.dlq", "small.events.valid"
POISON = b"\x01poison"


def make(run: int = 10, share: float = 0.0, of: int = 100) -> Pipeline:
    return small.make(fuse=Fuse(run, share, of), partitions=2)


def good(number: int) -> bytes:
    return Records(make()).event.encode(small.event(f"e{number}", 1000 + number))


def broker_with(*messages: tuple[int, bytes]) -> MemoryBroker:
    broker = MemoryBroker({name: partitions for _, name, partitions in topic_table(make())})
    for number, (partition, message) in enumerate(messages):
        broker.append(EVENTS, message, None, 1 + number, None, partition)
    return broker


def run(broker: MemoryBroker, pipeline: Pipeline, *, fuse: bool = True, batch: int = 7) -> Stopped | None:
    """Run a validator until it has nothing to do, or stops."""
    loop = Loop(validator.build(pipeline, fuse=fuse), broker, max_delay=0.0, max_batch=batch, sleep=lambda _: None)
    consumer = broker.consumer(loop.service.group, loop.service.topics, loop.instance)
    producer = broker.producer(loop.instance)
    quiet = 0
    try:
        while quiet < 5:
            quiet = 0 if loop.run_once(consumer, producer) else quiet + 1
        return None
    except Stopped as stopped:
        return stopped
    finally:
        producer.close()
        consumer.close()


def letters(broker: MemoryBroker) -> list[tuple[str, str]]:
    """Return where each dead letter came from."""
    found = [text_headers(record) for record in broker.records(LETTERS)]
    return [(each["__connect.errors.partition"], each["__connect.errors.offset"]) for each in found]


def test_poison_alone_stops_it_at_the_limit_with_the_reason() -> None:
    broker = broker_with(*[(n % 2, POISON) for n in range(50)])
    stopped = run(broker, make(run=10))
    assert stopped is not None
    for word in ("small.events", "10 in a row", "bad_magic 10", "0x01", "small.dlq", "TIDEMILL_FUSE"):
        assert word in str(stopped), word
    assert len(letters(broker)) == len(set(letters(broker))) == 10


def test_started_again_it_is_stopped_by_the_next_and_goes_on_when_one_passes() -> None:
    broker = broker_with(*[(0, POISON)] * 12, *[(0, good(n)) for n in range(5)], *[(0, POISON)] * 9, (0, good(9)))
    assert run(broker, make()) is not None
    assert len(letters(broker)) == 10
    assert run(broker, make()) is not None, "the count is kept beside the offset"
    assert len(letters(broker)) == 11
    assert run(broker, make()) is not None
    assert run(broker, make()) is None
    assert letters(broker) == [("0", str(n)) for n in (*range(12), *range(17, 26))]
    assert len(broker.records(VALID)) == 6


def test_without_the_fuse_everything_becomes_a_dead_letter() -> None:
    broker = broker_with(*[(n % 2, POISON) for n in range(50)])
    assert run(broker, make(), fuse=False) is None
    assert len(letters(broker)) == 50


def test_a_share_that_is_too_large_stops_it() -> None:
    mixed = [(0, POISON if n % 3 else good(n)) for n in range(90)]
    broker = broker_with(*mixed)
    stopped = run(broker, make(run=0, share=0.25, of=60))
    assert stopped is not None
    assert "of 24 records 16 were refused, more than 25% of 60" in str(stopped)
    assert run(broker_with(*mixed), make(run=0, share=0.7, of=60)) is None


def test_what_is_warned_of_is_told_once_whatever_stops_it() -> None:
    """In the topic of warnings, in the header, and in the metrics; by a loop that was stopped and started again."""
    pipeline = small.make(fuse=Fuse(4, 0.0), rules=[rules.between("distance", 1, 50, warn=True)])
    messages = [(0, POISON if n % 20 > 15 else good(n)) for n in range(60)]
    broker = broker_with(*messages)
    before = metric()
    assert run(broker, pipeline) is not None
    for _ in range(10):
        if run(broker, pipeline) is None:
            break
    warned = sum(message != POISON for _, message in messages)
    told = [Records(pipeline).warnings.decode(record.value()) for record in broker.records("small.warnings")]
    assert sum(of["records"] for batch in told for of in batch["rules"]) == warned
    assert {of["example"] for batch in told for of in batch["rules"]} <= {f"e{n}" for n in range(60)}
    assert all(
        dict(record.headers()[1:]) == {validator.WARNING: b"between:distance"} for record in broker.records(VALID)
    )
    assert len(broker.records(VALID)) == warned
    assert metric() - before == warned


def metric() -> float:
    return metrics.COUNTS["warnings"].labels("validator", "between:distance")._value.get()


def test_labels_and_events_have_a_fuse_each() -> None:
    broker = broker_with(*[(0, good(n)) for n in range(40)])
    for number in range(40):
        broker.append("small.labels", POISON, None, 1 + number, None, 0)
    stopped = run(broker, make())
    assert stopped is not None
    assert "small.labels" in str(stopped), "good events between them do not hide that all labels are bad"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_nothing_is_lost_or_doubled_by_stopping(seed: int) -> None:
    """Stopped in the middle of a batch of several partitions, started again and again, at last without the fuse."""
    chance = random.Random(seed)
    sent = [(chance.randrange(2), POISON if chance.random() < 0.7 else good(n)) for n in range(120)]
    broker, pipeline = broker_with(*sent), make(run=4, share=0.6, of=40)
    stops = 0
    for _ in range(chance.randrange(1, 6)):
        stops += run(broker, pipeline, batch=chance.choice((1, 5, 50))) is not None
    assert stops
    assert run(broker, pipeline, fuse=False, batch=chance.choice((1, 5, 50))) is None
    bad = sum(message == POISON for _, message in sent)
    assert len(letters(broker)) == len(set(letters(broker))) == bad
    ids = Counter(Records(pipeline).event.decode(record.value())["flight_id"] for record in broker.records(VALID))
    assert ids == Counter(f"e{n}" for n, (_, message) in enumerate(sent) if message != POISON)
    for partition in range(2):
        slot = TopicPartition(EVENTS, partition)
        assert broker.committed("small.validator", [slot])[slot].offset == broker.offset_range(slot)[1]


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.lists(st.booleans(), max_size=80), st.integers(0, 6), st.sampled_from([0.0, 0.3, 0.5]), st.integers(1, 20))
def test_it_counts_what_it_says(passed: list[bool], most: int, share: float, of: int) -> None:
    burning, run_of, block = CircuitBreaker(Fuse(most, share, of)), 0, []
    for ok in passed:
        if ok:
            burning.passed += 1
            run_of, block = 0, [*block, False]
            continue
        if len(block) >= of:
            block = []
        run_of, block = run_of + 1, [*block, True]
        expected = (most and run_of >= most) or (share and sum(block) > share * of)
        assert bool(burning.refused("x")) == bool(expected)
        if expected:
            return


@pytest.mark.parametrize(
    ("fuse", "says"),
    [
        (Fuse(run=-1), "fuse.run: -1"),
        (Fuse(of=0), "fuse.of: 0"),
        (Fuse(share=1.0), "fuse.share: 1.0"),
        (Fuse(share=True), "fuse.share"),
        ("off", "Fuse"),
    ],
)
def test_a_senseless_fuse_is_refused(fuse: Fuse, says: str) -> None:
    with pytest.raises(DeclarationError, match=says):
        small.make(fuse=fuse)
