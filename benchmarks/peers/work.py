"""What every peer does with an event and a label, apart from streaming: rules, windows, model, metrics.

It is Tidemill's pipeline in benchmarks/declared.py as a person would write it by hand. Nothing of Tidemill is imported:
peers run in a virtual environment of their own.
"""

from __future__ import annotations

import json
import os
import sys
import time
from io import BytesIO
from math import sqrt
from pathlib import Path
from typing import Any

import fastavro
from river import compose, linear_model, metrics, optim, preprocessing

SCHEMAS = Path(__file__).parents[2] / "schemas" / "flights"
EVENT, LABEL = (json.loads((SCHEMAS / f"{name}.v1.avsc").read_text()) for name in ("departure", "arrival"))
PREDICTION = {
    "type": "record",
    "name": "Prediction",
    "fields": [
        {"name": "event_id", "type": "string"},
        {"name": "entity_id", "type": "string"},
        {"name": "event_time", "type": "long"},
        {"name": "score", "type": "double"},
    ],
}
for field in (*EVENT["fields"], *LABEL["fields"]):  # times stay numbers
    if isinstance(field["type"], dict):
        field["type"] = field["type"]["type"]
READ_EVENT, READ_LABEL, WRITE = (fastavro.parse_schema(schema) for schema in (EVENT, LABEL, PREDICTION))

CARRIERS = {"9E", "AA", "AS", "B6", "DL", "EV", "F9", "FL", "HA", "MQ", "OO", "UA", "US", "VX", "WN", "YV"}
ORIGINS = {"EWR", "JFK", "LGA"}
#: Windows are exact to five minutes; in ms, and how many of them an hour and three hours have.
STEP, HOUR, THREE_HOURS = 300_000, 12, 36
NOTHING = 1e300
TIMEOUT = 48 * 3_600_000


def decode_event(value: bytes) -> dict[str, Any]:
    """Return an event."""
    return fastavro.schemaless_reader(BytesIO(value), READ_EVENT, None)


def decode_label(value: bytes) -> dict[str, Any]:
    """Return a label."""
    return fastavro.schemaless_reader(BytesIO(value), READ_LABEL, None)


def encode_prediction(prediction: dict[str, Any]) -> bytes:
    """Return a prediction as Avro."""
    out = BytesIO()
    fastavro.schemaless_writer(out, WRITE, prediction)
    return out.getvalue()


def is_valid(event: dict[str, Any]) -> bool:
    """Apply the five rules."""
    return (
        0 <= event["sched_hour"] <= 23
        and event["carrier"] in CARRIERS
        and event["origin"] in ORIGINS
        and 1 <= event["distance"] <= 12_500
        and event["asked_at"] <= (time.time() + 300) * 1000
    )


def ask(event: dict[str, Any], tiles: list[list[Any]]) -> dict[str, float]:
    """Return the vector of an event, from what came before it: `tiles` are an origin's, of five minutes, oldest first."""
    now = event["asked_at"]
    first = now // STEP - THREE_HOURS
    while tiles and tiles[0][0] <= first:
        del tiles[0]
    hour = [tile for tile in tiles if tile[0] > now // STEP - HOUR]
    x = {
        "distance": event["distance"],
        "hour": float(event["sched_hour"]),
        "sched_minutes": event["sched_minutes"],
        "count_1h": float(sum([tile[1] for tile in hour])),
        "count_3h": float(sum([tile[1] for tile in tiles])),
    }
    if sum([tile[2] for tile in tiles]):
        x["sum_precip_3h"] = sum([tile[3] for tile in tiles])
    if hour:
        x["mean_distance_1h"] = sum([tile[4] for tile in hour]) / x["count_1h"]
    if tiles:
        n, total = x["count_3h"], sum([tile[4] for tile in tiles])
        x["mean_distance_3h"] = total / n
        if n > 1:
            squares = sum([tile[5] for tile in tiles])
            x["std_distance_3h"] = sqrt(max(0.0, squares - total * total / n) / (n - 1))
        if (least := min([tile[6] for tile in tiles])) < NOTHING:
            x["min_visib_3h"] = least
        if (most := max([tile[7] for tile in tiles])) > -NOTHING:
            x["max_wind_speed_3h"] = most
        for tile in reversed(hour):
            if tile[8] is not None:
                x["last_temp_1h"] = tile[8]
                break
        x["time_since_last_3h"] = (now - tiles[-1][9]) / 1000
    return x


def add(event: dict[str, Any], tiles: list[list[Any]]) -> None:
    """Add an event to its origin's tiles: start, n, n and sum of precip, sum and squares of distance, least, most, last."""
    now, distance = event["asked_at"], event["distance"]
    if not tiles or tiles[-1][0] != now // STEP:
        tiles.append([now // STEP, 0, 0, 0.0, 0.0, 0.0, NOTHING, -NOTHING, None, now])
    tile = tiles[-1]
    tile[1] += 1
    if event["precip"] is not None:
        tile[2] += 1
        tile[3] += event["precip"]
    tile[4] += distance
    tile[5] += distance * distance
    if event["visib"] is not None:
        tile[6] = min(tile[6], event["visib"])
    if event["wind_speed"] is not None:
        tile[7] = max(tile[7], event["wind_speed"])
    if event["temp"] is not None:
        tile[8] = event["temp"]
    tile[9] = now


#: What every model is asked in the end: the answer depends on all that was learned, and in which order.
PROBE = {"distance": 1000.0, "hour": 17.0, "sched_minutes": 180.0}


class Model:
    """The model and its three prequential metrics."""

    def __init__(self) -> None:
        self.river = (
            compose.SelectType(float)
            | preprocessing.StandardScaler()
            | linear_model.LogisticRegression(optim.SGD(0.003))
        )
        self.accuracy, self.rocauc, self.log_loss = metrics.Accuracy(), metrics.ROCAUC(), metrics.LogLoss()
        self.learned = 0

    def predict(self, x: dict[str, float]) -> float:
        """Return the probability that the flight is late."""
        return self.river.predict_proba_one(x)[True]

    def learn(self, x: dict[str, float], score: float, arrival_delay: float) -> None:
        """Judge what was predicted, then learn."""
        is_late, prediction = arrival_delay > 15, {True: score, False: 1.0 - score}
        self.accuracy.update(is_late, score > 0.5)
        self.rocauc.update(is_late, prediction)
        self.log_loss.update(is_late, prediction)
        self.river.learn_one(x, is_late)
        self.learned += 1


class Stopwatch:
    """CPU of this process, all its threads included, from the first event to the end."""

    def __init__(self) -> None:
        self.servers, self.name = os.environ["PEER_SERVERS"], os.environ["PEER_NAME"]
        self.topic = f"predictions-{self.name}"
        self.events, self.labels = map(int, sys.argv[1:3])
        self.began: tuple[float, float] | None = None

    def start(self) -> None:
        """The first event has come."""
        if self.began is None:
            self.began = (time.process_time(), time.perf_counter())

    def report(self, model: Model) -> None:
        """Print the figures, for the process that started this one."""
        assert self.began is not None
        cpu, wall = time.process_time() - self.began[0], time.perf_counter() - self.began[1]
        values = {"Accuracy": model.accuracy.get(), "ROCAUC": model.rocauc.get(), "LogLoss": model.log_loss.get()}
        figures = {"cpu": cpu, "wall": wall, "learned": model.learned, "probe": model.predict(PROBE), "metrics": values}
        print(json.dumps(figures), file=sys.__stdout__, flush=True)  # faust logs what is printed otherwise
