"""Records that no prediction waits for are held back a little; none is lost, doubled, committed early or late for ever."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tidemill.errors import Retry
from tidemill.stream.api import Processor, TopicPartition
from tidemill.stream.group import Service
from tidemill.stream.loop import Loop
from tidemill.stream.memory import MemoryBroker
from tidemill.stream.unhurried import Unhurried

EVENTS, LABELS = TopicPartition("events", 0), TopicPartition("labels", 0)


def records(broker: MemoryBroker, topic: str, count: int) -> list:
    begin = broker.offset_range(TopicPartition(topic, 0))[1]
    for _ in range(count):
        broker.append(topic, b"x")
    return [record for batch in broker.read({TopicPartition(topic, 0): (begin, begin + count)}) for record in batch]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.floats(0, 0.2)), max_size=20), st.integers(1, 20))
def test_each_comes_once_and_in_order_and_none_waits_for_longer_than_it_may(turns, most: int) -> None:
    now, broker = 0.0, MemoryBroker({"events": 1, "labels": 1})
    unhurried = Unhurried(["labels"], 0.1, most, lambda: now)
    came: dict[str, list[int]] = {"events": [], "labels": []}
    arrived: list[float] = []
    for events, labels, passed in turns:
        now += passed
        sent = records(broker, "events", events)
        arrived += [now] * labels
        for record in unhurried.take([*sent, *records(broker, "labels", labels)]):
            came[record.topic()].append(record.offset())
        assert came["events"] == list(range(broker.offset_range(EVENTS)[1])), "these come at once"
        assert came["labels"] == list(range(len(came["labels"])))
        assert len(came["labels"]) + len(unhurried.held) == len(arrived)
        assert len(unhurried.held) < most
        assert all(now - at < (0.1 if events else 0.2) for at in arrived[len(came["labels"]) :])


def test_where_all_topics_are_hurried_a_batch_stays_as_it_is() -> None:
    batch = records(MemoryBroker({"events": 1}), "events", 3)
    assert Unhurried((), 0.1, 10, lambda: 0.0).take(batch) is batch


class Noting(Processor):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int]] = []
        self.fails = False

    def process(self, records, emit) -> bool:
        if records and self.fails:
            self.fails = False
            raise Retry("once")
        for record in records:
            self.seen.append((record.topic(), record.offset()))
            emit("out", b"x")
        return True


class World:
    """A loop that holds labels back for a second, turned by hand, with a clock that goes on when it is told."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.now, self.broker, self.step = 100.0, broker, Noting()
        service = Service("test", "group", ["events", "labels"], self.step, unhurried=["labels"])
        self.loop = Loop(
            service, broker, max_delay=0.0, unhurried=1.0, max_batch=10, clock=lambda: self.now, sleep=lambda _: None
        )
        self.producer = broker.producer("test")
        self.consumer = broker.consumer("group", service.topics, self.loop.instance)
        self.turn()

    def turn(self, passed: float = 0.01) -> None:
        self.now += passed
        self.loop.run_once(self.consumer, self.producer)

    def committed(self) -> list[int]:
        positions = self.consumer.committed([EVENTS, LABELS])
        return [position.offset if position else 0 for position in (positions[EVENTS], positions[LABELS])]


def test_what_is_held_back_is_not_committed_and_another_process_begins_there() -> None:
    broker = MemoryBroker({"events": 1, "labels": 1, "out": 1})
    world = World(broker)
    for topic in ("labels", "events", "labels"):
        broker.append(topic, b"x")
    world.turn()
    assert world.step.seen == [("events", 0)]
    assert world.committed() == [1, 0]
    world.loop._finish(world.consumer, world.producer)
    world.consumer.close()
    after = World(broker)
    after.turn()
    assert after.step.seen == []
    after.turn(2.1)
    assert after.step.seen == [("labels", 0), ("labels", 1)]
    assert after.committed() == [1, 2]


def test_labels_alone_are_handled_when_the_first_has_waited() -> None:
    broker = MemoryBroker({"events": 1, "labels": 1, "out": 1})
    world = World(broker)
    for _ in range(4):
        broker.append("labels", b"x")
        world.turn(0.4)
        assert world.step.seen == []
    world.turn(1.0)
    assert world.step.seen == [("labels", offset) for offset in range(4)]
    assert world.committed() == [0, 4]


def test_so_many_are_handled_at_once_and_a_batch_is_no_larger_than_it_may_be() -> None:
    broker = MemoryBroker({"events": 1, "labels": 1, "out": 1})
    world = World(broker)
    for _ in range(25):
        broker.append("labels", b"x")
        broker.append("events", b"x")
    for _ in range(40):
        world.turn(0.1)
    for topic in ("labels", "events"):
        assert [offset for of, offset in world.step.seen if of == topic] == list(range(25))
    assert world.committed() == [25, 25]


def test_after_going_back_what_was_held_is_read_again_and_handled_once() -> None:
    broker = MemoryBroker({"events": 1, "labels": 1, "out": 1})
    world = World(broker)
    broker.append("labels", b"x")
    world.turn()
    broker.append("events", b"x")
    world.step.fails = True
    for passed in (0.1, 0.1, 0.1, 2.1, 2.1):
        world.turn(passed)
    assert sorted(world.step.seen) == [("events", 0), ("labels", 0)]
    assert world.committed() == [1, 1]
