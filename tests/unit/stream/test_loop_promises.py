"""What the loop and its parts promise, each with a step that would show it: see tests/faults/mutations.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import pytest
import small
from test_view_restore import Feed, stream

from tidemill.errors import Aborted, Fenced
from tidemill.stream.api import Emit, Position, Processor, Record, Start, TopicPartition
from tidemill.stream.group import Service
from tidemill.stream.loop import Loop
from tidemill.stream.memory import MemoryBroker, MemoryRecord
from tidemill.stream.order import TimeOrder

PARTITIONS = 4


class Summing(Processor):
    """Emits each partition's running sum, and says only now and then that it may be committed."""

    def __init__(self, commit_every: int = 1) -> None:
        super().__init__()
        self.sums: dict[int, int] = {}
        self.next: dict[TopicPartition, int] = {}
        self.commit_every, self.since = commit_every, 0

    def assign(self, slot: TopicPartition, committed: Position) -> Start:
        self.sums.setdefault(slot.partition, 0)
        return Start(0, committed.offset)

    def revoke(self, slots: Iterable[TopicPartition]) -> None:
        for slot in slots:
            self.sums.pop(slot.partition, None)
            self.next.pop(slot, None)

    def process(self, records: Sequence[Record], emit: Emit) -> bool:
        for record in records:
            self.sums[record.partition()] += int(record.value() or b"")
            self.next[TopicPartition(record.topic(), record.partition())] = record.offset() + 1
            emit("out", b"%d %d" % (record.partition(), self.sums[record.partition()]), None, 1, None, 0)
        self.since += len(records)
        return self.since >= self.commit_every or not records

    def committed(self) -> None:
        self.since = 0


class Member:
    """A loop over a step, turned by hand."""

    def __init__(self, broker: MemoryBroker, step: Processor, instance: str = "0", max_batch: int = 3) -> None:
        self.step = step
        self.loop = Loop(
            Service("test", "group", ["in"], step), broker, instance=instance, max_delay=0.0, max_batch=max_batch,
            sleep=lambda _: None,
        )  # fmt: skip
        self.producer = broker.producer(self.loop.instance)
        self.consumer = broker.consumer("group", ["in"], self.loop.instance)

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            self.loop.run_once(self.consumer, self.producer)

    def leave(self) -> None:
        self.producer.close()
        self.consumer.close()


def filled(many: int) -> tuple[MemoryBroker, Counter[bytes]]:
    """Return a broker with `many` records in each partition, and what must come out: each running sum, once."""
    broker, expected = MemoryBroker({"in": PARTITIONS, "out": 1}), Counter()
    for partition in range(PARTITIONS):
        total = 0
        for number in range(many):
            broker.append("in", b"%d" % (number + 1), None, 1 + number, None, partition)
            total += number + 1
            expected[b"%d %d" % (partition, total)] += 1
    return broker, expected


def emitted(broker: MemoryBroker) -> Counter[bytes]:
    return Counter(record.value() for record in broker.records("out"))


@pytest.mark.parametrize("turns", range(1, 8))
def test_a_rebalance_takes_back_what_was_not_committed(turns: int) -> None:
    broker, expected = filled(10)
    one = Member(broker, Summing(commit_every=8))
    one.turn(turns)
    two = Member(broker, Summing(commit_every=8), "1")
    for _ in range(turns):
        one.turn()
        two.turn()
    two.leave()
    one.turn(40)
    assert emitted(broker) == expected


def test_what_was_held_before_a_rebalance_is_not_believed_when_another_member_has_gone_on() -> None:
    broker, expected = filled(10)
    one = Member(broker, Summing())
    one.turn(4)
    two = Member(broker, Summing(), "1")
    one.consumer.close()  # it is away for a while; the other goes on with everything
    two.turn(4)
    one.consumer = broker.consumer("group", ["in"], one.loop.instance)
    one.producer = broker.producer(one.loop.instance)  # its first one was fenced, as none is without transactions
    two.leave()
    one.turn(40)
    assert emitted(broker) == expected


def test_what_a_member_that_is_in_the_group_no_more_has_left_open_is_ended_by_its_successor() -> None:
    broker, expected = filled(10)
    frozen = Member(broker, Summing())
    frozen.turn(3)
    frozen.producer.emit("out", b"never", None, 1, None, 0)
    broker.consumer("group", ["in"], "other-group-member").close()
    successor = Member(broker, Summing(), "1")
    frozen.consumer.close()  # as when its session has run out
    successor.turn(40)
    with pytest.raises(Fenced):
        frozen.producer.commit({}, frozen.consumer)
    assert emitted(broker) == expected


def test_a_member_that_is_still_in_the_group_is_left_alone_whatever_moves() -> None:
    broker, expected = filled(10)
    one = Member(broker, Summing())
    one.turn(3)
    two = Member(broker, Summing(), "1")
    for _ in range(10):
        one.turn()
        two.turn()
    one.producer.commit({}, one.consumer)
    two.producer.commit({}, two.consumer)
    assert emitted(broker) == expected


def test_a_step_hears_of_a_commit_when_kafka_has_it_and_not_before() -> None:
    broker, expected = filled(5)
    heard = 0

    class Listening(Summing):
        def committed(self) -> None:
            nonlocal heard
            heard += 1
            for slot, offset in self.next.items():
                at = broker.groups["group"].committed.get(slot)
                assert at is not None, "a view would stand for records that are not committed"
                assert at.offset == offset
            assert sum(emitted(broker).values()) == sum(self.next.values())

    member = Member(broker, Listening())
    commit, times = member.producer.commit, 0

    def sometimes(offsets, consumer) -> None:
        nonlocal times
        times += 1
        if times % 3 == 0:
            raise Aborted("the broker said so")
        commit(offsets, consumer)

    member.producer.commit = sometimes
    member.turn(40)
    assert emitted(broker) == expected
    assert heard > times - times // 3 > 4, "at every commit, and while nothing comes"


def record(slot: TopicPartition, offset: int, timestamp: int) -> MemoryRecord:
    return MemoryRecord(slot.topic, b"", None, timestamp, None, slot.partition, offset)


def test_positions_are_those_of_what_was_released() -> None:
    one, two = TopicPartition("t", 0), TopicPartition("t", 1)
    order = TimeOrder()
    order.clear({one: 5, two: 7})
    order.add([record(one, 5 + n, 10 * n) for n in range(4)])
    assert order.release({two}) == []
    assert order.positions == {one: 5, two: 7}
    order.add([record(two, 7, 15)])
    assert [r.offset() for r in order.release({two})] == [5, 6, 7]
    assert order.positions == {one: 7, two: 8}
    assert [r.offset() for r in order.release()] == [7, 8]
    assert order.positions == {one: 9, two: 8}
    order.add([record(one, 9, 50)])
    order.clear({one: 7, two: 8})
    assert order.release() == []
    assert order.positions == {one: 7, two: 8}


def test_a_clock_that_is_a_day_ahead_disturbs_the_order_of_its_own_batch_alone() -> None:
    one, two = TopicPartition("t", 0), TopicPartition("t", 1)
    order = TimeOrder()
    order.clear({one: 0, two: 0})
    order.add([record(one, 0, 86_400_000), record(one, 1, 5), record(two, 0, 6)])
    assert [(r.partition(), r.offset()) for r in order.release()] == [(1, 0), (0, 0), (0, 1)]
    order.add([record(one, 2, 20), record(two, 1, 10), record(two, 2, 30)])
    assert [(r.partition(), r.offset()) for r in order.release()] == [(1, 1), (0, 2), (1, 2)]


@pytest.mark.parametrize(
    "elsewhere",
    [record(TopicPartition("t", 0), 6, 0), record(TopicPartition("t", 0), 0, 0), record(TopicPartition("t", 1), 9, 0)],
)
def test_what_was_read_before_or_belongs_to_another_is_refused(elsewhere: MemoryRecord) -> None:
    one = TopicPartition("t", 0)
    order = TimeOrder()
    order.clear({one: 5})
    order.add([record(one, 5, 0), record(one, 6, 0), record(one, 9, 0)])
    assert len(order.release()) == 3
    with pytest.raises(Aborted, match="or later was expected"):
        order.add([elsewhere])
    order.clear({one: 10})
    order.add([record(one, 10, 0)])  # the loop has gone back: all is well again
    assert [r.offset() for r in order.release()] == [10]


@pytest.mark.parametrize("committed", [0, 10, 29])
def test_a_store_that_is_ahead_of_what_is_committed_is_not_believed(committed: int) -> None:
    events, pipeline = stream(60), small.make()
    whole = Feed(events)
    expected = whole.go(whole.start(pipeline, 0), 0, 60)
    feed = Feed(events)
    feed.go(feed.start(pipeline, 0), 0, 30)
    assert feed.store.offsets == {0: 30}
    assert feed.go(feed.start(pipeline, committed), committed, 60) == expected[committed:]
    assert feed.store.features == whole.store.features
