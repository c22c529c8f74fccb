"""What featurizer and materializer say of the age of their views: once a batch, in event time, of live records only."""

from __future__ import annotations

import small
from prometheus_client import REGISTRY
from test_loop_promises import Member

from tidemill import View, aggregates
from tidemill.features.lookup import RemoteLookup
from tidemill.stages.featurizer.service import Featurizer
from tidemill.stages.materializer.service import Materializer
from tidemill.stream.api import Position, TopicPartition, discard
from tidemill.stream.memory import MemoryBroker, MemoryRecord
from tidemill.wire.records import Records
from tidemill.wire.updates import Updates

PIPELINE = small.make(
    views=[View(name, every="1m", aggregates=[aggregates.count("5m")]) for name in ("origin", "dest")]
)
RECORDS = Records(PIPELINE)
SLOT, UPDATES = TopicPartition("small.events.valid", 0), TopicPartition("small.updates", 0)


class Away:
    """A store that is away."""

    def lookup(self, wanted: object) -> RemoteLookup:
        return RemoteLookup(stale=["dest"])


def valid(times: list[int], origin: str = "JFK", begin: int = 0) -> list[MemoryRecord]:
    events = [small.event(f"e{time}", time, origin) for time in times]
    return [MemoryRecord(SLOT.topic, RECORDS.event.encode(e), offset=begin + n) for n, e in enumerate(events)]


def featurizer(others: Away | None = None) -> Featurizer:
    step = Featurizer(PIPELINE, remote_views=others)
    step.assign(SLOT, Position(0))
    return step


def test_the_oldest_features_of_a_batch_are_observed_once_by_view() -> None:
    step = featurizer()
    step.process(valid([0, 60_000, 90_000, 80_000]), small.Emitted())
    assert step.observed == {("feature_age", "origin"): 60.0}
    step.observed.clear()
    step.process(valid([50_000], begin=4), small.Emitted())  # an event that came late: its features were not old
    assert step.observed == {("feature_age", "origin"): 0.0}
    step.observed.clear()
    step.process(valid([100_000], "EWR", begin=5), small.Emitted())
    assert step.observed == {}  # nothing is known of this one


def test_vectors_that_a_view_was_stale_in_are_counted() -> None:
    step = featurizer(Away())
    step.process(valid([0, 1, 2]), small.Emitted())
    assert step.counts["stale_vectors", "dest"] == 3
    assert featurizer().counts == {}


def test_what_is_rebuilt_is_neither_observed_nor_stale() -> None:
    step = featurizer(Away())
    step.process(valid([0, 60_000]), discard)
    assert (step.observed, step.counts) == ({}, {})
    assert step.gauges()["view_event_time", "origin"] == 60.0


def test_a_view_says_how_far_it_has_come_in_event_time() -> None:
    step, made = Materializer(PIPELINE), small.Emitted()
    step.assign(UPDATES, Position(0))
    assert ("view_event_time", "dest") not in step.gauges()
    updates = Updates(PIPELINE, RECORDS, "events")
    for time in (5000, 9000, 7000):
        updates.emit({"dest": "LAX"}, {}, "e", time, 0, made)
    step.process(made.records, discard)
    assert step.gauges()["view_event_time", "dest"] == 9.0
    step.revoke([UPDATES])
    assert ("view_event_time", "dest") not in step.gauges()


def test_the_loop_publishes_what_a_step_observed_and_forgets_what_a_rebuild_did() -> None:
    def said(suffix: str) -> float | None:
        labels = {"service": "test", "view": "origin"}
        return REGISTRY.get_sample_value(f"tidemill_feature_age_seconds_{suffix}", labels)

    broker = MemoryBroker({"in": 1, PIPELINE.name + ".features": 1, PIPELINE.name + ".updates": 1})
    for record in valid([0, 60_000, 600_000]):
        broker.append("in", record.value() or b"", None, 1, None, 0)
    member = Member(broker, Featurizer(PIPELINE), max_batch=2)
    member.turn(4)
    assert (said("count"), said("sum")) == (2.0, 600.0)
    assert member.step.observed == {}
    again = Member(broker, Featurizer(PIPELINE), instance="1")  # takes over, and builds the state anew
    member.leave()
    again.turn(3)
    assert said("count") == 2.0
