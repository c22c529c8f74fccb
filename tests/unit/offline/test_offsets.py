"""Offsets of a whole pipeline that were taken away: nothing is lost or doubled, or a person is asked."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from river_in_memory import River, drive, flights

from tidemill import load
from tidemill.errors import BrokerError, Fenced, PositionError, SettingsError
from tidemill.features.memory import MemoryView
from tidemill.offline.offsets import all_offsets, carry_out, decide, group_offsets, matching, service_of
from tidemill.stages.featurizer import service as featurizer
from tidemill.stages.joiner import service as joiner
from tidemill.stages.scorer import service as scorer
from tidemill.stages.validator import service as validator
from tidemill.stream.api import Position, TopicPartition
from tidemill.stream.loop import Loop
from tidemill.stream.topic import Topic
from tidemill.wire import topics
from tidemill.wire.services import chain

PIPELINE = load("plain")
FLIGHTS = flights(every=6)
HALF = len(FLIGHTS) // 2
OUTPUTS = (topics.FEATURES, topics.PREDICTION_LOG, topics.PREDICTIONS, topics.EXAMPLES, topics.EXPIRED)
GROUPS = ("validator", "featurizer", "scorer", "joiner")


def send(river: River, chosen: list) -> None:
    for flight in chosen:
        river.event(flight.event)
    for flight in chosen[:-5]:
        if flight.label:
            river.label(flight.label)


def made() -> River:
    river = River(PIPELINE)
    send(river, FLIGHTS[:HALF])
    river.run()
    return river


def fullest(river: River, topic: Topic) -> TopicPartition:
    """Return the partition of a topic that holds most."""
    partitions = [p for p in river.broker.log if p.topic == topic.name(PIPELINE.name)]
    return max(partitions, key=lambda p: len(river.broker.log[p]))


def outputs(river: River) -> list[Counter]:
    return [Counter((r.key(), r.value()) for r in river.of(topic)) for topic in OUTPUTS]


@pytest.fixture(scope="module")
def undisturbed() -> list[Counter]:
    river = made()
    send(river, FLIGHTS[HALF:])
    river.run()
    held = outputs(river)
    assert all(counter and max(counter.values()) == 1 for counter in held[:4])
    return held


@pytest.mark.slow
@pytest.mark.parametrize("group", [*GROUPS, "all"])
def test_a_pipeline_whose_offsets_were_forgotten_ends_as_if_nothing_had_been(group: str, undisturbed) -> None:
    river = made()
    for name in GROUPS if group == "all" else (group,):
        river.broker.groups[f"{PIPELINE.name}.{name}"].committed.clear()
    send(river, FLIGHTS[HALF:])
    river.run()
    assert outputs(river) == undisturbed


@pytest.mark.slow
class TestDecided:
    @pytest.fixture
    def lost(self) -> River:
        """A pipeline that has lost the joiner's offsets and all progress."""
        river = made()
        river.broker.groups["plain.joiner"].members.clear()
        river.broker.groups["plain.joiner"].committed.clear()
        river.broker.recreate("plain.progress")
        return river

    def set(
        self, river: River, name: str, to: str, topic: str | None = None, partition: int | None = None
    ) -> list[str]:
        chosen = service_of(PIPELINE, name, None)
        river.broker.groups[chosen.group].members.clear()
        decisions = decide(river.broker, matching(group_offsets(river.broker, chosen), topic, partition), to)
        carry_out(river.broker, chosen, decisions)
        return [one.effect for one in decisions]

    def test_all_that_is_known_is_gone_and_the_end_is_chosen(self, lost: River, undisturbed) -> None:
        with pytest.raises(PositionError, match=r"tidemill offsets set plain joiner --to \.\.\. --yes"):
            drive(joiner.build(PIPELINE), lost.broker)
        wrong = [one for one in all_offsets(lost.broker, PIPELINE) if one.wrong]
        assert {one.service for one in wrong} == {"joiner"}
        self.set(lost, "joiner", "end")
        assert not [one for one in all_offsets(lost.broker, PIPELINE) if one.wrong]
        send(lost, FLIGHTS[HALF:])
        lost.run()
        assert outputs(lost) == undisturbed, "what the joiner holds is made from its logs again"

    def test_what_it_would_do_is_printed(self) -> None:
        river = made()
        partition = fullest(river, topics.FEATURES)
        end = river.broker.offset_range(partition)[1]
        assert self.set(river, "scorer", "begin", "features", partition.partition) == [
            f"{end} offsets are processed again, with their output"
        ]
        assert set(self.set(river, "scorer", "end", "plain.features")) == {
            "nothing is repeated or passed over",
            f"{end} offsets are passed over",
        }

    def test_one_that_was_set_by_hand_is_obeyed_when_it_is_said_so_and_put_back_when_not(self, undisturbed) -> None:
        river = made()
        partition = fullest(river, topics.FEATURES)
        group = river.broker.groups["plain.scorer"]
        group.committed[partition] = Position(1)
        with pytest.raises(PositionError, match=r"set to 1 by something else.*--to committed or --to progress"):
            drive(scorer.build(PIPELINE, tuple), river.broker)
        self.set(river, "scorer", "progress")
        send(river, FLIGHTS[HALF:])
        river.run()
        assert outputs(river) == undisturbed
        before = len(river.of(topics.PREDICTIONS))
        group.members.clear()
        group.committed[partition] = Position(1)
        self.set(river, "scorer", "committed", "features", partition.partition)
        drive(scorer.build(PIPELINE, tuple), river.broker)
        assert len(river.of(topics.PREDICTIONS)) == before + river.broker.offset_range(partition)[1] - 1

    def test_views_of_a_log_that_is_another_are_made_from_the_log_there_is(self) -> None:
        """It was cut behind what the store holds, and has grown beyond it since: the store's offset tells nothing."""
        river = River(PIPELINE)
        send(river, FLIGHTS)
        river.run()
        stores = {view.label: MemoryView() for view in PIPELINE.inline_views}
        broker, group = river.broker, river.broker.groups["plain.featurizer"]
        group.members.clear()
        drive(featurizer.build(PIPELINE, stores), broker)
        partition = fullest(river, topics.EVENTS_VALID)
        entries = broker.log[partition].copy()
        broker.cut(partition, len(entries) // 2)
        for entry in entries[: len(entries) // 2] * 3:
            broker.append(partition.topic, entry.value(), entry.key(), 1, None, partition.partition)
        self.set(river, "featurizer", "end")
        drive(featurizer.build(PIPELINE, stores), broker)
        fresh = {view.label: MemoryView() for view in PIPELINE.inline_views}
        group.members.clear()
        drive(featurizer.build(PIPELINE, fresh), broker)
        assert {name: store.features for name, store in stores.items()} == {n: s.features for n, s in fresh.items()}
        assert {name: store.offsets for name, store in stores.items()} == {n: s.offsets for n, s in fresh.items()}

    @pytest.mark.parametrize(
        ("to", "topic", "message"),
        [
            ("9999", None, "has the offsets 0 to"), ("-1", None, "expected begin, end"), ("here", None, "expected begin, end"),
            ("end", "events", "reads no such partition; it reads plain.features"),
        ],
    )  # fmt: skip
    def test_what_is_no_place_is_refused(self, to: str, topic: str | None, message: str) -> None:
        with pytest.raises(SettingsError, match=message):
            self.set(made(), "scorer", to, topic)

    def test_a_running_service_is_not_set(self) -> None:
        river = made()
        chosen = service_of(PIPELINE, "scorer", None)
        before = river.broker.groups[chosen.group].committed.copy()
        decisions = decide(river.broker, group_offsets(river.broker, chosen), "begin")
        with pytest.raises(BrokerError, match="has members"):
            carry_out(river.broker, chosen, decisions)
        assert river.broker.groups[chosen.group].committed == before
        assert not [one for one in group_offsets(river.broker, chosen) if one.wrong]


@pytest.mark.slow
def test_of_a_chain_it_is_said_whose_it_is_and_a_decision_ends_it_before_it_counts(undisturbed) -> None:
    river = River(PIPELINE)
    send(river, FLIGHTS[:HALF])
    names = ("validator", "featurizer", "scorer")
    some = [validator.build(PIPELINE, fuse=False), featurizer.build(PIPELINE, {}), scorer.build(PIPELINE, tuple)]
    made_of = chain(some, names, PIPELINE.name)
    loop = Loop(made_of, river.broker, max_delay=0.0, max_batch=50, sleep=lambda _: None)
    producer = river.broker.producer(loop.transactional_id)
    consumer = river.broker.consumer(loop.service.group, loop.service.topics, loop.instance)
    for _ in range(60):
        loop.run_once(consumer, producer)
    chosen = service_of(PIPELINE, "featurizer", None)
    offsets = group_offsets(river.broker, chosen)
    assert {one.state for one in offsets} == {f"in the chain of {loop.transactional_id}: its progress counts"}
    assert all(one.is_well for one in offsets), "nobody is warned of a chain that runs"
    assert not any(replace(one, wrong="it is shorter").is_well for one in offsets)
    carry_out(river.broker, chosen, decide(river.broker, offsets, "progress"))
    send(river, FLIGHTS[HALF:])
    with pytest.raises(Fenced):
        loop.run_once(consumer, producer)
    consumer.close()
    river.run()
    assert outputs(river)[1:] == undisturbed[1:]


@pytest.mark.parametrize(("name", "model"), [("learner", "nosuch"), ("scorer", "logreg")])
def test_a_service_that_is_not_there_is_refused(name: str, model: str) -> None:
    with pytest.raises(SettingsError, match=r"not one of the pipeline's|option of the learner"):
        service_of(PIPELINE, name, model)
