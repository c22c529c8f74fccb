"""A pipeline moves to new topics: every valid event and label comes once, keyed, in order of time; and views follow."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import small
from river_in_memory import River, drive

from tidemill import Stream
from tidemill.errors import SettingsError
from tidemill.offline import grow
from tidemill.runtime.run import topic_table
from tidemill.stages.validator import service as validator
from tidemill.stream.api import TopicPartition
from tidemill.stream.loop import Loop
from tidemill.stream.origin import origin_of
from tidemill.wire import topics

OLD = small.make(partitions=2)
NEW = replace(OLD, name="grown", partitions=3)


def old_river(many: int = 60) -> River:
    """Return the old pipeline with events of several keys, their labels, and a dead letter, validated."""
    river = River(OLD)
    for name, _, partitions in ((full, topic, count) for topic, full, count in topic_table(NEW)):
        river.broker._topics[name], river.broker._ids[name] = partitions, f"{name}-1"
        for number in range(partitions):
            river.broker.log[TopicPartition(name, number)] = []
            river.broker.first[TopicPartition(name, number)] = 0
    add(river, 0, many)
    river.send(topics.EVENTS, b"poison", "k")
    drive(validator.build(OLD, fuse=False), river.broker)
    return river


def add(river: River, begin: int, end: int) -> None:
    for number in range(begin, end):
        at = 1_700_000_000_000 + number * 1000
        river.event(small.event(f"e{number}", at, origin=f"airport{number % 7}"), at)
        river.label(small.label(f"e{number}", at + 500), at + 500)


def ids(river: River, name: str) -> list[str]:
    codec = river.records.event if "events" in name else river.records.label
    return [codec.decode(record.value())["flight_id"] for record in river.broker.records(name)]


def copy(river: River, **options: int) -> None:
    drive(grow.build(OLD, NEW, lambda _: None), river.broker, **options)


def test_what_was_valid_comes_once_with_its_key_and_origin_whoever_copies() -> None:
    river = old_river()
    copy(river, batch=7)
    add(river, 60, 90)
    drive(validator.build(OLD, fuse=False), river.broker)
    copy(river)  # another process, which goes on
    copy(river)
    for valid, raw in grow.WAYS:
        before, after = (river.broker.records(topic.name(of.name)) for topic, of in ((valid, OLD), (raw, NEW)))
        assert len(after) == len(before) == 90
        assert Counter((r.key(), r.value(), origin_of(r)) for r in after) == Counter(
            (r.key(), r.value(), origin_of(r)) for r in before
        )


def test_each_key_keeps_its_order_and_is_in_one_new_partition() -> None:
    river = old_river()
    copy(river)
    drive(validator.build(NEW, fuse=False), river.broker)
    where: dict[bytes, set[int]] = {}
    order: dict[str, dict[bytes, list[bytes]]] = {"small": {}, "grown": {}}
    for name, of_keys in order.items():
        for record in river.broker.records(topics.EVENTS_VALID.name(name)):
            of_keys.setdefault(record.key(), []).append(record.value())
            if name == "grown":
                where.setdefault(record.key(), set()).add(record.partition())
    assert order["grown"] == order["small"]
    assert len(where) == 7
    assert all(len(partitions) == 1 for partitions in where.values())


def test_a_copy_that_dies_before_its_commit_copies_nothing_twice() -> None:
    river = old_river()
    service = grow.build(OLD, NEW, lambda _: None)
    loop = Loop(service, river.broker, max_delay=0.0, max_batch=10, sleep=lambda _: None)
    producer = river.broker.producer(loop.instance)
    consumer = river.broker.consumer(service.group, service.topics, loop.instance)
    for _ in range(3):
        loop.run_once(consumer, producer)
    service.processor.process(consumer.poll(10, 0.0), producer.emit)  # and the process is gone
    consumer.close()
    copy(river)
    assert Counter(ids(river, "grown.events")) == Counter(f"e{n}" for n in range(60))


def test_it_is_finished_when_all_that_producers_sent_is_validated_and_copied() -> None:
    river = old_river()
    following: dict[TopicPartition, int] = {}
    assert not grow.is_finished(river.broker, OLD, following)
    drive(grow.build(OLD, NEW, following.update), river.broker)
    assert grow.is_finished(river.broker, OLD, following)
    add(river, 60, 61)
    assert not grow.is_finished(river.broker, OLD, following), "it is not validated"
    drive(validator.build(OLD, fuse=False), river.broker)
    assert not grow.is_finished(river.broker, OLD, following), "it is not copied"


def test_pipelines_that_are_no_move_are_refused() -> None:
    with pytest.raises(SettingsError, match="both pipelines are called 'small'"):
        grow.check(OLD, replace(OLD, partitions=3))
    events = replace(small.EVENTS, encoding="json")
    with pytest.raises(SettingsError, match="the events of 'other' are declared as JSON"):
        grow.check(OLD, replace(OLD, name="other", events=events))
    other = Stream("flights/departure.v1.avsc", id="flight_id", time="asked_at", value="distance")
    with pytest.raises(SettingsError, match="the labels of 'small' and 'other' have different schemas"):
        grow.check(OLD, replace(OLD, name="other", labels=other, label_rules=()))
