"""How many different values a field had."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from tidemill.aggregates.base import Aggregate, Column, Window, require_windows

#: Hashes that are kept.
K = 256

#: Length of a hash; as many values as an entity ever has don't collide in 64 bits.
HASH_BYTES = 8


class Hashes(Column):
    """A cell is the `K` smallest hashes of the tile's values, in ascending order: at most 256 times 8 bytes."""

    def __init__(self, field: str) -> None:
        super().__init__(f"distinct:{field}", field)

    def fresh(self) -> list[bytes]:
        return []

    def add(self, cells: list[list[bytes]], index: int, value: Any, now: int) -> None:  # noqa: ARG002
        hashed = digest(value)
        kept = cells[index]
        if len(kept) == K and hashed >= kept[-1]:
            return
        place = bisect_left(kept, hashed)
        if place == len(kept) or kept[place] != hashed:
            kept.insert(place, hashed)
            del kept[K:]

    def merge(self, cells: Sequence[list[bytes]]) -> list[bytes]:
        # The k smallest of the tiles' k smallest are those of all values. Cut now and then: most tiles then add little.
        smallest: set[bytes] = set()
        limit = b""
        for kept in cells:
            smallest.update(kept[: bisect_left(kept, limit)] if limit else kept)
            if len(smallest) >= 2 * K:
                cut = sorted(smallest)[:K]
                smallest, limit = set(cut), cut[-1]
        return sorted(smallest)[:K]

    def dump(self, cell: list[bytes]) -> str | None:
        return b"".join(cell).hex() or None

    def load(self, stored: str) -> list[bytes]:
        data = bytes.fromhex(stored)
        return [data[i : i + HASH_BYTES] for i in range(0, len(data), HASH_BYTES)]


def digest(value: Any) -> bytes:
    """Return the hash of a number or a text: equal for equal values (1 and 1.0), the same in every process."""
    if not isinstance(value, str):
        value = repr(int(value) if isinstance(value, float) and value.is_integer() else value)
    return blake2b(value.encode("utf-8", "surrogatepass"), digest_size=HASH_BYTES).digest()


def distinct(over: str, *windows: str) -> list[Aggregate]:
    """Number of different values of `over` (a number, text, an enum or a boolean); 0 where there were none.

    Exact up to 255 different values in the window. Beyond it is the estimate of the k minimum values sketch, k = 256:
    (k - 1) / u, where u is the k-th smallest hash as a fraction of all hashes (Bar-Yossef et al. 2002; unbiased: Beyer
    et al. 2007). Its standard error is about 1 / sqrt(k - 2) = 6.3% of the number.

    Examples
    --------
    >>> from tidemill.testing import try_aggregates
    >>> events = [("1m", {"carrier": "AA"}), ("2m", {"carrier": "UA"}), ("3m", {"carrier": "AA"})]
    >>> try_aggregates(distinct("carrier", "1h"), events, at="10m")
    {'distinct_carrier_1h': 2.0}
    """
    column = Hashes(over)
    name = column.name

    def read(w: Window, _: int) -> float:
        smallest = column.merge(w[name])
        if len(smallest) < K:
            return float(len(smallest))
        largest = int.from_bytes(smallest[-1], "big")
        return (K - 1) * 2.0 ** (8 * HASH_BYTES) / (largest + 1)

    return [
        Aggregate("distinct", over, window, (column,), read, empty=0.0, text=True)
        for window in require_windows("distinct", (over,), windows)
    ]
