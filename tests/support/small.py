"""A small pipeline for tests: the demo's schemas, a view with every aggregate, two models; and events for it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from river import linear_model, optim, preprocessing

from tidemill import Pipeline, Stream, View, aggregates, category, number, rules
from tidemill.stream.memory import MemoryRecord
from tidemill.wire.records import Records

MINUTE, HOUR = 60_000, 3_600_000
EVENTS = Stream("flights/departure.v1.avsc", id="flight_id", time="asked_at", key="origin")
LABELS = Stream("flights/arrival.v1.avsc", id="flight_id", time="landed_at", value="arr_delay")
VIEW = View(
    "origin",
    every="1m",
    aggregates=[
        aggregates.count("5m"),
        aggregates.sum("distance", "5m"),
        aggregates.mean("dep_delay", "2m", "5m"),
        aggregates.std("distance", "5m"),
        aggregates.min("dep_delay", "5m"),
        aggregates.max("distance", "5m"),
        aggregates.last("dep_delay", "5m"),
        aggregates.time_since_last("5m"),
        aggregates.rate("2m"),
        aggregates.first("dep_delay", "5m"),
        aggregates.distinct("carrier", "5m"),
        aggregates.quantile("distance", 0.9, "2m", "5m"),
        aggregates.top_share("dest", "5m"),
        aggregates.decayed_mean("distance", "90s", "5m"),
        aggregates.ratio(aggregates.sum("distance", "5m"), aggregates.count("5m")),
        aggregates.shrunk_mean("dep_delay", 5.0, 3, "5m"),
    ],
)


def linear(rate: float = 0.001) -> Any:
    return preprocessing.StandardScaler() | linear_model.LinearRegression(optim.SGD(rate))


def declaration(**changes: Any) -> dict[str, Any]:
    """What `Pipeline` is given."""
    return {
        "name": "small",
        "events": EVENTS,
        "labels": LABELS,
        "task": "regression",
        "rules": [rules.between("sched_hour", 0, 23)],
        "label_rules": [rules.between("arr_delay", -180, 2880)],
        "request": {"distance": number("distance"), "hour": number("sched_hour")},
        "views": [VIEW],
        "models": {"linear": linear(), "slow": linear(0.0001)},
        "champion": "linear",
        "label_timeout": "1h",
        "partitions": 2,
        **changes,
    }


def make(**changes: Any) -> Pipeline:
    return Pipeline(**declaration(**changes))


def with_category(**changes: Any) -> Pipeline:
    return make(request={"distance": number("distance"), "carrier": category("carrier")}, **changes)


_EVENT: Mapping[str, Any] = {
    "carrier": "UA", "flight": 1545, "tailnum": None, "dest": "LAX", "sched_hour": 5, "flight_date": 15706, "sched_minutes": 100.0,
    "dep_delay": None, "temp": None, "dewp": None, "wind_speed": None, "precip": None, "visib": None,
}  # fmt: skip


def event(
    flight_id: str = "a", asked_at: int = 0, origin: str = "JFK", distance: float = 100.0, **more: Any
) -> dict[str, Any]:
    """Return one event, every field of the schema present."""
    return {"flight_id": flight_id, "asked_at": asked_at, "origin": origin, "distance": distance, **_EVENT, **more}


def label(flight_id: str = "a", landed_at: int = 0, arr_delay: float = 1.0) -> dict[str, Any]:
    return {"flight_id": flight_id, "landed_at": landed_at, "arr_delay": arr_delay}


def as_json(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record).encode()


def features(pipeline: Pipeline, event_id: str, event_time: int, offset: int = 0, **vector: Any) -> dict[str, Any]:
    """Return one Features record; features that are not given are missing."""
    return {
        "event_id": event_id, "entity_id": "JFK", "event_time": event_time, "partition": 0, "offset": offset, "partial": False,
        "entities": {}, "as_of": {}, "stale": [],
        "vector": dict.fromkeys(pipeline.vector) | vector,
    }  # fmt: skip


def score(model: str = "linear", value: float = 0.5, version: int = 0) -> dict[str, Any]:
    return {"model": model, "version": version, "epoch": 0, "score": value, "probabilities": {}, "answered": True}


def example(pipeline: Pipeline, event_id: str, target: float, offset: int = 0, **vector: Any) -> dict[str, Any]:
    """Return one Example record."""
    served = {
        "features": features(pipeline, event_id, offset, offset, **vector),
        "champion": score(),
        "challengers": [],
    }
    return {"prediction": served, "label": target, "label_time": offset + 1}


def example_records(pipeline: Pipeline, many: int) -> list[MemoryRecord]:
    """Return `many` different examples as records of the examples topic."""
    codec = Records(pipeline).example
    return [
        MemoryRecord(
            "small.examples",
            codec.encode(example(pipeline, f"e{i}", (i * 7 % 13) - 6.0, i, distance=float(i % 11) * 50, hour=float(i % 24))),
            offset=i,
        )
        for i in range(many)
    ]  # fmt: skip


class Emitted:
    """An `emit` that keeps what it was given, as records."""

    def __init__(self) -> None:
        self.records: list[MemoryRecord] = []

    def __call__(
        self, topic: str, value: bytes, key: Any = None, timestamp: int = 0, headers: Any = None, partition: int = -1
    ):
        self.records.append(MemoryRecord(topic, value, key, timestamp, headers, max(partition, 0), len(self.records)))

    def of(self, topic: str) -> Sequence[MemoryRecord]:
        return [r for r in self.records if r.topic() == topic]
