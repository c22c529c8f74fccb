"""The gate: a challenger is promoted when it is shown to be better, nowhere worse, and not by chance; and what people ask is done once."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import small
from crash import Bomb, Crash, Fragile
from river import compose, dummy, linear_model, metrics, optim, preprocessing
from river_in_memory import drive
from signing_keys import KEY

from tidemill import Gate, Monitor, Training, category, load, number
from tidemill.declare.pipeline import Pipeline
from tidemill.demo import data
from tidemill.errors import ArtifactError, DeclarationError
from tidemill.keys import Keyring
from tidemill.models.evidence import Differences, Terms
from tidemill.offline.backtest import Backtest
from tidemill.registry.alerts import MONITOR, alerts
from tidemill.registry.decisions import GATE as CHAIN
from tidemill.registry.decisions import (
    NOBODY,
    Command,
    Decision,
    EvidenceLine,
    ModelRef,
    all_decisions,
    commands,
    decisions,
)
from tidemill.registry.signing import UNSIGNED, Chains
from tidemill.runtime.run import topic_table
from tidemill.stages.gate.commands import carry_out
from tidemill.stages.gate.service import LOOK_EVERY_EXAMPLES, PromotionGate
from tidemill.stages.gate.standing import Standing
from tidemill.stages.gate.trial import Trial
from tidemill.stream.api import Position, TopicPartition, discard
from tidemill.stream.group import Service
from tidemill.stream.memory import MemoryBroker, MemoryRecord
from tidemill.wire import topics
from tidemill.wire.records import Records

GATE = Gate(examples=400, segments=["carrier"], worse=0.02, least=50, watch=1_000, round=5_000)
CARRIERS = ("UA", "DL", "B6")


def made(gate: Gate | None = GATE, **more: Any) -> Pipeline:
    return small.make(
        task="binary", request={"distance": number("distance"), "carrier": category("carrier")}, views=[],
        labels=replace(small.LABELS, value=lambda label: label["arr_delay"] > 15), monitor=Monitor(segments=["carrier"]),
        models={name: dummy.PriorClassifier() for name in ("linear", "slow", "third")}, gate=gate, **more,
    )  # fmt: skip


PIPELINE = made()


class _Raising(metrics.Accuracy):
    """Raises from the hundredth prediction on: more than a declaration is tried with."""

    def update(self, y_true: Any, y_pred: Any, w: float = 1.0) -> None:
        if self.cm.n_samples >= 99:
            raise ZeroDivisionError
        super().update(y_true, y_pred, w)


class World:
    """Examples of models that know as much of the labels as they are told to, and a gate over them."""

    def __init__(
        self, pipeline: Pipeline = PIPELINE, seed: int = 0, check: Callable[[ModelRef], str] = lambda _: "",
        now: Callable[[], float] | None = None,
    ) -> None:  # fmt: skip
        self.now = now or (lambda: 1e9 + self.count)
        self.pipeline, self.check, self.random = pipeline, check, random.Random(seed)
        self.broker = MemoryBroker({name: partitions for _, name, partitions in topic_table(pipeline)})
        self.alerts: Any = None
        self.writers: dict[str, Chains[Command]] = {}
        self.sealed, self.encode = decisions(pipeline, KEY), Records(pipeline).example.encode
        self.count = 0

    def examples(self, many: int, versions: dict[str, int] | None = None, **knows: float | dict[str, float]) -> None:
        """Add so many. `knows`: how far each model's score goes towards the label, from 0 to 1, or by carrier; below 0: away."""
        for _ in range(many):
            carrier, label = self.random.choice(CARRIERS), self.random.random() < 0.4
            found = small.example(self.pipeline, f"e{self.count}", label, self.count, carrier=carrier)
            scores = []
            for name, known in {"baseline": 0.0, **knows}.items():
                known = known.get(carrier, known["all"]) if isinstance(known, dict) else known
                value = 0.4 + known * (label - 0.4) + self.random.uniform(-0.1, 0.1)
                model, _, version = name.partition("_")
                scores.append(
                    small.score(
                        model, min(1.0, max(0.0, value)), int(version or 0) or (versions or {}).get(model, self.count)
                    )
                )
            found["prediction"] |= {"champion": scores[-1], "challengers": scores[:-1]}
            self.broker.append(topics.EXAMPLES.name("small"), self.encode(found), b"k", self.count)
            self.count += 1

    def service(self) -> Service:
        step = PromotionGate(
            self.pipeline, KEY, lambda: all_decisions(self.pipeline, self.broker, self.sealed), lambda ref: self.check(ref),
            past=self.past, clock=self.now,
        )  # fmt: skip
        names = [topic.name("small") for topic in (topics.EXAMPLES, topics.COMMANDS, topics.ALERTS)]
        return Service("gate", "small.gate", names, step)

    def past(self, topic: str, end: int) -> list[Any]:
        return self.broker.records(topic)[:end]

    def run(self, batch: int = 137) -> Any:
        return drive(self.service(), self.broker, batch=batch).processor

    def ask(
        self, kind: str, target: str = "", name: str = "", keys: Keyring = KEY, steps: int = 1, begin: int = 0
    ) -> None:
        command = Command(
            name or f"c{self.random.random()}",
            kind,
            ModelRef.of(target) if target else NOBODY,
            steps,
            begin,
            "ann",
            "it looks better",
            5,
        )
        writer = self.writers.setdefault(keys.signs_with, Chains(commands(self.pipeline, keys)))
        self.broker.append(topics.COMMANDS.name("small"), writer.sign(command, "status-0"), b"k", self.count)

    @property
    def decisions(self) -> list[Decision]:
        return all_decisions(self.pipeline, self.broker, self.sealed)

    @property
    def kinds(self) -> list[str]:
        return [decision.kind for decision in self.decisions]


class TestTheSequence:
    """What a challenger is promoted by is wrong as often as declared, however often one looks."""

    @staticmethod
    def alike(rng: np.random.Generator, count: int, phi: float) -> list[float]:
        found = [rng.standard_normal() / (1 - phi * phi) ** 0.5]
        for noise in rng.standard_normal(count - 1):
            found.append(phi * found[-1] + noise)
        return found

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["independent", "skewed", "alike"])
    def test_of_two_hundred_streams_of_equal_models_no_more_are_decided_than_the_rate_allows(self, name: str) -> None:
        rng, runs, count, rate = np.random.default_rng(7), 200, 6_000, 0.05
        make: Callable[[], list[float]] = {
            "independent": lambda: rng.standard_normal(count).tolist(),
            "skewed": lambda: (rng.exponential(1.0, count) ** 2 * rng.choice([-1, 1], count)).tolist(),
            "alike": lambda: self.alike(rng, count, 0.9),
        }[name]
        promoted = 0
        for _ in range(runs):
            found = Differences()
            for at, difference in enumerate(make(), 1):
                found.add(difference)
                interval = found.interval(Terms(rate, 1_000)) if at % LOOK_EVERY_EXAMPLES == 0 else None
                if interval and interval.low > 0:
                    promoted += 1
                    break
        assert promoted <= rate * runs

    def test_a_difference_that_is_there_is_found_and_the_interval_holds_it(self) -> None:
        rng, found = np.random.default_rng(3), Differences()
        for difference in rng.normal(0.1, 1.0, 20_000):
            found.add(float(difference))
        interval = found.interval(Terms(0.05, 1_000))
        assert interval is not None
        assert 0 < interval.low < 0.1 < interval.high

    def test_with_too_few_or_what_is_not_finite_nothing_is_said(self) -> None:
        found = Differences()
        for _ in range(99):
            found.add(1.0)
        assert found.interval(Terms(0.05, 100)) is None
        found.add(float("inf"))
        assert found.interval(Terms(0.05, 100)) is None


class TestDecisions:
    @pytest.mark.slow
    def test_a_better_challenger_is_promoted_watched_and_kept(self) -> None:
        world = World()
        world.examples(3_000, linear=0.2, slow=0.6, third=0.1)
        step = world.run()
        promoted = next(one for one in world.decisions if one.kind == "promoted")
        assert (promoted.before, promoted.champion, promoted.on_probation_against) == (
            ModelRef("linear"),
            ModelRef("slow"),
            ModelRef("linear"),
        )
        assert promoted.examples % LOOK_EVERY_EXAMPLES == 0
        assert promoted.by == "gate"
        total = promoted.evidence[0]
        assert (total.segment, total.questions) == ("all", promoted.examples)
        assert total.low is not None
        assert 0 < total.low < total.difference == pytest.approx(total.champion - total.challenger)
        assert sum(line.questions for line in promoted.evidence[1:]) == promoted.examples
        kept = next(one for one in world.decisions if one.kind == "kept")
        assert kept.examples == promoted.examples + GATE.watch
        assert (kept.champion, kept.on_probation_against, kept.since) == (ModelRef("slow"), NOBODY, promoted.examples)
        assert step.standing.champion == ModelRef("slow")

    @pytest.mark.slow
    def test_one_that_is_better_but_for_one_carrier_is_refused_with_the_evidence(self) -> None:
        world = World()
        world.examples(3_000, linear=0.2, slow={"all": 0.6, "DL": -0.2}, third=0.1)
        world.run()
        refused = [one for one in world.decisions if one.subject == ModelRef("slow")]
        assert [one.kind for one in refused] == ["refused"]
        assert "carrier DL" in refused[0].why
        lines = {line.segment: line for line in refused[0].evidence}
        assert lines["all"].difference > 0 > -GATE.worse > lines["carrier DL"].difference

    @pytest.mark.slow
    def test_one_that_is_worse_is_refused_once_a_round(self) -> None:
        world = World()
        world.examples(11_000, linear=0.4, slow=0.0)
        world.run()
        assert [one.examples // GATE.round for one in world.decisions if one.subject == ModelRef("slow")] == [0, 1, 2]
        assert set(world.kinds) == {"refused"}

    @pytest.mark.slow
    def test_the_margin_is_asked_for(self) -> None:
        for margin, expected in ((0.0, True), (0.5, False)):
            world = World(made(replace(GATE, margin=margin)))
            world.examples(3_000, linear=0.2, slow=0.6)
            world.run()
            assert ("promoted" in world.kinds) == expected

    @pytest.mark.slow
    def test_a_metric_is_asked_for(self) -> None:
        for margin, kind in ((0.001, "promoted"), (0.9, "refused")):
            world = World(made(replace(GATE, metric=metrics.ROCAUC(), metric_margin=margin)))
            world.examples(2_000, linear=0.1, slow=0.6)
            world.run()
            decision = next(one for one in world.decisions if one.subject == ModelRef("slow"))
            assert decision.kind == kind
            assert decision.metrics["challenger"] > decision.metrics["champion"]

    @pytest.mark.slow
    def test_a_metric_that_raises_is_named_and_ends_nobody(self) -> None:
        world = World(made(replace(GATE, metric=_Raising(), metric_margin=0.001)))
        world.examples(2_000, linear=0.1, slow=0.6)
        world.run()
        decision = next(one for one in world.decisions if one.subject == ModelRef("slow"))
        assert decision.kind == "refused"
        assert "_Raising has no number: it raised ZeroDivisionError" in decision.why
        assert decision.metrics == {}

    @pytest.mark.slow
    def test_where_people_confirm_it_is_proposed_once_and_nobody_moves(self) -> None:
        world = World(made(replace(GATE, automatic=False)))
        world.examples(3_000, linear=0.2, slow=0.6)
        world.run()
        assert world.kinds == ["proposed"]
        assert world.decisions[0].champion == ModelRef("linear")

    def test_without_a_gate_nothing_is_decided(self) -> None:
        world = World(made(None))
        world.examples(3_000, linear=0.0, slow=0.9)
        world.run()
        assert world.decisions == []

    def test_a_champion_that_turns_after_its_promotion_is_rolled_back(self) -> None:
        world = World()
        world.examples(700, linear=0.2, slow=0.6)
        world.run()
        assert world.kinds == ["promoted"]
        world.examples(900, linear=0.2, slow=-0.5)
        world.run()
        back = world.decisions[1]
        assert (back.kind, back.champion, back.before) == ("rolled_back", ModelRef("linear"), ModelRef("slow"))
        assert back.examples - world.decisions[0].examples < GATE.watch
        assert back.evidence[0].difference > 0

    @pytest.mark.slow
    def test_of_a_champion_that_collapses_the_last_good_version_serves(self) -> None:
        world = World(made(replace(GATE, automatic=False)))
        world.examples(2_500, linear=0.5)
        world.examples(1_500, linear=-0.5)
        world.run()
        back = next(one for one in world.decisions if one.kind == "rolled_back")
        assert back.champion == ModelRef("linear", 1_499), "of the middle of the last round that was good whole"
        assert back.examples <= 3_500

    @pytest.mark.slow
    def test_where_the_last_good_version_is_gone_that_is_said_once(self) -> None:
        world = World(made(replace(GATE, automatic=False)), check=lambda _: "its artifact is gone")
        world.examples(2_000, linear=0.5)
        world.examples(900, linear=-0.5)
        world.run()
        assert world.kinds == ["refused"]
        assert "its artifact is gone" in world.decisions[0].why

    @pytest.mark.slow
    def test_of_a_champion_that_never_did_better_who_served_before_takes_over(self) -> None:
        world = World(made(replace(GATE, automatic=False)))
        world.ask("promote", "third")
        world.run()
        world.examples(1_500, linear=0.5, third=0.0)
        world.examples(1_500, linear=0.5, third=-0.5)
        world.run()
        assert [one.champion for one in world.decisions if one.kind == "rolled_back"] == [ModelRef("linear")]

    def test_where_nobody_is_known_to_do_better_that_is_said(self) -> None:
        world = World(made(replace(GATE, automatic=False)))
        world.examples(900, linear=-0.5)
        world.run()
        assert world.kinds == ["refused"]
        assert "nobody served before" in world.decisions[0].why

    @pytest.mark.slow
    def test_a_better_one_is_not_promoted_from_questions_that_only_one_answered(self) -> None:
        world = World()
        world.examples(3_000, linear=0.2)
        world.examples(300, linear=0.2, slow=0.9)
        world.run()
        assert world.decisions == []


class TestRestarts:
    @pytest.mark.slow
    @pytest.mark.parametrize("pieces", [[293] * 13 + [71], [1_000] * 3 + [880], [1_499, 2_381]])
    def test_wherever_it_is_started_again_it_decides_the_same(self, pieces: Sequence[int]) -> None:
        def tell(world: World, many: int) -> None:
            for _ in range(many):
                at = world.count
                world.examples(1, linear=0.2, slow=0.6 if at < 1_100 else -0.4, third=0.1 if at < 2_600 else 0.9)

        whole, broken = World(), World()
        tell(whole, sum(pieces))
        whole.run()
        for piece in pieces:
            tell(broken, piece)
            broken.run()
        assert {"promoted", "rolled_back", "refused"} <= set(whole.kinds)
        bare = [replace(one, time=0, signature=UNSIGNED) for one in whole.decisions]
        assert [replace(one, time=0, signature=UNSIGNED) for one in broken.decisions] == bare

    @pytest.mark.slow
    @pytest.mark.parametrize("exactly_once", [True, False], ids=["exactly_once", "at_least_once"])
    def test_a_crash_before_or_after_any_decision_or_commit_changes_no_decision(self, *, exactly_once: bool) -> None:
        """The gate that takes over rebuilds its evidence from the log, and decides what the other one would have."""
        world = World()
        world.broker.exactly_once = exactly_once
        world.examples(700, linear=0.2, slow=0.6, third=-0.4)
        world.examples(900, linear=0.2, slow=-0.4, third=-0.4)
        sent, undisturbed = copy.deepcopy(world.broker), Bomb(None)

        def decided(bomb: Bomb) -> list[Decision]:
            world.broker = copy.deepcopy(sent)
            while True:
                try:
                    drive(world.service(), Fragile(world.broker, bomb), batch=230)
                except Crash:
                    continue
                return [replace(one, time=0, signature=UNSIGNED) for one in world.decisions]

        expected = decided(undisturbed)
        assert {"promoted", "rolled_back", "refused"} <= {one.kind for one in expected}
        moment, bomb = 0, Bomb(0)
        while (outcome := decided(bomb)) == expected and bomb.fired:
            moment += 1
            bomb = Bomb(moment)
        assert outcome == expected, f"crash at moment {moment}"
        assert moment > 2 * len(expected), "each was interrupted"

    def test_a_decision_whose_offsets_were_not_committed_is_not_made_again(self) -> None:
        world = World()
        world.examples(700, linear=0.2, slow=0.6)
        world.run()
        step: Any = world.service().processor
        slot = TopicPartition(topics.EXAMPLES.name("small"), 0)
        start = step.assign(slot, Position(100))
        assert start.live_from == world.decisions[0].examples == start.rebuild_from
        assert step.standing.champion == ModelRef("slow")

    @pytest.mark.slow
    @pytest.mark.parametrize("apart", [2, 3])
    def test_between_the_ends_of_transactions_it_looks_as_often_and_decides_the_same_after_a_restart(
        self, apart: int
    ) -> None:
        """In a quiet hour each example is a transaction of its own, and every second offset holds none."""
        world, slot = World(), TopicPartition(topics.EXAMPLES.name("small"), 0)
        world.examples(1_400, linear=0.2, slow=0.6, third=0.1)
        world.examples(1_400, linear=0.2, slow=-0.4, third=0.1)
        records = [
            MemoryRecord(slot.topic, record.value(), b"k", 0, None, 0, number * apart)
            for number, record in enumerate(world.broker.records(slot.topic))
        ]

        def told(*restarts: int) -> list[Decision]:
            found: list[Decision] = []
            step: Any = None

            def emit(_: str, data: bytes, *__: Any) -> None:
                found.append(world.sealed.decode(data))

            begin = 0
            for end in (*restarts, len(records) * apart):
                step = world.service().processor
                step.history = lambda: tuple(found)
                start = step.assign(slot, Position(begin))
                step.process([r for r in records if start.rebuild_from <= r.offset() < start.live_from], discard)
                step.process([r for r in records if start.live_from <= r.offset() < end], emit)
                begin = end
            return [replace(one, time=0, signature=UNSIGNED) for one in found]

        whole = told()
        assert {"promoted", "rolled_back"} <= {one.kind for one in whole}
        assert told(601, 1_999, 2_000, 2_750) == whole

    @pytest.mark.slow
    def test_a_refusal_whose_offsets_were_not_committed_is_told_once(self) -> None:
        """Without transactions what was decided may stand in the log, and its examples come again."""
        world, slot = World(), TopicPartition(topics.EXAMPLES.name("small"), 0)
        world.examples(2_000, linear=0.5, slow=0.1, third=0.1)
        world.run()
        assert world.kinds == ["refused", "refused"]
        step, emitted = world.service().processor, small.Emitted()
        step.assign(slot, Position(0))
        step.process(world.broker.records(slot.topic), emitted)
        assert emitted.records == []
        del world.broker.log[TopicPartition(topics.PROMOTIONS.name("small"), 0)][1:]  # the second one was lost
        step = world.service().processor
        step.assign(slot, Position(0))
        step.process(world.broker.records(slot.topic), emitted)
        assert len(emitted.records) == 1

    def test_what_a_stricter_gate_did_not_decide_a_milder_one_decides_after_a_restart(self) -> None:
        strict = World(made(replace(GATE, margin=0.5)))
        strict.examples(1_000, linear=0.2, slow=0.6)
        strict.run()
        assert strict.kinds == []
        strict.pipeline = PIPELINE
        strict.examples(200, linear=0.2, slow=0.6)
        strict.run()
        assert strict.kinds == ["promoted"]

    def test_a_champion_that_is_declared_no_more_gives_way_to_the_declared_one_as_in_the_scorer(self) -> None:
        world = World(made(None))
        world.ask("promote", "slow")
        world.ask("promote", "third")
        world.run()
        world.pipeline = replace(made(None), models={name: dummy.PriorClassifier() for name in ("linear", "slow")})
        assert world.run().standing.champion == ModelRef("linear")

    def test_where_people_alone_decide_a_restart_does_not_read_all_examples_again(self) -> None:
        world = World(made(None))
        world.examples(1_000, linear=0.2)
        start = world.service().processor.assign(TopicPartition(topics.EXAMPLES.name("small"), 0), Position(1_000))
        assert (start.rebuild_from, start.live_from) == (1_000 - LOOK_EVERY_EXAMPLES, 1_000)

    def test_examples_of_an_earlier_declaration_are_counted_and_passed_over(self) -> None:
        world = World()
        world.broker.append(topics.EXAMPLES.name("small"), b"\0\0\0\0\1other", b"k", 0)
        step = world.service().processor
        step.assign(TopicPartition(topics.EXAMPLES.name("small"), 0), Position(0))
        step.process(world.broker.records(topics.EXAMPLES.name("small")), small.Emitted())
        assert step.counts == {("skipped", "unknown_schema"): 1}


class TestARebuild:
    """A gate that starts again reads examples again: what it has decided by them is neither written nor decided again."""

    EXAMPLES = TopicPartition(topics.EXAMPLES.name("small"), 0)

    @staticmethod
    def eventful(pipeline: Pipeline = PIPELINE) -> World:
        """A world whose gate promotes, refuses, keeps and rolls back; whenever it decides, the clock is the same."""
        world = World(pipeline, now=lambda: 1e9)
        world.examples(700, linear=0.2, slow=0.6, third=-0.4)
        world.examples(1_300, linear=0.2, slow=0.6, third=-0.4)
        world.examples(900, linear=0.2, slow=-0.4, third=-0.4)
        return world

    @staticmethod
    def written(world: World) -> list[bytes]:
        return [record.value() or b"" for record in world.broker.records(topics.PROMOTIONS.name("small"))]

    def rebuilt(self, world: World, committed: int) -> PromotionGate:
        """Return a new gate, with the evidence of all that was committed."""
        step: Any = world.service().processor
        start = step.assign(self.EXAMPLES, Position(committed))
        records = world.broker.records(self.EXAMPLES.topic)
        step.process([one for one in records if start.rebuild_from <= one.offset() < start.live_from], discard)
        return step

    @pytest.mark.slow
    def test_started_anew_after_each_hundred_examples_it_writes_the_same_bytes(self) -> None:
        whole = self.eventful()
        whole.run()
        assert {"promoted", "kept", "rolled_back", "refused"} <= set(whole.kinds)
        broken = self.eventful()
        records = broken.broker.log[self.EXAMPLES]
        broken.broker.log[self.EXAMPLES] = records[:0]
        for end in range(0, len(records) + 100, 100):
            broken.broker.log[self.EXAMPLES] = records[:end]
            broken.run()
        assert self.written(broken) == self.written(whole), "signatures, sequences and hashes among them"

    @pytest.mark.slow
    @pytest.mark.parametrize("committed", [0, 650, 1_999, 2_900])
    def test_it_stands_where_the_log_does_and_says_nothing(self, committed: int) -> None:
        """Also where the group's offsets are older than the decisions, or gone: then examples come again as new ones."""
        world = self.eventful()
        expected = world.run().standing
        step = self.rebuilt(world, committed)
        assert step.standing == expected
        emitted = small.Emitted()
        step.process([one for one in world.broker.records(self.EXAMPLES.topic) if one.offset() >= committed], emitted)
        assert emitted.records == []
        assert step.standing == expected
        assert not [count for count in step.counts if count[0] == "decisions"]

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("before", "after", "slow", "kind"),
        [
            (replace(GATE, margin=0.9), GATE, 0.6, "promoted"),
            (replace(GATE, round=50_000), replace(GATE, round=1_000), 0.2, "refused"),
            (replace(GATE, watch=40_000, round=80_000), replace(GATE, watch=1_000, round=80_000), 0.6, "kept"),
        ],
        ids=["a smaller margin", "shorter rounds", "a shorter probation"],
    )
    def test_what_another_declaration_would_have_decided_is_decided_by_new_examples_alone(
        self, before: Gate, after: Gate, slow: float, kind: str
    ) -> None:
        world = World(made(before))
        world.examples(2_000, linear=0.2, slow=slow, third=0.2)
        world.run()
        decided, written = world.decisions, self.written(world)
        assert kind not in world.kinds
        world.pipeline = made(after)
        step = self.rebuilt(world, 2_000)
        assert list(step.standing.decisions) == decided
        assert step._chain.heads.get(CHAIN) == (step._chain.codec.head(decided[-1]) if decided else None)
        world.examples(1_000, linear=0.2, slow=slow, third=0.2)
        world.run()
        assert self.written(world)[: len(written)] == written
        new = world.decisions[len(decided) :]
        assert kind in {one.kind for one in new}
        assert all(one.examples > 2_000 for one in new)


class TestCommands:
    def test_a_person_promotes_and_the_reason_stands_in_the_decision(self) -> None:
        world = World(made(None))
        world.ask("promote", "slow", "first")
        world.run()
        (one,) = world.decisions
        assert (one.id, one.command, one.kind, one.by, one.why, one.champion, one.on_probation_against) == (
            "first", "first", "promoted", "ann", "it looks better", ModelRef("slow"), ModelRef("linear"),
        )  # fmt: skip

    def test_the_same_command_is_carried_out_once_also_after_a_restart(self) -> None:
        world = World(made(None))
        for _ in range(2):
            world.ask("promote", "slow", "again")
        world.run()
        world.ask("promote", "linear", "other")
        world.ask("promote", "slow", "again")
        world.run()
        assert [one.id for one in world.decisions] == ["again", "other"]

    def test_the_previous_one_and_the_third_back_come_again_with_one_command(self) -> None:
        world = World(made(None))
        for target in ("slow", "third@30", "third"):
            world.ask("promote", target)
        world.ask("rollback")
        world.ask("rollback", steps=3)
        world.run()
        assert [str(one.champion) for one in world.decisions] == ["slow", "third@30", "third", "third@30", "linear"]

    def test_the_first_champion_is_the_one_that_served_whatever_is_declared_later(self) -> None:
        world = World(made(None))
        world.ask("promote", "slow")
        world.run()
        world.pipeline = replace(made(None), champion="third")
        world.ask("rollback")
        world.run()
        assert world.decisions[-1].champion == ModelRef("linear")

    def test_there_is_no_champion_before_the_first(self) -> None:
        world = World(made(None))
        world.ask("rollback")
        world.ask("promote", "slow")
        world.ask("rollback", steps=2)
        world.run()
        assert world.kinds == ["refused", "promoted", "refused"]
        assert "no champion 2 back: earlier ones, the latest first: linear" in world.decisions[2].why

    @pytest.mark.slow
    def test_while_one_is_pinned_the_gate_leaves_it_there(self) -> None:
        world = World()
        world.ask("pin", "linear@7")
        world.run()
        world.examples(2_000, linear_7=0.2, slow=0.6, third=0.1)
        world.run()
        assert world.kinds == ["pinned"]
        assert world.decisions[0].pinned
        world.ask("unpin")
        world.run()
        world.examples(1_000, linear=0.2, slow=0.6)
        world.run()
        assert world.kinds[:3] == ["pinned", "unpinned", "promoted"]
        assert [str(one.champion) for one in world.decisions[:3]] == ["linear@7", "linear", "slow"]

    @pytest.mark.parametrize(
        ("kind", "target", "said"),
        [
            ("promote", "other", "can't serve: no"), ("promote", "linear@99", "can't serve: no"),
            ("pin", "linear", "a pin is of a version"),
            ("dance", "", "no command 'dance': expected promote, rollback, pin, unpin, train"),
            ("train", "other", "declares no model 'other': there are linear, slow, third"), ("train", "slow", "there are 0"),
        ],
    )  # fmt: skip
    def test_what_can_not_be_done_is_refused_and_says_why(self, kind: str, target: str, said: str) -> None:
        world = World(made(None), check=lambda _: "no")
        world.ask(kind, target)
        world.run()
        assert world.kinds == ["refused"]
        assert said in world.decisions[0].why

    def test_a_reset_raises_the_life_of_one_model_and_the_life_stays_in_every_later_decision(self) -> None:
        world = World(made(None))
        for _ in range(2):
            world.ask("reset", "slow")
            world.run()
        world.ask("reset", "linear")
        world.ask("promote", "slow")
        world.run()
        assert world.kinds == ["reset", "reset", "reset", "promoted"]
        assert [one.epochs for one in world.decisions] == [
            {"slow": 1}, {"slow": 2}, {"slow": 2, "linear": 1}, {"slow": 2, "linear": 1}
        ]  # fmt: skip
        assert world.run().standing.epochs == {"slow": 2, "linear": 1}

    def test_a_reset_begins_a_life_after_that_of_the_newest_manifest_where_decisions_are_gone(self) -> None:
        draft = carry_out(
            Standing.initial(PIPELINE),
            Command("c", "reset", ModelRef("slow"), 0, 0, "ann", "lost", 5), 0, {}, lambda _: "", lambda _: 3,
        )  # fmt: skip
        assert draft.changes == {"epochs": {"slow": 4}}

    def test_a_version_of_the_earlier_life_that_is_pinned_serves_no_more_after_a_reset(self) -> None:
        world = World(made(None))
        world.ask("pin", "linear@7")
        world.ask("reset", "linear")
        world.run()
        assert (world.decisions[-1].champion, world.decisions[-1].pinned) == (ModelRef("linear"), False)

    @pytest.mark.parametrize("target", ["other", "slow@7", ""])
    def test_only_a_declared_model_is_reset(self, target: str) -> None:
        world = World(made(None))
        world.ask("reset", target)
        world.run()
        assert world.kinds == ["refused"]
        assert "name a declared model, one of linear, slow, third" in world.decisions[0].why

    def test_evidence_about_the_earlier_life_does_not_count_after_a_reset(self) -> None:
        world = World()
        world.examples(300, linear=0.2, slow=0.6, third=0.1)
        world.run()
        world.ask("reset", "slow")
        assert world.run().standing.since == 300

    def test_who_serves_already_stays(self) -> None:
        world = World(made(None))
        world.ask("promote", "linear")
        world.ask("unpin")
        world.run()
        assert world.kinds == ["unchanged", "unchanged"]

    def test_one_that_is_signed_with_another_key_is_left(self) -> None:
        world = World(made(None))
        world.ask("promote", "slow", keys=Keyring.generate())
        world.run()
        assert world.decisions == []

    def test_a_person_s_promotion_is_watched_as_any_other(self) -> None:
        world = World()
        world.ask("promote", "slow")
        world.run()
        world.examples(900, linear=0.5, slow=-0.3)
        world.run()
        assert world.kinds[:2] == ["promoted", "rolled_back"]


class TestTraining:
    def alert(self, world: World, kind: str = "drift", state: str = "opened", opened_at: int = 1) -> None:
        record = {
            "id": f"{kind}:distance", "state": state, "by": "monitor", "kind": kind, "model": "", "segment": "", "feature": "distance",
            "figure": "psi", "value": 1.0, "limit": 0.25, "since": 0, "start": 0, "end": 1, "opened_at": opened_at,
            "message": "it has moved", "look_at": "", "evidence": {},
        }  # fmt: skip
        names = {field["name"] for field in Records(world.pipeline).alert.avro["fields"]}
        writer = world.alerts = world.alerts or Chains(alerts(world.pipeline, KEY))
        data = writer.sign({name: value for name, value in record.items() if name in names}, MONITOR)
        world.broker.append(topics.ALERTS.name("small"), data, b"k", world.count)

    def test_a_person_has_a_candidate_trained(self) -> None:
        world = World()
        world.examples(500, linear=0.2)
        world.run()
        world.ask("train", "slow", begin=-300)
        world.ask("train", "slow", begin=200)
        step = world.run()
        assert world.kinds == ["training", "unchanged"]
        assert world.decisions[0].candidate == step.standing.candidate == "slow~200"
        assert ModelRef("slow~200") in step.standing.challengers

    def test_of_a_candidate_s_version_that_serves_its_model_is_a_challenger(self) -> None:
        world = World()
        world.examples(500, linear=0.2)
        world.ask("promote", "slow~200@400")
        assert [str(ref) for ref in world.run().standing.challengers] == ["linear", "slow", "third", "slow~200"]

    @pytest.mark.slow
    def test_an_alert_begins_a_candidate_that_may_win(self) -> None:
        world = World(made(training=Training("slow", on=["drift"], examples=300, pause=1_000)))
        world.examples(800, linear=0.2, slow=0.1)
        world.run()
        self.alert(world, "rejected")
        self.alert(world, state="continuing")
        world.run()
        assert world.kinds == [kind for kind in world.kinds if kind == "refused"]
        self.alert(world)
        world.run()
        old = world.broker.records(topics.ALERTS.name("small"))[0]
        world.broker.append(old.topic(), old.value(), b"k", world.count)  # another kind, appended again
        self.alert(world)  # the same once more
        self.alert(world, opened_at=2)  # another, within the pause
        world.run()
        (training,) = [one for one in world.decisions if one.kind == "training"]
        assert training.candidate == "slow~500"
        assert "it has moved" in training.why
        world.examples(900, **{"linear": 0.2, "slow": 0.1, "slow~500": 0.7})
        step = world.run()
        assert step.standing.champion == ModelRef("slow~500")
        assert "promoted" in world.kinds

    @pytest.mark.slow
    @pytest.mark.parametrize("how", ["unsigned", "by another key", "altered", "of another pipeline", "acknowledged"])
    def test_an_alert_that_the_monitor_has_not_signed_so_begins_nothing(self, how: str) -> None:
        world = World(made(training=Training("slow", on=["drift"], examples=300, pause=1_000)))
        world.examples(800, linear=0.2, slow=0.1)
        world.run()
        self.alert(world)
        (signed,) = world.broker.log[TopicPartition(topics.ALERTS.name("small"), 0)]
        world.broker.log[TopicPartition(topics.ALERTS.name("small"), 0)].clear()
        codec = alerts(world.pipeline, KEY)
        alert = codec.parse(signed.value() or b"")
        others = alerts(replace(world.pipeline, name="other"), KEY)
        data = {
            "unsigned": lambda: codec.encode({**alert, "signature": UNSIGNED}),
            "by another key": lambda: alerts(world.pipeline, Keyring.generate()).sign(alert, chain=MONITOR),
            "altered": lambda: codec.encode({**alert, "opened_at": 2}),
            "of another pipeline": lambda: others.sign(alert, chain=MONITOR),
            "acknowledged": lambda: codec.sign(alert, kind="acknowledgement", chain=MONITOR),
        }[how]()
        world.broker.append(signed.topic(), data, b"k", world.count)
        world.run()
        assert "training" not in world.kinds
        world.broker.append(signed.topic(), signed.value(), b"k", world.count)
        world.run()
        assert "training" in world.kinds, "the monitor's own does"


class TestRecords:
    DECISION = Decision(
        "1-1", "promoted", "gate", "why", 1, 2, 3, 4, "", ModelRef("slow"), ModelRef("slow"), ModelRef("linear"),
        evidence=(EvidenceLine("all", 3, 0.2, 0.1, 0.1, 0.05, 0.15), EvidenceLine("carrier UA", 1, 0.2, 0.1, 0.1)),
    )  # fmt: skip

    def test_a_decision_comes_back_as_it_was(self) -> None:
        sealed = decisions(PIPELINE, KEY)
        assert replace(sealed.decode(sealed.sign(self.DECISION, chain=CHAIN)), signature=UNSIGNED) == self.DECISION

    @pytest.mark.slow
    def test_a_thousand_flipped_bits_are_a_thousand_refusals(self) -> None:
        sealed, rng = decisions(PIPELINE, KEY), random.Random(1)
        data = sealed.sign(self.DECISION, chain=CHAIN)
        for _ in range(1_000):
            at, bit = rng.randrange(len(data)), 1 << rng.randrange(8)
            corrupted = data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]
            with pytest.raises(ArtifactError):
                sealed.decode(corrupted)

    def test_a_forged_decision_is_passed_over(self) -> None:
        world = World()
        name = topics.PROMOTIONS.name("small")
        world.broker.append(name, decisions(PIPELINE, Keyring.generate()).sign(self.DECISION, chain=CHAIN), b"k", 1)
        assert world.decisions == []
        assert world.run().standing.champion == ModelRef("linear")

    @pytest.mark.parametrize(
        "text", ["", "Linear", "linear@", "linear@x", "linear@1@2", "a b", "linear~x", "linear@١", f"linear~{10**20}"]
    )
    def test_a_seat_is_a_model_or_a_version_of_it(self, text: str) -> None:
        with pytest.raises(ValueError, match="MODEL or MODEL@VERSION"):
            ModelRef.of(text)

    def test_seats_are_said_as_they_are_written(self) -> None:
        for text in ("linear", "linear@12", "linear~500", "linear~500@700"):
            assert str(ModelRef.of(text)) == text


class TestTheDeclaration:
    @pytest.mark.parametrize(
        ("gate", "said"),
        [
            (replace(GATE, rate=0.9), "gate.rate: 0.9 where a number from 1e-09 to 0.5"),
            (replace(GATE, examples=10), "gate.examples: 10 where"),
            (replace(GATE, watch=1_050), "multiple of 100"),
            (replace(GATE, segments=["distance"]), "gate.segments: 'distance' is no category"),
            (replace(GATE, metric=metrics.ROCAUC), "gate.metric"), (replace(GATE, margin="1"), "gate.margin"),
            ("yes", "where a Gate(...) or None was expected"),
        ],
    )  # fmt: skip
    def test_what_makes_no_sense_is_said(self, gate: Any, said: str) -> None:
        with pytest.raises(DeclarationError) as error:
            made(gate)
        assert said in str(error.value)

    def test_an_anomaly_has_no_loss_and_so_no_gate(self) -> None:
        from river import anomaly

        labels = replace(small.LABELS, value=lambda label: label["arr_delay"] > 15)
        with pytest.raises(DeclarationError, match="tidemill models promote"):
            small.make(task="anomaly", labels=labels, models={"a": anomaly.HalfSpaceTrees()}, champion="a", gate=Gate())

    @pytest.mark.parametrize(
        ("more", "said"),
        [
            ({"training": Training("other")}, "training.model: 'other'"), ({"training": Training("slow", on=["rain"])}, "training.on"),
            ({"shares": {"other": 0.1}}, "shares: 'other'"), ({"shares": {"slow": 1.5}}, "shares['slow']: 1.5"),
            ({"shares": {"slow": 0.6, "third": 0.6}}, "together they are 1.2"),
        ],
    )  # fmt: skip
    def test_training_and_shares_are_checked(self, more: dict[str, Any], said: str) -> None:
        with pytest.raises(DeclarationError) as error:
            made(**more)
        assert said in str(error.value)


def classifier(rate: float) -> Any:
    categories = compose.SelectType(str) | preprocessing.OneHotEncoder()
    numbers = compose.SelectType(float) | preprocessing.StandardScaler()
    return (categories + numbers) | linear_model.LogisticRegression(optim.SGD(rate))


class TestFlights:
    """The first ten days of January, by backtest: the gate is one of its steps."""

    @pytest.mark.slow
    def test_a_model_that_learns_too_fast_is_replaced_and_what_is_served_changes(self) -> None:
        flights = data.flights((1,), "scheduled", 8)
        models = {"fast": classifier(0.1), "calm": classifier(0.003)}
        pipeline = replace(
            load("plain"), name="gated", models=models, champion="fast", gate=Gate(segments=["carrier"], worse=0.1)
        )
        run, served = Backtest(pipeline), []
        run.predictions = lambda log: served.append(log["champion"]["model"])
        report = run.run([flight.event for flight in flights], data.labels(flights))
        promoted = next(one for one in report.decisions if one.kind == "promoted")
        assert promoted.champion == ModelRef("calm")
        assert promoted.evidence[0].champion > promoted.evidence[0].challenger
        first = served.index("calm")
        assert set(served[:first]) == {"fast"}
        assert set(served[first:]) == {"calm"}


@pytest.mark.parametrize("untaught", ["linear", "slow"])
def test_a_model_that_has_learned_nothing_is_no_opponent(untaught: str) -> None:
    for version, verdict in ((0, ""), (1, "better")):
        trial = Trial(PIPELINE, GATE, ModelRef("linear"), ModelRef("slow"), Terms(0.05, 10))
        for at in range(300):
            example = small.example(PIPELINE, "e", at % 2, 0)
            by = {name: version if name == untaught else at for name in ("linear", "slow")}
            right = 0.8 if at % 2 else 0.2
            trial.take(example, [small.score("linear", 0.5, by["linear"]), small.score("slow", right, by["slow"])])  # type: ignore[arg-type,list-item]
        assert trial.outcome().verdict == verdict
        assert ("has learned nothing in 300 questions" in trial.outcome().why) == (version == 0)


@pytest.mark.parametrize("untaught", ["linear", "slow"])
def test_what_a_model_answered_before_it_had_learned_anything_decides_nothing(untaught: str) -> None:
    for since, verdict in ((100, "better"), (200, "")):
        trial = Trial(PIPELINE, GATE, ModelRef("linear"), ModelRef("slow"), Terms(0.05, 10))
        for at in range(300):
            example = small.example(PIPELINE, "e", at % 2, 0)
            by = {name: at + 1 if name != untaught or at >= since else 0 for name in ("linear", "slow")}
            right = 0.8 if at % 2 else 0.2
            trial.take(example, [small.score("linear", 0.5, by["linear"]), small.score("slow", right, by["slow"])])  # type: ignore[arg-type,list-item]
        assert trial.outcome().verdict == verdict
        assert (f"{untaught} had learned nothing in 200 of 300 questions" in trial.outcome().why) == (not verdict)


def test_a_question_without_an_answer_is_no_question() -> None:
    trial = Trial(PIPELINE, GATE, ModelRef("linear"), ModelRef("slow"), Terms(0.05, 10))
    for at in range(20):
        scores = [small.score("linear", 0.4, 1), small.score("slow", 0.5, 1) | {"answered": at % 2 == 0}]
        trial.take(small.example(PIPELINE, "e", True, 0), scores)  # type: ignore[arg-type]
    assert trial.questions == 10


def test_a_trial_counts_values_of_a_segment_that_are_too_many_together() -> None:
    trial = Trial(PIPELINE, GATE, ModelRef("linear"), ModelRef("slow"), Terms(0.05, 10))
    for number_ in range(300):
        found = small.example(PIPELINE, "e", True, 0, carrier=f"c{number_}")  # type: ignore[arg-type]
        trial.take(found, [small.score("linear", 0.4), small.score("slow", 0.6)])  # type: ignore[arg-type,list-item]
    assert len(trial.evidence()) <= 52
    assert sum(line.questions for line in trial.evidence()[1:]) == 300
