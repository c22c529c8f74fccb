"""How much may be refused of a stream before the validator stops."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fuse:
    """How much may be refused of a stream before the validator stops.

    Parameters
    ----------
    run
        This many records in a row; 0 for no such limit.
    share
        This share of `of` records, counted `of` by `of`; 0 for no such limit.
    """

    run: int = 500
    share: float = 0.5
    of: int = 2000
