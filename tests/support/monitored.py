"""Flights whose distribution is known: drawn at random from a month, so that no day differs from another but by chance."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from tidemill.declare.pipeline import Pipeline
from tidemill.demo.data import Flight, labels
from tidemill.offline.backtest import Backtest
from tidemill.stream.memory import MemoryRecord
from tidemill.watch.monitor.core import ClosedWindow, Core
from tidemill.wire import topics

DAY_MS = 86_400_000
Shift = Callable[[dict[str, Any], dict[str, Any] | None, random.Random], None]
"""Changes an event and its label in place."""


def drawn(pool: Sequence[Flight], days: range, a_day: int, seed: int, shift: Shift | None = None) -> list[Flight]:
    """Return flights of `days` (since the epoch), `a_day` of them a day, each a copy of one of the pool at its time of day."""
    rng = random.Random(seed)
    found = []
    for day in days:
        for number in range(a_day):
            event, label = rng.choice(pool)
            moved = day * DAY_MS + event["asked_at"] % DAY_MS - event["asked_at"]
            name = f"{day}-{number}"
            event = {**event, "flight_id": name, "asked_at": event["asked_at"] + moved}
            if label is not None:
                label = {**label, "flight_id": name, "landed_at": label["landed_at"] + moved}
            if shift:
                shift(event, label, rng)
            found.append(Flight(event, label))
    found.sort(key=lambda flight: flight.event["asked_at"])
    return found


def logs_of(pipeline: Pipeline, flights: Sequence[Flight], cut: int | None = None) -> list[MemoryRecord]:
    """Return what a whole pipeline writes of these flights, in order of time: its prediction log and its examples.

    `cut`: the time in ms from which on no update reaches a view.
    """
    updates = topics.UPDATES.name(pipeline.name)
    wanted = {topics.PREDICTION_LOG.name(pipeline.name), topics.EXAMPLES.name(pipeline.name)}
    found: list[MemoryRecord] = []
    run = Backtest(pipeline)
    emit = run._emit

    def seen(topic: str, value: bytes, key: bytes | None = None, timestamp: int = 0, *more: Any) -> None:
        if topic in wanted:
            found.append(MemoryRecord(topic, value, key, timestamp))
        if topic == updates and cut is not None and timestamp >= cut:
            return
        emit(topic, value, key, timestamp, *more)

    run._emit = seen  # type: ignore[method-assign]
    run.run([flight.event for flight in flights], labels(flights))
    offsets = dict.fromkeys(wanted, 0)
    numbered = []
    for record in found:
        offset = offsets[record.topic()]
        offsets[record.topic()] += 1
        numbered.append(
            MemoryRecord(record.topic(), record.value(), record.key(), record.timestamp()[1], None, 0, offset)
        )
    return numbered


def watched(pipeline: Pipeline, records: Sequence[MemoryRecord], every: int = 50) -> list[ClosedWindow]:
    """Return the windows that a monitor closes over these records."""
    core = Core(pipeline, lambda: 0.0)
    log = topics.PREDICTION_LOG.name(pipeline.name)
    closed: list[ClosedWindow] = []
    for start in range(0, len(records), every):
        batch = records[start : start + every]
        core.predictions([r for r in batch if r.topic() == log])
        core.examples([r for r in batch if r.topic() != log])
        closed += core.close({})
    return closed
