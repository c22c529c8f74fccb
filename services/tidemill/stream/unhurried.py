"""Records that nobody waits for, held back to come together: a transaction of the others is smaller for it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from tidemill.stream.api import Record


class Unhurried:
    """Holds back the records of some topics until the first of them has waited long enough, to go with others.

    Parameters
    ----------
    topics
        Theirs, on whose records no prediction waits.
    max_wait
        Seconds; twice as long where nothing else has come that they could go with.
    most
        So many records are not held back any longer, which bounds memory.
    """

    def __init__(self, topics: Collection[str], max_wait: float, most: int, clock: Callable[[], float]) -> None:
        self.topics, self.max_wait, self.most, self.clock = frozenset(topics), max_wait, most, clock
        self.held: list[Record] = []
        self._since = 0.0

    def take(self, records: Sequence[Record]) -> Sequence[Record]:
        """Return what is to be processed now; the order within a topic stays."""
        if not self.topics:
            return records
        now, topics = self.clock(), self.topics
        if not self.held:
            self._since = now
        self.held += [record for record in records if record.topic() in topics]
        hurried = [record for record in records if record.topic() not in topics]
        waited = now - self._since
        if self.held and (waited >= self.max_wait * (1 if hurried else 2) or len(self.held) >= self.most):
            hurried[:0], self.held = self.held, []
        return hurried
