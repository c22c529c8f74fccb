"""Events late, out of order and doubled; labels delayed, doubled, contradictory, for unknown events, or never.

The features are held to an oracle that knows no tiles' columns: it keeps every event and computes each feature from its
definition. What is dropped is counted, and the outcomes of predictions and labels add up to what was sent.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from river_in_memory import River, flights

from tidemill import Monitor, View, aggregates, load, number
from tidemill.stages.featurizer.service import Featurizer
from tidemill.stream.api import Position, TopicPartition
from tidemill.stream.memory import MemoryRecord
from tidemill.watermark import SLACK_PART, Watermark
from tidemill.wire import topics
from tidemill.wire.records import Records

MINUTE = 60_000
WINDOWS = {"2m": 2, "5m": 5}
FIELDS = ("wind_speed", "distance")
LONGEST = max(WINDOWS.values())
"""In tiles of a minute, as is every window here."""

PIPELINE = dataclasses.replace(
    load("delays"),
    rules=[],
    request={"distance": number("distance")},
    monitor=Monitor(),
    views=[
        View(
            "origin",
            every="1m",
            aggregates=[
                aggregates.count(*WINDOWS),
                aggregates.time_since_last("5m"),
                *(
                    make(field, *WINDOWS)
                    for make in (aggregates.sum, aggregates.mean, aggregates.std, aggregates.min, aggregates.max)
                    for field in FIELDS
                ),
                *(aggregates.last(field, window) for field in FIELDS for window in WINDOWS),
            ],
        )
    ],
    label_timeout="10m",
    partitions=2,
)
RECORDS = Records(PIPELINE)
TEMPLATE = {**flights("departure")[0].event, "origin": "JFK"}


class Oracle:
    """One entity's events, all of them, and the features by their definitions.

    A vector is of what was read before, in the tiles of the window that ends with the tile of the asking event. An event
    is dropped where its tile is out of the longest window's reach from the entity's newest tile so far, or from the
    watermark where the newest is ahead of that; what has come out of reach of it is forgotten.
    """

    def __init__(self) -> None:
        self.read: list[dict[str, Any]] = []
        self.newest = self.gone = -math.inf
        self.dropped = 0

    def features(self, now: int) -> dict[str, float | None]:
        out: dict[str, float | None] = {}
        for name, minutes in WINDOWS.items():
            tile = now // MINUTE
            seen = [
                e for e in self.read
                if tile - minutes < e["asked_at"] // MINUTE <= tile and e["asked_at"] // MINUTE > self.gone
            ]  # fmt: skip
            out[f"origin_count_{name}"] = float(len(seen))
            if name == "5m":
                last = max((e["asked_at"] for e in seen), default=None)
                out[f"origin_time_since_last_{name}"] = None if last is None else max(0.0, (now - last) / 1000)
            for field in FIELDS:
                held = [e for e in seen if e[field] is not None]
                values = [e[field] for e in held]
                found = {
                    "sum": math.fsum(values) if values else None,
                    "mean": statistics.fmean(values) if values else None,
                    "std": statistics.stdev(values) if len(values) > 1 else None,
                    "min": min(values, default=None),
                    "max": max(values, default=None),
                    # max() takes the first of equals, and the later arrival is meant
                    "last": max(reversed(held), key=lambda e: e["asked_at"])[field] if held else None,
                }
                out |= {f"origin_{kind}_{field}_{name}": value for kind, value in found.items()}
        return out

    def add(self, event: dict[str, Any], watermark: int) -> None:
        tile = event["asked_at"] // MINUTE
        if tile <= min(self.newest, watermark // MINUTE) - LONGEST:
            self.dropped += 1
            return
        self.newest = max(self.newest, tile)
        self.gone = max(self.gone, min(self.newest, watermark // MINUTE) - LONGEST)
        self.read.append(event)


def assert_same(found: Mapping[str, Any], expected: Mapping[str, Any], where: Any) -> None:
    for name, value in expected.items():
        if value is None:
            assert found[name] is None, (where, name, found[name])
        else:
            assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-6), (where, name)


def compare_with_oracle(events: Sequence[dict[str, Any]], cuts: Sequence[int] = ()) -> int:
    """Run events through the step in batches; returns how many were dropped for their age."""
    step, topic, vectors = Featurizer(PIPELINE), topics.EVENTS_VALID.name(PIPELINE.name), []

    def emit(topic: str, value: bytes, *_: Any) -> None:
        vectors.append(RECORDS.features.decode(value))

    step.assign(TopicPartition(topic, 0), Position(0))
    records = [MemoryRecord(topic, RECORDS.event.encode(e), b"k", 1, None, 0, i) for i, e in enumerate(events)]
    edges = [0, *sorted(min(c, len(records)) for c in cuts), len(records)]
    for begin, end in itertools.pairwise(edges):
        step.process(records[begin:end], emit)
    oracles: dict[str, Oracle] = {}
    watermark = Watermark(LONGEST * MINUTE // SLACK_PART)
    assert len(vectors) == len(events)
    for index, (event, vector) in enumerate(zip(events, vectors, strict=True)):
        oracle = oracles.setdefault(event["origin"], Oracle())
        assert (vector["event_id"], vector["offset"]) == (event["flight_id"], index)
        assert_same(vector["vector"], oracle.features(event["asked_at"]), index)
        watermark.add(event["asked_at"])
        oracle.add(event, watermark.time)
    dropped = sum(oracle.dropped for oracle in oracles.values())
    assert step.counts["tile_too_old", "origin"] == dropped
    return dropped


class Sent(NamedTuple):
    """One event: how far time moves on before it, how late it is (minutes), whether it was sent before."""

    step: int
    late: float
    again: bool
    origin: str
    wind: float | None
    distance: float


SENT = st.builds(
    Sent,
    step=st.sampled_from([0, 0, 1, 500, 20_000, 59_999, 60_000, 61_000, 200_000, 400_000]),
    late=st.sampled_from([0, 0, 0, 0, 0.01, 0.5, 1, 2, 4, 5, 6, 30, 1440]),
    again=st.sampled_from([False, False, False, True]),
    origin=st.sampled_from(["JFK", "EWR"]),
    wind=st.none() | st.floats(-100, 100, allow_nan=False) | st.sampled_from([0.0, -0.0, 1e15, -1e15, 1e-300]),
    distance=st.floats(1, 12_500),
)  # fmt: skip
START = 1_357_000_000_000 // MINUTE * MINUTE


def made(sent: Sequence[Sent]) -> list[dict[str, Any]]:
    now, events = START, []
    for index, one in enumerate(sent):
        now += one.step
        event = {
            **TEMPLATE, "flight_id": f"e{index}", "asked_at": now - int(one.late * MINUTE), "origin": one.origin, "wind_speed": one.wind,
            "distance": one.distance,
        }  # fmt: skip
        if one.again and events:
            event = dict(events[int(one.distance) % len(events)])
        events.append(event)
    return events


PLAIN = Sent(1_000, 0, False, "JFK", 5.0, 100.0)
SLOW = settings(
    derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@example([PLAIN, PLAIN._replace(step=400_000), PLAIN._replace(late=5.0), PLAIN._replace(late=4.0)], [1])
@example([PLAIN._replace(late=1440), PLAIN, PLAIN._replace(late=1440), PLAIN], [])
@settings(SLOW, max_examples=120)
@given(st.lists(SENT, min_size=1, max_size=60), st.lists(st.integers(0, 60), max_size=5))
def test_features_are_those_of_the_definition_however_the_events_come(sent: list[Sent], cuts: list[int]) -> None:
    # The oracle's sums are exact; next to 1e15 the step's are right to what a double can hold there.
    if any(abs(s.wind or 0) > 1e9 for s in sent):
        sent = [s._replace(wind=None if s.wind is None else math.copysign(1e15, s.wind)) for s in sent]
    compare_with_oracle(made(sent), cuts)


@pytest.mark.parametrize("lateness", [0, 3, 60])
def test_a_day_of_flights_out_of_order_and_doubled_is_as_the_definition_says(lateness: int) -> None:
    """Real values: each event is late by up to so many minutes, every fifth comes twice."""
    events = [dict(f.event) for f in flights("departure")]
    order = sorted(
        range(len(events)), key=lambda i: events[i]["asked_at"] + (i * 7919 % 1000) / 1000 * lateness * MINUTE
    )
    sent = [events[i] for i in order]
    for i in range(0, len(sent), 5):
        sent.insert(min(len(sent), i + 1 + i % 40), dict(sent[i]))
    dropped = compare_with_oracle(sent, range(0, len(sent), 37))
    assert dropped > 30, "events were late enough to be dropped"


# Labels ------------------------------------------------------------------------------------------------------------------


class Told(NamedTuple):
    """One label: which event it is about (by number; beyond the last: unknown), when it comes, and what it says."""

    about: int
    delay: int
    clock: int
    value: float


TOLD = st.builds(
    Told,
    about=st.integers(0, 50),
    delay=st.sampled_from([0, 1, MINUTE, 5 * MINUTE, 10 * MINUTE, 10 * MINUTE + 1, 12 * MINUTE, 60 * MINUTE]),
    clock=st.sampled_from([0, 0, 0, -MINUTE, -30 * MINUTE, MINUTE, 8 * MINUTE]),
    value=st.sampled_from([-5.0, 0.0, 30.0]),
)


@settings(SLOW, max_examples=60)
@given(st.lists(SENT, min_size=1, max_size=40), st.lists(TOLD, max_size=40), st.sampled_from([1, 3, 10**6]))
def test_outcomes_of_predictions_and_labels_add_up_to_what_was_sent(
    sent: list[Sent], told: list[Told], batch: int
) -> None:
    events = made(sent)
    messages: list[tuple[int, int, dict[str, Any]]] = []
    now = START
    for one, event in zip(sent, events, strict=True):
        now += one.step
        messages.append((now, 0, event))
    for label in told:
        event = (
            events[label.about] if label.about < len(events) else {**TEMPLATE, "flight_id": "unknown", "asked_at": now}
        )
        at = event["asked_at"] + label.delay
        messages.append(
            (at, 1, {"flight_id": event["flight_id"], "landed_at": at + label.clock, "arr_delay": label.value})
        )
    river = River(PIPELINE)
    for _, kind, record in sorted(messages, key=lambda m: m[:2]):
        (river.label if kind else river.event)(record)
    river.run(batch)

    examples, expired = river.decoded(topics.EXAMPLES), river.decoded(topics.EXPIRED)
    letters = Counter(letter.reason for letter in river.letters())
    assert set(letters) <= {"duplicate_event", "duplicate_label", "contradictory_label", "unmatched_label"}
    assert len(events) == len(river.of(topics.EVENTS_VALID)) == len(river.of(topics.PREDICTIONS))
    assert len(events) == len(examples) + len(expired) + river.pending + letters["duplicate_event"]
    assert len(told) == len(examples) + river.waiting + (
        letters["duplicate_label"] + letters["contradictory_label"] + letters["unmatched_label"]
    )
    decided = Counter(e["prediction"]["features"]["offset"] for e in examples)
    keyed = Counter((e["prediction"]["features"]["partition"], e["prediction"]["features"]["offset"]) for e in examples)
    keyed += Counter((p["features"]["partition"], p["features"]["offset"]) for p in expired)
    assert set(keyed.values()) <= {1}, "a prediction has one outcome"
    assert decided.total() == len(examples)
    given_labels = Counter((m["flight_id"], m["landed_at"], m["arr_delay"]) for _, kind, m in messages if kind)
    used = Counter((e["prediction"]["features"]["event_id"], e["label_time"], e["label"]) for e in examples)
    assert used <= given_labels, "a label is used once"
    sources = [letter.source for letter in river.letters()]
    assert len(sources) == len(set(sources))
