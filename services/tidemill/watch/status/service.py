"""The status service: what the pipeline does now, for people and programs.

reads   <pipeline>.windows, .alerts, .models, .promotions, .dlq; every service's /readyz and /metrics;
        on request Redis, and <pipeline>.prediction-log, .examples, .expired, .events.valid
writes  <pipeline>.alerts: acknowledgements; <pipeline>.commands: signed commands of people who have the token;
        <pipeline>.forgotten: requests that wait, where it has the key of `tidemill keys new forget`
state   what it has read, in memory; it can be restarted at any time, and run in several instances
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from tidemill.declare.pipeline import Pipeline
from tidemill.errors import BrokerError, SettingsError, StoreError, TopicError
from tidemill.features.redis import OnlineStore
from tidemill.metrics import count_refused
from tidemill.offline.lookup import LogLookup
from tidemill.registry.alerts import alerts
from tidemill.registry.decisions import Command, ModelRef, commands
from tidemill.registry.forgetting import Forgetting, Waiting, forgetting_codec
from tidemill.registry.signing import LogWriter
from tidemill.registry.store import ArtifactStore
from tidemill.settings import Settings
from tidemill.stream.declared import NOTHING_DECLARED, TOPIC_CHECK_TIMEOUT, DeclaredTopics
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.stream.kafka.certain import CertainSender
from tidemill.stream.kafka.producer import Sender
from tidemill.watch.status.app import build
from tidemill.watch.status.bodies import CommandRequest
from tidemill.watch.status.follower import TopicFollower
from tidemill.watch.status.overview import Overview
from tidemill.watch.status.parts import Parts
from tidemill.watch.status.scrape import Scraper
from tidemill.web.access import Access
from tidemill.web.connections import Server, server_config
from tidemill.wire import access_log
from tidemill.wire.access_log import AccessLog

log = logging.getLogger(__name__)

PORT = 8000
#: How often it is checked whether Kafka and Redis can be reached.
CHECK_SECONDS = 2.0
#: How long the last records of the access log may take at the end.
DRAIN_SECONDS = 2.0


class Dependencies(threading.Thread):
    """Whether Kafka and Redis can be reached, and whether the pipeline's topics are as declared.

    A thread of its own checks: a server that is down answers late.
    """

    def __init__(
        self,
        broker: KafkaBroker,
        store: OnlineStore,
        follower: TopicFollower,
        declared: Mapping[str, int] = NOTHING_DECLARED,
    ) -> None:
        super().__init__(name="dependencies", daemon=True)
        self._checks = {"kafka": self._kafka, "redis": store.check}
        self.broker, self.follower = broker, follower
        self._declared = DeclaredTopics(broker, declared)
        self._wrong: dict[str, str] = dict.fromkeys(self._checks, "not checked yet")
        self._ending = threading.Event()

    def run(self) -> None:
        """Check until `stop`."""
        while not self._ending.is_set():
            for name, check in self._checks.items():
                try:
                    check()
                    self._wrong[name] = ""
                except (BrokerError, StoreError, TopicError) as error:
                    self._wrong[name] = str(error)
            self._ending.wait(CHECK_SECONDS)

    def stop(self) -> None:
        """Stop checking."""
        self._ending.set()

    def _kafka(self) -> None:
        self.broker.connect()
        with contextlib.suppress(BrokerError):
            # This service shows topics that are not as declared, and all others stop.
            self._declared.check(TOPIC_CHECK_TIMEOUT)
        self.follower.has_tried.wait(CHECK_SECONDS)
        if self.follower.error:
            raise BrokerError(self.follower.error)

    def as_dicts(self) -> list[dict[str, Any]]:
        """Return each by name, with what is wrong."""
        return [{"name": name, "ok": not why, "why": why} for name, why in self._wrong.items()]

    def wrong(self) -> str | None:
        """Return what can't be reached or is not as declared, in words; None where all is well."""
        return "; ".join(f"{name}: {why}" for name, why in self._wrong.items() if why) or None


def reading_is_free(settings: Settings) -> bool:
    """Return whether somebody without a token may read.

    Raises SettingsError where a token is needed and there is none.
    """
    is_local = ipaddress.ip_address(settings.status_bind).is_loopback
    if settings.status_read == "anyone" or (settings.status_read == "auto" and is_local):
        return True
    if not settings.token_holders():
        raise SettingsError(
            f"status_bind is {settings.status_bind}, where others may ask: reading needs a token, and there is none; "
            f"set TIDEMILL_STATUS_TOKENS to what `tidemill tokens new NAME` prints, or TIDEMILL_STATUS_READ=anyone"
        )
    return False


def run(
    pipeline: Pipeline,
    broker: KafkaBroker,
    settings: Settings,
    declared: Mapping[str, int],
    on_stop: Callable[[Callable[..., None]], None],
) -> None:
    """Serve until what `on_stop` was given is called. `declared`: the partitions of the pipeline's topics."""
    access = Access(settings.token_holders(), reading_is_free=reading_is_free(settings), count_refused=count_refused)
    accesses = Sender(settings.brokers, {**broker.common, **access_log.PRODUCER}) if settings.access_log else None
    if accesses:
        access.on_access = AccessLog(pipeline, "status", settings.instance, accesses).note
    store = OnlineStore(settings.redis_address(), pipeline.name)
    follower, tls = TopicFollower(broker, pipeline, settings.keyring()), settings.client_context()
    scraper, others = Scraper(settings.services, tls), Scraper(settings.status_pipelines, tls)
    dependencies = Dependencies(broker, store, follower, declared)
    # A name of this process's own: several instances would fence each other off.
    sender = CertainSender(broker.common, f"{pipeline.name}.status.{uuid.uuid4().hex}")
    # Each process has chains of its own, by the instance's name.
    keys, name = settings.keyring("status"), f"status-{settings.instance}"
    sent_commands = LogWriter(commands(pipeline, keys), broker, name)
    sent_alerts = LogWriter(alerts(pipeline, keys), broker, name)

    def manifest(model: str, version: int) -> Mapping[str, Any] | None:
        with follower.lock:
            return follower.versions.get((model, version))

    def acknowledge(alert: str, by: str, why: str) -> None:
        with follower.lock:
            known = follower.alerts.get(alert)
        if known is None:
            return  # resolved meanwhile
        record = known | {"state": "acknowledged", "by": by, "message": why}

        def sign() -> bytes:
            sent_alerts.begin()
            return sent_alerts.sign(record, "acknowledgement")

        sender.send(sent_alerts.topic, sign, alert.encode())

    def ask(request: CommandRequest, target: ModelRef, by: str) -> None:
        now = int(time.time() * 1000)
        begin = request.begin if request.kind in ("train", "train_corrected") else 0
        command = Command(request.id, request.kind, target, request.steps, begin, by, request.why, now)

        def sign() -> bytes:
            sent_commands.begin()
            return sent_commands.sign(command)

        sender.send(sent_commands.topic, sign, request.id.encode())

    @functools.cache
    def waiting() -> Waiting:
        forget_keys = settings.keyring("forget")
        writer = LogWriter(forgetting_codec(pipeline, forget_keys), broker, name)

        def write(request: Forgetting) -> None:
            def sign() -> bytes:
                writer.begin()
                return writer.sign(request)

            sender.send(writer.topic, sign, request.id.encode())

        return Waiting(pipeline, broker, ArtifactStore(settings.store_url), forget_keys, write)

    parts = Parts(
        follower=follower,
        scraper=scraper,
        overview=Overview(pipeline, follower, scraper, dependencies.as_dicts, others),
        lookup=LogLookup(pipeline, broker, store.features, manifest, lambda: scraper.event_time, keys),
        ready=dependencies.wrong,
        acknowledge=acknowledge,
        ask=ask,
        access=access,
        forgetting=waiting,
    )
    threads: list[TopicFollower | Scraper | Dependencies] = [follower, scraper, dependencies]
    threads += [others] if others.services else []
    for thread in threads:
        thread.start()
    port = settings.http_port or PORT
    log.info("started", extra={"pipeline": pipeline.name, "port": port})
    try:
        hosts = settings.status_hosts.split(",") if settings.status_hosts else ()
        config = server_config(build(parts, hosts), settings.status_bind, port, tls=settings.server_context())
        Server(config, on_stop).run()
    finally:
        for thread in threads:
            thread.stop()
        if accesses:
            accesses.drain(DRAIN_SECONDS)
