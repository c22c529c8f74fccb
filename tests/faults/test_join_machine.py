"""The joiner under everything that can happen to it, in any order: a state machine that Hypothesis drives.

Predictions and labels are appended to the two logs; the real joiner reads them under the real loop, in interleavings and
batches of any size; it is killed and rebuilt, its commits fail before and after they are made. After every step what it
has committed is held to the join's definition, computed by brute force from how far each log was read.
"""

from __future__ import annotations

import contextvars
import dataclasses
import functools
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from join_definition import Asked, Make, T, Told, by_definition, held, highest, three_of_four

from tidemill import Monitor, load, number
from tidemill.errors import Aborted
from tidemill.stages.joiner import service as joiner
from tidemill.stages.joiner import stored_join
from tidemill.stages.joiner.join import Join
from tidemill.stream.api import TopicPartition
from tidemill.stream.lmdb_state import LmdbState
from tidemill.stream.loop import Loop
from tidemill.stream.memory import MemoryBroker, MemoryConsumer
from tidemill.wire import topics
from tidemill.wire.records import Records

#: Where the states on disk are, for the machine that Hypothesis makes.
FOLDER: contextvars.ContextVar[Path] = contextvars.ContextVar("folder")
PIPELINE = dataclasses.replace(
    load("delays"),
    rules=[],
    label_timeout=f"{T}ms",
    partitions=1,
    request={"distance": number("distance")},
    monitor=Monitor(),
)
#: How long labels are corrected, and the pipeline that declares it.
CORRECTIONS = 25
CORRECTED = dataclasses.replace(PIPELINE, labels=PIPELINE.labels.with_fields(corrections=f"{CORRECTIONS}ms"))
RECORDS = Records(PIPELINE)
LOG, LABELS = TopicPartition("delays.prediction-log", 0), TopicPartition("delays.labels.valid", 0)
OUTPUTS = [t.name(PIPELINE.name) for t in (topics.EXAMPLES, topics.EXPIRED, topics.DLQ)]
REASONS = ("duplicate_label", "contradictory_label", "unmatched_label")


@functools.cache
def prediction(asked: Asked, offset: int) -> bytes:
    features = {
        "event_id": asked.id, "entity_id": "JFK", "event_time": asked.time, "partition": 0, "offset": offset, "partial": False,
        "entities": {}, "as_of": {}, "stale": [],
        "vector": {"distance": 1.0},
    }  # fmt: skip
    score = {"model": "linear", "version": 0, "epoch": 0, "score": 0.5, "probabilities": {}, "answered": True}
    return RECORDS.prediction_log.encode({"features": features, "champion": score, "challengers": []})


class Crash(Exception):  # noqa: N818  it is no error of anybody's
    """The process is gone."""


class Interleaving(MemoryConsumer):
    """Reads its slots in any interleaving, as Kafka may."""

    def poll(self, limit: int, timeout: float) -> list[Any]:
        if self._revoked or self._assigned:
            return []
        assert isinstance(self.broker, Broker)
        found = []
        for record in self.broker.interleaved({s: (at, len(self.broker.log[s])) for s, at in self._at.items()}):
            if len(found) == limit:
                break
            found.append(record)
            self._at[TopicPartition(record.topic(), record.partition())] = record.offset() + 1
        return found


class Broker(MemoryBroker):
    """A broker whose readers see any interleaving, and whose commits fail when they are told to."""

    def __init__(self) -> None:
        super().__init__(dict.fromkeys([LOG.topic, LABELS.topic, *OUTPUTS], 1))
        self.random = random.Random(0)
        self.fault = ""

    def interleaved(self, ranges: Mapping[TopicPartition, tuple[int, int]]) -> Iterator[Any]:
        turns = [slot for slot, (begin, end) in sorted(ranges.items()) for _ in range(begin, end)]
        self.random.shuffle(turns)
        at = {slot: begin for slot, (begin, _) in ranges.items()}
        for slot in turns:
            yield self.log[slot][at[slot]]
            at[slot] += 1

    def read(self, ranges: Mapping[TopicPartition, tuple[int, int]]) -> Iterator[list[Any]]:
        for record in self.interleaved(ranges):
            yield [record]

    def consumer(self, group: str, topics: Sequence[str], instance: str) -> Interleaving:
        return Interleaving(self, group, topics, instance)

    def producer(self, name: str, *rest: Any) -> Any:
        made = super().producer(name, *rest)
        commit = made.commit

        def faulty(*arguments: Any) -> None:
            fault, self.fault = self.fault, ""
            if fault == "before":
                raise Crash
            if fault == "aborted":
                raise Aborted("the broker said so")
            commit(*arguments)
            if fault == "after":
                raise Crash

        made.commit = faulty
        return made


def expected_of(
    log: Sequence[Asked], labels: Sequence[Told], make: Make, corrections: int = 0
) -> tuple[Counter[Any], int, int]:
    """Return the definition's outcomes as the topics show them, how many events wait for a label, how many labels wait."""
    outcomes, pending, waiting = by_definition(log, labels, make, corrections)

    def shown(kind: str, first: int, *second: int) -> tuple[Any, ...]:
        if kind == "repeated":
            return "duplicate_event", LOG.topic, first
        if kind == "unmatched":
            return "unmatched_label", LABELS.topic, first
        if kind == "duplicate":
            same = labels[second[0]].value == labels[first].value
            return "duplicate_label" if same else "contradictory_label", LABELS.topic, first
        if kind == "corrected":
            label = labels[first]
            return kind, second[0], label.time, label.value, labels[second[1]].value
        if kind == "joined":
            return kind, first, labels[second[0]].time, labels[second[0]].value
        return kind, first

    return Counter(shown(*outcome) for outcome in outcomes.elements()), len(pending), len(waiting)


IDS = st.sampled_from("abcdefgh")
JITTER = st.integers(0, 4) | st.sampled_from([0, T, T + 1, 3 * T])
VALUES = st.sampled_from([0.0, 30.0])
SEEDS = st.integers(0, 2**32)
BATCH = st.integers(1, 8) | st.just(10_000)


class JoinMachine(RuleBasedStateMachine):
    seen: ClassVar[Counter[str]] = Counter()
    """What happened over all runs: the test asserts that each kind of thing did."""

    @initialize(make=st.sampled_from([highest, three_of_four]), on_disk=st.booleans(), corrected=st.booleans())
    def begin(self, make: Make, on_disk: bool, corrected: bool) -> None:
        self.make, self.on_disk, self.corrected = make, on_disk, corrected
        self.folder, self.opened = Path(tempfile.mkdtemp(dir=FOLDER.get())), list[LmdbState]()
        self.now = 100
        self.asked: list[Asked] = []
        self.told: list[Told] = []
        self.strangers = 0
        self.broker = Broker()
        self.start()

    def start(self) -> None:
        """Be a new process."""
        for state in self.opened:
            state.close()  # as the end of its process does it: what was not saved is gone
        self.opened.clear()
        service = joiner.build(
            CORRECTED if self.corrected else PIPELINE, self.make, self.open if self.on_disk else None
        )
        self.loop = Loop(service, self.broker, max_delay=0.0, sleep=lambda _: None)
        self.producer = self.broker.producer(self.loop.instance)
        self.consumer = self.broker.consumer(service.group, service.topics, self.loop.instance)

    def open(self, partition: int) -> LmdbState:
        self.opened.append(LmdbState(self.folder / str(partition)))
        return self.opened[-1]

    # What the world does.

    def ask(self, asked: Asked) -> None:
        self.broker.append(LOG.topic, prediction(asked, len(self.asked)), asked.id.encode(), 1)
        self.asked.append(asked)

    def tell(self, told: Told, kind: str) -> None:
        value = {"flight_id": told.id, "landed_at": told.time, "arr_delay": told.value}
        self.broker.append(LABELS.topic, RECORDS.label.encode(value), told.id.encode(), 1)
        self.told.append(told)
        self.seen[kind] += 1

    @rule(name=IDS, late=JITTER)
    def predict(self, name: str, late: int) -> None:
        self.ask(Asked(name, self.now - late))

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def predict_again(self, data: st.DataObject) -> None:
        self.ask(data.draw(st.sampled_from(self.asked)))

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), after=st.integers(-2, T), value=VALUES)
    def label_in_time(self, data: st.DataObject, after: int, value: float) -> None:
        of = data.draw(st.sampled_from(self.asked[-8:]))
        self.tell(Told(of.id, of.time + after, value), "in time")

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), after=st.integers(T + 1, 3 * T), value=VALUES)
    def label_late(self, data: st.DataObject, after: int, value: float) -> None:
        of = data.draw(st.sampled_from(self.asked))
        self.tell(Told(of.id, of.time + after, value), "late")

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), after=st.integers(0, T), value=VALUES, later=st.sampled_from([0, 0, 1, T]))
    def label_doubled(self, data: st.DataObject, after: int, value: float, later: int) -> None:
        of = data.draw(st.sampled_from(self.asked[-4:]))
        self.tell(Told(of.id, of.time + after, value), "in time")
        self.tell(Told(of.id, of.time + after + later, value), "doubled")

    @precondition(lambda self: self.told)
    @rule(data=st.data())
    def label_doubled_long_after(self, data: st.DataObject) -> None:
        self.tell(data.draw(st.sampled_from(self.told)), "doubled")

    @precondition(lambda self: self.told)
    @rule(data=st.data(), after=st.integers(0, 3))
    def label_contradictory(self, data: st.DataObject, after: int) -> None:
        first = data.draw(st.sampled_from(self.told[-4:]))
        self.tell(Told(first.id, first.time + after, 30.0 - first.value), "contradictory")

    @precondition(lambda self: self.told)
    @rule(data=st.data(), after=st.sampled_from([1, T, CORRECTIONS, CORRECTIONS + 1]), value=VALUES)
    def label_corrected(self, data: st.DataObject, after: int, value: float) -> None:
        first = data.draw(st.sampled_from(self.told[-8:]))
        self.tell(Told(first.id, first.time + after, value), "corrected late")

    @rule(late=JITTER, value=VALUES)
    def label_unknown(self, late: int, value: float) -> None:
        self.strangers += 1
        self.tell(Told(f"nobody{self.strangers}", self.now - late, value), "unknown")

    @rule(by=st.sampled_from([1, 3, T, T + 1, 2 * T + 1]))
    def advance(self, by: int) -> None:
        self.now += by

    # What happens to the joiner.

    def turn(self, seed: int, batch: int = 10_000) -> None:
        self.broker.random, self.loop.max_batch = random.Random(seed), batch
        self.loop.run_once(self.consumer, self.producer)

    @rule(seed=SEEDS, batch=BATCH)
    def read(self, seed: int, batch: int) -> None:
        self.turn(seed, batch)

    @rule()
    def crash(self) -> None:
        self.start()
        self.seen["crash"] += 1

    @rule(seed=SEEDS, batch=BATCH, fault=st.sampled_from(["before", "after", "aborted"]))
    def fail(self, seed: int, batch: int, fault: str) -> None:
        while not self.loop.ready:
            self.turn(seed)  # the first turn of a process takes over, no more
        self.broker.fault = fault
        try:
            self.turn(seed, batch)
        except Crash:
            self.start()
            self.seen[fault] += 1
        else:
            self.seen[fault] += not self.broker.fault
        self.broker.fault = ""

    @precondition(lambda self: self.on_disk)
    @rule(every=st.sampled_from([0.0, 1e9]))
    def save(self, every: float) -> None:
        """Save with each commit from now on, or never."""
        stored_join.SAVE_SECONDS = every
        self.seen["saved"] += not every

    @precondition(lambda self: self.on_disk)
    @rule(gone=st.sampled_from(["all", "cut", "another boot"]))
    def lose_state(self, gone: str) -> None:
        """The process ends, and what it had saved is gone, or damaged."""
        for state in self.opened:
            state.close()
        file, boot = self.folder / "0" / "data.mdb", self.folder / "0" / "boot"
        if gone == "all":
            shutil.rmtree(self.folder, ignore_errors=True)
        elif gone == "cut" and file.exists():
            file.write_bytes(b"")
        elif boot.exists():
            boot.write_text("another")
        self.start()
        self.seen["state lost"] += 1

    @rule(seed=SEEDS)
    def long_after(self, seed: int) -> None:
        """Time moves on for everybody: what was kept is let go, however it all went before."""
        for step in range(6):
            self.now += 10 * T if step < 3 else 0  # at the end the watermarks have reached the last records
            self.strangers += 1
            self.ask(Asked(f"later{self.strangers}", self.now))
            self.tell(Told(f"nobody{self.strangers}", self.now, 0.0), "unknown")
        for _ in range(3):
            self.turn(seed)
        assert self.positions() == (len(self.asked), len(self.told))
        assert self.on_disk or held(self.join) <= 40
        if self.on_disk:
            self.seen["on disk"] += 1
            assert sum(rows for name, rows in self.opened[-1].rows().items() if name != "state") <= 40
        assert (self.join.pending, self.join.waiting_labels) == (4, 4)
        self.seen["flat"] += 1

    # What must hold.

    @property
    def join(self) -> Join:
        return self.loop.processor.joins[0]  # type: ignore[attr-defined,no-any-return]

    def positions(self) -> tuple[int, int]:
        committed = self.broker.groups[self.loop.service.group].committed
        return tuple(committed[slot].offset if slot in committed else 0 for slot in (LOG, LABELS))  # type: ignore[return-value]

    def outcomes(self) -> Counter[Any]:
        out: Counter[Any] = Counter()
        for record in self.broker.records(OUTPUTS[0]):
            if (correction := RECORDS.correction.of(record.value())) is not None:
                of, *rest = (correction[name] for name in ("offset", "label_time", "label", "replaced_label"))
                out["corrected", of, *rest] += 1
                continue
            example = RECORDS.example.decode(record.value() or b"")
            out["joined", example["prediction"]["features"]["offset"], example["label_time"], example["label"]] += 1
        for record in self.broker.records(OUTPUTS[1]):
            out["expired", RECORDS.prediction_log.decode(record.value() or b"")["features"]["offset"]] += 1
        for record in self.broker.records(OUTPUTS[2]):
            said = {name: text.decode() for name, text in record.headers() or []}
            source = TopicPartition(said["__connect.errors.topic"], 0)
            offset = int(said["__connect.errors.offset"])
            assert record.value() == self.broker.log[source][offset].value(), "byte for byte"
            out[said["tidemill.reason"], source.topic, offset] += 1
        return out

    @invariant()
    def what_is_committed_is_what_the_definition_says(self) -> None:
        if not hasattr(self, "broker"):
            return
        log, labels = self.positions()
        out = self.outcomes()
        expected, pending, waiting = expected_of(
            self.asked[:log], self.told[:labels], self.make, CORRECTIONS * self.corrected
        )
        assert out == expected
        kinds = Counter(outcome[0] for outcome in out.elements())  # the same correction may come twice, there and back
        assert {n for outcome, n in out.items() if outcome[0] != "corrected"} <= {1}
        assert (
            len({outcome[1] for outcome in out if outcome[0] in ("joined", "expired")})
            == kinds["joined"] + kinds["expired"]
        )
        if self.loop.ready:  # what it holds in memory as well
            assert (self.join.pending, self.join.waiting_labels) == (pending, waiting)
            assert log == kinds["joined"] + kinds["expired"] + self.join.pending + kinds["duplicate_event"]
            refused = sum(kinds[r] for r in REASONS)
            assert labels == kinds["joined"] + kinds["corrected"] + refused + self.join.waiting_labels
        for kind in kinds:
            self.seen[kind] += 1

    def teardown(self) -> None:
        if hasattr(self, "broker"):
            self.long_after(0)
            self.what_is_committed_is_what_the_definition_says()
            for state in self.opened:
                state.close()


def test_the_joiner_does_what_the_definition_says_whatever_happens_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_join, "SAVE_SECONDS", 0.0)
    FOLDER.set(tmp_path)
    JoinMachine.seen.clear()
    run_state_machine_as_test(
        JoinMachine,
        settings=settings(
            # What is drawn depends on the constants in all loaded sources: enough of each kind in any case.
            max_examples=200,
            stateful_step_count=50,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
    happened = [
        "in time", "late", "doubled", "contradictory", "unknown", "crash", "before", "after", "aborted", "flat", "joined", "expired",
        "duplicate_event", "saved", "state lost", "on disk", "corrected", "corrected late", *REASONS,
    ]  # fmt: skip
    assert {kind: JoinMachine.seen[kind] for kind in happened if JoinMachine.seen[kind] < 10} == {}
