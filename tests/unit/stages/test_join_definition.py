"""The join: its outcomes are those of its definition, however the two logs are interleaved, and through rebuilding."""

from __future__ import annotations

import functools
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import small
from draws import draws
from hypothesis import example, given, settings
from hypothesis import strategies as st
from join_definition import Asked, Make, T, Told, by_definition, chained, held, highest, three_of_four, watermarks

from tidemill import Pipeline
from tidemill.stages.joiner.join import Event, Join, Label, Outcomes
from tidemill.stages.joiner.service import Joiner
from tidemill.stream.api import Position, TopicPartition, discard
from tidemill.stream.commit_metadata import CommitMetadata
from tidemill.stream.memory import MemoryRecord
from tidemill.watermark import NEVER
from tidemill.wire.records import Records

Case = tuple[list[Asked], list[Told]]
MAKES = st.sampled_from([highest, three_of_four])
CORRECTIONS = st.sampled_from([1, T, 3 * T])


@st.composite
def cases(draw: st.DrawFn, ids: str = "abcdef") -> Case:
    """Two logs whose times drift upwards, out of order, over several timeouts, with few ids for many records."""

    def times(most: int) -> list[int]:
        steps = draw(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 14)), max_size=most))
        now, found = 0, []
        for step, back in steps:
            now += step
            found.append(now - (back if back > 7 else 0))
        return found

    name, value = st.sampled_from(ids), st.sampled_from([0.0, 1.0])
    log = [Asked(draw(name), time) for time in times(14)]
    return log, [Told(draw(name), time, draw(value)) for time in times(14)]


def interleavings(log: Sequence[Any], labels: Sequence[Any], seed: int, many: int) -> Iterator[list[bool]]:
    """Yield orders in which the two can be read; True is the log's next. The first two are one after the other."""
    turns = [True] * len(log) + [False] * len(labels)
    yield list(turns)
    yield turns[::-1]
    shuffle = random.Random(seed).shuffle
    for _ in range(many):
        shuffle(turns)
        yield list(turns)


@dataclass
class Run:
    """A join and what came out of it; records are named by their offsets."""

    make: Make = highest
    corrections: int = 0
    out: Counter[tuple[Any, ...]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.join = Join(
            T,
            Outcomes(
                self.joined,
                lambda event: self.note("expired", event.offset),
                lambda event, label: self.note("duplicate", label.offset, self.current[event.offset]),
                lambda label: self.note("unmatched", label.offset),
                self.corrected,
            ),
            self.make,
            self.corrections,
        )
        self.current: dict[int, int] = {}

    def joined(self, event: Event, label: Label) -> None:
        self.note("joined", event.offset, label.offset)
        self.current[event.offset] = label.offset

    def corrected(self, event: Event, label: Label) -> None:
        assert event.current != label.value
        self.note("corrected", label.offset, event.offset, self.current[event.offset])
        self.current[event.offset] = label.offset

    def note(self, *outcome: Any) -> None:
        self.out[outcome] += 1

    def play(self, log: Iterable[Asked], labels: Iterable[Told], order: Iterable[bool]) -> Run:
        asked, told = enumerate(log), enumerate(labels)
        for from_log in order:
            if from_log:
                offset, event = next(asked)
                if not self.join.add_event(event.id, event.time, offset, b"value"):
                    self.note("repeated", offset)
            else:
                offset, label = next(told)
                self.join.add_label(label.id, label.time, label.value, offset)
        return self

    @property
    def pending(self) -> set[int]:
        return {e.offset for e in chained(self.join) if e.label is None and e.value is not None}

    @property
    def waiting(self) -> set[int]:
        return {label.offset for labels in self.join.waiting.values() for label in labels}

    def everything(self) -> tuple[Counter[tuple[Any, ...]], set[int], set[int]]:
        assert len(self.pending) == self.join.pending
        assert len(self.waiting) == self.join.waiting_labels
        return self.out, self.pending, self.waiting


@pytest.mark.slow
@settings(max_examples=draws(400), deadline=None)
@given(cases(), st.integers(0, 2**32), MAKES)
def test_every_interleaving_has_the_outcomes_of_the_definition(case: Case, seed: int, make: Make) -> None:
    expected = by_definition(*case, make)
    for order in interleavings(*case, seed, 4):
        assert Run(make).play(*case, order).everything() == expected


@pytest.mark.slow
@settings(max_examples=draws(400), deadline=None)
@given(cases(), st.integers(0, 2**32), MAKES, CORRECTIONS)
def test_every_interleaving_has_the_corrections_of_the_definition(
    case: Case, seed: int, make: Make, corrections: int
) -> None:
    expected = by_definition(*case, make, corrections)
    for order in interleavings(*case, seed, 4):
        assert Run(make, corrections).play(*case, order).everything() == expected


@pytest.mark.slow
@settings(max_examples=draws(200), deadline=None)
@given(cases(), st.randoms(use_true_random=False), MAKES)
def test_each_prediction_has_one_outcome_and_the_counts_add_up(case: Case, order: random.Random, make: Make) -> None:
    turns = [True] * len(case[0]) + [False] * len(case[1])
    order.shuffle(turns)
    run = Run(make).play(*case, turns)
    kinds = Counter(outcome[0] for outcome in run.out)
    assert set(run.out.values()) <= {1}
    decided = [outcome[1] for outcome in run.out if outcome[0] in ("joined", "expired")]
    assert len(decided) == len(set(decided))
    assert len(case[0]) == kinds["joined"] + kinds["expired"] + kinds["repeated"] + len(run.pending)
    assert len(case[1]) == kinds["joined"] + kinds["duplicate"] + kinds["unmatched"] + len(run.waiting)


def test_a_contradictory_label_does_not_replace_the_first() -> None:
    run = Run().play([Asked("a", 0)], [Told("a", 1, 0.0), Told("a", 2, 1.0)], [False, False, True])
    assert run.out == {("joined", 0, 0): 1, ("duplicate", 1, 0): 1}


def test_corrections_follow_each_other_and_may_restore_the_first_label() -> None:
    labels = [Told("a", 1, 0.0), Told("a", 2, 1.0), Told("a", 3, 1.0), Told("a", 4, 0.0), Told("a", 25, 1.0)]
    for order in interleavings([Asked("a", 0)], labels, 0, 3):
        out = Run(corrections=24).play([Asked("a", 0)], labels, order).out
        assert out == Counter({
            ("joined", 0, 0): 1, ("corrected", 1, 0, 0): 1, ("duplicate", 2, 1): 1, ("corrected", 3, 0, 1): 1,
            ("corrected", 4, 0, 3): 1,
        })  # fmt: skip


def test_the_time_of_corrections_is_inclusive_and_counts_from_the_first_label() -> None:
    first = [Asked("a", 0)], [Told("a", 8, 0.0)]
    for late, outcome in ((8 + 30, "corrected"), (8 + 31, "waits")):
        run = Run(corrections=30).play(first[0], [*first[1], Told("a", late, 1.0)], [True, False, False])
        assert (run.out["corrected", 1, 0, 0] == 1) == (outcome == "corrected")
        assert run.waiting == (set() if outcome == "corrected" else {1})


def test_an_id_that_comes_again_within_the_time_of_corrections_is_a_repetition() -> None:
    log = [Asked("a", 0), Asked("a", 2 * T + 30), Asked("a", 2 * T + 31)]
    assert Run(corrections=30).play(log, [], [True] * 3).out == {("repeated", 1): 1}


@pytest.mark.parametrize(
    ("log", "labels", "outcome"),
    [
        ([Asked("a", 0)], [Told("a", T, 1.0)], ("joined", 0, 0)),
        ([Asked("a", 0)], [Told("a", T + 1, 1.0)], ("expired", 0)),
        ([Asked("a", T)], [Told("a", 0, 1.0)], ("joined", 0, 0)),
        ([Asked("a", T + 1)], [Told("a", 0, 1.0)], ("unmatched", 0)),
    ],
)
def test_the_timeout_is_inclusive_on_both_sides(log: list[Asked], labels: list[Told], outcome: tuple[Any, ...]) -> None:
    for order in ([True, False], [False, True]):
        assert Run().play(log, labels, order).out[outcome] == 1


def test_state_is_flat_while_the_watermarks_move_on() -> None:
    rng = random.Random(7)
    run, most = Run(), []
    for i in range(6_000):
        now = i // 4
        run.join.add_event(f"e{i - rng.randrange(3)}", now - rng.randrange(5), i, b"value")
        if rng.random() < 0.8:
            run.join.add_label(f"e{i - rng.randrange(60)}", now - rng.randrange(5), 1.0, i)
        if i % 1_000 == 999:
            most.append(held(run.join))
    assert max(most) < 60 * T
    assert most[-1] < 1.5 * most[0]
    for far in range(3):
        run.join.add_event(f"far{far}", 10**6 * (far + 1), 10_000 + far, b"value")
        run.join.add_label(f"other{far}", 10**6 * (far + 1), 1.0, 10_000 + far)
    assert held(run.join) < 20


# Rebuilding, with the service itself: what it notes beside its offsets is where another one begins.

PIPELINE = small.make(label_timeout=f"{T}ms", views=[], partitions=1)
CORRECTED, CORRECTED_BRIEFLY = (
    small.make(
        label_timeout=f"{T}ms", views=[], partitions=1, labels=PIPELINE.labels.with_fields(corrections=f"{ms}ms")
    )
    for ms in (25, 1)
)
RECORDS = Records(PIPELINE)
LOG, LABELS = TopicPartition("small.prediction-log", 0), TopicPartition("small.labels.valid", 0)
SCORES = RECORDS.scores.body({"champion": small.score(), "challengers": []})


@functools.cache
def log_record(offset: int, event: Asked) -> MemoryRecord:
    body = RECORDS.features.body(small.features(PIPELINE, event.id, event.time, offset))
    return MemoryRecord(LOG.topic, RECORDS.prediction_log.header + body + SCORES, offset=offset)


@functools.cache
def label_record(offset: int, label: Told) -> MemoryRecord:
    return MemoryRecord(LABELS.topic, RECORDS.label.encode(small.label(*label)), offset=offset)


class Service:
    """A Joiner fed record by record from the two logs, each from its own offset."""

    def __init__(
        self,
        case: Case,
        notes: dict[TopicPartition, Position] | None = None,
        make: Make = highest,
        pipeline: Pipeline = PIPELINE,
    ) -> None:
        self.logs = {
            LOG: [log_record(i, e) for i, e in enumerate(case[0])],
            LABELS: [label_record(i, label) for i, label in enumerate(case[1])],
        }
        self.joiner = Joiner(pipeline, make)
        self.out: Counter[tuple[Any, ...]] = Counter()
        notes = notes or {slot: Position(0) for slot in self.logs}
        starts = {slot: self.joiner.assign(slot, position) for slot, position in notes.items()}
        self.at = {slot: start.rebuild_from for slot, start in starts.items()}
        self.live = {slot: start.live_from for slot, start in starts.items()}

    def rebuild(self, seed: int) -> Service:
        turns = [slot for slot in self.logs for _ in range(self.at[slot], self.live[slot])]
        random.Random(seed).shuffle(turns)
        self.play(turns, discard)
        assert self.at == self.live
        return self

    def play(self, turns: Iterable[TopicPartition], emit: Any = None) -> Service:
        for slot in turns:
            self.joiner.process([self.logs[slot][self.at[slot]]], emit or self.emit)
            self.at[slot] += 1
        return self

    def finish(self, seed: int) -> Service:
        turns = [slot for slot, log in self.logs.items() for _ in range(self.at[slot], len(log))]
        random.Random(seed).shuffle(turns)
        return self.play(turns)

    def notes(self) -> dict[TopicPartition, Position]:
        return {slot: Position(self.at[slot], self.joiner.commit_metadata(slot).encode()) for slot in self.logs}

    def emit(
        self, topic: str, value: bytes, key: Any = None, timestamp: int = 0, headers: Any = None, partition: int = -1
    ):
        if topic == "small.dlq":
            said = {name: text.decode() for name, text in headers}
            self.out[said["tidemill.reason"], said["__connect.errors.topic"], said["__connect.errors.offset"]] += 1
        elif topic == "small.examples" and value.startswith(RECORDS.correction.header):
            found = RECORDS.correction.decode(value)
            assert found["entity_id"] == "JFK"
            self.out["corrected", found["offset"], found["label_time"], found["label"], found["replaced_label"]] += 1
        elif topic == "small.examples":
            found = RECORDS.example.decode(value)
            self.out["joined", found["prediction"]["features"]["offset"], found["label_time"], found["label"]] += 1
        else:
            self.out["expired", RECORDS.prediction_log.decode(value)["features"]["offset"]] += 1

    def everything(self) -> tuple[Counter[tuple[Any, ...]], set[int], set[int]]:
        join = self.joiner.joins[0]
        pending = {e.offset for e in chained(join) if e.label is None and e.value is not None}
        return self.out, pending, {label.offset for labels in join.waiting.values() for label in labels}


def compare_rebuilt(
    case: Case, log_at: int, labels_at: int, seed: int, make: Make = highest, pipeline: Pipeline = PIPELINE
) -> None:
    """Assert that a service that was stopped at these offsets, and built again elsewhere, ends as one that never was."""
    cut = {LOG: min(log_at, len(case[0])), LABELS: min(labels_at, len(case[1]))}
    whole = Service(case, make=make, pipeline=pipeline).finish(seed)
    before = Service(case, make=make, pipeline=pipeline).play([slot for slot, n in cut.items() for _ in range(n)])
    after = Service(case, before.notes(), make, pipeline).rebuild(seed + 1)
    assert after.everything()[1:] == before.everything()[1:], "the rebuilt state differs"
    after.finish(seed + 2)
    after.out += before.out
    assert after.everything() == whole.everything()


LATE_LABEL_OF_A_FORGOTTEN_EVENT: Case = (
    [Asked("a", 0), Asked("b", 5), Asked("c", 11), Asked("d", 25)],
    [Told("b", 6, 1.0), Told("a", 9, 1.0), Told("c", 11, 1.0), Told("d", 30, 1.0)],
)


@pytest.mark.slow
@example(LATE_LABEL_OF_A_FORGOTTEN_EVENT, 3, 3, 0, highest)
@settings(max_examples=draws(200), deadline=None)
@given(cases(ids="abcdefghijklmnopqr"), st.integers(0, 14), st.integers(0, 14), st.integers(0, 2**32), MAKES)
def test_a_rebuilt_joiner_goes_on_as_if_it_had_never_stopped(
    case: Case, log_at: int, labels_at: int, seed: int, make: Make
) -> None:
    compare_rebuilt(case, log_at, labels_at, seed, make)


@pytest.mark.slow
@settings(max_examples=draws(150), deadline=None)
@given(cases(ids="ab"), st.integers(0, 14), st.integers(0, 14), st.integers(0, 2**32), MAKES)
def test_a_rebuilt_joiner_goes_on_where_ids_come_again_and_again(
    case: Case, log_at: int, labels_at: int, seed: int, make: Make
) -> None:
    compare_rebuilt(case, log_at, labels_at, seed, make)


@pytest.mark.slow
@settings(max_examples=draws(200), deadline=None)
@given(
    cases(ids="abc"), st.integers(0, 14), st.integers(0, 14), st.integers(0, 2**32), MAKES,
    st.sampled_from([CORRECTED, CORRECTED_BRIEFLY]),
)  # fmt: skip
def test_a_rebuilt_joiner_goes_on_with_corrections(
    case: Case, log_at: int, labels_at: int, seed: int, make: Make, pipeline: Pipeline
) -> None:
    compare_rebuilt(case, log_at, labels_at, seed, make, pipeline)


def test_a_label_of_a_forgotten_event_is_not_given_to_a_later_one_of_its_id() -> None:
    """The label at 10 joined the "a" of 0; read again without it, it must not take the place of the one at 21."""
    log = [Asked("a", 0), Asked("a", 11), Asked("b", 12), Asked("c", 21)]
    labels = [Told("b", 5, 1.0), Told("a", 10, 1.0), Told("d", 21, 1.0), Told("a", 21, 0.0)]
    compare_rebuilt((log, labels), 4, 3, 0)


def test_a_label_joined_long_ago_is_not_a_dead_letter_after_a_restart() -> None:
    compare_rebuilt(LATE_LABEL_OF_A_FORGOTTEN_EVENT, 3, 3, 0)


def test_after_a_restart_an_event_is_late_that_was_late_before() -> None:
    """The label of 20 T is done with and not read again, but how far it has brought the time is remembered."""
    compare_rebuilt(([Asked("a", 30 * T), Asked("late", 10 * T)], [Told("x", 20 * T, 1.0)]), 1, 1, 0)


@pytest.mark.slow
@settings(max_examples=draws(100), deadline=None)
@given(cases(), st.integers(0, 14), st.integers(0, 14), MAKES)
def test_a_rebuilt_joiner_notes_what_the_first_noted(case: Case, log_at: int, labels_at: int, make: Make) -> None:
    cut = {LOG: min(log_at, len(case[0])), LABELS: min(labels_at, len(case[1]))}
    before = Service(case, make=make).play([slot for slot, n in cut.items() for _ in range(n)])
    notes = before.notes()
    for slot, position in notes.items():
        kept = CommitMetadata.decode(position.metadata)
        begin, mark = kept.rebuild_from, kept.watermark
        assert begin is not None
        assert begin <= position.offset == cut[slot]
        seen = watermarks(case[slot == LABELS][:begin], make)
        assert mark[:1] == (tuple(seen[-1:]) or (NEVER,))


def test_a_record_of_another_schema_is_a_dead_letter_and_counts_as_read() -> None:
    service = Service(([Asked("a", 0)], [Told("a", 1, 1.0)]))
    service.logs[LOG].insert(0, MemoryRecord(LOG.topic, b"\0\0\0\0\1other", offset=0))
    service.logs[LOG][1] = log_record(1, Asked("a", 0))
    service.play([LOG, LOG, LABELS])
    assert service.out == {("unknown_schema", LOG.topic, "0"): 1, ("joined", 1, 1, 1.0): 1}
    assert service.joiner.commit_metadata(LOG) == CommitMetadata(1, (NEVER, NEVER))


def test_a_label_keeps_its_record_only_while_it_may_become_a_dead_letter() -> None:
    joins: list[tuple[Event, Label]] = []
    join = Join(T, Outcomes(lambda e, label: joins.append((e, label)), print, print, print))
    join.add_event("a", 0, 0, b"value")
    join.add_label("a", 1, 1.0, 0, record=object())
    ((event, label),) = joins
    assert event.value is None
    assert label.record is None
