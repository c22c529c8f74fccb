"""The one loop: poll a micro-batch, step, emit, commit offsets and output together, then let views be written.

Guarantee, with a transactional producer: the outputs and the consumed offsets of a batch become visible together or
not at all. State is rebuilt from Kafka at every take-over, so a crash at any instruction loses and doubles nothing.
"""

from __future__ import annotations

import gc
import logging
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from tidemill import metrics
from tidemill.errors import Aborted, Retry, Stopped
from tidemill.stream.api import Broker, Consumer, Position, Processor, Producer, TopicPartition, discard

log = logging.getLogger(__name__)

NOWHERE: Mapping[TopicPartition, int] = MappingProxyType({})
IDLE_SECONDS = 0.1
GAUGE_SECONDS = 0.1
"""How often levels are measured while records come; nobody looks more often."""
STOP_SECONDS = 3.0
"""How long a service that was asked to stop still tries to commit."""
BACKOFF_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Service:
    """One service: its name, what it reads, and its step."""

    name: str
    group: str
    topics: Sequence[str]
    step: Processor


class Loop:
    """Runs one service until it is told to stop.

    Parameters
    ----------
    interval
        Length of a micro-batch in seconds: after a batch the loop lets records gather that long.
    max_batch
        Most records in one batch; what bounds memory, together with the client's fetch queue.
    commit_every
        Least seconds between two commits. 0 for transactions (each batch is one); without transactions about 0.2,
        for brokers handle offset commits more slowly than records.
    """

    def __init__(
        self,
        service: Service,
        broker: Broker,
        *,
        instance: str = "0",
        interval: float = 0.01,
        max_batch: int = 5000,
        commit_every: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.service = service
        self.broker = broker
        self.step = service.step
        self.instance = f"{service.group}-{instance}"
        self.interval = interval
        self.max_batch = max_batch
        self.commit_every = commit_every
        self.clock = clock
        self.sleep = sleep
        self.stopping = False
        self._stop_asked_at = 0.0
        self.ready = False
        self.heartbeat = clock()
        self.watch = metrics.LoopMetrics(service.name)
        self._slots: set[TopicPartition] = set()
        self._held: dict[TopicPartition, int] = {}
        self._last_commit = self._last_batch = self._last_gauges = clock()
        self._dirty = False
        self._failures = 0
        self._settled = True

    def stop(self, *_: Any) -> None:
        """Finish the batch in hand, commit it, and return from `run`. Safe in a signal handler."""
        if not self.stopping:
            self._stop_asked_at = self.clock()
        self.stopping = True

    def run(self) -> None:
        """Run until `stop` is called. What ends it otherwise is an error that only a restart can mend."""
        tune_collector()
        # The group is joined in the background while the producer waits for the transaction that a killed predecessor
        # left open. Nothing is polled, so no committed offset is read, before that one is settled.
        consumer = self.broker.consumer(self.service.group, self.service.topics, self.instance)
        try:
            self._run_with(consumer)
        finally:
            self.ready = False
            consumer.close()

    def _run_with(self, consumer: Consumer) -> None:
        try:
            producer = self.broker.producer(self.instance, self._beat)
        except Retry as error:
            log.warning("stopped before it had begun", extra={"cause": str(error)})
            return
        try:
            while not self.stopping:
                self.turn(consumer, producer)
            self._finish(consumer, producer)
            self._publish((), consumer)
        finally:
            producer.close()

    def _finish(self, consumer: Consumer, producer: Producer) -> None:
        try:
            if self._settled and self._slots and (self.step.finish(producer.emit) or self._dirty):
                self._commit(consumer, producer)
        except (Aborted, Retry) as error:
            log.warning("left without a last commit; the next one begins there", extra={"cause": str(error)})

    def _beat(self) -> None:
        """Say that this process lives although it waits. Raises Retry where it was asked to stop and has waited enough."""
        self.heartbeat = self.clock()
        self.watch.heartbeat()
        if self.stopping and self.clock() - self._stop_asked_at > STOP_SECONDS:
            raise Retry("asked to stop while waiting for Kafka")

    def turn(self, consumer: Consumer, producer: Producer) -> int:
        """Do one round; returns how many records it handled."""
        self._beat()
        try:
            records = consumer.poll(self.max_batch, self._patience())
            if self._reassign(consumer, producer):
                return 0
            if self._process(records, producer):
                self._commit(consumer, producer)
            elif not self._dirty:
                self.step.committed()
            self._failures = 0
            self._last_batch = self.clock()
        except (Aborted, Retry) as error:
            self._back_off(error, producer)
            return 0
        except Stopped as error:
            self._commit(consumer, producer, error.positions)
            self._publish((), consumer)
            raise
        self._publish(records, consumer)
        return len(records)

    def _patience(self) -> float:
        since = self.clock() - self._last_batch
        if since < self.interval:
            self.sleep(self.interval - since)
        return min(IDLE_SECONDS, self.commit_every or IDLE_SECONDS) if self._dirty else IDLE_SECONDS

    def _process(self, records: Sequence[Any], producer: Producer) -> bool:
        started = self.clock()
        may_commit = self.step.process(records, producer.emit)
        if self.step.has_written:
            self._dirty, self.step.has_written = True, False
        if records:
            self._dirty = True
            self.watch.batch(len(records), self.clock() - started)
        return may_commit and self._dirty and self.clock() - self._last_commit >= self.commit_every

    def _commit(self, consumer: Consumer, producer: Producer, up_to: Mapping[TopicPartition, int] = NOWHERE) -> None:
        """Commit what was handled: everything that was read or, in slots that `up_to` has, what is before its offset."""
        started = self.clock()
        offsets = {
            slot: Position(up_to.get(slot, offset), self.step.note(slot))
            for slot, offset in consumer.positions(tuple(self._slots)).items()
        }
        producer.commit(offsets, consumer)
        self._held.update({slot: position.offset for slot, position in offsets.items()})
        self._dirty = False
        self._last_commit = self.clock()
        self.step.committed()
        self.watch.commit(self._last_commit - started)

    def _reassign(self, consumer: Consumer, producer: Producer) -> bool:
        """Take over and give up slots as the group decides; returns whether there is nothing to process this turn."""
        revoked, assigned = consumer.changes()
        if revoked or assigned:
            if self._dirty:
                producer.abort()
                self._forget(self._slots)
            self._slots = (self._slots - revoked) | assigned
            self._settled = False
            log.info("partitions assigned", extra={"slots": _shown(self._slots), "revoked": _shown(revoked - assigned)})
        if not self._settled:
            self.ready = False
            self._take_over(consumer)
            self._settled = self.ready = True
            return True
        if not self._slots:
            self.ready = consumer.joined()  # with nothing to do: it stands by
        return not self._slots

    def _forget(self, slots: Iterable[TopicPartition]) -> None:
        slots = set(slots)
        self.step.revoke(slots)
        for slot in slots:
            self._held.pop(slot, None)
        self._dirty = False

    def _take_over(self, consumer: Consumer) -> None:
        """Bring the state of all slots to what Kafka has committed, silently, and start reading from there.

        State is a function of the offsets, so where a slot came back and nobody has committed beyond what we hold,
        what we hold is right and nothing is rebuilt.
        """
        committed = consumer.committed(sorted(self._slots)) if self._slots else {}
        positions: dict[TopicPartition, Position] = {}
        lows: dict[TopicPartition, int] = {}
        for slot, position in committed.items():
            low, high = self.broker.offset_range(slot)
            lows[slot] = low
            if position is None:
                position = Position(low)
            elif not low <= position.offset <= high:
                where = low if position.offset < low else high
                log.error(
                    "records lost: the log does not hold the committed offset any more",
                    extra={
                        "slot": _shown([slot]),
                        "committed": position.offset,
                        "first": low,
                        "end": high,
                        "resume": where,
                    },
                )
                # Counted at once: what a step has counted is forgotten when its state is rebuilt.
                self.watch.counts({("lost_records", slot.topic): abs(where - position.offset)})
                position = Position(where)
            positions[slot] = position
        groups: dict[int, list[TopicPartition]] = {}
        for slot in positions:
            groups.setdefault(slot.partition, []).append(slot)
        stale = {
            slot
            for slots in groups.values()
            if any(self._held.get(slot) != positions[slot].offset for slot in slots)
            for slot in slots
        } | {slot for slot in self._held if slot not in positions}
        self._forget(stale)
        starts = {slot: position.offset for slot, position in positions.items()}
        ranges: dict[TopicPartition, tuple[int, int]] = {}
        for slot in sorted(stale & positions.keys()):
            start = self.step.assign(slot, positions[slot])
            begin = start.rebuild_from
            if begin < lows[slot] and begin < start.live_from:
                log.error(
                    "state is partial: the log does not reach back to where it is rebuilt from",
                    extra={"slot": _shown([slot]), "needed": begin, "first": lows[slot]},
                )
                self.step.truncated(slot)
                begin = lows[slot]
            starts[slot] = start.live_from
            if begin < start.live_from:
                ranges[slot] = (begin, start.live_from)
        self._rebuild(consumer, ranges)
        self._held.update(starts)
        self.step.committed()
        consumer.start(starts)
        log.info("reading", extra={"from": ", ".join(f"{_shown([slot])}@{starts[slot]}" for slot in sorted(starts))})
        self._last_commit = self.clock()

    def _rebuild(self, consumer: Consumer, ranges: dict[TopicPartition, tuple[int, int]]) -> None:
        if not ranges:
            return
        total = sum(end - begin for begin, end in ranges.values())
        log.info("rebuilding state from the log", extra={"records": total, "slots": _shown(ranges)})
        started, done = self.clock(), 0
        for batch in self.broker.read(ranges):
            self.step.process(batch, discard)
            done += len(batch)
            consumer.poll(1, 0.0)  # stay in the group; nothing comes before `start`
            self._beat()
            if self.stopping:
                raise Retry("asked to stop while rebuilding")
        self.step.observed.clear()
        self.step.counts.clear()
        self.watch.rebuilt(done)
        log.info("state rebuilt", extra={"records": done, "seconds": round(self.clock() - started, 3)})

    def _back_off(self, error: Exception, producer: Producer) -> None:
        pause = BACKOFF_SECONDS[min(self._failures, len(BACKOFF_SECONDS) - 1)]
        self._failures += 1
        self._settled = self.ready = False
        self.watch.retry()
        if self.stopping:
            return  # what is open is given up when the producer is closed
        log.warning("going back to what is committed", extra={"cause": str(error), "pause_seconds": pause})
        self.step.observed.clear()
        self.step.counts.clear()
        self._forget(self._slots)
        try:
            producer.abort()
        except Retry:
            return  # asked to stop meanwhile
        self.sleep(pause)

    def _publish(self, records: Sequence[Any], consumer: Consumer) -> None:
        if self.step.counts:
            self.watch.counts(self.step.counts)
            self.step.counts.clear()
        if self.step.observed:
            self.watch.observed(self.step.observed)
            self.step.observed.clear()
        if records:
            self.watch.delay(time.time() - records[0].timestamp()[1] / 1000)
        if not records or self.clock() - self._last_gauges > GAUGE_SECONDS:
            self._last_gauges = self.clock()
            self.watch.gauges(self.step.gauges())
            self.watch.lag(consumer.lag())


def tune_collector() -> None:
    """Have Python's cycle collector look rarely, and never again at what is loaded by now.

    Records are trees: counting references frees them. What the collector would find by walking all state again and
    again, every few hundred records, is next to nothing.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


def stop_on_signals(loop: Loop) -> None:
    """Make SIGTERM and SIGINT drain: the loop finishes its batch, commits, leaves and returns."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, loop.stop)


def _shown(slots: Iterable[TopicPartition]) -> str:
    return ", ".join(f"{slot.topic}[{slot.partition}]" for slot in sorted(slots))
