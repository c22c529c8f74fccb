"""How long records gather before the next batch: so that transactions take a bounded share of a service's time."""

from __future__ import annotations

#: The share of the time that batches with their commits may take, of a service that predictions wait for. A transaction
#: takes the broker about three times what it takes the service; without one, a batch costs little beside its records.
BUSY_SHARE, BUSY_SHARE_AT_LEAST_ONCE = 1 / 5, 1 / 3
#: How much the latest batch counts in what batches cost.
NEWEST_PART = 0.25


class Pace:
    """Follows what batches cost, and says how long to wait between two of them.

    A batch has a cost whatever is in it: a transaction. While that is cheap, batches are many and small; the more it
    costs, the longer records gather, but no record gathers so long that with the cost of its own batch it would wait
    for more than `max_delay`. Where batches cost more than that, there is nothing to wait for: the next one begins at
    once, and is larger.

    Parameters
    ----------
    max_delay
        Seconds.
    busy_share
        The share of the time that batches take, where `max_delay` allows that; above 0, at most 1.
    """

    def __init__(self, max_delay: float, busy_share: float = BUSY_SHARE) -> None:
        self.max_delay = max_delay
        self._gaps = 1 / busy_share - 1
        self._cost: float | None = None

    def took(self, seconds: float) -> None:
        """Note what a batch took, commit included."""
        self._cost = seconds if self._cost is None else self._cost + NEWEST_PART * (seconds - self._cost)

    @property
    def gather(self) -> float:
        """Seconds from the end of one batch to the beginning of the next; 0 before anything is known."""
        cost = self._cost or 0.0
        return max(0.0, min(self._gaps * cost, self.max_delay - cost))
