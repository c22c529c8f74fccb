"""Writes a log again so that every record has the offset that it had: what a pipeline knows of its records is offsets.

The broker numbers what it is sent, so what has no record must have something else: markers of transactions, records of
aborted ones, what retention has deleted. A gap is filled with records of a transaction that is aborted later, in
another gap, where its marker takes one offset; a gap of one that stands alone with the marker of a transaction that the
records before it are written in; what lies before the log's beginning with records that are deleted then. Readers of
what is committed see none of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

from confluent_kafka import KafkaException, Producer  # noqa: TID251  this is where Kafka clients live
from confluent_kafka import TopicPartition as KafkaTopicPartition  # noqa: TID251
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec  # noqa: TID251

from tidemill.errors import BrokerError
from tidemill.stream.api import TopicPartition
from tidemill.stream.kafka.consumer import CALL_SECONDS
from tidemill.stream.kafka.errors import service_error
from tidemill.stream.kafka.settings import change_settings

#: Most records of a partition that are written at once, and most offsets that one aborted transaction takes.
MAX_RUN_RECORDS, MAX_GAP_OFFSETS = 1000, 10_000
#: How long the transaction that fills gaps stays open, and after how long brokers would end it.
OPEN_SECONDS, TIMEOUT_SECONDS = 30.0, 300
#: How long one round of records may take to be acknowledged.
ROUND_SECONDS = 120.0
#: A topic while it is written: timestamps are those of the records, and nothing is deleted for its age.
_WHILE_WRITTEN = {
    "message.timestamp.type": "CreateTime",
    "message.timestamp.after.max.ms": str(2**63 - 1),
    "cleanup.policy": "delete",
    "retention.ms": "-1",
    "retention.bytes": "-1",
    "max.message.bytes": str(2**25),
}


class Kept(NamedTuple):
    """A record as it is kept: its offset, its timestamp in ms, and what it is."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]


class Run(NamedTuple):
    """Records at consecutive offsets, and how many offsets after them no record can be read at."""

    records: list[Kept]
    gap: int
    timestamp: int


def runs(records: Iterable[Kept], begin: int, end: int) -> Iterator[Run]:
    """Yield what has to be written, from offset 0, so that these records, in order, have their offsets.

    `begin` and `end` are the partition's: before `begin` there are records to be deleted. A gap of one is never first,
    unless offset 0 is one and `begin` is 0. Raises ValueError where a record is not between the two, or out of order.
    """
    deleted = (Kept(offset, 1, None, b"", []) for offset in range(begin))
    run, following, timestamp = list[Kept](), 0, 1
    for record in chain(deleted, records, [Kept(end, 0, None, None, [])]):
        gap = record.offset - following
        if gap < 0 or record.offset > end:
            raise ValueError(f"offset {record.offset} after {following - 1}, where the log ends at {end}")
        if gap or len(run) >= MAX_RUN_RECORDS:
            yield from _parts(run, gap, timestamp)
            run = []
        run.append(record)
        following, timestamp = record.offset + 1, record.timestamp
    if run[:-1]:
        yield Run(run[:-1], 0, timestamp)


def _parts(run: list[Kept], gap: int, timestamp: int) -> Iterator[Run]:
    while gap > MAX_GAP_OFFSETS:
        part = MAX_GAP_OFFSETS - (gap == MAX_GAP_OFFSETS + 1)  # what is left is no gap of one by itself
        yield Run(run, part, timestamp)
        run, gap = [], gap - part
    yield Run(run, gap, timestamp)


class ExactLog:
    """Topics that are written with the offsets that their records had.

    Parameters
    ----------
    name
        Begins its transactional ids.
    """

    def __init__(self, admin: AdminClient, common: Mapping[str, Any], name: str) -> None:
        self._admin = admin
        shared = {**common, "compression.type": "lz4", "message.max.bytes": 2**25, "enable.idempotence": True}
        self._plain = Producer(shared)
        shared["transaction.timeout.ms"] = TIMEOUT_SECONDS * 1000
        self._committed, self._aborted = (
            Producer({**shared, "transactional.id": f"{name}.{what}"}) for what in ("committed", "aborted")
        )
        #: Partitions with records of the transaction that is to be aborted; since when it is open.
        self._open, self._since = set[TopicPartition](), 0.0
        self._failure = ""
        self._is_ready = False
        self._ends: dict[TopicPartition, int] = {}

    def prepare(self, partitions: Mapping[str, int], replication: int) -> None:
        """Create topics that are missing, and have all take records as they were. Raises BrokerError."""
        try:
            existing = self._admin.list_topics(timeout=CALL_SECONDS).topics
            new = [
                NewTopic(name, count, replication, config=_WHILE_WRITTEN)
                for name, count in partitions.items()
                if name not in existing
            ]
            for future in (self._admin.create_topics(new) if new else {}).values():
                future.result(CALL_SECONDS * 6)
        except KafkaException as error:
            raise service_error(error, "creating topics") from error
        change_settings(self._admin, {name: _WHILE_WRITTEN for name in partitions if name in existing})

    def finish(self, settings: Mapping[str, Mapping[str, str]]) -> None:
        """Give topics the settings that they are to have from now on, and no others of `prepare`."""
        own = dict.fromkeys(_WHILE_WRITTEN)
        change_settings(self._admin, {name: {**own, **values} for name, values in settings.items()})

    def write(self, logs: Mapping[TopicPartition, Iterator[Run]], wrote: Callable[[int], None]) -> None:
        """Write partitions from their beginnings, all at once, a run of each at a time.

        `wrote` is told how many offsets more there are. Raises BrokerError where a record has not the offset or the
        timestamp that it had, as where something else writes.
        """
        try:
            if not self._is_ready:
                for producer in (self._committed, self._aborted):
                    producer.init_transactions(CALL_SECONDS * 6)
                self._is_ready = True
            upcoming = {partition: next(log, None) for partition, log in logs.items()}
            while turn := {partition: run for partition, run in upcoming.items() if run is not None}:
                upcoming = {partition: next(logs[partition], None) for partition in turn}
                follows = {partition for partition, run in upcoming.items() if run is not None and run.gap}
                self._round(turn, follows)
                wrote(sum(len(run.records) + run.gap for run in turn.values()))
        except KafkaException as error:
            raise service_error(error, "writing the log") from error

    def _round(self, turn: Mapping[TopicPartition, Run], follows: Collection[TopicPartition]) -> None:
        """Write a run of each partition, and its gap; `follows` are those whose next run has a gap as well.

        A partition is left in the open transaction only where it follows, so all of these have a gap in each round: in
        any of them it can be aborted.
        """
        gaps = {partition: run.gap for partition, run in turn.items() if run.gap}
        alone = {p for p, gap in gaps.items() if gap == 1 and p not in self._open}
        is_long = bool(self._open) and time.monotonic() - self._since > OPEN_SECONDS
        ends = is_long or any(partition not in follows for partition in gaps.keys() - alone)
        marked = alone if ends else alone - set(follows)
        if marked:
            self._committed.begin_transaction()
        for partition, run in turn.items():
            producer = self._committed if partition in marked else self._plain
            for record in run.records:
                self._produce(producer, partition, record)
        self._flush(self._plain)
        if marked:
            self._flush(self._committed)
            self._committed.commit_transaction(CALL_SECONDS * 6)
        filled = {partition: gap - ends for partition, gap in gaps.items() if partition not in marked}
        if filled and not self._open:
            self._aborted.begin_transaction()
            self._since = time.monotonic()
        for partition, count in filled.items():
            for _ in range(count):
                self._produce(self._aborted, partition, Kept(-1, turn[partition].timestamp, None, b"", []))
        self._flush(self._aborted)  # what is not sent when it is aborted never is
        self._open |= filled.keys()
        if ends:
            self._aborted.abort_transaction(CALL_SECONDS * 6)
            self._open.clear()
        for partition, run in turn.items():
            self._ends[partition] = self._ends.get(partition, 0) + len(run.records) + run.gap
        self._wait_for_markers([*marked, *(filled if ends else ())])

    def _wait_for_markers(self, partitions: Collection[TopicPartition]) -> None:
        """Wait until logs have the markers of transactions that have ended: they are written after the answer.

        Raises BrokerError where they don't come, or a log is longer.
        """
        asked = {KafkaTopicPartition(*partition): OffsetSpec.latest() for partition in partitions}
        deadline = time.monotonic() + ROUND_SECONDS
        while asked:
            answers = self._admin.list_offsets(asked, request_timeout=CALL_SECONDS)
            ends = {TopicPartition(p.topic, p.partition): future.result().offset for p, future in answers.items()}
            wrong = {partition: end for partition, end in ends.items() if end != self._ends[partition]}
            if not wrong:
                return
            partition, end = next(iter(wrong.items()))
            if time.monotonic() > deadline or any(end > self._ends[one] for one, end in wrong.items()):
                raise BrokerError(
                    f"writing the log: {partition.topic}[{partition.partition}] ends at {end} where "
                    f"{self._ends[partition]} was expected: something else writes there; stop it"
                )
            time.sleep(0.001)

    def _produce(self, producer: Producer, partition: TopicPartition, record: Kept) -> None:
        arguments = {
            "topic": partition.topic,
            "partition": partition.partition,
            "key": record.key,
            "value": record.value,
            "headers": list(record.headers),
            "timestamp": record.timestamp,
            "on_delivery": partial(self._delivered, record),
        }
        while True:
            try:
                producer.produce(**arguments)
                producer.poll(0)
                return
            except BufferError:
                producer.poll(1)

    def _delivered(self, expected: Kept, error: Any, message: Any) -> None:
        if self._failure:
            return
        place = f"{message.topic()}[{message.partition()}]"
        if error is not None:
            self._failure = f"{place}: {error.str()}"
        elif expected.offset >= 0 and message.offset() != expected.offset:
            self._failure = (
                f"{place}: a record that had the offset {expected.offset} has {message.offset()} now: something else "
                f"writes there; stop it"
            )
        elif message.timestamp()[1] != expected.timestamp:
            self._failure = f"{place}[{expected.offset}]: its timestamp {expected.timestamp} can't be kept"

    def _flush(self, producer: Producer) -> None:
        """Wait for what was sent. Raises BrokerError where it is not where it was."""
        deadline = time.monotonic() + ROUND_SECONDS
        while producer.flush(1.0):
            if time.monotonic() > deadline:
                raise BrokerError(f"writing the log: {len(producer)} records are not acknowledged")
        if self._failure:
            raise BrokerError(f"writing the log: {self._failure}")

    def delete_before(self, begins: Mapping[TopicPartition, int]) -> None:
        """Have logs begin at these offsets. Raises BrokerError."""
        asked = [KafkaTopicPartition(*partition, offset) for partition, offset in begins.items() if offset]
        try:
            for future in (self._admin.delete_records(asked) if asked else {}).values():
                future.result(CALL_SECONDS * 6)
        except KafkaException as error:
            raise service_error(error, "deleting what lies before the log's beginning") from error
