"""Versions never go back by themselves: whatever is taken from learner and scorer, what was published stays the newest."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import river
import small
from river_in_memory import drive
from signing_keys import KEY

from tidemill.errors import DeclarationError, Retry, VersionsError
from tidemill.keys import Keyring
from tidemill.models.fold import Fold
from tidemill.registry.decisions import GATE, NOBODY, Decision, ModelRef, all_decisions, decisions
from tidemill.registry.latest import latest
from tidemill.registry.manifests import Manifest, Registry
from tidemill.registry.signing import Chains
from tidemill.registry.store import ArtifactStore
from tidemill.runtime.run import topic_table
from tidemill.stages.learner import service as learner
from tidemill.stages.learner.service import Learner
from tidemill.stages.scorer.feed import RETRY_SECONDS, ModelFeed
from tidemill.stages.scorer.service import Scorer
from tidemill.stream.api import Position, TopicPartition
from tidemill.stream.loop import Loop
from tidemill.stream.memory import MemoryBroker, MemoryRecord
from tidemill.wire import topics
from tidemill.wire.records import Records

pytestmark = pytest.mark.slow

PIPELINE = small.make(models={"linear": small.linear(), "slow": small.linear(0.0001)})
RECORDS = Records(PIPELINE)
EXAMPLES, MODELS, PROMOTIONS = (
    TopicPartition(topic.name("small"), 0) for topic in (topics.EXAMPLES, topics.MODELS, topics.PROMOTIONS)
)
X = {"distance": 120.0, "hour": 7.0}


class World:
    """One pipeline's logs and store, and learners of `linear` that come and go; a version every ten examples."""

    def __init__(self, folder: Path, pipeline: Any = PIPELINE, key: Keyring = KEY) -> None:
        self.folder, self.pipeline, self.key = folder, pipeline, key
        self.broker = MemoryBroker({name: partitions for _, name, partitions in topic_table(PIPELINE)})

    @property
    def registry(self) -> Registry:
        return Registry(self.pipeline, ArtifactStore(str(self.folder), create=not self.folder.is_file()), self.key)

    def examples(self, many: int) -> None:
        for _ in range(many):
            count = len(self.broker.log[EXAMPLES])
            example = small.example(
                PIPELINE, f"e{count}", (count * 7 % 13) - 6.0, count, distance=count % 11 * 50.0, hour=count % 24.0
            )
            self.broker.append(EXAMPLES.topic, RECORDS.example.encode(example), b"k", count)

    def learn(self, many: int = 0, model: str = "linear") -> Learner:
        """Start a learner, and leave it when it has learned everything."""
        self.examples(many)
        service = learner.build(self.pipeline, model, self.registry, self.broker, every_examples=10, every_seconds=1e9)
        drive(service, self.broker, batch=10)
        step = service.processor
        assert isinstance(step, Learner)
        return step

    def published(self, model: str = "linear") -> list[tuple[int, int]]:
        """Return epoch and version of all manifests, in the order of the log."""
        manifests = [RECORDS.manifest.decode(record.value() or b"") for record in self.broker.records(MODELS.topic)]
        return [(one["epoch"], one["version"]) for one in manifests if one["model"] == model]

    def manifest(self, index: int = -1) -> Manifest:
        return self.registry.decode(self.broker.records(MODELS.topic)[index].value() or b"")

    def score(self, manifest: Manifest) -> float:
        return float(self.registry.open(manifest).model.predict_one(X))

    def folded(self, end: int, begin: int = 0) -> float:
        """Return the score of the model after examples[begin..end)."""
        fold = Fold(self.pipeline, "linear", begin)
        for record in self.broker.log[EXAMPLES][begin:end]:
            fold.learn(RECORDS.example.decode(record.value() or b""), record.offset())
        return float(fold.model.predict_one(X))

    def go_on(self, step: Learner, many: int) -> None:
        """Have a learner that runs learn so many examples more, and publish."""
        before = len(self.broker.log[EXAMPLES])
        self.examples(many)
        step.process(self.broker.log[EXAMPLES][before:], lambda topic, value, key, *_: self.append(topic, value, key))

    def append(self, topic: str, value: bytes, key: Any) -> None:
        self.broker.append(topic, value, key, 1)

    def decide(self, kind: str, champion: str = "linear", chains: Chains[Decision] | None = None, **more: Any) -> None:
        """Append a decision; `chains` is that of a gate that runs, and goes on in it."""
        ref = ModelRef.of(champion)
        decision = Decision(kind, kind, "ann", "the store is lost", 1, 1, 1, 1, "", ref, ref, NOBODY, **more)
        if chains is None:
            chains = Chains(decisions(PIPELINE, self.key))
            all_decisions(PIPELINE, self.broker, chains.codec, chains)
        self.broker.append(PROMOTIONS.topic, chains.sign(decision, GATE), b"k", 1)

    def reset(self) -> None:
        """Decide that another life of `linear` begins."""
        self.decide("reset", epochs={"linear": 1})

    def shorten_examples(self, end: int) -> None:
        """Have the examples end there, and the learner's offsets gone, as after `tidemill offsets set`."""
        del self.broker.log[EXAMPLES][end:]
        self.broker.groups.clear()
        for partition in [one for one in self.broker.log if one.topic == topics.PROGRESS.name("small")]:
            self.broker.log[partition].clear()

    def lose_manifests(self, keep: int = 0) -> None:
        """Delete the newest records of the models topic, as where it is created again or restored from a backup."""
        del self.broker.log[MODELS][keep:]


class ScorerProcess:
    """A scorer as a new process: it opens what is there, then follows. What it serves goes into the prediction log."""

    def __init__(self, world: World) -> None:
        self.world, self.now = world, [0.0]
        self.feed = ModelFeed(world.registry, world.broker, clock=lambda: self.now[0])
        self.feed._catch_up()
        self.step = Scorer(world.pipeline, self.feed.take)
        self.step.assign(TopicPartition("small.features", 0), Position(0))
        self._followers = [
            world.broker.follow(partition, world.broker.offset_range(partition)[1])
            for partition in (MODELS, PROMOTIONS)
        ]

    def look(self, seconds: float = 0.0) -> None:
        """Have the feed look once, so many seconds later."""
        self.now[0] += seconds
        self.feed._look(*self._followers)

    def follow(self, seconds: float = 0.0) -> None:
        """Have the feed go on by itself once, so many seconds later."""
        self.now[0] += seconds
        self.feed._follow()

    def serve(self) -> tuple[int, int] | None:
        """Score one vector; return epoch and version of the serving model, or None where nothing serves."""
        vector = RECORDS.features.encode(small.features(PIPELINE, "e", 1, distance=120.0, hour=7.0))
        emitted = small.Emitted()
        try:
            self.step.process([MemoryRecord("small.features", vector, b"JFK")], emitted)
        except Retry:
            assert self.step.not_ready(), "it says why"
            return None
        assert not self.step.not_ready()
        for record in emitted.of("small.prediction-log"):
            self.world.broker.append("small.prediction-log", record.value(), b"e", 1)
        log = RECORDS.prediction_log.decode(emitted.of("small.prediction-log")[0].value() or b"")
        return log["champion"]["epoch"], log["champion"]["version"]

    @property
    def unopened(self) -> float:
        return self.step.gauges()["unopened", "linear"]


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path / "store")
    world.learn(60)
    assert world.published() == [(0, version) for version in range(10, 70, 10)]
    return world


def empty_the_store(world: World) -> None:
    shutil.rmtree(world.folder)


def another_store(world: World) -> None:
    world.folder = world.folder.with_name("elsewhere")


def older_store(world: World) -> None:
    for index in (-1, -2):
        (world.folder / world.manifest(index).uri).unlink()


def damaged_store(world: World) -> None:
    for path in world.folder.glob("*/*"):
        path.write_bytes(b"of somebody else")


#: What keeps a learner from opening artifacts that its manifests name.
LOSSES = [empty_the_store, another_store, older_store, damaged_store]


class TestLearner:
    @pytest.mark.parametrize("lose", LOSSES)
    def test_a_learner_that_can_not_open_the_newest_publishes_nothing_older(
        self, world: World, lose: Callable[[World], None]
    ) -> None:
        lose(world)
        before = world.published()
        world.learn()
        assert world.published() == before, "there is nothing new to publish"
        assert world.score(world.manifest()) == world.folded(60), "the newest can be opened again"
        world.learn(20)
        assert world.published() == [*before, (0, 70), (0, 80)]
        assert world.score(world.manifest()) == world.folded(80)

    @pytest.mark.parametrize("lose", [empty_the_store, damaged_store])
    def test_where_the_log_is_cut_it_stops_and_names_the_command(
        self, world: World, lose: Callable[[World], None]
    ) -> None:
        lose(world)
        world.broker.truncate(EXAMPLES, 30)
        before = world.published()
        with pytest.raises(VersionsError, match=r"begins at 30 where 0 is needed.*tidemill models reset small linear"):
            world.learn(20)
        assert world.published() == before

    def test_an_older_version_helps_where_the_log_is_cut_before_it(self, world: World) -> None:
        older_store(world)
        world.broker.truncate(EXAMPLES, 40)
        world.learn(10)
        assert world.published()[-2:] == [(0, 60), (0, 70)]
        assert world.score(world.manifest()) == world.folded(70)

    def test_a_store_that_is_away_is_waited_for(self, world: World) -> None:
        before, aside = world.published(), world.folder.rename(world.folder.with_name("aside"))
        world.folder.write_text("no folder")
        world.learn(10)
        assert world.published() == before
        world.folder.unlink()
        aside.rename(world.folder)
        world.learn()
        assert world.published() == [*before, (0, 70)]

    def test_another_river_folds_to_the_newest_and_stores_it_again(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = world.published()
        monkeypatch.setattr(river, "__version__", "99.0.0")
        world.learn(10)
        assert world.published() == [*before, (0, 70)]
        newest_before = world.manifest(-2)
        assert (newest_before.version, world.score(newest_before)) == (60, world.folded(60))

    def test_a_fold_that_comes_to_other_scores_is_not_published(self, world: World) -> None:
        empty_the_store(world)
        log = world.broker.log[EXAMPLES]
        log[3] = log[4]
        before = world.published()
        with pytest.raises(VersionsError, match=r"does not fold to version 60 again: golden vector .*models reset"):
            world.learn(10)
        assert world.published() == before

    def test_examples_that_end_before_the_newest_version_stop_it(self, world: World) -> None:
        world.shorten_examples(40)
        with pytest.raises(VersionsError, match=r"has a version 60, and small.examples ends at 40.*models reset"):
            world.learn()

    def test_another_key_stops_it(self, world: World) -> None:
        world.key, before = Keyring.generate(), world.published()
        with pytest.raises(VersionsError, match=r"6 manifests of model 'linear', and none with a valid signature"):
            world.learn(10)
        assert world.published() == before

    def test_manifests_of_another_pipeline_are_no_versions_of_this_one(self, tmp_path: Path) -> None:
        other = World(tmp_path / "other", small.make(name="other"))
        world = World(tmp_path / "store")
        world.examples(10)
        fold = Fold(other.pipeline, "linear")
        manifest = other.registry.publish("linear", fold.snapshot(), ())
        world.broker.append(MODELS.topic, other.registry.encode(dataclasses.replace(manifest)), b"linear")
        world.learn(10)
        assert world.published()[1:] == [(0, 10), (0, 20)]

    def test_a_changed_declaration_stops_it_until_a_reset(self, world: World) -> None:
        world.pipeline = small.make(models={"linear": small.linear(0.01), "slow": small.linear(0.0001)})
        with pytest.raises(DeclarationError, match=r"new name, or begin another life.*models reset small linear"):
            world.learn()
        world.reset()
        world.learn(10)
        assert world.published()[6:] == [(1, 70)]
        assert world.score(world.manifest()) == world.folded(70)

    def test_forged_manifests_change_nothing(self, world: World) -> None:
        forged = dataclasses.replace(world.manifest(), version=5_000, epoch=7)
        world.broker.append(MODELS.topic, world.registry.encode(forged), b"linear")
        world.learn(10)
        assert world.published()[-1] == (0, 70)

    @pytest.mark.parametrize("index", [0, 3, 5])
    def test_a_manifest_that_is_appended_again_changes_nothing(self, world: World, index: int) -> None:
        record = world.broker.records(MODELS.topic)[index]
        world.broker.append(MODELS.topic, record.value(), b"linear")
        world.learn(10)
        assert world.published()[-1] == (0, 70)
        assert world.score(world.manifest()) == world.folded(70)

    @pytest.mark.parametrize("kept", [0, 2])
    def test_manifests_that_are_gone_are_not_published_again(self, world: World, kept: int) -> None:
        """Topic `models` was created again, or restored: the learner's offsets say how far it was."""
        world.lose_manifests(kept)
        world.learn()
        assert world.published() == [*[(0, 10), (0, 20)][:kept], (0, 60)], "scorers need one at once"
        assert world.score(world.manifest()) == world.folded(60)

    def test_manifests_and_the_beginning_of_the_log_gone_stop_it(self, world: World) -> None:
        world.lose_manifests()
        world.broker.truncate(EXAMPLES, 30)
        with pytest.raises(VersionsError, match=r"its manifests are gone, and small.examples begins at 30"):
            world.learn()

    def test_a_first_start_is_as_ever(self, tmp_path: Path) -> None:
        world = World(tmp_path)
        world.learn(5)
        assert world.published() == []
        world.learn(5)
        assert world.published() == [(0, 10)]


class TestScorer:
    @pytest.mark.parametrize("lose", LOSSES)
    def test_a_scorer_that_starts_serves_nothing_older_and_serves_once_it_can(
        self, world: World, lose: Callable[[World], None]
    ) -> None:
        lose(world)
        scorer = ScorerProcess(world)
        assert scorer.serve() is None
        assert "linear" in scorer.step.not_ready()
        assert scorer.unopened == 1
        world.learn()
        scorer.look(RETRY_SECONDS)
        assert scorer.serve() == (0, 60), "the learner has stored the newest again"
        assert scorer.unopened == 0

    def test_a_scorer_that_runs_keeps_what_it_has(self, world: World) -> None:
        scorer = ScorerProcess(world)
        world.learn(10)
        (world.folder / world.manifest().uri).unlink()
        scorer.look()
        assert scorer.serve() == (0, 60)
        assert scorer.unopened == 1
        assert not scorer.step.not_ready()
        world.learn(10)
        scorer.look()
        assert scorer.serve() == (0, 80)

    @pytest.mark.parametrize("index", [0, 3, 5])
    def test_an_old_manifest_appended_again_is_passed_over(self, world: World, index: int) -> None:
        running = ScorerProcess(world)
        world.broker.append(MODELS.topic, world.broker.records(MODELS.topic)[index].value(), b"linear")
        running.look()
        assert running.serve() == (0, 60)
        assert running.step.counts["model_loads", "loaded"] == 1
        assert ScorerProcess(world).serve() == (0, 60)

    def test_an_older_version_that_is_signed_as_the_next_is_passed_over(self, world: World) -> None:
        running = ScorerProcess(world)
        registry, fold = world.registry, Fold(PIPELINE, "linear")
        latest(world.broker, registry, {"linear": 1}, chains=registry.chains)
        for record in world.broker.log[EXAMPLES][:5]:
            fold.learn(RECORDS.example.decode(record.value() or b""), record.offset())
        manifest = registry.publish("linear", fold.snapshot(), tuple(fold.vectors))
        world.broker.append(MODELS.topic, registry.encode(manifest), b"linear")
        running.look()
        assert running.serve() == (0, 60)
        assert ScorerProcess(world).serve() != (0, 5), "60 has served"

    def test_a_forged_manifest_is_passed_over(self, world: World) -> None:
        running = ScorerProcess(world)
        forged = dataclasses.replace(world.manifest(), version=5_000, epoch=7)
        world.broker.append(MODELS.topic, world.registry.encode(forged), b"linear")
        running.look()
        assert running.serve() == (0, 60)
        assert ScorerProcess(world).serve() == (0, 60)

    def test_another_key_serves_nothing(self, world: World) -> None:
        world.key = Keyring.generate()
        scorer = ScorerProcess(world)
        assert scorer.serve() is None
        assert "none with a valid signature" in scorer.step.not_ready()

    def test_another_river_waits_for_its_learner(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(river, "__version__", "99.0.0")
        scorer = ScorerProcess(world)
        assert scorer.serve() is None
        world.learn()
        scorer.look(RETRY_SECONDS)
        assert scorer.serve() == (0, 60)

    def test_another_declaration_serves_nothing_until_another_life_has_a_version(self, world: World) -> None:
        world.pipeline = small.make(models={"linear": small.linear(0.01), "slow": small.linear(0.0001)})
        scorer = ScorerProcess(world)
        assert scorer.serve() is None
        world.reset()
        world.learn()
        scorer.look()
        assert scorer.serve() == (1, 60)

    @pytest.mark.parametrize("kept", [0, 2])
    def test_manifests_that_are_gone_are_missed_by_what_has_served(self, world: World, kept: int) -> None:
        assert ScorerProcess(world).serve() == (0, 60)
        world.lose_manifests(kept)
        scorer = ScorerProcess(world)
        assert scorer.serve() is None
        assert "version 60 of 'linear' has served before" in scorer.step.not_ready()
        world.learn()
        scorer.look()
        assert scorer.serve() == (0, 60)

    @pytest.mark.parametrize("kept", [None, 0, 3], ids=["created again", "emptied", "cut"])
    def test_a_topic_of_versions_that_is_another_while_it_runs_takes_nothing_back_and_is_followed(
        self, world: World, kept: int | None
    ) -> None:
        scorer = ScorerProcess(world)
        scorer.follow()
        assert scorer.serve() == (0, 60)
        step = world.learn()
        old = list(world.broker.records(MODELS.topic))
        if kept is None:
            world.broker.recreate(MODELS.topic)
        else:
            world.lose_manifests(kept)
        scorer.follow(RETRY_SECONDS)
        for record in old[:3]:
            world.broker.append(MODELS.topic, record.value(), record.key(), 1)
        scorer.follow(RETRY_SECONDS)
        assert scorer.serve() == (0, 60)
        world.go_on(step, 10)
        scorer.follow(RETRY_SECONDS)
        assert scorer.serve() == (0, 70)
        world.go_on(step, 10)
        scorer.follow()
        assert scorer.serve() == (0, 80)

    def test_decisions_that_are_created_again_while_it_runs_are_followed_and_older_ones_are_not_obeyed(
        self, world: World
    ) -> None:
        gate = Chains(decisions(PIPELINE, world.key))
        for champion in ("linear@20", "linear@40"):
            world.decide("pinned", champion, chains=gate)
        scorer = ScorerProcess(world)
        scorer.follow()
        assert scorer.serve() == (0, 40)
        old = list(world.broker.records(PROMOTIONS.topic))
        world.broker.recreate(PROMOTIONS.topic)
        scorer.follow(RETRY_SECONDS)
        world.broker.append(PROMOTIONS.topic, old[0].value(), old[0].key(), 1)
        scorer.follow(RETRY_SECONDS)
        assert scorer.serve() == (0, 40)
        world.decide("pinned", "linear@30", chains=gate)
        scorer.follow(RETRY_SECONDS)
        assert scorer.serve() == (0, 30)

    def test_a_prediction_log_of_a_life_that_nobody_began_is_not_believed(self, world: World) -> None:
        score = small.score("linear", 0.1, 10**12) | {"epoch": 9}
        log = {
            "features": small.features(PIPELINE, "e", 1, distance=1.0, hour=1.0),
            "champion": score,
            "challengers": [],
        }
        world.broker.append("small.prediction-log", RECORDS.prediction_log.encode(log), b"e", 1)
        assert ScorerProcess(world).serve() == (0, 60)

    def test_a_first_start_serves_the_declared_model(self, tmp_path: Path) -> None:
        world = World(tmp_path)
        scorer = ScorerProcess(world)
        assert scorer.serve() == (0, 0)
        world.learn(10)
        scorer.look()
        assert scorer.serve() == (0, 10)

    def test_a_challenger_that_can_not_be_opened_does_not_answer(self, world: World) -> None:
        world.learn(model="slow")
        (world.folder / world.manifest().uri).unlink()
        scorer = ScorerProcess(world)
        assert scorer.serve() == (0, 60)
        log = RECORDS.prediction_log.decode(world.broker.records("small.prediction-log")[-1].value() or b"")
        assert [score["model"] for score in log["challengers"]] == ["baseline"]

    def test_the_gates_choice_that_can_not_be_opened_at_a_start_is_not_replaced(self, world: World) -> None:
        world.decide("pinned", "linear@20", pinned=True)
        running = ScorerProcess(world)
        assert running.serve() == (0, 20)
        (world.folder / world.manifest(1).uri).unlink()
        scorer = ScorerProcess(world)
        assert scorer.serve() is None
        assert running.serve() == (0, 20)

    def test_another_life_takes_over_and_the_old_one_never_comes_back(self, world: World) -> None:
        running = ScorerProcess(world)
        old = world.broker.records(MODELS.topic)[-1].value()
        world.shorten_examples(0)
        world.reset()
        world.learn(10)
        assert world.published()[6:] == [(1, 10)]
        world.broker.append(MODELS.topic, old, b"linear")
        running.look()
        assert running.serve() == (1, 10)
        assert ScorerProcess(world).serve() == (1, 10)


class TestReset:
    def test_another_life_begins_with_the_first_example_of_the_log(self, world: World) -> None:
        empty_the_store(world)
        world.broker.truncate(EXAMPLES, 30)
        world.reset()
        world.learn()
        assert world.published()[6:] == [(1, 60)], "not before it has learned as much as was published"
        assert (world.manifest().begin, world.manifest().examples) == (30, 30)
        assert world.score(world.manifest()) == world.folded(60, begin=30)
        world.learn(10)
        assert world.published()[7:] == [(1, 70)]

    def test_it_begins_while_the_learner_runs(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(learner, "LOOK_EVERY_SECONDS", 0.0)
        service = learner.build(PIPELINE, "linear", world.registry, world.broker, every_examples=10, every_seconds=1e9)
        loop = Loop(service, world.broker, max_delay=0.0, sleep=lambda _: None)
        consumer = world.broker.consumer(service.group, service.topics, loop.instance)
        producer = world.broker.producer(loop.instance)
        for _ in range(3):
            loop.run_once(consumer, producer)
        world.examples(10)
        loop.run_once(consumer, producer)
        world.reset()
        for _ in range(5):
            loop.run_once(consumer, producer)
        assert world.published()[6:] == [(0, 70), (1, 70)]
        world.examples(10)
        loop.run_once(consumer, producer)
        assert world.published()[8:] == [(1, 80)]

    def test_examples_that_were_created_again_begin_another_life_with_nothing_learned(self, world: World) -> None:
        world.shorten_examples(0)
        world.reset()
        world.learn()
        assert world.published()[6:] == [(1, 0)], "else scorers that start would wait for ever"
        world.learn(10)
        assert world.published()[6:] == [(1, 0), (1, 10)]
        assert world.score(world.manifest()) == world.folded(10)

    def test_a_life_goes_on_after_a_restart_though_the_decision_is_gone(self, world: World) -> None:
        world.reset()
        world.learn(10)
        world.broker.log[PROMOTIONS].clear()
        world.learn(10)
        assert world.published()[-1] == (1, 80)

    def test_with_another_key_it_begins_although_older_manifests_can_not_be_verified(self, world: World) -> None:
        world.key = Keyring.generate()
        world.reset()
        world.learn(10)
        assert world.published()[6:] == [(1, 70)]
