"""The port of state on this machine's disk: ordered tables that a processor reads and writes as it goes.

A log is the truth, and this is a copy of what was made of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Table(Protocol):
    """Keys of up to 511 bytes and their values, ordered by key."""

    def get(self, key: bytes) -> bytes | None:
        """Return a value, or None."""

    def put(self, key: bytes, value: bytes) -> None:
        """Set a value."""

    def delete(self, key: bytes) -> None:
        """Remove a key, if it is there."""

    def first(self) -> bytes | None:
        """Return the smallest key; None where the table is empty."""

    def last_until(self, key: bytes) -> bytes | None:
        """Return the largest key that is not above `key`."""


class LocalState(Protocol):
    """The tables of one partition."""

    def table(self, name: str) -> Table:
        """Return a table; it is empty where it is new."""

    def save(self) -> None:
        """Keep what was done: all of it or nothing. Raises Retry where the disk does not take it."""

    def clear(self) -> None:
        """Empty all tables, and keep that."""

    def close(self) -> None:
        """Drop what was not saved, and let go."""


#: Returns the local state of a partition.
OpenState = Callable[[int], LocalState]
