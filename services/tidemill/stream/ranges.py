"""Ranges of offsets."""

from __future__ import annotations

import time
from collections.abc import Callable

from tidemill.errors import Aborted
from tidemill.stream.api import Broker, TopicPartition

#: How long an open transaction may hide records that are committed.
MAX_WAIT_SECONDS = 30.0
_PAUSE_SECONDS = 0.01


def full_range(broker: Broker, topic: str) -> dict[TopicPartition, tuple[int, int]]:
    """Return all that a topic holds at this moment, as the ranges that `Broker.read` takes."""
    partitions = [TopicPartition(topic, partition) for partition in range(broker.partitions(topic))]
    return {partition: broker.offset_range(partition) for partition in partitions}


def settled_range(broker: Broker, partition: TopicPartition, beat: Callable[[], None]) -> tuple[int, int]:
    """Return the range of a partition once all that it holds now can be read: what was open has been decided.

    Raises Aborted where that takes too long. `beat` is called meanwhile; what it raises ends the waiting.
    """
    end = broker.end_offset(partition)
    deadline = time.monotonic() + MAX_WAIT_SECONDS
    while (readable := broker.offset_range(partition))[1] < end:
        beat()
        if time.monotonic() > deadline:
            raise Aborted(f"reading {partition.topic}: a transaction has been open for {MAX_WAIT_SECONDS:.0f} s")
        time.sleep(_PAUSE_SECONDS)
    return readable
