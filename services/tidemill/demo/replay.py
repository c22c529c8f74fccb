"""Replays flights as their producers would send them: events at departure, labels when the planes land."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tidemill.declare.pipeline import Pipeline
from tidemill.demo import data
from tidemill.stream.kafka.producer import Sender
from tidemill.wire import topics
from tidemill.wire.records import Records


class Message(NamedTuple):
    """One message to send at event time `at` (ms since the epoch)."""

    at: int
    topic: str
    key: bytes
    value: bytes
    is_event: bool


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
    events_topic, labels_topic = topics.EVENTS.name(pipeline.name), topics.LABELS.name(pipeline.name)
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


class Replay(threading.Thread):
    """Sends a script, in a thread of its own.

    Parameters
    ----------
    speed
        Event time per wall time: 1 is real time, 44,640 is a month of 31 days in a minute.
    has_room
        Called before each message; nothing is sent while it returns False.
    """

    def __init__(
        self,
        servers: str,
        messages: Iterable[Message],
        speed: float,
        *,
        extra: Mapping[str, Any] | None = None,
        has_room: Callable[[], bool] = lambda: True,
    ) -> None:
        super().__init__(name="replay", daemon=True)
        self._messages = iter(messages)
        self._first = next(self._messages, None)
        self.speed, self.has_room = speed, has_room
        self.events = self.labels = 0
        self.clock = self._first.at if self._first else 0
        self.started_at = self.ended_at = 0.0
        self.error: Exception | None = None
        self._sender = Sender(servers, extra)
        self._stop_asked = threading.Event()

    def run(self) -> None:
        """Send everything at `speed`."""
        try:
            self.started_at = time.monotonic()
            for message in self._paced():
                self._sender.send(message.topic, message.value, message.key)
                if message.is_event:
                    self.events += 1
                else:
                    self.labels += 1
                self.clock = message.at
            self._sender.flush()
            self.ended_at = time.monotonic()
        except Exception as error:  # raised by the thread that waits for this one
            self.error = error

    def _paced(self) -> Iterator[Message]:
        if self._first is None:
            return
        began = time.monotonic()
        for message in itertools.chain([self._first], self._messages):
            due = began + (message.at - self._first.at) / 1000 / self.speed
            while (wait := due - time.monotonic()) > 0.001 or not self.has_room():
                self._sender.poll()
                if self._stop_asked.wait(min(max(wait, 0.001), 0.05)):
                    return
            if self._stop_asked.is_set():
                return
            yield message

    def stop(self) -> None:
        """Send nothing more."""
        self._stop_asked.set()
        if self.is_alive():
            self.join(5)
