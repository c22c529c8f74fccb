"""Event time as most records say: how far a stream has come, whatever one of its sources claims.

A watermark that is the highest time of any record is moved by any record. One clock that is ahead then expires what
waits for others, and keeps doing so until the others' time has caught up.
"""

from __future__ import annotations

from collections import deque
from itertools import accumulate, islice
from operator import sub

#: The watermark (ms) before the first record.
NEVER = -(2**62)
#: The latest records that are asked how far time has come.
RECENT_RECORDS = 32
#: How many of them must have reached a time. So up to 23 of any 32 records in a row may be ahead, and up to 8 late.
QUORUM_RECORDS = 24
#: Part of what a watermark ends (a timeout, a window) by which a single record may be ahead of that and still move it.
SLACK_PART = 10


def join_memory(timeout: int, corrections: int) -> int:
    """Return for how long an id names one event, and the joiner knows what it has joined; all in ms of event time."""
    return 2 * timeout + corrections if corrections else timeout


#: What `state` returns: `time`, the latest time that the quorum has reached, and the times of the recent records, the
#: first as it is and of each other its difference to the one before.
State = tuple[int, ...]


class Watermark:
    """The watermark of one partition: `time`, in ms, a function of its records in their order. It never goes back.

    It is the latest event time that lies at most `slack` after the time that `quorum` of the last `recent` records have
    reached. Records in order, dense enough that a quorum of them lies within the slack, are each followed at once. A
    record that is further ahead moves nothing by itself; after a gap, the quorum does. With 1 of 1 it is the highest
    time of all.

    Parameters
    ----------
    slack
        In ms.
    state
        Goes on from what `state` returned; from nothing where it is empty.
    """

    __slots__ = ("_limit", "_reached", "_times", "quorum", "slack", "time")

    def __init__(
        self, slack: int, state: State = (), *, recent: int = RECENT_RECORDS, quorum: int = QUORUM_RECORDS
    ) -> None:
        self.slack, self.quorum = slack, quorum
        self.time, self._reached = state[:2] or (NEVER, NEVER)
        self._limit = self._reached + slack
        self._times = deque(accumulate(state[2:]), maxlen=recent)

    def add(self, time: int) -> None:
        """Take the next record's event time, in ms."""
        self._times.append(time)
        if time > self.time:
            if time > self._limit and len(self._times) >= self.quorum:
                self._ask()
            if time <= self._limit:
                self.time = time

    def _ask(self) -> None:
        """Find how far the quorum has come; only where a record is ahead, because to sort their times costs more."""
        reached = sorted(self._times)[-self.quorum]
        if reached > self._reached:
            self._reached, self._limit = reached, reached + self.slack
            self.time = max(self.time, reached)

    @property
    def lowest(self) -> int:
        """`time`; of the first records, before there is one, the lowest of their times. `add` was called before."""
        return self.time if self.time > NEVER else min(self._times)

    @property
    def state(self) -> State:
        """What a watermark of the same kind needs to go on from here."""
        times = self._times
        steps = map(sub, islice(times, 1, None), times)  # differences: fewer digits beside every committed offset
        return (self.time, self._reached, *islice(times, 1), *steps)


class Marks:
    """States of a watermark by offset, one in so many records, so that a rebuild finds one to begin with."""

    def __init__(self) -> None:
        self._states: deque[tuple[int, State]] = deque()
        self._since = 0

    def note(self, offset: int, watermark: Watermark) -> None:
        """Note the state before the record at `offset`; of most records nothing is kept."""
        if not self._states or self._since >= RECENT_RECORDS:
            self._states.append((offset, watermark.state))
            self._since = 0
        self._since += 1

    def before(self, offset: int) -> tuple[int, State]:
        """Return the last offset up to `offset` whose state is known, and that state; what is older is forgotten."""
        while len(self._states) > 1 and self._states[1][0] <= offset:
            self._states.popleft()
        return self._states[0]

    def clear(self) -> None:
        """Forget all: nothing needs to be read again."""
        self._states.clear()
