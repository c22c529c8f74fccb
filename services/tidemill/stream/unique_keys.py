"""Keys that are each record's own, so that Kafka's compaction can erase a single record and keep all others.

A compacted topic keeps the last record of each key, and of a key whose last record has no value (a tombstone) none. So
where records may have to be erased, a record's key is its natural key, a mark that no text has, and a number that no
other record has. Who reads gets the natural key, and no tombstones: `natural` is called where records come from Kafka.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterable

#: No UTF-8 has these bytes, so no key of ours ends so by itself.
MARK = b"\xff\xfe\xff\xfe"
_NUMBER_BYTES = 8
SUFFIX_BYTES = len(MARK) + _NUMBER_BYTES


class UniqueKeys:
    """Makes keys of one producer; they count up from a number drawn at random from 2^63."""

    def __init__(self) -> None:
        self._numbers = itertools.count(secrets.randbits(63))

    def __call__(self, key: bytes | None) -> bytes:
        """Return a key that no other record has."""
        return (key or b"") + MARK + next(self._numbers).to_bytes(_NUMBER_BYTES, "big")


def may_be_among(keys: Iterable[bytes | None]) -> bool:
    """Whether keys of `UniqueKeys` may be among these, told at once for all: most logs have none."""
    return MARK in b"".join(filter(None, keys))


def is_unique(key: bytes | None) -> bool:
    """Whether a key is one of those that `UniqueKeys` makes."""
    return key is not None and key[-SUFFIX_BYTES:-_NUMBER_BYTES] == MARK


def natural(key: bytes | None) -> bytes | None:
    """Return the key that a record would have without its number: None where there was none, or an empty one."""
    return key[:-SUFFIX_BYTES] or None if key is not None and is_unique(key) else key
