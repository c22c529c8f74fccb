"""A featurizer that goes on from its store is one that never stopped: also where the declaration changed in between."""

from __future__ import annotations

import random
from typing import Any

import pytest
import small
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill import View, aggregates
from tidemill.declare.pipeline import Pipeline
from tidemill.encoding.codec import HEADER
from tidemill.features.memory import MemoryView
from tidemill.stages.featurizer.service import Featurizer
from tidemill.stream.api import Position, TopicPartition, discard
from tidemill.stream.memory import MemoryRecord
from tidemill.wire.records import Records

SLOT = TopicPartition("small.events.valid", 0)


class Feed:
    """One partition of valid events, and featurizers over it, each with the same store."""

    def __init__(self, events: list[dict[str, Any]]) -> None:
        encode = Records(small.make()).event.encode
        self.log = [MemoryRecord(SLOT.topic, encode(event), offset=i) for i, event in enumerate(events)]
        self.store = MemoryView()

    def start(self, pipeline: Pipeline, committed: int) -> Featurizer:
        step = Featurizer(pipeline, {"origin": self.store})
        start = step.assign(SLOT, Position(committed))
        step.process(self.log[start.rebuild_from : start.live_from], discard)
        return step

    def go(self, step: Featurizer, begin: int, end: int) -> list[dict[str, Any]]:
        out = small.Emitted()
        step.process(self.log[begin:end], out)
        step.committed()
        return [step.records.features.record(r.value() or b"", HEADER) for r in out.records]


def view(every: str = "1m", *keep: Any) -> Pipeline:
    return small.make(views=[View("origin", every=every, aggregates=list(keep) or [aggregates.count("5m")])])


def compare(events: list[dict[str, Any]], before: Pipeline, after: Pipeline, stop: int) -> None:
    """Assert that `after`, started where `before` stopped, gives the vectors that it gives from the beginning."""
    whole = Feed(events)
    expected = whole.go(whole.start(after, 0), 0, len(events))[stop:]
    feed = Feed(events)
    feed.go(feed.start(before, 0), 0, stop)
    assert feed.go(feed.start(after, stop), stop, len(events)) == expected
    assert feed.store.features == whole.store.features
    assert feed.store.tiles == whole.store.tiles


def stream(many: int, step: int = 20_000) -> list[dict[str, Any]]:
    rng = random.Random(5)
    return [
        small.event(
            f"e{i}", i * step - rng.choice((0, 0, 90_000)), rng.choice(("JFK", "EWR")), rng.uniform(-9, 9),
            dep_delay=rng.choice((None, 1.5, -2.0)),
        )
        for i in range(many)
    ]  # fmt: skip


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 40))
def test_a_restart_anywhere_changes_no_vector_and_no_feature(stop: int) -> None:
    compare(stream(40), small.make(), small.make(), stop)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (view("1m", aggregates.count("5m")), view("5m", aggregates.count("5m"))),
        (view("5m", aggregates.count("5m")), view("1m", aggregates.count("5m"))),
        (view("1m", aggregates.count("2m")), view("1m", aggregates.count("10m"))),
        (view("1m", aggregates.count("10m")), view("1m", aggregates.count("2m"))),
        (view("1m", aggregates.sum("distance", "5m")), view("1m", aggregates.mean("distance", "5m"))),
        (view("1m", aggregates.count("5m")), view("1m", aggregates.count("5m"), aggregates.min("distance", "5m"))),
    ],
    ids=["longer tiles", "shorter tiles", "a longer window", "a shorter window", "the same columns", "other columns"],
)  # fmt: skip
def test_a_view_declared_anew_serves_what_it_would_have_from_the_beginning(before: Pipeline, after: Pipeline) -> None:
    compare(stream(60), before, after, 40)


def test_a_sum_that_overflowed_is_still_missing_after_a_restart() -> None:
    events = [small.event(f"e{i}", i * 1_000, distance=1e308 if i < 4 else 1.0) for i in range(8)]
    pipeline = view("1m", aggregates.sum("distance", "5m"), aggregates.mean("distance", "5m"))
    compare(events, pipeline, pipeline, 5)


@pytest.mark.parametrize("begin", [-5 * 60_000, -(10**12), 0])
def test_times_before_1970_are_times(begin: int) -> None:
    events = [small.event(f"e{i}", begin + i * 1_000) for i in range(3)]
    feed = Feed(events)
    found = feed.go(feed.start(view("1m", aggregates.time_since_last("1h")), 0), 0, 3)
    assert [f["vector"]["origin_time_since_last_1h"] for f in found] == [None, 1.0, 1.0]
    assert feed.store.features["JFK"]["event_time"] == begin + 2_000


def test_what_was_built_from_a_cut_log_stays_partial_through_a_restart() -> None:
    feed = Feed(stream(30))
    step = Featurizer(small.make(), {"origin": feed.store})
    step.assign(SLOT, Position(20))
    step.truncated(SLOT)
    step.process(feed.log[15:20], discard)
    assert feed.go(step, 20, 21)[0]["partial"]
    again = feed.start(small.make(), 21)
    assert feed.go(again, 21, 22)[0]["partial"], "the windows reach back to what was never read"
