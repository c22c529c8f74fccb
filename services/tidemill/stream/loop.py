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
from types import MappingProxyType
from typing import Any

from tidemill.errors import Aborted, BrokerError, Refused, Reject, Retry, Stopped
from tidemill.stream.api import Broker, Consumer, Emit, Position, Producer, Record, TopicPartition, discard
from tidemill.stream.chain import Chain
from tidemill.stream.declared import NOTHING_DECLARED, TOPIC_CHECK_SECONDS, TOPIC_CHECK_TIMEOUT, DeclaredTopics
from tidemill.stream.group import Group, Service, names
from tidemill.stream.narrowing import LETTER_BYTES, Narrowing
from tidemill.stream.origin import origin_of
from tidemill.stream.pace import BUSY_SHARE, Pace
from tidemill.stream.restore import CHAIN_SUFFIX, Plan, own_metadata
from tidemill.stream.unhurried import Unhurried

log = logging.getLogger(__name__)

NOWHERE: Mapping[TopicPartition, int] = MappingProxyType({})
IDLE_SECONDS = 0.1
#: With the client's fetch queue this bounds memory.
MAX_BATCH_RECORDS = 5000
#: How often levels are measured while records come; nobody reads them more often.
GAUGE_SECONDS = 0.1
#: How long a service that was asked to stop still tries to commit.
STOP_SECONDS = 3.0
#: How often a loop looks whether records were erased.
ERASED_CHECK_SECONDS = 1.0
#: Offsets of a group in which nothing happens are committed again this often, so that no broker forgets them.
KEEP_ALIVE_SECONDS = 3600.0
#: How often the groups of a chain that have no member get offsets: lag is read from them, and they are not forgotten.
KEEP_CHAINED_SECONDS = 60.0
BACKOFF_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


class Loop:
    """Runs one service until it is told to stop.

    Parameters
    ----------
    max_delay
        Seconds that a record may wait for its batch and the commit of it: within that, records gather the longer, the
        more a batch costs (see `Pace`). 0: every batch begins at once.
    busy_share
        The share of the time that batches may take.
    unhurried
        Seconds that records of the service's unhurried topics may wait to be handled together.
    max_batch
        Most records in one batch; with the client's fetch queue it bounds memory.
    commit_every
        Least seconds between two commits. 0 for transactions (each batch is one); without transactions about 0.2,
        because brokers handle offset commits more slowly than records.
    keep_alive
        Seconds without a commit after which the offsets are committed again.
    declared
        The partitions that topics must have, by topic: those that the service reads and writes.
    forgotten
        The topic that says that records were erased, empty for none: when it grows the state is made again.
    """

    def __init__(
        self,
        service: Service,
        broker: Broker,
        *,
        instance: str = "0",
        max_delay: float = 0.02,
        busy_share: float = BUSY_SHARE,
        unhurried: float = 0.0,
        max_batch: int = MAX_BATCH_RECORDS,
        commit_every: float = 0.0,
        keep_alive: float = KEEP_ALIVE_SECONDS,
        declared: Mapping[str, int] = NOTHING_DECLARED,
        forgotten: str = "",
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.service = service
        self.broker = broker
        self.instance = f"{service.group}-{instance}"
        self.transactional_id = self.instance + (CHAIN_SUFFIX if service.chained else "")
        self._groups = [Group(one, broker, self.transactional_id) for one in (service, *service.chained)]
        self._head = self._groups[0]
        self._chain = Chain(self._groups, broker) if service.chained else None
        self.processor = self._chain or service.processor
        self._pace = Pace(max_delay, busy_share)
        self.max_batch = max_batch
        self.commit_every = commit_every
        self.keep_alive = keep_alive
        self.clock = clock
        self.sleep = sleep
        self.stopping = False
        self._stop_asked_at = 0.0
        self.ready = False
        self.heartbeat = clock()
        self.watch = self._head.watch
        self._partitions: set[TopicPartition] = set()
        self._last_commit = self._last_batch = self._last_gauges = self._last_kept = clock()
        self._dirty = False
        self._failures = 0
        self._settled = True
        self._narrowing = Narrowing(max_batch)
        self._held: list[Record] = []
        self._unhurried = Unhurried(service.unhurried if unhurried else (), unhurried, max_batch, clock)
        self._declared = DeclaredTopics(broker, declared, clock)
        self._last_topic_check = self._last_erased_check = clock()
        self._forgotten = TopicPartition(forgotten, 1) if forgotten else None

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
        consumer = self.broker.consumer(self.service.group, self.service.topics, self.instance, self._pace.max_delay)
        try:
            self._run_with(consumer)
        finally:
            self.ready = False
            consumer.close()

    def _run_with(self, consumer: Consumer) -> None:
        try:
            counted = (self._chain.written,) if self._chain else ()
            producer = self.broker.producer(self.transactional_id, self._beat, *counted)
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
            began = self.clock()
            if self._reassign(consumer, producer):
                return 0
            self._check_topics()
            self._check_erased()
            if self._process(records, producer) or self._is_due_again():
                self._commit(consumer, producer)
            elif not self._dirty:
                self.processor.committed()
            if self._chain and self.clock() - self._last_kept >= KEEP_CHAINED_SECONDS:
                self._last_kept = self.clock()
                self._chain.keep()
            if records:
                self._last_batch = self.clock()
                self._pace.took(self._last_batch - began)
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
            records = self._unhurried.take(consumer.poll(self.max_batch, self._patience()))
        else:
            records = [*self._held, *self._unhurried.take(consumer.poll(1, 0.0))]  # stay in the group
        if self._chain and records and self._chain.not_ready():
            # One of the steps waits: the others need not drop their state for that.
            self._held = list(records)
            self.sleep(IDLE_SECONDS)
            return ()
        limit = self._narrowing.limit if self._narrowing.is_on else self.max_batch
        self._held = list(records[limit:]) if len(records) > limit else []
        return records[:limit] if self._held else records

    def _patience(self) -> float:
        left = self._last_batch + self._pace.gather - self.clock()
        if left > 0:
            self.sleep(left)
        return min(IDLE_SECONDS, self.commit_every or IDLE_SECONDS) if self._dirty else IDLE_SECONDS

    def _is_due_again(self) -> bool:
        """Whether nothing was committed for so long that the broker might forget what was."""
        return not self._dirty and self.clock() - self._last_commit >= self.keep_alive

    def _process(self, records: Sequence[Any], producer: Producer) -> bool:
        started = self.clock()
        self.processor.in_hand = None
        self.processor.traces.begin()
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
            self._head.took(records)
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
        ahead = dict[TopicPartition, int]()
        for record in (*self._held, *self._unhurried.held):  # what was read and is not processed yet
            if (place := (record.topic(), record.partition())) not in ahead:
                ahead[TopicPartition(*place)] = record.offset()
        up_to = {**ahead, **up_to}
        offsets = {p: up_to.get(p, at) for p, at in consumer.positions(tuple(self._partitions)).items()}
        self._commit_at(offsets, consumer, producer)
        self.watch.commit(self._last_commit - started)

    def _commit_at(self, offsets: Mapping[TopicPartition, int], consumer: Consumer, producer: Producer) -> None:
        """Commit these offsets of the group, and with them how far those after it in the chain have come."""
        head = self._head.marks(offsets)
        inner = self._chain.marks() if self._chain else []
        if producer.is_transactional:
            for group, positions in ((self._head, head), *inner):
                group.write_progress(positions, producer.emit)
        self._send(head, consumer, producer)
        if not producer.is_transactional:  # later than what it is the progress of
            self._head.write_progress(head, producer.emit)
        for group, positions in ((self._head, head), *inner):
            group.committed(positions)
        for group in self._groups:
            group.processor.traces.committed()
        self._dirty = False
        self._failures = 0
        self._narrowing.committed()
        self._last_commit = self.clock()
        self.processor.committed()

    def _send(self, offsets: Mapping[TopicPartition, Position], consumer: Consumer, producer: Producer) -> None:
        """Commit; where the producer says which records were refused, they are made dead letters first."""
        for max_bytes in LETTER_BYTES:
            try:
                self._end_transaction(offsets, consumer, producer)
                return
            except Refused as error:
                if not error.records or not self.processor.dlq:
                    raise
                refused = {(record.topic(), record.partition(), record.offset()): record for record in error.records}
                for record in refused.values():
                    self._make_dead_letter(record, str(error), producer, max_bytes)
        self._end_transaction(offsets, consumer, producer)

    def _end_transaction(
        self, offsets: Mapping[TopicPartition, Position], consumer: Consumer, producer: Producer
    ) -> None:
        if self._chain:
            producer.commit(offsets, consumer, self._chain.expected())
            self._chain.ended(producer.end_markers)
        else:
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
        self._head.drop_counts()
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
            self._head.lost(revoked - assigned)
            self._settled = False
            self._narrowing = Narrowing(self.max_batch)
            log.info(
                "partitions assigned",
                extra={"partitions": names(self._partitions), "revoked": names(revoked - assigned)},
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
        self._head.forget(partitions)
        if self._chain:
            self._chain.forget()
        for group in self._groups:
            group.processor.traces.dropped()
        self._dirty = False

    def _restore(self, consumer: Consumer, producer: Producer) -> None:
        """Bring the state of all partitions to what Kafka has committed, silently, and start reading from there."""
        self._held, self._unhurried.held = [], []
        self._narrowing.went_back()
        self._declared.check()
        partitions = sorted(self._partitions)
        erased = self._erased()
        for one in self._groups:
            one.processor.erased = erased
        own = self.transactional_id
        for name in self.broker.end_left_open(self.service.group, partitions, own) if partitions else ():
            log.warning("what an instance may have left open is ended: it is in the group no more", extra={"of": name})
        committed = consumer.committed(partitions) if partitions else {}
        plan, positions = self._head.resume(committed, self._beat)
        self._dirty = False
        self._rebuild(consumer, self._head, plan)
        if self._chain and partitions:
            self._restore_chain(self._chain, consumer, producer)
        self.processor.committed()
        consumer.start(plan.read_from)
        log.info(
            "reading", extra={"from": ", ".join(f"{names([p])}@{plan.read_from[p]}" for p in sorted(plan.read_from))}
        )
        self._last_commit = self.clock()
        is_new = not producer.is_transactional and None in committed.values()  # output may be sent, and then no commit
        is_older = any(position and _erased_at(position) < erased for position in committed.values())
        if self._chain and erased:
            self._chain.say_again()
        if is_new or is_older or any(position != committed[partition] for partition, position in positions.items()):
            self._commit(consumer, producer)  # so that the group has its offsets, or has them again
            if self._chain and erased:
                self._chain.keep()

    def _restore_chain(self, chain: Chain, consumer: Consumer, producer: Producer) -> None:
        """Bring the others of the chain to where their groups have come, and have them do what the log has beyond."""
        for group, plan in chain.take_over(self._partitions, self._beat):
            self._rebuild(consumer, group, plan)
        try:
            for _ in chain.do_what_is_left(producer.emit):
                self._commit_at({}, consumer, producer)
                consumer.poll(1, 0.0)  # stay in the group; nothing comes before `start`
                self._beat()
                if self.stopping:
                    raise Retry("asked to stop while it did what was left")
        except Refused as error:  # which record it is only its own service can find out
            raise BrokerError(
                f"{error}; run the services apart until they have done what is left, then chained"
            ) from error

    def _check_topics(self) -> None:
        """Raise TopicError where a topic is not as declared, PositionError where one that is read was created again."""
        if self.clock() - self._last_topic_check < TOPIC_CHECK_SECONDS:
            return
        self._last_topic_check = self.clock()
        try:
            now = self._declared.check(TOPIC_CHECK_TIMEOUT)
            if self._head.topic_ids and not now:
                now = self.broker.topic_states(sorted(self._head.topic_ids), TOPIC_CHECK_TIMEOUT)
        except BrokerError:
            return  # the broker is away; what it means is found where records are read or committed
        for partition in sorted(self._partitions):
            before, after = self._head.topic_ids.get(partition.topic, ""), now.get(partition.topic)
            if before and after and after.id and before != after.id:
                raise self._head.undecided(
                    partition, "the topic was deleted and created again while it was read (--to begin|end)"
                )

    def _erased(self) -> int:
        """Return how much was erased from the log, by the topic that says so."""
        if self._forgotten is None or not self.broker.partitions(self._forgotten.topic):
            return 0
        return self.broker.offset_range(self._forgotten)[1]

    def _check_erased(self) -> None:
        """Raise Retry where records were erased: the state may hold what was made of them."""
        if self._forgotten is None or self.clock() - self._last_erased_check < ERASED_CHECK_SECONDS:
            return
        self._last_erased_check = self.clock()
        try:
            erased = self._erased()
        except BrokerError:
            return  # it is looked at again
        if erased > self._head.processor.erased:
            raise Retry("records were erased from the log: the state is made again from what is left")

    def _rebuild(self, consumer: Consumer, group: Group, plan: Plan) -> None:
        """Read what a group's state is made of again, silently."""
        ranges = plan.rebuild
        if not ranges:
            group.rebuilt(plan.read_from)
            return
        total = sum(end - begin for begin, end in ranges.values())
        log.info("rebuilding state from the log", extra={"records": total, "partitions": names(ranges)})
        started, done = self.clock(), 0
        for batch in self.broker.read(ranges):
            group.processor.process(batch, discard)
            done += len(batch)
            consumer.poll(1, 0.0)  # stay in the group; nothing comes before `start`
            self._beat()
            if self.stopping:
                raise Retry("asked to stop while rebuilding")
        group.drop_counts()
        group.watch.rebuilt(done)
        group.rebuilt(plan.read_from)
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
        for group in self._groups:
            group.watch.gauges(group.processor.gauges())
            group.drop_counts()
        self._forget(self._partitions)
        try:
            producer.abort()
        except Retry:
            return False  # asked to stop meanwhile
        return True

    def _publish(self, records: Sequence[Any], consumer: Consumer) -> None:
        for group in self._groups:
            group.publish()
        if records:
            self.watch.delay(time.time() - origin_of(records[0]) / 1000)
        is_idle = not records and not self._unhurried.held
        if is_idle or self.clock() - self._last_gauges > GAUGE_SECONDS:
            self._last_gauges = self.clock()
            for group in self._groups:
                group.watch.gauges(group.processor.gauges())
            self.watch.lag(consumer.lag())


def _erased_at(position: Position) -> int:
    metadata = own_metadata(position)
    return metadata.erased if metadata else 0


def tune_collector() -> None:
    """Have Python's cycle collector look rarely, and never again at what is loaded by now.

    Records are trees: counting references frees them. To walk all state every few hundred records would find next to
    nothing.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
