"""A crash is an input: the services' own steps under the loop, stopped around every commit and every view write."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from crash import Aborting, Bomb, Crash, Fragile

from tidemill import load
from tidemill.demo import data
from tidemill.demo.script import script
from tidemill.encoding.codec import HEADER
from tidemill.errors import Fenced
from tidemill.features import views
from tidemill.features.memory import MemoryView
from tidemill.runtime.run import topic_table
from tidemill.stages.featurizer import service as featurizer
from tidemill.stages.joiner import service as joiner
from tidemill.stages.materializer import service as materializer
from tidemill.stages.scorer import service as scorer
from tidemill.stages.validator import service as validator
from tidemill.stream.group import Service
from tidemill.stream.loop import Loop
from tidemill.stream.memory import MemoryBroker
from tidemill.wire import topics
from tidemill.wire.records import Records

pytestmark = pytest.mark.slow

PIPELINE = load("flights")
RECORDS = Records(PIPELINE)
OWN = PIPELINE.inline_views[0].label
OUTPUTS = (
    topics.EVENTS_VALID, topics.LABELS_VALID, topics.DLQ, topics.FEATURES, topics.PREDICTIONS, topics.PREDICTION_LOG,
    topics.EXAMPLES, topics.EXPIRED, topics.UPDATES,
)  # fmt: skip


class FragileView(MemoryView):
    bomb = Bomb(None)

    def write(self, *arguments) -> str:
        self.bomb.tick()
        outcome = super().write(*arguments)
        self.bomb.tick()
        return outcome


def messages(every: int) -> MemoryBroker:
    """Return a broker with the messages of one flight in so many, of three days."""
    broker = MemoryBroker({name: partitions for _, name, partitions in topic_table(PIPELINE)})
    found = data.flights((1,), days=3)[::every]
    for number, message in enumerate(script(PIPELINE, found, corrupt_every=360 // every)):
        broker.append(message.topic, message.value, message.key, 1000 + number)
    return broker


@pytest.fixture(scope="module")
def sent() -> MemoryBroker:
    return messages(9)


@pytest.fixture(scope="module")
def few() -> MemoryBroker:
    """A third of that, for what runs everything again for each of many moments."""
    return messages(27)


def filled(sent: MemoryBroker) -> MemoryBroker:
    broker = MemoryBroker({name: partitions for _, name, partitions in topic_table(PIPELINE)})
    for topic in (topics.EVENTS, topics.LABELS):
        for record in sent.records(topic.name(PIPELINE.name)):
            broker.append(record.topic(), record.value(), record.key(), record.timestamp()[1], None, record.partition())
    return broker


Stores = dict[str, MemoryView]


def empty(kind: type[MemoryView] = MemoryView) -> Stores:
    """An online store of each view."""
    return {view.label: kind() for view in PIPELINE.views}


def services(stores: Stores) -> list[Service]:
    return [
        validator.build(PIPELINE), featurizer.build(PIPELINE, stores), scorer.build(PIPELINE, tuple), joiner.build(PIPELINE),
        materializer.build(PIPELINE, stores),
    ]  # fmt: skip


def drive(service: Service, broker, instance: str = "0") -> None:
    """Run a service until nothing comes any more. A crash comes out of here, with nothing cleaned up."""
    loop = Loop(service, broker, instance=instance, max_delay=0.0, max_batch=7)
    producer, consumer = (
        broker.producer(loop.transactional_id),
        broker.consumer(service.group, service.topics, loop.instance),
    )
    quiet = 0
    while quiet < 3:
        quiet = 0 if loop.run_once(consumer, producer) else quiet + 1


def run_all(broker, stores: Stores, bomb: Bomb) -> None:
    for position in range(5):
        while True:
            try:
                drive(services(stores)[position], broker)
                break
            except Crash:
                assert bomb.fired


def result(broker: MemoryBroker, stores: Stores) -> tuple:
    held = tuple(Counter((r.key(), r.value()) for r in broker.records(t.name(PIPELINE.name))) for t in OUTPUTS)
    return held, {name: s.features for name, s in stores.items()}, {name: s.tiles for name, s in stores.items()}


@pytest.fixture(scope="module")
def undisturbed(sent: MemoryBroker) -> tuple:
    return outcome(sent)


@pytest.fixture(scope="module")
def few_undisturbed(few: MemoryBroker) -> tuple:
    return outcome(few)


def outcome(sent: MemoryBroker) -> tuple:
    broker, stores = filled(sent), empty()
    run_all(broker, stores, Bomb(None))
    held = result(broker, stores)
    assert all(len(counter) > 3 for topic, counter in zip(OUTPUTS, held[0], strict=True) if topic is not topics.EXPIRED)
    assert all(len(features) >= 3 for features in held[1].values())
    return held


def moments() -> Iterator[int]:
    yield from range(40)
    yield from range(40, 900, 27)


@pytest.mark.parametrize("chunk", [0, 3, *(pytest.param(chunk, marks=pytest.mark.long) for chunk in (1, 2))])
def test_a_crash_at_any_emit_or_commit_loses_and_doubles_nothing(few, few_undisturbed, chunk: int) -> None:
    fired = 0
    for moment in list(moments())[chunk::4]:
        bomb = Bomb(moment)
        broker, stores = filled(few), empty()
        run_all(Fragile(broker, bomb), stores, bomb)
        assert result(broker, stores) == few_undisturbed, f"crash at moment {moment}"
        fired += bomb.fired
    assert fired >= 12, "the crashes happened"


def test_a_crash_around_any_view_write_leaves_the_store_right(few, few_undisturbed) -> None:
    for moment in (*range(0, 60, 4), *range(60, 240, 17)):
        broker, stores = filled(few), empty(FragileView)
        FragileView.bomb = bomb = Bomb(moment)
        run_all(broker, stores, bomb)
        assert bomb.fired
        assert result(broker, stores) == few_undisturbed, f"crash at view write {moment}"


def test_an_emptied_store_is_filled_again_without_a_restart_and_with_one(sent, undisturbed, monkeypatch) -> None:
    class Flushed(MemoryView):
        writes = 0

        def write(self, *arguments) -> str:
            Flushed.writes += 1
            if Flushed.writes in (10, 20) or Flushed.writes % 97 == 0:
                self.features.clear()
                self.tiles.clear()
                self.offsets.clear()
            return super().write(*arguments)

    broker, stores = filled(sent), empty(Flushed)
    monkeypatch.setattr(views, "RECHECK_SECONDS", -1.0)  # at every turn
    run_all(broker, stores, Bomb(None))
    assert Flushed.writes > 400
    assert result(broker, stores) == undisturbed
    again = empty()
    drive(services(again)[1], broker)  # starts from nothing: the log is read again, silently
    broker.append(
        topics.EVENTS_VALID.name(PIPELINE.name),
        broker.records(topics.EVENTS_VALID.name(PIPELINE.name))[-1].value(),
        b"JFK",
    )
    before = len(broker.records(topics.FEATURES.name(PIPELINE.name)))
    drive(services(again)[1], broker)
    assert len(broker.records(topics.FEATURES.name(PIPELINE.name))) == before + 1, "only what is new is emitted"
    assert again[OWN].features.keys() == stores[OWN].features.keys()


def test_a_store_that_is_emptied_while_nothing_comes_is_filled(sent, monkeypatch) -> None:
    monkeypatch.setattr(views, "RECHECK_SECONDS", -1.0)
    broker, stores = filled(sent), empty()
    drive(services(stores)[0], broker)
    service = services(stores)[1]
    loop = Loop(service, broker, max_delay=0.0, max_batch=100)
    producer, consumer = (
        broker.producer(loop.transactional_id),
        broker.consumer(service.group, service.topics, loop.instance),
    )
    while not stores[OWN].features or loop.run_once(consumer, producer):
        loop.run_once(consumer, producer)
    loop.run_once(consumer, producer)
    held = {name: dict(features) for name, features in stores[OWN].features.items()}
    for part in (stores[OWN].features, stores[OWN].tiles, stores[OWN].offsets, stores[OWN].notes):
        part.clear()
    loop.run_once(consumer, producer)
    assert stores[OWN].features == held


def test_a_store_that_is_ahead_of_kafka_is_built_anew(sent, undisturbed) -> None:
    broker, stores = filled(sent), empty()
    for view in stores.values():
        view.offsets = dict.fromkeys(range(4), 10**6)
        view.tiles = {p: {"JFK": {}} for p in range(4)}
    run_all(broker, stores, Bomb(None))
    found = result(broker, stores)
    assert found[0] == undisturbed[0]
    assert found[1] == undisturbed[1]


def test_an_aborted_commit_goes_back_and_ends_the_same(sent, undisturbed) -> None:
    broker, stores = filled(sent), empty()
    aborting = Aborting(broker)
    for service in services(stores):
        loop = Loop(service, aborting, max_delay=0.0, max_batch=7, sleep=lambda _: None)
        producer, consumer = (
            loop.broker.producer(loop.transactional_id),
            broker.consumer(service.group, service.topics, loop.instance),
        )
        quiet = 0
        while quiet < 5:
            quiet = 0 if loop.run_once(consumer, producer) else quiet + 1
    assert aborting.commits > 60
    assert result(broker, stores) == undisturbed


def test_a_zombie_writes_nothing(sent, undisturbed) -> None:
    broker, stores = filled(sent), empty()
    drive(services(stores)[0], broker)
    service = services(stores)[1]
    zombie = Loop(service, broker, max_delay=0.0, max_batch=7)
    producer, consumer = (
        broker.producer(zombie.instance),
        broker.consumer(service.group, service.topics, zombie.instance),
    )
    for _ in range(5):
        zombie.run_once(consumer, producer)
    del broker.groups[service.group].members[zombie.instance]  # as a pause longer than the session does
    drive(services(stores)[1], broker)
    stored = dict(stores[OWN].offsets)
    with pytest.raises(Fenced):
        zombie.run_once(consumer, producer)
    service.processor.committed()
    assert stores[OWN].offsets == stored, "its late write to the store is refused"
    for position in (2, 3, 4):
        drive(services(stores)[position], broker)
    assert result(broker, stores) == undisturbed


def test_members_that_join_and_leave_in_the_middle_lose_and_double_nothing(sent, undisturbed) -> None:
    broker, stores = filled(sent), empty()
    for position in range(4):
        running = []
        for turn in range(120):
            if turn % 10 == 0 and len(running) < 3:
                service = services(stores)[position]
                loop = Loop(service, broker, instance=str(turn), max_delay=0.0, max_batch=3)
                running.append(
                    (
                        loop,
                        broker.producer(loop.transactional_id),
                        broker.consumer(service.group, service.topics, loop.instance),
                    )
                )
            elif turn % 17 == 0 and len(running) > 1:
                loop, producer, consumer = running.pop(0)
                producer.close()
                consumer.close()
            for loop, producer, consumer in running:
                loop.run_once(consumer, producer)
        for _, producer, consumer in running:
            producer.close()
            consumer.close()
        drive(services(stores)[position], broker, "last")
    # Several members write in another order than one, so vectors may differ; what there is must be the same.
    (valid, labels, *_), _, _ = undisturbed
    found = {t: broker.records(t.name(PIPELINE.name)) for t in OUTPUTS}
    assert Counter((r.key(), r.value()) for r in found[topics.EVENTS_VALID]) == valid
    assert Counter((r.key(), r.value()) for r in found[topics.LABELS_VALID]) == labels
    ids = Counter(RECORDS.event.decode(value)["flight_id"] for _, value in valid)
    for topic in (topics.FEATURES, topics.PREDICTIONS, topics.PREDICTION_LOG):
        assert Counter(RECORDS.head.record(r.value(), HEADER)["event_id"] for r in found[topic]) == ids
    joined = Counter(RECORDS.head.record(r.value(), HEADER)["event_id"] for r in found[topics.EXAMPLES])
    assert max(joined.values()) == 1
    letters = [dict(r.headers()) for r in found[topics.DLQ]]
    by_joiner = sum(h["__connect.errors.stage"] == b"joiner" for h in letters)
    waiting = sum(labels.values()) - len(found[topics.EXAMPLES]) - by_joiner
    assert 0 <= waiting <= 30, "each label is joined, a dead letter, or waits for the clock of its partition"
    places = Counter(tuple(h[f"__connect.errors.{part}"] for part in ("topic", "partition", "offset")) for h in letters)
    assert max(places.values()) == 1


def test_a_log_that_was_cut_is_said_and_marks_what_is_served(sent, caplog) -> None:
    broker, stores = filled(sent), empty()
    drive(services(stores)[0], broker)
    drive(services(stores)[1], broker)
    name = topics.EVENTS_VALID.name(PIPELINE.name)
    for slot in [s for s in broker.log if s.topic == name and broker.log[s]]:
        broker.truncate(slot, len(broker.log[slot]) - 1)
    last = broker.records(name)[-1]
    broker.append(name, last.value(), last.key(), 1, None, last.partition())
    drive(services(empty())[1], broker)
    features = [RECORDS.features.decode(r.value()) for r in broker.records(topics.FEATURES.name(PIPELINE.name))]
    assert [f["partial"] for f in features].count(True) == 1
    assert "does not reach back" in caplog.text
