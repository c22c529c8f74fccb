"""Tumbling windows of event time over one source, in bounded memory.

A window counts every record. Its figures are computed from rows; of more than `max_rows` of them it keeps a uniform
sample. A hash of a row's id alone decides whether the row is in the sample: the same rows in every run, the same events
in every source.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from typing import Any

from tidemill.watermark import NEVER, SLACK_PART, Watermark

#: Hashes are below this.
HASH_RANGE = 2**32

Row = tuple[Any, ...]


def hash_of(key: bytes) -> int:
    """Return the hash of an id that decides which rows are in the sample, below HASH_RANGE."""
    return zlib.crc32(key) * 2654435761 % HASH_RANGE  # the CRC's own bits may also decide a key's partition


def start_of(time: int, length: int) -> int:
    """Return the start of the window that `time` is in; both in ms."""
    return time // length * length


class Window:
    """One window: [start, end) in ms of event time."""

    def __init__(self, start: int, end: int, max_rows: int) -> None:
        self.start, self.end, self.max_rows = start, end, max_rows
        self.records = 0
        self.late = 0
        self.limit = HASH_RANGE
        self.interrupted = False
        self._rows: list[tuple[int, Row]] = []

    def add(self, hash_: int, row: Row) -> None:
        """Keep a row whose hash is below `limit`."""
        self._rows.append((hash_, row))
        while len(self._rows) > self.max_rows:
            self.limit //= 2
            self._rows = [item for item in self._rows if item[0] < self.limit]

    @property
    def share(self) -> float:
        """The share of rows in the sample, 1 for all."""
        return self.limit / HASH_RANGE

    @property
    def rows(self) -> list[Row]:
        """The rows of the sample, in the order in which they came."""
        return [row for _, row in self._rows]


class SourceWindows:
    """The open windows of one source.

    A window closes when the least of the partitions' watermarks is past its end by `lateness`: what most of their
    records have reached, not what one of them claims. A record of a closed window counts as late in the oldest open
    one, and nowhere else.

    Parameters
    ----------
    length, lateness
        In ms of event time.
    max_rows
        Rows that one window keeps at most.
    watermark
        Makes the watermark of a partition, of its slack in ms.
    """

    def __init__(
        self, length: int, lateness: int, max_rows: int, watermark: Callable[[int], Watermark] = Watermark
    ) -> None:
        self.length, self.lateness, self.max_rows, self._watermark = length, lateness, max_rows, watermark
        self.open: dict[int, Window] = {}
        self.closed_until: int | None = None
        self._watermarks: dict[int, Watermark] = {}
        self._interrupted_until: int | None = None
        self._late = 0

    def window(self, time: int, partition: int) -> Window | None:
        """Count a record, and return its window; None where that is closed already."""
        watermark = self._watermarks.get(partition)
        if watermark is None:
            watermark = self._watermarks[partition] = self._watermark(self.length // SLACK_PART)
        watermark.add(time)
        start = start_of(time, self.length)
        window = self.open.get(start)
        if window is None:
            if self.closed_until is not None and start < self.closed_until:
                self._late += 1
                return None
            window = self.open[start] = Window(start, start + self.length, self.max_rows)
            window.interrupted = self._interrupted_until is not None and start <= self._interrupted_until
        window.records += 1
        return window

    def interrupt(self, time: int) -> None:
        """Mark windows that had started by `time` plus the lateness as incomplete: earlier records were not seen."""
        until = time + self.lateness
        if self._interrupted_until is None or until > self._interrupted_until:
            self._interrupted_until = until
        for window in self.open.values():
            window.interrupted |= window.start <= self._interrupted_until

    @property
    def watermark(self) -> int | None:
        """Event time that all partitions have reached; None before the first record."""
        return min((watermark.lowest for watermark in self._watermarks.values()), default=None)

    def due(self, idle: Iterable[int] = ()) -> list[Window]:
        """Close and return the windows that are complete, oldest first, without waiting for `idle` partitions."""
        quiet = set(idle)
        watermarks = self._watermarks
        reached = [mark.time for partition, mark in watermarks.items() if partition not in quiet] or [
            mark.time for mark in watermarks.values()
        ]
        until = min(reached, default=NEVER) - self.lateness
        closed = [self.open.pop(start) for start in sorted(self.open) if start + self.length <= until]
        if closed:
            closed[0].late, self._late = self._late, 0
            self.closed_until = closed[-1].end
        return closed

    def finish(self) -> list[Window]:
        """Close and return all windows, marked as incomplete, oldest first."""
        closed = [self.open.pop(start) for start in sorted(self.open)]
        for window in closed:
            window.interrupted = True
        return closed
