"""Candidates over corrected labels: started by a command or by a share, folded by their name, and done again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import small
from river_in_memory import drive
from signing_keys import KEY

from tidemill import Training
from tidemill.errors import DeclarationError
from tidemill.models.corrections import Corrections
from tidemill.models.fold import Fold
from tidemill.models.refold import FoldRange
from tidemill.offline.rebuild import Rebuild
from tidemill.offline.superseded import superseded
from tidemill.registry.decisions import Command, Decision, ModelRef, all_decisions, commands, decisions
from tidemill.registry.manifests import Manifest, Registry
from tidemill.registry.signing import Chains
from tidemill.registry.store import ArtifactStore
from tidemill.runtime.run import topic_table
from tidemill.stages.gate.service import PromotionGate
from tidemill.stages.learner import service as learner
from tidemill.stages.learner.service import Learner, candidate_names, example_reader, manifest_history
from tidemill.stream.api import Position, Record, TopicPartition
from tidemill.stream.group import Service
from tidemill.stream.memory import MemoryBroker, MemoryRecord
from tidemill.wire import topics
from tidemill.wire.records import Records

pytestmark = pytest.mark.slow

LABELS = small.LABELS.with_fields(corrections="30d")
PIPELINE = small.make(labels=LABELS, training=Training("slow", corrected=0.1, pause=0))
RECORDS = Records(PIPELINE)
EXAMPLES, MODELS, PROMOTIONS, COMMANDS = (
    topic.name("small") for topic in (topics.EXAMPLES, topics.MODELS, topics.PROMOTIONS, topics.COMMANDS)
)
X = {"distance": 120.0, "hour": 7.0}


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner, "MAX_CATCH_UP_EXAMPLES", 7)
    monkeypatch.setattr(learner, "MAX_GATHERED_EXAMPLES", 9)


class World:
    """Examples and corrections of them; a gate; learners of `slow`, and a registry."""

    def __init__(self, folder: Path) -> None:
        self.broker = MemoryBroker({name: partitions for _, name, partitions in topic_table(PIPELINE)})
        self.registry = Registry(PIPELINE, ArtifactStore(str(folder)), KEY)
        self.labels: list[float] = []
        self.sent = Chains(commands(PIPELINE, KEY))
        self.step: Any = None
        self.asked: list[tuple[int, int]] = []

    @property
    def end(self) -> int:
        return len(self.broker.log[TopicPartition(EXAMPLES, 0)])

    def example(self, many: int = 1) -> None:
        for _ in range(many):
            count, label = len(self.labels), (len(self.labels) * 7 % 13) - 6.0
            found = small.example(PIPELINE, f"e{count}", label, count, distance=count % 11 * 50.0, hour=count % 24.0)
            self.broker.append(EXAMPLES, RECORDS.example.encode(found), f"e{count}".encode(), count)
            self.labels.append(label)

    def correct(self, number: int, label: float) -> None:
        first = (number * 7 % 13) - 6.0
        correction = {
            "event_id": f"e{number}", "entity_id": "JFK", "event_time": number, "partition": 0, "offset": number, "label": label,
            "label_time": number + 5, "first_label": first, "replaced_label": self.labels[number],
        }  # fmt: skip
        self.labels[number] = label
        self.broker.append(EXAMPLES, RECORDS.correction.encode(correction), f"e{number}".encode(), number)

    def decided(self) -> list[Decision]:
        return all_decisions(PIPELINE, self.broker, decisions(PIPELINE, KEY))

    def gate(self, batch: int = 20) -> None:
        step = PromotionGate(PIPELINE, KEY, self.decided, lambda _: "")
        drive(Service("gate", "small.gate", [EXAMPLES, COMMANDS], step), self.broker, batch=batch)

    def ask(self, kind: str, model: str = "slow", begin: int = 0) -> Decision:
        self.gate()
        number = len(self.broker.log[TopicPartition(COMMANDS, 0)])
        command = Command(f"command-{number}", kind, ModelRef(model), 1, begin, "ann", "labels were wrong", 1)
        self.broker.append(COMMANDS, self.sent.sign(command, "status-0"), b"k", 1)
        self.gate()
        return self.decided()[-1]

    def _past(self, begin: int, end: int) -> Iterator[Sequence[Record]] | None:
        self.asked.append((begin, end))
        return example_reader(self.broker, PIPELINE)(begin, end)

    def learner(self) -> Learner:
        ticks = iter(range(10**9))  # a second passes at every look at the clock
        return Learner(
            PIPELINE, "slow", self.registry, manifest_history(self.broker, self.registry),
            candidate_names(self.broker, self.registry, "slow"), self._past, every_examples=10, every_seconds=1e9,
            clock=lambda: float(next(ticks)),
        )  # fmt: skip

    def learn(self) -> None:
        """Start a learner, and leave it when its candidates are level with their model."""
        self.step = self.learner()
        drive(Service("learner-slow", "small.learner.slow", [EXAMPLES], self.step), self.broker, batch=20)
        for _ in range(40):
            self.step.process([], lambda topic, value, key, *_: self.broker.append(topic, value, key, 1))

    def fold(self, name: str, end: int) -> Fold:
        """By definition: examples[begin..end), each with its last label before the offset in the name."""
        _, *numbers = name.split("~")
        begin, before = ([int(number) for number in numbers] + [0, 0])[:2]
        known, found = Corrections(RECORDS, before), Fold(PIPELINE, name)
        records = self.broker.records(EXAMPLES)
        for record in records[:before]:
            known.take(record)
        for record in records[begin:end]:
            if (example := RECORDS.example.of(record.value())) is not None:
                found.learn(known.apply(example), record.offset())
        return found

    def versions(self, name: str) -> list[Manifest]:
        found = [self.registry.decode(record.value() or b"") for record in self.broker.records(MODELS)]
        return [manifest for manifest in found if manifest.model == name]

    def check(self, name: str) -> list[int]:
        for manifest in self.versions(name):
            opened, fold = self.registry.open(manifest), self.fold(name, manifest.version)
            assert opened.model.predict_one(X) == fold.model.predict_one(X)
            assert (manifest.examples, manifest.begin) == (fold.examples, fold.begin)
            assert opened.metrics[0].get() == fold.metrics[0].get(), "judged by corrected labels as well"
        return [manifest.version for manifest in self.versions(name)]


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.example(40)
    for number, label in ((3, 50.0), (9, 60.0), (3, 70.0), (11, -60.0)):
        made.correct(number, label)
    made.example(20)
    made.correct(45, 80.0)
    return made


def test_a_model_that_runs_counts_corrections_and_learns_no_event_twice(world: World) -> None:
    step = world.learner()
    step.assign(TopicPartition(EXAMPLES, 0), Position(0))
    step.process(world.broker.records(EXAMPLES), small.Emitted())
    assert step.fold.examples == 60
    assert step.counts["corrected", "slow"] == 5
    assert not any(kind == "skipped" for kind, _ in step.counts)
    world.learn()
    assert len(world.check("slow")) >= 2


def test_a_command_folds_the_corrected_log_and_goes_on_with_what_comes(world: World) -> None:
    decision = world.ask("train_corrected")
    name = f"slow~0~{world.end}"
    assert (decision.kind, decision.candidate) == ("training", name)
    world.learn()
    world.example(15)
    world.correct(50, 90.0)  # after the decision: this one learned the first label, and is not told
    world.learn()
    assert len(world.check(name)) >= 3
    run = world.step.candidates[name]
    assert run.fold.examples == 75
    assert run.fold.model.predict_one(X) == world.fold(name, world.end).model.predict_one(X)
    others = {world.fold(other, world.end).model.predict_one(X) for other in (name, "slow", f"slow~0~{world.end}")}
    assert len(others) == 3, "else nothing would be seen here"


@pytest.mark.parametrize("stop", range(1, 12, 2))
def test_a_learner_that_is_killed_while_it_gathers_or_catches_up_ends_as_one_that_was_not(
    world: World, stop: int
) -> None:
    world.ask("train_corrected")
    (name,) = candidate_names(world.broker, world.registry, "slow")()
    for _ in range(3):
        step = world.learner()
        step.assign(TopicPartition(EXAMPLES, 0), Position(0))
        step.process(world.broker.records(EXAMPLES), lambda *_: None)
        for _ in range(stop):
            step.process([], lambda topic, value, key, *_: world.broker.append(topic, value, key, 1))
    world.learn()
    world.check(name)
    assert world.step.candidates[name].fold.model.predict_one(X) == world.fold(name, world.end).model.predict_one(X)


def test_every_version_is_rebuilt_equal_those_before_a_correction_with_the_labels_they_learned(world: World) -> None:
    world.learn()
    world.ask("train_corrected", begin=5)
    world.learn()
    for number in range(0, 60, 3):
        world.correct(number, 300.0 + number)
    world.learn()
    rebuild = Rebuild(PIPELINE, world.broker, world.registry)
    manifests, others = rebuild.every()
    assert len({manifest.model for manifest in manifests}) == 2
    assert others == 0
    assert {one.state for one in rebuild.run(manifests)} == {"equal"}


def test_superseded_examples_are_those_whose_last_label_is_not_what_was_learned(world: World) -> None:
    world.correct(9, (9 * 7 % 13) - 6.0)  # corrected back
    before, end = f"slow~5~{world.end}", world.end
    world.correct(20, 33.0)
    count = superseded(
        PIPELINE, world.broker,
        [FoldRange("slow", end), FoldRange("slow", 8), FoldRange("slow", end, 5), FoldRange(before, end, 5)],
    )  # fmt: skip
    assert list(count.values()) == [4, 1, 3, 1]  # 3, 11, 45 and 20; 3; all but 3; 20


def test_a_share_of_corrected_labels_starts_a_candidate_once(world: World) -> None:
    world.gate()
    assert world.decided() == []  # 5 of 60, and 10% were declared
    for number in (1, 2):
        world.correct(number, 7.0)
    world.gate(batch=1)
    (decision,) = world.decided()
    assert (decision.kind, decision.by, decision.examples) == ("training", "gate", world.end)
    assert decision.candidate == f"slow~0~{world.end}"
    assert "7 labels of 60 examples were corrected" in decision.why
    for number in range(4, 10):
        world.correct(number, 8.0)
    world.gate()
    assert len(world.decided()) == 1, "counted from the last one on, also by another process"
    world.correct(10, 8.0)
    world.gate()
    assert [one.candidate for one in world.decided()] == [decision.candidate, f"slow~0~{world.end}"]


@pytest.mark.parametrize("batch", [1, 3, 50])
def test_the_share_is_counted_once_whatever_the_batches_and_restarts(world: World, batch: int) -> None:
    """Decisions lie at the same examples as where one process reads all at once."""
    for number in range(20, 36):
        world.correct(number, 500.0 + number)
    records, codec = world.broker.records(EXAMPLES), decisions(PIPELINE, KEY)
    found, position = small.Emitted(), Position(0)

    def made() -> list[Decision]:
        return [codec.parse(record.value() or b"") for record in found.records]

    for at in range(0, len(records), batch):
        step = PromotionGate(PIPELINE, KEY, made, lambda _: "")
        step.assign(TopicPartition(EXAMPLES, 0), position)
        step.process(records[at : at + batch], found)
        metadata = step.commit_metadata(TopicPartition(EXAMPLES, 0)).encode()
        position = Position(min(at + batch, len(records)), metadata)
    # The 7th, 14th and 21st, of 60 examples: more than 10% each time.
    assert [one.examples for one in made()] == [world.end - 14, world.end - 7, world.end]


def test_a_command_is_refused_where_no_corrections_are_declared(tmp_path: Path) -> None:
    plain = small.make()
    step, out = PromotionGate(plain, KEY, tuple, lambda _: ""), small.Emitted()
    step.assign(TopicPartition(EXAMPLES, 0), Position(0))
    step.process([MemoryRecord(EXAMPLES, RECORDS.example.encode(small.example(PIPELINE, "a", 1.0)), offset=0)], out)
    command = Command("command-0", "train_corrected", ModelRef("slow"), 1, 0, "ann", "why", 1)
    step.process([MemoryRecord(COMMANDS, Chains(commands(plain, KEY)).sign(command, "status-0"), offset=0)], out)
    (decision,) = [step._chain.codec.parse(record.value() or b"") for record in out.records]
    assert decision.kind == "refused"
    assert "declares no corrections" in decision.why


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": small.LABELS.with_fields(corrections="a while")}, "labels.corrections"),
        ({"events": small.EVENTS.with_fields(corrections="30d")}, "events.corrections: '30d'"),
        ({"training": Training("slow", corrected=0.01)}, "training.corrected: 0.01"),
        ({"labels": LABELS, "training": Training("slow", corrected=2.0)}, "training.corrected"),
    ],
)
def test_a_wrong_declaration_is_refused_in_a_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DeclarationError, match=f"pipeline 'small': {message}"):
        small.make(**changes)


@pytest.mark.parametrize("name", ["slow~5", "slow~5~70", "slow"])
def test_names_of_candidates_are_read_as_they_are_made(name: str) -> None:
    assert PIPELINE.knows(name)
    assert ModelRef.of(f"{name}@12") == ModelRef(name, 12)
    assert PIPELINE.parts(name) == ("slow", 0 if name == "slow" else 5)
    assert PIPELINE.corrected_before(name) == (70 if name.endswith("~70") else 0)


@pytest.mark.parametrize("name", ["slow~", "slow~5~", "slow~5~x", "slow~~7", "slow~5~7~9", "other~5~7"])
def test_other_names_are_no_candidates(name: str) -> None:
    assert not PIPELINE.knows(name)
