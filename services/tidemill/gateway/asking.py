"""From a record that came in to what is answered: sent once, and the river's own answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, TypeVar

from fastapi import HTTPException

from tidemill.declare.pipeline import Pipeline
from tidemill.errors import Reject, StoreError
from tidemill.features.store import Store
from tidemill.gateway.checking import Checked, Checker
from tidemill.gateway.commands import Commands
from tidemill.gateway.journeys import Journeys
from tidemill.gateway.requests import Call, IdempotencyKeys, Rates
from tidemill.gateway.river import Event, River, is_repeat
from tidemill.gateway.what_if import WhatIf
from tidemill.limits import LOG_LOOKUPS, STATUS_CHANGES
from tidemill.metrics import GATEWAY_RECORDS, GATEWAY_UNANSWERED
from tidemill.offline.lookup import LogLookup
from tidemill.stream.trace import Traces
from tidemill.web.access import Access
from tidemill.wire import topics
from tidemill.wire.dead_letters import DeadLetter, shorten
from tidemill.wire.records import Prediction

#: The HTTP status of what became of a single record.
CODES: Mapping[str, int] = {
    "predicted": 200,
    "what_if": 200,
    "written": 200,
    "repeated": 200,
    "pending": 202,
    "conflict": 409,
    "refused": 422,
    "unwritten": 503,
}
#: How long a record may take to be written, after which it is not known whether it is.
WRITTEN_SECONDS = 5.0
Answer = dict[str, Any]
Found = TypeVar("Found")
_BEHIND = {"Retry-After": "1"}
_records, _unanswered = cache(GATEWAY_RECORDS.labels), GATEWAY_UNANSWERED.labels("gateway")


@dataclass
class Asked:
    """A record on its way: its answer where that is known at once; else its id, and what tells that it is written."""

    event_id: str = ""
    written: asyncio.Future[str] | None = None
    is_repeated: bool = False
    answer: Answer | None = None


@dataclass
class Gateway:
    """What the routes ask.

    Parameters
    ----------
    ready
        Returns what is wrong with Kafka or Redis; None where all is well.
    """

    pipeline: Pipeline
    river: River
    lookup: LogLookup
    access: Access
    rates: Rates
    store: Store
    what_if: WhatIf
    commands: Commands
    keys: IdempotencyKeys = field(default_factory=IdempotencyKeys)
    traces: Traces = field(default_factory=Traces)
    is_draining: bool = False
    #: Bytes of the bodies of all requests that are being answered.
    body_bytes: int = 0

    def __post_init__(self) -> None:
        self.journeys = Journeys(self.pipeline, self.river.broker, self.lookup)
        self._checkers = {topic: Checker(self.pipeline, topic) for topic in (topics.EVENTS, topics.LABELS)}
        self._lookups = asyncio.Semaphore(LOG_LOOKUPS.max)
        self._changes = asyncio.Semaphore(STATUS_CHANGES.max)

    def drain(self, seconds: float) -> None:
        """Take nothing new; whoever waits is answered within so many seconds, with what is known by then."""
        self.is_draining = True
        self.river.end_waits(seconds)

    def ready(self) -> str | None:
        """Return why it can't be asked; None where it can."""
        return "it ends" if self.is_draining else self.river.why_not_ready or None

    def check_ready(self) -> None:
        """Raise HTTPException where nothing can be answered now: then the client tries again."""
        if why := self.ready():
            raise HTTPException(503, f"not ready: {why}", _BEHIND)

    def check_behind(self) -> None:
        """Raise HTTPException where so much is unanswered that no more should be asked."""
        is_behind = self.river.is_behind()
        _unanswered.set(len(self.river.unanswered))
        if is_behind:
            raise HTTPException(503, "the river is behind: too many events wait for their prediction", _BEHIND)

    def send_event(self, data: bytes, call: Call) -> Asked:
        """Send an event, unless its id came before. What can't be taken has its answer at once."""
        try:
            event = self._checkers[topics.EVENTS].check(data, is_cloud_event=call.is_cloud_event)
        except Reject as reject:
            return Asked(answer=_refused(reject))
        known = self.river.events.get(event.id)
        letter = known.letter if known else None
        if known is None or (letter is not None and not is_repeat(letter, self.pipeline)):
            return self._asked(event, self.river.send_event(event, call.kafka_headers()))
        if known.digest and known.digest != event.digest:
            detail = f"event {event.id!r} came before, with other values: an id stands for one event"
            return Asked(answer={"state": "conflict", "event_id": event.id, "message": detail})
        return Asked(event.id, self.river.unanswered.get(event.id, (0, None))[1], is_repeated=True)

    def send_label(self, data: bytes, call: Call) -> Asked:
        """Send a label; of one that repeats another the joiner makes a dead letter."""
        try:
            label = self._checkers[topics.LABELS].check(data, is_cloud_event=call.is_cloud_event)
        except Reject as reject:
            return Asked(answer=_refused(reject))
        topic = topics.LABELS.name(self.pipeline)
        return self._asked(label, self.river.send(topic, label, call.kafka_headers()))

    async def asked_what_if(self, data: bytes, call: Call) -> Answer:
        """Return what would be predicted of an event; nothing is sent, and nothing is written."""
        try:
            event, _ = self._checkers[topics.EVENTS].read(data, is_cloud_event=call.is_cloud_event)
            answer = await asyncio.get_running_loop().run_in_executor(None, self.what_if.ask, event)
        except Reject as reject:
            return _refused(reject)
        return {"state": "what_if", "written": False, **answer}

    async def commanded(self, ask: Callable[[], tuple[int, bytes]]) -> tuple[int, bytes]:
        """Return what the status service answers.

        Raises as `Commands` does, and HTTPException while too many wait for it.
        """
        if self._changes.locked():
            raise HTTPException(503, f"{STATUS_CHANGES.excess(STATUS_CHANGES.max + 1)}; try again in a moment", _BEHIND)
        async with self._changes:
            return await asyncio.get_running_loop().run_in_executor(None, ask)

    @staticmethod
    def _asked(record: Checked, written: asyncio.Future[str] | None) -> Asked:
        if written is None:
            return Asked(answer=_unwritten(record.id, "too much waits for Kafka"))
        return Asked(record.id, written)

    async def predicted(self, asked: Asked, deadline: float) -> Answer:
        """Return what the river makes of an event, or what is known at the deadline (of the monotonic clock)."""
        if asked.answer is not None:
            return asked.answer
        event = await self.river.settled(asked.event_id, deadline - time.monotonic())
        if event and event.letter and not event.prediction and is_repeat(event.letter, self.pipeline):
            if prediction := await self.in_log(asked.event_id):
                return _predicted(prediction, is_repeated=True)
            letter, event.letter = event.letter, None  # the first of that id may be on its way
            first = await self.river.settled(asked.event_id, deadline - time.monotonic())
            if first is None:
                event.letter = letter
                return _refused(letter, asked.event_id)
            event = first
        if event is not None:
            return self.answer(event, asked.event_id, is_repeated=asked.is_repeated)
        answer = await self.written(asked)
        return answer if answer["state"] == "unwritten" else {"state": "pending", "event_id": asked.event_id}

    async def written(self, asked: Asked) -> Answer:
        """Return whether Kafka has a record."""
        if asked.answer is not None:
            return asked.answer
        if asked.written is None:
            return {"state": "repeated", "event_id": asked.event_id}
        done, _ = await asyncio.wait([asked.written], timeout=WRITTEN_SECONDS)
        if not done:
            return _unwritten(asked.event_id, "Kafka has not answered yet, and may still take it")
        if why := asked.written.result():
            return _unwritten(asked.event_id, why)
        return {"state": "repeated" if asked.is_repeated else "written", "event_id": asked.event_id}

    def answer(self, event: Event, event_id: str, *, is_repeated: bool = False) -> Answer:
        """Return what became of an event as a client sees it."""
        prediction = self.river.records.read_prediction(event.prediction) if event.prediction else None
        if prediction is not None:
            return _predicted(prediction, is_repeated=is_repeated)
        return _refused(event.letter, event_id) if event.letter else {"state": "pending", "event_id": event_id}

    async def looked_up(self, look: Callable[[], Found]) -> Found:
        """Return what a look into the log returns. Raises HTTPException while too many look."""
        if self._lookups.locked():
            raise HTTPException(503, f"{LOG_LOOKUPS.excess(LOG_LOOKUPS.max + 1)}; try again in a moment", _BEHIND)
        async with self._lookups:
            return await asyncio.get_running_loop().run_in_executor(None, look)

    async def in_log(self, event_id: str) -> Prediction | None:
        """Return a prediction from the prediction log; None where it is not there, or too far back.

        Raises HTTPException while too many are looked for.
        """
        try:
            entry = await self.looked_up(partial(self.lookup.entry, event_id))
        except StoreError:
            return None
        if entry is None:
            return None
        features = entry["features"]
        return {
            "event_id": features["event_id"],
            "entity_id": features["entity_id"],
            "event_time": features["event_time"],
            "champion": entry["champion"],
            "as_of": features["as_of"],
            "stale": features["stale"],
        }


def count(stream: str, answer: Answer) -> Answer:
    """Count what became of a record; returns it."""
    _records(stream, answer["state"]).inc()
    return answer


def _predicted(prediction: Prediction, *, is_repeated: bool) -> Answer:
    return {"state": "predicted", **prediction, "repeated": is_repeated}


def _unwritten(event_id: str, why: str) -> Answer:
    message = f"{why}: send it again with the same id, which is predicted once"
    return {"state": "unwritten", "event_id": event_id, "message": message}


def _refused(why: Reject | DeadLetter, event_id: str = "") -> Answer:
    """Return why a record is refused, in the words of its dead letter; `service` is who has refused it."""
    if isinstance(why, Reject):
        words = {"message": str(why), "value": shorten(why.value), "service": "gateway"}
    else:
        words = {"message": why.message, "value": why.value, "service": why.stage, "letter": str(why.place)}
    known = {"event_id": event_id, "reason": why.reason, "rule": why.rule, "field": shorten(why.field), **words}
    return {"state": "refused", **{name: value for name, value in known.items() if value}}
