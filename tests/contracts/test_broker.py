"""One contract for every broker: what the loop relies on, in memory and on a real Kafka."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import Counter
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient, NewTopic
from real_kafka import RealKafka
from running import until

from tidemill.errors import Aborted, BrokerError, Fenced
from tidemill.stream.api import Position, TopicPartition
from tidemill.stream.commit_metadata import CommitMetadata
from tidemill.stream.embedded import EmbeddedBroker
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.stream.memory import MemoryBroker
from tidemill.stream.origin import origin_of
from tidemill.stream.progress import ProgressLog
from tidemill.stream.restore import mark
from tidemill.stream.topic import Topic
from tidemill.wire.topics import DLQ

TOPIC = Topic("t", "any", "bytes", ("test",), ("test",))
names = itertools.count()
PATIENCE = 60.0
"""Seconds: a broker on a busy machine may send a transaction's marker once more, which it does after 30 s."""


class Bench:
    """A broker with an input and an output topic of its own."""

    def __init__(self, broker, source: str, sink: str) -> None:
        self.broker, self.source, self.sink = broker, source, sink
        self.group = f"{source}.group"

    def send(self, *values: bytes, partition: int = 0) -> None:
        producer = self.broker.producer(f"{self.source}.sender")
        consumer = self.broker.consumer(f"{self.source}.none", [self.sink], "none")
        for value in values:
            producer.emit(self.source, value, b"k", 1000, None, partition)
        producer.commit({}, consumer)
        producer.close()
        consumer.close()

    def settle(self, consumer, patience: float = PATIENCE) -> set[TopicPartition]:
        """Poll until an assignment came and has not changed for a moment; returns it, started from what is committed."""
        slots: set[TopicPartition] = set()
        deadline, quiet = time.monotonic() + patience, 0
        while quiet < 5 or not slots:
            assert consumer.poll(100, 0.05) == [], "nothing is read before start()"
            revoked, assigned = consumer.changes()
            quiet = 0 if revoked or assigned else quiet + 1
            slots = (slots - revoked) | assigned
            assert time.monotonic() < deadline
        committed = consumer.committed(sorted(slots))
        consumer.start({slot: position.offset if position else 0 for slot, position in committed.items()})
        return slots

    def take(self, consumer, count: int, patience: float = PATIENCE) -> list[bytes]:
        found: list[bytes] = []
        deadline = time.monotonic() + patience
        while len(found) < count and time.monotonic() < deadline:
            found += [record.value() for record in consumer.poll(100, 0.1)]
        return found

    def read(self, topic: str, count: int = 0) -> list[bytes]:
        """Return all that is visible, waiting for `count`: a commit shows once its markers are written, a moment later."""
        deadline = time.monotonic() + PATIENCE
        while True:
            ranges = {
                TopicPartition(topic, p): self.broker.offset_range(TopicPartition(topic, p))
                for p in range(self.broker.partitions(topic))
            }
            found = [record.value() for batch in self.broker.read(ranges) for record in batch]
            if len(found) >= count or time.monotonic() > deadline:
                return found


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.kafka)])
def bench(request: pytest.FixtureRequest) -> Bench:
    source, sink = (f"contract{next(names)}.{side}" for side in ("in", "out"))
    if request.param == "memory":
        return Bench(MemoryBroker({source: 2, sink: 2}), source, sink)
    broker = KafkaBroker(request.getfixturevalue("kafka").servers)
    broker.create([(TOPIC, source, 2), (TOPIC, sink, 2)])
    return Bench(broker, source, sink)


def test_a_topic_that_does_not_exist_has_no_partitions(bench: Bench) -> None:
    assert bench.broker.partitions(bench.source) == 2
    assert bench.broker.partitions("no.such.topic") == 0


def test_the_end_has_what_is_in_an_open_transaction_and_the_range_has_not(bench: Bench) -> None:
    bench.send(b"1")
    slot = TopicPartition(bench.source, 0)
    assert bench.read(bench.source, 1) == [b"1"]
    begin, end = bench.broker.offset_range(slot)
    assert begin == 0
    assert end >= 1
    assert bench.broker.end_offset(slot) == end


def test_a_topic_has_an_id_of_its_own(bench: Bench) -> None:
    ids = bench.broker.topic_ids([bench.source, bench.sink])
    assert len({*ids.values()} - {""}) == 2
    assert bench.broker.topic_ids([bench.source]) == {bench.source: ids[bench.source]}


def test_progress_is_read_behind_an_open_transaction_of_another(bench: Bench) -> None:
    """A reader of what is committed stops at the first record of an open transaction: it must wait, not believe less."""
    place = TopicPartition(bench.sink, 1)

    def has_leader() -> bool:
        with contextlib.suppress(Aborted):
            return bench.broker.end_offset(place) == 0
        return False

    until(has_leader, "the partition has no leader")
    log = ProgressLog(bench.broker, bench.sink, "g", place.partition)
    log.read()
    other, own = bench.broker.producer("other"), bench.broker.producer("own")
    other.emit(bench.sink, b"open", b"k", 1, None, place.partition)
    for offset in (1, 2):
        log.write({place: mark(CommitMetadata(), offset, "")}, own.emit)
        own.commit({}, None)
    if isinstance(bench.broker, KafkaBroker):
        until(lambda: bench.broker.end_offset(place) >= 3, "the open record is not sent")
    seen: list[int] = []
    reader = threading.Thread(
        target=lambda: seen.append(ProgressLog(bench.broker, bench.sink, "g", 1).read()[place].offset)
    )
    reader.start()
    other.commit({}, None)
    reader.join(20)
    assert seen == [2]
    other.close()
    own.close()


def test_records_and_offsets_become_visible_together_and_not_before(bench: Bench) -> None:
    bench.send(b"1", b"2", b"3")
    producer = bench.broker.producer("p")
    consumer = bench.broker.consumer(bench.group, [bench.source], "m")
    slots = bench.settle(consumer)
    assert slots == {TopicPartition(bench.source, 0), TopicPartition(bench.source, 1)}
    assert bench.take(consumer, 3) == [b"1", b"2", b"3"]
    for value in (b"a", b"b"):
        producer.emit(bench.sink, value, b"k", 5)
    assert bench.read(bench.sink) == []
    slot = TopicPartition(bench.source, 0)
    assert consumer.committed([slot]) == {slot: None}
    at = consumer.positions([slot])[slot]
    producer.commit({slot: Position(at, "7:42")}, consumer)
    assert sorted(bench.read(bench.sink, 2)) == [b"a", b"b"]
    assert consumer.committed([slot]) == {slot: Position(at, "7:42")}
    producer.close()
    consumer.close()


def test_an_abort_leaves_nothing(bench: Bench) -> None:
    bench.send(b"1")
    producer = bench.broker.producer("p")
    consumer = bench.broker.consumer(bench.group, [bench.source], "m")
    bench.settle(consumer)
    producer.emit(bench.sink, b"never")
    producer.abort()
    producer.emit(bench.sink, b"kept")
    producer.commit({}, consumer)
    assert bench.read(bench.sink, 1) == [b"kept"]
    producer.close()
    consumer.close()


def test_a_start_goes_back_and_reads_again(bench: Bench) -> None:
    bench.send(b"1", b"2", b"3")
    consumer = bench.broker.consumer(bench.group, [bench.source], "m")
    slots = bench.settle(consumer)
    assert bench.take(consumer, 3) == [b"1", b"2", b"3"]
    consumer.start({slot: 1 if slot.partition == 0 else 0 for slot in slots})
    assert bench.take(consumer, 2) == [b"2", b"3"]
    consumer.close()


def test_order_within_a_partition_is_kept_and_time_decides_between_them(bench: Bench) -> None:
    producer = bench.broker.producer("p")
    consumer = bench.broker.consumer(bench.group, [bench.source], "m")
    for timestamp, partition, value in ((10, 0, b"a"), (30, 0, b"c"), (20, 1, b"b"), (5, 1, b"late"), (40, 1, b"d")):
        producer.emit(bench.source, value, b"k", timestamp, None, partition)
    producer.commit({}, consumer)
    bench.settle(consumer)
    merged, found, deadline = [b"a", b"b", b"late", b"c", b"d"], [], time.monotonic() + PATIENCE
    while len(found) < 5 and time.monotonic() < deadline:
        together = [record.value() for record in consumer.poll(100, 0.1)]  # a broker may hand out one partition first
        assert together == [value for value in merged if value in together]
        found += together
    assert [value for value in found if value in (b"a", b"c")] == [b"a", b"c"]
    assert [value for value in found if value in (b"b", b"late", b"d")] == [b"b", b"late", b"d"]
    consumer.close()
    producer.close()


def test_headers_keys_and_timestamps_arrive(bench: Bench) -> None:
    producer = bench.broker.producer("p")
    consumer = bench.broker.consumer(bench.group, [bench.source], "m")
    producer.emit(bench.source, b"v", b"key", 1234, [("a", b"1"), ("a", b"2")], 1)
    producer.commit({}, consumer)
    bench.settle(consumer)
    record = None
    deadline = time.monotonic() + PATIENCE
    while record is None and time.monotonic() < deadline:
        record = next(iter(consumer.poll(10, 0.1)), None)
    assert record is not None
    assert (record.topic(), record.partition(), record.key(), record.value()) == (bench.source, 1, b"key", b"v")
    assert record.headers()[1:] == [("a", b"1"), ("a", b"2")]
    assert origin_of(record) == 1234
    assert abs(record.timestamp()[1] - time.time() * 1000) < 600_000, "it is kept by when it was written"
    producer.close()
    consumer.close()


@pytest.mark.kafka
def test_a_record_is_kept_by_when_it_was_written_even_where_producers_times_would_be(kafka: RealKafka) -> None:
    topic, broker = f"contract{next(names)}.foreign", KafkaBroker(kafka.servers)
    new = NewTopic(topic, 1, 1, config={"message.timestamp.type": "CreateTime"})
    admin = AdminClient({"bootstrap.servers": kafka.servers})  # its answer is lost when it is collected
    admin.create_topics([new])[topic].result(30)
    producer, slot = broker.producer("p"), TopicPartition(topic, 0)
    consumer = broker.consumer("foreign", [topic], "m")
    producer.emit(topic, b"v", b"key", 1234, [], 0)
    producer.commit({}, consumer)
    until(lambda: broker.offset_range(slot)[1] > 0, "the record is not there")
    record = next(record for batch in broker.read({slot: (0, 1)}) for record in batch)
    assert origin_of(record) == 1234
    assert abs(record.timestamp()[1] - time.time() * 1000) < 600_000
    producer.close()
    consumer.close()


def test_the_same_key_goes_to_the_same_partition(bench: Bench) -> None:
    producer = bench.broker.producer("p")
    consumer = bench.broker.consumer(bench.group, [bench.source], "m")
    for n in range(40):
        producer.emit(bench.sink, str(n % 4).encode(), str(n % 4).encode())
    producer.commit({}, consumer)
    assert len(bench.read(bench.sink, 40)) == 40
    places = Counter()
    for p in range(2):
        slot = TopicPartition(bench.sink, p)
        for batch in bench.broker.read({slot: bench.broker.offset_range(slot)}):
            places.update({(p, record.value()) for record in batch})
    assert len(places) == 4
    producer.close()
    consumer.close()


def test_a_range_is_read_and_no_more(bench: Bench) -> None:
    bench.send(*[str(n).encode() for n in range(10)])
    assert len(bench.read(bench.source, 10)) == 10
    slot = TopicPartition(bench.source, 0)
    found = [record.value() for batch in bench.broker.read({slot: (3, 6)}) for record in batch]
    assert found == [b"3", b"4", b"5"]
    assert [batch for batch in bench.broker.read({slot: (6, 6)}) if batch] == []


def test_the_offset_at_a_time_is_that_of_the_first_record_written_then_or_later(bench: Bench) -> None:
    bench.send(b"a", b"b")
    time.sleep(0.01)
    between = int(time.time() * 1000)
    bench.send(b"c")
    slot = TopicPartition(bench.source, 0)
    third = next(r.offset() for batch in bench.broker.read({slot: (0, 100)}) for r in batch if r.value() == b"c")
    assert bench.broker.offsets_at([slot], 0) == {slot: 0}
    assert 2 <= bench.broker.offsets_at([slot], between)[slot] <= third, "the end of a transaction may lie before it"
    assert bench.broker.offsets_at([slot], between + 3_600_000) == {slot: bench.broker.end_offset(slot)}
    assert bench.broker.offsets_at([], 0) == {}


def test_a_later_producer_of_the_name_fences_the_earlier(bench: Bench) -> None:
    consumer = bench.broker.consumer(bench.group, [bench.source], "m")
    zombie = bench.broker.producer("same")
    zombie.emit(bench.sink, b"before")
    successor = bench.broker.producer("same")
    with pytest.raises((Fenced, Aborted)):  # noqa: PT012  which of the two calls hears of it is not said
        zombie.emit(bench.sink, b"after")
        zombie.commit({}, consumer)
    successor.emit(bench.sink, b"mine")
    successor.commit({}, consumer)
    assert bench.read(bench.sink, 1) == [b"mine"]
    successor.close()
    consumer.close()


def test_a_follower_sees_what_comes(bench: Bench) -> None:
    bench.send(b"old")
    assert bench.read(bench.source, 1) == [b"old"]
    follower = bench.broker.follow(
        TopicPartition(bench.source, 0), bench.broker.offset_range(TopicPartition(bench.source, 0))[1]
    )
    bench.send(b"new")
    found: list[bytes] = []
    deadline = time.monotonic() + PATIENCE
    while not found and time.monotonic() < deadline:
        found = [record.value() for record in follower.poll(10, 0.1)]
    assert found == [b"new"]
    follower.close()


def test_two_members_share_the_partitions_and_one_takes_over(bench: Bench) -> None:
    one = bench.broker.consumer(bench.group, [bench.source], "a")
    bench.settle(one)
    two = bench.broker.consumer(bench.group, [bench.source], "b")
    held: dict[str, set[TopicPartition]] = {
        "a": {TopicPartition(bench.source, 0), TopicPartition(bench.source, 1)},
        "b": set(),
    }
    deadline = time.monotonic() + PATIENCE
    while {len(slots) for slots in held.values()} != {1}:
        for name, member in (("a", one), ("b", two)):
            member.poll(10, 0.05)
            revoked, assigned = member.changes()
            held[name] = (held[name] - revoked) | assigned
        assert time.monotonic() < deadline, held
    assert held["a"] | held["b"] == {TopicPartition(bench.source, 0), TopicPartition(bench.source, 1)}
    one.close()
    two.close()


def test_a_member_that_leaves_while_it_is_given_partitions_does_not_wait_for_ever(bench: Bench) -> None:
    for n in range(8):
        consumer = bench.broker.consumer(f"{bench.group}{n}", [bench.source], "m")
        for _ in range(n):
            consumer.poll(1, 0.03)
        consumer.close()


class TestKafkaAlone:
    @pytest.fixture
    def broker(self, kafka) -> KafkaBroker:
        return KafkaBroker(kafka.servers)

    def test_creating_topics_again_changes_nothing_and_another_number_is_refused(self, broker: KafkaBroker) -> None:
        name = f"contract{next(names)}"
        assert broker.create([(TOPIC, name, 3)]) == [name]
        assert broker.create([(TOPIC, name, 3)]) == []
        with pytest.raises(BrokerError, match="3 partitions where 4 are declared"):
            broker.create([(TOPIC, name, 4)])

    def test_a_topic_that_another_makes_meanwhile_is_not_made_again(
        self, broker: KafkaBroker, kafka, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name = f"contract{next(names)}"
        second = KafkaBroker(kafka.servers)
        admin = second._admin

        class Late:
            """Lists all topics as they were before the other one made its own."""

            before = admin.list_topics(timeout=10)

            def list_topics(self, *topic: str, timeout: float) -> Any:
                return admin.list_topics(*topic, timeout=timeout) if topic else self.before

            def __getattr__(self, method: str) -> Any:
                return getattr(admin, method)

        monkeypatch.setattr(KafkaBroker, "_admin", property(lambda of: Late() if of is second else admin))
        assert broker.create([(TOPIC, name, 3)]) == [name]
        assert second.create([(TOPIC, name, 3)]) == []
        with pytest.raises(BrokerError, match="3 partitions where 4 are declared"):
            second.create([(TOPIC, name, 4)])

    def test_a_dead_letter_may_be_larger_than_what_was_received(self, broker: KafkaBroker) -> None:
        name = f"contract{next(names)}"
        broker.create([(DLQ, name, 2)])
        bench = Bench(broker, name, name)
        largest = b"x" * 1_048_000  # what a broker takes from a producer, by default, is 1,048,588 with its overhead
        producer, consumer = broker.producer("large"), broker.consumer(bench.group, [name], "m")
        producer.emit(name, largest, b"k", 1, [("why", b"y" * 4000)], 0)
        producer.commit({}, consumer)
        assert bench.read(name, 1) == [largest]
        producer.close()
        consumer.close()

    def test_at_least_once_commits_what_was_acknowledged(self, kafka) -> None:
        broker = KafkaBroker(kafka.servers, exactly_once=False)
        source, sink = (f"contract{next(names)}.{side}" for side in ("in", "out"))
        broker.create([(TOPIC, source, 2), (TOPIC, sink, 2)])
        bench = Bench(broker, source, sink)
        bench.send(b"1", b"2")
        consumer, producer = broker.consumer(bench.group, [source], "m"), broker.producer("p")
        bench.settle(consumer)
        assert bench.take(consumer, 2) == [b"1", b"2"]
        producer.emit(sink, b"out")
        producer.commit({TopicPartition(source, 0): Position(2, "note")}, consumer)
        assert bench.read(sink, 1) == [b"out"]
        assert consumer.committed([TopicPartition(source, 0)]) == {TopicPartition(source, 0): Position(2, "note")}
        producer.close()
        consumer.close()


@pytest.mark.slow
def test_the_embedded_broker_says_nothing_of_ids_and_settings_and_nobody_waits_for_it() -> None:
    embedded = EmbeddedBroker()
    embedded.create(["quick"])
    broker = KafkaBroker(embedded.servers, exactly_once=False)
    assert broker.topic_ids(["quick"]) == {"quick": ""}
    assert broker.settings(["quick"]).brokers == {}
    assert broker.end_offset(TopicPartition("quick", 0)) == 0
