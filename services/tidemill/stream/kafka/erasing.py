"""Erases single records of topics whose keys are unique, by Kafka's compaction: all others keep their offsets.

Of each record a tombstone is written, which has its key and no value; the topic is compacted meanwhile, until a reader
finds neither record nor tombstone. Compaction leaves out the segment that is written at the time, so segments are kept
short, and a filler, a tombstone of no record, is written to each partition now and then: the last of them stays there.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, Producer  # noqa: TID251  Kafka's clients
from confluent_kafka import TopicPartition as KafkaTopicPartition  # noqa: TID251

from tidemill.errors import BrokerError
from tidemill.stream.api import TopicPartition
from tidemill.stream.kafka.consumer import CALL_SECONDS
from tidemill.stream.kafka.errors import service_error
from tidemill.stream.kafka.settings import change_settings
from tidemill.stream.unique_keys import UniqueKeys

if TYPE_CHECKING:
    from tidemill.stream.kafka.broker import KafkaBroker

#: How often a filler is written, and looked whether the records are gone.
ROUND_SECONDS = 3.0
#: How long groups may take to read up to where a file begins that was closed; they have read all that they can see.
READ_ON_SECONDS = 30.0
#: A topic while records of it are erased; one that is kept for a time only goes on deleting what is older.
_WHILE_ERASED = {
    "segment.ms": "1000",
    "min.cleanable.dirty.ratio": "0.0",
    "min.compaction.lag.ms": "0",
    "max.compaction.lag.ms": "1000",
    "delete.retention.ms": "0",
    "file.delete.delay.ms": "1000",
}


class Erased(NamedTuple):
    """A record to be erased: its offset, and its key as Kafka has it."""

    offset: int
    key: bytes


class Eraser:
    """Erases records. Everything it does may be done again from the beginning after it broke off."""

    def __init__(self, broker: KafkaBroker, patience: float) -> None:
        self.broker, self.patience, self._admin = broker, patience, broker._admin
        self._key = UniqueKeys()
        shared = {**broker.common, "enable.idempotence": True, "linger.ms": 5}
        self._failed: list[str] = []
        self._producer = Producer({**shared, "on_delivery": self._delivered})

    def _delivered(self, error: Any, _: Any) -> None:
        if error is not None:
            self._failed.append(error.str())

    def prepare(self, names: Collection[str]) -> None:
        """Have topics compacted, what is too old still deleted."""
        kept = self.broker.settings(list(names)).topics
        policies = {
            name: "compact" if kept[name].settings["retention.ms"] == "-1" else "compact,delete" for name in names
        }
        change_settings(self._admin, {name: {**_WHILE_ERASED, "cleanup.policy": policies[name]} for name in names})

    def restore(self, overrides: Mapping[str, Mapping[str, str]]) -> None:
        """Give topics the settings of their own that they had before `prepare`."""
        names = (*_WHILE_ERASED, "cleanup.policy")
        settings = {topic: {name: own.get(name) for name in names} for topic, own in overrides.items()}
        change_settings(self._admin, settings)

    def erase(self, records: Mapping[TopicPartition, Collection[Erased]]) -> None:
        """Write tombstones, and wait until neither they nor the records can be read.

        Raises BrokerError where that takes longer than the patience: then it may be done again.
        """
        for partition, some in records.items():
            for one in some:
                self._send(partition, one.key)
        self._flush()
        ends = {partition: self.broker.end_offset(partition) for partition in records}
        left = dict(records)
        deadline = time.monotonic() + self.patience
        while left:
            for partition in left:
                self._send(partition, self._key(None))
            self._flush()
            time.sleep(ROUND_SECONDS)
            left = {p: some for p, some in left.items() if self._is_left(p, some, ends[p])}
            if left and time.monotonic() > deadline:
                names = ", ".join(f"{p.topic}[{p.partition}]" for p in sorted(left))
                raise BrokerError(
                    f"Kafka has not compacted {names} within {self.patience:.0f} s: is log.cleaner.enable set, and is "
                    f"a transaction open? Nothing is called done; run it again"
                )

    def _is_left(self, partition: TopicPartition, records: Collection[Erased], end: int) -> bool:
        """Whether any of these records, or a tombstone of one, can be read."""
        keys, first = {one.key for one in records}, min(one.offset for one in records)
        begin = max(self.broker.offset_range(partition)[0], first)
        if begin >= end:
            return False
        batches = self.broker.read({partition: (begin, end)}, as_stored=True, isolation="read_uncommitted")
        return any(record.key() in keys for batch in batches for record in batch)

    def _send(self, partition: TopicPartition, key: bytes) -> None:
        while True:
            try:
                self._producer.produce(partition.topic, None, key, partition.partition)
                self._producer.poll(0)
                return
            except BufferError:
                self._producer.poll(0.1)

    def _flush(self) -> None:
        left = self._producer.flush(CALL_SECONDS * 6)
        if self._failed or left:
            failed, self._failed = self._failed, []
            raise BrokerError(f"writing tombstones: {failed[0] if failed else f'{left} are not acknowledged'}")

    def behind(self, ends: Mapping[TopicPartition, int]) -> list[tuple[str, TopicPartition]]:
        """Return the groups that have not read up to these offsets, each with a partition where it has not."""
        behind = []
        try:
            listed = self._admin.list_consumer_groups(request_timeout=CALL_SECONDS).result().valid
            for name in [group.group_id for group in listed]:
                asked = ConsumerGroupTopicPartitions(name)
                answer = self._admin.list_consumer_group_offsets([asked], request_timeout=CALL_SECONDS)[name].result()
                for one in answer.topic_partitions:
                    partition = TopicPartition(one.topic, one.partition)
                    if 0 <= one.offset < ends.get(partition, 0):
                        behind.append((name, partition))
        except KafkaException as error:
            raise service_error(error, "asking how far groups have read") from error
        return behind

    def delete_before(self, ends: Mapping[TopicPartition, int]) -> None:
        """Have partitions begin at these offsets, once all groups have read up to there. Raises BrokerError."""
        deadline = time.monotonic() + self.patience
        while behind := self.behind(ends):
            if time.monotonic() > deadline:
                group, partition = behind[0]
                raise BrokerError(
                    f"group {group} has not read {partition.topic}[{partition.partition}] up to {ends[partition]:,}: "
                    f"have it read on, or delete its offsets, then run it again"
                )
            time.sleep(1.0)
        try:
            asked = [KafkaTopicPartition(*partition, offset) for partition, offset in ends.items()]
            for future in (self._admin.delete_records(asked) if asked else {}).values():
                future.result(CALL_SECONDS * 6)
        except KafkaException as error:
            raise service_error(error, "deleting records") from error

    def close_files(self, partitions: Collection[TopicPartition], transaction: str) -> set[TopicPartition]:
        """Have brokers begin new files for partitions of which a beginning was deleted, and delete up to there.

        A file is deleted once nothing in it can be read, and the one that is written to never is. So the next record
        begins another, and that is one of a transaction that is aborted, which no reader sees. Returns partitions of
        which some group has not read up to there, as where nothing comes any more: their last file stays as it is.
        """
        change_settings(self._admin, {one.topic: {"segment.ms": "1000"} for one in partitions})
        time.sleep(1.5)  # so long after its first record a file is closed by the next one
        begins: dict[TopicPartition, int] = {}

        def delivered(error: Any, message: Any) -> None:
            self._delivered(error, message)
            begins[TopicPartition(message.topic(), message.partition())] = message.offset()

        shared = {**self.broker.common, "transactional.id": transaction, "on_delivery": delivered}
        try:
            producer = Producer(shared)
            producer.init_transactions(CALL_SECONDS * 6)
            producer.begin_transaction()
            for one in partitions:
                producer.produce(one.topic, None, b"", one.partition)
            producer.flush(CALL_SECONDS * 6)
            producer.abort_transaction(CALL_SECONDS * 6)
        except KafkaException as error:
            raise service_error(error, "closing files") from error
        if self._failed or len(begins) < len(partitions):
            raise BrokerError(f"closing files: {self._failed[0] if self._failed else 'not acknowledged'}")
        deadline = time.monotonic() + min(self.patience, READ_ON_SECONDS)
        while (behind := {one for _, one in self.behind(begins)}) and time.monotonic() < deadline:
            time.sleep(1.0)
        self.delete_before({one: begin for one, begin in begins.items() if one not in behind})
        return behind


def stored(broker: KafkaBroker, name: str) -> Iterator[list[Any]]:
    """Yield batches of all that a topic holds, as Kafka has it: what was aborted, too, and what erases records."""
    ranges = {}
    for number in range(broker.partitions(name)):
        partition = TopicPartition(name, number)
        ranges[partition] = broker.offset_range(partition)[0], broker.end_offset(partition)
    yield from broker.read(ranges, as_stored=True, isolation="read_uncommitted")


def by_partition(records: Iterable[Any]) -> dict[TopicPartition, list[Erased]]:
    """Return records by their partition, to be erased."""
    sorted_: dict[TopicPartition, list[Erased]] = {}
    for record in records:
        place = TopicPartition(record.topic(), record.partition())
        sorted_.setdefault(place, []).append(Erased(record.offset(), record.key()))
    return sorted_
