"""The serving model: changes by the gate's decisions, versions that can't answer, and shares of the entities."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import small
from signing_keys import KEY
from test_gate import made

from tidemill.errors import BrokerError
from tidemill.keys import Keyring
from tidemill.models.fold import Fold
from tidemill.registry.decisions import GATE, NOBODY, Decision, ModelRef, all_decisions, decisions
from tidemill.registry.manifests import Manifest, Registry
from tidemill.registry.signing import Chains
from tidemill.registry.store import ArtifactStore
from tidemill.runtime.run import topic_table
from tidemill.stages.scorer.feed import RETRY_SECONDS, ModelFeed, ServingChange
from tidemill.stages.scorer.service import Scorer, share_of
from tidemill.stream.api import Position, TopicPartition
from tidemill.stream.memory import MemoryBroker, MemoryRecord
from tidemill.wire import topics
from tidemill.wire.records import Records

PIPELINE = made(None)
RECORDS = Records(PIPELINE)


class Says:
    """A model that always says the same, or raises."""

    def __init__(self, score: float | None) -> None:
        self.score = score

    def predict_proba_one(self, _: Any) -> dict[bool, float]:
        if self.score is None:
            raise ZeroDivisionError("nothing to divide by")
        return {True: self.score, False: 1 - self.score}


def scorer(pipeline: Any = PIPELINE, **models: float | None) -> Scorer:
    found = Scorer(pipeline)
    for version, (name, score) in enumerate(models.items(), 1):
        found.put(name, version, Says(score))
    return found


def score(step: Scorer, entity: str = "JFK", many: int = 1) -> list[dict[str, Any]]:
    """Return what goes into the prediction log."""
    emitted = small.Emitted()
    given = small.features(PIPELINE, "e", 1, carrier="UA") | {"entity_id": entity}
    step.process([MemoryRecord("small.features", RECORDS.features.encode(given), entity.encode())] * many, emitted)
    return [RECORDS.prediction_log.decode(record.value() or b"") for record in emitted.of("small.prediction-log")]


def answers(log: dict[str, Any]) -> list[tuple[str, int]]:
    return [(one["model"], one["version"]) for one in (log["champion"], *log["challengers"])]


class TestSeats:
    def test_another_model_serves_from_the_next_vector_on_and_the_old_one_shadows(self) -> None:
        step = scorer(linear=0.1, slow=0.2, third=0.3)
        step.change(ServingChange(ModelRef("slow")))
        (log,) = score(step)
        assert answers(log) == [("slow", 2), ("linear", 1), ("third", 3), ("baseline", 0)]
        assert log["champion"]["score"] == 0.2

    def test_a_version_that_is_held_serves_and_its_model_shadows_as_it_learns(self) -> None:
        step = scorer(linear=0.1, slow=0.2)
        step.change(
            ServingChange(
                ModelRef("linear", 7), {ModelRef("linear", 7): (7, Says(0.7)), ModelRef("slow", 5): (5, Says(0.5))}
            )
        )
        step.put("linear", 9, Says(0.9))
        (log,) = score(step)
        assert log["champion"] == {
            "model": "linear",
            "version": 7,
            "epoch": 0,
            "score": 0.7,
            "probabilities": {},
            "answered": True,
        }
        assert answers(log)[1:] == [("slow", 5), ("linear", 9), ("slow", 2), ("third", 0), ("baseline", 0)]

    def test_a_candidate_shadows_as_soon_as_it_has_a_version_and_goes_when_nobody_follows_it(self) -> None:
        step = scorer(linear=0.1)
        step.put("slow~300", 400, Says(0.4))
        assert ("slow~300", 400) not in answers(score(step)[0])
        step.change(ServingChange(ModelRef("linear"), follows=["slow~300"]))
        step.put("slow~300", 400, Says(0.4))
        assert ("slow~300", 400) in answers(score(step)[0])
        step.change(ServingChange(ModelRef("linear")))
        assert ("slow~300", 400) not in answers(score(step)[0])

    def test_what_a_model_is_judged_by_is_its_newest_version(self) -> None:
        example = small.example(PIPELINE, "e", True, 0, carrier="UA")  # type: ignore[arg-type]
        example["prediction"] |= {
            "champion": small.score("linear", 0.1, 7),
            "challengers": [small.score("linear", 0.9, 9)],
        }
        fold = Fold(PIPELINE, "linear")
        fold.learn(example, 0)  # type: ignore[arg-type]
        assert fold.metrics[0].get() == 1.0


class TestInstead:
    def test_a_version_that_can_not_answer_is_given_up_for_the_one_before(self) -> None:
        step = scorer(linear=0.1)
        step.put("linear", 2, Says(None))
        logs = score(step, many=3)
        assert [log["champion"]["version"] for log in logs] == [1, 1, 1]
        assert step.counts["model_loads", "given_up"] == 1
        step.put("linear", 3, Says(0.3))
        assert score(step)[0]["champion"]["version"] == 3

    @pytest.mark.parametrize("worse", [float("nan"), float("inf")])
    def test_a_score_that_is_no_number_is_no_answer(self, worse: float) -> None:
        step = scorer(linear=0.1)
        step.put("linear", 2, Says(worse))
        assert score(step)[0]["champion"]["score"] == 0.1

    def test_where_the_one_before_can_not_answer_either_it_is_the_vector_and_the_version_stays(self) -> None:
        step = scorer(linear=None)
        step.put("linear", 2, Says(None))
        assert score(step) == []
        assert step.counts["dead_letters", "model_failed"] == 1
        assert step.models["linear"].version == 2

    def test_the_declared_model_that_knows_nothing_is_no_help(self) -> None:
        step = scorer(linear=None)
        assert score(step) == []
        assert step.counts["model_loads", "given_up"] == 0


class TestShares:
    @pytest.mark.slow
    def test_an_entity_is_always_served_by_the_same_and_as_many_as_declared(self) -> None:
        step = scorer(made(None, shares={"slow": 0.2, "third": 0.1}), linear=0.1, slow=0.2, third=0.3)
        by = {entity: score(step, entity)[0]["champion"]["model"] for entity in map(str, range(4_000))}
        assert {entity: score(step, entity)[0]["champion"]["model"] for entity in ("1", "2", "3")}.items() <= by.items()
        shares = {name: count / len(by) for name, count in Counter(by.values()).items()}
        assert shares == pytest.approx({"linear": 0.7, "slow": 0.2, "third": 0.1}, abs=0.03)

    def test_whoever_serves_all_others_answer_too_and_once(self) -> None:
        step = scorer(made(None, shares={"slow": 0.5}), linear=0.1, slow=0.2)
        for entity in map(str, range(20)):
            assert sorted(answers(score(step, entity)[0])) == [
                ("baseline", 0),
                ("linear", 1),
                ("slow", 2),
                ("third", 0),
            ]

    def test_a_challenger_that_fails_leaves_its_entities_to_the_champion(self) -> None:
        step = scorer(made(None, shares={"slow": 1.0}), linear=0.1, slow=None)
        assert score(step)[0]["champion"]["model"] == "linear"

    def test_a_share_is_of_the_pipeline_and_uniform(self) -> None:
        places = [share_of("small", str(number)) for number in range(2_000)]
        assert sum(places) / 2_000 == pytest.approx(0.5, abs=0.02)
        assert share_of("small", "1") != share_of("other", "1")


class TestTheFeed:
    """Decisions on the topic, versions in the store, and what the scorer is given."""

    @pytest.fixture
    def registry(self, tmp_path: Path) -> Registry:
        return Registry(PIPELINE, ArtifactStore(str(tmp_path)), KEY)

    @pytest.fixture
    def broker(self) -> MemoryBroker:
        return MemoryBroker({name: partitions for _, name, partitions in topic_table(PIPELINE)})

    def publish(self, registry: Registry, broker: MemoryBroker, model: str, examples: int) -> Manifest:
        fold = Fold(PIPELINE, model)
        for number in range(examples):
            fold.learn(small.example(PIPELINE, "e", number % 3 == 0, number, carrier="UA"), number)  # type: ignore[arg-type]
        manifest = registry.publish(model, fold.snapshot(), tuple(fold.vectors))
        broker.append(topics.MODELS.name("small"), registry.encode(manifest), model.encode(), 1)
        return manifest

    def decide(self, broker: MemoryBroker, champion: ModelRef, keys: Keyring = KEY, **more: Any) -> None:
        decision = Decision(f"{time.time()}", "promoted", "ann", "", 1, 1, 1, 1, "", champion, champion, NOBODY, **more)
        chains = Chains(decisions(PIPELINE, keys))
        all_decisions(PIPELINE, broker, chains.codec, chains)
        broker.append(topics.PROMOTIONS.name("small"), chains.sign(decision, GATE), b"k", 1)

    def started(self, registry: Registry, broker: MemoryBroker) -> Scorer:
        """Return a scorer as a new process would be when its first batch comes."""
        feed = ModelFeed(registry, broker)
        feed._catch_up()
        step = Scorer(PIPELINE, feed.take)
        step.swap()
        return step

    def test_a_scorer_that_starts_seats_whom_the_last_decision_names(
        self, registry: Registry, broker: MemoryBroker
    ) -> None:
        self.publish(registry, broker, "linear", 5)
        self.publish(registry, broker, "linear", 9)
        self.decide(broker, ModelRef("slow"))
        self.decide(broker, ModelRef("linear", 5))
        step = self.started(registry, broker)
        assert (step.champion.name, step.champion.version) == ("linear", 5)
        assert step.models["linear"].version == 9

    @pytest.mark.slow
    def test_while_it_runs_it_follows(self, registry: Registry, broker: MemoryBroker) -> None:
        self.publish(registry, broker, "linear", 5)
        feed = ModelFeed(registry, broker)
        feed.start()
        step = Scorer(PIPELINE, feed.take)
        try:
            self.decide(broker, ModelRef("linear", 5))
            deadline = time.monotonic() + 20
            while step.champion.version != 5 or step.champion is step.models["linear"]:
                assert time.monotonic() < deadline
                step.swap()
                time.sleep(0.01)
        finally:
            feed.stop()

    def test_whom_nobody_can_open_does_not_serve(
        self, registry: Registry, broker: MemoryBroker, tmp_path: Path
    ) -> None:
        manifest = self.publish(registry, broker, "linear", 5)
        (tmp_path / manifest.uri).write_bytes(b"damaged")
        self.decide(broker, ModelRef("linear", 5))
        step = self.started(registry, broker)
        assert (step.champion.name, step.champion.version) == ("linear", 0)
        assert step.counts["model_loads", "refused"] == 2, "the version, and whom the gate chose"

    @pytest.mark.slow
    def test_whom_nobody_could_open_serves_as_soon_as_somebody_can(
        self, registry: Registry, broker: MemoryBroker, tmp_path: Path
    ) -> None:
        manifest = self.publish(registry, broker, "linear", 5)
        artifact = tmp_path / manifest.uri
        whole, now = artifact.read_bytes(), [0.0]
        artifact.write_bytes(b"damaged")
        self.decide(broker, ModelRef("linear", 5))
        feed = ModelFeed(registry, broker, clock=lambda: now[0])
        feed._catch_up()
        step = Scorer(PIPELINE, feed.take)
        models, promotions = (broker.follow(slot, broker.offset_range(slot)[1]) for slot in (
            TopicPartition(topics.MODELS.name("small"), 0), TopicPartition(topics.PROMOTIONS.name("small"), 0)
        ))  # fmt: skip
        for at in (RETRY_SECONDS, 2 * RETRY_SECONDS):
            now[0] = at
            feed._look(models, promotions)
        step.swap()
        assert step.champion.version == 0
        assert step.counts["model_loads", "refused"] == 2, "it is said once"
        artifact.write_bytes(whole)
        now[0] += RETRY_SECONDS
        feed._look(models, promotions)
        step.swap()
        assert (step.champion.name, step.champion.version) == ("linear", 5)

    @pytest.mark.slow
    def test_a_decision_is_not_lost_where_the_broker_is_away_when_it_comes(
        self, registry: Registry, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.publish(registry, broker, "linear", 5)
        now = [0.0]
        feed = ModelFeed(registry, broker, clock=lambda: now[0])
        feed._catch_up()
        step = Scorer(PIPELINE, feed.take)
        models, promotions = (
            broker.follow(TopicPartition(topic.name("small"), 0), 0) for topic in (topics.MODELS, topics.PROMOTIONS)
        )
        self.decide(broker, ModelRef("linear", 5))

        def away(_: object) -> tuple[int, int]:
            raise BrokerError("away")

        with monkeypatch.context() as patch:
            patch.setattr(broker, "offset_range", away)
            with pytest.raises(BrokerError):
                feed._look(models, promotions)
        now[0] += RETRY_SECONDS
        feed._look(models, promotions)
        step.swap()
        assert (step.champion.name, step.champion.version) == ("linear", 5)
        assert step.champion is not step.models["linear"]

    def test_a_forged_decision_seats_nobody(self, registry: Registry, broker: MemoryBroker) -> None:
        self.publish(registry, broker, "slow", 5)
        self.decide(broker, ModelRef("slow"), keys=Keyring.generate())
        assert self.started(registry, broker).champion.name == "linear"

    def test_a_champion_that_is_declared_no_more_does_not_serve(self, registry: Registry, broker: MemoryBroker) -> None:
        self.decide(broker, ModelRef("gone"))
        assert self.started(registry, broker).champion.name == "linear"

    def test_a_candidate_s_versions_are_opened(self, registry: Registry, broker: MemoryBroker) -> None:
        self.decide(broker, ModelRef("linear"), candidate="slow~2")
        self.publish(registry, broker, "slow~2", 6)
        feed = ModelFeed(registry, broker)
        feed._catch_up()
        step = Scorer(PIPELINE, feed.take)
        step.swap()
        assert step.models["slow~2"].version == 6


class TestAnotherLife:
    """A model that was folded again, where forgetting declares a shadow."""

    def step(self, shadow: int = 3) -> Scorer:
        step = Scorer(PIPELINE, shadow=shadow)
        step.put("linear", 10, Says(0.1))
        step.put("linear", 7, Says(0.7), epoch=1)
        return step

    def served(self, step: Scorer) -> tuple[int, int]:
        (log,) = score(step)
        return log["champion"]["epoch"], log["champion"]["version"]

    def test_it_answers_in_the_shadow_of_the_one_before_for_so_many_predictions(self) -> None:
        step = self.step()
        (log,) = score(step)
        assert answers(log)[:2] == [("linear", 10), ("slow", 0)]
        assert [(one["epoch"], one["score"]) for one in log["challengers"] if one["model"] == "linear"] == [(1, 0.7)]
        step.put("linear", 8, Says(0.8), epoch=1)
        assert answers(score(step)[0]).count(("linear", 8)) == 1, "as it learns on"
        assert [self.served(step) for _ in range(3)] == [(0, 10), (1, 8), (1, 8)]
        assert ("linear", 10) not in answers(score(step)[0])

    def test_a_model_without_a_version_or_a_shadow_takes_it_at_once(self) -> None:
        assert self.served(self.step(shadow=0)) == (1, 7)
        step = Scorer(PIPELINE, shadow=3)
        step.put("linear", 7, Says(0.7), epoch=1)
        assert self.served(step) == (1, 7)

    def test_where_records_were_erased_no_model_of_a_life_before_answers_again(self) -> None:
        step = self.step()
        assert self.served(step) == (0, 10)
        step.erased = 1
        step.assign(TopicPartition("small.features", 0), Position(0))
        assert (step.models["linear"].epoch, step.models["linear"].version) == (1, 7)
        assert step.models["linear"].before is None
        at_once = self.step(shadow=0)
        assert at_once.models["linear"].before is not None
        at_once.erased = 1
        at_once.swap()
        assert at_once.models["linear"].before is None
        at_once.put("linear", 9, Says(0.9), epoch=1)
        at_once.erased = 2
        at_once.swap()
        assert at_once.models["linear"].before[0] == 7, "it has learned nothing of what was erased"
