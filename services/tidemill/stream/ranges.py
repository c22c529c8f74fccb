"""Ranges of offsets."""

from __future__ import annotations

from tidemill.stream.api import Broker, TopicPartition


def full_range(broker: Broker, topic: str) -> dict[TopicPartition, tuple[int, int]]:
    """Return all that a topic holds at this moment, as the ranges that `Broker.read` takes."""
    partitions = [TopicPartition(topic, partition) for partition in range(broker.partitions(topic))]
    return {partition: broker.offset_range(partition) for partition in partitions}
