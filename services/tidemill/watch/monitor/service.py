"""The monitor: the prediction log, examples, expired predictions and dead letters in; windows and alerts out.

reads   <pipeline>.prediction-log, <pipeline>.examples, <pipeline>.expired, <pipeline>.dlq, <pipeline>.warnings; without
        its group the signed <pipeline>.models, .promotions, .commands and .alerts
writes  <pipeline>.windows, <pipeline>.alerts, signed; gauges for Prometheus
state   the open windows, in memory; the reference and the usual ranges, of the first examples; the open alerts

A Faust app: an agent for each topic, which takes batches, and a timer that closes windows. Nothing here must be exactly
once, so there are no transactions: windows that were open at a crash are marked as interrupted, and raise no alert.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import faust
from faust.tables.manager import TableManager
from faust.transport.drivers import aiokafka
from faust.types import ConsumerMessage

from tidemill.declare.monitor import BY_VIEW
from tidemill.declare.pipeline import Pipeline
from tidemill.errors import BrokerError, TopicError
from tidemill.keys import Keyring
from tidemill.metrics import MonitorMetrics
from tidemill.probes import Health
from tidemill.registry.alerts import MONITOR, alerts
from tidemill.registry.signing import Chains, LogWriter
from tidemill.settings import Settings
from tidemill.stream.api import Broker, Record, TopicPartition
from tidemill.stream.declared import NOTHING_DECLARED, TOPIC_CHECK_SECONDS, TOPIC_CHECK_TIMEOUT, DeclaredTopics
from tidemill.stream.kafka.producer import Sender
from tidemill.stream.memory import MemoryRecord
from tidemill.stream.progress import has_records
from tidemill.stream.topic import Topic
from tidemill.watch.monitor.alerts import Alert, AlertKey, Breach
from tidemill.watch.monitor.core import ClosedWindow, Core
from tidemill.watch.monitor.credentials import credentials
from tidemill.watch.monitor.figures import FigureKey
from tidemill.wire import topics

log = logging.getLogger(__name__)
#: Of classes that derive from Faust's: else each of their steps is logged as ours.
_faust_log = logging.getLogger("faust")

#: How long a fetch waits for partitions without new records.
FETCH_WAIT_MS = 50
MAX_FETCH_RECORDS = 2000
#: How often windows are checked for being complete, and signed records are read.
CLOSE_SECONDS = 0.5
SIGNED_SECONDS = 2.0
#: Windows do not wait for a partition without traffic for this long.
IDLE_SECONDS = 10.0
#: How long the process may take to end.
STOP_SECONDS = 10.0
#: Windows of a source stay open for this long after its first record, until all its partitions have had time to appear.
SETTLE_SECONDS = 3.0
#: Figures that Prometheus does not get: their labels are chosen by others, or they are of little use over time.
NOT_GAUGES = frozenset({"rejected", "warned", "min", "max"})
#: Latest records in which open alerts are searched; each open alert is written again after every window.
MAX_ALERT_RECORDS = 5000


class _FetchedBatch(ConsumerMessage):
    """All records of one partition in one fetch, as one message to Faust.

    Faust takes a hundred microseconds or more for a message; a batch pays that once. It has the offset of its first
    record, so that no later one is acknowledged before the next batch has arrived.
    """

    def __init__(self, tp: Any, fetched: Sequence[Any], generation: int) -> None:
        first = fetched[0]
        super().__init__(
            tp.topic,
            tp.partition,
            first.offset,
            first.timestamp / 1000,
            first.timestamp_type,
            None,
            None,
            b"",
            None,
            tp=tp,
            generation_id=generation,
        )
        self.records = [
            MemoryRecord(r.topic, r.value, r.key, r.timestamp, list(r.headers), r.partition, r.offset) for r in fetched
        ]


class _FetchThread(aiokafka.AIOKafkaConsumerThread):
    logger = _faust_log

    def _create_worker_consumer(self, transport: Any) -> Any:
        """Read committed records only, as Faust does in a transaction only, and wait briefly for quiet partitions.

        While a fetch waits for them (Faust's own waits 1.5 s) there is no other. A single busy partition would then get
        one fetch in that time: 1,600 examples a second.
        """
        consumer = super()._create_worker_consumer(transport)
        consumer._isolation_level = "read_committed"
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        return consumer

    def verify_event_path(self, now: float, tp: Any) -> None:
        """Let Faust check that a partition makes progress, unless its position is being reset.

        It is reset when the log no longer has the next record. Faust asserts that this never happens, and would end.
        """
        state = self._ensure_consumer()._subscription.subscription.assignment.state_value(tp)
        if state.has_valid_position:
            super().verify_event_path(now, tp)


class _Consumer(aiokafka.Consumer):
    logger = _faust_log

    def _new_consumer_thread(self) -> Any:
        return _FetchThread(self, loop=self.loop, beacon=self.beacon)

    async def _getmany(self, active_partitions: Any, timeout: float) -> Any:
        fetched = await super()._getmany(active_partitions, timeout)
        return {tp: [records] for tp, records in fetched.items() if records}

    def _to_message(self, tp: Any, record: Any) -> Any:
        return _FetchedBatch(tp, record, self.app.consumer_generation_id)


class _Transport(aiokafka.Transport):
    Consumer = _Consumer


class _Tables(TableManager):
    logger = _faust_log

    async def sleep(self, n: Any, **_: Any) -> None:  # noqa: ARG002  the signature is Faust's
        """Wait for no tables: there are none, and Faust gives them a second to be declared before it reads anything."""
        await super().sleep(0)


class _Worker(faust.Worker):
    """Ends when its host says so; Faust's own installs signal handlers, which only a process's first thread can."""

    def __init__(self, app: Any, on_stop: Callable[[Callable[..., None]], None], **options: Any) -> None:
        super().__init__(app, **options)
        self._on_stop = on_stop

    def install_signal_handlers(self) -> None:
        def stop(*_: object) -> None:
            self.loop.call_soon_threadsafe(self._schedule_shutdown, signal.SIGTERM)

        self._on_stop(stop)


class MonitorService:
    """One pipeline's monitor on Faust."""

    def __init__(
        self,
        pipeline: Pipeline,
        broker: Broker,
        settings: Settings,
        sender: Sender,
        keys: Keyring,
        declared: Mapping[str, int] = NOTHING_DECLARED,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.pipeline, self.broker, self.settings, self.sender, self.clock = pipeline, broker, settings, sender, clock
        self.signed = LogWriter(alerts(pipeline, keys), broker, MONITOR)
        self.core = Core(pipeline, clock, keys)
        self.metrics = MonitorMetrics()
        self.heartbeat = time.monotonic()
        self.ready = False
        self._topics, self._checked_topics = DeclaredTopics(broker, declared), time.monotonic()
        self._read_signed_at = time.monotonic()
        self._seen: dict[tuple[str, int], float] = {}
        self._first: dict[str, float] = {}
        self._next: dict[TopicPartition, int] = {}
        self.app = self._app()

    def _app(self) -> Any:
        name = self.pipeline.name
        app: Any = faust.App(
            f"{name}.monitor",
            broker=[f"kafka://{server}" for server in self.settings.brokers.split(",")],
            store="memory://",
            datadir=tempfile.mkdtemp(prefix="tidemill-monitor-"),
            broker_credentials=credentials(self.settings.kafka_properties()),
            web_enabled=False,
            topic_allow_declare=False,
            topic_disable_leader=True,
            consumer_auto_offset_reset=self._first_offset(),
            consumer_group_instance_id=f"{name}.monitor-{self.settings.instance}",
            broker_session_timeout=10.0,
            broker_heartbeat_interval=2.0,
            broker_commit_interval=2.0,
            broker_max_poll_records=MAX_FETCH_RECORDS,
            stream_buffer_maxsize=16,
            value_serializer="raw",
            key_serializer="raw",
            loghandlers=[],
            worker_redirect_stdouts=False,
            TableManager=_Tables,
        )
        app.transport = _Transport(app.conf.broker_consumer, app)
        for topic, take in (
            (topics.PREDICTION_LOG, self.core.predictions),
            (topics.EXAMPLES, self.core.examples),
            (topics.EXPIRED, self.core.expired),
            (topics.DLQ, self.core.letters),
            (topics.WARNINGS, self.core.warnings),
        ):
            self._agent(app, topic, take)
        app.timer(CLOSE_SECONDS)(self.close_windows)
        app.on_partitions_assigned.connect(self._assigned, weak=False)
        return app

    async def _assigned(self, *_: Any, **__: Any) -> None:
        self.ready = bool(self.app.consumer.assignment())

    def _first_offset(self) -> str:
        """Return where partitions without an offset begin: at their end where the group has lost all its offsets.

        From the beginning, each window would be published again, and each alert raised again.
        """
        name = self.pipeline.name
        partitions = [
            TopicPartition(topic.name(self.pipeline), number)
            for topic in topics.consumes("monitor")
            for number in range(self.broker.partitions(topic.name(self.pipeline)))
        ]
        is_new = not any(self.broker.committed(f"{name}.monitor", partitions).values())
        if is_new and has_records(self.broker, [topics.WINDOWS.name(name)]):
            log.error("the monitor's offsets are gone: it goes on at the end; windows in between are not made")
            return "latest"
        return "earliest"

    def _agent(self, app: Any, topic: Topic, take: Callable[[Any], None]) -> None:
        channel = app.topic(topic.name(self.pipeline), key_type=bytes, value_type=bytes, value_serializer="raw")

        async def agent(stream: Any) -> None:
            async for event in stream.events():
                records = event.message.records
                try:
                    self._track(topic, records)
                    take(records)
                except Exception as error:  # Faust would log it, and go on without the batch
                    await app.crash(error)
                    raise
                self.metrics.records(len(records))

        app.agent(channel, name=f"{self.pipeline.name}.monitor.{topic.suffix}")(agent)

    def _track(self, topic: Topic, records: Sequence[Record]) -> None:
        """Note that a partition has traffic, and mark windows as interrupted where records of it were missed."""
        now, first = time.monotonic(), records[0]
        topic_partition = TopicPartition(first.topic(), first.partition())
        self._first.setdefault(topic.suffix, now)
        windows = self.core.windows.get(topic.suffix)
        if (topic.suffix, topic_partition.partition) not in self._seen and windows is not None:
            low, _ = self.broker.offset_range(topic_partition)
            if first.offset() > low:
                windows.interrupt(self.core.time_of(topic.suffix, first))
        expected = self._next.get(topic_partition)
        if expected is not None and first.offset() > expected + 1:  # one offset may be a transaction's commit
            lost = self.broker.offset_range(topic_partition)[0] - expected
            if lost > 0:
                where = f"{topic_partition.topic}[{topic_partition.partition}]"
                log.error("records lost: the log no longer has them", extra={"partition": where, "lost": lost})
                if windows is not None:
                    windows.interrupt(self.core.time_of(topic.suffix, first))
        self._seen[topic.suffix, topic_partition.partition] = now
        self._next[topic_partition] = records[-1].offset() + 1
        if topic is topics.PREDICTION_LOG:
            self.core.catching_up = self._lag()[topic_partition] > MAX_FETCH_RECORDS

    async def close_windows(self) -> None:
        """Close the windows that are complete, and publish them."""
        self.heartbeat = time.monotonic()
        self.ready = bool(self.app.consumer.assignment())
        now = time.monotonic()
        await self._check_topics(now)
        settled = {source for source, first in self._first.items() if now - first > SETTLE_SECONDS}
        idle: dict[str, list[int]] = {}
        for (source, partition), seen in self._seen.items():
            if now - seen > IDLE_SECONDS:
                idle.setdefault(source, []).append(partition)
        closed = self.core.close(idle, settled)
        await self._read_signed(now)
        others = [*self.core.silence(), *self.core.distrust()]
        if others or any(window.alerts for window in closed):
            self.signed.begin()
        for window in closed:
            self._publish(window)
        for alert in others:
            self._publish_alert(alert)
        if closed or others:
            # The event loop goes on meanwhile. A failure ends the process, and the next one publishes again.
            await asyncio.get_running_loop().run_in_executor(None, self.sender.flush)
            self._count_alerts()
        self.metrics.heartbeat()
        self.metrics.lag(self._lag())

    async def _read_signed(self, now: float) -> None:
        if now - self._read_signed_at < SIGNED_SECONDS:
            return
        self._read_signed_at = now
        with contextlib.suppress(BrokerError):  # the broker is away; Faust waits for it
            trust = self.core.trust
            await asyncio.get_running_loop().run_in_executor(None, trust.read, self.broker, self.clock())

    async def _check_topics(self, now: float) -> None:
        """End the process where a topic is not as declared."""
        if now - self._checked_topics < TOPIC_CHECK_SECONDS:
            return
        self._checked_topics = now
        try:
            await asyncio.get_running_loop().run_in_executor(None, self._topics.check, TOPIC_CHECK_TIMEOUT)
        except TopicError as error:
            log.critical(str(error))
            await self.app.crash(error)
            raise
        except BrokerError:
            return  # the broker is away; Faust waits for it

    def _count_alerts(self) -> None:
        keys = (alert.key for alert in self.core.alerts.open)
        self.metrics.alerts(Counter((key.kind, key.model, key.feature) for key in keys))

    def _publish(self, closed: ClosedWindow) -> None:
        name, records = self.pipeline.name, self.core.records
        self.sender.send(
            topics.WINDOWS.name(name),
            records.window.encode(window_record(closed, self.core, self.clock())),
            closed.source.encode(),
        )
        for alert in closed.alerts:
            self._publish_alert(alert)
        window = closed.window
        self.metrics.window(closed.source, window.end, window.late, complete=not window.interrupted)
        gauges = {
            (key.name, key.model, key.segment, key.feature): value
            for key, value in closed.figures.items()
            if key.version < 0 and key.name not in NOT_GAUGES
        }
        self.metrics.figures(closed.source, gauges)

    def _publish_alert(self, alert: Alert) -> None:
        record = alert_record(alert)
        self.sender.send(self.signed.topic, self.signed.sign(record), record["id"].encode(), partition=0)
        if alert.state != "continuing":
            log.warning(alert.message, extra={"alert": record["id"], "state": alert.state})

    def _lag(self) -> dict[TopicPartition, int]:
        ends = {
            TopicPartition(tp.topic, tp.partition): end for tp, end in dict(self.app.monitor.tp_end_offsets).items()
        }
        return {partition: max(0, ends.get(partition, at) - at - 1) for partition, at in self._next.items()}

    def restore(self) -> None:
        """Read the examples of the reference, and the alerts that an earlier process left open."""
        name = self.pipeline.name
        partition = TopicPartition(topics.EXAMPLES.name(name), 0)
        low, high = self.broker.offset_range(partition)
        for batch in self.broker.read({partition: (low, high)}) if high > low else ():
            self.heartbeat = time.monotonic()
            if self.core.restore_reference(batch):
                break
        partition = TopicPartition(self.signed.topic, 0)
        chains = Chains(self.signed.chains.codec)
        for alert in chains.restore_last(self.broker, partition, MAX_ALERT_RECORDS)[0]:
            if alert["state"] != "acknowledged" and self._declared(alert):
                self.core.alerts.restore(alert_of(alert))
        self.core.trust.read(self.broker, self.clock())
        self._count_alerts()

    def _declared(self, alert: Mapping[str, Any]) -> bool:
        """Whether the declaration still has an alert's model and feature. Nothing would resolve the alert otherwise."""
        views = (view.label for view in self.pipeline.views)
        features = views if alert["figure"] in BY_VIEW else self.pipeline.vector
        return alert["feature"] in ("", *features) and alert["model"] in ("", *self.pipeline.model_names)

    def run(self, on_stop: Callable[[Callable[..., None]], None]) -> None:
        """Run until what `on_stop` was given is called; an error ends the process."""
        self.restore()
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        worker = _Worker(
            self.app, on_stop, loop=loop, quiet=True, override_logging=False, redirect_stdouts=False, loglevel=None
        )
        worker.spinner = None
        threading.Thread(target=self._end_with_the_app, name="end", daemon=True).start()
        worker.execute_from_commandline()

    def _end_with_the_app(self) -> None:
        """End the process some time after the app: a crashed one may wait for its own streams for ever."""
        while not self.app.should_stop:
            time.sleep(1)
        time.sleep(STOP_SECONDS)
        log.critical("app did not end by itself; process killed", extra={"cause": repr(self.app.crash_reason)})
        os._exit(1)


class MonitorHealth(Health):
    """Alive while windows are checked; ready once the consumer group has assigned partitions."""

    def __init__(self, service: MonitorService, stalled_seconds: float) -> None:
        self.service, self.stalled = service, stalled_seconds

    def alive(self) -> str | None:
        """Return what is wrong, or None."""
        since = time.monotonic() - self.service.heartbeat
        return f"windows have not been checked for {since:.0f} s" if since > self.stalled else None

    def ready(self) -> str | None:
        """Return what is wrong, or None."""
        return None if self.service.ready else "no partitions yet, or the reference is being read"


def window_record(closed: ClosedWindow, core: Core, now: float) -> dict[str, Any]:
    """Return a closed window as a record of the topic `windows`."""
    window = closed.window
    return {
        "source": closed.source,
        "start": window.start,
        "end": window.end,
        "records": window.records,
        "rows": closed.rows,
        "late": window.late,
        "interrupted": window.interrupted,
        "compared": core.reference is not None,
        "closed_at": int(now * 1000),
        "figures": [
            {**key._asdict(), "value": value} for key, value in sorted(closed.figures.items()) if math.isfinite(value)
        ],
    }


def alert_record(alert: Alert) -> dict[str, Any]:
    """Return an alert as a record of the topic `alerts`."""
    return {
        "id": str(alert.key),
        "state": alert.state,
        "by": "monitor",
        **alert.key._asdict(),
        "figure": alert.breach.key.name,
        "value": alert.breach.value,
        "limit": alert.breach.limit,
        "since": alert.since,
        "start": alert.start,
        "end": alert.end,
        "opened_at": alert.opened_at,
        "message": alert.message,
        "look_at": alert.look_at,
        "evidence": alert.evidence,
    }


def alert_of(record: dict[str, Any]) -> Alert:
    """Return the alert of a record."""
    alert_key = AlertKey(record["kind"], record["model"], record["segment"], record["feature"])
    key = FigureKey(record["figure"], alert_key.model, -1, alert_key.segment, alert_key.feature)
    return Alert(
        alert_key,
        record["state"],
        Breach(key, record["value"], record["limit"]),
        record["since"],
        record["start"],
        record["end"],
        record["message"],
        record["look_at"],
        dict(record["evidence"]),
        record["opened_at"],
    )
