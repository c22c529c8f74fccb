"""NaN, infinities and numbers too large to reckon with, in every field that can hold one: none reaches a model.

One NaN leaves a scaled logistic regression NaN for ever, and 1e308 becomes an infinity as soon as it is squared; so
neither may come as far as `learn_one`, no score may be anything but finite, and the good events beside them must be
predicted as if nothing had happened.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from river import compose, dummy
from river_in_memory import River, fields, flights, json_with

from tidemill import Monitor, Pipeline, load, number
from tidemill.encoding import avro_codegen
from tidemill.rules import LARGEST_NUMBER
from tidemill.stream.topic import Topic
from tidemill.wire import topics

GREATEST = 1.7976931348623157e308
NOT_FINITE = (math.nan, math.inf, -math.inf)
TOO_LARGE = (1e308, -1e308, GREATEST, -GREATEST, 1e300, -1e300, 1e16, -1e16, math.nextafter(LARGEST_NUMBER, math.inf))
ODD_BUT_FINE = (-0.0, 5e-324, -5e-324, 2.2250738585072014e-308)
LITERALS = {
    "NaN": "not_finite", "Infinity": "not_finite", "-Infinity": "not_finite", "1e999": "not_finite", "-1e999": "not_finite",
    "1e308": "out_of_range", "-1e308": "out_of_range", "1e300": "out_of_range", "1" + "0" * 300: "wrong_type",
    "1" + "0" * 400: "wrong_type", '"NaN"': "wrong_type", '"1e308"': "wrong_type",
}  # fmt: skip
BOUNDED = {"distance": (1, 12_500), "arr_delay": (-180, 2880)}
"""The declared rules of fields that hold floats."""


class Case(NamedTuple):
    """One message, and what must become of it: a dead letter for this reason about this field; "" where it is fine."""

    topic: Topic
    key: str
    value: bytes
    reason: str
    field: str


def bad_records(river: River, record: dict[str, Any], topic: Topic) -> Iterator[Case]:
    """Yield copies of a good event or label, each with an odd value in one field, each event with an id of its own."""
    stream, codec = (
        (river.pipeline.events, river.records.event) if topic is topics.EVENTS else (river.pipeline.labels, river.records.label)
    )  # fmt: skip
    many = 0

    def case(value: bytes, reason: str, field: str) -> Case:
        return Case(topic, key(), value, reason, field)

    def key() -> str:
        return f"{record['flight_id']}-odd{many}" if topic is topics.EVENTS else record["flight_id"]

    for field in fields(stream.avro, stream.types, "float", "double"):
        for odd in (*NOT_FINITE, *TOO_LARGE, *ODD_BUT_FINE):
            reason = "not_finite" if not math.isfinite(odd) else "out_of_range" if abs(odd) > LARGEST_NUMBER else ""
            low, high = BOUNDED.get(field, (-math.inf, math.inf))
            reason = reason or ("" if low <= odd <= high else "out_of_range")
            many += 1
            yield case(codec.encode({**record, "flight_id": key(), field: odd}), reason, field)
        for literal, reason in LITERALS.items():
            many += 1
            yield case(json_with({**record, "flight_id": key()}, field, literal), reason, field)
    for field in fields(stream.avro, stream.types, "int", "long"):
        wide = 63 if stream.types[field] == "long" else 31
        for literal in ("NaN", "1e308", "Infinity", "1e999", str(2**wide), str(-(2**wide) - 1), "1" + "0" * 400):
            many += 1
            yield case(json_with({**record, "flight_id": key()}, field, literal), "wrong_type", field)
        for whole in (2**wide - 1, 2 ** (wide - 1), -(2**wide)):
            reason = "" if field in ("flight", "flight_date") or whole < 0 else "in_the_future"
            reason = "out_of_range" if field == "sched_hour" else reason
            reason = "implausible_time" if field.endswith("_at") and whole == -(2**63) else reason  # in no calendar
            many += 1
            yield case(codec.encode({**record, "flight_id": key(), field: whole}), reason, field)
        marked = {**record, "flight_id": key(), field: 123_456_789}
        many += 1
        whole_message = codec.encode(marked).replace(avro_codegen.varint(123_456_789), b"\xff" * 9 + b"\x7f")
        yield Case(topic, key(), whole_message, "undecodable", "")


class Learned:
    """Everything that came to a `learn_one` of River's, whoever called it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[dict[str, Any], Any]] = []
        self._depth = 0  # a pipeline within a pipeline is taught by the outer one
        for kind in (compose.Pipeline, dummy.PriorClassifier, dummy.StatisticRegressor):
            self._watch(monkeypatch, kind)

    def _watch(self, monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
        learn_one = kind.learn_one

        def watched(model: Any, x: dict[str, Any], y: Any = None, **more: Any) -> Any:
            if not self._depth:
                self.calls.append((dict(x), y))
            self._depth += 1
            try:
                return learn_one(model, x, y, **more)
            finally:
                self._depth -= 1

        monkeypatch.setattr(kind, "learn_one", watched)

    @property
    def numbers(self) -> list[float]:
        return [v for x, y in self.calls for v in (*x.values(), y) if isinstance(v, (int, float))]


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> Learned:
    return Learned(monkeypatch)


def scores(river: River) -> list[float]:
    found = [p["champion"]["score"] for p in river.decoded(topics.PREDICTIONS)]
    for log in river.decoded(topics.PREDICTION_LOG):
        found += [log["champion"]["score"], *(s["score"] for s in log["challengers"])]
    return found


@pytest.mark.parametrize(("name", "question"), [("flights", "scheduled"), ("delays", "departure")])
def test_no_hostile_number_reaches_a_model_and_every_good_event_is_predicted(
    name: str, question: Any, tmp_path: Path, learned: Learned
) -> None:
    river = River(load(name), tmp_path)
    good = flights(question, 1, 3)
    landed = [f for f in good if f.label is not None]
    odd = [*bad_records(river, dict(good[40].event), topics.EVENTS)]
    odd += [*bad_records(river, dict(landed[40].label or {}), topics.LABELS)]
    for part in range(3):  # the second and third are scored by what was learned beside the first
        events = good[part::3]
        cases = odd[part::3]
        for index, flight in enumerate(events):
            river.event(flight.event)
            for case in cases[index * len(cases) // len(events) : (index + 1) * len(cases) // len(events)]:
                river.send(case.topic, case.value, case.key)
        for flight in events:
            if flight.label:
                river.label(flight.label)
        river.run()

    letters = river.letters("validator")
    expected = Counter((case.value, case.reason, case.field) for case in odd if case.reason)
    assert Counter((letter.value, letter.reason, letter.field) for letter in letters) == expected
    assert all(repr(letter.field) in letter.message for letter in letters if letter.field)
    reasons = Counter(letter.reason for letter in letters)
    assert min(reasons[r] for r in ("not_finite", "out_of_range", "wrong_type", "in_the_future", "undecodable")) > 0

    accepted = [c.key for c in odd if not c.reason and c.topic is topics.EVENTS] + [f.event["flight_id"] for f in good]
    assert Counter(p["event_id"] for p in river.decoded(topics.PREDICTIONS)) == Counter(accepted)
    assert all(map(math.isfinite, scores(river)))
    assert max(p["champion"]["version"] for p in river.decoded(topics.PREDICTIONS)) > 0, "what was learned was served"

    joined = {e["prediction"]["features"]["event_id"] for e in river.decoded(topics.EXAMPLES)}
    assert {f.event["flight_id"] for f in landed} <= joined, "a bad label does not take the place of the good one"
    assert len(learned.calls) == len(river.decoded(topics.EXAMPLES)) >= len(landed)
    assert all(map(math.isfinite, learned.numbers))
    assert max(map(abs, learned.numbers)) <= 1e3 * LARGEST_NUMBER
    # What is learned is still a model: it says something finite, and not the same about everything.
    said = {p["champion"]["score"] for p in river.decoded(topics.PREDICTIONS)[-50:]}
    assert len(said) > 5


def test_what_a_declared_function_returns_is_bounded_as_a_field_is(tmp_path: Path, learned: Learned) -> None:
    odd = {
        "0": math.nan,
        "1": math.inf,
        "2": -math.inf,
        "3": 1e308,
        "4": -1e308,
        "5": 1e16,
        "6": LARGEST_NUMBER,
        "7": -5.0,
    }

    def hostile(event: Any) -> float:
        return odd.get(event["flight_id"][0], 1.0)

    pipeline = dataclasses.replace(
        load("delays"), request={"hostile": number(hostile), "distance": number("distance")}, monitor=Monitor()
    )
    river = River(pipeline, tmp_path)
    for flight in flights("departure", 1, 3):
        for name in odd:
            flight_id = f"{name}-{flight.event['flight_id']}"
            river.event({**flight.event, "flight_id": flight_id})
            if flight.label:
                river.label({**flight.label, "flight_id": flight_id})
    river.run()
    river.run()
    vectors = {(f["event_id"][0], f["vector"]["hostile"]) for f in river.decoded(topics.FEATURES)}
    assert vectors == {(n, odd[n] if n in "67" else None) for n in odd}
    assert len(learned.calls) > 1000
    assert {x.get("hostile") for x, _ in learned.calls} == {None, LARGEST_NUMBER, -5.0}
    assert all(map(math.isfinite, scores(river)))


def label_of(arrival: Any) -> Any:
    return json.loads(str(int(arrival["arr_delay"]))) if arrival["arr_delay"] < 100 else arrival["arr_delay"] * 1e306


def test_a_label_that_a_declared_function_makes_too_large_is_a_dead_letter(tmp_path: Path, learned: Learned) -> None:
    given = load("delays")
    pipeline: Pipeline = dataclasses.replace(given, labels=dataclasses.replace(given.labels, value=label_of))
    river, found = River(pipeline, tmp_path), flights("departure", 1, 3)
    for flight in found:
        river.event(flight.event)
        if flight.label:
            river.label(flight.label)
    river.run()
    late = sum(flight.label is not None and flight.label["arr_delay"] >= 100 for flight in found)
    assert late > 3
    assert [letter.reason for letter in river.letters()] == ["bad_label"] * late
    assert learned.calls
    assert max(abs(y) for _, y in learned.calls) < 100
