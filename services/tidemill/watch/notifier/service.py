"""The notifier: alerts, decisions and warnings in; signed webhooks, and messages by apprise, out.

reads   <pipeline>.alerts and .promotions, signed; <pipeline>.warnings, of which only that a circuit breaker has opened
writes  nothing in Kafka but its progress
state   the notices that wait, by receiver, in order; rebuilt from the log, from the first that waits; where the chains
        of signed records stand there, so that an old record that is appended again is refused, and nobody is told
outage  a receiver that is away holds up nobody else; it is tried again until a notice is too old, and that is counted

A notice is sent at least once, and has the same id each time: it is sent again where the process ends between a
delivery and the commit after it. Attempts are made in threads beside the loop, one at a time for a receiver.
"""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import NamedTuple

from tidemill.declare.pipeline import Pipeline
from tidemill.keys import Keyring
from tidemill.registry.signing import Past, no_past, past_of
from tidemill.stream.api import Broker, Emit, Position, Processor, Record, Start, TopicPartition, discard
from tidemill.stream.commit_metadata import CommitMetadata
from tidemill.stream.group import Service
from tidemill.watch.notifier.delivery import DeliveryError, Send, sender
from tidemill.watch.notifier.notices import Notice, Notices
from tidemill.webhooks import Receiver
from tidemill.wire.services import service

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 1.0, 300.0
#: How often a notice is sent to a receiver that refuses what is in it.
MAX_REFUSALS = 3
#: Notices that wait for one receiver; of more, the oldest are given up. It bounds memory.
MAX_WAITING = 10_000
#: How long attempts that are under way may take once the service is to end.
STOP_SECONDS = 2.0


class Waiting(NamedTuple):
    """A notice that waits, and the record that it was made of."""

    partition: TopicPartition
    offset: int
    notice: Notice


@dataclass
class Outbox:
    """What waits for one receiver, and how it fared lately."""

    receiver: Receiver
    send: Send
    waiting: deque[Waiting] = field(default_factory=deque)
    attempt: tuple[Waiting, Future[None]] | None = None
    failures: int = 0
    refusals: int = 0
    not_before: float = 0.0


class Notifier(Processor):
    """Sends notices to receivers, each in order.

    Parameters
    ----------
    senders
        How each receiver is told, by name.
    patience
        How long it tries to deliver a notice, in s.
    past
        Returns the records of a topic before an offset.
    executor
        Makes the attempts.
    clock
        Wall time, in s.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        keys: Keyring | None,
        receivers: Mapping[str, Receiver],
        senders: Mapping[str, Send],
        *,
        patience: float,
        past: Past = no_past,
        executor: Executor | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        self.notices, self.patience, self.past, self.clock = Notices(pipeline, keys), patience, past, clock
        self.outboxes = {name: Outbox(receiver, senders[name]) for name, receiver in receivers.items()}
        self.executor = executor or ThreadPoolExecutor(max(1, len(receivers)), "attempt")
        self._begin: dict[TopicPartition, dict[str, int]] = {}

    def assign(self, topic_partition: TopicPartition, committed: Position) -> Start:
        self.revoke([topic_partition])
        undelivered = dict(CommitMetadata.decode(committed.metadata).undelivered)
        begin = {name: undelivered.get(name, committed.offset) for name in self.outboxes}
        self._begin[topic_partition] = begin
        first = min([committed.offset, *begin.values()])
        self.notices.restore(topic_partition.topic, self.past, first)
        return Start(first, committed.offset)

    def revoke(self, topic_partitions: Iterable[TopicPartition]) -> None:
        gone = set(topic_partitions)
        for box in self.outboxes.values():
            box.waiting = deque(one for one in box.waiting if one.partition not in gone)

    def commit_metadata(self, topic_partition: TopicPartition) -> CommitMetadata:
        """Return for whom which record of this partition waits."""
        first: dict[str, int] = {}
        for name, box in self.outboxes.items():
            for one in box.waiting:
                if one.partition == topic_partition:
                    first[name] = one.offset
                    break
        return CommitMetadata(undelivered=tuple(first.items()))

    def process(self, records: Sequence[Record], emit: Emit) -> bool:
        is_live = emit is not discard
        for record in records:
            notice = self.notices.of(record)
            if notice is None:
                continue
            partition = TopicPartition(record.topic(), record.partition())
            begin = self._begin.get(partition, {})
            for name, box in self.outboxes.items():
                if box.receiver.wants(notice.kind) and (is_live or record.offset() >= begin.get(name, 0)):
                    box.waiting.append(Waiting(partition, record.offset(), notice))
                    if len(box.waiting) > MAX_WAITING:
                        self._give_up(box, [box.waiting.popleft()], f"more than {MAX_WAITING:,} wait")
        if is_live:
            self._deliver()
        return True

    def finish(self, emit: Emit) -> bool:
        del emit
        wait([box.attempt[1] for box in self.outboxes.values() if box.attempt], STOP_SECONDS)
        self.executor.shutdown(wait=False)
        for box in self.outboxes.values():
            self._take_outcome(box)
        return True

    def gauges(self) -> Mapping[tuple[str, str], float]:
        """Return how many notices wait, by receiver."""
        return {("notices_waiting", name): len(box.waiting) for name, box in self.outboxes.items()}

    def _deliver(self) -> None:
        """Take the outcomes of attempts, and begin those that are due."""
        for box in self.outboxes.values():
            self._take_outcome(box)
            if box.attempt:
                continue
            now = self.clock()
            oldest = (now - self.patience) * 1000
            if late := [one for one in box.waiting if one.notice.time < oldest]:
                box.waiting = deque(one for one in box.waiting if one.notice.time >= oldest)
                self._give_up(box, late, f"older than {self.patience / 3600:g} hours")
            if box.waiting and now >= box.not_before:
                one = box.waiting[0]
                box.attempt = one, self.executor.submit(box.send, one.notice)

    def _take_outcome(self, box: Outbox) -> None:
        if box.attempt is None or not box.attempt[1].done():
            return
        (one, attempt), box.attempt = box.attempt, None
        if not box.waiting or box.waiting[0] is not one:
            return  # its partition was taken away meanwhile
        error, name = attempt.exception(), box.receiver.name
        if error is None:
            box.waiting.popleft()
            box.failures, box.refusals, box.not_before, self.has_written = 0, 0, 0.0, True
            self.counts["notices", name] += 1
            log.info("notice delivered", extra={"receiver": name, "notice": one.notice.id, "of": one.notice.title})
            return
        if not isinstance(error, DeliveryError):
            raise error
        self.counts["notice_failures", name] += 1
        box.refusals += error.is_final
        if box.refusals >= MAX_REFUSALS:
            self._give_up(box, [box.waiting.popleft()], f"{error}, {MAX_REFUSALS} times")
            box.failures, box.not_before = 0, 0.0
            return
        pause = min(FIRST_PAUSE_SECONDS * 2.0**box.failures, MAX_PAUSE_SECONDS)
        box.failures, box.not_before = box.failures + 1, self.clock() + pause * random.uniform(0.5, 1.0)  # noqa: S311
        log.warning(
            "notice not delivered; it is sent again",
            extra={"receiver": name, "notice": one.notice.id, "cause": str(error), "failures": box.failures},
        )

    def _give_up(self, box: Outbox, gone: Sequence[Waiting], why: str) -> None:
        """Count notices that receivers do not get, and log where their records are."""
        box.refusals, self.has_written = 0, True
        self.counts["undelivered", box.receiver.name] += len(gone)
        places = [f"{one.partition.topic}[{one.partition.partition}]@{one.offset}" for one in (gone[0], gone[-1])]
        log.error(
            "notices given up",
            extra={
                "receiver": box.receiver.name,
                "notices": len(gone),
                "records": " to ".join(dict.fromkeys(places)),
                "first": gone[0].notice.title,
                "cause": why,
            },
        )


def build(
    pipeline: Pipeline, keys: Keyring | None, broker: Broker, receivers: Mapping[str, Receiver], patience: float
) -> Service:
    """Wire the notifier to its topics. Raises SettingsError where a receiver can't be told."""
    if not receivers:
        log.warning("nobody is told of alerts, decisions and circuit breakers: set TIDEMILL_NOTIFY")
    senders = {name: sender(receiver) for name, receiver in receivers.items()}
    step = Notifier(pipeline, keys, receivers, senders, patience=patience, past=past_of(broker))
    return service("notifier", pipeline, step)
