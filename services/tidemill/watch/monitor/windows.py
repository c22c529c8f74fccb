"""Tumbling windows of event time over one source, in bounded memory.

Every record counts; of the rows, which a window's figures are computed from, a uniform sample is kept once there are more
than `most`. Whether a row belongs to it is decided by a hash of its id alone: the same rows in every run, and the same events
in every source.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

WHOLE = 2**32
"""Hashes are below this."""

Row = tuple[Any, ...]


def hashed(key: bytes) -> int:
    """Return the hash of an id by which rows are chosen, from 0 up to WHOLE."""
    return zlib.crc32(key) * 2654435761 % WHOLE  # CRC's own bits are those that Kafka clients may place keys by


def start_of(time: int, length: int) -> int:
    """Return where the window that holds `time` begins; both in ms."""
    return time // length * length


class Window:
    """One window: [start, end) in ms of event time."""

    def __init__(self, start: int, end: int, most: int) -> None:
        self.start, self.end, self.most = start, end, most
        self.records = 0
        self.late = 0
        self.limit = WHOLE
        self.interrupted = False
        self._rows: list[tuple[int, Row]] = []

    def add(self, hash_: int, row: Row) -> None:
        """Keep a row whose hash is below `limit`."""
        self._rows.append((hash_, row))
        while len(self._rows) > self.most:
            self.limit //= 2
            self._rows = [item for item in self._rows if item[0] < self.limit]

    @property
    def share(self) -> float:
        """The share of rows that is kept, 1 for all."""
        return self.limit / WHOLE

    @property
    def rows(self) -> list[Row]:
        """The rows that are kept, in the order in which they came."""
        return [row for _, row in self._rows]


class Windows:
    """The open windows of one source.

    A window is closed when the watermark, the least of the partitions' latest event times, has passed its end by
    `lateness`. What comes for a window that is closed counts as late in the oldest open one, and nowhere else.

    Parameters
    ----------
    length, lateness
        In ms of event time.
    most
        Rows that one window keeps at most.
    """

    def __init__(self, length: int, lateness: int, most: int) -> None:
        self.length, self.lateness, self.most = length, lateness, most
        self.open: dict[int, Window] = {}
        self.closed_until: int | None = None
        self._latest: dict[int, int] = {}
        self._interrupted_until: int | None = None
        self._late = 0

    def window(self, time: int, partition: int) -> Window | None:
        """Return the window of a record, having counted it; None where that one is closed already."""
        latest = self._latest.get(partition)
        if latest is None or time > latest:
            self._latest[partition] = time
        start = start_of(time, self.length)
        found = self.open.get(start)
        if found is None:
            if self.closed_until is not None and start < self.closed_until:
                self._late += 1
                return None
            found = self.open[start] = Window(start, start + self.length, self.most)
            found.interrupted = self._interrupted_until is not None and start <= self._interrupted_until
        found.records += 1
        return found

    def interrupt(self, time: int) -> None:
        """Say that what came before was not seen: windows that had begun by `time` plus the lateness are incomplete."""
        until = time + self.lateness
        if self._interrupted_until is None or until > self._interrupted_until:
            self._interrupted_until = until
        for window in self.open.values():
            window.interrupted |= window.start <= self._interrupted_until

    @property
    def watermark(self) -> int | None:
        """Event time up to which all partitions have come; None before the first record."""
        return min(self._latest.values(), default=None)

    def due(self, idle: Iterable[int] = ()) -> list[Window]:
        """Close and return the windows that are complete, oldest first; `idle` partitions are not waited for."""
        quiet = set(idle)
        latest = [time for partition, time in self._latest.items() if partition not in quiet] or list(
            self._latest.values()
        )
        if not latest:
            return []
        until = min(latest) - self.lateness
        found = [self.open.pop(start) for start in sorted(self.open) if start + self.length <= until]
        if found:
            found[0].late, self._late = self._late, 0
            self.closed_until = found[-1].end
        return found
