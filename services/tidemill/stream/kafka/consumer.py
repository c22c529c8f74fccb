"""Reading from Kafka: a static member of a consumer group, and a reader outside of any group."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaException  # noqa: TID251  this is where Kafka clients live
from confluent_kafka import TopicPartition as KafkaTopicPartition  # noqa: TID251

from tidemill.stream import api
from tidemill.stream.api import Position, TopicPartition
from tidemill.stream.kafka.errors import service_error, without_errors
from tidemill.stream.order import TimeOrder
from tidemill.stream.topic import READING_GROUP

_client_log = logging.getLogger("librdkafka")

CALL_SECONDS = 10.0
#: Only records older than this are worth ordering. Younger ones are at most that much out of order, and to let them
#: wait for a partition whose newest records are still in an open transaction would cost a delay that feeds on itself.
CATCHING_UP_MS = 5000
#: Less than this is what an open transaction or a burst may hold, and is not worth waiting for.
FAR_BEHIND_OFFSETS = 100
#: How long records wait for a partition that is far behind and does not come; then they go on without it.
MAX_WAIT_SECONDS = 0.5
#: How long the broker holds back the answer to a fetch while nothing has come. A member that begins elsewhere has to
#: wait for it.
IDLE_FETCH_SECONDS, MEMBER_IDLE_FETCH_SECONDS = 0.5, 0.1
#: The embedded broker answers a fetch of nothing only then, also where records come meanwhile.
EMBEDDED_FETCH_SECONDS = 0.02
#: Records that may wait are fetched together: so many bytes of them, or what has come in half the time that they may
#: wait. Where that is shorter than this, fetches of nothing would cost more than those of few records.
GATHERED_BYTES = 256 * 1024
MIN_GATHER_SECONDS = 0.05


class KafkaConsumer:
    """A static member of a consumer group that starts where it is told.

    Parameters
    ----------
    common
        librdkafka properties of every client.
    end_offset
        Asks the broker for the end of a partition.
    max_wait
        Seconds that records may wait for others, to be fetched with them.
    idle_fetch
        Seconds that the broker may hold back the answer to a fetch while nothing has come.
    """

    def __init__(
        self,
        common: Mapping[str, Any],
        group: str,
        topics: Sequence[str],
        instance: str,
        end_offset: Callable[[TopicPartition], int],
        max_wait: float = 0.0,
        idle_fetch: float = MEMBER_IDLE_FETCH_SECONDS,
    ) -> None:
        gather = max_wait / 2 if max_wait / 2 >= MIN_GATHER_SECONDS else 0.0
        self._revoked: set[TopicPartition] = set()
        self._assigned: set[TopicPartition] = set()
        self._started = self._closing = self._joined = False
        self._order = TimeOrder()
        self._end_offset = end_offset
        self._end_offsets: dict[TopicPartition, int] = {}
        self._waiting_since = 0.0
        self._client = Consumer(
            {
                **common,
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
                "fetch.min.bytes": GATHERED_BYTES if gather else 1,
                "fetch.wait.max.ms": int((gather or idle_fetch) * 1000),
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
        # in the client: now and then it fetches from the first position, although the second was the last.
        client.assign([])
        if self._closing:
            return
        self._joined = True
        self._started = False
        self._assigned |= {TopicPartition(p.topic, p.partition) for p in partitions}

    def _on_revoke(self, client: Consumer, partitions: list[KafkaTopicPartition]) -> None:
        revoked = {TopicPartition(p.topic, p.partition) for p in partitions}
        self._revoked |= revoked
        self._assigned -= revoked
        self._started = self._joined = False
        client.unassign()

    def _on_lost(self, client: Consumer, partitions: list[KafkaTopicPartition]) -> None:
        # Somebody else may own them already. The loop aborts what it has not committed and drops their state.
        self._on_revoke(client, partitions)

    def poll(self, limit: int, timeout: float) -> list[api.Record]:
        try:
            first = self._client.poll(timeout)
            messages = [] if first is None else [first]
            if first is not None and limit > 1 and self._started:
                # consume(n, t) would wait for n: take what is there.
                messages += self._client.consume(limit - 1, 0)
            records = without_errors(messages)
        except KafkaException as error:
            raise service_error(error, "reading") from error
        if not self._started or self._revoked or self._assigned:
            # After a change of assignment the loop starts every partition again: what was read belongs to nobody.
            return []
        self._order.add(records)
        return self._order.release(self._behind()) if len(self._order) else []

    def _behind(self) -> set[TopicPartition]:
        """Return partitions that the others should wait for: far behind by the last answers of the broker."""
        if len(self._order.positions) < 2 or time.time() * 1000 - self._order.oldest() < CATCHING_UP_MS:
            return set()
        end_offsets = {}
        for partition in self._order.positions:
            _, end = self._client.get_watermark_offsets(KafkaTopicPartition(*partition), cached=True)
            # Without an answer yet, what the broker said at the start counts.
            end_offsets[partition] = end if end >= 0 else self._end_offsets[partition]
        behind = self._order.behind(end_offsets, FAR_BEHIND_OFFSETS)
        now = time.monotonic()
        if not behind:
            self._waiting_since = now
        elif now - self._waiting_since > MAX_WAIT_SECONDS:
            return set()
        return behind

    def joined(self) -> bool:
        return self._joined

    def changes(self) -> tuple[set[TopicPartition], set[TopicPartition]]:
        revoked, assigned = self._revoked, self._assigned
        self._revoked, self._assigned = set(), set()
        return revoked, assigned

    def committed(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, Position | None]:
        return committed_offsets(self._client, partitions)

    def start(self, offsets: Mapping[TopicPartition, int]) -> None:
        if not offsets:
            return
        # Where the log ends now: until a partition's first records have come, how far it is behind is known from this.
        several = len(offsets) > 1
        self._end_offsets = {partition: self._end_offset(partition) for partition in offsets} if several else {}
        self._order.clear(dict(offsets))
        self._waiting_since = time.monotonic()
        self._client.assign([KafkaTopicPartition(*partition, offset) for partition, offset in offsets.items()])
        self._started = True

    def positions(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        positions = self._order.positions
        return {partition: positions[partition] for partition in partitions if partition in positions}

    def lag(self) -> dict[TopicPartition, int]:
        lag = {}
        for partition, position in self._order.positions.items():
            with contextlib.suppress(KafkaException, RuntimeError):
                _, end = self._client.get_watermark_offsets(KafkaTopicPartition(*partition), cached=True)
                if end >= 0:
                    lag[partition] = max(0, end - position - 1)  # the last one is the marker of a transaction's end
        return lag

    def group_metadata(self) -> Any:
        """Return what proves to the transaction coordinator that this member is still in the group."""
        return self._client.consumer_group_metadata()

    def commit(self, offsets: Mapping[TopicPartition, Position]) -> None:
        """Commit without a transaction, and wait for the answer."""
        try:
            self._client.commit(offsets=committable(offsets), asynchronous=False)
        except KafkaException as error:
            raise service_error(error, "committing offsets") from error

    def close(self) -> None:
        self._closing = True
        # An assignment that arrives only inside of close() is never answered, and the client waits for ever.
        # After unsubscribe() no further one comes; one that waits already is answered here.
        with contextlib.suppress(KafkaException, RuntimeError):
            self._client.unsubscribe()
            for _ in range(50):
                if self._client.poll(0.02) is None:
                    break
        self._client.close()


class KafkaFollower:
    """Reads partitions as they grow, outside of any group; `offsets` says from where on."""

    def __init__(self, client: Consumer, offsets: Mapping[TopicPartition, int]) -> None:
        self._client = client
        client.assign([KafkaTopicPartition(*partition, offset) for partition, offset in offsets.items()])

    def poll(self, limit: int = 10_000, timeout: float = 0.1) -> list[api.Record]:
        try:
            return without_errors(take(self._client, limit, timeout))
        except KafkaException as error:
            raise service_error(error, "following topics") from error

    def close(self) -> None:
        self._client.close()


def reading_client(
    common: Mapping[str, Any],
    group: str = READING_GROUP,
    isolation: str = "read_committed",
    wait_seconds: float = 0.05,
) -> Consumer:
    """Return a client that reads what is committed, from offsets that it is given; it joins no group.

    It takes `wait_seconds` to know that a partition has nothing more.
    """
    return Consumer(
        {
            **common,
            "group.id": group,  # never joined and never committed to: only assign() is used
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
            "isolation.level": isolation,
            "fetch.wait.max.ms": int(wait_seconds * 1000),
        },
        logger=_client_log,
    )


def take(client: Consumer, limit: int, timeout: float) -> list[Any]:
    """Return at most `limit` messages, waiting up to `timeout` s for the first.

    `consume(n, t)` would wait for all n.
    """
    first = client.poll(timeout)
    return [] if first is None else [first, *client.consume(limit - 1, 0)]


def committable(offsets: Mapping[TopicPartition, Position]) -> list[KafkaTopicPartition]:
    """Return positions as the client commits them, with their metadata."""
    return [
        KafkaTopicPartition(*partition, position.offset, metadata=position.metadata)
        for partition, position in offsets.items()
    ]


def committed_offsets(client: Consumer, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, Position | None]:
    """Return what the client's group has committed; None where it has committed nothing."""
    try:
        answers = client.committed([KafkaTopicPartition(*partition) for partition in partitions], timeout=CALL_SECONDS)
    except KafkaException as error:
        raise service_error(error, "asking for committed offsets") from error
    for p in answers:
        if p.error is not None:  # its offset is then as if nothing had ever been committed
            raise service_error(KafkaException(p.error), f"asking for the committed offset of {p.topic}[{p.partition}]")
    return {
        TopicPartition(p.topic, p.partition): None if p.offset < 0 else Position(p.offset, p.metadata or "")
        for p in answers
    }
