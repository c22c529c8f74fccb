"""What exactly once and at least once rest on, at the ports: see tests/faults/mutations.py for what each of these catches."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
import test_broker
from confluent_kafka import Consumer, KafkaError
from confluent_kafka import TopicPartition as KafkaTopicPartition
from running import until
from test_broker import TOPIC, names

from tidemill.errors import Aborted, Fenced, StoreError
from tidemill.features.ports import Change
from tidemill.features.redis import RedisView, connect
from tidemill.stream.api import Position, TopicPartition
from tidemill.stream.commit_metadata import CommitMetadata
from tidemill.stream.kafka import producer as kafka_producer
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.stream.kafka.consumer import CALL_SECONDS, committable
from tidemill.stream.memory import MemoryBroker


class Bench(test_broker.Bench):
    """The same bench; where reading is aborted, or the assignment changes, it goes on from where it was."""

    def poll(self, consumer, limit: int = 100, timeout: float = 0.1) -> list:
        found: list = []
        aborted = False
        try:
            found = consumer.poll(limit, timeout)
        except Aborted:
            aborted = True
        if any(consumer.changes()) or aborted:
            consumer.start(consumer.positions([TopicPartition(self.source, 0), TopicPartition(self.source, 1)]))
        return found

    def take(self, consumer, count: int, patience: float = 30.0) -> list[bytes]:
        found: list[bytes] = []
        deadline = time.monotonic() + patience
        while len(found) < count and time.monotonic() < deadline:
            found += [record.value() for record in self.poll(consumer)]
        return found


def made(broker: KafkaBroker) -> Bench:
    source, sink = (f"promise{next(names)}.{side}" for side in ("in", "out"))
    broker.create([(TOPIC, source, 2), (TOPIC, sink, 2)])
    return Bench(broker, source, sink)


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.kafka)])
def bench(request: pytest.FixtureRequest) -> Bench:
    if request.param == "kafka":
        return made(KafkaBroker(request.getfixturevalue("kafka").servers))
    return Bench(MemoryBroker({"in": 2, "out": 2}), "in", "out")


def reached(bench: Bench, topic: str, count: int) -> None:
    """Wait until `count` records lie in partition 0 of the topic, committed or not."""
    if isinstance(bench.broker, MemoryBroker):
        return
    probe = Consumer(
        {"bootstrap.servers": bench.broker.servers, "group.id": "probe", "isolation.level": "read_uncommitted"}
    )
    place = KafkaTopicPartition(topic, 0)
    until(lambda: probe.get_watermark_offsets(place, timeout=10)[1] >= count, f"{topic} has no {count} records", 30)
    probe.close()


def test_a_commit_that_fails_leaves_neither_outputs_nor_offsets(bench: Bench) -> None:
    bench.send(b"1", b"2")
    slot = TopicPartition(bench.source, 0)
    consumer, producer = bench.broker.consumer(bench.group, [bench.source], "m"), bench.broker.producer("p")
    bench.settle(consumer)
    assert bench.take(consumer, 2) == [b"1", b"2"]
    producer.emit(bench.sink, b"never", b"k", 1, None, 0)
    successor = bench.broker.producer("p")
    with pytest.raises((Aborted, Fenced)):
        producer.commit({slot: Position(2)}, consumer)
    assert consumer.committed([slot]) == {slot: None}
    successor.emit(bench.sink, b"again", b"k", 1, None, 0)
    successor.commit({slot: Position(2)}, consumer)
    assert bench.read(bench.sink, 1) == [b"again"]
    assert consumer.committed([slot]) == {slot: Position(2)}
    successor.close()
    consumer.close()


def test_a_member_that_is_out_of_date_commits_nothing(bench: Bench) -> None:
    """Its partitions may be another's by now; its own producer was fenced by nobody."""
    bench.send(b"1")
    slot = TopicPartition(bench.source, 0)
    zombie = bench.broker.consumer(bench.group, [bench.source], "m")
    bench.settle(zombie)
    assert bench.take(zombie, 1) == [b"1"]
    successor = bench.broker.consumer(bench.group, [bench.source], "m")
    bench.settle(successor, 60)
    producer = bench.broker.producer("p")
    producer.emit(bench.sink, b"never", b"k", 1, None, 0)
    with pytest.raises((Aborted, Fenced)):
        producer.commit({slot: Position(1)}, zombie)
    producer.abort()
    assert successor.committed([slot]) == {slot: None}
    assert bench.take(successor, 1) == [b"1"]
    other = bench.broker.producer("q")
    other.emit(bench.sink, b"mine", b"k", 1, None, 0)
    other.commit({slot: Position(1)}, successor)
    assert bench.read(bench.sink, 1) == [b"mine"]
    other.close()
    zombie.close()
    successor.close()


def test_who_was_fenced_is_told_so_and_does_not_fence_back(bench: Bench) -> None:
    consumer = bench.broker.consumer(bench.group, [bench.source], "m")
    zombie = bench.broker.producer("same")
    zombie.emit(bench.sink, b"never", b"k", 1, None, 0)
    successor = bench.broker.producer("same")
    with pytest.raises(Fenced):  # noqa: PT012  as the loop does: what was aborted is tried again, and Fenced ends it
        for _ in range(5):
            try:
                zombie.emit(bench.sink, b"never", b"k", 1, None, 0)
                zombie.commit({}, consumer)
            except Aborted:
                zombie.abort()
    successor.emit(bench.sink, b"mine", b"k", 1, None, 0)
    successor.commit({}, consumer)
    assert bench.read(bench.sink, 1) == [b"mine"]
    successor.close()
    consumer.close()


def test_what_one_that_is_in_the_group_no_more_has_left_open_holds_nobody_back(bench: Bench) -> None:
    slot = TopicPartition(bench.source, 0)
    here, gone = f"{bench.group}-here", f"{bench.group}-gone"
    consumer = bench.broker.consumer(bench.group, [bench.source], here)
    bench.settle(consumer)
    producer, zombie = bench.broker.producer(here), bench.broker.producer(gone)
    # As if it had been the one in the partition: it has committed, and is frozen before its next commit.
    zombie.commit({slot: Position(1, CommitMetadata(instance=gone).encode())}, consumer)
    zombie.emit(bench.sink, b"never", b"k", 1, None, 0)
    reached(bench, bench.sink, 1)
    if isinstance(zombie, kafka_producer.KafkaProducer):
        zombie._client.send_offsets_to_transaction(
            committable({slot: Position(9)}), consumer.group_metadata(), CALL_SECONDS
        )
    assert bench.broker.end_left_open(bench.group, [slot], here) == [gone]
    committed = consumer.committed([slot])[slot]
    assert committed is not None
    assert committed.offset == 1
    producer.emit(bench.sink, b"mine", b"k", 1, None, 0)
    producer.commit({slot: Position(2, CommitMetadata(instance=here).encode())}, consumer)
    assert bench.read(bench.sink, 1) == [b"mine"], "nobody waits for what was left open"
    with pytest.raises(Fenced):  # noqa: PT012  as the loop does: what was aborted is tried again, and Fenced ends it
        for _ in range(5):
            try:
                zombie.commit({slot: Position(9)}, consumer)
            except Aborted:
                zombie.abort()
    assert bench.broker.end_left_open(bench.group, [slot], gone) == [], "who is in the group is left alone"
    producer.emit(bench.sink, b"more", b"k", 1, None, 0)
    producer.commit({slot: Position(3)}, consumer)
    assert bench.broker.end_left_open(bench.group, [slot], gone) == [], "nobody says who it was"
    producer.close()
    consumer.close()


def test_a_dead_letter_is_part_of_the_transaction(bench: Bench) -> None:
    consumer, producer = bench.broker.consumer(bench.group, [bench.source], "m"), bench.broker.producer("p")
    for value, ends in ((b"never", producer.abort), (b"kept", lambda: producer.commit({}, consumer))):
        producer.emit(bench.sink, value, b"k", 1, [("tidemill.reason", b"truncated")], 0)
        ends()
    assert bench.read(bench.sink, 1) == [b"kept"]
    producer.close()
    consumer.close()


def test_nobody_reads_what_was_aborted(bench: Bench) -> None:
    slot = TopicPartition(bench.source, 0)
    consumer, producer = bench.broker.consumer(bench.group, [bench.source], "m"), bench.broker.producer("p")
    bench.settle(consumer)
    producer.emit(bench.source, b"never", b"k", 1, None, 0)
    reached(bench, bench.source, 1)
    assert bench.poll(consumer, 10, 1.0) == [], "it is not committed"
    assert bench.broker.offset_range(slot) == (0, 0)
    producer.abort()
    producer.emit(bench.source, b"kept", b"k", 2, None, 0)
    producer.commit({}, consumer)
    assert bench.take(consumer, 1) == [b"kept"]
    assert bench.read(bench.source, 1) == [b"kept"]
    producer.close()
    consumer.close()


def test_reading_commits_nothing(bench: Bench) -> None:
    bench.send(b"1", b"2", b"3")
    slot = TopicPartition(bench.source, 0)
    consumer = bench.broker.consumer(bench.group, [bench.source], "m")
    bench.settle(consumer)
    assert bench.take(consumer, 3) == [b"1", b"2", b"3"]
    assert bench.poll(consumer) == []
    consumer.close()
    again = bench.broker.consumer(bench.group, [bench.source], "m")
    assert again.committed([slot]) == {slot: None}
    again.close()


def two_long_partitions(bench: Bench, many: int = 400) -> dict[TopicPartition, int]:
    """Fill two partitions with old records that come later in time in the one than in the other."""
    producer, nobody = bench.broker.producer("filler"), bench.broker.consumer(f"{bench.group}.none", [bench.sink], "n")
    for partition in range(2):
        for number in range(many):
            producer.emit(bench.source, b"%d" % number, b"k", 1000 + number + partition * many, None, partition)
    producer.commit({}, nobody)
    producer.close()
    nobody.close()
    return {TopicPartition(bench.source, partition): 0 for partition in range(2)}


def hold_back(bench: Bench, consumer, slots: dict[TopicPartition, int]) -> None:
    """Start, again and again, until records were fetched and none handed out: the one partition waits for the other."""
    if isinstance(bench.broker, MemoryBroker):
        return

    def held() -> bool:
        consumer.start(slots)
        return bench.poll(consumer, 50, 0.4) == [] and len(consumer._order) > 0

    until(held, "nothing was ever held back", 60)


def test_positions_are_those_of_what_was_handed_out(bench: Bench) -> None:
    expected = two_long_partitions(bench)
    consumer = bench.broker.consumer(bench.group, [bench.source], "m")
    bench.settle(consumer)
    hold_back(bench, consumer, expected)
    assert consumer.positions(tuple(expected)) == expected
    handed, deadline = 0, time.monotonic() + 60
    while handed < 800:
        for record in bench.poll(consumer, 50):
            expected[TopicPartition(record.topic(), record.partition())] = record.offset() + 1
            handed += 1
        assert consumer.positions(tuple(expected)) == expected
        assert time.monotonic() < deadline, handed
    consumer.close()


def test_a_start_forgets_what_was_held_back(bench: Bench) -> None:
    slots = two_long_partitions(bench)
    consumer = bench.broker.consumer(bench.group, [bench.source], "m")
    bench.settle(consumer)
    hold_back(bench, consumer, slots)
    consumer.start(slots)
    found: Counter[tuple[int, int]] = Counter()
    deadline = time.monotonic() + 60
    while len(found) < 800 and time.monotonic() < deadline:
        found.update((record.partition(), record.offset()) for record in bench.poll(consumer, 50))
    assert found == Counter((partition, offset) for partition in range(2) for offset in range(400))
    consumer.close()


class TestKafkaAlone:
    def test_nothing_is_fetched_before_the_start_is_settled(self, kafka) -> None:
        bench = made(KafkaBroker(kafka.servers))
        bench.send(b"1", b"2", b"3")
        consumer = bench.broker.consumer(bench.group, [bench.source], "m")
        found: set[TopicPartition] = set()

        def assigned() -> bool:
            assert consumer.poll(100, 0.1) == []
            found.update(consumer.changes()[1])
            return bool(found)

        until(assigned, "nothing was assigned", 30)
        assert consumer._client.assignment() == []  # a second assign() soon after a first is a race in the client
        assert consumer.poll(100, 0.5) == []
        starts = {slot: 1 - slot.partition for slot in found}  # all are in partition 0
        consumer.start(starts)
        assert {(p.topic, p.partition, p.offset) for p in consumer._client.assignment()} == {
            (*s, at) for s, at in starts.items()
        }
        assert bench.take(consumer, 2) == [b"2", b"3"]
        consumer.close()

    def test_an_error_beside_a_committed_offset_is_not_a_group_that_is_new(self, kafka) -> None:
        bench = made(KafkaBroker(kafka.servers))
        consumer = bench.broker.consumer(bench.group, [bench.source], "m")
        answer = SimpleNamespace(
            topic=bench.source,
            partition=0,
            offset=-1001,
            metadata=None,
            error=KafkaError(KafkaError.UNSTABLE_OFFSET_COMMIT),
        )
        real, consumer._client = consumer._client, SimpleNamespace(committed=lambda *_, **__: [answer])
        with pytest.raises(Aborted, match=r"committed offset of .*\[0\]"):
            consumer.committed([TopicPartition(bench.source, 0)])
        consumer._client = real
        consumer.close()

    @pytest.mark.parametrize("exactly_once", [True, False])
    def test_a_full_queue_loses_nothing(self, kafka, exactly_once: bool) -> None:
        small = {"queue.buffering.max.kbytes": 16}
        bench = made(KafkaBroker(kafka.servers, exactly_once=exactly_once, extra=small))
        consumer, producer = bench.broker.consumer(bench.group, [bench.source], "m"), bench.broker.producer("p")
        sent = [b"%d" % number + b"." * 100 for number in range(20_000)]
        for value in sent:
            producer.emit(bench.sink, value, b"k", 1, None, 0)
        producer.commit({}, consumer)
        assert bench.read(bench.sink, len(sent)) == sent
        producer.close()
        consumer.close()

    @pytest.fixture
    def at_least_once(self, kafka) -> Iterator[tuple[Bench, Any, Any]]:
        bench = made(KafkaBroker(kafka.servers, exactly_once=False))
        consumer, producer = bench.broker.consumer(bench.group, [bench.source], "m"), bench.broker.producer("p")
        bench.settle(consumer)
        yield bench, consumer, producer
        consumer.close()

    def test_at_least_once_commits_no_offset_of_what_was_refused(self, at_least_once) -> None:
        bench, consumer, producer = at_least_once
        slot = TopicPartition(bench.source, 0)
        producer.emit(
            bench.sink, b"x" * 1_500_000, b"k", 1, None, 0
        )  # more than the broker takes, less than the client
        with pytest.raises(Aborted, match="sending"):
            producer.commit({slot: Position(7)}, consumer)
        assert consumer.committed([slot]) == {slot: None}

        def goes_on() -> bool:
            producer.abort()
            producer.emit(bench.sink, b"small", b"k", 1, None, 0)
            try:
                producer.commit({slot: Position(7)}, consumer)
            except Aborted:  # what was thrown away may take with it what comes right after it
                return False
            return True

        until(goes_on, "the producer does not go on after a record that was refused", 30)
        assert consumer.committed([slot]) == {slot: Position(7)}
        assert bench.read(bench.sink, 1)[-1] == b"small"
        producer.close()

    def test_at_least_once_commits_no_offset_of_what_is_not_sent(self, at_least_once, monkeypatch) -> None:
        bench, consumer, producer = at_least_once
        monkeypatch.setattr(kafka_producer, "DECIDED_SECONDS", 0.5)
        slot = TopicPartition(bench.source, 0)
        producer.emit("no.such.topic", b"waits for its topic", b"k", 1, None, 0)
        with pytest.raises(Aborted, match="not acknowledged"):
            producer.commit({slot: Position(7)}, consumer)
        assert consumer.committed([slot]) == {slot: None}
        producer.abort()
        producer.close()

    def test_partitions_that_were_lost_are_given_up(self, kafka) -> None:
        bench = made(KafkaBroker(kafka.servers))
        bench.send(b"1", b"2")
        consumer = bench.broker.consumer(bench.group, [bench.source], "m")
        slots = bench.settle(consumer)
        assert bench.take(consumer, 2) == [b"1", b"2"]
        lost: set[TopicPartition] = set()

        def given_up() -> bool:
            assert consumer.poll(10, 0.1) == []
            revoked, assigned = consumer.changes()
            assert not assigned
            lost.update(revoked)
            return lost == slots

        kafka.process.send_signal(signal.SIGSTOP)  # nobody answers heartbeats: the session runs out after 6 s
        try:
            until(given_up, "a member whose session ran out is told nothing", 30)
        finally:
            kafka.process.send_signal(signal.SIGCONT)
        held: set[TopicPartition] = set()
        found: list[bytes] = []

        def begins_again() -> bool:
            with suppress(Aborted):
                found.extend(record.value() for record in consumer.poll(10, 0.1))
            revoked, assigned = consumer.changes()
            held.difference_update(revoked)
            held.update(assigned)
            if held and (revoked or assigned):
                found.clear()
                consumer.start(dict.fromkeys(held, 0))
            return found == [b"1", b"2"]

        until(begins_again, "it does not begin again at what is committed", 60)
        consumer.close()


class Meanwhile(dict[str, Change]):
    """Changes during whose writing something happens."""

    def __init__(self, changes: Mapping[str, Change], happens: Any) -> None:
        super().__init__(changes)
        self.happens = happens

    def items(self) -> Any:
        self.happens()
        return super().items()


def test_a_later_write_in_the_middle_of_ours_stays(redis_url: str) -> None:
    ours, theirs = (RedisView(connect(redis_url), "p", "v") for _ in range(2))
    ours.write(0, 0, 5, {"a": Change({"n": 5}, {"0": "5"})})

    def they_write() -> None:
        assert theirs.write(0, 5, 9, {"a": Change({"n": 9}, {"0": "9"})}) == "written"

    assert ours.write(0, 5, 7, Meanwhile({"a": Change({"n": 7}, {"0": "7"})}, they_write)) == "refused"
    assert ours.load(0) == (9, {"a": {"0": "9"}})
    assert connect(redis_url).hget("p:v:a", "n") == "9"


def test_a_view_that_could_not_be_written_keeps_its_offset(redis_url: str) -> None:
    client = connect(redis_url)
    view = RedisView(client, "p", "v")
    view.write(0, 0, 5, {"a": Change({"n": 5}, {"0": "5"})})

    def full() -> None:
        client.config_set("maxmemory", 1)

    try:
        with pytest.raises(StoreError):
            view.write(0, 5, 7, Meanwhile({"a": Change({"n": 7}, {"0": "7"})}, full))
    finally:
        client.config_set("maxmemory", 0)
    assert view.load(0) == (5, {"a": {"0": "5"}})
