"""The one loop: poll a micro-batch, process, emit, commit offsets and output together, then let views be written.

Guarantee, with a transactional producer: the outputs and the consumed offsets of a batch become visible together or
not at all. State is rebuilt from Kafka whenever partitions are assigned, so a crash at any instruction loses and
doubles nothing.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from tidemill import metrics
from tidemill.errors import Aborted, BrokerError, PositionError, Refused, Reject, Retry, Stopped
from tidemill.stream import restore
from tidemill.stream.api import Broker, Consumer, Emit, Position, Processor, Producer, Record, TopicPartition, discard
from tidemill.stream.declared import NOTHING_DECLARED, TOPIC_CHECK_SECONDS, TOPIC_CHECK_TIMEOUT, DeclaredTopics
from tidemill.stream.narrowing import LETTER_BYTES, Narrowing
from tidemill.stream.origin import origin_of
from tidemill.stream.progress import ProgressLog

log = logging.getLogger(__name__)

NOWHERE: Mapping[TopicPartition, int] = MappingProxyType({})
IDLE_SECONDS = 0.1
#: How often levels are measured while records come; nobody reads them more often.
GAUGE_SECONDS = 0.1
#: In so many of a batch's last records is looked for the last of each partition, by which its log is known again.
LAST_RECORDS = 64
#: How long a service that was asked to stop still tries to commit.
STOP_SECONDS = 3.0
#: Offsets of a group in which nothing happens are committed again this often, so that no broker forgets them.
KEEP_ALIVE_SECONDS = 3600.0
BACKOFF_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Service:
    """One service: its name, what it reads, and its processor.

    Parameters
    ----------
    progress
        The topic with the progress of its group; empty for none.
    outputs
        Topics in which a record shows that the service has worked.
    decide
        The command with which a person decides from where it goes on.
    """

    name: str
    group: str
    topics: Sequence[str]
    processor: Processor
    progress: str = ""
    outputs: Sequence[str] = ()
    decide: str = "tidemill offsets set"


class Loop:
    """Runs one service until it is told to stop.

    Parameters
    ----------
    interval
        Length of a micro-batch in seconds: after a batch the loop lets records gather that long.
    max_batch
        Most records in one batch; with the client's fetch queue it bounds memory.
    commit_every
        Least seconds between two commits. 0 for transactions (each batch is one); without transactions about 0.2,
        because brokers handle offset commits more slowly than records.
    keep_alive
        Seconds without a commit after which the offsets are committed again.
    declared
        The partitions that topics must have, by topic: those that the service reads and writes.
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
        keep_alive: float = KEEP_ALIVE_SECONDS,
        declared: Mapping[str, int] = NOTHING_DECLARED,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.service = service
        self.broker = broker
        self.processor = service.processor
        self.instance = f"{service.group}-{instance}"
        self.interval = interval
        self.max_batch = max_batch
        self.commit_every = commit_every
        self.keep_alive = keep_alive
        self.clock = clock
        self.sleep = sleep
        self.stopping = False
        self._stop_asked_at = 0.0
        self.ready = False
        self.heartbeat = clock()
        self.watch = metrics.LoopMetrics(service.name)
        self._partitions: set[TopicPartition] = set()
        self._state_offsets: dict[TopicPartition, int] = {}
        self._last_commit = self._last_batch = self._last_gauges = clock()
        self._dirty = False
        self._failures = 0
        self._settled = True
        self._narrowing = Narrowing(max_batch)
        self._held: list[Record] = []
        self._progress = ProgressLog(broker, service.progress, service.group)
        self._declared = DeclaredTopics(broker, declared, clock)
        self._topic_ids: dict[str, str] = {}
        self._last: dict[TopicPartition, Record] = {}
        self._last_read: dict[TopicPartition, str] = {}
        self._last_topic_check = clock()

    def stop(self, *_: Any) -> None:
        """Finish the batch in hand, commit it, and return from `run`. Safe in a signal handler."""
        if not self.stopping:
            self._stop_asked_at = self.clock()
        self.stopping = True

    def run(self) -> None:
        """Run until `stop` is called. Any other end is an error that only a restart fixes."""
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
            log.warning("stopped before it had started", extra={"cause": str(error)})
            return
        try:
            while not self.stopping:
                self.run_once(consumer, producer)
            self._finish(consumer, producer)
            self._publish((), consumer)
        finally:
            producer.close()

    def _finish(self, consumer: Consumer, producer: Producer) -> None:
        try:
            if self._settled and self._partitions and (self.processor.finish(producer.emit) or self._dirty):
                self._commit(consumer, producer)
        except (Aborted, Retry) as error:
            log.warning(
                "stopped without a last commit; the next process begins at what is committed",
                extra={"cause": str(error)},
            )

    def _beat(self) -> None:
        """Count as alive while waiting. Raises Retry where it was asked to stop and has waited long enough."""
        self.heartbeat = self.clock()
        self.watch.heartbeat()
        if self.stopping and self.clock() - self._stop_asked_at > STOP_SECONDS:
            raise Retry("asked to stop while waiting for Kafka")

    def run_once(self, consumer: Consumer, producer: Producer) -> int:
        """Do one round; returns how many records it handled."""
        self._beat()
        try:
            records = self._take(consumer)
            if self._reassign(consumer, producer):
                return 0
            self._check_topics()
            if self._process(records, producer) or self._is_due_again():
                self._commit(consumer, producer)
            elif not self._dirty:
                self.processor.committed()
            self._last_batch = self.clock()
        except Refused as error:
            self._narrow(error, producer)
            return 0
        except (Aborted, Retry) as error:
            self._back_off(error, producer)
            return 0
        except Stopped as error:
            self._commit(consumer, producer, error.positions)
            self._publish((), consumer)
            raise
        self._publish(records, consumer)
        return len(records)

    def _take(self, consumer: Consumer) -> Sequence[Record]:
        """Return the next records; fewer of them while one is looked for that Kafka refuses."""
        if not self._held:
            records: Sequence[Record] = consumer.poll(self.max_batch, self._patience())
        else:
            records = [*self._held, *consumer.poll(1, 0.0)]  # stay in the group
        limit = self._narrowing.limit if self._narrowing.is_on else self.max_batch
        self._held = list(records[limit:]) if len(records) > limit else []
        return records[:limit] if self._held else records

    def _patience(self) -> float:
        since = self.clock() - self._last_batch
        if since < self.interval:
            self.sleep(self.interval - since)
        return min(IDLE_SECONDS, self.commit_every or IDLE_SECONDS) if self._dirty else IDLE_SECONDS

    def _is_due_again(self) -> bool:
        """Whether nothing was committed for so long that the broker might forget what was."""
        return not self._dirty and self.clock() - self._last_commit >= self.keep_alive

    def _process(self, records: Sequence[Any], producer: Producer) -> bool:
        started = self.clock()
        self.processor.in_hand = None
        emit = producer.emit if producer.is_transactional else producer.emit_of(self._in_hand)
        if records and self._narrowing.is_on:
            may_commit = self._process_apart(records, emit, producer)
        else:
            self._narrowing.took(records)
            may_commit = self.processor.process(records, emit)
        if self.processor.has_written:
            self._dirty, self.processor.has_written = True, False
        if records:
            self._dirty = True
            self._last |= {TopicPartition(r.topic(), r.partition()): r for r in records[-LAST_RECORDS:]}
            self.watch.batch(len(records), self.clock() - started)
        is_due = self._narrowing.is_on or self.clock() - self._last_commit >= self.commit_every
        return may_commit and self._dirty and is_due

    def _process_apart(self, records: Sequence[Record], emit: Emit, producer: Producer) -> bool:
        """Process records one by one, and now and then wait until what they became has arrived: one may be refused."""
        may_commit, refused, why = True, list[Record](), ""
        for index, record in enumerate(records):
            self._narrowing.took([record])
            try:
                if refusal := self._narrowing.refusal(record):
                    self._refuse_one(record, *refusal, producer)
                else:
                    may_commit = self.processor.process([record], emit)
            except Stopped:
                self._held = [*records[index + 1 :], *self._held]  # what is after it is not committed
                raise
            except Refused as error:
                if not error.is_early:
                    raise
                refused.append(record)  # and on to the next: all of them are found before it goes back
                why = str(error)
            if self._narrowing.must_wait:
                producer.wait()
                self._narrowing.arrived()
        if refused:
            raise Refused(why, refused)
        return may_commit

    def _in_hand(self) -> Record | None:
        return self.processor.in_hand

    def _commit(self, consumer: Consumer, producer: Producer, up_to: Mapping[TopicPartition, int] = NOWHERE) -> None:
        """Commit all that was read or, in partitions that `up_to` has, what is before its offset."""
        started = self.clock()
        if self._held:  # what was read and is not processed yet
            ahead = {TopicPartition(r.topic(), r.partition()): r.offset() for r in reversed(self._held)}
            up_to = {**ahead, **up_to}
        self._last_read |= {partition: restore.fingerprint(record) for partition, record in self._last.items()}
        self._last.clear()
        offsets = {
            partition: restore.mark(
                replace(
                    self.processor.commit_metadata(partition),
                    instance=self.instance,
                    last=self._last_read.get(partition, ""),
                ),
                up_to.get(partition, offset),
                self._topic_ids.get(partition.topic, ""),
            )
            for partition, offset in consumer.positions(tuple(self._partitions)).items()
        }
        if producer.is_transactional:
            self._progress.write(offsets, producer.emit)
        self._send(offsets, consumer, producer)
        if not producer.is_transactional:  # later than what it is the progress of
            self._progress.write(offsets, producer.emit)
        self._state_offsets.update({partition: position.offset for partition, position in offsets.items()})
        self._dirty = False
        self._failures = 0
        self._narrowing.committed()
        self._last_commit = self.clock()
        self.processor.committed()
        self.watch.commit(self._last_commit - started)

    def _send(self, offsets: Mapping[TopicPartition, Position], consumer: Consumer, producer: Producer) -> None:
        """Commit; where the producer says which records were refused, they are made dead letters first."""
        for max_bytes in LETTER_BYTES:
            try:
                producer.commit(offsets, consumer)
                return
            except Refused as error:
                if not error.records or not self.processor.dlq:
                    raise
                refused = {(record.topic(), record.partition(), record.offset()): record for record in error.records}
                for record in refused.values():
                    self._make_dead_letter(record, str(error), producer, max_bytes)
        producer.commit(offsets, consumer)

    def _narrow(self, error: Refused, producer: Producer) -> None:
        """Go back, and send the same records in ever smaller parts, until the one that Kafka refuses is alone."""
        if not self.processor.dlq:
            raise BrokerError(f"{error}; this is no record's fault: raise max.message.bytes of the topic") from error
        records = [self.processor.in_hand] if error.is_early and self.processor.in_hand else error.records
        if records:
            is_new = sum(self._narrowing.found(record, str(error)) for record in records) > 0
        else:
            is_new = self._narrowing.failed(str(error), next_is_early=error.next_is_early)
        if is_new:
            self._go_back(error, producer, "in smaller parts: Kafka refuses what a record becomes")
        else:
            self._back_off(error, producer)

    def _refuse_one(self, record: Record, why: str, max_bytes: int, producer: Producer) -> None:
        """Make a record a dead letter of which nothing could be written; the state has it, as after a rebuild."""
        self.processor.process([record], discard)
        self.processor.observed.clear()
        self.processor.counts.clear()
        self._make_dead_letter(record, why, producer, max_bytes)

    def _make_dead_letter(self, record: Record, error: str, producer: Producer, max_bytes: int) -> None:
        log.error(
            "a record becomes a dead letter, because Kafka refuses what it becomes",
            extra={"record": f"{record.topic()}[{record.partition()}]@{record.offset()}", "cause": error},
        )
        emit = producer.emit if producer.is_transactional else producer.emit_of(lambda: record)
        self.processor.refuse(record, Reject("not_written", error), emit, max_bytes)

    def _reassign(self, consumer: Consumer, producer: Producer) -> bool:
        """Follow the group's assignment; returns whether there is nothing to process in this round."""
        revoked, assigned = consumer.changes()
        if revoked or assigned:
            if self._dirty:
                producer.abort()
                self._forget(self._partitions)
            self._partitions = (self._partitions - revoked) | assigned
            for partition in revoked - assigned:
                self._last_read.pop(partition, None)
            self._settled = False
            self._narrowing = Narrowing(self.max_batch)
            log.info(
                "partitions assigned",
                extra={"partitions": _names(self._partitions), "revoked": _names(revoked - assigned)},
            )
        if not self._settled:
            self.ready = False
            self._restore(consumer, producer)
            self._settled = self.ready = True
            return True
        if not self._partitions:
            self.ready = consumer.joined()  # with nothing to do: it stands by
        return not self._partitions

    def _forget(self, partitions: Iterable[TopicPartition]) -> None:
        partitions = set(partitions)
        self.processor.revoke(partitions)
        for partition in partitions:
            self._state_offsets.pop(partition, None)
        self._dirty = False

    def _restore(self, consumer: Consumer, producer: Producer) -> None:
        """Bring the state of all partitions to what Kafka has committed, silently, and start reading from there."""
        self._held = []
        self._last.clear()
        self._narrowing.went_back()
        self._declared.check()
        partitions = sorted(self._partitions)
        for name in self.broker.end_left_open(self.service.group, partitions, self.instance) if partitions else ():
            log.warning("what an instance may have left open is ended: it is in the group no more", extra={"of": name})
        committed = consumer.committed(partitions) if partitions else {}
        ranges = {partition: self.broker.offset_range(partition) for partition in committed}
        positions = self._own_positions(committed, ranges)
        self._know_again(positions, ranges)
        resumes = {p: restore.resume_position(position, *ranges[p]) for p, position in positions.items()}
        self._report_lost(positions, resumes)
        stale = restore.stale_partitions(self._state_offsets, resumes)
        self._forget(stale)
        starts = {p: self.processor.assign(p, resumes[p].position) for p in sorted(stale & resumes.keys())}
        try:
            plan = restore.plan(resumes, starts)
        except PositionError as error:
            raise PositionError(f"{self.service.name} can't go on: {error}") from error
        for partition, needed in plan.truncated.items():
            log.error(
                "state is partial: the log does not reach back to where it is rebuilt from",
                extra={"partition": _names([partition]), "needed": needed, "first": resumes[partition].log_begin},
            )
            self.processor.truncated(partition)
        self._rebuild(consumer, plan.rebuild)
        self._state_offsets.update(plan.read_from)
        self.processor.committed()
        consumer.start(plan.read_from)
        log.info(
            "reading", extra={"from": ", ".join(f"{_names([p])}@{plan.read_from[p]}" for p in sorted(plan.read_from))}
        )
        self._last_commit = self.clock()
        is_new = not producer.is_transactional and None in committed.values()  # output may be sent, and then no commit
        if is_new or any(position != committed[partition] for partition, position in positions.items()):
            self._commit(consumer, producer)  # so that the group has its offsets, or has them again

    def _own_positions(
        self, committed: Mapping[TopicPartition, Position | None], ranges: Mapping[TopicPartition, tuple[int, int]]
    ) -> dict[TopicPartition, Position | None]:
        """Return how far the group has come in each partition. Raises PositionError where that can't be known."""
        if not committed:
            return {}
        self._topic_ids = self.broker.topic_ids(sorted({partition.topic for partition in committed}))
        progress, has_worked = self._progress.read_of(committed, self.service.outputs, self._beat)
        positions: dict[TopicPartition, Position | None] = {}
        for partition, position in committed.items():
            try:
                positions[partition] = restore.own_position(
                    position,
                    progress.get(partition),
                    self._topic_ids[partition.topic],
                    ranges[partition][1],
                    has_worked=has_worked,
                )
            except PositionError as error:
                raise self._undecided(partition, str(error)) from error
            if positions[partition] != position:
                log.warning(
                    "the committed offset was gone or older: the service goes on where its own progress says",
                    extra={
                        "partition": _names([partition]),
                        "committed": position.offset if position else None,
                        "resume": progress[partition].offset,
                    },
                )
        return positions

    def _know_again(
        self, positions: Mapping[TopicPartition, Position | None], ranges: Mapping[TopicPartition, tuple[int, int]]
    ) -> None:
        """Raise PositionError where the log before a position is not the one that was read, in partitions that came."""
        expected = restore.last_read(positions)
        came = {partition: last for partition, last in expected.items() if partition not in self._last_read}
        for partition, why in restore.other_logs(self.broker, came, ranges).items():
            raise self._undecided(partition, why)
        self._last_read = dict(expected)

    def _undecided(self, partition: TopicPartition, why: str) -> PositionError:
        return PositionError(
            f"{self.service.name} can't know from where to go on in {_names([partition])}: {why}; decide with "
            f"`{self.service.decide} --to ... --yes`"
        )

    def _check_topics(self) -> None:
        """Raise TopicError where a topic is not as declared, PositionError where one that is read was created again."""
        if self.clock() - self._last_topic_check < TOPIC_CHECK_SECONDS:
            return
        self._last_topic_check = self.clock()
        try:
            now = self._declared.check(TOPIC_CHECK_TIMEOUT)
            if self._topic_ids and not now:
                now = self.broker.topic_states(sorted(self._topic_ids), TOPIC_CHECK_TIMEOUT)
        except BrokerError:
            return  # the broker is away; what it means is found where records are read or committed
        for partition in sorted(self._partitions):
            before, after = self._topic_ids.get(partition.topic, ""), now.get(partition.topic)
            if before and after and after.id and before != after.id:
                raise self._undecided(
                    partition, "the topic was deleted and created again while it was read (--to begin|end)"
                )

    def _report_lost(
        self, committed: Mapping[TopicPartition, Position | None], resumes: Mapping[TopicPartition, restore.Resume]
    ) -> None:
        for partition, resume in resumes.items():
            position = committed[partition]
            if position is None and resume.log_begin > 0:
                log.warning(
                    "the log's beginning was deleted before this group has read it",
                    extra={"partition": _names([partition]), "first": resume.log_begin},
                )
            if position is None or not resume.lost:
                continue
            log.error(
                "records lost: the log does not hold the committed offset any more",
                extra={
                    "partition": _names([partition]),
                    "committed": position.offset,
                    "first": resume.log_begin,
                    "end": resume.log_end,
                    "resume": resume.position.offset,
                },
            )
            # Counted at once: what a processor has counted is dropped when its state is rebuilt.
            self.watch.counts({("lost_records", partition.topic): resume.lost})

    def _rebuild(self, consumer: Consumer, ranges: Mapping[TopicPartition, tuple[int, int]]) -> None:
        if not ranges:
            return
        total = sum(end - begin for begin, end in ranges.values())
        log.info("rebuilding state from the log", extra={"records": total, "partitions": _names(ranges)})
        started, done = self.clock(), 0
        for batch in self.broker.read(ranges):
            self.processor.process(batch, discard)
            done += len(batch)
            consumer.poll(1, 0.0)  # stay in the group; nothing comes before `start`
            self._beat()
            if self.stopping:
                raise Retry("asked to stop while rebuilding")
        self.processor.observed.clear()
        self.processor.counts.clear()
        self.watch.rebuilt(done)
        log.info("state rebuilt", extra={"records": done, "seconds": round(self.clock() - started, 3)})

    def _back_off(self, error: Exception, producer: Producer) -> None:
        pause = BACKOFF_SECONDS[min(self._failures, len(BACKOFF_SECONDS) - 1)]
        self._failures += 1
        if self._go_back(error, producer, f"a pause of {pause} s"):
            self.sleep(pause)

    def _go_back(self, error: Exception, producer: Producer, then: str) -> bool:
        """Go back to what is committed; returns False where it was asked to stop meanwhile."""
        self._settled = self.ready = False
        self.watch.retry()
        if self.stopping:
            return False  # what is open is given up when the producer is closed
        log.warning("going back to what is committed", extra={"cause": str(error), "then": then})
        self.watch.gauges(self.processor.gauges())
        self.processor.observed.clear()
        self.processor.counts.clear()
        self._forget(self._partitions)
        try:
            producer.abort()
        except Retry:
            return False  # asked to stop meanwhile
        return True

    def _publish(self, records: Sequence[Any], consumer: Consumer) -> None:
        if self.processor.counts:
            self.watch.counts(self.processor.counts)
            self.processor.counts.clear()
        if self.processor.observed:
            self.watch.observed(self.processor.observed)
            self.processor.observed.clear()
        if records:
            self.watch.delay(time.time() - origin_of(records[0]) / 1000)
        if not records or self.clock() - self._last_gauges > GAUGE_SECONDS:
            self._last_gauges = self.clock()
            self.watch.gauges(self.processor.gauges())
            self.watch.lag(consumer.lag())


def tune_collector() -> None:
    """Have Python's cycle collector look rarely, and never again at what is loaded by now.

    Records are trees: counting references frees them. To walk all state every few hundred records would find next to
    nothing.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


def _names(partitions: Iterable[TopicPartition]) -> str:
    return ", ".join(f"{partition.topic}[{partition.partition}]" for partition in sorted(partitions))
