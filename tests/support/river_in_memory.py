"""The whole river in memory: the services' own steps, each under the one loop, from what producers send to what is learned."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from signing_keys import KEY

from tidemill import Pipeline
from tidemill.demo import data
from tidemill.registry.manifests import Registry
from tidemill.registry.store import ArtifactStore
from tidemill.runtime.run import topic_table
from tidemill.stages.featurizer import service as featurizer
from tidemill.stages.gate import service as gate
from tidemill.stages.joiner import service as joiner
from tidemill.stages.learner import service as learner
from tidemill.stages.scorer import service as scorer
from tidemill.stages.scorer.feed import ModelFeed
from tidemill.stages.validator import service as validator
from tidemill.stream.group import Service
from tidemill.stream.loop import Loop
from tidemill.stream.memory import MemoryBroker, MemoryRecord
from tidemill.stream.topic import Topic
from tidemill.wire import topics
from tidemill.wire.records import Records


@functools.cache
def _first_days(question: data.Question) -> list[data.Flight]:
    return data.flights((1,), question, 2)  # takes seconds, so it is read once


def flights(question: data.Question = "scheduled", days: int = 1, every: int = 1) -> list[data.Flight]:
    """Return one in `every` flights of the first one or two days of January."""
    found = _first_days(question)
    first = min(f.event["flight_date"] for f in found)
    return [f for f in found if f.event["flight_date"] < first + days][::every]


def drive(service: Service, broker: MemoryBroker, *, batch: int = 50, instance: str = "0") -> Loop:
    """Run a service as a new process would, until nothing comes any more; it is not stopped, it is left."""
    loop = Loop(service, broker, instance=instance, max_delay=0.0, max_batch=batch, sleep=lambda _: None)
    producer, consumer = broker.producer(loop.instance), broker.consumer(service.group, service.topics, loop.instance)
    quiet = 0
    while quiet < 3:
        quiet = 0 if loop.run_once(consumer, producer) else quiet + 1
    return loop


class Letter:
    """A dead letter, its headers as text."""

    def __init__(self, record: MemoryRecord) -> None:
        self.value = record.value() or b""
        said = {name: text.decode() for name, text in record.headers() or []}
        self.reason, self.field, self.stage = (
            said["tidemill.reason"],
            said["tidemill.field"],
            said["__connect.errors.stage"],
        )
        self.message = said["__connect.errors.exception.message"]
        self.source = (
            said["__connect.errors.topic"],
            said["__connect.errors.partition"],
            said["__connect.errors.offset"],
        )


class River:
    """A pipeline's topics in memory, and its services.

    `run` drives one service after the other until each is idle; every call is a restart of all of them. The learner of
    the champion publishes all that it has learned whenever it is idle, and the scorer of the next `run` serves it.
    """

    def __init__(self, pipeline: Pipeline, folder: Path | None = None) -> None:
        self.pipeline, self.records = pipeline, Records(pipeline)
        self.broker = MemoryBroker({name: partitions for _, name, partitions in topic_table(pipeline)})
        self.registry = Registry(pipeline, ArtifactStore(str(folder)), KEY) if folder else None
        self.steps: dict[str, Any] = {}
        self._now = 0

    def copy(self) -> River:
        """Return one whose log may be spoilt; the artifacts are shared."""
        own = copy.copy(self)
        own.broker = copy.copy(self.broker)
        own.broker.log = {slot: list(entries) for slot, entries in self.broker.log.items()}
        own.broker.first = dict(self.broker.first)
        return own

    def send(self, topic: Topic, value: bytes, key: str, timestamp: int = 0) -> None:
        """Send one message as a producer would."""
        self._now += 1
        self.broker.append(topic.name(self.pipeline.name), value, key.encode(), timestamp or self._now)

    def event(self, event: Mapping[str, Any], timestamp: int = 0) -> None:
        self.send(topics.EVENTS, self.records.event.encode(event), event[self.pipeline.events.id], timestamp)

    def label(self, label: Mapping[str, Any], timestamp: int = 0) -> None:
        self.send(topics.LABELS, self.records.label.encode(label), label[self.pipeline.labels.id], timestamp)

    def run(self, batch: int = 50) -> None:
        for make in self._services():
            service = make()
            self.steps[service.name.partition("-")[0]] = drive(service, self.broker, batch=batch).processor

    def _services(self) -> Iterator[Callable[[], Service]]:
        yield lambda: validator.build(self.pipeline, fuse=False)
        yield lambda: featurizer.build(self.pipeline, {})
        if self.registry is None:
            yield lambda: scorer.build(self.pipeline, tuple)
            yield lambda: joiner.build(self.pipeline)
            return
        feed = ModelFeed(self.registry, self.broker)
        feed.start()
        yield lambda: scorer.build(self.pipeline, feed.take)
        feed.stop()
        yield lambda: joiner.build(self.pipeline)
        registry = self.registry
        yield lambda: gate.build(self.pipeline, registry, self.broker)
        yield lambda: learner.build(
            self.pipeline, self.pipeline.champion, registry, self.broker, every_examples=100, every_seconds=1e-9
        )

    def of(self, topic: Topic) -> list[MemoryRecord]:
        return self.broker.records(topic.name(self.pipeline.name))

    def decoded(self, topic: Topic) -> list[Any]:
        codec = {
            topics.EVENTS_VALID: self.records.event, topics.LABELS_VALID: self.records.label, topics.FEATURES: self.records.features,
            topics.PREDICTIONS: self.records.prediction, topics.PREDICTION_LOG: self.records.prediction_log,
            topics.EXAMPLES: self.records.example, topics.EXPIRED: self.records.prediction_log,
        }[topic]  # fmt: skip
        return [codec.decode(record.value() or b"") for record in self.of(topic)]

    def letters(self, stage: str = "") -> list[Letter]:
        found = [Letter(record) for record in self.of(topics.DLQ)]
        return [letter for letter in found if not stage or letter.stage == stage]

    @property
    def pending(self) -> int:
        return sum(join.pending for join in self.steps["joiner"].joins.values())

    @property
    def waiting(self) -> int:
        return sum(join.waiting_labels for join in self.steps["joiner"].joins.values())


def json_with(record: Mapping[str, Any], field: str, raw: str) -> bytes:
    """Return the record as JSON with one field's text written as it is given."""
    rest = json.dumps({name: value for name, value in record.items() if name != field})
    return f'{rest[:-1]}, "{field}": {raw}}}'.encode()


def fields(avro: Mapping[str, Any], types: Mapping[str, str], *kinds: str) -> Sequence[str]:
    """Return the names of a schema's fields of these primitive types."""
    return [f["name"] for f in avro["fields"] if types[f["name"]] in kinds]
