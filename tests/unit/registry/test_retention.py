"""What the declaration does not keep leaves the store while the learner runs; what anything needs stays, whatever happens."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import small
from hypothesis import given, settings
from hypothesis import strategies as st
from running import until
from signing_keys import KEY, forged

from tidemill import Gate, Retention, metrics
from tidemill.declare.retention import KeptTopic
from tidemill.errors import DeclarationError, StoreError
from tidemill.models.fold import Fold
from tidemill.registry import retention
from tidemill.registry.decisions import GATE, NOBODY, Decision, ModelRef, decisions
from tidemill.registry.latest import MAX_MANIFESTS_BACK
from tidemill.registry.manifests import Manifest, Registry
from tidemill.registry.retention import Retainer, Stored, staying
from tidemill.registry.signing import Chains
from tidemill.registry.store import ArtifactStore, sha256
from tidemill.runtime.run import topic_table
from tidemill.stages.gate.service import serving_check
from tidemill.stages.learner.service import Learner, manifest_history
from tidemill.stream.api import Position, TopicPartition
from tidemill.stream.embedded import EmbeddedBroker
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.stream.memory import MemoryBroker
from tidemill.wire import topics

pytestmark = pytest.mark.slow

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
T0 = 1_767_225_600_000  # a midnight
RETENTION = Retention(all="1h", hourly="6h", daily="3d")
PIPELINE = small.make(retention=RETENTION)


def stored(times: Sequence[int]) -> list[Stored]:
    return [Stored("linear", (0, number), at, f"{number}", 1) for number, at in enumerate(times, 1)]


# What stays -------------------------------------------------------------------------------------------------------------


def test_of_five_days_stay_the_last_hour_then_one_an_hour_then_one_a_day() -> None:
    times = [T0 + n * 10 * MINUTE for n in range(5 * 144 + 1)]
    kept = sorted(one.created_at for one in staying(stored(times), RETENTION))
    assert kept[-MAX_MANIFESTS_BACK:] == times[-MAX_MANIFESTS_BACK:]
    assert len(kept) <= MAX_MANIFESTS_BACK + 6 + 4
    by_hour = {at // HOUR for at in kept if times[-1] - at <= 6 * HOUR}
    assert by_hour == {at // HOUR for at in times if times[-1] - at <= 6 * HOUR}
    by_day = {at // DAY for at in kept if times[-1] - at <= 3 * DAY}
    assert by_day == {at // DAY for at in times if times[-1] - at <= 3 * DAY}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 4 * HOUR // MINUTE), min_size=1, max_size=150),
    st.lists(st.integers(0, 149), max_size=8),
    st.sets(st.integers(1, 150), max_size=4),
)
def test_however_often_it_is_looked_the_same_stays_as_if_at_the_end_alone(
    gaps: list[int], looks: list[int], named: set[int]
) -> None:
    """What goes early would not have stayed later; and what is named or newest is never among it."""
    times = [T0 + sum(gaps[: n + 1]) * MINUTE for n in range(len(gaps))]
    every, kept = stored(times), {("linear", version) for version in named}
    left: list[Stored] = []
    for number, one in enumerate(every):
        left.append(one)
        if number in looks:
            left = [each for each in left if each in staying(left, RETENTION, kept)]
            assert {each for each in every[: number + 1] if each.newness[1] in named} <= set(left)
    at_the_end = staying(every, RETENTION, kept)
    assert staying(left, RETENTION, kept) == at_the_end
    assert set(every[-MAX_MANIFESTS_BACK:]) <= at_the_end
    assert {one for one in every if times[-1] - one.created_at <= HOUR} <= at_the_end


def test_a_model_that_stands_still_loses_nothing_more_and_the_gates_rounds_stay() -> None:
    every = stored([T0 + n * 6 * HOUR for n in range(60)])
    assert staying(every, RETENTION) == staying(staying(every, RETENTION), RETENTION)
    assert {one.newness[1] for one in staying(every, RETENTION, guarded=30)} >= set(range(30, 61))
    earlier_life = [one._replace(newness=(-1, one.newness[1])) for one in every[:30]]
    assert not {
        one
        for one in staying([*earlier_life, *every[:31]], RETENTION, guarded=30)
        if one.newness[0] < 0 and one.newness[1] < 10
    }


@pytest.mark.parametrize(
    ("retention", "words"),
    [
        (Retention(all="3d"), "retention.hourly: '2d' where at least all, '3d', was expected"),
        (Retention(daily="1h"), "retention.daily: '1h' where at least hourly, '2d', was expected"),
        (Retention(all="soon"), "retention.all"),
        (Retention(archive="soon"), "retention.archive"),
        (Retention(topics={"examples": "30d"}), "retention.topics"),
        (Retention(topics={"prediction-log": "10m"}), "retention.topics: prediction-log: 10m is shorter than what"),
        ("30d", "retention"),
    ],
)
def test_what_makes_no_sense_is_refused(retention: Any, words: str) -> None:
    with pytest.raises(DeclarationError) as error:
        small.make(retention=retention)
    assert words in str(error.value)


def test_topics_keep_records_as_is_declared() -> None:
    kept = {topic.suffix for topic in topics.TOPICS if topic.retention_ms > 0}
    assert kept == set(get_args(KeptTopic)), "those that a declaration may name"
    pipeline = small.make(retention=Retention(topics={"events": "3d", "dlq": "12h"}))
    configs = {topic.suffix: topic.config(0)["retention.ms"] for topic, _, _ in topic_table(pipeline)}
    usual = {topic.suffix: topic.config(0)["retention.ms"] for topic, _, _ in topic_table(small.make())}
    assert configs == usual | {"events": str(3 * 86_400_000), "dlq": str(12 * 3_600_000)}


def test_the_topics_of_others_are_not_ours_to_cut() -> None:
    events = dataclasses.replace(small.EVENTS, topic="shop.clicks")
    with pytest.raises(DeclarationError, match=r"retention\.topics: events: it was there before the pipeline"):
        small.make(events=events, retention=Retention(topics={"events": "3d"}))


# What goes --------------------------------------------------------------------------------------------------------------


class Failing(ArtifactStore):
    """A store that goes away after so many deletions."""

    left = 10**9

    def delete(self, digest: str) -> None:
        if self.left == 0:
            raise StoreError("away")
        self.left -= 1
        super().delete(digest)


class World:
    """Two models that have published a version every ten minutes for two days."""

    def __init__(self, folder: Path, pipeline: Any = PIPELINE, many: int = 288) -> None:
        self.store = Failing(str(folder / "store"))
        self.pipeline, self.registry = pipeline, Registry(pipeline, self.store, KEY)
        self.broker = MemoryBroker({name: partitions for _, name, partitions in topic_table(pipeline)})
        self.manifests: list[Manifest] = []
        self.made = self.registry.publish("linear", Fold(pipeline, "linear").snapshot(), ())
        self.decided = Chains(decisions(pipeline, KEY))
        self.registry.chains.forget()
        for number in range(1, many + 1):
            for model in ("linear", "slow"):
                self.publish(number, model)

    def publish(self, number: int, model: str = "linear", **changes: Any) -> Manifest:
        data = f"{model} {number}".encode()
        made = {"model": model, "version": number, "created_at": T0 + number * 10 * MINUTE}
        digest = self.store.put(data)
        made |= {"sha256": digest, "uri": self.store.path(digest)} | changes
        manifest = self.registry.sign(dataclasses.replace(self.made, **made))
        self.broker.append(topics.MODELS.name("small"), self.registry.encode(manifest), model.encode())
        self.manifests.append(manifest)
        return manifest

    def decide(self, champion: str) -> None:
        ref = ModelRef.of(champion)
        made = Decision(champion, "promoted", "ann", "", 1, 1, 1, 1, "", ref, ref, NOBODY)
        self.broker.append(topics.PROMOTIONS.name("small"), self.decided.sign(made, GATE), b"k")

    def retainer(self, model: str = "linear") -> Retainer:
        # Each process has a registry of its own.
        return Retainer(self.pipeline, model, Registry(self.pipeline, self.store, KEY), self.broker, lambda _: None)

    def held(self, model: str = "linear") -> list[int]:
        return [m.version for m in self.manifests if m.model == model and self.store.holds(m.sha256)]

    def bytes(self, model: str = "linear") -> int:
        return sum(self.store.size(m.sha256) or 0 for m in self.manifests if m.model == model)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def level(metric: Any, model: str = "linear") -> float:
    return metric.labels(model)._value.get()


def test_a_learner_deletes_its_own_models_old_versions_and_measures_what_is_left(world: World) -> None:
    strangers = world.store.put(b"another pipeline's, in the same store")
    retainer, before = world.retainer(), level(metrics.PRUNED)
    gone = retainer.look()
    held = world.held()
    assert held[-MAX_MANIFESTS_BACK:] == list(range(269, 289))
    assert len(held) + len(gone) == 288
    assert MAX_MANIFESTS_BACK + 2 <= len(held) <= 30
    assert world.held("slow") == list(range(1, 289)), "of the other model another learner takes care"
    assert world.store.holds(strangers)
    assert len(world.broker.records(topics.MODELS.name("small"))) == 2 * 288, "manifests stay"
    assert level(metrics.PRUNED) - before == len(gone)
    assert (level(metrics.STORED_VERSIONS), level(metrics.STORED_BYTES)) == (len(held), world.bytes())
    assert retainer.look() == []
    assert world.retainer().look() == [], "nor does the next process find anything"
    for number in range(289, 400):
        world.publish(number)
        retainer.look()
    assert len(world.held()) <= 32, "it is bounded, however long it runs"
    assert world.held() == sorted({m.newness[1] for m in staying(stored_of(world), RETENTION)})


def stored_of(world: World) -> list[Stored]:
    return [Stored(m.model, m.newness, m.created_at, m.sha256, 0) for m in world.manifests if m.model == "linear"]


def test_what_is_promoted_pinned_or_shared_stays_and_candidates_go_with_their_model(world: World) -> None:
    world.decide("linear@3")
    world.decide("slow")
    shared = next(m for m in world.manifests if (m.model, m.version) == ("linear", 5))
    world.publish(289, "slow", sha256=shared.sha256, uri=shared.uri)
    for number in range(1, 100):
        world.publish(number, "linear~7")
    world.retainer().look()
    assert {3, 5} <= set(world.held())
    assert {4, 6}.isdisjoint(world.held())
    assert len(world.held("linear~7")) < 40


def test_with_a_gate_what_it_may_roll_back_to_stays(tmp_path: Path) -> None:
    gate = Gate(examples=200, watch=1_000, round=1_000)
    world = World(tmp_path, small.make(task="regression", retention=RETENTION, gate=gate), 50)
    assert world.retainer().look() == [], "versions are offsets: all 50 are among the last 3,000 examples"


def test_versions_of_a_clock_that_was_ahead_make_no_others_old(world: World) -> None:
    expected = world.held()
    world.retainer().look()
    kept = world.held()
    assert kept != expected
    for number in range(289, 320):
        world.publish(number, created_at=T0 + 900 * DAY)
    retainer = world.retainer()
    retainer._clock = lambda: (T0 + 288 * 10 * MINUTE) / 1000
    retainer.look()
    held = world.held()
    assert {*range(282, 320)} <= set(held), "the last hour, and those of the clock that was ahead"
    assert kept[0] in held, "the day before"
    hours = {number * 10 // 60 for number in range(252, 289)}
    assert hours <= {number * 10 // 60 for number in held if number <= 288}, "one an hour"


@pytest.mark.parametrize("damage", ["deleted", "changed"])
def test_where_the_newest_is_lost_nothing_goes(world: World, damage: str) -> None:
    newest = Path(world.store.url) / world.manifests[-2].uri
    newest.unlink() if damage == "deleted" else newest.write_bytes(b"other")
    assert world.retainer().look() == []
    world.publish(289)
    assert world.retainer().look() != []


def test_a_forged_manifest_neither_deletes_nor_keeps(world: World) -> None:
    expected = staying(stored_of(world), RETENTION)
    newest = world.manifests[-2]
    for number in range(30):  # had they counted, all others would have been years old
        made = dataclasses.replace(newest, version=1_000 + number, created_at=T0 + 9_000 * DAY)
        world.broker.append(topics.MODELS.name("small"), world.registry.encode(forged(made)), b"linear")
    retainer = world.retainer()
    retainer.look()
    assert world.held() == sorted(one.newness[1] for one in expected)
    made = dataclasses.replace(newest, version=2_000, created_at=T0 + 9_000 * DAY)
    world.broker.append(topics.MODELS.name("small"), world.registry.encode(forged(made)), b"linear")
    old = world.broker.records(topics.MODELS.name("small"))[0]
    world.broker.append(topics.MODELS.name("small"), old.value(), old.key())
    assert retainer.look() == [], "nor while it runs, nor does an old one that is appended again"


def test_one_that_breaks_off_is_gone_on_with_by_whoever_comes_next(world: World) -> None:
    expected = sorted(one.newness[1] for one in staying(stored_of(world), RETENTION))
    retainer = world.retainer()
    for left in (3, 0, 5):
        world.store.left = left
        with pytest.raises(StoreError):
            retainer.look()
        assert set(expected) <= set(world.held())
    world.store.left = 10**9
    (world.retainer() if len(expected) % 2 else retainer).look()
    assert world.held() == expected


def test_a_replacement_of_a_lost_artifact_goes_with_it(world: World) -> None:
    first = world.manifests[0]
    world.store.delete(first.sha256)
    restored = world.registry.restore(first, Fold(world.pipeline, "linear").snapshot())
    assert restored.sha256 != first.sha256
    world.retainer().look()
    assert world.store.note(first.sha256) is None
    assert not world.store.holds(restored.sha256)


def test_where_nothing_is_to_go_it_is_measured_all_the_same(tmp_path: Path) -> None:
    world = World(tmp_path, small.make(retention=None), 50)
    assert world.retainer().look() == []
    assert (level(metrics.STORED_VERSIONS), level(metrics.STORED_BYTES)) == (50, world.bytes())


def test_in_a_thread_of_its_own_it_goes_on_after_any_error_until_it_is_stopped(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Kafka's own client, with a store that is away at first."""
    monkeypatch.setattr(retention, "LOOK_EVERY_SECONDS", 0.05)
    embedded = EmbeddedBroker()
    embedded.create([name for _, name, _ in topic_table(world.pipeline)])
    broker = KafkaBroker(embedded.servers)
    producer = broker.producer("test")
    for record in world.broker.records(topics.MODELS.name("small")):
        producer.emit(topics.MODELS.name("small"), record.value() or b"", record.key(), partition=0)
    producer.commit({}, None)
    producer.close()
    expected = sorted(one.newness[1] for one in staying(stored_of(world), RETENTION))
    registry = Registry(world.pipeline, world.store, KEY)
    retainer = Retainer(world.pipeline, "linear", registry, broker, lambda _: None)
    world.store.left = 0
    retainer.start()
    time.sleep(0.5)
    assert len(world.held()) == 288
    world.store.left = 10**9
    until(lambda: world.held() == expected, "it does not go on")
    retainer.stop()
    assert not retainer._thread.is_alive()


def test_a_topic_that_was_created_again_is_read_again(world: World) -> None:
    retainer = world.retainer()
    retainer.look()
    world.broker.log[TopicPartition(topics.MODELS.name("small"), 0)].clear()
    world.manifests.clear()
    world.registry.chains.forget()
    world.publish(500)
    assert retainer.look() == []
    assert level(metrics.STORED_VERSIONS) == 1


def test_who_asks_for_what_was_pruned_is_told_and_a_learner_goes_on(tmp_path: Path) -> None:
    world = World(tmp_path, many=0)
    records = small.example_records(PIPELINE, 60)

    def add(_: str, value: bytes, key: bytes, *__: Any) -> None:
        world.broker.append(topics.MODELS.name("small"), value, key)
        world.manifests.append(world.registry.decode(value))

    def learner() -> Learner:
        history = manifest_history(world.broker, world.registry)
        step = Learner(PIPELINE, "linear", world.registry, history, every_examples=1, every_seconds=1e9)
        step.assign(TopicPartition("small.examples", 0), Position(0))
        return step

    step = learner()
    for record in records:
        step.process([record], add)
    later = {one.version: T0 + one.version * DAY for one in world.manifests}
    world.broker.log[TopicPartition(topics.MODELS.name("small"), 0)].clear()
    world.registry.chains.forget()
    for one in world.manifests:  # as if it had published one a day
        signed = world.registry.sign(dataclasses.replace(one, created_at=later[one.version]))
        world.broker.append(topics.MODELS.name("small"), world.registry.encode(signed), b"linear")
    world.retainer().look()
    assert world.held() == list(range(41, 61))
    check = serving_check(world.registry, world.broker)
    assert check(ModelRef("linear", 50)) == ""
    why = check(ModelRef("linear", 7))
    assert "it was pruned, or is lost; `tidemill models rebuild small linear@7` folds it again" in why
    assert learner().fold.version == 60
    assert sha256(b"") != why
