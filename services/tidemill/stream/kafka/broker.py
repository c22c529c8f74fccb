"""A Kafka cluster behind the ports of `stream.api`: topics, consumers, producers, and bounded reads for rebuilding.

What is set here, and why, is in docs/design.md under "Facts about Kafka clients".
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from confluent_kafka import (  # noqa: TID251  this is where Kafka clients live
    OFFSET_BEGINNING,
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    Producer,
    TopicCollection,
)
from confluent_kafka import TopicPartition as KafkaTopicPartition  # noqa: TID251
from confluent_kafka.admin import AdminClient  # noqa: TID251
from confluent_kafka.cimpl import NewTopic  # noqa: TID251

from tidemill.errors import BrokerError, NotAllowed
from tidemill.stream import api
from tidemill.stream.api import Position, TopicPartition, TopicState
from tidemill.stream.declared import other_partitions
from tidemill.stream.kafka import rights
from tidemill.stream.kafka.consumer import (
    CALL_SECONDS,
    EMBEDDED_FETCH_SECONDS,
    GATHERED_BYTES,
    IDLE_FETCH_SECONDS,
    MEMBER_IDLE_FETCH_SECONDS,
    KafkaConsumer,
    KafkaFollower,
    committable,
    committed_offsets,
    reading_client,
    take,
)
from tidemill.stream.kafka.errors import kafka_error, not_connected, service_error, stored_records, without_errors
from tidemill.stream.kafka.exact_log import ExactLog
from tidemill.stream.kafka.producer import KafkaProducer
from tidemill.stream.kafka.settings import ClusterSettings, change_settings, cluster_settings, overrides
from tidemill.stream.restore import last_instances, left_behind
from tidemill.stream.topic import Topic

log = logging.getLogger(__name__)
_client_log = logging.getLogger("librdkafka")

#: How long a cluster may take to answer: one that can't be reached, and one that is only busy.
CONNECT_SECONDS = 3.0
CONNECT_BUSY_SECONDS = 20.0
#: A partition that was just made, or moves to another broker, is asked for again after so long.
MOVING_CODES = {KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE}
MOVING_SECONDS = 0.2
#: A broker that is busy takes a while for all topics of a pipeline; they are created one after the other.
CREATE_SECONDS = 60.0


class KafkaBroker:
    """A Kafka cluster.

    Parameters
    ----------
    servers
        `host:port`, comma-separated.
    exactly_once
        Whether producers use transactions.
    extra
        librdkafka properties for every client (security.protocol, sasl.*, ssl.*, ...).
    """

    def __init__(self, servers: str, *, exactly_once: bool = True, extra: Mapping[str, Any] | None = None) -> None:
        self.servers = servers
        self.exactly_once = exactly_once
        self.common: dict[str, Any] = {
            "bootstrap.servers": servers,
            "log_level": 4,
            "socket.keepalive.enable": True,
            "reconnect.backoff.max.ms": 1000,
            **(extra or {}),
        }
        self._admin_client: AdminClient | None = None
        self._is_embedded = False
        self._probes: dict[str, Consumer] = {}
        self._probing = threading.Lock()
        self._partitions: dict[str, int] = {}
        #: Topics of which single records can be erased: what is written there gets unique keys.
        self.erasable: Collection[str] = frozenset()

    @property
    def _admin(self) -> AdminClient:
        if self._admin_client is None:
            self._admin_client = AdminClient(self.common, logger=_client_log)
        return self._admin_client

    def connect(self) -> None:
        """Raise BrokerError unless the cluster answers within a few seconds, or a few more if it is only busy."""
        troubles: dict[int, str] = {}

        def note(error: KafkaError) -> None:
            # librdkafka's text without whom it asked, which the message says, and how long that took.
            troubles[error.code()] = error.str().rpartition("/bootstrap: ")[2].partition(" (after ")[0]

        try:
            asker = AdminClient({**self.common, "log_level": 0, "error_cb": note}, logger=_client_log)
            try:
                cluster = asker.list_topics(timeout=CONNECT_SECONDS)
            except KafkaException:
                asker.poll(0)
                if troubles.keys() & {KafkaError._ALL_BROKERS_DOWN, KafkaError._AUTHENTICATION}:
                    raise
                cluster = asker.list_topics(timeout=CONNECT_BUSY_SECONDS)
            self._is_embedded = cluster.controller_id not in cluster.brokers
        except KafkaException as error:
            if kafka_error(error).code() == KafkaError._INVALID_ARG:
                raise BrokerError(f"setting kafka: {kafka_error(error).str()}; set TIDEMILL_KAFKA") from error
            troubles.pop(KafkaError._ALL_BROKERS_DOWN, None)
            reason = "; ".join(troubles.values()) or kafka_error(error).str()
            raise not_connected(self.servers, reason) from error

    def partitions(self, topic: str) -> int:
        if topic not in self._partitions:
            try:
                metadata = self._admin.list_topics(topic, timeout=CALL_SECONDS).topics[topic]
            except KafkaException as error:
                raise service_error(error, f"asking for the partitions of {topic}") from error
            if metadata.error is not None and metadata.error.code() != KafkaError.LEADER_NOT_AVAILABLE:
                cause = service_error(KafkaException(metadata.error), f"asking for the partitions of {topic}")
                if isinstance(cause, NotAllowed):
                    raise cause
                return 0
            if not metadata.partitions:
                return 0
            self._partitions[topic] = len(metadata.partitions)
        return self._partitions[topic]

    def create(self, topics: Sequence[tuple[Topic, str, int]], replication: int = -1) -> list[str]:
        """Create topics given as (Topic, name, partitions); returns the names of the new ones.

        Raises BrokerError where one can't be created or exists with another number of partitions.
        """
        try:
            existing = self._admin.list_topics(timeout=CALL_SECONDS).topics
        except KafkaException as error:
            raise BrokerError(f"the topics at {self.servers} can't be listed: {kafka_error(error).str()}") from error
        for _, name, partitions in topics:
            if name in existing and len(existing[name].partitions) != partitions:
                raise BrokerError(other_partitions(name, len(existing[name].partitions), partitions))
        replicas = self.replicas(replication)
        missing = [
            NewTopic(name, partitions, replication, config=_topic_config(topic, replicas))
            for topic, name, partitions in topics
            if name not in existing
        ]
        created: list[str] = []
        for name, future in (self._admin.create_topics(missing) if missing else {}).items():
            try:
                future.result(CREATE_SECONDS)
                created.append(name)
            except KafkaException as error:
                # Another has made it meanwhile, or the broker that was asked had not heard of it yet.
                if kafka_error(error).code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise BrokerError(f"topic {name} can't be created: {kafka_error(error).str()}") from error
            except TimeoutError as error:
                raise BrokerError(
                    f"topic {name} was not created within {CREATE_SECONDS:.0f} s: "
                    f"the broker is slow or away; run it again"
                ) from error
        for _, name, partitions in topics:
            if name not in existing and name not in created:
                self._expect_partitions(name, partitions)
        return created

    def _expect_partitions(self, name: str, partitions: int) -> None:
        """Raise BrokerError where a topic that exists has another number of partitions; wait until brokers know it."""
        deadline = time.monotonic() + CREATE_SECONDS
        while not (count := self.partitions(name)) and time.monotonic() < deadline:
            time.sleep(0.05)
        if count != partitions:
            raise BrokerError(other_partitions(name, count, partitions))

    def replicas(self, replication: int = -1) -> int:
        """Return how many replicas a created topic gets, -1 asking for none; 0 where the cluster does not say."""
        if replication > 0:
            return replication
        try:
            numbers = [int(one.get("default.replication.factor", 0)) for one in self.settings([]).brokers.values()]
        except (BrokerError, ValueError):
            return 0
        return min(numbers, default=0)

    def consumer(self, group: str, topics: Sequence[str], instance: str, max_wait: float = 0.0) -> KafkaConsumer:
        idle = self._idle_fetch(MEMBER_IDLE_FETCH_SECONDS)
        return KafkaConsumer(self.common, group, topics, instance, self._end_offset, max_wait, idle)

    def producer(
        self, name: str, beat: Callable[[], None] = lambda: None, counted: Collection[str] = ()
    ) -> KafkaProducer:
        erasable = {topic: count for topic in self.erasable if (count := self.partitions(topic))}
        limits, is_exact = self._max_message_bytes, self.exactly_once
        return KafkaProducer(self.common, name, beat, limits, counted, exactly_once=is_exact, erasable=erasable)

    def committed(self, group: str, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, Position | None]:
        client = reading_client(self.common, group)
        try:
            return committed_offsets(client, partitions)
        finally:
            client.close()

    def set_offsets(self, group: str, positions: Mapping[TopicPartition, Position]) -> None:
        asked = ConsumerGroupTopicPartitions(group, committable(positions))
        try:
            for future in self._admin.alter_consumer_group_offsets([asked], request_timeout=CALL_SECONDS).values():
                refused = [p for p in future.result().topic_partitions if p.error is not None]
                if refused:
                    raise KafkaException(refused[0].error)
        except KafkaException as error:
            raise BrokerError(
                f"the offsets of group {group} can't be set: {kafka_error(error).str()}; stop its service, and wait "
                f"until its session has ended, 6 s"
            ) from error

    def end_left_open(self, group: str, partitions: Sequence[TopicPartition], instance: str) -> list[str]:
        if not self.exactly_once:
            return []
        client = reading_client(self.common, group, "read_uncommitted")
        try:
            # What is committed and stable is not told before such a transaction has ended.
            last = last_instances(group, committed_offsets(client, partitions).values()) - {instance}
        finally:
            client.close()
        if not last:
            return []
        try:
            answer = self._admin.describe_consumer_groups([group], request_timeout=CALL_SECONDS)[group].result()
            gone = left_behind(last, {member.group_instance_id for member in answer.members}, instance)
            for name in gone:
                producer = Producer({**self.common, "client.id": name, "transactional.id": name}, logger=_client_log)
                producer.init_transactions(CALL_SECONDS)
        except KafkaException as error:  # it ends by itself, later
            cause = kafka_error(error).str()
            log.warning("what others may have left open can't be ended", extra={"group": group, "cause": cause})
            return []
        return gone

    def offset_range(self, partition: TopicPartition) -> tuple[int, int]:
        return self._offset_range(partition, "read_committed")

    def end_offset(self, partition: TopicPartition) -> int:
        return self._offset_range(partition, "read_uncommitted")[1]

    def _offset_range(self, partition: TopicPartition, isolation: str) -> tuple[int, int]:
        deadline = time.monotonic() + CALL_SECONDS
        while True:
            with self._probing:
                client = self._probes.get(isolation)
                if client is None:
                    client = self._probes[isolation] = reading_client(self.common, isolation=isolation)
                try:
                    begin, end = client.get_watermark_offsets(KafkaTopicPartition(*partition), timeout=CALL_SECONDS)
                    return max(begin, 0), max(end, 0)
                except KafkaException as error:
                    # It keeps for minutes what it was told of a topic while a broker was starting, and fails until
                    # then.
                    _close_later(self._probes.pop(isolation))
                    if kafka_error(error).code() not in MOVING_CODES or time.monotonic() > deadline:
                        what = f"reading the offset range of {partition.topic}[{partition.partition}]"
                        raise service_error(error, what) from error
            time.sleep(MOVING_SECONDS)

    def offsets_at(self, partitions: Sequence[TopicPartition], time: int) -> dict[TopicPartition, int]:
        client = reading_client(self.common)
        try:
            wanted = [KafkaTopicPartition(*partition, time) for partition in partitions]
            answers = client.offsets_for_times(wanted, timeout=CALL_SECONDS) if wanted else []
            if failed := next((one for one in answers if one.error is not None), None):
                raise KafkaException(failed.error)
        except KafkaException as error:
            raise service_error(error, f"asking for the offsets of {partitions[0].topic} at a time") from error
        finally:
            client.close()
        offsets = {TopicPartition(one.topic, one.partition): one.offset for one in answers}
        # Nothing is that late: then Kafka says -1, for the end.
        return {one: offset if offset >= 0 else self.end_offset(one) for one, offset in offsets.items()}

    def topic_states(self, topics: Sequence[str], timeout: float = CALL_SECONDS) -> dict[str, TopicState]:
        states = {}
        try:
            metadata = self._admin.list_topics(topics[0], timeout=timeout)
            if metadata.controller_id not in metadata.brokers:
                return dict.fromkeys(topics, TopicState("", 0))  # there is nobody to ask: librdkafka's mock cluster
            answers = self._admin.describe_topics(TopicCollection(list(topics)), request_timeout=timeout)
            for topic, future in answers.items():
                try:
                    answer = future.result()
                except KafkaException as error:
                    if kafka_error(error).code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                        raise
                else:
                    states[topic] = TopicState(str(answer.topic_id), len(answer.partitions))
                    self._partitions[topic] = len(answer.partitions)
        except KafkaException as error:
            raise service_error(error, f"describing {', '.join(topics)}") from error
        return states

    def topic_ids(self, topics: Sequence[str], timeout: float = CALL_SECONDS) -> dict[str, str]:
        states = self.topic_states(topics, timeout)
        return {topic: states[topic].id if topic in states else "" for topic in topics}

    def groups(self, prefix: str) -> dict[str, int]:
        """Return the consumer groups whose name begins so, with how many members each has."""
        try:
            listed = self._admin.list_consumer_groups(request_timeout=CALL_SECONDS).result()
            if listed.errors:
                raise listed.errors[0]
            names = [group.group_id for group in listed.valid if group.group_id.startswith(prefix)]
            if not names:
                return {}
            described = self._admin.describe_consumer_groups(names, request_timeout=CALL_SECONDS)
            return {name: len(future.result().members) for name, future in described.items()}
        except KafkaException as error:
            raise service_error(error, f"describing the groups {prefix}*") from error

    def delete(self, topics: Sequence[str] = (), groups: Sequence[str] = ()) -> None:
        """Delete topics and consumer groups, for good; one that does not exist is left out."""
        gone = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.GROUP_ID_NOT_FOUND)
        asked = self._admin.delete_consumer_groups(list(groups), request_timeout=CALL_SECONDS) if groups else {}
        asked |= self._admin.delete_topics(list(topics), request_timeout=CALL_SECONDS) if topics else {}
        for name, future in asked.items():
            try:
                future.result()
            except KafkaException as error:
                if kafka_error(error).code() not in gone:
                    raise service_error(error, f"deleting {name}") from error
        for name in topics:
            self._partitions.pop(name, None)

    def settings(self, topics: Sequence[str]) -> ClusterSettings:
        """Return the settings of the brokers and of these topics. Raises BrokerError where they can't be read."""
        return cluster_settings(self._admin, topics)

    def change_topics(self, settings: Mapping[str, Mapping[str, str]]) -> None:
        """Give topics settings of their own, by name. Raises BrokerError."""
        change_settings(self._admin, settings)

    def topic_overrides(self, topics: Sequence[str]) -> dict[str, dict[str, str]]:
        """Return the settings that topics have of their own, by name. Raises BrokerError where they can't be read."""
        return overrides(self._admin, topics)

    def exact_log(self, name: str) -> ExactLog:
        """Return what writes topics with the offsets that their records had; `name` begins its transactional ids."""
        return ExactLog(self._admin, self.common, name)

    def lacking(self, topics: Mapping[str, Collection[str]], groups: Mapping[str, Collection[str]]) -> list[str]:
        """Return what this user may not do of operations on topics, by name, and on groups."""
        return rights.lacking(self._admin, topics, groups)

    def _max_message_bytes(self, topic: str) -> int | None:
        """Return how large a message a topic takes; None where the cluster does not say."""
        try:
            text = self.settings([topic]).topics[topic].settings["max.message.bytes"]
            return int(text)
        except (BrokerError, KeyError, ValueError):
            return None

    def _end_offset(self, partition: TopicPartition) -> int:
        return self.offset_range(partition)[1]

    def read(
        self,
        ranges: Mapping[TopicPartition, tuple[int, int]],
        *,
        as_stored: bool = False,
        isolation: str = "read_committed",
    ) -> Iterator[list[api.Record]]:
        """Read as `Broker.read` says; `as_stored`: with the keys that Kafka has, and what erases records."""
        client = reading_client(self.common, isolation=isolation)
        records = stored_records if as_stored else without_errors
        try:
            open_ends = {partition: end for partition, (begin, end) in ranges.items() if begin < end}
            client.assign([KafkaTopicPartition(*partition, ranges[partition][0]) for partition in open_ends])
            while open_ends:
                batch = take(client, 5000, 0.2)
                yield [
                    m for m in records(batch) if m.offset() < open_ends.get(TopicPartition(m.topic(), m.partition()), 0)
                ]
                # The offset before the end may be a control record, which is never handed out. Then a record after
                # it, or the end of the partition, shows that the range is read.
                for m in batch:
                    partition = TopicPartition(m.topic(), m.partition())
                    at_end = m.error() is not None and m.error().code() == KafkaError._PARTITION_EOF
                    if partition in open_ends and (at_end or m.offset() >= open_ends[partition] - 1):
                        del open_ends[partition]
                        client.pause([KafkaTopicPartition(*partition)])
        except KafkaException as error:
            raise service_error(error, "rebuilding from the log") from error
        finally:
            _close_later(client)

    def follow(self, partition: TopicPartition, offset: int) -> KafkaFollower:
        return self.follow_from({partition: offset})

    def follow_topics(self, topics: Sequence[str], last: Mapping[str, int] | None = None) -> KafkaFollower:
        """Follow all partitions of some topics, from the beginning or, by topic, from the `last` so many records."""
        offsets = {}
        for partition in (TopicPartition(name, p) for name in topics for p in range(self.partitions(name))):
            offsets[partition] = OFFSET_BEGINNING
            if last and partition.topic in last:
                begin, end = self.offset_range(partition)
                offsets[partition] = max(begin, end - last[partition.topic])
        return self.follow_from(offsets)

    def follow_from(self, offsets: Mapping[TopicPartition, int], max_wait: float = 0.0) -> KafkaFollower:
        gathered = {"fetch.min.bytes": GATHERED_BYTES} if max_wait else {}
        wait = max_wait or self._idle_fetch(IDLE_FETCH_SECONDS)
        return KafkaFollower(reading_client({**self.common, **gathered}, wait_seconds=wait), offsets)

    def _idle_fetch(self, seconds: float) -> float:
        return EMBEDDED_FETCH_SECONDS if self._is_embedded else seconds


def _close_later(client: Consumer) -> None:
    """Close a client in the background: now and then that takes a second, and nobody need wait for it."""
    threading.Thread(target=client.close, name="closing", daemon=True).start()


_topic_config = Topic.config
