"""Kafka behind the ports of `api`: one consumer of a group, one transactional producer, bounded reads for rebuilding.

What is set here, and why, is in docs/design.md under "Facts about Kafka clients".
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from confluent_kafka import (  # noqa: TID251  this is where Kafka clients live
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Producer,
)
from confluent_kafka import (  # noqa: TID251
    TopicPartition as KafkaTopicPartition,
)
from confluent_kafka.admin import AdminClient  # noqa: TID251
from confluent_kafka.cimpl import NewTopic  # noqa: TID251

from tidemill.errors import Aborted, BrokerError, Fenced
from tidemill.stream import api
from tidemill.stream.api import Headers, Position, TopicPartition
from tidemill.stream.order import TimeOrder
from tidemill.stream.topic import Topic

log = logging.getLogger(__name__)
_client_log = logging.getLogger("librdkafka")

TRANSACTION_TIMEOUT_SECONDS = 10
CALL_SECONDS = 10.0
CONNECT_SECONDS = 3.0
SHORT_CALL_SECONDS = 1.0
"""A call of a transaction is made again until it is decided; between two of them a signal and a probe are heard."""
DECIDED_SECONDS = 30.0
"""How long a commit is tried before the transaction is given up."""
INITIALISED_SECONDS = 60.0
HUNG_SECONDS = 5.0
"""A call that has not come back by then, five times its own timeout, will not: see `_Watch`."""
CATCHING_UP_MS = 5000
"""Only records older than this are worth ordering. Younger ones are at most that much out of order, and to let them wait
for a partition whose newest records are still in an open transaction would cost a delay that feeds on itself."""
FAR_BEHIND = 100
"""Offsets. Less than this is what an open transaction or a burst may hold, and is not worth waiting for."""
LONGEST_WAIT_SECONDS = 0.5
"""How long records wait for a partition that is far behind and does not come; then they go on without it."""

_FENCED = {
    KafkaError._FENCED,
    KafkaError.PRODUCER_FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
    KafkaError.FENCED_INSTANCE_ID,
}

_STATIC_MEMBER_FENCED = "Static consumer fenced"
"""A consumer says no more than that something fatal has happened; which, is only in the text."""


def _kafka_error(error: KafkaException) -> KafkaError:
    found = error.args[0]
    assert isinstance(found, KafkaError)  # noqa: S101  confluent-kafka's own contract
    return found


def _wrap(error: KafkaException, doing: str) -> BrokerError:
    cause = _kafka_error(error)
    if cause.code() in _FENCED or _STATIC_MEMBER_FENCED in cause.str():
        return Fenced(f"{doing}: another process has taken this instance's place ({cause.name()})")
    return Aborted(f"{doing}: {cause.str()} ({cause.name()})")


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
        self._probe: Consumer | None = None
        self._partitions: dict[str, int] = {}

    @property
    def _admin(self) -> AdminClient:
        if self._admin_client is None:
            self._admin_client = AdminClient(self.common, logger=_client_log)
        return self._admin_client

    def connect(self) -> None:
        """Raise BrokerError unless the cluster answers within a few seconds."""
        try:
            self._admin.list_topics(timeout=CONNECT_SECONDS)
        except KafkaException as error:
            if _kafka_error(error).code() == KafkaError._INVALID_ARG:
                raise BrokerError(f"setting kafka: {_kafka_error(error).str()}; set TIDEMILL_KAFKA") from error
            raise BrokerError(
                f"no Kafka at {self.servers}: {_kafka_error(error).str()}; start it or set TIDEMILL_BROKERS"
            ) from error

    def partitions(self, topic: str) -> int:
        if topic not in self._partitions:
            try:
                found = self._admin.list_topics(topic, timeout=CALL_SECONDS).topics[topic]
            except KafkaException as error:
                raise _wrap(error, f"asking for the partitions of {topic}") from error
            if found.error is not None and found.error.code() != KafkaError.LEADER_NOT_AVAILABLE:
                return 0
            if not found.partitions:
                return 0
            self._partitions[topic] = len(found.partitions)
        return self._partitions[topic]

    def create(self, topics: Sequence[tuple[Topic, str, int]], replication: int = -1) -> list[str]:
        """Create topics given as (Topic, name, partitions); returns the names of those that were not there before.

        Raises BrokerError where one can't be created or is there with another number of partitions.
        """
        there = self._admin.list_topics(timeout=CALL_SECONDS).topics
        for _, name, partitions in topics:
            if name in there and len(there[name].partitions) != partitions:
                raise BrokerError(
                    f"topic {name} has {len(there[name].partitions)} partitions where {partitions} are declared; "
                    f"their number can't change once keys are spread over them: declare partitions="
                    f"{len(there[name].partitions)}, or delete the topic"
                )
        missing = [
            NewTopic(name, partitions, replication, config=_topic_config(topic))
            for topic, name, partitions in topics
            if name not in there
        ]
        for name, future in (self._admin.create_topics(missing) if missing else {}).items():
            try:
                future.result(CALL_SECONDS)
            except KafkaException as error:
                raise BrokerError(f"topic {name} can't be created: {_kafka_error(error).str()}") from error
        return [topic.topic for topic in missing]

    def consumer(self, group: str, topics: Sequence[str], instance: str) -> KafkaConsumer:
        return KafkaConsumer(self, group, topics, instance)

    def producer(self, name: str, beat: Callable[[], None] = lambda: None) -> KafkaProducer:
        return KafkaProducer(self, name, beat)

    def committed(self, group: str, slots: Sequence[TopicPartition]) -> dict[TopicPartition, Position | None]:
        reader = self._reader(group)
        try:
            return _committed(reader, slots)
        finally:
            reader.close()

    def _reader(self, group: str = "tidemill-reader") -> Consumer:
        return Consumer(
            {
                **self.common,
                "group.id": group,  # never joined and never committed to: only assign() is used
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "error",
                "isolation.level": "read_committed",
                "fetch.wait.max.ms": 50,
            },
            logger=_client_log,
        )

    def watermarks(self, slot: TopicPartition) -> tuple[int, int]:
        if self._probe is None:
            self._probe = self._reader()
        try:
            low, high = self._probe.get_watermark_offsets(KafkaTopicPartition(*slot), timeout=CALL_SECONDS)
            return max(low, 0), max(high, 0)
        except KafkaException as error:
            raise _wrap(error, f"reading the watermarks of {slot.topic}[{slot.partition}]") from error

    def read(self, ranges: Mapping[TopicPartition, tuple[int, int]]) -> Iterator[list[api.Record]]:
        reader = self._reader()
        try:
            open_ends = {slot: end for slot, (begin, end) in ranges.items() if begin < end}
            reader.assign([KafkaTopicPartition(*slot, ranges[slot][0]) for slot in open_ends])
            while open_ends:
                batch = _take(reader, 5000, 0.2)
                yield [
                    m for m in _good(batch) if m.offset() < open_ends.get(TopicPartition(m.topic(), m.partition()), 0)
                ]
                # The offset before the end may be a control record, which is never handed out: then what tells that
                # a slot is done is a record after it, or the end of the partition.
                for m in batch:
                    slot = TopicPartition(m.topic(), m.partition())
                    ended = m.error() is not None and m.error().code() == KafkaError._PARTITION_EOF
                    if slot in open_ends and (ended or m.offset() >= open_ends[slot] - 1):
                        del open_ends[slot]
                        reader.pause([KafkaTopicPartition(*slot)])
        except KafkaException as error:
            raise _wrap(error, "rebuilding from the log") from error
        finally:
            # Now and then the client takes a whole second to close; nobody need wait for it.
            threading.Thread(target=reader.close, name="closing", daemon=True).start()

    def follow(self, slot: TopicPartition, offset: int) -> KafkaFollower:
        return KafkaFollower(self._reader(), slot, offset)


def _topic_config(topic: Topic) -> dict[str, str]:
    config = {"retention.ms": str(topic.retention_ms)}
    if topic.max_message_bytes:
        config["max.message.bytes"] = str(topic.max_message_bytes)
    return config


class KafkaFollower:
    """Reads one slot as it grows."""

    def __init__(self, client: Consumer, slot: TopicPartition, offset: int) -> None:
        self._client = client
        client.assign([KafkaTopicPartition(*slot, offset)])

    def poll(self, limit: int, timeout: float) -> list[api.Record]:
        try:
            return _good(_take(self._client, limit, timeout))
        except KafkaException as error:
            raise _wrap(error, "following a topic") from error

    def close(self) -> None:
        self._client.close()


def _take(client: Consumer, limit: int, timeout: float) -> list[Any]:
    """Return what is there, at most `limit`, waiting up to `timeout` s for the first; `consume(n, t)` would wait for n."""
    first = client.poll(timeout)
    return [] if first is None else [first, *client.consume(limit - 1, 0)]


def _committed(client: Consumer, slots: Sequence[TopicPartition]) -> dict[TopicPartition, Position | None]:
    try:
        found = client.committed([KafkaTopicPartition(*slot) for slot in slots], timeout=CALL_SECONDS)
    except KafkaException as error:
        raise _wrap(error, "asking for committed offsets") from error
    for p in found:
        if p.error is not None:  # its offset is then as if nothing had ever been committed
            raise _wrap(KafkaException(p.error), f"asking for the committed offset of {p.topic}[{p.partition}]")
    return {
        TopicPartition(p.topic, p.partition): None if p.offset < 0 else Position(p.offset, p.metadata or "")
        for p in found
    }


def _good(messages: Sequence[Any]) -> list[Any]:
    """Return the messages; raise where one is an error that polling on does not mend."""
    for message in messages:
        error = message.error()
        if error is not None and error.code() != KafkaError._PARTITION_EOF:
            if error.retriable() or error.code() in (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN):
                continue
            raise KafkaException(error)
    return [m for m in messages if m.error() is None]


class KafkaConsumer:
    """A static member of a consumer group that starts where it is told."""

    def __init__(self, broker: KafkaBroker, group: str, topics: Sequence[str], instance: str) -> None:
        self._revoked: set[TopicPartition] = set()
        self._assigned: set[TopicPartition] = set()
        self._started = self._closing = self._joined = False
        self._order = TimeOrder()
        self._ends: dict[TopicPartition, int] = {}
        self._waiting_since = 0.0
        self._broker = broker
        self._client = Consumer(
            {
                **broker.common,
                "group.id": group,
                "group.instance.id": instance,
                "client.id": instance,
                "session.timeout.ms": 6000,
                "heartbeat.interval.ms": 1500,
                "max.poll.interval.ms": 300_000,
                # Range gives partition n of every topic to the same member, which the joiner needs.
                "partition.assignment.strategy": "range",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                # Positions are always given; where one does not exist we want to hear of it.
                "auto.offset.reset": "error",
                "isolation.level": "read_committed",
                "fetch.wait.max.ms": 100,
                "fetch.queue.backoff.ms": 20,
                "fetch.error.backoff.ms": 100,
                "queued.max.messages.kbytes": 16_384,
                "topic.metadata.refresh.interval.ms": 60_000,
            },
            logger=_client_log,
        )
        self._client.subscribe(
            list(topics), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    def _on_assign(self, client: Consumer, partitions: list[KafkaTopicPartition]) -> None:
        # Nothing is fetched before the loop has settled where to start. To assign here and again at `start` is a race
        # in the client: now and then it fetches from where the first said, although the second was the last.
        client.assign([])
        if self._closing:
            return
        self._joined = True
        self._started = False
        self._assigned |= {TopicPartition(p.topic, p.partition) for p in partitions}

    def _on_revoke(self, client: Consumer, partitions: list[KafkaTopicPartition]) -> None:
        slots = {TopicPartition(p.topic, p.partition) for p in partitions}
        self._revoked |= slots
        self._assigned -= slots
        self._started = self._joined = False
        client.unassign()

    def _on_lost(self, client: Consumer, partitions: list[KafkaTopicPartition]) -> None:
        # Somebody else may own them already. The loop aborts what it has not committed and drops their state.
        self._on_revoke(client, partitions)

    def poll(self, limit: int, timeout: float) -> list[api.Record]:
        try:
            first = self._client.poll(timeout)
            found = [] if first is None else [first]
            if first is not None and limit > 1 and self._started:
                # consume(n, t) would wait for n: take what is there.
                found += self._client.consume(limit - 1, 0)
            good = _good(found)
        except KafkaException as error:
            raise _wrap(error, "reading") from error
        if not self._started or self._revoked or self._assigned:
            return []  # after a change of assignment the loop starts every slot anew: what was read belongs to nobody
        self._order.add(good)
        return self._order.release(self._behind()) if len(self._order) else []

    def _behind(self) -> set[TopicPartition]:
        """Return slots that the others should wait for: far behind, as seen in the last answers of the broker."""
        if len(self._order.positions) < 2 or time.time() * 1000 - self._order.oldest() < CATCHING_UP_MS:
            return set()
        ends = {}
        for slot in self._order.positions:
            _, high = self._client.get_watermark_offsets(KafkaTopicPartition(*slot), cached=True)
            # A slot that has not been heard of yet may hold anything.
            ends[slot] = high if high >= 0 else self._ends[slot]
        behind = self._order.behind(ends, FAR_BEHIND)
        now = time.monotonic()
        if not behind:
            self._waiting_since = now
        elif now - self._waiting_since > LONGEST_WAIT_SECONDS:
            return set()
        return behind

    def joined(self) -> bool:
        return self._joined

    def changes(self) -> tuple[set[TopicPartition], set[TopicPartition]]:
        found = self._revoked, self._assigned
        self._revoked, self._assigned = set(), set()
        return found

    def committed(self, slots: Sequence[TopicPartition]) -> dict[TopicPartition, Position | None]:
        return _committed(self._client, slots)

    def start(self, offsets: Mapping[TopicPartition, int]) -> None:
        if not offsets:
            return
        places = [KafkaTopicPartition(*slot, offset) for slot, offset in offsets.items()]
        # Where the log ends now: until a slot's first records have come, how far it is behind is known from this.
        self._ends = {slot: self._broker.watermarks(slot)[1] for slot in offsets} if len(offsets) > 1 else {}
        self._order.clear(dict(offsets))
        self._waiting_since = time.monotonic()
        self._client.assign(places)
        self._started = True

    def positions(self, slots: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return {slot: self._order.positions[slot] for slot in slots if slot in self._order.positions}

    def lag(self) -> dict[TopicPartition, int]:
        found = {}
        for slot, at in self._order.positions.items():
            with contextlib.suppress(KafkaException, RuntimeError):
                _, end = self._client.get_watermark_offsets(KafkaTopicPartition(*slot), cached=True)
                if end >= 0:
                    found[slot] = max(0, end - at - 1)  # the last one is the marker of a transaction's end
        return found

    def group_metadata(self) -> Any:
        """Return what proves to the transaction coordinator that this member is still in the group."""
        return self._client.consumer_group_metadata()

    def commit(self, offsets: Mapping[TopicPartition, Position]) -> None:
        """Commit without a transaction, and wait for the answer."""
        try:
            places = [KafkaTopicPartition(*slot, at.offset, metadata=at.note) for slot, at in offsets.items()]
            self._client.commit(offsets=places, asynchronous=False)
        except KafkaException as error:
            raise _wrap(error, "committing offsets") from error

    def close(self) -> None:
        self._closing = True
        # An assignment that is met only inside of close() is answered to nobody any more, and the client waits for ever.
        # After unsubscribe() no further one comes; one that waits already is met here.
        with contextlib.suppress(KafkaException, RuntimeError):
            self._client.unsubscribe()
            for _ in range(50):
                if self._client.poll(0.02) is None:
                    break
        self._client.close()


class _Watch:
    """Ends this process when a call of the client never comes back.

    `send_offsets_to_transaction` ignores its timeout (librdkafka#5456) and waits for ever where the group's coordinator
    went away (#5511): a broker that restarts is enough. Nothing in this process can end such a call. The process that
    is started in its place fences off whatever is left of it, and begins at what is committed.
    """

    SECONDS = 0.5

    def __init__(self) -> None:
        self._began = 0.0
        self._doing = ""
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def __call__(self, doing: str, call: Callable[[], None]) -> None:
        """Make a call, watched."""
        self._doing, self._began = doing, time.monotonic()
        try:
            call()
        finally:
            self._began = 0.0

    def _run(self) -> None:
        seen, looks = 0.0, 0
        while True:
            time.sleep(_Watch.SECONDS)
            # Counted in looks, not by the clock: a process that was paused as a whole has not waited.
            began = self._began
            looks = looks + 1 if began and began == seen else 0
            seen = began
            if looks * _Watch.SECONDS >= HUNG_SECONDS:
                log.critical(
                    "the Kafka client hangs; this process ends, so that another takes its place",
                    extra={"doing": self._doing},
                )
                logging.shutdown()
                os._exit(1)


class KafkaProducer:
    """A producer that commits what it sent and the offsets that were read in one transaction, or one after the other."""

    def __init__(self, broker: KafkaBroker, name: str, beat: Callable[[], None]) -> None:
        self._beat = beat
        self._watch = _Watch()
        self._exactly_once = broker.exactly_once
        self._failed: KafkaError | None = None
        self._open = False
        self._config: dict[str, Any] = {
            **broker.common,
            "client.id": name,
            "enable.idempotence": True,
            # Java and Faust clients place a key by murmur2; so must we where topics are shared.
            "partitioner": "murmur2_random",
            "linger.ms": 1,
            "retry.backoff.ms": 5,
            "retry.backoff.max.ms": 200,
            "queue.buffering.max.messages": 200_000,
            # A dead letter is the whole of what was received, and why: more than the broker's limit for the former.
            "message.max.bytes": 2**21,
        }
        if self._exactly_once:
            self._config |= {"transactional.id": name, "transaction.timeout.ms": TRANSACTION_TIMEOUT_SECONDS * 1000}
        else:
            self._config |= {"delivery.timeout.ms": 30_000, "delivery.report.only.error": True}
        self._client = self._connect()

    def _connect(self) -> Producer:
        callbacks = {} if self._exactly_once else {"on_delivery": self._delivered}
        client = Producer(self._config | callbacks, logger=_client_log)
        if self._exactly_once:
            try:
                self._insist("initialising", lambda: client.init_transactions(SHORT_CALL_SECONDS), INITIALISED_SECONDS)
            except KafkaException as error:
                raise BrokerError(f"transactions can't be started: {_kafka_error(error).str()}") from error
        return client

    def _delivered(self, error: KafkaError | None, _: Any) -> None:
        if error is not None:
            self._failed = error

    def emit(
        self,
        topic: str,
        value: bytes,
        key: bytes | None = None,
        timestamp: int = 0,
        headers: Headers | None = None,
        partition: int = -1,
    ) -> None:
        if not self._open:
            self._begin()
        while True:
            try:
                if headers is None:
                    self._client.produce(topic, value, key, partition, timestamp=timestamp)
                else:
                    self._client.produce(topic, value, key, partition, timestamp=timestamp, headers=list(headers))
                return
            except BufferError:
                # The queue is full: the broker is slower than we are. Wait for it; nothing more is read meanwhile.
                self._client.poll(0.05)
                self._beat()
            except KafkaException as error:
                raise _wrap(error, f"sending to {topic}") from error

    def _begin(self) -> None:
        if self._exactly_once:
            try:
                self._client.begin_transaction()
            except KafkaException as error:
                raise _wrap(error, "beginning a transaction") from error
        self._open = True

    def commit(self, offsets: Mapping[TopicPartition, Position], consumer: api.Consumer | None) -> None:
        if not self._exactly_once:
            self._flush()
            if offsets:
                assert isinstance(consumer, KafkaConsumer)  # noqa: S101  the same broker made both
                consumer.commit(offsets)
            self._open = False
            return
        if not self._open:
            self._begin()
        if offsets:
            assert isinstance(consumer, KafkaConsumer)  # noqa: S101  the same broker made both
            places = [KafkaTopicPartition(*slot, at.offset, metadata=at.note) for slot, at in offsets.items()]
            metadata = consumer.group_metadata()
            self._decide("sending offsets", self._client.send_offsets_to_transaction, places, metadata)
        self._decide("committing", self._client.commit_transaction)
        self._open = False

    def _decide(self, doing: str, call: Callable[..., None], *arguments: Any) -> None:
        """Make a call of the transaction until it is decided. Raises Aborted or Fenced."""
        try:
            self._insist(doing, lambda: call(*arguments, SHORT_CALL_SECONDS), DECIDED_SECONDS)
        except KafkaException as error:
            raise _wrap(error, doing) from error

    def _insist(self, doing: str, call: Callable[[], None], patience: float) -> None:
        """Make a call again as long as it times out; a call that is made again goes on with what it had begun."""
        deadline = time.monotonic() + patience
        while True:
            try:
                self._watch(doing, call)
                return
            except KafkaException as error:
                cause = _kafka_error(error)
                if not cause.retriable() or cause.txn_requires_abort() or time.monotonic() > deadline:
                    raise
            self._beat()

    def _flush(self) -> None:
        deadline = time.monotonic() + DECIDED_SECONDS
        while self._client.flush(SHORT_CALL_SECONDS) and self._failed is None and time.monotonic() < deadline:
            self._beat()
        left = len(self._client)
        failed, self._failed = self._failed, None
        if failed is not None or left:
            cause = failed.str() if failed else f"{left} records not acknowledged in time"
            raise Aborted(f"sending: {cause}")

    def abort(self) -> None:
        if not self._open:
            return
        self._open = False
        if not self._exactly_once:
            self._client.purge()
            self._client.flush(1.0)
            self._failed = None
            return
        try:
            self._insist("aborting", lambda: self._client.abort_transaction(SHORT_CALL_SECONDS), CALL_SECONDS)
        except KafkaException as error:
            cause = _wrap(error, "aborting")
            if isinstance(cause, Fenced):
                raise cause from error
            # What state the transaction is in is not known any more; a new producer of this name settles it.
            log.warning("producer discarded", extra={"cause": str(cause)})
            self._client = self._connect()

    def close(self) -> None:
        """Leave. A transaction that is still open is given up; where Kafka does not hear of it, its time runs out."""
        if not self._exactly_once:
            self._client.flush(SHORT_CALL_SECONDS)
        elif self._open:
            with contextlib.suppress(KafkaException):
                self._client.abort_transaction(SHORT_CALL_SECONDS)


class Sender:
    """A plain idempotent producer, as an application outside of the pipeline would use one."""

    def __init__(self, servers: str, extra: Mapping[str, Any] | None = None) -> None:
        self._failed: KafkaError | None = None
        self._client = Producer(
            {
                "bootstrap.servers": servers,
                "enable.idempotence": True,
                "partitioner": "murmur2_random",
                "linger.ms": 2,
                "delivery.report.only.error": True,
                "log_level": 4,
                **(extra or {}),
                "on_delivery": self._delivered,
            },
            logger=_client_log,
        )

    def _delivered(self, error: KafkaError | None, _: Any) -> None:
        if error is not None:
            self._failed = error

    def send(self, topic: str, value: bytes, key: bytes | None = None, headers: Headers | None = None) -> None:
        """Send one record; waits while the queue is full."""
        while True:
            try:
                self._client.produce(topic, value, key, headers=list(headers or []))
                return
            except BufferError:
                self._client.poll(0.05)

    def poll(self) -> None:
        """Serve what came back."""
        self._client.poll(0)

    def flush(self) -> None:
        """Wait until everything is acknowledged. Raises BrokerError where something could not be sent."""
        left = self._client.flush(30)
        refused, self._failed = self._failed, None
        if refused is not None or left:
            cause = refused.str() if refused else f"{left} records not acknowledged in 30 s"
            raise BrokerError(f"sending: {cause}")


class Reader:
    """Reads whole topics as they grow, outside of any group.

    Parameters
    ----------
    last
        By topic, how many records back from the end to begin; from the beginning where it says nothing.
    """

    def __init__(self, broker: KafkaBroker, topics: Sequence[str], last: Mapping[str, int] | None = None) -> None:
        slots = [TopicPartition(name, p) for name in topics for p in range(broker.partitions(name))]
        begins = dict.fromkeys(slots, OFFSET_BEGINNING)
        for slot in slots:
            if last and slot.topic in last:
                low, high = broker.watermarks(slot)
                begins[slot] = max(low, high - last[slot.topic])
        self._client = broker._reader()
        self._client.assign([KafkaTopicPartition(*slot, offset) for slot, offset in begins.items()])

    def poll(self, limit: int = 10_000, timeout: float = 0.1) -> list[api.Record]:
        """Return what has come, waiting up to `timeout` s for the first. Raises BrokerError where reading fails."""
        try:
            return _good(_take(self._client, limit, timeout))
        except KafkaException as error:
            raise _wrap(error, "reading topics") from error

    def close(self) -> None:
        """Stop."""
        self._client.close()
