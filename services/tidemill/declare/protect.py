"""How much of what a model learns may come from one source."""

from __future__ import annotations

from dataclasses import dataclass

MOST_REMEMBERED = 100_000


@dataclass(frozen=True)
class Protect:
    """How much of what is learned may come from one source.

    Parameters
    ----------
    source
        A category of the vector, or the events' key.
    share
        An example is not learned where this share of the last `of` that were learned is its source's already.
    of
        So many are remembered, in memory and in every snapshot. Of the very first of all, one source may be share * of.
    """

    source: str
    share: float = 0.3
    of: int = 1000
