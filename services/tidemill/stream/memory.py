"""Kafka's behaviour that services rely on, in memory: for tests, and for trying a pipeline without a broker.

Transactions are atomic, readers see only what is committed, a producer of the same name fences the older one, and
members of a group share its partitions by range. The same contract suite runs against this and against real Kafka.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tidemill.errors import Aborted, BrokerError, Fenced, Refused
from tidemill.stream import api
from tidemill.stream.api import NOT_EXPECTED, Headers, Position, TopicPartition, TopicState
from tidemill.stream.order import TimeOrder
from tidemill.stream.origin import with_origin
from tidemill.stream.partition import partition_of
from tidemill.stream.restore import last_instances, left_behind


class MemoryRecord:
    """One record; the same methods as confluent-kafka's Message."""

    __slots__ = ("_headers", "_key", "_offset", "_partition", "_timestamp", "_topic", "_value")

    def __init__(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        timestamp: int = 0,
        headers: Headers | None = None,
        partition: int = 0,
        offset: int = 0,
    ) -> None:
        self._topic, self._value, self._key = topic, value, key
        self._timestamp, self._headers = timestamp, headers
        self._partition, self._offset = partition, offset

    def topic(self) -> str:
        """Topic."""
        return self._topic

    def partition(self) -> int:
        """Partition."""
        return self._partition

    def offset(self) -> int:
        """Offset."""
        return self._offset

    def key(self) -> bytes | None:
        """Key."""
        return self._key

    def value(self) -> bytes | None:
        """Value."""
        return self._value

    def headers(self) -> Headers | None:
        """Headers, None where there are none."""
        return self._headers

    def timestamp(self) -> tuple[int, int]:
        """(type, ms since the epoch); type 1 is the producer's time."""
        return 1, self._timestamp

    def __repr__(self) -> str:
        return f"MemoryRecord({self._topic}[{self._partition}]@{self._offset} key={self._key!r} value={self._value!r})"


@dataclass
class _Group:
    members: dict[str, MemoryConsumer] = field(default_factory=dict)
    committed: dict[TopicPartition, Position] = field(default_factory=dict)
    generation: int = 0


#: Takes topic, value and key; returns whether Kafka would refuse such a record for ever.
Refuses = Callable[[str, bytes, bytes | None], bool]


class MemoryBroker:
    """Topics in memory.

    Parameters
    ----------
    topics
        Number of partitions by topic; a topic that is not named here does not exist.
    exactly_once
        Whether producers use transactions.

    `refuses` says which records are refused, as those that are too large for their topic; `refuses_early`: when they
    are emitted in a transaction, not when that is committed. `learns`: once one was refused, later ones are so.
    """

    def __init__(self, topics: Mapping[str, int], *, exactly_once: bool = True) -> None:
        self.exactly_once = exactly_once
        self.erasable: Collection[str] = frozenset()
        self.refuses: Refuses = lambda _topic, _value, _key: False
        self.refuses_early = self.learns = False
        self.log: dict[TopicPartition, list[MemoryRecord]] = {
            TopicPartition(t, p): [] for t, n in topics.items() for p in range(n)
        }
        self.first: dict[TopicPartition, int] = dict.fromkeys(self.log, 0)
        self.groups: dict[str, _Group] = {}
        self._topics = dict(topics)
        self._ids = {topic: f"{topic}-1" for topic in topics}
        self._epochs: dict[str, int] = {}

    def partitions(self, topic: str) -> int:
        return self._topics.get(topic, 0)

    def offset_range(self, partition: TopicPartition) -> tuple[int, int]:
        return self.first[partition], len(self.log[partition])

    def end_offset(self, partition: TopicPartition) -> int:
        return len(self.log[partition])

    def offsets_at(self, partitions: Sequence[TopicPartition], time: int) -> dict[TopicPartition, int]:
        return {
            partition: next(
                (one.offset() for one in self.log[partition][self.first[partition] :] if one.timestamp()[1] >= time),
                len(self.log[partition]),
            )
            for partition in partitions
        }

    def topic_states(self, topics: Sequence[str], timeout: float = 10.0) -> dict[str, TopicState]:
        del timeout  # nothing here waits
        return {topic: TopicState(self._ids[topic], self._topics[topic]) for topic in topics if topic in self._ids}

    def topic_ids(self, topics: Sequence[str], timeout: float = 10.0) -> dict[str, str]:
        del timeout  # nothing here waits
        return {topic: self._ids.get(topic, "") for topic in topics}

    def recreate(self, topic: str) -> None:
        """Delete a topic, with what groups have committed of it, and create it again, empty."""
        self._ids[topic] = f"{topic}-{int(self._ids[topic].rpartition('-')[2]) + 1}"
        for partition in range(self._topics[topic]):
            self.log[TopicPartition(topic, partition)], self.first[TopicPartition(topic, partition)] = [], 0
            for group in self.groups.values():
                group.committed.pop(TopicPartition(topic, partition), None)

    def read(self, ranges: Mapping[TopicPartition, tuple[int, int]]) -> Iterator[list[api.Record]]:
        for partition, (begin, end) in ranges.items():
            yield list(self.log[partition][max(begin, self.first[partition]) : end])

    def committed(self, group: str, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, Position | None]:
        committed = self.groups[group].committed if group in self.groups else {}
        return {partition: committed.get(partition) for partition in partitions}

    def set_offsets(self, group: str, positions: Mapping[TopicPartition, Position]) -> None:
        held = self.groups.setdefault(group, _Group())
        if held.members:
            raise BrokerError(f"group {group} has members")
        held.committed.update(positions)

    def end_left_open(self, group: str, partitions: Sequence[TopicPartition], instance: str) -> list[str]:
        members = self.groups[group].members if group in self.groups else {}
        last = last_instances(group, self.committed(group, partitions).values())
        gone = left_behind(last, members.keys(), instance)
        for name in gone:
            self._epochs[name] = self._epochs.get(name, 0) + 1
        return gone

    def follow(self, partition: TopicPartition, offset: int) -> MemoryFollower:
        return self.follow_from({partition: offset})

    def follow_from(self, offsets: Mapping[TopicPartition, int], max_wait: float = 0.0) -> MemoryFollower:
        del max_wait  # nothing is fetched
        return MemoryFollower(self, offsets)

    def grow(self, topic: str, partitions: int) -> None:
        """Give a topic more partitions, and the members that read it a new assignment."""
        for partition in range(self._topics[topic], partitions):
            self.log[TopicPartition(topic, partition)], self.first[TopicPartition(topic, partition)] = [], 0
        self._topics[topic] = partitions
        for group in self.groups.values():
            if any(topic in member.topics for member in group.members.values()):
                self._rebalance(group)

    def truncate(self, partition: TopicPartition, first: int) -> None:
        """Forget everything before offset `first`, as retention does."""
        self.first[partition] = first

    def cut(self, partition: TopicPartition, end: int) -> None:
        """Forget everything from offset `end` on, as an unclean election or a backup does."""
        del self.log[partition][end:]

    def append(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        timestamp: int = 0,
        headers: Headers | None = None,
        partition: int = -1,
    ) -> MemoryRecord:
        """Append one record at once, as a producer without transactions would."""
        partition = self.place(topic, key, partition)
        entries = self.log[TopicPartition(topic, partition)]
        value = value and bytes(value)  # and nothing of what the process knows of it
        record = MemoryRecord(
            topic, value, key, timestamp or int(time.time() * 1000), headers, partition=partition, offset=len(entries)
        )
        entries.append(record)
        return record

    def place(self, topic: str, key: bytes | None, partition: int = -1) -> int:
        """Return the partition of a record."""
        count = self._topics[topic]
        if partition >= 0:
            return partition
        return partition_of(key, count) if key else len(self.log[TopicPartition(topic, 0)]) % count

    def records(self, topic: str) -> list[MemoryRecord]:
        """Return all committed records of a topic, partition by partition."""
        return [r for partition, entries in self.log.items() if partition.topic == topic for r in entries]

    def consumer(self, group: str, topics: Sequence[str], instance: str, max_wait: float = 0.0) -> MemoryConsumer:
        del max_wait  # nothing is fetched
        return MemoryConsumer(self, group, topics, instance)

    def producer(
        self, name: str, beat: Callable[[], None] = lambda: None, counted: Collection[str] = ()
    ) -> MemoryProducer:
        del beat, counted  # nothing here waits, and all offsets are known
        self._epochs[name] = self._epochs.get(name, 0) + 1
        return MemoryProducer(self, name, self._epochs[name])

    def _check(self, name: str, epoch: int) -> None:
        if self._epochs[name] != epoch:
            raise Fenced(f"producer {name}: another process has taken this instance's place")

    def _rebalance(self, group: _Group) -> None:
        group.generation += 1
        members = [group.members[name] for name in sorted(group.members)]
        shares: dict[str, set[TopicPartition]] = {m.instance: set() for m in members}
        for topic in sorted({t for m in members for t in m.topics}):
            takers = [m for m in members if topic in m.topics]
            count, start = self._topics.get(topic, 0), 0
            for index, member in enumerate(takers):
                size = count // len(takers) + (index < count % len(takers))
                shares[member.instance] |= {TopicPartition(topic, p) for p in range(start, start + size)}
                start += size
        for member in members:
            member.give(shares[member.instance], group.generation)


class MemoryFollower:
    """Reads partitions as they grow."""

    def __init__(self, broker: MemoryBroker, offsets: Mapping[TopicPartition, int]) -> None:
        self.broker, self.offsets = broker, dict(offsets)

    def poll(self, limit: int, timeout: float) -> list[api.Record]:
        records: list[api.Record] = []
        for partition, offset in self.offsets.items():
            new = self.broker.log[partition][offset : offset + limit - len(records)]
            self.offsets[partition] += len(new)
            records += new
        if not records:
            time.sleep(timeout)
        return records

    def close(self) -> None:
        pass


class MemoryConsumer:
    """A member of a group."""

    def __init__(self, broker: MemoryBroker, group: str, topics: Sequence[str], instance: str) -> None:
        self.broker, self.topics, self.instance = broker, tuple(topics), instance
        self.group = broker.groups.setdefault(group, _Group())
        self.generation = 0
        self._partitions: set[TopicPartition] = set()
        self._revoked: set[TopicPartition] = set()
        self._assigned: set[TopicPartition] = set()
        self._at: dict[TopicPartition, int] = {}
        self.group.members[instance] = self
        broker._rebalance(self.group)

    def give(self, partitions: set[TopicPartition], generation: int) -> None:
        """Take a new assignment: everything is revoked and assigned again, as eager rebalancing does."""
        self._revoked |= self._partitions
        self._assigned = set(partitions)
        self._partitions, self.generation, self._at = set(partitions), generation, {}

    def poll(self, limit: int, timeout: float) -> list[api.Record]:
        del timeout  # nothing comes while we wait: all is in this process
        records: list[api.Record] = []
        if self._revoked or self._assigned:
            return records
        order = TimeOrder()
        order.clear(self._at)
        for partition in sorted(self._at):
            entries, at = self.broker.log[partition], self._at[partition]
            taken = entries[at : at + limit - len(records)]
            records += taken
            self._at[partition] = at + len(taken)
        order.add(records)
        return order.release()

    def joined(self) -> bool:
        return self.group.members.get(self.instance) is self

    def changes(self) -> tuple[set[TopicPartition], set[TopicPartition]]:
        revoked, assigned = self._revoked, self._assigned
        self._revoked, self._assigned = set(), set()
        return revoked, assigned

    def committed(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, Position | None]:
        return {partition: self.group.committed.get(partition) for partition in partitions}

    def start(self, offsets: Mapping[TopicPartition, int]) -> None:
        self._at = dict(offsets)

    def positions(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return {partition: self._at[partition] for partition in partitions if partition in self._at}

    def lag(self) -> dict[TopicPartition, int]:
        return {partition: len(self.broker.log[partition]) - at for partition, at in self._at.items()}

    def close(self) -> None:
        if self.group.members.get(self.instance) is self:
            del self.group.members[self.instance]
            self.broker._rebalance(self.group)


class MemoryProducer:
    """A producer, transactional where its broker's are: without transactions each record is appended at once."""

    def __init__(self, broker: MemoryBroker, name: str, epoch: int) -> None:
        self.broker, self.name, self.epoch = broker, name, epoch
        self.is_transactional = broker.exactly_once
        self._pending: list[tuple[str, bytes, bytes | None, int, Headers | None, int]] = []
        self._refused: list[api.Record | None] = []

    @property
    def end_markers(self) -> int:
        return 0

    def emit(
        self,
        topic: str,
        value: bytes,
        key: bytes | None = None,
        timestamp: int = 0,
        headers: Headers | None = None,
        partition: int = -1,
    ) -> None:
        self._send(None, topic, value, key, timestamp, headers, partition)

    def emit_of(self, source: Callable[[], api.Record | None]) -> api.Emit:
        def emit(
            topic: str,
            value: bytes,
            key: bytes | None = None,
            timestamp: int = 0,
            headers: Headers | None = None,
            partition: int = -1,
        ) -> None:
            self._send(source(), topic, value, key, timestamp, headers, partition)

        return emit

    def _send(
        self,
        source: api.Record | None,
        topic: str,
        value: bytes,
        key: bytes | None,
        timestamp: int,
        headers: Headers | None,
        partition: int,
    ) -> None:
        self.broker._check(self.name, self.epoch)
        all_headers = with_origin(timestamp, headers)
        if self.broker.refuses(topic, value, key):
            if self.is_transactional and self.broker.refuses_early:
                raise Refused(f"sending to {topic}: it is refused", is_early=True)
            self._refused.append(source)
        elif self.is_transactional:
            self._pending.append((topic, value, key, 0, all_headers, partition))
        else:
            self.broker.append(topic, value, key, 0, all_headers, partition)

    def commit(
        self,
        offsets: Mapping[TopicPartition, Position],
        consumer: api.Consumer | None,
        expected: Mapping[TopicPartition, int] = NOT_EXPECTED,
    ) -> None:
        self.broker._check(self.name, self.epoch)
        assert consumer is None or isinstance(consumer, MemoryConsumer)  # noqa: S101  the same broker made both
        if offsets and consumer and consumer.generation != consumer.group.generation:
            raise Aborted("committing: this member is not in the group's present generation")
        self.wait()
        more = Counter(TopicPartition(r[0], self.broker.place(r[0], r[2], r[5])) for r in self._pending if expected)
        for place, offset in expected.items():
            if (actual := len(self.broker.log[place]) + more[place] - 1) != offset:
                raise Aborted(f"committing: {place.topic}[{place.partition}] would end at {actual}, not at {offset}")
        for record in self._pending:
            self.broker.append(*record)
        self._pending.clear()
        if consumer:
            consumer.group.committed.update(offsets)

    def wait(self) -> None:
        if self._refused:
            refused, self._refused = self._refused, []
            known = [record for record in refused if record is not None]
            is_known = not self.is_transactional and len(known) == len(refused)
            self.broker.refuses_early |= self.broker.learns
            message = f"committing: {len(refused)} records are refused"
            raise Refused(message, known if is_known else (), next_is_early=self.broker.learns)

    def abort(self) -> None:
        self._pending.clear()
        self._refused.clear()

    def close(self) -> None:
        self._pending.clear()
