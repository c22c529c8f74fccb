"""Ranges of offsets."""

from __future__ import annotations

from tidemill.stream.api import Broker, TopicPartition


def full_range(broker: Broker, topic: str) -> dict[TopicPartition, tuple[int, int]]:
    """Return all that a topic holds at this moment, as the ranges that `Broker.read` takes."""
    slots = [TopicPartition(topic, partition) for partition in range(broker.partitions(topic))]
    return {slot: broker.offset_range(slot) for slot in slots}
