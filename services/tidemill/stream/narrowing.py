"""Finding the record whose output Kafka refuses, in ever smaller parts of a batch.

A broker refuses a batch as a whole, and its transaction with it, and does not say for which record. To abort such a
transaction takes the client a second, so there must be few of them: the loop goes back and sends the same records in
parts, each of which must arrive before the next is sent. What failed is then one of the last part: that is divided
again, until it is one record, which becomes a dead letter. Where the producer has learned what a topic takes, nothing
has to arrive: it refuses the record before it is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tidemill.limits import DEAD_LETTER_BYTES
from tidemill.stream.api import Record

#: How large a dead letter may be: first as large as its topic should take, then so small that any topic takes it.
LETTER_BYTES = (DEAD_LETTER_BYTES.max, 8_000)

#: Topic, partition and offset of a record.
Place = tuple[str, int, int]

#: Into how many parts a batch is divided: each waits for an answer of the broker, a few ms.
PARTS = 250


class Narrowing:
    """How many records the loop takes at a time, in which parts it sends them, and which of them are refused."""

    def __init__(self, max_batch: int) -> None:
        self.max_batch = max_batch
        #: Records to take, and after how many of them to wait, 0 for not at all; all of one entry in one transaction.
        self._plan: list[tuple[int, int]] = []
        self._is_known = False
        self._taken = self._unproved = 0
        self._last: Record | None = None
        self._refused: dict[Place, _Refusal] = {}
        self._reached: dict[tuple[str, int], int] = {}

    @property
    def is_on(self) -> bool:
        """Whether records are processed one by one, because one of the next may be refused."""
        return bool(self._plan or self._refused)

    @property
    def limit(self) -> int:
        """At most so many records are taken at a time."""
        return self._plan[0][0] if self._plan else self.max_batch

    @property
    def must_wait(self) -> bool:
        """Whether what was sent must arrive before more is sent."""
        step = self._plan[0][1] if self._plan else 1
        return 0 < step <= self._unproved

    def took(self, records: Sequence[Record]) -> None:
        """Count records that are processed next."""
        self._taken += len(records)
        self._unproved += len(records)
        for record in records:
            self._last = record
            self._reached[record.topic(), record.partition()] = record.offset()

    def arrived(self) -> None:
        """Kafka has taken all that was sent."""
        self._unproved = 0

    def refusal(self, record: Record) -> tuple[str, int] | None:
        """Return why a record is refused, and how large its dead letter may be; None where it is not."""
        refusal = self._refused.get(_place(record))
        if refusal is None:
            return None
        return refusal.why, LETTER_BYTES[min(refusal.attempts, len(LETTER_BYTES) - 1)]

    def found(self, record: Record, why: str) -> bool:
        """Make a dead letter of a record next time; returns False where its smallest one was refused as well."""
        self._plan = self._plan or [(self.max_batch, 0)]
        refusal = self._refused.get(_place(record))
        if refusal is None:
            self._refused[_place(record)] = _Refusal(why)
            return True
        refusal.attempts += 1
        return refusal.attempts < len(LETTER_BYTES)

    def failed(self, why: str, *, next_is_early: bool = False) -> bool:
        """Plan smaller parts; returns False where that can't help, as where the dead letter itself is refused.

        `next_is_early`: the record is refused before it is sent, so that no part has to arrive; where that was tried in
        vain, parts are sent all the same.
        """
        good, suspects = self._taken - self._unproved, self._unproved
        if not suspects or self._last is None:
            return False
        self._is_known = next_is_early and not self.is_on
        if self._is_known:
            self._plan = [(self._taken, 0)]
            return True
        self._plan = [(good, 0)] if good else []
        if suspects > 1:
            self._plan.append((suspects, -(-suspects // PARTS)))
            return True
        self._plan.append((1, 0))
        return self.found(self._last, why)

    def committed(self) -> None:
        """Go on with the plan; after it, one more part is looked at closely, for such records come in numbers."""
        if self._plan:
            (count, step), *rest = self._plan
            left = count - self._taken
            self._plan = [(left, step), *rest] if left > 0 else rest
        if self._refused:
            reached = self._reached
            self._refused = {p: one for p, one in self._refused.items() if p[2] > reached.get(p[:2], -1)}
            self._plan = self._plan or [(min(PARTS, self.max_batch), 0 if self._is_known else 1)]
        elif not self._plan:
            self._is_known = False
        self.went_back()

    def went_back(self) -> None:
        """Count from what is committed."""
        self._taken = self._unproved = 0
        self._reached.clear()


@dataclass
class _Refusal:
    """Why a record is refused, and how many dead letters of it were."""

    why: str
    attempts: int = 0


def _place(record: Record) -> Place:
    return record.topic(), record.partition(), record.offset()
