"""Finding the record whose output Kafka refuses, by processing ever fewer records in one transaction.

A broker refuses a batch as a whole, and its transaction with it, and does not say for which record. So the loop goes
back and takes half as many, until one alone fails: that one becomes a dead letter. Then batches grow again.
"""

from __future__ import annotations

from collections.abc import Sequence

from tidemill.limits import DEAD_LETTER_BYTES
from tidemill.stream.api import Record

#: How large a dead letter may be: first as large as its topic should take, then so small that any topic takes it.
LETTER_BYTES = (DEAD_LETTER_BYTES.max, 8_000)


class Narrowing:
    """How many records the loop takes at a time, and which of them is refused.

    `limit` is how many it takes at most. `why` says why the record that was found is refused.
    """

    def __init__(self, max_batch: int) -> None:
        self.max_batch = self.limit = max_batch
        self.why = ""
        self._taken = self._suspects = self._attempts = 0
        self._last: Record | None = None
        self._refused: Record | None = None

    @property
    def is_on(self) -> bool:
        """Whether each batch is committed by itself, because one of the next records may be refused."""
        return self.limit < self.max_batch or self._refused is not None

    @property
    def letter_bytes(self) -> int:
        """How large the dead letter of the record that was found may be."""
        return LETTER_BYTES[min(self._attempts, len(LETTER_BYTES) - 1)]

    def took(self, records: Sequence[Record]) -> None:
        """Count a batch that is processed."""
        self._taken += len(records)
        if records:
            self._last = records[-1]

    def is_refused(self, record: Record) -> bool:
        """Whether this is the record that was found."""
        return self._refused is not None and _place(record) == _place(self._refused)

    def failed(self, why: str) -> bool:
        """Take fewer records; returns False where that can't help, as where the dead letter itself is refused."""
        if not self._taken or self._last is None:
            return False
        self._suspects = self._taken
        self.limit = max(1, self._taken // 2)
        if self._taken > 1:
            return True
        if not self.is_refused(self._last):
            self._refused, self._attempts, self.why = self._last, 0, why
            return True
        self._attempts += 1
        return self._attempts < len(LETTER_BYTES)

    def committed(self) -> None:
        """Take more records again where none of those in question is left."""
        if not self.is_on:
            self._taken = 0
            return
        self._suspects = max(0, self._suspects - self._taken)
        self._taken = 0
        if self._refused is not None and self._last is not None and _is_behind(self._refused, self._last):
            self._refused = None
        if self._refused is not None:
            self.limit = 1
        elif self._suspects:
            self.limit = max(1, self._suspects // 2)
        else:
            self.limit = min(self.max_batch, 2 * self.limit)

    def went_back(self) -> None:
        """Count from what is committed."""
        self._taken = 0


def _place(record: Record) -> tuple[str, int, int]:
    return record.topic(), record.partition(), record.offset()


def _is_behind(record: Record, last: Record) -> bool:
    """Whether `last` is this record, or a later one of its partition."""
    return _place(record)[:2] == _place(last)[:2] and record.offset() <= last.offset()
