"""Finding the record whose output Kafka refuses, in ever smaller parts of a batch.

A broker refuses a batch as a whole, and its transaction with it, and does not say for which record. To abort such a
transaction takes the client a second, so there must be few of them: the loop goes back and sends the same records in
parts, each of which must arrive before the next is sent. What failed is then one of the last part: that is divided
again, until it is one record, which becomes a dead letter.
"""

from __future__ import annotations

from collections.abc import Sequence

from tidemill.limits import DEAD_LETTER_BYTES
from tidemill.stream.api import Record

#: How large a dead letter may be: first as large as its topic should take, then so small that any topic takes it.
LETTER_BYTES = (DEAD_LETTER_BYTES.max, 8_000)

#: Into how many parts a batch is divided: each waits for an answer of the broker, a few ms.
PARTS = 250


class Narrowing:
    """How many records the loop takes at a time, in which parts it sends them, and which of them is refused.

    `why` says why the record that was found is refused.
    """

    def __init__(self, max_batch: int) -> None:
        self.max_batch = max_batch
        self.why = ""
        #: Records to take, and after how many of them to wait, 0 for not at all; all of one entry in one transaction.
        self._plan: list[tuple[int, int]] = []
        self._taken = self._unproved = self._attempts = 0
        self._last: Record | None = None
        self._refused: Record | None = None

    @property
    def is_on(self) -> bool:
        """Whether records are processed one by one, because one of the next may be refused."""
        return bool(self._plan) or self._refused is not None

    @property
    def limit(self) -> int:
        """At most so many records are taken at a time."""
        return self._plan[0][0] if self._plan else self.max_batch

    @property
    def letter_bytes(self) -> int:
        """How large the dead letter of the record that was found may be."""
        return LETTER_BYTES[min(self._attempts, len(LETTER_BYTES) - 1)]

    @property
    def must_wait(self) -> bool:
        """Whether what was sent must arrive before more is sent."""
        step = self._plan[0][1] if self._plan else 1
        return 0 < step <= self._unproved

    def took(self, records: Sequence[Record]) -> None:
        """Count records that are processed next."""
        self._taken += len(records)
        self._unproved += len(records)
        if records:
            self._last = records[-1]

    def arrived(self) -> None:
        """Kafka has taken all that was sent."""
        self._unproved = 0

    def is_refused(self, record: Record) -> bool:
        """Whether this is the record that was found."""
        return self._refused is not None and _place(record) == _place(self._refused)

    def failed(self, why: str) -> bool:
        """Plan smaller parts; returns False where that can't help, as where the dead letter itself is refused."""
        good, suspects = self._taken - self._unproved, self._unproved
        if not suspects or self._last is None:
            return False
        self._plan = [(good, 0)] if good else []
        if suspects > 1:
            self._plan.append((suspects, -(-suspects // PARTS)))
            return True
        self._plan.append((1, 0))
        if not self.is_refused(self._last):
            self._refused, self._attempts, self.why = self._last, 0, why
            return True
        self._attempts += 1
        return self._attempts < len(LETTER_BYTES)

    def committed(self) -> None:
        """Go on with the plan; after it, one more part is looked at closely, for such records come in numbers."""
        if self._plan:
            (count, step), *rest = self._plan
            left = count - self._taken
            self._plan = [(left, step), *rest] if left > 0 else rest
        if self._refused is not None and self._last is not None and _is_behind(self._refused, self._last):
            self._refused = None
            self._plan = self._plan or [(min(PARTS, self.max_batch), 1)]
        self.went_back()

    def went_back(self) -> None:
        """Count from what is committed."""
        self._taken = self._unproved = 0


def _place(record: Record) -> tuple[str, int, int]:
    return record.topic(), record.partition(), record.offset()


def _is_behind(record: Record, last: Record) -> bool:
    """Whether `last` is this record, or a later one of its partition."""
    return _place(record)[:2] == _place(last)[:2] and record.offset() <= last.offset()
