"""faust-streaming, exactly once, as its documentation has agents, tables and windowing.

`own` keeps tiles in a table by origin; `windows` has hopping tables instead, of which the oldest window that is still
open is the one that a feature is read from.
"""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import timedelta
from math import sqrt
from typing import Any

import faust

from benchmarks.peers import work

STEP = timedelta(minutes=5)
watch, model = work.Stopwatch(), work.Model()
app = faust.App(
    watch.name,
    broker=f"kafka://{watch.servers}",
    processing_guarantee="exactly_once",
    consumer_auto_offset_reset="earliest",
    topic_partitions=1,
    topic_disable_leader=True,
    web_enabled=False,
)
events = app.topic("events", key_type=str, value_type=bytes, key_serializer="raw", value_serializer="raw")
labels = app.topic("labels", key_type=str, value_type=bytes, key_serializer="raw", value_serializer="raw")
predictions = app.topic(watch.topic, key_type=str, value_type=bytes, key_serializer="raw", value_serializer="raw")
tiles = app.Table("tiles", default=list)
pending = app.Table("pending")
early = app.Table("early")
left = {"messages": watch.events + watch.labels}


def count() -> None:
    """Count a message; after the last one the process is to end."""
    left["messages"] -= 1
    if not left["messages"]:
        app.loop.create_task(end())


async def end() -> None:
    """Commit, report, and end: to stop a worker that has a transaction open ends in an error."""
    await asyncio.sleep(0.5)  # the last message counts as handled when the next one is asked for
    await app.consumer.commit()
    watch.report(model)
    os._exit(0)


def own(event: dict[str, Any]) -> dict[str, float]:
    """Return a vector from tiles, and add the event to them."""
    stored = tiles[event["origin"]]
    x = work.ask(event, stored)
    work.add(event, stored)
    tiles[event["origin"]] = stored
    return x


def windowed(hours: int) -> Any:
    """Return a table of hopping windows."""
    size = timedelta(hours=hours)
    table = app.Table(f"windows_{hours}h", default=list)
    return table.hopping(size, STEP, expires=size).relative_to_stream(), size - STEP


if sys.argv[3] == "windows":
    (one, back_one), (three, back_three) = windowed(1), windowed(3)


def collect(window: list[Any], event: dict[str, Any]) -> list[Any]:
    """Return what a window holds, with one event more; work's tiles do it."""
    tile = [window] if window else []
    if tile:
        tile[0][0] = event["asked_at"] // work.STEP
    work.add(event, tile)
    return list(tile[0])


def windows(event: dict[str, Any]) -> dict[str, float]:
    """Return a vector from hopping windows, and add the event to them."""
    origin, now = event["origin"], event["asked_at"]
    hour, hours = one[origin].delta(back_one), three[origin].delta(back_three)
    x = {"distance": event["distance"], "hour": float(event["sched_hour"]), "sched_minutes": event["sched_minutes"]}
    x |= {"count_1h": float(hour[1] if hour else 0), "count_3h": float(hours[1] if hours else 0)}
    if hours and hours[2]:
        x["sum_precip_3h"] = hours[3]
    if hour:
        x["mean_distance_1h"] = hour[4] / hour[1]
    if hours:
        n, total, squares = hours[1], hours[4], hours[5]
        x["mean_distance_3h"] = total / n
        if n > 1:
            x["std_distance_3h"] = sqrt(max(0.0, squares - total * total / n) / (n - 1))
        if hours[6] < work.NOTHING:
            x["min_visib_3h"] = hours[6]
        if hours[7] > -work.NOTHING:
            x["max_wind_speed_3h"] = hours[7]
        if hour and hour[8] is not None:
            x["last_temp_1h"] = hour[8]
        x["time_since_last_3h"] = (now - hours[9]) / 1000
    one[origin].apply(collect, event)
    three[origin].apply(collect, event)
    return x


features = own if sys.argv[3] == "own" else windows


@app.agent(events)
async def predict(stream: faust.Stream[bytes]) -> None:
    """Predict each event."""
    async for value in stream:
        watch.start()
        event = work.decode_event(value)
        if work.is_valid(event):
            x = features(event)
            id_, origin, score = event["flight_id"], event["origin"], model.predict(x)
            prediction = {"event_id": id_, "entity_id": origin, "event_time": event["asked_at"], "score": score}
            await predictions.send(key=origin, value=work.encode_prediction(prediction))
            if id_ in early:
                model.learn(x, score, early.pop(id_))
            else:
                pending[id_] = [x, score]
        count()


@app.agent(labels)
async def learn(stream: faust.Stream[bytes]) -> None:
    """Learn each label, or keep it until its event comes."""
    async for value in stream:
        label = work.decode_label(value)
        if label["flight_id"] in pending:
            x, score = pending.pop(label["flight_id"])
            model.learn(x, score, label["arr_delay"])
        else:
            early[label["flight_id"]] = label["arr_delay"]
        count()


if __name__ == "__main__":
    faust.Worker(app, loglevel="WARNING").execute_from_commandline()
