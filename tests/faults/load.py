"""Load for fault tests: flights at a set rate of wall time, as many as are asked for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from tidemill.declare.pipeline import Pipeline
from tidemill.demo import data
from tidemill.demo.script import CORRUPTIONS
from tidemill.local.replay import Message
from tidemill.wire import topics
from tidemill.wire.records import Records

DAY_MS = 86_400_000


def again_and_again(
    pipeline: Pipeline, found: Sequence[data.Flight], events: int | None = None, corrupt_every: int = 0
) -> Iterator[Message]:
    """Yield messages of `events` flights: those found, then the same with other ids after the last of them, and so on.

    Every `corrupt_every` events a corrupted copy of one comes beside it, with an id of its own.
    """
    records = Records(pipeline)
    to_events, to_labels = topics.EVENTS.name(pipeline.name), topics.LABELS.name(pipeline.name)
    order: list[tuple[int, int, int]] = []
    for index, (event, label) in enumerate(found):
        order.append((event["asked_at"], 1, index))
        if label is not None:
            order.append((label["landed_at"], 0, index))
    order.sort()
    days = (order[-1][0] - order[0][0]) // DAY_MS + 1
    corruptions = itertools.cycle(CORRUPTIONS)
    sent, lap = 0, 0
    while events is None or sent < events:
        shift = lap * days * DAY_MS
        for at, is_event, index in order:
            event, label = found[index]
            name = f"{event['flight_id']}-{lap}" if lap else event["flight_id"]
            if is_event:
                record = {**event, "flight_id": name, "asked_at": at + shift}
                record["flight_date"] += lap * days
                yield Message(at + shift, to_events, name.encode(), records.event.encode(record), True)
                sent += 1
                if corrupt_every and sent % corrupt_every == 0:
                    corrupted = {**record, "flight_id": f"{name}-corrupted"}
                    yield Message(at + shift, to_events, name.encode(), next(corruptions)(corrupted, records), True)
                if sent == events:
                    return
            else:
                assert label is not None
                record = {**label, "flight_id": name, "landed_at": at + shift}
                yield Message(at + shift, to_labels, name.encode(), records.label.encode(record), False)
        lap += 1


def paced(messages: Iterator[Message] | Sequence[Message], events_a_second: float) -> Iterator[Message]:
    """Yield the messages with times such that a replay at speed 1 sends so many events a second."""
    events = 0
    for message in messages:
        yield message._replace(at=int(events / events_a_second * 1000))
        events += message.is_event
