"""The demo's messages, as producers send them: events at departure, labels when planes land; some are corrupted."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tidemill.declare.pipeline import Pipeline
from tidemill.demo import data
from tidemill.local.replay import Message
from tidemill.wire import topics
from tidemill.wire.records import Records


def _hour(event: dict[str, Any], records: Records) -> bytes:
    return records.event.encode({**event, "sched_hour": 77})


def _float_for_int(event: dict[str, Any], _: Records) -> bytes:
    return json.dumps({**event, "flight": event["flight"] + 0.5}).encode()


def _missing_field(event: dict[str, Any], _: Records) -> bytes:
    return json.dumps({name: value for name, value in event.items() if name != "carrier"}).encode()


def _truncated(event: dict[str, Any], records: Records) -> bytes:
    data_ = records.event.encode(event)
    return data_[: len(data_) // 2]


CORRUPTIONS: Sequence[Callable[[dict[str, Any], Records], bytes]] = (_hour, _float_for_int, _missing_field, _truncated)


def script(pipeline: Pipeline, flights: Iterable[data.Flight], corrupt_every: int = 0) -> list[Message]:
    """Return all messages in order of event time; a label comes before an event of the same time.

    After every `corrupt_every` events a corrupted copy of one is added, with an id of its own: the models learn the
    same as without it.
    """
    flights = list(flights)
    records = Records(pipeline)
    events_topic, labels_topic = topics.EVENTS.name(pipeline), topics.LABELS.name(pipeline)
    corruptions = itertools.cycle(CORRUPTIONS)
    messages: list[tuple[int, int, Message]] = []
    for label in data.labels(flights):
        message = Message(
            label["landed_at"], labels_topic, label["flight_id"].encode(), records.label.encode(label), False
        )
        messages.append((message.at, 0, message))
    for index, (event, _) in enumerate(flights, 1):
        key, at = event["flight_id"].encode(), event["asked_at"]
        messages.append((at, 1, Message(at, events_topic, key, records.event.encode(event), True)))
        if corrupt_every and index % corrupt_every == 0:
            corrupted = {**event, "flight_id": f"{event['flight_id']}-corrupted"}
            messages.append((at, 1, Message(at, events_topic, key, next(corruptions)(corrupted, records), True)))
    messages.sort(key=lambda item: item[:2])
    return [message for _, _, message in messages]
