"""A vector of the forgotten is found wherever it stands; one that others have had as well is theirs."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

import tidemill
from tidemill.runtime import forget
from tidemill.runtime.forget import Forget, Subject
from tidemill.stream.memory import MemoryRecord
from tidemill.stream.topic import Topic
from tidemill.wire import topics
from tidemill.wire.records import Records

FLIGHTS = tidemill.load("flights")
RECORDS = Records(FLIGHTS)


def vector(number: float) -> dict[str, Any]:
    return dict.fromkeys(FLIGHTS.vector) | {"carrier": "UA", "distance": 1400.0, "temp": 39.02, "wind_speed": number}


def log(event_id: str, number: float) -> bytes:
    score = {"model": "logreg", "version": 1, "epoch": 0, "score": 0.25, "probabilities": {}, "answered": True}
    features = {
        "event_id": event_id, "entity_id": "JFK", "event_time": 1, "partition": 0, "offset": 1, "partial": False, "entities": {},
        "as_of": {}, "stale": [], "vector": vector(number),
    }  # fmt: skip
    return RECORDS.prediction_log.encode({"features": features, "champion": score, "challengers": []})


OWN, SHARED = RECORDS.vector.body(vector(6.9049)), RECORDS.vector.body(vector(8.0554))
SUBJECT = Subject([("tailnum", "N12345")], {"mine"}, {OWN, SHARED})


class Work(Forget):
    """A search through what a test says there is."""

    def __init__(self, artifacts: Mapping[str, bytes]) -> None:
        self.pipeline, self.records, self.kept = FLIGHTS, RECORDS, frozenset()
        self.broker: Any = self
        self.redis = self.archive = self.archived = None
        self.artifacts = artifacts

    def partitions(self, _: str) -> int:
        return 1

    def _artifacts(self) -> Iterator[tuple[str, bytes]]:
        yield from self.artifacts.items()


def left(
    monkeypatch: pytest.MonkeyPatch, records: Mapping[Topic, list[bytes]], artifacts: Mapping[str, bytes] | None = None
) -> dict[str, int]:
    named = {topic.name(FLIGHTS): values for topic, values in records.items()}

    def stored(_: Any, name: str) -> Iterator[list[MemoryRecord]]:
        yield [MemoryRecord(name, value, b"key", 0, []) for value in named.get(name, ())]

    monkeypatch.setattr(forget, "stored", stored)
    return dict(Work(artifacts or {})._vectors_left(SUBJECT))


def test_it_is_found_in_records_manifests_and_artifacts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert left(monkeypatch, {}) == {}
    golden = b"a manifest with the test vector " + OWN
    model = pickle.dumps(
        {"window": [({"temp": 1.5}, 0), ({"distance": 1400.0, "temp": 39.02, "wind_speed": 6.9049}, 1)]}
    )
    records = {topics.PREDICTION_LOG: [log("mine", 6.9049), log("other", 1.5)], topics.MODELS: [golden, b"another"]}
    assert left(monkeypatch, records, {"1f": model, "2f": pickle.dumps(vector(1.5))}) == {
        "flights.prediction-log": 1, "flights.models": 1, "artifacts": 1,
    }  # fmt: skip


def test_what_another_event_has_had_as_well_is_that_events(monkeypatch: pytest.MonkeyPatch) -> None:
    golden = b"a manifest with the test vector " + SHARED
    records = {topics.PREDICTION_LOG: [log("other", 8.0554)], topics.MODELS: [golden]}
    assert left(monkeypatch, records, {"1f": SHARED}) == {}
    assert left(monkeypatch, {topics.MODELS: [golden]}, {"1f": SHARED}) == {"flights.models": 1, "artifacts": 1}
