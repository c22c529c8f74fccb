"""A stream whose times are in another unit than ours, on topics called otherwise, to examples on a real Kafka."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from real_kafka import RealKafka
from river import linear_model
from running import until

from tidemill import Pipeline, Stream, View, aggregates, number
from tidemill.durations import moment
from tidemill.encoding.codec import Codec
from tidemill.features.memory import MemoryView
from tidemill.runtime.run import topic_table
from tidemill.stages.featurizer import service as featurizer
from tidemill.stages.joiner import service as joiner
from tidemill.stages.scorer import service as scorer
from tidemill.stages.validator import service as validator
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.stream.loop import Loop
from tidemill.stream.ranges import full_range
from tidemill.stream.topic import Topic
from tidemill.wire import topics
from tidemill.wire.records import Records

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

BEGIN, EVENTS, STEP_MS = moment("2024-02-29T23:10:00.123Z"), 60, 97_001


def iso(ms: int) -> str:
    seconds, rest = divmod(ms - moment("2024-02-29"), 1000)
    day, minute = ("2024-02-29", seconds) if seconds < 86_400 else ("2024-03-01", seconds - 86_400)
    return f"{day}T{minute // 3600:02}:{minute // 60 % 60:02}:{minute % 60:02}.{rest:03}999Z"


#: The time's type and its declared unit, and what a producer has for a time in ms; what is finer is cut.
UNITS: dict[str, tuple[Any, str, Any]] = {
    "millis": ({"type": "long", "logicalType": "timestamp-millis"}, "", int),
    "seconds": ("double", "seconds", lambda ms: ms / 1000),
    "micros": ({"type": "long", "logicalType": "timestamp-micros"}, "", lambda ms: ms * 1_000 + 999),
    "nanos": ("long", "nanos", lambda ms: ms * 1_000_000 + 999_999),
    "iso8601": ("string", "iso8601", iso),
}


def pipeline(folder: Path, unit: str) -> Pipeline:
    """Return the same pipeline with its time in a unit; it is named by it."""
    type_, declared, _ = UNITS[unit]
    streams = {}
    for name, fields in {"Event": {"user": "string", "x": "double"}, "Label": {"y": "double"}}.items():
        avro_fields = [{"name": n, "type": t} for n, t in {"id": "string", "at": type_, **fields}.items()]
        streams[name] = folder / f"{unit}-{name}.avsc"
        streams[name].write_text(json.dumps({"type": "record", "name": name, "fields": avro_fields}))
    more: Any = {"id": "id", "time": "at", "time_unit": declared}
    events, labels = (f"somebody.{name}-in-{unit}" if unit != "millis" else "" for name in ("events", "labels"))
    return Pipeline(
        name=f"unit-{unit}",
        events=Stream(str(streams["Event"]), key="user", topic=events, **more),
        labels=Stream(str(streams["Label"]), value="y", topic=labels, **more),
        task="regression",
        request={"x": "x", "hour": number(lambda event: event["at"] // 3_600_000 % 24)},
        views=[View("user", every="1m", aggregates=[*aggregates.count("10m"), *aggregates.time_since_last("1h")])],
        models={"m": linear_model.LinearRegression()},
        champion="m",
        label_timeout="48h",
        partitions=1,
    )


def send(servers: str, declared: Pipeline, unit: str) -> None:
    events, labels, sent = Codec(declared.events.avro), Codec(declared.labels.avro), UNITS[unit][2]
    out = Producer({"bootstrap.servers": servers})
    for n in range(EVENTS):
        at, id_, user = BEGIN + n * STEP_MS, f"e{n}", f"u{n % 3}"
        event = {"id": id_, "at": sent(at), "user": user, "x": float(n)}
        label = {"id": id_, "at": sent(at + 3_600_000), "y": n / 2}
        out.produce(topics.EVENTS.name(declared), events.encode(event), user.encode())
        out.produce(topics.LABELS.name(declared), labels.encode(label), id_.encode())
    assert out.flush(30) == 0


@contextmanager
def services(servers: str, declared: Pipeline) -> Iterator[None]:
    """The river as far as the examples, a thread each."""
    made = [
        validator.build(declared),
        featurizer.build(declared, {view.label: MemoryView() for view in declared.views}),
        scorer.build(declared, tuple),
        joiner.build(declared),
    ]
    loops = [Loop(service, KafkaBroker(servers)) for service in made]
    threads = [threading.Thread(target=loop.run, daemon=True) for loop in loops]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for loop in loops:
            loop.stop()
        for thread in threads:
            thread.join(30)


def decoded(broker: KafkaBroker, declared: Pipeline, topic: Topic) -> list[Any]:
    codec = Records(declared).of_topic(topic)
    assert codec is not None
    batches = broker.read(full_range(broker, topic.name(declared.name)))
    return [codec.decode(record.value()) for batch in batches for record in batch]


def outcome(kafka: RealKafka, folder: Path, unit: str) -> dict[str, list[Any]]:
    """Return what becomes of the same events and labels with their times in a unit."""
    declared, broker = pipeline(folder, unit), KafkaBroker(kafka.servers)
    broker.create(topic_table(declared))
    send(kafka.servers, declared, unit)
    with services(kafka.servers, declared):
        until(lambda: len(decoded(broker, declared, topics.EXAMPLES)) == EVENTS, f"{unit}: not all labels have met", 90)
    assert not any(broker.read(full_range(broker, topics.DLQ.name(declared.name))))
    read = (topics.EVENTS_VALID, topics.LABELS_VALID, topics.FEATURES, topics.EXAMPLES)
    return {topic.suffix: sorted(decoded(broker, declared, topic), key=str) for topic in read}


@pytest.fixture(scope="module")
def in_millis(kafka: RealKafka, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    found = outcome(kafka, tmp_path_factory.mktemp("millis"), "millis")
    times = [features["event_time"] for features in found["features"]]
    assert sorted(times) == [BEGIN + n * STEP_MS for n in range(EVENTS)]
    last = max(found["features"], key=lambda features: features["event_time"])
    assert last["as_of"]["user"] == BEGIN + (EVENTS - 4) * STEP_MS, "the user's event before this one"
    assert last["vector"]["user_time_since_last_1h"] == 3 * STEP_MS / 1000
    return found


@pytest.mark.parametrize(
    "unit",
    [
        "seconds",
        pytest.param("iso8601", marks=pytest.mark.long),
        pytest.param("micros", marks=pytest.mark.long),
        pytest.param("nanos", marks=pytest.mark.long),
    ],
)
def test_features_and_examples_are_those_of_milliseconds(
    kafka: RealKafka, tmp_path: Path, in_millis: dict[str, list[Any]], unit: str
) -> None:
    """Event times, `as_of`, windows, label times: to the last digit."""
    assert outcome(kafka, tmp_path, unit) == in_millis
