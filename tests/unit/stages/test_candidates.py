"""Candidates: begun by a decision, folded over the past beside their model, resumed, left, served, and done again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import small
from river_in_memory import drive
from signing_keys import KEY

from tidemill.errors import BrokerError
from tidemill.models.fold import Fold
from tidemill.offline.rebuild import Rebuild
from tidemill.offline.replay import Replay
from tidemill.registry.decisions import GATE, NOBODY, Decision, ModelRef, all_decisions, decisions
from tidemill.registry.manifests import Manifest, Registry
from tidemill.registry.signing import Chains
from tidemill.registry.store import ArtifactStore
from tidemill.registry.versions import Versions
from tidemill.runtime.run import topic_table
from tidemill.stages.learner import service as learner
from tidemill.stages.learner.service import Learner, candidate_names, example_reader, manifest_history
from tidemill.stages.scorer.feed import ModelFeed
from tidemill.stages.scorer.service import Scorer
from tidemill.stream.api import Record, TopicPartition
from tidemill.stream.group import Service
from tidemill.stream.memory import MemoryBroker, MemoryRecord
from tidemill.wire import topics
from tidemill.wire.records import Records

pytestmark = pytest.mark.slow

PIPELINE = small.make(models={"linear": small.linear(), "slow": small.linear(0.0001)})
RECORDS = Records(PIPELINE)
EXAMPLES, MODELS, PROMOTIONS = (t.name("small") for t in (topics.EXAMPLES, topics.MODELS, topics.PROMOTIONS))
X = {"distance": 120.0, "hour": 7.0}


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner, "MAX_CATCH_UP_EXAMPLES", 7)


class World:
    """Examples, decisions, and learners of the model `slow` that come and go."""

    def __init__(self, folder: Path) -> None:
        self.broker = MemoryBroker({name: partitions for _, name, partitions in topic_table(PIPELINE)})
        self.registry = Registry(PIPELINE, ArtifactStore(str(folder)), KEY)
        self.asked: list[tuple[int, int]] = []
        self.step: Any = None

    def examples(self, many: int) -> None:
        for _ in range(many):
            count = len(self.broker.log[TopicPartition(EXAMPLES, 0)])
            found = small.example(
                PIPELINE, f"e{count}", (count * 7 % 13) - 6.0, count, distance=count % 11 * 50.0, hour=count % 24.0
            )
            self.broker.append(EXAMPLES, RECORDS.example.encode(found), b"k", count)

    def decide(self, champion: str = "linear", candidate: str = "", watched: str = "") -> None:
        number = len(self.broker.log[TopicPartition(PROMOTIONS, 0)])
        decision = Decision(
            f"{number}", "training", "ann", "", 1, 1, 1, 1, "", ModelRef(candidate), ModelRef.of(champion), ModelRef("linear"),
            on_probation_against=ModelRef.of(watched) if watched else NOBODY, candidate=candidate,
        )  # fmt: skip
        chains = Chains(decisions(PIPELINE, KEY))
        all_decisions(PIPELINE, self.broker, chains.codec, chains)
        self.broker.append(PROMOTIONS, chains.sign(decision, GATE), b"k", 1)

    def _past(self, begin: int, end: int) -> Iterator[Sequence[Record]] | None:
        self.asked.append((begin, end))
        return example_reader(self.broker, PIPELINE)(begin, end)

    def learner(self, every: int = 10, wanted: Any = None) -> Learner:
        ticks = iter(range(10**9))  # a second passes at every look at the clock
        return Learner(
            PIPELINE, "slow", self.registry, manifest_history(self.broker, self.registry),
            wanted or candidate_names(self.broker, self.registry, "slow"), self._past,
            every_examples=every, every_seconds=1e9, clock=lambda: float(next(ticks)),
        )  # fmt: skip

    def run(self, batch: int = 20, **more: Any) -> Learner:
        """Start a learner, and leave it when nothing comes any more and all candidates are level with their model."""
        self.step = self.learner(**more)
        drive(Service("learner-slow", "small.learner.slow", [EXAMPLES], self.step), self.broker, batch=batch)
        for _ in range(20):
            self.step.process([], lambda topic, value, key, *_: self.broker.append(topic, value, key, 1))
        return self.step

    def fold(self, name: str, end: int) -> Fold:
        """Return what learning examples[begin..end) in one go comes to."""
        found = Fold(PIPELINE, name)
        for record in self.broker.records(EXAMPLES)[found.begin : end]:
            found.learn(RECORDS.example.decode(record.value() or b""), record.offset())
        return found

    def versions(self, name: str) -> list[Manifest]:
        found = [self.registry.decode(record.value() or b"") for record in self.broker.records(MODELS)]
        return [manifest for manifest in found if manifest.model == name]

    def check(self, name: str) -> list[int]:
        """Hold every version of a model to the fold up to it; return how far each goes."""
        for manifest in self.versions(name):
            said = self.registry.open(manifest).model.predict_one(X)
            fold = self.fold(name, manifest.version)
            assert (said, manifest.examples, manifest.begin) == (fold.model.predict_one(X), fold.examples, fold.begin)
        return [manifest.version for manifest in self.versions(name)]


@pytest.fixture
def world(tmp_path: Path) -> World:
    found = World(tmp_path)
    found.examples(60)
    return found


class TestLearning:
    def test_one_that_a_decision_begins_is_folded_over_the_past_beside_its_model(self, world: World) -> None:
        world.run()
        assert world.versions("slow~25") == []
        world.decide(candidate="slow~25")
        world.examples(5)
        world.run()
        assert world.step.candidates["slow~25"].fold.version == 65
        assert len(world.check("slow~25")) >= 2
        assert world.check("slow")[-1] >= 60
        own, other = (world.fold(name, 65).model.predict_one(X) for name in ("slow", "slow~25"))
        assert own != other, "else nothing would be seen here"

    def test_it_goes_on_from_its_last_version_after_a_restart(self, world: World) -> None:
        world.run()
        world.decide(candidate="slow~25")
        world.run()
        last = world.check("slow~25")[-1]
        world.asked.clear()
        world.examples(30)
        world.run()
        assert world.step.candidates["slow~25"].fold.version == 90
        assert world.asked[0] == (last, 60)
        assert world.check("slow~25")[-1] > last

    def test_where_only_its_artifact_was_written_before_the_end_it_is_folded_again(self, world: World) -> None:
        world.decide(candidate="slow~25")
        world.run()
        kept = world.versions("slow~25")[0].version
        entries = world.broker.log[TopicPartition(MODELS, 0)]
        entries[:] = [
            MemoryRecord(MODELS, r.value(), r.key(), 0, None, 0, number)
            for number, r in enumerate(r for r in entries if world.registry.decode(r.value() or b"").version <= kept)
        ]
        world.examples(10)
        world.run()
        assert world.check("slow~25")[-1] > kept

    def test_one_that_is_level_with_its_model_learns_what_comes_without_reading_it_again(self, world: World) -> None:
        world.decide(candidate="slow~25")
        step = world.run()
        assert step.candidates["slow~25"].at == 60
        world.asked.clear()
        world.examples(25)
        emitted = small.Emitted()
        step.process(world.broker.records(EXAMPLES)[60:85], emitted)
        assert world.asked == []
        assert step.candidates["slow~25"].fold.model.predict_one(X) == world.fold("slow~25", 85).model.predict_one(X)

    def test_it_waits_for_a_model_that_is_not_as_far(self, world: World) -> None:
        world.decide(candidate="slow~55")
        world.run(batch=10)
        assert world.step.candidates["slow~55"].fold.model.predict_one(X) == world.fold(
            "slow~55", 60
        ).model.predict_one(X)
        assert world.step.candidates["slow~55"].fold.examples == 5

    def test_it_is_left_when_nobody_wants_it(self, world: World) -> None:
        world.decide(candidate="slow~25")
        step = world.run()
        world.decide()
        step.process([], small.Emitted())
        assert step.candidates == {}

    def test_those_of_other_models_are_not_its_own(self, world: World) -> None:
        world.decide(candidate="linear~25")
        assert world.run().candidates == {}

    def test_one_that_serves_or_is_watched_learns_on_while_another_begins(self, world: World) -> None:
        world.decide(candidate="slow~25")
        world.run()
        world.decide(champion="slow~25", candidate="slow~40", watched="slow~10")
        world.examples(20)
        step = world.run()
        assert {name: one.fold.version for name, one in step.candidates.items()} == {
            "slow~10": 80, "slow~25": 80, "slow~40": 80,
        }  # fmt: skip
        for name in ("slow~10", "slow~25", "slow~40"):
            assert world.check(name)

    def test_where_the_log_does_not_reach_back_that_is_said_once_and_the_model_learns_on(
        self, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        world.run()
        world.broker.truncate(TopicPartition(EXAMPLES, 0), 30)
        world.decide(candidate="slow~25")
        world.examples(20)
        step = world.run()
        assert step.candidates == {}
        assert step.fold.version == 80
        assert [r.message for r in caplog.records].count(
            "a candidate can't be trained: the log does not reach back to its examples"
        ) == 1

    def test_where_kafka_is_away_the_model_learns_on(self, world: World) -> None:
        def wanted() -> Sequence[str]:
            raise BrokerError("away")

        step = world.run(wanted=wanted)
        assert step.fold.version == 60
        assert step.candidates == {}

    def test_where_the_past_can_not_be_read_it_is_tried_again(self, world: World) -> None:
        world.run()
        world.decide(candidate="slow~25")
        step, trouble = world.learner(), [True]

        def past(begin: int, end: int) -> Iterator[Sequence[Record]]:
            for number, record in enumerate(world.broker.records(EXAMPLES)[begin:end]):
                if number == 3 and trouble:
                    trouble.pop()
                    raise BrokerError("away")
                yield [record]

        step.read_examples = past
        drive(Service("learner-slow", "small.learner.slow", [EXAMPLES], step), world.broker, batch=20)
        for _ in range(10):
            step.process([], small.Emitted())
        assert trouble == []
        assert step.candidates["slow~25"].fold.model.predict_one(X) == world.fold("slow~25", 60).model.predict_one(X)
        assert step.candidates["slow~25"].fold.examples == 35

    def test_a_clean_stop_publishes_what_it_has_learned(self, world: World) -> None:
        world.decide(candidate="slow~25")
        step, emitted = world.run(every=10**6), small.Emitted()
        assert step.finish(emitted)
        names = [record.key() for record in emitted.of(MODELS)]
        assert names == [b"slow", b"slow~25"]


class TestServing:
    def test_its_versions_are_opened_in_the_scorer_and_serve(self, world: World) -> None:
        world.decide(champion="slow~25")
        world.run()
        feed = ModelFeed(world.registry, world.broker)
        feed._catch_up()
        step = Scorer(PIPELINE, feed.take)
        step.swap()
        last = world.versions("slow~25")[-1].version
        assert (step.champion.name, step.champion.version) == ("slow~25", last)
        assert step.champion.model.predict_one(X) == world.fold("slow~25", last).model.predict_one(X)

    def test_while_a_version_of_it_is_held_it_shadows_as_it_learns(self, world: World) -> None:
        world.decide(candidate="slow~25")
        world.run()
        held = world.versions("slow~25")[0].version
        world.decide(champion=f"slow~25@{held}")
        feed = ModelFeed(world.registry, world.broker)
        feed._catch_up()
        follower = world.broker.follow(
            TopicPartition(MODELS, 0), world.broker.offset_range(TopicPartition(MODELS, 0))[1]
        )
        world.examples(30)
        world.run()
        feed._look(follower, world.broker.follow(TopicPartition(PROMOTIONS, 0), 0))
        step = Scorer(PIPELINE, feed.take)
        step.swap()
        assert step.champion.version == held
        assert step.models["slow~25"].version == world.versions("slow~25")[-1].version > held

    @pytest.mark.slow
    @pytest.mark.parametrize("rebuild", [False, True])
    @pytest.mark.parametrize("champion", ["slow~25", "linear"])
    def test_predictions_of_it_come_out_as_they_were(self, world: World, champion: str, *, rebuild: bool) -> None:
        log = self.predicted(world, champion)
        assert {("slow~25", world.versions("slow~25")[-1].version)} < {
            (one["model"], one["version"]) for one in (log["champion"], *log["challengers"])
        }
        replay = Replay(PIPELINE, world.broker, world.registry)
        (done,) = replay.run(replay.log.find(["asked"]), rebuild=rebuild)
        assert [(one.then["model"], one.state, one.why) for one in done.scores if one.state != "equal"] == []

    def predicted(self, world: World, champion: str) -> Any:
        world.decide(champion=champion, candidate="slow~25")
        world.run()
        feed = ModelFeed(world.registry, world.broker)
        feed._catch_up()
        step, emitted = Scorer(PIPELINE, feed.take), small.Emitted()
        given = small.features(PIPELINE, "asked", 1, **X)
        step.process([MemoryRecord("small.features", RECORDS.features.encode(given), b"JFK")], emitted)
        (record,) = emitted.of("small.prediction-log")
        world.broker.append("small.prediction-log", record.value(), b"asked", 1)
        return RECORDS.prediction_log.decode(record.value() or b"")

    def test_without_a_manifest_its_name_says_where_it_begins(self, world: World) -> None:
        self.predicted(world, "slow~25")
        world.broker.log[TopicPartition(MODELS, 0)].clear()
        replay = Replay(PIPELINE, world.broker, world.registry)
        (done,) = replay.run(replay.log.find(["asked"]), rebuild=True)
        assert done.is_equal, [one.why for one in done.scores]

    def test_its_versions_are_rebuilt(self, world: World) -> None:
        world.decide(candidate="slow~25")
        world.run()
        rebuild = Rebuild(PIPELINE, world.broker, world.registry)
        manifests, others = rebuild.every()
        assert others == 0
        assert "slow~25" in {manifest.model for manifest in manifests}
        assert {(one.state, one.why) for one in rebuild.run(manifests, write=False)} == {("equal", "")}


def test_a_version_says_as_much_of_a_candidate_as_of_a_model(world: World) -> None:
    world.decide(candidate="slow~25")
    world.run()
    manifest = world.versions("slow~25")[0]
    assert manifest.hyperparameters == PIPELINE.stable_repr("slow")
    assert manifest.declaration == PIPELINE.declaration_hash("slow~25")
    versions = Versions(PIPELINE, world.broker, world.registry)
    assert versions.as_dict(next(versions.read("slow~25")), world.registry.store)["role"] == "candidate"
