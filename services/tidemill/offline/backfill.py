"""Backfill: views that were declared later get what happened before, from the log or from files.

A view of another entity is made from the updates that the featurizer and the joiner write. A view that is declared
later lacks the updates of earlier events. Until its windows have passed, or it was filled, it is partial and vectors go
without it. Here history runs through the services' own steps, as in a backtest. Each update that the log lacks is
written in transactions, and at the end a record marks the views as filled. A backfill can be stopped and started again;
a second one writes nothing.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack

from tidemill.declare.pipeline import Pipeline
from tidemill.errors import BrokerError, SettingsError
from tidemill.offline.backtest import Backtest, Row, without_models
from tidemill.offline.history import Message
from tidemill.offline.source import KafkaSource
from tidemill.stream.api import Broker, Producer, Progress, Record, TopicPartition, expect
from tidemill.stream.origin import origin_of
from tidemill.stream.ranges import full_range
from tidemill.wire import topics
from tidemill.wire.records import Records
from tidemill.wire.updates import Updates

#: Updates of one transaction.
BATCH_UPDATES = 5000
#: How long to wait for the services.
TIMEOUT_SECONDS = 60.0
#: Where updates come from ("events" or "examples"), and whose they are: an entity.
Route = tuple[str, str]


def routes_of(pipeline: Pipeline, names: Sequence[str] = ()) -> list[Route]:
    """Return the routes of the named views; without names, of all views that the materializer keeps.

    Raises SettingsError where a name is not one of them.
    """
    others = {view.label: view for view in pipeline.remote_views}
    for name in names:
        if name not in others:
            raise SettingsError(
                f"--view {name}: expected one of {', '.join(others) or 'none, for there is nothing to fill'}; a view "
                f"of the events' key is rebuilt from the log by itself"
            )
    if not others:
        raise SettingsError(
            f"pipeline {pipeline.name!r} has nothing to fill: no view of another entity than the events' key"
        )
    return list(dict.fromkeys((view.source, view.entity) for view in (others[name] for name in names or others)))


class Backfill:
    """One backfill of some routes; `written` and `present` count updates by route."""

    def __init__(self, pipeline: Pipeline, broker: Broker, routes: Sequence[Route]) -> None:
        self.pipeline = without_models(pipeline)  # only the updates are of interest
        self.broker, self.routes = broker, routes
        self.records = Records(pipeline)
        self.written: Counter[Route] = Counter()
        self.present: Counter[Route] = Counter()
        self._known: dict[Route, set[int]] = {route: set() for route in routes}
        self._topic = topics.UPDATES.name(pipeline.name)
        self._latest = 0

    def rows(
        self, stack: ExitStack, progress: Progress | None = None
    ) -> tuple[Iterable[Row | Message], Iterable[Row | Message]]:
        """Return the log's valid events and labels, each in order of its time; `stack` closes temporary files.

        Waits until the services have handled them: an update that is not there then will not come by itself. Raises
        BrokerError where they do not reach the end in time.
        """
        events, labels = KafkaSource(self.broker).histories(self.pipeline, stack, progress)
        self._wait("featurizer", events.last_offsets)
        self._wait("joiner", labels.last_offsets)
        expect(progress, events.count)
        return events.rows, labels.rows

    def _wait(self, service: str, last: Mapping[TopicPartition, int]) -> None:
        group = f"{self.pipeline.name}.{service}"
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while last:
            committed = self.broker.committed(group, sorted(last))
            late = [slot for slot, offset in last.items() if (at := committed[slot]) is None or at.offset <= offset]
            if not late:
                return
            if time.monotonic() > deadline:
                raise BrokerError(
                    f"the {service} has not come to the end of {late[0].topic}[{late[0].partition}]: run it with the "
                    f"new declaration first, and fill the views then"
                )
            time.sleep(0.2)

    def run(
        self, events: Iterable[Row | Message], labels: Iterable[Row | Message], progress: Progress | None = None
    ) -> list[str]:
        """Write the updates of events and labels, each in order of its time; return what to know about these.

        `progress` is called with how many updates were read, and events were handled. Another backfill of the same
        pipeline that still runs is fenced off, and ends with an error.
        """
        producer = self.broker.producer(f"{self.pipeline.name}.backfill")
        try:
            self._scan(progress)
            backtest, open_ = Backtest(self.pipeline), 0

            def take(update: Record) -> None:
                nonlocal open_
                if self._tell(update, producer):
                    open_ += 1
                    if open_ == BATCH_UPDATES:
                        producer.commit({}, None)
                        open_ = 0

            backtest.updates = take
            report = backtest.run(events, labels, progress)
            for source, entity in self.routes:
                Updates(self.pipeline, self.records, source).emit_control(
                    "filled", [entity], self._latest, producer.emit
                )
            producer.commit({}, None)
            return report.history_warnings
        finally:
            producer.close()

    def _scan(self, progress: Progress | None) -> None:
        """Read which updates the log has."""
        ranges = full_range(self.broker, self._topic)
        expect(progress, sum(end - begin for begin, end in ranges.values()))
        for batch in self.broker.read(ranges):
            if progress:
                progress(len(batch))
            for record in batch:
                update = self.records.update.of(record.value())
                if update is not None and not update["control"]:
                    known = self._known.get((update["source"], update["entity"]))
                    if known is not None:
                        known.add(_hashed(update["event_id"]))

    def _tell(self, record: Record, producer: Producer) -> bool:
        value = record.value() or b""
        update = self.records.update.decode(value)
        route = update["source"], update["entity"]
        known = self._known.get(route)
        if known is None:
            return False
        self._latest = max(self._latest, update["time"])
        name = _hashed(update["event_id"])
        if name in known:
            self.present[route] += 1
            return False
        known.add(name)
        self.written[route] += 1
        producer.emit(self._topic, value, record.key(), origin_of(record))
        return True


def _hashed(event_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(event_id.encode(), digest_size=8).digest(), "big")
