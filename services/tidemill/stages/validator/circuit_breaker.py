"""The circuit breaker: where so much is refused that a producer or a rule must be wrong, the validator stops.

Counted by stream, in the order in which one instance handles records, and kept beside the committed offsets. A process
that is started again while the breaker is open is stopped by the next record that is refused, and goes on with the
first that passes.
"""

from __future__ import annotations

from collections import Counter

from tidemill.declare.fuse import Fuse


class CircuitBreaker:
    """What is counted of one stream. `passed` is what passed since it was last refused anything: add to it."""

    def __init__(self, fuse: Fuse) -> None:
        self.fuse = fuse
        #: Whether the record that was refused last has opened it; else it was open already, or is closed.
        self.has_opened = False
        self.passed = 0
        self.run = 0
        self.seen = 0
        self.bad = 0
        self._of_run: Counter[str] = Counter()
        self._of_all: Counter[str] = Counter()

    def refused(self, reason: str) -> str | None:
        """Count a record that was refused; returns why it must stop now, or None."""
        self._settle()
        was_open = self._is_open
        self.run += 1
        self.seen += 1
        self.bad += 1
        self._of_run[reason] += 1
        self._of_all[reason] += 1
        self.has_opened = self._is_open and not was_open
        fuse = self.fuse
        if fuse.run and self.run >= fuse.run:
            return f"{self.run:,} in a row were refused ({_shown(self._of_run)})"
        if fuse.share and self.bad > fuse.share * fuse.of:
            share = f"more than {fuse.share:.0%} of {fuse.of:,}"
            return f"of {self.seen:,} records {self.bad:,} were refused, {share} ({_shown(self._of_all)})"
        return None

    @property
    def _is_open(self) -> bool:
        fuse = self.fuse
        return bool(fuse.run and self.run >= fuse.run) or bool(fuse.share and self.bad > fuse.share * fuse.of)

    def _settle(self) -> None:
        if self.passed:
            self.run = 0
            self.seen += self.passed
            self.passed = 0
            self._of_run.clear()
        if self.seen >= self.fuse.of:
            self.seen = self.bad = 0
            self._of_all.clear()

    @property
    def counts(self) -> tuple[int, ...]:
        """What is kept beside the offset: refused in a row, records, refused; empty where none was refused."""
        self._settle()
        return (self.run, self.seen, self.bad) if self.bad or self.run else ()

    def restore(self, run: int, seen: int, bad: int) -> None:
        """Go on from what an earlier process had counted; of several, the worst."""
        self.run = max(self.run, run)
        if bad > self.bad:
            self.seen, self.bad = seen, bad


def _shown(reasons: Counter[str]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common(5))
