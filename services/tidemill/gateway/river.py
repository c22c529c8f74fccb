"""The river as the gateway sees it: what was sent, what became of it, and who waits for that.

writes  <pipeline>.events and <pipeline>.labels, as any producer
reads   <pipeline>.predictions, .dlq and .events, all partitions, without a group: first their latest records, so that a
        gateway that starts again knows which ids were sent and predicted, then whatever comes

Its state is touched by the event loop's thread alone. One more thread reads, and hands in what it has read.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import msgspec

from tidemill.declare.pipeline import Pipeline
from tidemill.encoding.codec import HEADER
from tidemill.errors import BrokerError, TopicError
from tidemill.gateway.checking import Checked
from tidemill.limits import GATEWAY_IDS, GATEWAY_STREAM_RECORDS, GATEWAY_UNANSWERED
from tidemill.stream.api import Broker, Headers, Record, TopicPartition
from tidemill.stream.declared import NOTHING_DECLARED, TOPIC_CHECK_SECONDS, TOPIC_CHECK_TIMEOUT, DeclaredTopics
from tidemill.wire import topics
from tidemill.wire.dead_letters import DeadLetter, read_dead_letter
from tidemill.wire.records import Prediction, Records

log = logging.getLogger(__name__)

#: The headers by which a gateway knows what a gateway has sent: the event's id, and a digest of what it says.
ID_HEADER, DIGEST_HEADER = "tidemill.event_id", "tidemill.digest"
READ_RECORDS, READ_SECONDS = 5_000, 0.1
#: An event that was not answered for so long is waited for, and counted, no more.
FORGOTTEN_SECONDS = 60.0
#: What was sent is read in parts: an own event is known before, and another gateway's matters until it is predicted.
#: To fetch each by itself would cost the broker as much again as its prediction.
EVENTS_SECONDS = 0.1
#: How often it asks what was written, while something is under way, of which a thread would hear one by one; and while
#: nothing is.
WRITTEN_CHECK_SECONDS, IDLE_CHECK_SECONDS = 0.003, 0.1
#: How long it waits before it reads again, after Kafka refused.
AGAIN_SECONDS = 1.0
#: How often it looks whether topics are as declared, and have got more partitions.
TOPICS_SECONDS = TOPIC_CHECK_SECONDS


class Sends(Protocol):
    """Sends records as a plain producer does."""

    def try_send(
        self, topic: str, value: bytes, key: bytes, headers: Headers, on_delivery: Callable[[str], None]
    ) -> bool: ...
    def poll(self, seconds: float = 0.0) -> None: ...
    def flush(self) -> None: ...


@dataclass(slots=True)
class Event:
    """What is known of one event id: the digest of what a gateway sent, the prediction's message, or the dead letter.

    `digest` is empty where another producer has sent it.
    """

    digest: bytes = b""
    prediction: bytes = b""
    letter: DeadLetter | None = None


class River:
    """Sends records, and knows what became of the latest events.

    `declared` is the number of partitions of each topic that it reads or writes: while one has another, it is not
    ready, and says so.
    """

    def __init__(
        self, pipeline: Pipeline, broker: Broker, sender: Sends, declared: Mapping[str, int] = NOTHING_DECLARED
    ) -> None:
        self._declared, self._differing = DeclaredTopics(broker, declared), ""
        self.pipeline, self.broker, self.sender, self.records = pipeline, broker, sender, Records(pipeline)
        self._topics = {topic.name(pipeline): topic for topic in (topics.EVENTS, topics.PREDICTIONS, topics.DLQ)}
        self.events: OrderedDict[str, Event] = OrderedDict()
        #: By id: when it was sent, by the monotonic clock, and whether it was written: "", or why not.
        self.unanswered: OrderedDict[str, tuple[float, asyncio.Future[str]]] = OrderedDict()
        self._waiters: dict[str, list[asyncio.Future[None]]] = {}
        self._delivered: deque[tuple[str, asyncio.Future[str], str]] = deque()
        self.streams: set[asyncio.Queue[tuple[str, Prediction] | None]] = set()
        self.why_not_ready = "the latest records are being read"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waits_end = False
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._read, name="reading", daemon=True)
        self._under_way = 0
        self._asking: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start reading; called in the event loop's thread."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        self._ask_what_is_written()

    def end_waits(self, seconds: float) -> None:
        """Have nobody wait longer than so many seconds from now on, so that all are answered before the end."""

        def end() -> None:
            self._waits_end = True
            for event_id in self._waiters:
                self._wake_waiters(event_id)

        self._call(lambda: asyncio.get_running_loop().call_later(seconds, end))

    def stop(self) -> None:
        """Stop reading, and wait until all that was sent is written."""
        self._ending.set()
        self._thread.join(5.0)
        try:
            self.sender.flush()
        except BrokerError as error:
            log.error("not all was written", extra={"cause": str(error)})

    def is_behind(self) -> bool:
        """Whether so much waits for its prediction that no more should come."""
        too_old = time.monotonic() - FORGOTTEN_SECONDS
        while self.unanswered and next(iter(self.unanswered.values()))[0] < too_old:
            self.unanswered.popitem(last=False)
        return len(self.unanswered) >= GATEWAY_UNANSWERED.max

    def send_event(self, event: Checked, headers: Headers) -> asyncio.Future[str] | None:
        """Send an event; returns what tells when it is written, or None while the queue is full."""
        own = [(ID_HEADER, event.id.encode()), (DIGEST_HEADER, event.digest), *headers]
        written = self.send(topics.EVENTS.name(self.pipeline), event, own)
        if written is not None:
            self._remember(event.id).digest = event.digest
            self.events[event.id].letter = None
            self.unanswered[event.id] = time.monotonic(), written
        return written

    def send(self, topic: str, record: Checked, headers: Headers) -> asyncio.Future[str] | None:
        """Send a record; returns what has "" once it is written, or why it is not; None while the queue is full."""
        loop = asyncio.get_running_loop()
        written: asyncio.Future[str] = loop.create_future()

        def delivered(why: str) -> None:
            self._delivered.append((record.id if topic in self._topics else "", written, why))

        if not self.sender.try_send(topic, record.data, record.key, headers, delivered):
            return None
        self._under_way += 1
        if self._under_way == 1 and self._asking:
            self._asking.cancel()
            self._asking = loop.call_later(WRITTEN_CHECK_SECONDS, self._ask_what_is_written)
        return written

    def _ask_what_is_written(self) -> None:
        """Ask the client what was written, and again soon while something is under way."""
        self.sender.poll()
        self._take_deliveries()
        if not self._ending.is_set():
            seconds = WRITTEN_CHECK_SECONDS if self._under_way else IDLE_CHECK_SECONDS
            self._asking = asyncio.get_running_loop().call_later(seconds, self._ask_what_is_written)

    def _take_deliveries(self) -> None:
        while self._delivered:
            self._under_way -= 1
            event_id, written, why = self._delivered.popleft()
            if not written.done():
                written.set_result(why)
            if why and event_id and not self.events.get(event_id, Event()).prediction:
                # It may be sent again. Should it have been written all the same, the reader hears of it.
                self.events.pop(event_id, None)
                self.unanswered.pop(event_id, None)
                self._wake(event_id)

    async def settled(self, event_id: str, seconds: float) -> Event | None:
        """Return what became of an event, waiting at most so long; None where nothing was heard."""
        event = self.events.get(event_id)
        if seconds > 0 and not self._waits_end and (event is None or not (event.prediction or event.letter)):
            loop = asyncio.get_running_loop()
            waiter: asyncio.Future[None] = loop.create_future()
            waiters = self._waiters.setdefault(event_id, [])
            waiters.append(waiter)
            patience = loop.call_later(seconds, _wake, waiter)  # wait_for would take another turn of the loop
            try:
                await waiter
            finally:
                patience.cancel()
                waiters.remove(waiter)
                if not waiters:
                    self._waiters.pop(event_id, None)
            event = self.events.get(event_id)
        return event if event and (event.prediction or event.letter) else None

    def take(self, records: Iterable[Record]) -> None:
        """Note what was read."""
        for record in records:
            topic = self._topics[record.topic()]
            if topic is topics.PREDICTIONS:
                self._predicted(record)
            elif topic is topics.DLQ:
                self._refused(record)
            else:
                own = dict((record.headers() or ())[:2])
                if ID_HEADER in own and DIGEST_HEADER in own:
                    self._remember((own[ID_HEADER] or b"").decode(errors="replace")).digest = own[DIGEST_HEADER] or b""

    def _predicted(self, record: Record) -> None:
        value = record.value() or b""
        prediction = self.records.read_prediction(value)
        if prediction is None:
            return
        event = self._remember(prediction["event_id"])
        if not event.prediction:  # the first one stays
            event.prediction, event.letter = value, None
            self._wake(prediction["event_id"])
        for stream in list(self.streams):
            if stream.qsize() >= GATEWAY_STREAM_RECORDS.max:
                self.streams.discard(stream)
                stream.put_nowait(None)
            else:
                stream.put_nowait((f"{record.partition()}:{record.offset()}", prediction))

    def _refused(self, record: Record) -> None:
        letter = read_dead_letter(record)
        event_id = self._event_id(letter.topic, record.value() or b"")
        event = self._remember(event_id) if event_id else Event(prediction=b"-")
        if not event.prediction:
            event.letter = letter
            self._wake(event_id)

    def _event_id(self, topic: str, value: bytes) -> str:
        """Return the id of the event that a dead letter is about; "" where it is about none, or can't be read."""
        sent, valid = topics.EVENTS.name(self.pipeline), topics.EVENTS_VALID.name(self.pipeline)
        try:
            if topic in (topics.FEATURES.name(self.pipeline), topics.PREDICTION_LOG.name(self.pipeline)):
                return str(self.records.head.record(value, HEADER)["event_id"])
            if topic == sent and value[:1] == b"{":
                return str(msgspec.json.decode(value)[self.pipeline.events.id])
            codec = {sent: self.records.sent_event, valid: self.records.event}[topic]
            return str((codec.of(value) or self.records.event.of(value) or {}).get(self.pipeline.events.id, ""))
        except Exception:  # bytes of somebody else may make a decoder raise anything
            return ""

    def _remember(self, event_id: str) -> Event:
        event = self.events.get(event_id)
        if event is None:
            event = self.events[event_id] = Event()
            if len(self.events) > GATEWAY_IDS.max:
                self.events.popitem(last=False)
        return event

    def _wake(self, event_id: str) -> None:
        self.unanswered.pop(event_id, None)
        self._wake_waiters(event_id)

    def _wake_waiters(self, event_id: str) -> None:
        for waiter in self._waiters.get(event_id, ()):
            _wake(waiter)

    def _call(self, function: Callable[..., object], *arguments: object) -> None:
        """Have the event loop's thread call a function; not before it has begun, nor once it has ended."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(function, *arguments)

    def _read(self) -> None:
        while not self._ending.is_set():
            try:
                self._follow()
            except BrokerError as error:
                log.warning("the river can't be read; it is tried again", extra={"cause": str(error)})
                self._call(self._set_ready, str(error))
                self._ending.wait(AGAIN_SECONDS)

    def _follow(self) -> None:
        ends = self._restore()
        self._check_topics()
        sent = topics.EVENTS.name(self.pipeline)
        answers = self.broker.follow_from({p: end for p, end in ends.items() if p.topic != sent})
        events = self.broker.follow_from({p: end for p, end in ends.items() if p.topic == sent}, EVENTS_SECONDS)
        look_at = time.monotonic() + TOPICS_SECONDS
        try:
            while not self._ending.is_set():
                if records := [*answers.poll(READ_RECORDS, READ_SECONDS), *events.poll(READ_RECORDS, 0.0)]:
                    self._call(self.take, records)
                if time.monotonic() >= look_at:
                    self._check_topics()
                    if sum(map(self.broker.partitions, self._topics)) != len(ends):
                        return  # and all is read again, those that are new as well
                    look_at = time.monotonic() + TOPICS_SECONDS
        finally:
            answers.close()
            events.close()

    def _check_topics(self) -> None:
        """Be ready where topics are as declared; asking has the broker know how many partitions there are by now."""
        with contextlib.suppress(BrokerError):  # it is away, or slow: that shows where it is read
            before = self._differing
            try:
                self._declared.check(TOPIC_CHECK_TIMEOUT)
                self._differing = ""
            except TopicError as error:
                self._differing = str(error)
            if self._differing != before:
                log.error("not ready" if self._differing else "ready again", extra={"cause": self._differing or before})
        self._call(self._set_ready, self._differing)

    def _set_ready(self, why_not: str) -> None:
        self.why_not_ready = why_not

    def _restore(self) -> Mapping[TopicPartition, int]:
        """Read the latest records of each topic, events first; returns where they end."""
        ends: dict[TopicPartition, int] = {}
        for name in self._topics:
            partitions = [TopicPartition(name, number) for number in range(self.broker.partitions(name))]
            ranges = {partition: self.broker.offset_range(partition) for partition in partitions}
            latest = GATEWAY_IDS.max // max(1, len(partitions))
            for batch in self.broker.read({p: (max(begin, end - latest), end) for p, (begin, end) in ranges.items()}):
                self._call(self.take, batch)
            ends |= {partition: end for partition, (_, end) in ranges.items()}
        return ends


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def is_repeat(letter: DeadLetter, pipeline: Pipeline) -> bool:
    """Return whether an event was refused for its id, which has come before: then another one has its prediction."""
    is_rule = letter.reason == "duplicate" and letter.field == pipeline.events.id
    return is_rule or letter.reason == "duplicate_event"
