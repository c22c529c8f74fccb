"""The join's result is a function of how far each log was read, never of how the two were interleaved."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
from draws import draws
from hypothesis import given, settings
from hypothesis import strategies as st
from join_definition import highest

from tidemill import load
from tidemill.stages.joiner.join import Join, Outcomes
from tidemill.stages.joiner.service import Joiner
from tidemill.stages.joiner.stored_join import StoredJoin
from tidemill.stream.api import Position, TopicPartition, discard
from tidemill.stream.lmdb_state import LmdbState
from tidemill.stream.memory import MemoryRecord
from tidemill.wire import topics
from tidemill.wire.records import Records

TIMEOUT = 10
IDS = st.sampled_from("abcdef")
TIMES = st.integers(0, 60)
LOG = st.lists(st.tuples(IDS, TIMES), max_size=20)
LABELS = st.lists(st.tuples(IDS, TIMES, st.booleans()), max_size=20)


@dataclass
class Seen:
    """What was decided, by the offsets of the records concerned."""

    joined: list[tuple[int, int]] = field(default_factory=list)
    expired: list[int] = field(default_factory=list)
    duplicate: list[int] = field(default_factory=list)
    unmatched: list[int] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)

    def outcomes(self) -> Outcomes:
        return Outcomes(
            lambda event, label: self.joined.append((event.offset, label.offset)),
            lambda event: self.expired.append(event.offset),
            lambda _, label: self.duplicate.append(label.offset),
            lambda label: self.unmatched.append(label.offset),
        )

    def decided(self) -> tuple:
        return tuple(sorted(part) for part in (self.joined, self.expired, self.duplicate, self.unmatched, self.refused))


def interleaved(log: list, labels: list, seed: int) -> list[tuple[str, int]]:
    """Return a random interleaving of the two logs that keeps each one's order."""
    sides = ["log"] * len(log) + ["labels"] * len(labels)
    random.Random(seed).shuffle(sides)
    at = Counter()
    out = []
    for side in sides:
        out.append((side, at[side]))
        at[side] += 1
    return out


def run(log: list, labels: list, order: list[tuple[str, int]]) -> tuple[Seen, Join]:
    seen = Seen()
    join = Join(TIMEOUT, seen.outcomes(), highest)
    for side, offset in order:
        if side == "log":
            name, time = log[offset]
            if not join.add_event(name, time, offset, b"x"):
                seen.refused.append(offset)
        else:
            name, time, value = labels[offset]
            join.add_label(name, time, value, offset)
    return seen, join


def state(join: Join) -> tuple:
    waiting = sorted(label.offset for labels in join.waiting.values() for label in labels)
    held = []
    for first in join.events.values():
        event = first
        while event is not None:
            held.append((event.offset, event.label.offset if event.label else None))
            event = event.later
    return sorted(held), waiting, join.log_watermark, join.labels_watermark, join.pending, join.waiting_labels


@pytest.mark.slow
@settings(max_examples=draws(400), deadline=None)
@given(LOG, LABELS, st.integers(0, 2**32), st.integers(0, 2**32))
def test_any_interleaving_decides_the_same_and_leaves_the_same_state(
    log: list, labels: list, one: int, other: int
) -> None:
    first, first_join = run(log, labels, interleaved(log, labels, one))
    second, second_join = run(log, labels, interleaved(log, labels, other))
    assert first.decided() == second.decided()
    assert state(first_join) == state(second_join)


@pytest.mark.slow
@settings(max_examples=draws(400), deadline=None)
@given(LOG, LABELS, st.integers(0, 2**32))
def test_every_record_ends_in_exactly_one_place(log: list, labels: list, seed: int) -> None:
    seen, join = run(log, labels, interleaved(log, labels, seed))
    joined_events = [event for event, _ in seen.joined]
    joined_labels = [label for _, label in seen.joined]
    assert len(set(joined_events)) == len(joined_events), "at most one label is learned for a prediction"
    assert len(set(joined_labels)) == len(joined_labels), "a label is used once"
    assert len(log) == len(joined_events) + len(seen.expired) + join.pending + len(seen.refused)
    assert len(labels) == len(joined_labels) + len(seen.duplicate) + len(seen.unmatched) + join.waiting_labels
    for event, label in seen.joined:
        assert log[event][0] == labels[label][0]
        assert labels[label][1] <= log[event][1] + TIMEOUT


@pytest.mark.slow
def test_state_is_flat_when_time_moves_on() -> None:
    seen = Seen()
    join = Join(TIMEOUT, seen.outcomes(), highest)
    sizes = []
    for n in range(20_000):
        join.add_event(f"e{n}", n, 2 * n, b"x")
        if n % 3:
            join.add_label(f"e{n}", n + 2, True, n)
        if n % 7 == 0:
            join.add_label(f"unknown{n}", n + 1, True, 10**6 + n)
        if n % 1000 == 999:
            sizes.append(
                len(join.events) + join.waiting_labels + len(join._open) + len(join._closed) + len(join._queue)
            )
            sizes.append(len(join.kept_events._queue) + len(join.kept_labels._queue))
    assert max(sizes) < 100
    assert len(seen.expired) > 6000


# The service, stopped anywhere and rebuilt from its notes --------------------------------------------------------------

PIPELINE = load("plain")
RECORDS = Records(PIPELINE)
HOUR = 3_600_000
LOG_SLOT = TopicPartition(topics.PREDICTION_LOG.name(PIPELINE.name), 0)
LABELS_SLOT = TopicPartition(topics.LABELS_VALID.name(PIPELINE.name), 0)
SCORE = {"model": "logreg", "version": 0, "epoch": 0, "score": 0.5, "probabilities": {}, "answered": True}


def log_record(offset: int, name: str, hours: int) -> MemoryRecord:
    features = {
        "event_id": name, "entity_id": "JFK", "event_time": hours * HOUR, "partition": 0, "offset": offset, "partial": False,
        "entities": {}, "as_of": {}, "stale": [],
        "vector": dict.fromkeys(PIPELINE.vector),
    }  # fmt: skip
    value = RECORDS.prediction_log.encode({"features": features, "champion": SCORE, "challengers": []})
    return MemoryRecord(LOG_SLOT.topic, value, name.encode(), 1, None, 0, offset)


def label_record(offset: int, name: str, hours: int, late: bool) -> MemoryRecord:
    value = RECORDS.label.encode({"flight_id": name, "landed_at": hours * HOUR, "arr_delay": 60.0 if late else 0.0})
    return MemoryRecord(LABELS_SLOT.topic, value, name.encode(), 1, None, 0, offset)


class Emitted(list):
    def __call__(self, topic, value, key=None, timestamp=0, headers=None, partition=-1) -> None:
        reason = dict(headers or []).get("tidemill.reason", b"").decode()
        self.append((topic.partition(".")[2], key, reason))


@pytest.mark.slow
@settings(max_examples=draws(150), deadline=None)
@given(
    st.lists(st.tuples(IDS, st.integers(0, 200)), min_size=8, max_size=30),
    st.lists(st.tuples(IDS, st.integers(0, 200), st.booleans()), min_size=8, max_size=30),
    st.integers(0, 2**32), st.integers(0, 2**32), st.data(),
)  # fmt: skip
def test_a_joiner_rebuilt_from_its_notes_goes_on_as_if_it_had_never_stopped(log, labels, seed, other, data) -> None:
    records = {
        "log": [log_record(n, name, hours) for n, (name, hours) in enumerate(log)],
        "labels": [label_record(n, name, hours, late) for n, (name, hours, late) in enumerate(labels)],
    }
    order = interleaved(log, labels, seed)
    stop = data.draw(st.integers(0, len(order)))

    def assigned(notes: dict[TopicPartition, Position]) -> tuple[Joiner, dict[TopicPartition, int]]:
        joiner = Joiner(PIPELINE)
        return joiner, {slot: joiner.assign(slot, notes[slot]).rebuild_from for slot in (LOG_SLOT, LABELS_SLOT)}

    whole, _ = assigned({LOG_SLOT: Position(0), LABELS_SLOT: Position(0)})
    undisturbed = Emitted()
    for side, offset in order:
        whole.process([records[side][offset]], undisturbed)

    first, _ = assigned({LOG_SLOT: Position(0), LABELS_SLOT: Position(0)})
    emitted = Emitted()
    for side, offset in order[:stop]:
        first.process([records[side][offset]], emitted)
    reached = Counter(side for side, _ in order[:stop])
    notes = {
        LOG_SLOT: Position(reached["log"], first.commit_metadata(LOG_SLOT).encode()),
        LABELS_SLOT: Position(reached["labels"], first.commit_metadata(LABELS_SLOT).encode()),
    }
    second, begins = assigned(notes)
    again = (
        records["log"][begins[LOG_SLOT] : reached["log"]],
        records["labels"][begins[LABELS_SLOT] : reached["labels"]],
    )
    for side, offset in interleaved(*again, other):
        second.process([again[0 if side == "log" else 1][offset]], discard)
    for side, offset in order[stop:]:
        second.process([records[side][offset]], emitted)
    assert sorted(emitted) == sorted(undisturbed)
    assert state(second.joins[0]) == state(whole.joins[0])


# On disk --------------------------------------------------------------------------------------------------------------


def remembered(join: Join) -> list[tuple]:
    """Return what a join knows of each id, wherever it keeps it."""
    events = [
        (e.id, e.offset, e.reach, e.value, e.is_refused, e.label and (e.label.offset, e.label.value))
        for name in "abcdef"
        for e in join._events_of(name)
    ]
    labels = [
        (label.id, label.offset, label.time, label.watermark, label.value)
        for name in "abcdef"
        for label in join._labels_of(name)
    ]
    return [*events, *labels, join.pending, join.waiting_labels, join.log.state, join.labels.state]


@pytest.mark.slow
@settings(max_examples=draws(100), deadline=None)
@given(LOG, LABELS, st.integers(0, 2**32))
def test_on_disk_it_remembers_the_same_after_each_record(
    tmp_path_factory: pytest.TempPathFactory, log: list, labels: list, seed: int
) -> None:
    seen, seen_on_disk = Seen(), Seen()
    memory = Join(TIMEOUT, seen.outcomes(), highest)
    state = LmdbState(tmp_path_factory.mktemp("join"))
    disk = StoredJoin(TIMEOUT, seen_on_disk.outcomes(), state, highest)
    for side, offset in interleaved(log, labels, seed):
        for join, one in ((memory, seen), (disk, seen_on_disk)):
            if side == "log":
                name, time = log[offset]
                if not join.add_event(name, time, offset, b"x"):
                    one.refused.append(offset)
            else:
                name, time, value = labels[offset]
                record = MemoryRecord("labels", b"l", b"k", 1, [("h", b"v")], 0, offset)
                join.add_label(name, time, value, offset, record)
        assert remembered(memory) == remembered(disk)
        assert (seen.decided(), seen.refused) == (seen_on_disk.decided(), seen_on_disk.refused)
    state.close()
