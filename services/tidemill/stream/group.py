"""A service, and where its group goes on: what is committed, whether that can be right, and what state is at hand."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from tidemill import metrics
from tidemill.errors import BrokerError, PositionError, Retry
from tidemill.stream import restore
from tidemill.stream.api import Broker, Emit, Position, Processor, Record, TopicPartition
from tidemill.stream.progress import ProgressLog

log = logging.getLogger(__name__)

#: In so many of a batch's last records is looked for the last of each partition, by which its log is known again.
LAST_RECORDS = 64


@dataclass(frozen=True)
class Service:
    """One service: its name, what it reads, and its processor.

    Parameters
    ----------
    progress
        The topic with the progress of its group; empty for none.
    progress_partition
        Its partition of that topic.
    unhurried
        Topics on whose records no prediction waits, although it waits for the service.
    outputs
        Topics in which a record shows that the service has worked.
    decide
        The command with which a person decides from where it goes on.
    chained
        The services after it that run in its process as well; see `Chain`.
    unwritten
        Topics between those services that nobody else reads, and no state is made of: they are not written.
    needs_all
        Whether the chain needs all partitions, because it hands records on to others than those they came from.
    """

    name: str
    group: str
    topics: Sequence[str]
    processor: Processor
    progress: str = ""
    outputs: Sequence[str] = ()
    decide: str = "tidemill offsets set"
    chained: Sequence[Service] = ()
    unwritten: Collection[str] = ()
    needs_all: bool = False
    progress_partition: int = 0
    unhurried: Collection[str] = ()


class Group:
    """One service's group in one process: from where it goes on in its partitions, and how far its state has come."""

    def __init__(self, service: Service, broker: Broker, instance: str) -> None:
        self.service, self.processor, self.broker, self.instance = service, service.processor, broker, instance
        self.watch = metrics.LoopMetrics(service.name)
        self._state_offsets: dict[TopicPartition, int] = {}
        self._progress = ProgressLog(broker, service.progress, service.group, service.progress_partition)
        self._topic_ids: dict[str, str] = {}
        self._last: dict[TopicPartition, Record] = {}
        self._last_read: dict[TopicPartition, str] = {}
        self._done: dict[TopicPartition, Position] = {}

    def resume(
        self, committed: Mapping[TopicPartition, Position | None], beat: Callable[[], None]
    ) -> tuple[restore.Plan, dict[TopicPartition, Position | None]]:
        """Drop state that is not what Kafka has; return what is rebuilt and read, and how far the group had come.

        Raises PositionError where that can't be known.
        """
        self._last.clear()
        ranges = {partition: self.broker.offset_range(partition) for partition in committed}
        positions = self._own_positions(committed, ranges, beat)
        self._know_again(positions, ranges)
        resumes = {p: restore.resume_position(position, *ranges[p]) for p, position in positions.items()}
        self._report_lost(positions, resumes)
        stale = restore.stale_partitions(self._state_offsets, resumes)
        self.forget(stale)
        ids = {p: self._topic_ids[p.topic] for p in resumes}
        starts = {
            p: self.processor.assign(p, restore.of_topic(resumes[p].position, ids[p]))
            for p in sorted(stale & resumes.keys())
        }
        try:
            plan = restore.plan(resumes, starts)
        except PositionError as error:
            raise PositionError(f"{self.service.name} can't go on: {error}") from error
        for partition, needed in plan.truncated.items():
            log.error(
                "state is partial: the log does not reach back to where it is rebuilt from",
                extra={"partition": names([partition]), "needed": needed, "first": resumes[partition].log_begin},
            )
            self.processor.truncated(partition)
        return plan, positions

    def take_over(self, partitions: Sequence[TopicPartition], beat: Callable[[], None]) -> restore.Plan:
        """Go on for a group that this process is no member of, as part of a chain; see `resume`.

        Raises Retry while a process of its own is in the group.
        """
        name = self.service.group
        committed = self.broker.committed(name, partitions)
        apart = [partition for partition, position in committed.items() if not restore.chain_of(position)]
        for gone in self.broker.end_left_open(name, apart, self.instance) if apart else ():
            log.warning("what an instance may have left open is ended: it is in the group no more", extra={"of": gone})
        # What somebody else has set is judged first, and set again as it is: that, too, needs a group without members.
        own = {p: position for p, position in committed.items() if position and restore.own_metadata(position)}
        others = {p: position for p, position in committed.items() if position and p not in own}
        self._set_offsets({p: self._chained(position) for p, position in own.items()} | others)
        plan, positions = self.resume(committed, beat)
        begun = {p: positions[p] or Position(plan.read_from[p]) for p in committed if p not in own}
        self._set_offsets({p: self._chained(position) for p, position in begun.items()})
        if not self._progress.is_kept:
            raise BrokerError(f"{self.service.name} can't run in a chain without the topic {self.service.progress}")
        return plan

    def _chained(self, position: Position) -> Position:
        return position if restore.chain_of(position) == self.instance else restore.chained(position, self.instance)

    def _set_offsets(self, positions: Mapping[TopicPartition, Position]) -> None:
        """Set offsets. Raises Retry while the group has members: then a process of its own does the work."""
        try:
            if positions:
                self.broker.set_offsets(self.service.group, positions)
        except BrokerError as error:
            raise Retry(f"{self.service.name} still runs by itself: {error}") from error

    def keep_chained(self) -> None:
        """Say again at the group's offsets how far its work has come, and in whose chain, before Kafka forgets it."""
        self._set_offsets({partition: self._chained(position) for partition, position in self._done.items()})

    def rebuilt(self, read_from: Mapping[TopicPartition, int]) -> None:
        """The state is at these offsets now."""
        self._state_offsets.update(read_from)

    def forget(self, partitions: Iterable[TopicPartition]) -> None:
        """Drop the state of these partitions."""
        partitions = set(partitions)
        self.processor.revoke(partitions)
        for partition in partitions:
            self._state_offsets.pop(partition, None)
            self._done.pop(partition, None)

    def lost(self, partitions: Iterable[TopicPartition]) -> None:
        """Others may read these partitions from now on."""
        for partition in partitions:
            self._last_read.pop(partition, None)

    def took(self, records: Sequence[Record]) -> None:
        """Remember the last record of each partition: its log is known again by it."""
        self._last |= {TopicPartition(r.topic(), r.partition()): r for r in records[-LAST_RECORDS:]}

    def marks(self, offsets: Mapping[TopicPartition, int]) -> dict[TopicPartition, Position]:
        """Return the positions to commit at these offsets."""
        self._last_read |= {partition: restore.fingerprint(record) for partition, record in self._last.items()}
        self._last.clear()
        return {
            partition: restore.mark(
                replace(
                    self.processor.commit_metadata(partition),
                    instance=self.instance,
                    last=self._last_read.get(partition, ""),
                    erased=self.processor.erased,
                ),
                offset,
                self._topic_ids.get(partition.topic, ""),
            )
            for partition, offset in offsets.items()
        }

    def write_progress(self, positions: Mapping[TopicPartition, Position], emit: Emit) -> None:
        """Emit how far the group has come."""
        self._progress.write(positions, emit)

    def committed(self, positions: Mapping[TopicPartition, Position]) -> None:
        """These positions are committed, and the state is at them."""
        self._done.update(positions)
        self._state_offsets.update({partition: position.offset for partition, position in positions.items()})

    def publish(self) -> None:
        """Publish what the processor has counted and measured."""
        if self.processor.counts:
            self.watch.counts(self.processor.counts)
            self.processor.counts.clear()
        if self.processor.observed:
            self.watch.observed(self.processor.observed)
            self.processor.observed.clear()

    def drop_counts(self) -> None:
        """Drop what was counted of records that are read again."""
        self.processor.observed.clear()
        self.processor.counts.clear()

    @property
    def topic_ids(self) -> Mapping[str, str]:
        """Kafka's ids of the topics when the group began to read them."""
        return self._topic_ids

    def _own_positions(
        self,
        committed: Mapping[TopicPartition, Position | None],
        ranges: Mapping[TopicPartition, tuple[int, int]],
        beat: Callable[[], None],
    ) -> dict[TopicPartition, Position | None]:
        """Return how far the group has come in each partition. Raises PositionError where that can't be known."""
        if not committed:
            return {}
        self._topic_ids = self.broker.topic_ids(sorted({partition.topic for partition in committed}))
        progress, has_worked = self._progress.read_of(committed, self.service.outputs, beat)
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
                raise self.undecided(partition, str(error)) from error
            if positions[partition] != position and not restore.chain_of(position):
                log.warning(
                    "the committed offset was gone or older: the service goes on where its own progress says",
                    extra={
                        "partition": names([partition]),
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
            raise self.undecided(partition, why)
        self._last_read = dict(expected)

    def undecided(self, partition: TopicPartition, why: str) -> PositionError:
        """Return the error that asks a person to decide."""
        return PositionError(
            f"{self.service.name} can't know from where to go on in {names([partition])}: {why}; decide with "
            f"`{self.service.decide} --to ... --yes`"
        )

    def _report_lost(
        self, committed: Mapping[TopicPartition, Position | None], resumes: Mapping[TopicPartition, restore.Resume]
    ) -> None:
        for partition, resume in resumes.items():
            position = committed[partition]
            if position is None and resume.log_begin > 0:
                log.warning(
                    "the log's beginning was deleted before this group has read it",
                    extra={"partition": names([partition]), "first": resume.log_begin},
                )
            if position is None or not resume.lost:
                continue
            log.error(
                "records lost: the log does not hold the committed offset any more",
                extra={
                    "partition": names([partition]),
                    "committed": position.offset,
                    "first": resume.log_begin,
                    "end": resume.log_end,
                    "resume": resume.position.offset,
                },
            )
            # Counted at once: what a processor has counted is dropped when its state is rebuilt.
            self.watch.counts({("lost_records", partition.topic): resume.lost})


def names(partitions: Iterable[TopicPartition]) -> str:
    """Return partitions as text."""
    return ", ".join(f"{partition.topic}[{partition.partition}]" for partition in sorted(partitions))
