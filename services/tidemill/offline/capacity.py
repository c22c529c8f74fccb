"""What machine a pipeline needs at a rate: measured on its own history, by the formulas of docs/how-to/capacity.md."""

from __future__ import annotations

import gc
import math
import sys
import time
import types
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from tidemill.declare.pipeline import Pipeline
from tidemill.errors import SettingsError
from tidemill.models.corrections import Corrections
from tidemill.offline.history import Message
from tidemill.offline.river import River
from tidemill.stream import memory
from tidemill.stream.api import Progress
from tidemill.wire import topics

#: CPU of the Kafka client for a record that is read or written, in us: the benchmark's bare loop, 24.8 us for one of
#: each, less the 17.9 of its step (docs/explanation/costs.md).
CLIENT_US = 3.5
#: Events that are taken at a time, and those on whose predictions memory is measured.
BATCH_EVENTS, MEMORY_EVENTS = 200, 1_000
CODE = (type, types.ModuleType, types.FunctionType)
SECONDS_OF_YEAR = 365 * 86_400


@dataclass(frozen=True)
class ServiceCost:
    """One service: us of CPU an event, records it reads and writes an event, cores at the rate, and processes."""

    name: str
    us: float
    records: float
    cores: float
    instances: int
    #: Whether its work can be shared among processes: a model is learned by one.
    scales: bool


@dataclass(frozen=True)
class TopicCost:
    """One topic: bytes an event with key and headers, and what is kept of it, in GB with all replicas."""

    name: str
    bytes: float
    kept_seconds: int
    gigabytes: float


@dataclass(frozen=True)
class Capacity:
    """What a pipeline needs at `rate` events a second; the formulas are in docs/how-to/capacity.md."""

    pipeline: str
    rate: float
    events: int
    labels: int
    seconds: float
    busy: float
    replicas: int
    label_delay: float
    label_timeout: float
    labelled_share: float
    services: list[ServiceCost] = field(default_factory=list)
    topics: list[TopicCost] = field(default_factory=list)
    waiting: float = 0.0
    waiting_bytes: float = 0.0
    joined: float = 0.0
    joined_bytes: float = 0.0
    remembered: float = 0.0
    entity_bytes: float = 0.0
    process_bytes: int = 0
    partitions: int = 0
    declared_partitions: int = 0

    @property
    def cores(self) -> float:
        """Cores that all services use together."""
        return sum(service.cores for service in self.services)

    @property
    def joiner_bytes(self) -> float:
        """Memory of all joiners, beyond what any process has."""
        return self.waiting * self.waiting_bytes + self.joined * self.joined_bytes

    @property
    def most(self) -> float:
        """Events a second that the slowest of those that can't be shared takes, with the same room left."""
        return min((self.busy * 1e6 / service.us for service in self.services if not service.scales), default=math.inf)

    def as_dict(self) -> dict[str, Any]:
        """Return it for programs."""
        return asdict(self) | {"cores": self.cores, "joiner_bytes": self.joiner_bytes, "most": self.most}


def capacity(
    pipeline: Pipeline,
    events: Sequence[Message],
    labels: Sequence[Message],
    rate: float,
    *,
    label_delay: float | None = None,
    busy: float = 0.6,
    replicas: int = 3,
    progress: Progress | None = None,
) -> Capacity:
    """Measure a pipeline's services on history, in order of time, and return what they need at `rate`.

    The first half of it warms up: windows fill, models grow. `label_delay` is seconds from an event to its label, by
    default the mean of the history; `busy` the share of a core that a process may use. Raises SettingsError where
    nothing is predicted.
    """
    process_bytes = _resident_bytes()
    half = len(events) // 2
    river, begun, examples = River(pipeline), time.perf_counter(), 0
    waiting = list(reversed(labels))
    for start in range(0, len(events), BATCH_EVENTS):
        if start <= half < start + BATCH_EVENTS:
            river.seconds.clear()
            measured_from = start
        batch = events[start : start + BATCH_EVENTS]
        examples = _feed(river, pipeline, batch, waiting, examples)
        if progress:
            progress(len(batch))
    seconds, measured = time.perf_counter() - begun, len(events) - measured_from
    predictions = len(river.broker.records(topics.PREDICTION_LOG.name(pipeline)))
    if not predictions:
        raise SettingsError("none of these events is predicted, so nothing is measured: `tidemill check` says why")
    times = {event.id: event.time for event in events}
    delays = [(label.time - times[label.id]) / 1_000 for label in labels if label.id in times]
    timeout = pipeline.label_timeout_ms / 1_000
    delay = label_delay if label_delay is not None else max(0.0, fmean(delays)) if delays else timeout
    memory = pipeline.join_memory_ms / 1_000
    corrections = Corrections(river.records)
    written = river.broker.records(topics.EXAMPLES.name(pipeline))
    share = sum(not corrections.is_one(record) for record in written) / predictions
    waiting_bytes, joined_bytes, entity_bytes = _memory(pipeline, events[:MEMORY_EVENTS], labels)
    kept = _topics(river, pipeline, len(events), rate, replicas)
    found = _services(river, pipeline, measured, len(events), rate, busy)
    return Capacity(
        pipeline.name, rate, len(events), len(labels), seconds, busy, replicas, delay, timeout, share, found, kept,
        waiting=rate * (share * min(delay, timeout) + (1 - share) * timeout),
        waiting_bytes=waiting_bytes,
        # Where labels are corrected, what has expired is remembered as well: its id may not come again.
        joined=rate * (share * max(0.0, memory - delay) + (1 - share) * (memory - timeout)),
        remembered=memory,
        joined_bytes=joined_bytes,
        entity_bytes=entity_bytes,
        process_bytes=process_bytes,
        partitions=max(service.instances for service in found if service.scales),
        declared_partitions=pipeline.partitions,
    )  # fmt: skip


def _feed(river: River, pipeline: Pipeline, batch: Sequence[Message], labels: list[Message], examples: int) -> int:
    """Give a river events, and the labels that are due by then, the last of `labels` first; return all examples."""
    for event in batch:
        river.broker.append(topics.EVENTS.name(pipeline), event.data, timestamp=0)
    while labels and labels[-1].time <= batch[-1].time:
        river.broker.append(topics.LABELS.name(pipeline), labels.pop().data)
    river.run()
    new = river.broker.records(topics.EXAMPLES.name(pipeline))[examples:]
    river.learn(new)
    return examples + len(new)


def _services(
    river: River, pipeline: Pipeline, measured: int, events: int, rate: float, busy: float
) -> list[ServiceCost]:
    """Return what each service costs; only the `measured` last events were timed."""
    made = []
    counts = {topic: len(river.broker.records(topic.name(pipeline))) / events for topic in topics.TOPICS}
    for name, used in river.seconds.items():
        service = name.partition(":")[0]
        records = sum(counts[topic] for topic in topics.consumes(service))
        records += sum(counts[topic] for topic in topics.writes(service) if topic is not topics.PROGRESS)
        if service == "learner":
            records = counts[topics.EXAMPLES]
        elif name == "materializer" and not pipeline.remote_views:
            continue
        us = used / measured * 1e6 + records * CLIENT_US
        cores = rate * us / 1e6
        made.append(ServiceCost(name, us, records, cores, max(1, math.ceil(cores / busy)), service != "learner"))
    return made


def _topics(river: River, pipeline: Pipeline, events: int, rate: float, replicas: int) -> list[TopicCost]:
    made = []
    for topic in topics.TOPICS:
        records = river.broker.records(topic.name(pipeline))
        if not records or topic is topics.PROGRESS:
            continue
        size = sum(
            len(record.value() or b"")
            + len(record.key() or b"")
            + sum(len(name) + len(value or b"") for name, value in record.headers() or ())
            for record in records
        )
        kept_ms = topic.kept_ms(pipeline)
        kept = SECONDS_OF_YEAR if kept_ms < 0 else kept_ms // 1_000
        made.append(TopicCost(topic.suffix, size / events, kept, size / events * rate * kept * replicas / 1e9))
    return made


def _memory(pipeline: Pipeline, events: Sequence[Message], labels: Sequence[Message]) -> tuple[float, float, float]:
    """Return bytes a waiting prediction, a joined one, and an entity of the views that the featurizer keeps."""
    river = River(pipeline)
    joiner, featurizer = river.processors["joiner"], river.processors["featurizer"]
    _feed(river, pipeline, events[:1], [], 0)
    empty, few = deep_size(joiner), deep_size(featurizer)
    _feed(river, pipeline, events[1:], [], 0)
    entities = {record.key() for record in river.broker.records(topics.FEATURES.name(pipeline))}
    pending = len(river.broker.records(topics.PREDICTION_LOG.name(pipeline))) - 1
    waiting = max(0, deep_size(joiner) - empty)
    ids = {event.id for event in events}
    examples = _feed(river, pipeline, [Message(2**62, "", events[-1].data)], [
        label for label in reversed(labels) if label.id in ids
    ], 0)  # fmt: skip
    joined = max(0, deep_size(joiner) - empty)
    per_waiting = waiting / max(1, pending)
    left = max(0, pending - examples) * per_waiting
    return (
        per_waiting,
        max(0.0, joined - left) / max(1, examples),
        max(0, deep_size(featurizer) - few) / max(1, len(entities)) if pipeline.inline_views else 0.0,
    )


def deep_size(root: object) -> int:
    """Return the bytes of an object and all that it leads to, but for code and the broker in memory."""
    seen, total, left = {id(root)}, 0, [root]
    while left:
        one = left.pop()
        total += sys.getsizeof(one)
        for near in gc.get_referents(one):
            if id(near) not in seen and type(near).__module__ != memory.__name__ and not isinstance(near, CODE):
                seen.add(id(near))
                left.append(near)
    return total


def _resident_bytes() -> int:
    """Return the memory of this process; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * 4096
    except OSError:
        return 0
