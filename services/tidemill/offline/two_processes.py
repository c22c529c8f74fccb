"""A backtest in two processes: one makes vectors and joins labels, this one asks and teaches the models.

What a vector holds does not depend on what models answer, so the first can run ahead. It supposes that every vector is
answered. Where the serving model refuses one, or anything else goes wrong there, all is done again in one process,
which says what is wrong. tests/unit/offline/test_two_processes.py holds both to the same report.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import marshal
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Generator, Sequence
from multiprocessing.connection import Connection
from typing import Any

from tidemill.encoding.codec import carried
from tidemill.errors import Reject, TidemillError
from tidemill.offline.backtest import Backtest, BacktestReport
from tidemill.offline.history import Message
from tidemill.stream.api import Emit, Processor, Progress, Record
from tidemill.stream.memory import MemoryRecord
from tidemill.stream.origin import origin_of
from tidemill.wire import topics
from tidemill.wire.dead_letters import DeadLetterProcessor

log = logging.getLogger(__name__)

#: Below this, a second process costs more than it brings.
MIN_EVENTS = 2_000
#: What is handed over at a time.
BATCH_ITEMS = 500

#: In the order in which a backtest in one process does them: event time moves on (an int); a vector is answered (its
#: message, record, key and origin); an answer is learned (the answer's place, label, its time, event id, origin); an
#: answer expires (its place).
Item = int | tuple[bytes, dict[str, Any], bytes, int] | tuple[int, Any, int, str, int] | tuple[int]


class TooLittleError(TidemillError):
    """One process can't go on without the other's answer."""


class _Ahead(Backtest):
    """Makes vectors and joins labels; what models have to do is sent on."""

    def __init__(self, like: Backtest, out: Connection) -> None:
        super().__init__(like.pipeline, model_delay_ms=like.model_delay, checkpoint_every_ms=like.every)
        self._out = out
        self.items: list[Item] = []
        self._processors[topics.FEATURES.name(self.pipeline.name)] = _SupposedAnswers(self)

    def _at(self, now: int) -> None:
        self._now = now
        self.items.append(now)
        if len(self.items) >= BATCH_ITEMS:
            self.hand_over()

    def hand_over(self) -> None:
        """Send on what there is."""
        self._out.send_bytes(marshal.dumps((self.report.events, self.items)))
        self.items.clear()

    def _learn_until(self, now: int | None) -> None:
        """Nothing: the other process does, whenever time moves on."""

    def _checkpoint(self, at: int) -> None:
        """Nothing, likewise."""

    def _values(self) -> dict[str, dict[str, float]]:
        return {}

    def _take(self, topic: str, record: MemoryRecord) -> None:
        value = record.value() or b""
        if topic == self._examples:
            example, event_id = self.records.example.trusted(value), (record.key() or b"").decode()
            place = example["prediction"]["place"]
            self.items.append((place, example["label"], example["label_time"], event_id, record.timestamp()[1]))
        elif topic == self._expired:
            self.items.append((self.records.prediction_log.trusted(value)["place"],))
        else:
            super()._take(topic, record)


class _SupposedAnswers(DeadLetterProcessor):
    """In place of the scorer: each vector is sent on, and supposed to be answered."""

    def __init__(self, run: _Ahead) -> None:
        super().__init__(run.pipeline.name, "scorer")
        self._run, self.records, self._log = run, run.records, topics.PREDICTION_LOG.name(run.pipeline.name)
        low, _ = run.pipeline.kind.range
        score = {"model": "", "version": 0, "epoch": 0, "score": max(low, 0.0), "probabilities": {}, "answered": True}
        self._answer: dict[str, Any] = {"champion": score, "challengers": []}
        self._place = 0

    def process(self, records: Sequence[Record], emit: Emit) -> bool:
        for record in records:
            value, origin = record.value() or b"", origin_of(record)
            try:
                features = self.records.features.decode(value)
            except Reject as reject:
                self.refuse(record, reject, emit)
                continue
            self._run.items.append((value, features, record.key() or b"", origin))
            supposed = {"features": features, **self._answer, "place": self._place}
            self._place += 1
            entry = carried(self.records.prediction_log.header, supposed)
            emit(self._log, entry, features["event_id"].encode(), origin)
        return True


class _Models(Backtest):
    """Asks and teaches the models."""

    def __init__(self, like: Backtest) -> None:
        super().__init__(like.pipeline, model_delay_ms=like.model_delay, checkpoint_every_ms=like.every)
        self._answers = _Answers()
        self._processors[self._log] = self._answers
        self._features = topics.FEATURES.name(self.pipeline.name)
        self.leave_out_unread()

    def take(self, items: Sequence[Item]) -> None:
        """Do what the other process has sent. Raises TooLittleError."""
        for item in items:
            if isinstance(item, int):
                self._at(item)
            elif len(item) == 4:
                data, features, key, origin = item
                self._emit(self._features, carried(data, features), key, origin)
            elif len(item) == 5:
                self._teach(*item)
            else:
                del self._answers.by_place[item[0]]

    def _teach(self, place: int, label: Any, label_time: int, event_id: str, origin: int) -> None:
        answer, outcome = self._answers.by_place.pop(place), {"label": label, "label_time": label_time}
        record = {"prediction": self.records.prediction_log.trusted(answer), **outcome}
        self._emit(self._examples, carried(self.records.example.header, record), event_id.encode(), origin)

    def _take(self, topic: str, record: MemoryRecord) -> None:
        if topic == self._dlq:
            raise TooLittleError("a vector was not answered")
        super()._take(topic, record)

    def finish(self, report: BacktestReport, seconds: float) -> BacktestReport:
        """Return the report of both processes."""
        self._learn_until(None)
        self._checkpoint(self._now)
        own = self.report
        self._judge(report)
        report.over_time, report.decisions = own.over_time, own.decisions
        report.learn_failed, report.learn_errors = own.learn_failed, own.learn_errors
        report.over_share, report.seconds = own.over_share, seconds
        return report


class _Answers(Processor):
    """Answers in the order in which they were given, until their labels come."""

    def __init__(self) -> None:
        super().__init__()
        self.by_place: dict[int, bytes] = {}
        self._place = 0

    def process(self, records: Sequence[Record], emit: Emit) -> bool:
        del emit
        for record in records:
            self.by_place[self._place] = record.value() or b""
            self._place += 1
        return True


def run(
    backtest: Backtest, events: Sequence[Message], labels: Sequence[Message], progress: Progress | None = None
) -> BacktestReport:
    """Run a backtest over events and labels as `Backtest.run` does, in two processes where that is faster."""
    corrects = bool(backtest.pipeline.corrections_ms)
    if len(events) < MIN_EVENTS or backtest.is_watched or corrects or not _can_fork():
        return backtest.run(events, labels, progress)
    started, done = time.perf_counter(), 0
    try:
        models = _Models(backtest)
        with contextlib.closing(_sent(backtest, events, labels)) as sent:
            for what in sent:
                if isinstance(what, BacktestReport):
                    return models.finish(what, time.perf_counter() - started)
                count, items = what
                models.take(items)
                if progress:
                    progress(count - done)
                done = count
    except TooLittleError as error:
        log.info("the backtest begins again, in one process", extra={"cause": str(error)})
    if progress:
        progress(-done)
    return backtest.run(events, labels, progress)


def _can_fork() -> bool:
    return sys.platform == "linux" and len(os.sched_getaffinity(0)) > 1 and threading.active_count() == 1


def _sent(
    backtest: Backtest, events: Sequence[Message], labels: Sequence[Message]
) -> Generator[tuple[int, Sequence[Item]] | BacktestReport]:
    """Yield what the other process sends: how many events it has taken, and items; its report at the end.

    Raises TooLittleError where it ends without.
    """
    context = multiprocessing.get_context("fork")
    reading, writing = context.Pipe(duplex=False)

    def work() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other ends this one
        reading.close()
        gc.freeze()  # what both have, all history, is looked at by no collection
        ahead = _Ahead(backtest, writing)
        try:
            report = ahead.run(events, labels)
            ahead.hand_over()
            writing.send_bytes(b"")
            writing.send_bytes(pickle.dumps(report))
        except Exception:
            os._exit(1)  # one process does it again, and raises the same

    process = context.Process(target=work, daemon=True)
    process.start()
    writing.close()
    try:
        while data := reading.recv_bytes():
            yield marshal.loads(data)  # noqa: S302  our own fork has written it
        yield pickle.loads(reading.recv_bytes())  # noqa: S301  likewise
    except (EOFError, OSError):
        raise TooLittleError("the other process has ended") from None
    finally:
        reading.close()
        process.kill()
        process.join()
