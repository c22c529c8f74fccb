"""Times far ahead, in any number up to what is promised: nobody else's label, window or feature is any different.

Each stream is played twice, with records far ahead in between and without them, through crashes and restores, and what
happened to the others is compared.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import pytest
import small
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tidemill import View, aggregates
from tidemill.features.memory import MemoryView
from tidemill.stages.featurizer import service as featurizer
from tidemill.stages.joiner import service as joiner
from tidemill.stream.group import Service
from tidemill.stream.loop import Loop
from tidemill.stream.memory import MemoryBroker
from tidemill.watch.monitor.windows import SourceWindows
from tidemill.wire import topics
from tidemill.wire.records import Records

SECOND, MINUTE = 1000, 60_000
BEGIN = 1_357_000_000_000
PIPELINE = small.make(label_timeout="10m", partitions=1, views=[
    View("origin", every="1m", aggregates=[aggregates.count("5m", "20m"), aggregates.time_since_last("20m"),
                                           aggregates.mean("distance", "5m")], expires="30m"),
])  # fmt: skip
RECORDS = Records(PIPELINE)
LOG, LABELS, EVENTS = (t.name(PIPELINE.name) for t in (topics.PREDICTION_LOG, topics.LABELS_VALID, topics.EVENTS_VALID))
EXAMPLES, EXPIRED, DLQ, FEATURES = (
    t.name(PIPELINE.name) for t in (topics.EXAMPLES, topics.EXPIRED, topics.DLQ, topics.FEATURES)
)
SCORES = RECORDS.scores.body({"champion": small.score(), "challengers": []})
#: How many records far ahead come before each of the others: at most 23 of any 32 in a row.
AHEAD = st.lists(st.sampled_from([0, 0, 0, 1, 2]), min_size=1, max_size=40)
SEEDS = st.integers(0, 2**32)


def is_ahead(event_id: str) -> bool:
    return event_id.startswith("ahead")


def prediction(event_id: str, time: int) -> bytes:
    return RECORDS.prediction_log.header + RECORDS.features.body(small.features(PIPELINE, event_id, time, 0)) + SCORES


def label(event_id: str, time: int) -> bytes:
    return RECORDS.label.encode(small.label(event_id, time, 1.0))


def stream(rng: random.Random, records: int) -> Iterator[tuple[str, str, int]]:
    """Yield (topic, event id, time) by time: a prediction a second; some of their labels late, some never known.

    It ends with the last prediction, while everything is as dense as a watermark needs to be exact.
    """
    messages = []
    for n in range(records):
        now = BEGIN + n * SECOND
        messages.append((now, LOG, f"e{n}"))
        if rng.random() < 0.8:
            messages.append((now + rng.choice([1, 30, 300, 599, 600, 601, 700]) * SECOND, LABELS, f"e{n}"))
    for now, topic, event_id in sorted(messages):
        if now < BEGIN + records * SECOND:
            yield topic, event_id, now


def drive(service: Any, broker: MemoryBroker, rng: random.Random) -> Any:
    """Run a service in batches of any size to the end; it crashes in between, with what was not committed."""
    while True:
        made: Service = service()
        loop = Loop(made, broker, max_delay=0.0, max_batch=rng.randrange(1, 400), sleep=lambda _: None)
        producer = broker.producer(loop.instance)
        consumer = broker.consumer(made.group, made.topics, loop.instance)
        quiet, turns = 0, rng.randrange(1, 30)
        while quiet < 3 and turns:
            quiet = 0 if loop.run_once(consumer, producer) else quiet + 1
            turns -= 1
        if quiet == 3:
            return loop.processor


def join(records: int, seed: int, ahead: list[int]) -> tuple[dict[str, Any], tuple[int, int]]:
    """Return what was decided about the others, and the watermarks at the end."""
    rng, number = random.Random(seed), 0
    broker = MemoryBroker(dict.fromkeys([LOG, LABELS, EXAMPLES, EXPIRED, DLQ], 1))
    for index, (topic, event_id, now) in enumerate(stream(random.Random(seed), records)):
        for _ in range(ahead[index % len(ahead)] if ahead else 0):
            number += 1
            time = now + rng.randrange(2 * MINUTE, 55 * MINUTE)
            odd = f"ahead{number}"
            if topic == LOG:
                broker.append(LOG, prediction(odd, time), odd.encode(), 1)
            elif rng.random() < 0.5:
                broker.append(LABELS, label(odd, time), odd.encode(), 1)
            else:  # for a prediction that waits, so far ahead that it can't be its label
                broker.append(LABELS, label(event_id, time + 10 * MINUTE), event_id.encode(), 1)
        made = prediction if topic == LOG else label
        broker.append(topic, made(event_id, now), event_id.encode(), 1)
    processor = drive(lambda: joiner.build(PIPELINE), broker, random.Random(seed + 1))
    joined, expired = Counter[Any](), Counter[Any]()
    for record in broker.records(EXAMPLES):
        found = RECORDS.example.decode(record.value() or b"")
        joined[found["prediction"]["features"]["event_id"], found["label_time"]] += 1
    for record in broker.records(EXPIRED):
        expired[RECORDS.prediction_log.decode(record.value() or b"")["features"]["event_id"]] += 1
    state = processor.joins[0]
    waiting = {e.id for e in state.events.values() if e.label is None and e.value is not None}
    decided = {
        "joined": Counter({key: n for key, n in joined.items() if not is_ahead(key[0])}),
        "expired": Counter({key: n for key, n in expired.items() if not is_ahead(key)}),
        "pending": {event_id for event_id in waiting if not is_ahead(event_id)},
    }
    return decided, (state.log_watermark, state.labels_watermark)


@pytest.mark.slow
@example(1, [0] * 30 + [22])
@example(2, [2])
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(SEEDS, AHEAD)
def test_labels_and_predictions_far_ahead_end_nothing_that_waits_for_others(seed: int, ahead: list[int]) -> None:
    plain, with_them = join(1200, seed, []), join(1200, seed, ahead)
    assert with_them == plain
    kinds = plain[0]
    assert len(kinds["joined"]) > 200
    assert len(kinds["expired"]) > 50
    assert len(kinds["pending"]) > 50


def test_one_label_ahead_expires_none_of_those_that_wait_neither_then_nor_later() -> None:
    """As it was: 60 predictions wait, one label is 55 minutes ahead; then the labels come, one minute after each."""
    broker = MemoryBroker(dict.fromkeys([LOG, LABELS, EXAMPLES, EXPIRED, DLQ], 1))
    for n in range(60):
        broker.append(LOG, prediction(f"e{n}", BEGIN + n * SECOND), f"e{n}".encode(), 1)
    broker.append(LABELS, label("ahead", BEGIN + 55 * MINUTE), b"ahead", 1)
    for n in range(60):
        broker.append(LABELS, label(f"e{n}", BEGIN + MINUTE + n * SECOND), f"e{n}".encode(), 1)
    drive(lambda: joiner.build(PIPELINE), broker, random.Random(0))
    assert (len(broker.records(EXAMPLES)), len(broker.records(EXPIRED))) == (60, 0)


def test_a_prediction_ahead_makes_dead_letters_of_no_labels_that_wait() -> None:
    broker = MemoryBroker(dict.fromkeys([LOG, LABELS, EXAMPLES, EXPIRED, DLQ], 1))
    for n in range(60):
        broker.append(LABELS, label(f"e{n}", BEGIN + n * SECOND), f"e{n}".encode(), 1)
    broker.append(LOG, prediction("ahead", BEGIN + 55 * MINUTE), b"ahead", 1)
    for n in range(60):
        broker.append(LOG, prediction(f"e{n}", BEGIN + n * SECOND), f"e{n}".encode(), 1)
    drive(lambda: joiner.build(PIPELINE), broker, random.Random(0))
    assert (len(broker.records(EXAMPLES)), broker.records(DLQ)) == (60, [])


def vectors(records: int, seed: int, ahead: list[int]) -> tuple[list[Any], dict[str, Any]]:
    """Return the vectors of the others as they were served, and how many entities the view forgot and keeps."""
    rng, number = random.Random(seed), 0  # drawn from for the others alone
    end = BEGIN + records * 4 * SECOND + 10 * MINUTE  # far beyond the last of the others
    broker = MemoryBroker({EVENTS: 1, FEATURES: 1, DLQ: 1})
    for n in range(records):
        now, origin = BEGIN + n * 4 * SECOND, f"A{rng.choice([0, 1, 2, 3, 4 + n // 40])}"
        for _ in range(ahead[n % len(ahead)] if ahead else 0):
            number += 1
            # Of the others' entity beyond the end of it all; of an entity of its own at any time.
            place, time = (origin, end + number) if number % 2 else (f"ahead{number % 9}", now + 50 * MINUTE)
            event = small.event(f"ahead{number}", time, place)
            broker.append(EVENTS, RECORDS.event.encode(event), place.encode(), 1)
        event = small.event(f"e{n}", now, origin)
        broker.append(EVENTS, RECORDS.event.encode(event), origin.encode(), 1)
    store = MemoryView()
    step = drive(lambda: featurizer.build(PIPELINE, {"origin": store}), broker, random.Random(seed + 1))
    served = [RECORDS.features.decode(record.value() or b"") for record in broker.records(FEATURES)]
    state = step.views.states[0][0]
    kept = {name: state.watermark for name in state.entities if not is_ahead(name)}
    others = [(f["event_id"], f["vector"], f["partial"]) for f in served if not is_ahead(f["event_id"])]
    return others, kept


@pytest.mark.slow
@example(1, [0] * 30 + [22])
@example(2, [2])
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(SEEDS, AHEAD)
def test_events_far_ahead_empty_no_window_and_age_no_entity(seed: int, ahead: list[int]) -> None:
    (plain, kept), (with_them, left) = vectors(900, seed, []), vectors(900, seed, ahead)
    assert len(plain) == 900
    assert with_them == plain
    if ahead.count(0) != len(ahead):  # an entity whose event is ahead of all others is as young as that
        assert left.keys() >= kept.keys()
    assert set(left.values()) == set(kept.values()), "the view's watermark"


def windows(records: int, seed: int, ahead: list[int]) -> list[Any]:
    """Return, by closed window, after which record it closed, and which rows of the others it has, late ones too."""
    rng, odd, closed = random.Random(seed), random.Random(seed), []
    source = SourceWindows(5 * MINUTE, MINUTE, 10_000)
    for n in range(records):
        now = BEGIN + n * 300
        for _ in range(ahead[n % len(ahead)] if ahead else 0):
            window = source.window(now + odd.randrange(2 * MINUTE, 55 * MINUTE), 0)
            if window:
                window.add(0, ("ahead",))
        late = rng.choice([0] * 16 + [30, 600]) * SECOND if n >= 100 else 0
        window = source.window(now - late, 0)
        if window:
            window.add(0, (n,))
        closed += [(n, w.start, w.late, [row for row in w.rows if row != ("ahead",)]) for w in source.due()]
    return closed


@pytest.mark.slow
@example(1, [0] * 30 + [22])
@example(1938519674, [2, 2, 1, 0, 1, 1])
@example(3494911498, [*map(int, "002111201101000200010200100122000202011")])
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(SEEDS, AHEAD)
def test_predictions_far_ahead_close_no_window_of_the_monitor(seed: int, ahead: list[int]) -> None:
    plain, with_them = windows(7000, seed, []), windows(7000, seed, ahead)
    assert len(plain) > 5
    assert sum(late for _, _, late, _ in plain) > 20
    assert [(start, rows) for _, start, _, rows in with_them] == [(start, rows) for _, start, _, rows in plain]
    # Beside late ones, those ahead may move the watermark on by a few of the others' records, never beyond them; what
    # is late among these few is counted in the next window.
    for (one, *_), (other, *_), late, other_late in zip(
        with_them, plain, late_until(with_them), late_until(plain), strict=True
    ):
        assert abs(late - other_late) <= abs(one - other) <= 32


def late_until(closed: list[Any]) -> Iterator[int]:
    """Return how many were late until each window closed."""
    return accumulate(late for _, _, late, _ in closed)
