"""Views of other entities: told by updates, read by the featurizer, filled when they are declared later."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import pytest

from tidemill import View, aggregates, load
from tidemill.demo import data
from tidemill.demo.script import script
from tidemill.errors import BrokerError, SettingsError, StoreError
from tidemill.features.lookup import StoredRemoteViews
from tidemill.features.memory import MemoryReader, MemoryView
from tidemill.offline.backfill import Backfill, routes_of
from tidemill.runtime.run import topic_table
from tidemill.stages.featurizer import service as featurizer
from tidemill.stages.joiner import service as joiner
from tidemill.stages.materializer import service as materializer
from tidemill.stages.scorer import service as scorer
from tidemill.stages.validator import service as validator
from tidemill.stream.api import TopicPartition
from tidemill.stream.loop import Loop
from tidemill.stream.memory import MemoryBroker
from tidemill.wire import topics
from tidemill.wire.records import Records

PLAIN = load("plain")
DEST = View("dest", every="1h", aggregates=[aggregates.count("3h"), aggregates.mean("distance", "7d")])
CARRIER = View(
    "carrier", source="examples", every="1h", aggregates=[aggregates.mean("label", "6h"), aggregates.max("arr_delay", "7d")]
)  # fmt: skip


def pipeline(*views: View, partitions: int = 2):
    return replace(PLAIN, views=list(views), partitions=partitions)


class River:
    """The services of one declaration after another, one at a time, on a broker in memory."""

    def __init__(self, declared) -> None:
        self.broker = MemoryBroker({name: count for _, name, count in topic_table(declared)})
        self.stores: dict[str, MemoryView] = {}
        self.sent = 0
        self.declare(declared)

    def declare(self, declared) -> None:
        self.declared = declared
        for view in declared.views:
            self.stores.setdefault(view.label, MemoryView())
        self.records = Records(declared)

    def send(self, messages) -> None:
        for message in messages:
            self.sent += 1
            self.broker.append(message.topic, message.value, message.key, self.sent)

    def drive(self, *names: str) -> None:
        others = StoredRemoteViews(self.declared, MemoryReader(self.stores), self.declared.partitions)
        services = {
            "validator": validator.build(self.declared),
            "featurizer": featurizer.build(self.declared, self.stores, others),
            "scorer": scorer.build(self.declared, tuple),
            "joiner": joiner.build(self.declared),
            "materializer": materializer.build(self.declared, self.stores),
        }
        for name in names or services:
            loop = Loop(services[name], self.broker, max_delay=0.0, max_batch=50)
            consumer = self.broker.consumer(loop.service.group, loop.service.topics, loop.instance)
            producer = self.broker.producer(loop.instance)
            quiet = 0
            while quiet < 3:
                quiet = 0 if loop.run_once(consumer, producer) else quiet + 1
            consumer.close()

    def play(self, messages: list) -> None:
        """Send and drive by turns, so that labels and predictions do not lie far apart."""
        for begin in range(0, len(messages), 25):
            self.send(messages[begin : begin + 25])
            self.drive()

    def held(self) -> dict:
        return {name: (store.features, store.tiles) for name, store in self.stores.items()}

    def vectors(self) -> list[dict]:
        return [self.records.features.of(r.value()) for r in self.broker.records(topics.FEATURES.name("plain"))]


def fill(filling: Backfill) -> None:
    with ExitStack() as held:
        filling.run(*filling.rows(held))


@pytest.fixture(scope="module")
def messages() -> list:
    return list(script(PLAIN, data.flights((1,), days=3)[::4]))


@pytest.mark.slow
def test_a_view_declared_later_is_missing_until_it_was_filled_and_then_as_if_it_had_always_been_there(messages) -> None:
    half = len(messages) // 2
    always = River(pipeline(DEST, CARRIER))
    always.play(messages)

    river = River(pipeline())
    river.play(messages[:half])
    assert not river.broker.records(topics.UPDATES.name("plain"))
    river.declare(pipeline(DEST, CARRIER))
    river.play(messages[half:])
    assert river.held() != always.held(), "what came before was told to nobody"
    assert {store.notes[0].partition(" partial")[1] for store in river.stores.values()} == {" partial"}

    filling = Backfill(river.declared, river.broker, routes_of(river.declared))
    fill(filling)
    river.drive("materializer")
    assert river.held() == always.held()
    assert not any("partial" in note for store in river.stores.values() for note in store.notes.values())
    assert filling.written.keys() == {("events", "dest"), ("examples", "carrier")}
    assert all(count > 100 for count in (*filling.written.values(), *filling.present.values()))

    again = Backfill(river.declared, river.broker, routes_of(river.declared))
    fill(again)
    river.drive("materializer")
    assert not again.written, "twice is once"
    assert river.held() == always.held()


@pytest.mark.slow
def test_a_vector_goes_without_a_view_until_it_is_whole(messages) -> None:
    events = [m for m in messages if m.is_event]
    river = River(pipeline())
    river.send(events[:100])
    river.drive()
    river.declare(pipeline(DEST))
    river.send(events[100:101])
    river.drive("validator", "featurizer", "materializer")
    (vector,) = [v for v in river.vectors() if v]
    assert vector["stale"] == ["dest"], "the materializer had not even begun"
    river.send(events[101:150])
    river.drive("validator", "featurizer", "materializer")
    assert all(v["stale"] == ["dest"] and v["vector"]["dest_count_3h"] is None for v in river.vectors() if v)
    filling = Backfill(river.declared, river.broker, routes_of(river.declared))
    fill(filling)
    river.drive("materializer")
    river.send(events[150:200])
    river.drive("validator", "featurizer", "materializer")
    fresh = [v for v in river.vectors() if v and not v["stale"]]
    assert len(fresh) == 50
    assert max(v["vector"]["dest_count_3h"] for v in fresh) > 1
    assert all(v["entities"]["dest"] for v in fresh)


@pytest.mark.slow
def test_an_emptied_store_makes_vectors_stale_and_not_wrong_until_it_is_filled_again(messages) -> None:
    events = [m for m in messages if m.is_event]
    river = River(pipeline(DEST))
    river.send(events[:200])
    river.drive()
    held = river.held()
    store = river.stores["dest"]
    for part in (store.features, store.tiles, store.offsets, store.notes):
        part.clear()
    river.send(events[200:201])
    river.drive("validator", "featurizer")
    last = max(river.vectors(), key=lambda v: v["event_time"])
    assert (last["stale"], last["vector"]["dest_count_3h"], last["as_of"]) == (["dest"], None, {})
    river.broker.truncate(TopicPartition(topics.UPDATES.name("plain"), 0), 0)
    assert len(river.broker.records(topics.UPDATES.name("plain"))) == 201
    river.drive("materializer")
    river.send(events[201:202])
    river.drive("validator", "featurizer")
    last = max(river.vectors(), key=lambda v: v["event_time"])
    assert last["stale"] == []
    assert set(held["dest"][0]) <= set(store.features)


def test_a_store_that_is_away_is_not_asked_again_at_once() -> None:
    class Away:
        asked = 0

        def read(self, wanted, partitions):
            Away.asked += 1
            raise StoreError("no Redis")

    now = 0.0
    others = StoredRemoteViews(pipeline(DEST), Away(), 2, clock=lambda: now)
    assert others.lookup({"dest": {"BOS"}}).stale == ["dest"]
    assert others.lookup({"dest": {"BOS"}}).stale == ["dest"]
    assert Away.asked == 1
    now = 1.5
    assert others.lookup({"dest": {"BOS"}}).stale == ["dest"]
    assert Away.asked == 2


@pytest.mark.slow
def test_a_backfill_does_not_begin_before_the_services_have_come_to_the_end(messages, monkeypatch) -> None:
    monkeypatch.setattr("tidemill.offline.backfill.TIMEOUT_SECONDS", 0.0)
    river = River(pipeline(DEST))
    river.send(messages[:50])
    river.drive("validator")
    filling = Backfill(river.declared, river.broker, routes_of(river.declared))
    with pytest.raises(BrokerError, match="featurizer has not come to the end"):
        fill(filling)


def test_only_views_that_are_told_by_updates_can_be_filled() -> None:
    flights = load("flights")
    assert routes_of(flights, ["dest"]) == [("events", "dest")]
    assert ("examples", "tailnum") in routes_of(flights)
    with pytest.raises(SettingsError, match=r"--view origin: expected one of dest, carrier_outcome.*by itself"):
        routes_of(flights, ["origin"])


@pytest.mark.slow
def test_an_entity_is_forgotten_when_it_has_expired_and_the_same_ones_after_a_restart(messages) -> None:
    short = replace(DEST, expires="6h")
    one, other = River(pipeline(short, partitions=1)), River(pipeline(short, partitions=1))
    events = [m for m in messages if m.is_event]
    one.send(events)
    one.drive()
    for begin in range(0, len(events), 37):
        other.send(events[begin : begin + 37])
        other.drive()
    assert one.held() == other.held()
    everything = River(pipeline(DEST, partitions=1))
    everything.send(events)
    everything.drive()
    kept, all_ = one.stores["dest"].features, everything.stores["dest"].features
    assert 0 < len(kept) < len(all_)
    assert all(all_[name]["event_time"] == features["event_time"] for name, features in kept.items())
