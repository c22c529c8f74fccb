"""Quix Streams, exactly once, as its documentation has stateful processing, windowing and joins.

`own` keeps tiles and what waits for its label in its state; `windows` has sliding windows and an as-of join instead, in
which an event is part of its own windows.
"""

from __future__ import annotations

import sys
import tempfile
from datetime import timedelta
from typing import Any

import quixstreams.dataframe.windows.aggregations as agg
from quixstreams import Application, State
from quixstreams.dataframe import StreamingDataFrame
from quixstreams.models.serializers.avro import AvroDeserializer, AvroSerializer

from benchmarks.peers import work

Row = dict[str, Any]


def own_features(event: Row, state: State) -> Row:
    """Return an event with its vector, from state by origin."""
    tiles = state.get("tiles", [])
    x = work.ask(event, tiles)
    work.add(event, tiles)
    state.set("tiles", tiles)
    return {"event": event, "x": x}


def own_join(row: Row, state: State) -> Row | None:
    """Return a prediction with its label, by flight."""
    if "x" in row:
        state.set("pending", row)
        return None
    pending = state.get("pending")
    if pending is None:
        return None
    state.delete("pending")
    return {**pending, **row}


class Deviation(agg.Aggregator):
    """The standard deviation: Quix has none."""

    def initialize(self) -> list[float]:
        """Return n, sum and sum of squares."""
        return [0, 0.0, 0.0]

    def agg(self, old: list[float], new: Row, timestamp: int) -> list[float]:  # noqa: ARG002
        """Add an event."""
        value = new[self.column]
        return [old[0] + 1, old[1] + value, old[2] + value * value]

    def result(self, value: list[float]) -> float | None:
        """Return the deviation."""
        n, total, squares = value
        return (max(0.0, squares - total * total / n) / (n - 1)) ** 0.5 if n > 1 else None


def windows(sdf: StreamingDataFrame) -> StreamingDataFrame:
    """Return events with their vectors, from two windows, one after the other."""

    def at_event(value: Row, *_: Any) -> int:
        return value["event"]["asked_at"]

    def time_since_last(event: Row, state: State) -> Row:
        before = state.get("asked_at")
        state.set("asked_at", event["asked_at"])
        return {**event, "since": (event["asked_at"] - before) / 1000 if before else None}

    def vector(row: Row) -> Row:
        three, event = row["three"], row["three"]["event"]
        x = {
            "distance": event["distance"],
            "hour": float(event["sched_hour"]),
            "sched_minutes": event["sched_minutes"],
            "count_1h": float(row["count"]),
            "count_3h": float(three["count"]),
            "sum_precip_3h": three["precip"],
            "mean_distance_1h": row["distance"],
            "mean_distance_3h": three["distance"],
            "std_distance_3h": three["deviation"],
            "min_visib_3h": three["visib"],
            "max_wind_speed_3h": three["wind_speed"],
            "last_temp_1h": row["temp"],
            "time_since_last_3h": event["since"],
        }
        return {"event": event, "x": {name: value for name, value in x.items() if value is not None}}

    three_hours = (
        sdf.apply(time_since_last, stateful=True)
        .sliding_window(timedelta(hours=3))
        .agg(
            event=agg.Latest(),
            count=agg.Count(),
            precip=agg.Sum("precip"),
            distance=agg.Mean("distance"),
            deviation=Deviation("distance"),
            visib=agg.Min("visib"),
            wind_speed=agg.Max("wind_speed"),
        )
        .current()
        .set_timestamp(at_event)
    )
    return (
        three_hours.apply(
            lambda row: {"distance": row["event"]["distance"], "temp": row["event"]["temp"], "three": row}
        )
        .sliding_window(timedelta(hours=1))
        .agg(three=agg.Latest("three"), count=agg.Count(), distance=agg.Mean("distance"), temp=agg.Latest("temp"))
        .current()
        .apply(vector)
        .set_timestamp(at_event)
    )


def main() -> None:
    """Run until all events and labels are done."""
    watch, model, is_own, left = work.Stopwatch(), work.Model(), sys.argv[3] == "own", {}
    left["messages"] = watch.events + watch.labels

    def processed(*_: Any) -> None:
        left["messages"] -= 1
        if not left["messages"]:
            app.stop()

    app = Application(
        broker_address=watch.servers,
        consumer_group=watch.name,
        auto_offset_reset="earliest",
        processing_guarantee="exactly-once",
        state_dir=tempfile.mkdtemp(),
        on_message_processed=processed,
        loglevel="WARNING",
    )
    events = app.topic("events", AvroDeserializer(work.EVENT), "str")
    labels = app.topic("labels", AvroDeserializer(work.LABEL), "str")
    predictions = app.topic(watch.topic, value_serializer=AvroSerializer(work.PREDICTION), key_serializer="str")

    def predict(row: Row) -> Row:
        return {"x": row["x"], "score": model.predict(row["x"])}

    sdf = app.dataframe(events)
    sdf = sdf.update(lambda _: watch.start()).filter(work.is_valid)
    sdf = sdf.apply(own_features, stateful=True) if is_own else windows(sdf)
    sdf = sdf.apply(lambda row: {**row, **predict(row)})
    sdf.apply(
        lambda row: {
            "event_id": row["event"]["flight_id"],
            "entity_id": row["event"]["origin"],
            "event_time": row["event"]["asked_at"],
            "score": row["score"],
        }
    ).to_topic(predictions)
    sdf = sdf.group_by(lambda row: row["event"]["flight_id"], name="flight")
    sdf = sdf.apply(lambda row: {"x": row["x"], "score": row["score"]})
    landed = app.dataframe(labels)
    if is_own:
        joined = sdf.concat(landed).apply(own_join, stateful=True).filter(lambda row: row is not None)
    else:
        joined = landed.join_asof(sdf, grace_ms=timedelta(hours=48))
    joined.update(lambda row: model.learn(row["x"], row["score"], row["arr_delay"]))
    app.run()
    watch.report(model)


if __name__ == "__main__":
    main()
