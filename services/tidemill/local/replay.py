"""Replays events and labels as their producers would send them, faster than they came."""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import pickle
import select
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tidemill import settings
from tidemill.declare.pipeline import Pipeline
from tidemill.durations import minute
from tidemill.errors import SettingsError, TidemillError
from tidemill.local.processes import end, fork
from tidemill.stream.kafka.producer import Sender
from tidemill.stream.topic import Topic
from tidemill.wire import topics

if TYPE_CHECKING:
    from tidemill.offline import history

log = logging.getLogger(__name__)

#: How often it is logged how far a replay has come.
LOG_SECONDS = 10.0
#: Messages that a fork hands over at a time.
BATCH_MESSAGES = 1_000


class Message(NamedTuple):
    """One message to send at event time `at` (ms since the epoch)."""

    at: int
    topic: str
    key: bytes
    value: bytes
    is_event: bool


def from_files(pipeline: Pipeline, events: Path, labels: Path | None) -> list[Message]:
    """Return the rows of files as messages, in order of event time; a label comes before an event of the same time.

    Raises SettingsError where a file can't be read.
    """
    from tidemill.offline.source import FileSource  # and with it the backtest, which `up` without files needs not

    event_rows, label_rows = FileSource(events, labels).rows(pipeline)

    def messages(rows: Iterable[history.Message], topic: Topic) -> list[Message]:
        name, is_event = topic.name(pipeline), topic is topics.EVENTS
        return [Message(row.time, name, row.id.encode(), row.data, is_event) for row in rows]

    streams = messages(label_rows, topics.LABELS), messages(event_rows, topics.EVENTS)
    return list(heapq.merge(*streams, key=lambda message: message.at))


class Reading:
    """Messages that a fork reads, while this process goes on; it has no threads yet. One process takes them.

    Parameters
    ----------
    read
        Returns them; a SettingsError that it raises is raised by `is_done`.
    """

    def __init__(self, read: Callable[[], Sequence[Message]]) -> None:
        reading, writing = os.pipe()

        def work() -> int:
            with os.fdopen(writing, "wb") as out:
                try:
                    messages = read()
                except SettingsError as error:
                    pickle.dump(str(error), out)
                    return 1
                pickle.dump("", out)
                out.flush()  # it blocks when the pipe is full, until the services are ready
                for begin in range(0, len(messages), BATCH_MESSAGES):
                    pickle.dump(messages[begin : begin + BATCH_MESSAGES], out)
                pickle.dump([], out)
            return 0

        self._process = fork(work, sys.stderr.fileno())
        os.close(writing)
        self._source = os.fdopen(reading, "rb")
        self._is_done = False

    def is_done(self) -> bool:
        """Return whether all is read, without waiting for it. Raises SettingsError where a file can't be read."""
        if not self._is_done and select.select([self._source], [], [], 0.0)[0]:
            if why := self._load():
                raise SettingsError(why)
            self._is_done = True
        return self._is_done

    def __iter__(self) -> Iterator[Message]:
        while batch := self._load():
            yield from batch

    def _load(self) -> Any:
        try:
            return pickle.load(self._source)  # noqa: S301  our own fork has written it
        except (EOFError, pickle.UnpicklingError):  # the latter where its last message is cut
            raise TidemillError("the process that reads the files has ended") from None

    def stop(self) -> None:
        """Read no more."""
        end(self._process)
        self._source.close()


def send_all(messages: Iterable[Message], speed: float) -> int:
    """Send messages to the Kafka that this process's settings name, and log how far it is; returns the exit code."""
    chosen = settings.load()
    replay = Replay(chosen.brokers, messages, speed, extra=chosen.kafka_properties())
    replay.start()
    while replay.is_alive():
        replay.join(LOG_SECONDS)
        done = "replayed" if not replay.is_alive() else "replaying"
        log.info(f"{done}: {replay.events:,} events, {replay.labels:,} labels, up to {minute(replay.clock)}")
    if replay.error:
        log.error("the replay failed", extra={"cause": str(replay.error)})
        return 1
    return 0


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
