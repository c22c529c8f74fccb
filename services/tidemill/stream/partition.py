"""The partition that Kafka's Java clients choose for a key."""

from __future__ import annotations

from functools import lru_cache


@lru_cache(maxsize=65_536)  # entities come again and again
def partition_of(key: bytes, partitions: int) -> int:
    """Return where a key is placed: murmur2 as Kafka's Java client has it, and ours by `partitioner=murmur2_random`."""
    seed, m, mask = 0x9747B28C, 0x5BD1E995, 0xFFFFFFFF
    h = (seed ^ len(key)) & mask
    full = len(key) // 4 * 4
    for at in range(0, full, 4):
        k = int.from_bytes(key[at : at + 4], "little") * m & mask
        k = (k ^ (k >> 24)) * m & mask
        h = (h * m & mask) ^ k
    if len(key) > full:
        h = (h ^ int.from_bytes(key[full:], "little")) * m & mask
    h = (h ^ (h >> 13)) * m & mask
    return ((h ^ (h >> 15)) & 0x7FFFFFFF) % partitions
