"""Reading several partitions in one order of time, as far as it is known.

Without this a service that catches up would read one partition to its end before the next, and its output would be out
of order by as much as it was behind: events hours too late for their windows, labels too late for their predictions.
So records are merged by their origin (when their producer sent what they came from). While one partition is far
behind and nothing has come from it yet, the others wait for it a little. The order
within a partition never changes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tidemill.errors import Aborted
from tidemill.stream.api import Record, TopicPartition
from tidemill.stream.origin import origin_of

Keyed = tuple[int, Record]
#: Beyond every offset: a partition that is not ours has no next one.
_NO_OFFSET = 2**63


class TimeOrder:
    """Buffers of records by partition, released merged by origin."""

    def __init__(self) -> None:
        self._buffers: dict[TopicPartition, list[Keyed]] = {}
        self._latest: dict[TopicPartition, int] = {}
        self._next: dict[TopicPartition, int] = {}
        self.positions: dict[TopicPartition, int] = {}

    def __len__(self) -> int:
        return sum(map(len, self._buffers.values()))

    def oldest(self) -> int:
        """Return the earliest origin held; there must be one."""
        return min(held[0][0] for held in self._buffers.values() if held)

    def add(self, records: Sequence[Record]) -> None:
        """Take records as they were read. Raises Aborted for one that was read before or is of another's partition.

        An offset may be far beyond the one before (between them may be markers of transactions), but never below it: a
        client that fetches from a wrong position would have thousands of records processed twice.
        """
        buffers, latest, following = self._buffers, self._latest, self._next
        partition = TopicPartition("", -1)
        for record in records:
            if (place := (record.topic(), record.partition())) != partition:  # they come in runs
                partition = TopicPartition(*place)
            offset = record.offset()
            if offset < following.get(partition, _NO_OFFSET):
                raise Aborted(
                    f"reading {partition.topic}[{partition.partition}]: offset {offset} came where "
                    f"{following.get(partition, 'nothing')} or later was expected"
                )
            following[partition] = offset + 1
            key = origin_of(record)
            if key < latest.get(partition, key):
                key = latest[partition]  # a partition's own order comes before time
            latest[partition] = key
            buffers.setdefault(partition, []).append((key, record))

    def release(self, behind: Collection[TopicPartition] = ()) -> list[Record]:
        """Return the records that may be processed: all, or up to where each partition in `behind` has been read."""
        edge = min((self._buffers[s][-1][0] if self._buffers.get(s) else -1 for s in behind), default=None)
        out: list[Keyed] = []
        for partition, held in self._buffers.items():
            cut = len(held)
            if edge is not None:
                while cut and held[cut - 1][0] > edge:
                    cut -= 1
            if cut:
                out += held[:cut]
                self.positions[partition] = held[cut - 1][1].offset() + 1
                del held[:cut]
                if not held:
                    # One producer's clock that is a day ahead must not hold back what comes after it for a day.
                    del self._latest[partition]
        out.sort(key=_time)  # stable, and each partition's keys ascend: the runs are merged
        return [record for _, record in out]

    def behind(self, ends: dict[TopicPartition, int], slack: int) -> set[TopicPartition]:
        """Return partitions with more than `slack` offsets before their end (`ends`) that have not been read yet."""
        return {partition for partition, end in ends.items() if end - self._next.get(partition, 0) > slack}

    def clear(self, positions: dict[TopicPartition, int]) -> None:
        """Forget everything and begin at these offsets."""
        self._buffers.clear()
        self._latest.clear()
        self._next = dict(positions)
        self.positions = dict(positions)


def _time(keyed: Keyed) -> int:
    return keyed[0]
