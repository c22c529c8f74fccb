"""What was seen within a horizon of event time, and where in the log it begins."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
SLICES = 8


class Recent(Generic[K, V]):
    """A mapping that forgets what is more than `horizon` ms of event time behind the latest; a slice of it at once.

    Late by as much is not remembered at all, so what is held is bounded by what comes within 9/8 of a horizon.
    """

    def __init__(self, horizon: int) -> None:
        self._length = max(1, horizon // SLICES)
        self._values: dict[K, tuple[V, int]] = {}
        self._slices: dict[int, tuple[set[K], int]] = {}
        self._newest = -(2**62)

    def get(self, key: K) -> V | None:
        """Return what is remembered of a key."""
        entry = self._values.get(key)
        return None if entry is None else entry[0]

    def put(self, key: K, value: V, time: int, offset: int) -> None:
        """Remember a key's value of event time `time` (ms), which the record at `offset` brought."""
        at = time // self._length
        if at > self._newest:
            self._newest = at
            for old in [slice_ for slice_ in self._slices if slice_ < at - SLICES]:
                self._drop(old)
        elif at < self._newest - SLICES:
            return
        before = self._values.get(key)
        if before is not None and before[1] != at:
            self._slices[before[1]][0].discard(key)
        self._values[key] = (value, at)
        keys, begin = self._slices.get(at, (None, offset))
        if keys is None:
            keys = set()
        keys.add(key)
        self._slices[at] = (keys, min(begin, offset))

    def begin(self) -> int | None:
        """Return the offset from which on everything that is remembered came; None where nothing is."""
        return min((begin for _, begin in self._slices.values()), default=None)

    def __len__(self) -> int:
        return len(self._values)

    def _drop(self, at: int) -> None:
        for key in self._slices.pop(at)[0]:
            del self._values[key]
