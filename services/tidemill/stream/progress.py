"""How far a group has come, on a topic of its own: written in one transaction with its output and its offsets.

Committed offsets can be taken away: they expire, are set by hand, go with a topic that is deleted, or come back older
from a backup. The output is still there then, and so is this. A record's value is the commit metadata, which has the
offset; its key is the group and the partition, and the topic is compacted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tidemill.stream import restore
from tidemill.stream.api import Broker, Emit, Position, TopicPartition
from tidemill.stream.commit_metadata import CommitMetadata
from tidemill.stream.ranges import settled_range


class ProgressLog:
    """The progress of one group.

    Parameters
    ----------
    topic
        The progress topic; where it does not exist nothing is kept.
    partition
        Where in that topic. Each partition is a request and a marker more in a transaction: groups that share one
        transaction share a partition.
    """

    def __init__(self, broker: Broker, topic: str, group: str, partition: int = 0) -> None:
        self.broker, self.topic, self.group, self.partition = broker, topic, group, partition
        self._place: TopicPartition | None = None
        self._written: dict[TopicPartition, str] = {}

    def _find_place(self) -> TopicPartition | None:
        count = self.broker.partitions(self.topic) if self.topic else 0
        return TopicPartition(self.topic, self.partition % count) if count else None

    @property
    def is_kept(self) -> bool:
        """Whether there is such a topic, by the last `read`."""
        return self._place is not None

    def read(self, beat: Callable[[], None] = lambda: None, *, wait: bool = True) -> dict[TopicPartition, Position]:
        """Return the last position of each partition.

        Where a transaction of another service is open, what comes after its first record is not readable yet: `wait`
        for it, or take what is before. Raises Aborted where that takes too long.
        """
        self._written.clear()
        place = self._place = self._find_place()
        if place is None:
            return {}
        readable = settled_range(self.broker, place, beat) if wait else self.broker.offset_range(place)
        positions: dict[TopicPartition, Position] = {}
        prefix = f"{self.group}/"
        for batch in self.broker.read({place: readable}):
            for record in batch:
                key = (record.key() or b"").decode(errors="replace")
                if key.startswith(prefix):
                    topic, _, partition = key.removeprefix(prefix).rpartition("/")
                    position = _position(record.value())
                    if position and partition.isdecimal():
                        positions[TopicPartition(topic, int(partition))] = position
        return positions

    def read_of(
        self,
        committed: Mapping[TopicPartition, Position | None],
        outputs: Sequence[str],
        beat: Callable[[], None] = lambda: None,
    ) -> tuple[dict[TopicPartition, Position], bool]:
        """Return the last positions, and whether `outputs` show that the group has worked although it has none.

        `committed` is what the group has committed.
        """
        is_own = [
            position is not None and restore.own_metadata(position) is not None for position in committed.values()
        ]
        is_last = all(is_own) and not any(map(restore.chain_of, committed.values()))
        # Asked before the progress is read: what another member has written since then has its progress with it.
        has_worked = not any(is_own) and has_records(self.broker, outputs)
        # Where the offsets are ours, only a backup can have made them older: nobody waits for others' transactions.
        positions = self.read(beat, wait=not is_last)
        return positions, has_worked and self.is_kept and not positions

    def write(self, positions: Mapping[TopicPartition, Position], emit: Emit) -> None:
        """Emit the positions that have changed since `read`, or since the last time."""
        place = self._place
        if place is None:
            return
        for partition, position in positions.items():
            if self._written.get(partition) != position.metadata:
                self._written[partition] = position.metadata
                key = f"{self.group}/{partition.topic}/{partition.partition}".encode()
                emit(place.topic, position.metadata.encode(), key, 0, None, place.partition)


def has_records(broker: Broker, topics: Sequence[str]) -> bool:
    """Return whether any of these topics has, or had, a committed record."""
    for topic in topics:
        for number in range(broker.partitions(topic)):
            partition = TopicPartition(topic, number)
            begin, end = broker.offset_range(partition)
            if begin > 0 or any(broker.read({partition: (begin, end)})):
                return True
    return False


def _position(value: bytes | None) -> Position | None:
    try:
        text = (value or b"").decode()
        metadata = CommitMetadata.decode(text)
    except ValueError:  # nobody else writes here; what can't be read says nothing
        return None
    is_offset = type(metadata.offset) is int and metadata.offset >= 0
    return Position(metadata.offset, text) if is_offset and metadata.offset is not None else None
