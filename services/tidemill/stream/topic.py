"""One topic, as a row of a table: what it is called, how it is keyed and kept."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

DAY = 24 * 3_600_000

#: More than the largest record that a service writes, with key and headers: see `PREDICTION_BYTES` and its like.
MAX_RECORD_BYTES = 2**21
#: From so many replicas on, a write waits for two of them.
ENOUGH_REPLICAS = 3
#: The group that clients without a group name. They never join it; the client asks for its coordinator all the same.
READING_GROUP = "tidemill-reader"
#: What Kafka takes as the name of a topic.
TOPIC_NAME = re.compile(r"(?!\.\.?$)[A-Za-z0-9._-]{1,249}")


class Named(Protocol):
    """A pipeline, as its topics see it."""

    @property
    def name(self) -> str: ...
    @property
    def raw_topics(self) -> Mapping[str, str]:
        """Its topics that were there before it, by suffix."""

    @property
    def join_memory_ms(self) -> int:
        """How far back, in event time, the joiner knows what it has joined; milliseconds."""

    @property
    def kept_ms(self) -> Mapping[str, int]:
        """For how long topics keep their records where that is declared, by suffix; milliseconds."""


@dataclass(frozen=True)
class Topic:
    """One topic.

    `partitions` 0 means as many as the pipeline declares; `retention_ms` -1 means for ever; `max_message_bytes` 0 means
    the broker's own limit. Of a `compacted` topic only the last record of each key is kept. No state is made of a
    `passing` topic: a chain that has its only readers does not write it. The joiner's state is made of a `joined` one.
    Single records of an `erasable` one can be erased where the pipeline declares forgetting: their keys are unique.
    """

    suffix: str
    key: str
    record: str
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    partitions: int = 0
    retention_ms: int = 7 * DAY
    max_message_bytes: int = 0
    doc: str = ""
    compacted: bool = False
    passing: bool = False
    joined: bool = False
    erasable: bool = False

    def kept_ms(self, pipeline: Named) -> int:
        """How long a pipeline's records are kept, in ms; -1 for ever."""
        if (declared := pipeline.kept_ms.get(self.suffix)) is not None:
            return declared
        is_short = self.joined and pipeline.join_memory_ms > self.retention_ms
        return pipeline.join_memory_ms + DAY if is_short else self.retention_ms

    def of(self, pipeline: Named) -> Topic:
        """Return the topic as a pipeline keeps it."""
        return replace(self, retention_ms=self.kept_ms(pipeline))

    @property
    def is_raw(self) -> bool:
        """Whether programs of others write it, with whatever timestamps."""
        return "producers" in self.writers

    def name(self, pipeline: str | Named) -> str:
        """The topic's name for a pipeline; of a raw one, `pipeline` must be the declaration, which may name another."""
        if isinstance(pipeline, str):
            return f"{pipeline}.{self.suffix}"
        return pipeline.raw_topics.get(self.suffix) or f"{pipeline.name}.{self.suffix}"

    def config(self, replicas: int) -> dict[str, str]:
        """Return Kafka's settings of the topic where it has so many replicas; 0 where that is not known."""
        # What a producer says of its time must not decide for how long a record is kept.
        config = {"retention.ms": str(self.retention_ms), "message.timestamp.type": "LogAppendTime"}
        config["cleanup.policy"] = "delete"  # the cluster's own may be another
        if replicas >= ENOUGH_REPLICAS:  # what is acknowledged is on two brokers, and one may be away
            config["min.insync.replicas"] = "2"
        if self.compacted:
            # Small segments: what is in the last one is not compacted, and is read at every start.
            config |= {"cleanup.policy": "compact", "segment.bytes": str(2**20), "min.cleanable.dirty.ratio": "0.1"}
        if self.max_message_bytes:
            config["max.message.bytes"] = str(self.max_message_bytes)
        return config
