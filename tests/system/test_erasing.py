"""On a real broker: single records go by compaction, from its files too, and all others keep their offsets."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_kafka import RealKafka

from tidemill.stream.api import TopicPartition
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.stream.kafka.erasing import Eraser, by_partition, stored
from tidemill.stream.ranges import full_range
from tidemill.stream.topic import Topic
from tidemill.stream.unique_keys import is_unique

TOPIC = Topic("t", "k", "bytes", (), (), retention_ms=-1)
#: Its cleaner looks often: by default it does so every 15 s.
OFTEN = (
    "log.cleaner.backoff.ms=500", "log.retention.check.interval.ms=1000", "log.initial.task.delay.ms=1000",
    "log.segment.delete.delay.ms=1000",
)  # fmt: skip


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RealKafka]:
    server = RealKafka(tmp_path, *OFTEN)
    yield server
    server.stop()


@pytest.mark.slow
def test_records_are_erased_and_the_others_stay_where_they_are(server: RealKafka) -> None:
    broker = KafkaBroker(server.servers)
    broker.erasable = {"erased.t"}
    broker.create([(TOPIC, "erased.t", 2), (TOPIC, "other.t", 2)])
    producer = broker.producer("one")
    for number in range(400):
        name = b"SECRET%d" % number if number % 10 == 0 else b"open%d" % number
        for topic in ("erased.t", "other.t"):
            producer.emit(topic, b"value of " + name, b"plane%d" % (number % 3) if number % 7 else None)
        if number % 25 == 24:
            producer.commit({}, None)
    before = {name: read(broker, name) for name in ("erased.t", "other.t")}
    assert len(before["erased.t"]) == len(before["other.t"]) == 400
    assert {key for _, _, key, _ in before["erased.t"]} == {b"plane0", b"plane1", b"plane2", None}
    assert all(is_unique(record.key()) for batch in stored(broker, "erased.t") for record in batch)
    assert not any(is_unique(record.key()) for batch in stored(broker, "other.t") for record in batch)
    # The partition is that of the natural key, as without forgetting.
    places = [{(partition, key) for partition, _, key, _ in some if key} for some in before.values()]
    assert places[0] == places[1]

    secret = [r for batch in stored(broker, "erased.t") for r in batch if b"SECRET" in r.value()]
    assert len(secret) == 40
    overrides = broker.topic_overrides(["erased.t"])
    for _ in range(2):  # twice is once
        eraser = Eraser(broker, patience=240)
        eraser.prepare(["erased.t"])
        eraser.erase(by_partition(secret))
        eraser.restore(overrides)
    while broker.topic_overrides(["erased.t"]) != overrides:  # brokers hear of it a little later
        time.sleep(0.5)
    assert read(broker, "erased.t") == [one for one in before["erased.t"] if b"SECRET" not in one[3]]
    assert read(broker, "other.t") == before["other.t"]
    deadline = time.monotonic() + 60
    while left := [path for path in server.folder.glob("log/erased.t-*/*") if b"SECRET" in content(path)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.5)
    assert any(b"SECRET" in content(path) for path in server.folder.glob("log/other.t-*/*"))

    ends = {TopicPartition("other.t", 0): 3}
    eraser.delete_before(ends)
    assert broker.offset_range(TopicPartition("other.t", 0))[0] == 3

    # Nothing was written since: the file that has what was deleted is closed, and goes.
    partitions = [TopicPartition("other.t", number) for number in range(2)]
    eraser.delete_before({one: broker.offset_range(one)[1] for one in partitions})
    overrides = broker.topic_overrides(["other.t"])
    assert eraser.close_files(partitions, "forget") == set()
    eraser.restore(overrides)
    deadline = time.monotonic() + 60
    while broker.topic_overrides(["other.t"]) != overrides:  # brokers hear of it a little later
        assert time.monotonic() < deadline
        time.sleep(0.5)
    while left := [path for path in server.folder.glob("log/other.t-*/*") if b"SECRET" in content(path)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.5)
    ends = {one: broker.end_offset(one) for one in partitions}
    producer.emit("other.t", b"later", b"plane1")
    producer.commit({}, None)
    deadline = time.monotonic() + 60
    while not (values := [value for _, _, _, value in read(broker, "other.t")]):  # brokers mark it a little later
        assert time.monotonic() < deadline
    assert values == [b"later"], "no reader sees how it was closed"
    assert sum(broker.end_offset(one) - end for one, end in ends.items()) == 2, "it, and its commit"


def read(broker: KafkaBroker, name: str) -> list[tuple[int, int, bytes | None, bytes]]:
    records = (record for batch in broker.read(full_range(broker, name)) for record in batch)
    return sorted(((r.partition(), r.offset(), r.key(), r.value()) for r in records), key=lambda one: one[:2])


def content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""  # it has just been deleted
