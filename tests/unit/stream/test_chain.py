"""Steps in one process write what they write apart, and a crash, or a move between the two, loses and doubles nothing."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
import test_loop_crash as loops
from crash import Aborting, Bomb, Crash, Fragile
from test_loop_crash import PIPELINE, RECORDS, Stores, drive, empty, filled, run_all, services

from tidemill.encoding import codec
from tidemill.encoding.codec import Carried, Codec
from tidemill.errors import BrokerError, Fenced, SettingsError, Stopped
from tidemill.registry.decisions import NOBODY, ModelRef
from tidemill.stages.scorer import service as scorer
from tidemill.stages.scorer.feed import ServingChange, Unopened
from tidemill.stream.api import Processor, TopicPartition
from tidemill.stream.chain import REKEYED
from tidemill.stream.group import Service
from tidemill.stream.loop import KEEP_CHAINED_SECONDS, Loop
from tidemill.stream.memory import MemoryBroker
from tidemill.stream.restore import chain_of
from tidemill.wire import topics
from tidemill.wire.services import chain, check_chain

pytestmark = pytest.mark.slow

NAMES = ("validator", "featurizer", "scorer", "joiner")
#: Every way to run the four in chains.
WAYS: Sequence[Sequence[int]] = ((1, 1, 1, 1), (3, 1), (2, 1, 1), (1, 2, 1), (4,))

sent, few = loops.sent, loops.few

LABEL = {
    "type": "record", "name": "Label",
    "fields": [{"name": "event_id", "type": "string"}, {"name": "label", "type": "double"}],
}  # fmt: skip


def chained(stores: Stores, first: int, many: int) -> Service:
    """Return so many services from the first one on, as one process runs them."""
    some = services(stores)[first : first + many]
    return chain(some, NAMES[first : first + many], PIPELINE.name) if many > 1 else some[0]


def run_way(broker, stores: Stores, bomb: Bomb, ways: Callable[[], Sequence[int]]) -> None:
    """Run all services; after a crash, those that are not done yet may be chained in another way."""
    done = 0
    while done < len(NAMES):
        first = 0
        for many in ways():
            if first + many > done:
                try:
                    drive(chained(stores, first, many), broker)
                    done = first + many
                except Crash:
                    assert bomb.fired
                    break
                finally:  # what ran has ended, and its session with it
                    for group in broker.groups.values():
                        group.members.clear()
            first += many
    bomb.is_over = True
    drive(services(stores)[4], broker)


def outcome(broker: MemoryBroker, stores: Stores) -> tuple:
    """Return all that was written, but the vectors by themselves: what is made of them has them.

    When a view's old tiles are dropped hangs on the order between partitions; its features do not.
    """
    held, features, tiles = loops.result(broker, stores)
    logs = tuple(h for h, t in zip(held, loops.OUTPUTS, strict=True) if t is not topics.FEATURES)
    return logs, features, tiles[loops.OWN]


def written_apart(sent: MemoryBroker) -> tuple:
    broker, stores = filled(sent), empty()
    run_all(broker, stores, Bomb(None))
    return outcome(broker, stores)


@pytest.fixture(scope="module")
def apart(sent: MemoryBroker) -> tuple:
    return written_apart(sent)


@pytest.fixture(scope="module")
def few_apart(few: MemoryBroker) -> tuple:
    return written_apart(few)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_chain_writes_what_its_services_write_apart(sent, apart, way) -> None:
    broker, stores = filled(sent), empty()
    run_way(broker, stores, Bomb(None), lambda: way)
    assert outcome(broker, stores) == apart
    vectors = broker.records(topics.FEATURES.name(PIPELINE.name))
    is_handed_on = way not in ((1, 1, 1, 1), (2, 1, 1))
    assert (not vectors) == is_handed_on


@pytest.mark.parametrize("way", [WAYS[1], *(pytest.param(way, marks=pytest.mark.long) for way in WAYS[2:])], ids=str)
def test_a_crash_at_any_emit_or_commit_of_a_chain_loses_and_doubles_nothing(few, few_apart, way) -> None:
    fired = 0
    for moment in (*range(0, 40, 3), *range(40, 900, 80)):
        bomb = Bomb(moment)
        broker, stores = filled(few), empty()
        run_way(Fragile(broker, bomb), stores, bomb, lambda: way)
        assert outcome(broker, stores) == few_apart, f"crash at moment {moment}"
        fired += bomb.fired
    assert fired >= 12, "the crashes happened"


@pytest.mark.parametrize("seed", range(12))
def test_after_each_crash_another_way_to_run_them_goes_on_exactly_there(few, few_apart, seed) -> None:
    rng = random.Random(seed)
    broker, stores = filled(few), empty()

    class Again(Bomb):
        is_over = False

        def tick(self) -> None:
            if self.left is None and rng.random() < 0.5:
                self.left = rng.randrange(130)
            if not self.is_over:
                super().tick()

    run_way(Fragile(broker, bomb := Again(rng.randrange(60))), stores, bomb, lambda: rng.choice(WAYS))
    assert bomb.fired
    assert outcome(broker, stores) == few_apart


def test_an_aborted_commit_of_a_chain_goes_back_and_ends_the_same(sent, apart) -> None:
    broker, stores = filled(sent), empty()
    aborting = Aborting(broker)
    turn(loop_of(chained(stores, 0, 4), aborting), broker)
    drive(services(stores)[4], broker)
    assert aborting.commits > 30
    assert outcome(broker, stores) == apart


def test_what_is_handed_on_is_what_decoding_gives_and_is_not_decoded_again(sent, apart, monkeypatch) -> None:
    decode, read_all, handed, read = Codec.decode, codec.read_all, Counter(), Counter()

    def checked(self, data):
        record = decode(self, data)
        if type(data) is Carried:
            handed[self.avro["name"]] += 1
            assert repr(decode(self, bytes(data))) == repr(record)
            read[self.avro["name"]] -= 1  # just now
        return record

    def counted(reader, data, at, name):
        read[name] += 1
        return read_all(reader, data, at, name)

    monkeypatch.setattr(Codec, "decode", checked)
    monkeypatch.setattr(codec, "read_all", counted)
    broker, stores = filled(sent), empty()
    service = chained(stores, 0, 4)
    turn(loop_of(service, broker), broker)
    drive(services(stores)[4], broker)
    event = RECORDS.event.avro["name"]
    assert set(handed) == {event, "tidemill.Features", "tidemill.PredictionLog"}, handed
    assert all(many > 200 and read[name] == 0 for name, many in handed.items()), read
    joins = service.chained[-1].processor.joins.values()
    waiting = [event.value for join in joins for event in join.events.values() if event.value is not None]
    assert waiting
    assert {type(value) for value in waiting} == {bytes}, "records would take several times the memory"
    assert outcome(broker, stores) == apart


def test_what_several_steps_read_is_decoded_by_the_first() -> None:
    class Sends(Processor):
        def process(self, records, emit) -> bool:
            for record in records:
                emit("inner", record.value(), b"", 0, None, 0)
            return True

    class Reads(Processor):
        def __init__(self) -> None:
            super().__init__()
            self.codec, self.read = Codec(LABEL), []

        def process(self, records, emit) -> bool:
            self.read += [self.codec.decode(record.value()) for record in records]
            return True

    label = {"event_id": "1", "label": 0.5}
    broker = MemoryBroker({"in": 1, "inner": 1, "progress": 1})
    broker.append("in", Codec(LABEL).encode(label))
    first, second = Reads(), Reads()
    after = [Service(name, name, ["inner"], step, "progress") for name, step in (("one", first), ("two", second))]
    turn(loop_of(Service("head", "head", ["in"], Sends(), "progress", chained=after), broker), broker)
    assert first.read == second.read == [label]
    assert first.read[0] is second.read[0]
    assert [type(record.value()) for record in broker.records("inner")] == [bytes]


def loop_of(service: Service, broker, instance: str = "0") -> Loop:
    return Loop(service, broker, instance=instance, max_delay=0.0, max_batch=7, sleep=lambda _: None)


def turn(loop: Loop, broker, quiet_turns: int = 6, producer=None, consumer=None) -> None:
    """Turn a loop until nothing comes any more."""
    producer = producer or loop.broker.producer(loop.transactional_id)
    consumer = consumer or broker.consumer(loop.service.group, loop.service.topics, loop.instance)
    quiet = 0
    while quiet < quiet_turns:
        quiet = 0 if loop.run_once(consumer, producer) else quiet + 1


def test_what_came_before_the_fuse_stopped_the_chain_is_predicted(sent) -> None:
    broker, stores = filled(sent), empty()
    for number in range(2 * PIPELINE.fuse.run):
        broker.append(topics.EVENTS.name(PIPELINE.name), b"no event", b"x", 10**6 + number, None, 0)
    with pytest.raises(Stopped):  # in one batch with all that was valid
        turn(Loop(chained(stores, 0, 3), broker, max_delay=0.0, sleep=lambda _: None), broker)
    valid = Counter(r.key() for r in broker.records(topics.EVENTS_VALID.name(PIPELINE.name)))
    assert valid.total() > 50
    assert Counter(r.key() for r in broker.records(topics.PREDICTIONS.name(PIPELINE.name))) == valid


def test_while_a_step_waits_for_its_model_the_others_keep_their_state(sent) -> None:
    broker, stores = filled(sent), empty()
    ready = [ServingChange(NOBODY, refused=Unopened(PIPELINE.champion, "the store is away"))]
    some = services(stores)
    some[2] = scorer.build(PIPELINE, lambda: [ready.pop()] if ready else [])
    loop = loop_of(chain(some[:3], NAMES[:3], PIPELINE.name), broker)
    assigned, assign = [], some[1].processor.assign
    some[1].processor.assign = lambda *arguments: assigned.append(arguments) or assign(*arguments)
    producer = broker.producer(loop.transactional_id)
    consumer = broker.consumer(loop.service.group, loop.service.topics, loop.instance)
    for _ in range(20):
        loop.run_once(consumer, producer)
    assert "the store is away" in loop.processor.not_ready()
    assert not broker.records(topics.EVENTS_VALID.name(PIPELINE.name))
    ready.append(ServingChange(ModelRef(PIPELINE.champion)))
    turn(loop, broker, producer=producer, consumer=consumer)
    consumer.close()
    assert len(assigned) == PIPELINE.partitions
    predicted = Counter(r.key() for r in broker.records(topics.PREDICTION_LOG.name(PIPELINE.name)))
    valid = [RECORDS.event.decode(r.value()) for r in broker.records(topics.EVENTS_VALID.name(PIPELINE.name))]
    assert predicted == Counter(str(event[PIPELINE.events.id]).encode() for event in valid)
    assert predicted.total() > 50


def test_what_kafka_refuses_of_what_was_left_is_found_by_the_services_apart(sent) -> None:
    broker, stores = filled(sent), empty()
    drive(chained(stores, 0, 2), broker)
    vectors = broker.records(topics.FEATURES.name(PIPELINE.name))
    odd = RECORDS.features.decode(vectors[9].value())["event_id"].encode()
    broker.refuses = lambda topic, _, key: topic == topics.PREDICTION_LOG.name(PIPELINE.name) and key == odd
    with pytest.raises(BrokerError, match="run the services apart"):
        turn(loop_of(chained(stores, 0, 3), broker), broker)
    for group in broker.groups.values():
        group.members.clear()
    turn(loop_of(services(stores)[2], broker), broker, quiet_turns=20)
    for group in broker.groups.values():
        group.members.clear()
    drive(chained(stores, 0, 3), broker)
    predicted = Counter(r.key() for r in broker.records(topics.PREDICTION_LOG.name(PIPELINE.name)))
    assert predicted.total() == len(set(predicted)) == len(vectors) - 1
    letters = [dict(r.headers()) for r in broker.records(topics.DLQ.name(PIPELINE.name))]
    assert [h["tidemill.reason"] for h in letters].count(b"not_written") == 1


class TestWhoIsTheOnlyWriter:
    def test_an_offset_that_kafka_counts_otherwise_aborts_and_what_is_made_of_it_is_right(self, sent, apart) -> None:
        """Somebody writes to an inner topic: nothing is committed with an offset that the record has not."""
        broker, stores = filled(sent), empty()
        valid = topics.EVENTS_VALID.name(PIPELINE.name)
        loop = loop_of(chained(stores, 0, 3), broker)
        producer = broker.producer(loop.transactional_id)
        consumer = broker.consumer(loop.service.group, loop.service.topics, loop.instance)
        for round_ in range(200):
            loop.run_once(consumer, producer)
            if round_ in (5, 9, 20):
                for partition in range(PIPELINE.partitions):
                    broker.append(valid, b"garbage of somebody else", b"x", 0, None, partition)
        events = {TopicPartition(r.topic(), r.partition()): [] for r in broker.records(valid)}
        for record in broker.records(valid):
            events[TopicPartition(record.topic(), record.partition())].append(record)
        codec, log = RECORDS.event, topics.PREDICTION_LOG.name(PIPELINE.name)
        made = [RECORDS.prediction_log.decode(r.value())["features"] for r in broker.records(log)]
        assert len(made) > 30
        for one in made:
            event = codec.decode(broker.log[TopicPartition(valid, one["partition"])][one["offset"]].value())
            assert str(event[PIPELINE.events.id]) == one["event_id"]
        letters = Counter(r.value() for r in broker.records(topics.DLQ.name(PIPELINE.name)))
        assert letters[b"garbage of somebody else"] == 3 * PIPELINE.partitions, "each in exactly one place"

    def test_a_service_of_its_own_fences_the_chain_off(self, sent, apart) -> None:
        broker, stores = filled(sent), empty()
        loop = loop_of(chained(stores, 0, 3), broker)
        producer = broker.producer(loop.transactional_id)
        consumer = broker.consumer(loop.service.group, loop.service.topics, loop.instance)
        for _ in range(8):
            loop.run_once(consumer, producer)
        drive(services(stores)[1], broker)  # the featurizer, before the chain was stopped
        with pytest.raises(Fenced):
            turn(loop, broker, producer=producer, consumer=consumer)
        consumer.close()
        run_way(broker, stores, Bomb(None), lambda: (1, 1, 1, 1))
        assert outcome(broker, stores) == apart

    @pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
    def test_services_that_go_on_for_a_chain_leave_each_other_alone(self, sent, order) -> None:
        """In whatever order they start: what they fence off is the chain, and not the service that has its member."""
        broker, stores = filled(sent), empty()
        loop = loop_of(chained(stores, 0, 3), broker)
        consumer = broker.consumer(loop.service.group, loop.service.topics, loop.instance)
        producer = broker.producer(loop.transactional_id)
        for _ in range(8):
            loop.run_once(consumer, producer)
        consumer.close()
        running = []
        for index in order:
            own = loop_of(services(stores)[index], broker)
            taken = broker.consumer(own.service.group, own.service.topics, own.instance)
            running.append((own, taken, broker.producer(own.transactional_id)))
            for one, *clients in running:
                one.run_once(*clients)
        quiet = 0
        while quiet < 6:
            quiet = 0 if sum(one.run_once(*clients) for one, *clients in running) else quiet + 1
        valid = [RECORDS.event.decode(r.value()) for r in broker.records(topics.EVENTS_VALID.name(PIPELINE.name))]
        predicted = Counter(r.key() for r in broker.records(topics.PREDICTION_LOG.name(PIPELINE.name)))
        assert predicted == Counter(str(event[PIPELINE.events.id]).encode() for event in valid)
        with pytest.raises(Fenced):
            producer.emit(topics.PREDICTIONS.name(PIPELINE.name), b"late")

    def test_a_chain_waits_while_a_service_of_its_own_runs(self, sent, apart) -> None:
        broker, stores = filled(sent), empty()
        drive(services(stores)[0], broker)
        featurizer = loop_of(services(stores)[1], broker)
        producer, consumer = (
            broker.producer(featurizer.instance),
            broker.consumer(featurizer.service.group, featurizer.service.topics, featurizer.instance),
        )
        for _ in range(5):
            featurizer.run_once(consumer, producer)
        loop = loop_of(chained(stores, 0, 3), broker)
        turn(loop, broker)
        assert not loop.ready
        consumer.close()
        turn(loop, broker)
        assert loop.ready
        run_way(broker, stores, Bomb(None), lambda: (3, 1))
        assert outcome(broker, stores) == apart

    def test_now_and_then_the_groups_of_a_chain_get_offsets_so_that_kafka_does_not_forget_whose_it_is(
        self, sent, apart
    ) -> None:
        broker, stores = filled(sent), empty()
        now = 0.0
        loop = Loop(chained(stores, 0, 3), broker, max_delay=0.0, max_batch=7, clock=lambda: now, sleep=lambda _: None)
        producer = broker.producer(loop.transactional_id)
        consumer = broker.consumer(loop.service.group, loop.service.topics, loop.instance)
        for _ in range(10):
            loop.run_once(consumer, producer)
        scorer_group = broker.groups[f"{PIPELINE.name}.featurizer"]
        scorer_group.committed.clear()  # as after offsets.retention.minutes
        now = KEEP_CHAINED_SECONDS
        loop.run_once(consumer, producer)
        assert {chain_of(position) for position in scorer_group.committed.values()} == {loop.transactional_id}
        assert sum(position.offset for position in scorer_group.committed.values()) > 0
        drive(services(stores)[1], broker)
        with pytest.raises(Fenced):
            turn(loop, broker, producer=producer, consumer=consumer)
        consumer.close()
        run_way(broker, stores, Bomb(None), lambda: (1, 1, 1, 1))
        assert outcome(broker, stores) == apart

    def test_a_service_that_never_ran_apart_goes_on_where_the_chain_was(self, sent, apart) -> None:
        """Its group has no offsets of its own: only its progress knows."""
        broker, stores = filled(sent), empty()
        drive(chained(stores, 0, 4), broker)
        assert {p.offset for p in broker.groups[f"{PIPELINE.name}.joiner"].committed.values()} == {0}
        run_way(broker, stores, Bomb(None), lambda: (1, 1, 1, 1))
        assert outcome(broker, stores) == apart


class TestPartitions:
    def test_an_event_that_is_keyed_otherwise_is_sent_again_to_its_own_partition(self, sent, apart) -> None:
        """Two instances share the partitions, and producers key as they like: each event is predicted once."""
        broker = MemoryBroker({t: p for _, t, p in loops.topic_table(PIPELINE)})
        rng = random.Random(3)
        for topic in (topics.EVENTS, topics.LABELS):
            for r in sent.records(topic.name(PIPELINE.name)):
                broker.append(r.topic(), r.value(), b"any", r.timestamp()[1], None, rng.randrange(PIPELINE.partitions))
        running = []
        for instance in ("a", "b"):
            loop = loop_of(chained(empty(), 0, 3), broker, instance)
            producer = broker.producer(loop.transactional_id)
            running.append((loop, broker.consumer(loop.service.group, loop.service.topics, loop.instance), producer))
        quiet = 0
        while quiet < 6:
            quiet = 0 if sum(loop.run_once(consumer, producer) for loop, consumer, producer in running) else quiet + 1
        events = broker.records(topics.EVENTS.name(PIPELINE.name))
        again = [r for r in events if any(name == REKEYED for name, _ in r.headers() or ())]
        assert len(again) > 10
        predicted = Counter(r.key() for r in broker.records(topics.PREDICTION_LOG.name(PIPELINE.name)))
        valid = Counter(key for key, _ in apart[0][loops.OUTPUTS.index(topics.PREDICTIONS) - 1].elements())
        assert set(predicted.values()) == {1}
        assert predicted.total() == valid.total()
        for r in broker.records(topics.EVENTS_VALID.name(PIPELINE.name)):
            assert r.partition() == broker.place(r.topic(), r.key())

    def test_one_that_needs_all_partitions_says_so_where_it_has_some(self, sent) -> None:
        broker, stores = filled(sent), empty()
        other = loop_of(chained(stores, 0, 4), broker, "other")
        broker.consumer(other.service.group, other.service.topics, other.instance)
        with pytest.raises(
            SettingsError, match=r"validator\+featurizer\+scorer\+joiner has partitions .* and needs all"
        ):
            turn(loop_of(chained(stores, 0, 4), broker, "this"), broker)


@pytest.mark.parametrize(
    ("names", "why"),
    [
        ("scorer+joiner", "joiner reads labels.valid, which the validator writes"),
        ("featurizer+materializer", "materializer reads updates, which the joiner writes"),
        ("joiner+gate", "gate reads commands, which the status writes"),
        ("scorer+featurizer", "in the order"),
        ("scorer+scorer", "each service once"),
        ("validator+scorer", "scorer reads features, which the featurizer writes"),
    ],
)
def test_what_can_not_be_chained_is_refused_with_the_reason(names, why) -> None:
    with pytest.raises(SettingsError, match=why):
        check_chain(names.split("+"))


@pytest.mark.parametrize("names", ["validator+featurizer", "featurizer+scorer", "joiner+learner", "+".join(NAMES)])
def test_what_can_be_chained(names) -> None:
    check_chain(names.split("+"))
