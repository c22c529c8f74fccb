"""Several steps in one process, one poll and one transaction.

What a step emits to a topic that a later step of the chain reads is handed on in memory, as the record that it becomes,
and written where it must be read again or by others. State stays a function of the offsets of those inner topics. This
process is the only writer of its partitions of them, so it knows the offset of each record before Kafka has it; when
the transaction is committed, Kafka's word is compared, and a difference aborts it.

No group reads the inner topics meanwhile. How far each step has come is in the progress of its own group, written in
the same transaction; so whoever takes over, a chain or a process of its own, goes on exactly there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from tidemill.encoding.codec import Carried
from tidemill.errors import BrokerError, Reject, SettingsError, Stopped
from tidemill.limits import DEAD_LETTER_BYTES
from tidemill.stream.api import Broker, Emit, Headers, Position, Processor, Record, TopicPartition, discard
from tidemill.stream.group import Group
from tidemill.stream.memory import MemoryRecord
from tidemill.stream.order import TimeOrder
from tidemill.stream.origin import with_origin
from tidemill.stream.partition import partition_of
from tidemill.stream.ranges import settled_range
from tidemill.stream.restore import Plan

#: The header of a record that was sent to its raw topic again, in the partition of its key: from where it comes.
REKEYED = "tidemill.rekeyed"
#: A partition that is read to so near its end holds no other one back: the last offsets may be ends of transactions.
SLACK_OFFSETS = 10


class Chain(Processor):
    """Several groups' steps, in the order of the river, as one.

    Parameters
    ----------
    groups
        The first is the one whose topics are consumed; each of the others reads what those before it write.
    """

    def __init__(self, groups: Sequence[Group], broker: Broker) -> None:
        super().__init__()
        self.broker, self.groups, self.dlq = broker, groups, groups[0].processor.dlq
        head = groups[0].service
        self._readers: dict[str, list[int]] = {}
        for index, group in enumerate(groups[1:], 1):
            for topic in group.service.topics:
                self._readers.setdefault(topic, []).append(index)
        #: The inner topics that are written.
        self.written = frozenset(self._readers) - frozenset(head.unwritten)
        self._needs_all = head.needs_all
        self._count: dict[str, int] = {}
        self._owned: set[int] = set()
        self._next: dict[TopicPartition, int] = {}
        self._in_transaction: set[TopicPartition] = set()
        self._begin()

    def _begin(self) -> None:
        #: By group: up to where it has read, and up to where that may be committed.
        self._read: list[dict[TopicPartition, int]] = [{} for _ in self.groups]
        self._due: list[dict[TopicPartition, int]] = [{} for _ in self.groups]
        self._in_transaction.clear()

    def take_over(self, partitions: Iterable[TopicPartition], beat: Callable[[], None]) -> list[tuple[Group, Plan]]:
        """Take over the inner partitions that belong to these; returns what each group has to rebuild.

        Raises SettingsError where all partitions are needed, and some are another instance's.
        """
        self._begin()
        head = self.groups[0].service
        shares = [{p.partition for p in partitions if p.topic == topic} for topic in head.topics]
        self._owned = set[int].intersection(*shares)
        if self._needs_all and len(self._owned) < max(map(self.broker.partitions, head.topics)):
            raise SettingsError(
                f"{'+'.join(group.service.name for group in self.groups)} has partitions "
                f"{', '.join(map(str, sorted(self._owned))) or 'none'} of {head.topics[0]}, and needs all: "
                f"run one instance of it, or its services apart"
            )
        self._count = {topic: self.broker.partitions(topic) for topic in self._readers}
        self._next = {p: settled_range(self.broker, p, beat)[1] for p in self._own(self._readers)}
        plans = []
        for group, read in zip(self.groups[1:], self._read[1:], strict=True):
            plan = group.take_over(self._own(group.service.topics), beat)
            read.update(plan.read_from)
            plans.append((group, plan))
        return plans

    def _own(self, topics: Iterable[str]) -> list[TopicPartition]:
        return [
            TopicPartition(topic, number)
            for topic in topics
            for number in range(self._count.get(topic, 0))
            if self._needs_all or number in self._owned
        ]

    def do_what_is_left(self, emit: Emit) -> Iterator[None]:
        """Have each group handle what the log has beyond what it has read; yields when that may be committed.

        The last group begins: so what one hands on comes after what the next has found in the log.
        """
        for index in reversed(range(1, len(self.groups))):
            ranges = {p: (at, self._next[p]) for p, at in self._read[index].items() if at < self._next[p]}
            if not ranges:
                continue
            order, ends = TimeOrder(), {partition: end for partition, (_, end) in ranges.items()}
            order.clear({partition: begin for partition, (begin, _) in ranges.items()})
            for batch in self.broker.read(ranges):
                order.add(batch)
                self._run(index, order.release(order.behind(ends, SLACK_OFFSETS)), emit)
                yield
            self._run(index, order.release(), emit)
            yield

    def process(self, records: Sequence[Record], emit: Emit) -> bool:
        if emit is discard:  # a step's state is made of the log that it reads, and of nothing that is handed on
            return self.groups[0].processor.process(records, emit)
        return self._run(0, records, emit)

    def _run(self, first: int, records: Sequence[Record], emit: Emit) -> bool:
        """Have one step handle records, and those after it what comes of them."""
        inbox: dict[int, list[Record]] = {index: [] for index in range(first, len(self.groups))}
        inbox[first] = list(records)
        hand_on, stopped, may_commit = self._hand_on(emit, inbox), None, True
        for index in range(first, len(self.groups)):
            try:
                is_ready = self._step(index, inbox[index], hand_on)
            except Stopped as error:  # what came before goes on
                if index:
                    raise
                stopped, is_ready = error, True
            may_commit = is_ready if index == 0 else may_commit
        if stopped:
            raise stopped
        return may_commit

    def _step(self, index: int, records: list[Record], emit: Emit) -> bool:
        group = self.groups[index]
        if index and len(group.service.topics) > 1:
            records = _merged(records)
        group.processor.traces.begin()
        may_commit = group.processor.process(records, emit)
        if group.processor.has_written:
            self.has_written, group.processor.has_written = True, False
        if index:
            if records:
                group.watch.records(len(records))
            read, last = self._read[index], {(r.topic(), r.partition()): r.offset() for r in records}
            for place, offset in last.items():
                partition = TopicPartition(*place)
                # What was not written has the offset at which its topic ends.
                read[partition] = max(read[partition], min(offset + 1, self._next[partition]))
            if may_commit:
                self._due[index] = dict(read)
        return may_commit

    def _hand_on(self, emit: Emit, inbox: Mapping[int, list[Record]]) -> Emit:
        readers, count, following, written = self._readers, self._count, self._next, self.written
        in_transaction, now = self._in_transaction, int(time.time() * 1000)

        def hand_on(
            topic: str,
            value: bytes,
            key: bytes | None = None,
            timestamp: int = 0,
            headers: Headers | None = None,
            partition: int = -1,
        ) -> None:
            indexes = readers.get(topic)
            if indexes is None:
                emit(topic, value, key, timestamp, headers, partition)
                return
            if partition < 0:
                partition = 0 if count[topic] == 1 else partition_of(key or b"", count[topic])
            place = TopicPartition(topic, partition)
            offset = following.get(place)
            if offset is None:
                self._send_again(key, partition, emit)
                return
            handed = value if len(indexes) == 1 or type(value) is Carried else Carried(value)  # decoded once for all
            record = MemoryRecord(
                topic, handed, key, now, with_origin(timestamp, headers), partition=partition, offset=offset
            )
            if topic in written:
                following[place] = offset + 1
                in_transaction.add(place)
                emit(topic, value, key, timestamp, headers, partition)
            for index in indexes:
                inbox[index].append(record)

        return hand_on

    def _send_again(self, key: bytes | None, partition: int, emit: Emit) -> None:
        """Send the raw record in hand again, to the partition of its key, which another instance has."""
        record = self.groups[0].processor.in_hand
        if record is None:
            raise BrokerError(f"what {self.groups[0].service.name} has made belongs to partition {partition}")
        self.groups[0].processor.counts["rekeyed", record.topic()] += 1
        source = f"{record.topic()}[{record.partition()}]@{record.offset()}".encode()
        headers = [*(record.headers() or ()), (REKEYED, source)]
        emit(record.topic(), record.value() or b"", key, 0, headers, partition)

    def marks(self) -> list[tuple[Group, dict[TopicPartition, Position]]]:
        """Return how far each group has come, where that has changed."""
        changed = [(group, group.marks(due)) for group, due in zip(self.groups, self._due, strict=True) if due]
        self._due = [{} for _ in self.groups]
        return changed

    def say_again(self) -> None:
        """Have the next commit say how far each group has come, also where that has not changed."""
        self._due = [dict(read) for read in self._read]

    def expected(self) -> dict[TopicPartition, int]:
        """Return the offset that the last record of each partition must get in the open transaction."""
        return {partition: self._next[partition] - 1 for partition in self._in_transaction}

    def ended(self, end_markers: int) -> None:
        """The transaction is committed: in each of its partitions so many offsets are its end."""
        for partition in self._in_transaction:
            self._next[partition] += end_markers
        self._in_transaction.clear()

    def keep(self) -> None:
        """Have Kafka keep what it knows of the groups that have no member. Raises Retry where one has members again."""
        for group in self.groups[1:]:
            group.keep_chained()

    def forget(self) -> None:
        """Drop the state of all but the first group."""
        for group in self.groups[1:]:
            group.forget(self._own(group.service.topics))
        self._begin()

    def refuse(self, record: Record, reject: Reject, emit: Emit, max_bytes: int = DEAD_LETTER_BYTES.max) -> None:
        self.groups[0].processor.refuse(record, reject, emit, max_bytes)

    def committed(self) -> None:
        for group in self.groups:
            group.processor.committed()

    def finish(self, emit: Emit) -> bool:
        is_written = False
        for index, group in enumerate(self.groups):
            if group.processor.finish(emit):
                is_written, self._due[index] = True, dict(self._read[index])
        return is_written

    def not_ready(self) -> str:
        return next((why for group in self.groups if (why := group.processor.not_ready())), "")


def _merged(records: Sequence[Record]) -> list[Record]:
    """Return records of several topics by their origin, as a consumer gives them."""
    order = TimeOrder()
    order.clear({TopicPartition(record.topic(), record.partition()): record.offset() for record in reversed(records)})
    order.add(records)
    return order.release()
