"""What views cost: CPU by the number of aggregates and of entities, updates, memory, and round trips to Redis.

    make bench-views                             every table (under three minutes)
    make bench-views ARGS="--only memory"        one of them
    make bench-views ARGS="--json views.json"    and as JSON

Steps run in this process without Kafka, on flights that are encoded beforehand, in batches of 50; CPU is that of this
process alone, the best of several runs. Memory is that of child processes, one a figure. Without a redis-server what needs
one is left out. Machines are shared and noisy: compare ratios within one run.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.declared import bench
from tidemill import View, aggregates
from tidemill.aggregates import Aggregate
from tidemill.declare.pipeline import Pipeline
from tidemill.demo import data
from tidemill.errors import StoreError
from tidemill.features.lookup import InMemoryRemoteViews, RemoteViews, StoredRemoteViews
from tidemill.features.memory import MemoryView
from tidemill.features.ports import ViewStore
from tidemill.features.redis import RedisReader, RedisView, connect
from tidemill.features.tiles import Plan
from tidemill.features.views import ViewState
from tidemill.local.servers import Redis
from tidemill.stages.featurizer.service import Featurizer
from tidemill.stages.materializer.service import Materializer
from tidemill.stream import api
from tidemill.stream.api import Emit, Position, Processor, Record, TopicPartition
from tidemill.stream.loop import tune_collector
from tidemill.stream.memory import MemoryRecord
from tidemill.wire import topics
from tidemill.wire.records import Records

WARM, MEASURED, BATCH = 4000, 2000, 50
"""Events that fill the windows; events that are measured, all of them in the hour after; and how many come at once."""
OTHERS = ("dest", "carrier", "tailnum")
NUMBERS = ("distance", "wind_speed", "temp", "visib", "precip", "dewp", "sched_minutes")
Report = dict[str, Any]
Stores = Mapping[str, ViewStore]


@cache
def keep(many: int) -> list[Aggregate]:
    """Return the first of: the ten of `make bench`, then whatever numbers have, over windows of 1 and 3 hours."""
    kinds = (aggregates.sum, aggregates.mean, aggregates.std, aggregates.min, aggregates.max)
    found = list(bench.views[0].flat)
    found += [a for kind in kinds for name in NUMBERS for a in kind(name, "1h", "3h")]
    return list({a.name: a for a in found}.values())[:many]


def declared(own: int, others: int, of_each: int) -> Pipeline:
    """Return a pipeline with `own` aggregates of the events' key and `of_each` of the first `others` other entities."""
    views = [View("origin", every="5m", aggregates=keep(own))] if own else []
    views += [View(name, every="5m", aggregates=keep(of_each)) for name in OTHERS[:others]]
    return replace(bench, views=views)


@cache
def flights() -> list[dict[str, Any]]:
    """Return events, the last ones moved to right after the first, so that they find windows that are full."""
    found = [f.event for f in data.flights((1,), days=10) if f.event["tailnum"]][: WARM + MEASURED]
    last = found[WARM - 1]["asked_at"]
    late = [{**event, "asked_at": last + i} for i, event in enumerate(found[WARM:])]
    return found[:WARM] + late


class Kept:
    """An `emit` that keeps what goes to one topic."""

    def __init__(self, topic: str) -> None:
        self.topic, self.records = topic, list[MemoryRecord]()

    def __call__(
        self, topic: str, value: bytes, key: bytes | None = None, timestamp: int = 0, *_: Any, **__: Any
    ) -> None:
        if topic == self.topic:
            self.records.append(MemoryRecord(topic, value, key, timestamp, None, 0, len(self.records)))


def nowhere(*_: Any, **__: Any) -> None:
    """Emit nothing, after the step has made it."""


def events_of(pipeline: Pipeline) -> list[MemoryRecord]:
    """Return the flights as valid events."""
    topic, codec = topics.EVENTS_VALID.name(pipeline.name), Records(pipeline).event
    return [
        MemoryRecord(topic, codec.encode(event), event["origin"].encode(), event["asked_at"], None, 0, offset)
        for offset, event in enumerate(flights())
    ]


def updates_of(pipeline: Pipeline) -> tuple[list[MemoryRecord], int]:
    """Return the updates that the flights make, and how many of them come before those that are measured."""
    kept = Kept(topics.UPDATES.name(pipeline.name))
    step, events = featurizer(pipeline), events_of(pipeline)
    step.process(events[:WARM], kept)
    before = len(kept.records)
    step.process(events[WARM:], kept)
    return kept.records, before


def featurizer(pipeline: Pipeline, others: RemoteViews | None = None, stores: Stores | None = None) -> Featurizer:
    """Return a featurizer that begins at the beginning."""
    step = Featurizer(pipeline, stores, others)
    step.assign(TopicPartition(topics.EVENTS_VALID.name(pipeline.name), 0), Position(0))
    return step


def materializer(pipeline: Pipeline, stores: Stores | None = None) -> Materializer:
    """Return a materializer that begins at the beginning."""
    step = Materializer(pipeline, stores)
    step.assign(TopicPartition(topics.UPDATES.name(pipeline.name), 0), Position(0))
    return step


def batches(records: Sequence[Record], size: int) -> Iterator[Sequence[Record]]:
    """Yield the records in batches of `size`."""
    return (records[at : at + size] for at in range(0, len(records), size))


def timed(step: Processor, records: Sequence[Record], *, writes: bool = False) -> dict[str, float]:
    """Return microseconds of CPU and of wall time a record; `writes`: with the stores' writes after each batch."""
    emit: Emit = nowhere  # type: ignore[assignment]
    gc.collect()
    cpu, wall = time.process_time(), time.perf_counter()
    for batch in batches(records, BATCH):
        step.process(batch, emit)
        if writes:
            step.committed()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"cpu": cpu / len(records) * 1e6, "wall": wall / len(records) * 1e6}


def alone(pipeline: Pipeline) -> float:
    """Return microseconds of CPU an event that views take by themselves: what was known is read, the event is added."""
    plan, events = Plan(pipeline.inline_views[0]), flights()
    held = ViewState(plan)
    for event in events[:WARM]:
        held.add(event["origin"], event["asked_at"], event)
    gc.collect()
    cpu = time.process_time()
    for event in events[WARM:]:
        plan.read(held.entities[event["origin"]], event["asked_at"])
        held.add(event["origin"], event["asked_at"], event)
    return (time.process_time() - cpu) / MEASURED * 1e6


def best(times: int, run: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Return the run that took the least CPU."""
    return min((run() for _ in range(times)), key=lambda found: found["cpu"])


class MemoryReader:
    """Reads stores in memory as `RedisReader` reads Redis: the tiles are text as well."""

    def __init__(self, stores: Mapping[str, MemoryView]) -> None:
        self.stores = stores

    def read(
        self, wanted: Mapping[str, Collection[str]], partitions: int
    ) -> tuple[dict[tuple[str, str], dict[str, str]], dict[str, list[str | None]]]:
        """Read as `ViewReader.read` says."""
        tiles = {(v, e): self.stores[v].tiles[0].get(e, {}) for v, entities in wanted.items() for e in entities}
        return tiles, {view: [self.stores[view].note(p) for p in range(partitions)] for view in wanted}


def stores_of(pipeline: Pipeline, redis_url: str) -> dict[str, RedisView]:
    """Return a store in an emptied Redis for every view."""
    client = connect(redis_url)
    client.flushall()
    return {view.label: RedisView(client, pipeline.name, view.label) for view in pipeline.views}


def filled(pipeline: Pipeline, stores: Stores) -> Materializer:
    """Return a materializer that has brought the first updates to its stores."""
    step, (updates, before) = materializer(pipeline, stores), updates_of(pipeline)
    step.process(updates[:before], nowhere)  # type: ignore[arg-type]
    step.committed()
    return step


def by_aggregates(times: int) -> list[Report]:
    """Measure the featurizer by the number of aggregates on one entity."""
    found = []
    for many in (1, 10, 50):
        pipeline = declared(many, 0, 0)
        events = events_of(pipeline)

        def run(pipeline: Pipeline = pipeline, events: list[MemoryRecord] = events) -> dict[str, float]:
            step = featurizer(pipeline)
            step.process(events[:WARM], nowhere)  # type: ignore[arg-type]
            return timed(step, events[WARM:])

        views = min(alone(pipeline) for _ in range(times))
        found.append({"aggregates": many, "read and add": views, **best(times, run)})
    return found


def by_entities(times: int, redis_url: str) -> list[Report]:
    """Measure the featurizer by the number of entities, ten aggregates each, and by where the others' views are."""
    found = []
    for others in range(len(OTHERS) + 1):
        pipeline = declared(10, others, 10)
        events = events_of(pipeline)
        held = filled(pipeline, {})
        memory = {view.label: MemoryView() for view in pipeline.remote_views}
        filled(pipeline, memory)
        places: dict[str, RemoteViews | None] = {"in the process": InMemoryRemoteViews(held.views)}
        if others:
            places["memory reader"] = StoredRemoteViews(pipeline, MemoryReader(memory), 1)
        if others and redis_url:
            filled(pipeline, stores_of(pipeline, redis_url))
            places["redis"] = StoredRemoteViews(pipeline, RedisReader(connect(redis_url), pipeline.name), 1)
        for place, view in places.items():

            def run(pipeline: Pipeline = pipeline, view: RemoteViews | None = view) -> dict[str, float]:
                step = featurizer(pipeline, view)
                step.process(events[:WARM], api.discard)  # noqa: B023  as the state is rebuilt: nobody is asked
                return timed(step, events[WARM:])  # noqa: B023

            found.append({"entities": 1 + others, "others read": place if others else "-", **best(times, run)})
    return found


def by_updates(times: int, redis_url: str) -> list[Report]:
    """Measure the materializer by the number of aggregates on one other entity, an update an event."""
    found = []
    for many in (1, 10, 50):
        pipeline = declared(0, 1, many)
        updates, before = updates_of(pipeline)
        for place in ("memory", "redis") if redis_url else ("memory",):

            def run(pipeline: Pipeline = pipeline, place: str = place) -> dict[str, float]:
                step = materializer(pipeline, stores_of(pipeline, redis_url) if place == "redis" else {})
                step.process(updates[:before], nowhere)  # type: ignore[arg-type]  # noqa: B023
                step.committed()
                return timed(step, updates[before:], writes=place == "redis")  # noqa: B023

            found.append({"aggregates": many, "kept in": place, **best(times, run)})
    return found


def memory(tiles: int, entities: int, redis_url: str) -> dict[str, float]:
    """Return bytes an entity with ten aggregates costs in this process, and in Redis; to be run in a child."""
    pipeline = declared(0, 1, 10)
    stores = stores_of(pipeline, redis_url) if redis_url else {}
    step, codec, topic = materializer(pipeline, stores), Records(pipeline).update, topics.UPDATES.name(pipeline.name)
    numbers = dict.fromkeys(NUMBERS, 1.5)
    client = connect(redis_url) if redis_url else None
    stored = client.info("memory")["used_memory"] if client else 0
    gc.collect()
    resident, offset = rss(), 0
    for tile in range(tiles):
        for start in range(0, entities, 1000):
            some = []
            for entity in range(start, min(start + 1000, entities)):
                update = {
                    "source": "events", "entity": "dest", "entity_id": f"entity-{entity}", "time": tile * 300_000 + entity,
                    "event_id": "e", "numbers": {n: x + entity % 97 for n, x in numbers.items()}, "texts": {}, "control": "",
                }  # fmt: skip
                some.append(MemoryRecord(topic, codec.encode(update), None, 0, None, 0, offset))
                offset += 1
            step.process(some, nowhere)  # type: ignore[arg-type]
            if redis_url:
                step.committed()
            else:
                step.views.states[0][0].written()  # as if it had been: what waits to be written is not the state
    gc.collect()
    grown = (rss() - resident) / entities
    return {"bytes": grown} if client is None else {"redis": (client.info("memory")["used_memory"] - stored) / entities}


def rss() -> int:
    """Return this process's resident memory in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def by_tiles(entities: int, redis_url: str) -> list[Report]:
    """Measure memory in child processes, by how many tiles of its 36 an entity has."""
    found = []
    for tiles in (1, 6):
        row: Report = {"tiles": tiles}
        for url in ("", redis_url) if redis_url else ("",):
            command = [sys.executable, "-m", "benchmarks.views", "--child", json.dumps([tiles, entities, url])]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"the child failed:\n{done.stderr[-2000:]}")
            row |= json.loads(done.stdout)
        found.append(
            {"tiles": tiles, "process_mb": row["bytes"] / 10, "redis_mb": row["redis"] / 10 if redis_url else None}
        )
    return found


class RoundTrips:
    """Counts how often a client sends something and waits for the answer."""

    def __init__(self, client: Any) -> None:
        kind = client.connection_pool.connection_class
        self.many, self._kind, self._send = 0, kind, kind.send_packed_command

    def __enter__(self) -> RoundTrips:
        def counted(connection: Any, *arguments: Any, **options: Any) -> Any:
            self.many += 1
            return self._send(connection, *arguments, **options)

        self._kind.send_packed_command = counted
        return self

    def __exit__(self, *_: object) -> None:
        self._kind.send_packed_command = self._send


def by_batch(redis_url: str) -> list[Report]:
    """Count round trips for 1,000 events with one own and three other entities, by the size of batches."""
    pipeline, found = declared(10, 3, 10), []
    events, (updates, before) = events_of(pipeline)[WARM : WARM + 1000], updates_of(pipeline)
    for size in (1, 50, 500):
        stores, client = stores_of(pipeline, redis_url), connect(redis_url)
        views = filled(pipeline, {view.label: stores[view.label] for view in pipeline.remote_views})
        step = featurizer(
            pipeline, StoredRemoteViews(pipeline, RedisReader(client, pipeline.name), 1), {"origin": stores["origin"]}
        )
        row: Report = {"batch": size, "reads": 0, "own writes": 0, "others' writes": 0}
        # Once a second stores are looked at also where there is nothing to write; that is no matter of events.
        step.views.clock = views.views.clock = lambda: 0.0
        for batch in batches(events, size):
            with RoundTrips(client) as trips:
                step.process(batch, nowhere)  # type: ignore[arg-type]
            row["reads"] += trips.many
            with RoundTrips(client) as trips:
                step.committed()
            row["own writes"] += trips.many
        for batch in batches(updates[before : before + 3000], 3 * size):
            views.process(batch, nowhere)  # type: ignore[arg-type]
            with RoundTrips(client) as trips:
                views.committed()
            row["others' writes"] += trips.many
        found.append(row)
    return found


def show(title: str, rows: list[Report]) -> None:
    """Print a table; times with their ratio to the first row."""
    print(f"\n{title}\n")
    names = list(rows[0])
    print("".join(f"{name:>16}" for name in names) + (f"{'x first':>10}" if "cpu" in names else ""))
    for row in rows:
        shown = (
            f"{value:,.1f}" if isinstance(value, float) else "-" if value is None else f"{value}"
            for value in row.values()
        )
        print(
            "".join(f"{value:>16}" for value in shown)
            + (f"{row['cpu'] / rows[0]['cpu']:>10.2f}" if "cpu" in row else "")
        )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        prog="make bench-views ARGS=...", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    names = ("aggregates", "entities", "updates", "memory", "trips")
    parser.add_argument("--only", action="append", choices=names, help="only this table; may be given often")
    parser.add_argument("--runs", type=int, default=4, help="runs of each measurement, the best of which counts")
    parser.add_argument("--entities", type=int, default=20_000, help="entities whose memory is measured")
    parser.add_argument("--no-redis", action="store_true", help="leave out what needs Redis")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(memory(*json.loads(given.child))))
        return
    tune_collector()
    began, report, wanted = time.monotonic(), dict[str, list[Report]](), given.only or names
    with ExitStack() as cleanup:
        url = "" if given.no_redis else start_redis(cleanup)
        tables: dict[str, tuple[str, Callable[[], list[Report]]]] = {
            "aggregates": ("featurizer: µs an event, by aggregates on one entity", lambda: by_aggregates(given.runs)),
            "entities": ("featurizer: µs an event, by entities with 10 aggregates each, the own one included; "
                         "batches of 50", lambda: by_entities(given.runs, url)),
            "updates": ("materializer: µs an update; redis: with its writes, a batch of 50 each", lambda: by_updates(given.runs, url)),
            "memory": ("MB for 100,000 entities with 10 aggregates, by tiles an entity has", lambda: by_tiles(given.entities, url)),
            "trips": ("round trips to Redis for 1,000 events, one own view and three others", lambda: by_batch(url) if url else []),
        }  # fmt: skip
        for name in names:
            if name in wanted:
                title, measure = tables[name]
                report[name] = measure()
                if report[name]:
                    show(title, report[name])
    print(f"\n{time.monotonic() - began:.0f} s")
    if given.json:
        given.json.write_text(json.dumps(report, indent=2) + "\n")


def start_redis(cleanup: ExitStack) -> str:
    """Return the address of a Redis of our own; empty, and say so, where there is none."""
    try:
        redis = Redis(Path(cleanup.enter_context(tempfile.TemporaryDirectory())))
    except StoreError as error:
        print(f"without Redis: {error}", file=sys.stderr)
        return ""
    cleanup.callback(redis.stop)
    return redis.url


if __name__ == "__main__":
    main()
