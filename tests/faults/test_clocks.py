"""Producers whose clocks are a day off: what is ahead is quarantined, what is behind is late, and the others never notice."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from typing import Any

import pytest
from river_in_memory import River, flights

from tidemill import Pipeline, View, aggregates, load, rules
from tidemill.cli.text.declaration import pipeline_text
from tidemill.demo.data import Flight
from tidemill.durations import duration, milliseconds
from tidemill.errors import DeclarationError
from tidemill.offline.check import CheckReport
from tidemill.stages.featurizer.service import Featurizer
from tidemill.stream.api import Position, TopicPartition
from tidemill.stream.memory import MemoryRecord
from tidemill.watermark import RECENT_RECORDS
from tidemill.wire import topics

HOUR, DAY = 3_600_000, 86_400_000
EVERY = 8
"""One producer in so many has a clock that is off."""


def forgetful(name: str, label_timeout: str) -> Pipeline:
    """A pipeline whose author did not think of clocks: no rule is about a time."""
    given = load(name)
    kept = [rule for rule in given.rules if rule.name != "not_after_now"]
    return dataclasses.replace(given, rules=kept, label_timeout=label_timeout)


def recent(question: Any, ago: int = 60_000) -> list[Flight]:
    """Two days of flights as if the last of them had landed so many ms ago."""
    found = flights(question, 2, 4)
    shift = int(time.time() * 1000) - ago - max(f.label["landed_at"] for f in found if f.label)
    return [
        Flight(
            {**event, "asked_at": event["asked_at"] + shift},
            label and {**label, "landed_at": label["landed_at"] + shift},
        )
        for event, label in found
    ]


def messages(found: list[Flight]) -> list[tuple[int, bool, dict[str, Any]]]:
    """Return events and labels in the order in which they are sent."""
    both = [(f.event["asked_at"], True, f.event) for f in found]
    both += [(f.label["landed_at"], False, f.label) for f in found if f.label]
    return sorted(both, key=lambda item: (item[0], item[1], item[2]["flight_id"]))


def odd_copy(index: int, is_event: bool, record: dict[str, Any], off: int) -> dict[str, Any]:
    field = "asked_at" if is_event else "landed_at"
    return {**record, "flight_id": f"{record['flight_id']}-clock", field: record[field] + off}


def later(found: list[Flight], by: int) -> list[Flight]:
    """Return flights, enough for all partitions, that left and landed so long after all others."""
    now = max(f.label["landed_at"] for f in found if f.label) + by
    last = next(f for f in found if f.label)
    return [
        Flight(
            {**last.event, "flight_id": f"later{n}", "asked_at": now},
            last.label and {**last.label, "flight_id": f"later{n}", "landed_at": now},
        )
        for n in range(300)
    ]


def play(pipeline: Pipeline, found: list[Flight], events_off: int = 0, labels_off: int = 0) -> River:
    """Send everything; every so many flights have a second one beside them whose event's or label's clock is off."""
    river = River(pipeline)
    times = [f for f in found if not f.event["flight_id"].startswith("later")]
    odd = {f.event["flight_id"] for f in times[::EVERY]} if events_off or labels_off else set()
    for index, (_, is_event, record) in enumerate(messages(found)):
        (river.event if is_event else river.label)(record)
        if record["flight_id"] in odd:
            copy = odd_copy(index, is_event, record, events_off if is_event else labels_off)
            (river.event if is_event else river.label)(copy)
    river.run(batch=10**6)  # one merge by time: the order is that of sending, with and without the odd ones
    return river


def is_odd(event_id: str) -> bool:
    return event_id.endswith("-clock")


def decided(river: River) -> dict[str, Any]:
    """What was decided for the flights whose clocks are right, by id; not where in a log it stands."""
    return {
        "vectors": {f["event_id"]: f["vector"] for f in river.decoded(topics.FEATURES) if not is_odd(f["event_id"])},
        "predicted": Counter(p["event_id"] for p in river.decoded(topics.PREDICTIONS) if not is_odd(p["event_id"])),
        "joined": Counter((e["prediction"]["features"]["event_id"], e["label"], e["label_time"])
                          for e in river.decoded(topics.EXAMPLES) if not is_odd(e["prediction"]["features"]["event_id"])),
        "expired": Counter(p["features"]["event_id"] for p in river.decoded(topics.EXPIRED) if not is_odd(p["features"]["event_id"])),
        "letters": Counter((letter.reason, letter.value) for letter in river.letters() if b"-clock" not in letter.value),
    }  # fmt: skip


def marks(river: River) -> list[tuple[int, int]]:
    return [(join.log_watermark, join.labels_watermark) for _, join in sorted(river.steps["joiner"].joins.items())]


def account(river: River, sent_events: int, sent_labels: int) -> None:
    """Assert that every message ended in exactly one place."""
    valid, labels = len(river.of(topics.EVENTS_VALID)), len(river.of(topics.LABELS_VALID))
    refused = Counter(letter.source[0].rpartition(".")[2] for letter in river.letters("validator"))
    assert sent_events == valid + refused["events"]
    assert sent_labels == labels + refused["labels"]
    assert valid == len(river.of(topics.FEATURES)) == len(river.of(topics.PREDICTION_LOG))
    by_joiner = Counter(letter.reason for letter in river.letters("joiner"))
    joined, expired = len(river.of(topics.EXAMPLES)), len(river.of(topics.EXPIRED))
    assert valid == joined + expired + river.pending + by_joiner["duplicate_event"]
    assert labels == joined + river.waiting + by_joiner["unmatched_label"] + by_joiner["duplicate_label"]
    ids = Counter(e["prediction"]["features"]["event_id"] for e in river.decoded(topics.EXAMPLES))
    ids += Counter(p["features"]["event_id"] for p in river.decoded(topics.EXPIRED))
    assert max(ids.values()) == 1


PIPELINES = [
    pytest.param("flights", "scheduled", "6h", id="flights-6h"),
    pytest.param("flights", "scheduled", "48h", id="flights-48h"),
    pytest.param("delays", "departure", "6h", id="delays-6h"),
]


@pytest.mark.parametrize(("name", "question", "timeout"), PIPELINES)
@pytest.mark.parametrize("side", ["events", "labels", "both"])
def test_clocks_a_day_ahead_are_quarantined_and_move_no_watermark(
    name: str, question: Any, timeout: str, side: str
) -> None:
    pipeline, found = forgetful(name, timeout), recent(question)
    # The flights of the last day are ahead of now; those of the day before are only ahead of the others.
    river = play(pipeline, found, DAY if side != "labels" else 1, DAY if side != "events" else 1)
    now, tolerance = time.time() * 1000, milliseconds(pipeline.future_tolerance)
    odd = found[::EVERY]
    ahead_events = [f for f in odd if side != "labels" and f.event["asked_at"] + DAY > now + tolerance]
    ahead_labels = [f for f in odd if side != "events" and f.label and f.label["landed_at"] + DAY > now + tolerance]
    letters = river.letters("validator")
    assert {letter.reason for letter in letters} == {"in_the_future"}
    counted = Counter(letter.field for letter in letters)
    assert counted == Counter({"asked_at": len(ahead_events), "landed_at": len(ahead_labels)})
    assert counted.total() > 20
    assert all(b"-clock" in letter.value for letter in letters)
    account(river, len(found) + len(odd), sum(f.label is not None for f in [*found, *odd]))
    assert max(max(pair) for pair in marks(river)) <= now + tolerance


@pytest.mark.parametrize(("name", "question", "timeout"), PIPELINES)
@pytest.mark.parametrize("off", [2 * DAY + HOUR, 400 * DAY], ids=["days", "a year"])
def test_clocks_ahead_of_now_change_nothing_for_the_others(name: str, question: Any, timeout: str, off: int) -> None:
    pipeline, found = forgetful(name, timeout), recent(question)
    plain, river = play(pipeline, found), play(pipeline, found, off, off)
    assert len(river.letters("validator")) == sum(1 + (f.label is not None) for f in found[::EVERY])
    assert decided(river) == decided(plain)
    assert marks(river) == marks(plain), "no watermark jumped"
    assert (river.pending, river.waiting) == (plain.pending, plain.waiting)
    assert len(river.of(topics.EXAMPLES)) > len(found) / 2


@pytest.mark.parametrize(("name", "question", "timeout"), PIPELINES)
@pytest.mark.parametrize("side", ["events", "labels", "both"])
def test_clocks_a_day_behind_are_late_and_change_nothing_for_the_others(
    name: str, question: Any, timeout: str, side: str
) -> None:
    pipeline, found = forgetful(name, timeout), recent(question, 3 * DAY)
    odd = found[::EVERY]
    found += later(found, 2 * DAY + HOUR)  # by then everything was decided, with and without the odd ones
    events_off, labels_off = -DAY if side != "labels" else 0, -DAY if side != "events" else 0
    plain, river = play(pipeline, found), play(pipeline, found, events_off, labels_off or -1)
    assert river.letters("validator") == []
    account(river, len(found) + len(odd), sum(f.label is not None for f in [*found, *odd]))
    assert marks(river) == marks(plain), "the watermarks reach what they reach without them"
    if side == "labels":  # their events are in time, so they count in the windows as any event does
        assert {k: v for k, v in decided(river).items() if k != "vectors"} == {
            k: v for k, v in decided(plain).items() if k != "vectors"
        }
    else:
        assert decided(river) == decided(plain)
    late = {p["event_id"] for p in river.decoded(topics.PREDICTIONS) if is_odd(p["event_id"])}
    assert len(late) == len(odd), "a late event is late, not lost"


def test_events_a_day_behind_are_counted_as_late() -> None:
    """Each is older than any window of the view by then, so it is counted and not added."""
    pipeline, found = forgetful("flights", "48h"), recent("scheduled")
    river = River(pipeline)
    step, topic, out = Featurizer(pipeline), topics.EVENTS_VALID.name("flights"), []
    step.assign(TopicPartition(topic, 0), Position(0))
    sent, late, served = 0, 0, topics.FEATURES.name("flights")
    origins = [e["origin"] for e, _ in found[: 2 * RECENT_RECORDS]]
    for number, (event, _) in enumerate(found):
        # One in five, when time has come so far and the airport is known: most events say what is late.
        is_copied = number >= len(origins) and number % 5 == 0 and event["origin"] in origins
        for copy in (event, odd_copy(0, True, event, -DAY))[: 1 + is_copied]:
            late += copy is not event
            record = MemoryRecord(topic, river.records.event.encode(copy), b"k", 1, None, 0, sent)
            step.process([record], lambda to, *_: out.append(to) if to == served else None)
            sent += 1
    assert len(out) == sent
    assert step.counts["tile_too_old", "origin"] == late > 50


def test_every_stream_has_a_guard_of_its_time_and_check_shows_it() -> None:
    guarded, own = forgetful("flights", "48h"), load("flights")
    for pipeline, tolerance in ((guarded, "6m"), (own, "5m")):
        times = [
            (r.field, r.text) for r in (*pipeline.event_checks, *pipeline.label_checks) if r.name == "not_after_now"
        ]
        assert times == [("asked_at", f"at most {tolerance} after now"), ("landed_at", "at most 6m after now")]
        for field, text in times:
            assert {"rule": "not_after_now", "field": field, "expects": text} in CheckReport(pipeline).as_dict()[
                "rules"
            ]
            assert f"{field}" in pipeline_text(pipeline).partition("vector")[0]
            assert text in pipeline_text(pipeline)


def test_a_declared_tolerance_takes_the_place_of_the_default() -> None:
    given = dataclasses.replace(load("delays"), rules=[], label_rules=[])
    tight = dataclasses.replace(given, rules=[rules.not_after_now("asked_at", "10m")], label_rules=[])
    now = int(time.time() * 1000)
    event = {**flights("departure", 1, 1)[0].event, "asked_at": now + HOUR // 2}
    label = {"flight_id": "a", "landed_at": now + HOUR // 2, "arr_delay": 1.0}
    for pipeline, expected in ((given, []), (tight, ["asked_at"])):
        river = River(pipeline)
        river.event(event)
        river.label(label)
        river.run()
        assert sorted(letter.field for letter in river.letters()) == expected


@pytest.mark.parametrize(
    ("change", "most"),
    [
        ({}, "1h"),
        ({"label_timeout": "10m"}, "1m"),
        ({"label_timeout": "30s"}, "3s"),
        ({"views": [View("origin", every="1m", aggregates=[aggregates.count("5m", "2h")])]}, "30s"),
        ({"views": [View("dest", every="1m", aggregates=[aggregates.count("2h")], expires="20m")]}, "2m"),
        ({"views": [View("dest", every="10s", source="examples", aggregates=[aggregates.count("50s")])]}, "5s"),
    ],
)
def test_what_may_be_ahead_is_a_tenth_of_what_it_could_end_and_more_is_refused_with_the_fix(
    change: Any, most: str
) -> None:
    pipeline = dataclasses.replace(load("delays"), rules=[], label_rules=[], **change)
    assert pipeline.future_tolerance == most
    for checks in (pipeline.event_checks, pipeline.label_checks):
        assert [r.text for r in checks if r.name == "not_after_now"] == [f"at most {most} after now"]
    wider = duration(milliseconds(most) + 1)
    for name, field in (("rules", "asked_at"), ("label_rules", "landed_at")):
        dataclasses.replace(pipeline, **{name: [rules.not_after_now(field, most)]})
        with pytest.raises(DeclarationError) as refused:
            dataclasses.replace(pipeline, **{name: [rules.not_after_now(field, wider)]})
        for part in (name, field, wider, f"Declare not_after_now('{field}', '{most}')", "label_timeout"):
            assert part in str(refused.value)


def test_a_rule_that_only_warns_of_times_ahead_is_no_guard() -> None:
    given = load("delays")
    warned = dataclasses.replace(given, rules=[rules.not_after_now("asked_at", "5m", warn=True)])
    river = River(warned)
    ahead = int(time.time() * 1000) + 2 * HOUR
    river.event({**flights("departure", 1, 1)[0].event, "asked_at": ahead})
    river.run()
    assert [(letter.reason, letter.field) for letter in river.letters()] == [("in_the_future", "asked_at")]
