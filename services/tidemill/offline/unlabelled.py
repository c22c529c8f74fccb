"""Predictions without a label: what figures over examples leave out.

reads    <pipeline>.prediction-log; of examples it is given each; of each record the first fields
memory   a bit for each event
"""

from __future__ import annotations

from collections.abc import Callable

from tidemill.stream.api import Broker, Progress, Record, expect
from tidemill.stream.ranges import full_range
from tidemill.wire import topics
from tidemill.wire.records import Records

#: Offsets of events that one block of bits stands for.
BLOCK_OFFSETS = 2**16


class Unlabelled:
    """Counts predictions by the event that each is of: all that the log holds, and those that have an example.

    The log must be read first. `covers`: whether predictions of an event time are meant.
    """

    def __init__(self, records: Records, covers: Callable[[int], bool] = lambda _: True) -> None:
        self.predictions = self.labelled = 0
        self._records, self._covers = records, covers
        self._blocks: dict[tuple[int, int], bytearray] = {}

    @property
    def count(self) -> int:
        """Predictions of the log that have no label: it did not come in time, or has not come yet."""
        return self.predictions - self.labelled

    def read_log(self, pipeline: str, broker: Broker, progress: Progress | None = None) -> None:
        """Take the prediction log as it is at this moment."""
        ranges = full_range(broker, topics.PREDICTION_LOG.name(pipeline))
        expect(progress, sum(end - begin for begin, end in ranges.values()))
        for batch in broker.read(ranges):
            for record in batch:
                self.predicted(record)
            if progress:
                progress(len(batch))

    def predicted(self, record: Record) -> None:
        """Take a record of the prediction log."""
        self.predictions += self._mark(record, is_labelled=False)

    def joined(self, record: Record) -> None:
        """Take an example, of whatever declaration."""
        self.labelled += self._mark(record, is_labelled=True)

    def _mark(self, record: Record, *, is_labelled: bool) -> bool:
        """Note that an event has a prediction, or that it has its label; returns whether that is new."""
        head = self._records.place(record.value())
        if head is None or not self._covers(head["event_time"]):
            return False
        block, bit = divmod(head["offset"], BLOCK_OFFSETS)
        bits = self._blocks.get((head["partition"], block))
        if bits is None:
            if is_labelled:
                return False
            bits = self._blocks[head["partition"], block] = bytearray(BLOCK_OFFSETS // 8)
        at, mask = bit // 8, 1 << bit % 8
        if bool(bits[at] & mask) != is_labelled:
            return False
        bits[at] ^= mask
        return True
