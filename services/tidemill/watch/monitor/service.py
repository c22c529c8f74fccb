"""The monitor: the prediction log, examples, expired predictions and dead letters in; windows and alerts out.

reads   <pipeline>.prediction-log, <pipeline>.examples, <pipeline>.expired, <pipeline>.dlq, <pipeline>.warnings
writes  <pipeline>.windows, <pipeline>.alerts; gauges for Prometheus
state   the open windows, in memory; the reference and what is usual, a function of the first examples; the open alerts

A Faust app: an agent a topic, in batches, and a timer that closes windows. It decides nothing that must be exact, so it does
without transactions: after a crash the windows that were open then say that they were interrupted, and alert nobody.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import faust
from faust.transport.drivers import aiokafka
from faust.types import ConsumerMessage

from tidemill import metrics
from tidemill.declare.monitor import BY_VIEW
from tidemill.declare.pipeline import Pipeline
from tidemill.errors import SettingsError
from tidemill.settings import Settings
from tidemill.stream.api import Broker, Record, TopicPartition
from tidemill.stream.kafka.producer import Sender
from tidemill.stream.memory import MemoryRecord
from tidemill.stream.topic import Topic
from tidemill.watch.monitor.alerts import Alert, Breach, Subject
from tidemill.watch.monitor.core import Closed, Core
from tidemill.watch.monitor.figures import Key
from tidemill.wire import topics

log = logging.getLogger(__name__)

FETCH_WAIT_MS = 50
"""How long a fetch waits for partitions that have nothing."""
BUNDLE = 2000
"""Most records of one fetch."""
CLOSE_SECONDS = 0.5
"""How often it is looked whether a window is complete."""
IDLE_SECONDS = 10.0
"""A partition without traffic for this long is not waited for."""
STOP_SECONDS = 10.0
"""How long it may take to end."""
SETTLE_SECONDS = 3.0
"""How long after its first record a source may still meet partitions that it has not seen."""
NOT_GAUGES = frozenset({"rejected", "warned", "min", "max"})
"""Figures that Prometheus is not given: labels that others choose, or of little use over time."""
REMEMBERED_ALERTS = 5000
"""How many records back open alerts are looked for; each open one is told again after every window."""


class _Bundle(ConsumerMessage):
    """All that one fetch has brought of one partition, as one message to Faust.

    Faust's way with a message costs a hundred microseconds or more; as bundles, records cost what is done with them. A bundle
    has its first record's offset, so that nothing behind it is acknowledged before the next bundle has come.
    """

    def __init__(self, tp: Any, fetched: Sequence[Any], generation: int) -> None:
        first = fetched[0]
        super().__init__(
            tp.topic, tp.partition, first.offset, first.timestamp / 1000, first.timestamp_type, None, None, b"", None, tp=tp,
            generation_id=generation,
        )  # fmt: skip
        self.records = [
            MemoryRecord(r.topic, r.value, r.key, r.timestamp, list(r.headers), r.partition, r.offset) for r in fetched
        ]


class _FetchThread(aiokafka.AIOKafkaConsumerThread):
    def _create_worker_consumer(self, transport: Any) -> Any:
        """Have it leave out what was aborted, which Faust reads unless it takes part in transactions itself.

        And wait for quiet partitions a moment only: while a fetch waits for them (Faust's own is 1.5 s) there is no other, and
        of a busy one, alone beside them, no more than a fetch comes in that time (1,600 examples a second).
        """
        consumer = super()._create_worker_consumer(transport)
        consumer._isolation_level = "read_committed"
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        return consumer

    def verify_event_path(self, now: float, tp: Any) -> None:
        """Let Faust see whether a partition gets on, unless where to read it is just being looked up.

        That is so when the log no longer reaches back to the next record; Faust asserts that it never is, and would end.
        """
        state = self._ensure_consumer()._subscription.subscription.assignment.state_value(tp)
        if state.has_valid_position:
            super().verify_event_path(now, tp)


class _Consumer(aiokafka.Consumer):
    def _new_consumer_thread(self) -> Any:
        return _FetchThread(self, loop=self.loop, beacon=self.beacon)

    async def _getmany(self, active_partitions: Any, timeout: float) -> Any:
        fetched = await super()._getmany(active_partitions, timeout)
        return {tp: [records] for tp, records in fetched.items() if records}

    def _to_message(self, tp: Any, record: Any) -> Any:
        return _Bundle(tp, record, self.app.consumer_generation_id)


class _Transport(aiokafka.Transport):
    Consumer = _Consumer


def credentials(kafka: Mapping[str, Any]) -> Any:
    """Return what librdkafka's security properties say in Faust's words; None where they say nothing.

    Raises SettingsError where they ask for what Faust's client can't do.
    """
    given = {name: str(value) for name, value in kafka.items()}
    protocol = given.get("security.protocol", "plaintext").upper()
    context = None
    if protocol in ("SSL", "SASL_SSL"):
        context = ssl.create_default_context(cafile=given.get("ssl.ca.location"))
        if "ssl.certificate.location" in given:
            context.load_cert_chain(
                given["ssl.certificate.location"], given.get("ssl.key.location"), given.get("ssl.key.password")
            )
    if protocol == "SSL":
        return faust.SSLCredentials(context)
    if protocol in ("SASL_PLAINTEXT", "SASL_SSL"):
        mechanism = given.get("sasl.mechanism", given.get("sasl.mechanisms", "PLAIN")).upper()
        if mechanism not in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"):
            raise SettingsError(
                f"setting kafka: the monitor's client can't do sasl.mechanism {mechanism!r}; expected PLAIN, SCRAM-SHA-256 or "
                f"SCRAM-SHA-512"
            )
        return faust.SASLCredentials(
            username=given.get("sasl.username"),
            password=given.get("sasl.password"),
            mechanism=mechanism,
            ssl_context=context,
        )
    return None


class MonitorService:
    """One pipeline's monitor on Faust."""

    def __init__(
        self, pipeline: Pipeline, broker: Broker, settings: Settings, sender: Sender,
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self.pipeline, self.broker, self.settings, self.sender, self.clock = pipeline, broker, settings, sender, clock
        self.core = Core(pipeline, clock)
        self.watch = metrics.MonitorMetrics()
        self.heartbeat = time.monotonic()
        self.ready = False
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
            broker_credentials=credentials(self.settings.kafka),
            web_enabled=False,
            topic_allow_declare=False,
            topic_disable_leader=True,
            consumer_auto_offset_reset="earliest",
            consumer_group_instance_id=f"{name}.monitor-{self.settings.instance}",
            broker_session_timeout=10.0,
            broker_heartbeat_interval=2.0,
            broker_commit_interval=2.0,
            broker_max_poll_records=BUNDLE,
            stream_buffer_maxsize=16,
            value_serializer="raw",
            key_serializer="raw",
            loghandlers=[],
            worker_redirect_stdouts=False,
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
        return app

    def _agent(self, app: Any, topic: Topic, take: Callable[[Any], None]) -> None:
        channel = app.topic(topic.name(self.pipeline.name), key_type=bytes, value_type=bytes, value_serializer="raw")

        async def agent(stream: Any) -> None:
            async for event in stream.events():
                records = event.message.records
                try:
                    self._meet(topic, records)
                    take(records)
                except Exception as error:  # Faust would log it, and go on without the batch
                    await app.crash(error)
                    raise
                self.watch.records(len(records))

        app.agent(channel, name=f"{self.pipeline.name}.monitor.{topic.suffix}")(agent)

    def _meet(self, topic: Topic, records: Sequence[Record]) -> None:
        """Note that a partition has traffic; when it is met for the first time, whether its beginning was missed."""
        now, first = time.monotonic(), records[0]
        slot = TopicPartition(first.topic(), first.partition())
        self._first.setdefault(topic.suffix, now)
        windows = self.core.windows.get(topic.suffix)
        if (topic.suffix, slot.partition) not in self._seen and windows is not None:
            low, _ = self.broker.offset_range(slot)
            if first.offset() > low:
                windows.interrupt(self.core.time_of(topic.suffix, first))
        expected = self._next.get(slot)
        if expected is not None and first.offset() > expected + 1:  # a commit alone leaves one offset out
            lost = self.broker.offset_range(slot)[0] - expected
            if lost > 0:
                log.error("records lost: the log does not hold the next ones any more",
                          extra={"slot": f"{slot.topic}[{slot.partition}]", "lost": lost})  # fmt: skip
                if windows is not None:
                    windows.interrupt(self.core.time_of(topic.suffix, first))
        self._seen[topic.suffix, slot.partition] = now
        self._next[slot] = records[-1].offset() + 1
        if topic is topics.PREDICTION_LOG:
            self.core.catching_up = self._lag()[slot] > BUNDLE

    async def close_windows(self) -> None:
        """Close what is complete, and tell it."""
        self.heartbeat = time.monotonic()
        self.ready = bool(self.app.consumer.assignment())
        now = time.monotonic()
        settled = {source for source, first in self._first.items() if now - first > SETTLE_SECONDS}
        idle: dict[str, list[int]] = {}
        for (source, partition), seen in self._seen.items():
            if now - seen > IDLE_SECONDS:
                idle.setdefault(source, []).append(partition)
        closed = self.core.close(idle, settled)
        for window in closed:
            self._tell(window)
        silence = self.core.silence()
        for alert in silence:
            self._tell_alert(alert)
        if closed or silence:
            # Waited for beside the event loop; what can't be told ends the process, and is told by the next.
            await asyncio.get_running_loop().run_in_executor(None, self.sender.flush)
            self._count_alerts()
        self.watch.heartbeat()
        self.watch.lag(self._lag())

    def _count_alerts(self) -> None:
        subjects = (alert.subject for alert in self.core.alerts.open)
        self.watch.alerts(Counter((subject.kind, subject.model, subject.feature) for subject in subjects))

    def _tell(self, closed: Closed) -> None:
        name, records = self.pipeline.name, self.core.records
        self.sender.send(
            topics.WINDOWS.name(name), records.window.encode(window_record(closed, self.core, self.clock())),
            closed.source.encode(),
        )  # fmt: skip
        for alert in closed.alerts:
            self._tell_alert(alert)
        window = closed.window
        self.watch.window(closed.source, window.end, window.late, whole=not window.interrupted)
        shown = {
            (key.name, key.model, key.segment, key.feature): value
            for key, value in closed.figures.items()
            if key.version < 0 and key.name not in NOT_GAUGES
        }
        self.watch.figures(closed.source, shown)

    def _tell_alert(self, alert: Alert) -> None:
        record = alert_record(alert)
        encoded = self.core.records.alert.encode(record)
        self.sender.send(topics.ALERTS.name(self.pipeline.name), encoded, record["id"].encode())
        if alert.state != "continuing":
            log.warning(alert.message, extra={"alert": record["id"], "state": alert.state})

    def _lag(self) -> dict[TopicPartition, int]:
        ends = {
            TopicPartition(tp.topic, tp.partition): end for tp, end in dict(self.app.monitor.tp_end_offsets).items()
        }
        return {slot: max(0, ends.get(slot, at) - at - 1) for slot, at in self._next.items()}

    def restore(self) -> None:
        """Read what an earlier process has left: the reference's examples, and the alerts that are open."""
        name = self.pipeline.name
        slot = TopicPartition(topics.EXAMPLES.name(name), 0)
        low, high = self.broker.offset_range(slot)
        for batch in self.broker.read({slot: (low, high)}) if high > low else ():
            self.heartbeat = time.monotonic()
            if self.core.training(batch):
                break
        slot = TopicPartition(topics.ALERTS.name(name), 0)
        low, high = self.broker.offset_range(slot)
        begin = max(low, high - REMEMBERED_ALERTS)
        for batch in self.broker.read({slot: (begin, high)}) if high > begin else ():
            for record in batch:
                told = self.core.records.alert.of(record.value())
                if told and told["state"] != "acknowledged" and self._declared(told):
                    self.core.alerts.restore(alert_of(told))
        self._count_alerts()

    def _declared(self, told: Mapping[str, Any]) -> bool:
        """Whether what an alert is about is still there; nothing would ever resolve it otherwise."""
        views = (view.label for view in self.pipeline.views)
        features = views if told["figure"] in BY_VIEW else self.pipeline.vector
        return told["feature"] in ("", *features) and told["model"] in ("", *self.pipeline.model_names)

    def run(self) -> None:
        """Run until SIGTERM or SIGINT; what goes wrong on the way ends the process."""
        self.restore()
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        worker = faust.Worker(
            self.app, loop=loop, quiet=True, override_logging=False, redirect_stdouts=False, loglevel=None
        )
        worker.spinner = None
        threading.Thread(target=self._end_with_the_app, name="end", daemon=True).start()
        worker.execute_from_commandline()

    def _end_with_the_app(self) -> None:
        """End the process some time after the app has: one that crashed may wait for its own streams for ever."""
        while not self.app.should_stop:
            time.sleep(1)
        time.sleep(STOP_SECONDS)
        log.critical("it did not end by itself", extra={"cause": repr(self.app.crash_reason)})
        os._exit(1)


class MonitorHealth(metrics.Health):
    """Alive while windows are looked at; ready once the group has given it its partitions."""

    def __init__(self, service: MonitorService, stalled_seconds: float) -> None:
        self.service, self.stalled = service, stalled_seconds

    def alive(self) -> str | None:
        """Return what is wrong, or None."""
        since = time.monotonic() - self.service.heartbeat
        return f"no window was looked at for {since:.0f} s" if since > self.stalled else None

    def ready(self) -> str | None:
        """Return what is wrong, or None."""
        return None if self.service.ready else "no partitions yet, or what is usual is being read"


def window_record(closed: Closed, core: Core, now: float) -> dict[str, Any]:
    """Return a closed window as the record that is told."""
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
        "figures": [{**key._asdict(), "value": value} for key, value in sorted(closed.figures.items())],
    }


def alert_record(alert: Alert) -> dict[str, Any]:
    """Return an alert as the record that is told."""
    return {
        "id": str(alert.subject),
        "state": alert.state,
        "by": "monitor",
        **alert.subject._asdict(),
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
    """Return the alert that a record tells."""
    subject = Subject(record["kind"], record["model"], record["segment"], record["feature"])
    key = Key(record["figure"], subject.model, -1, subject.segment, subject.feature)
    return Alert(
        subject, record["state"], Breach(key, record["value"], record["limit"]), record["since"], record["start"],
        record["end"], record["message"], record["look_at"], dict(record["evidence"]), record["opened_at"],
    )  # fmt: skip
