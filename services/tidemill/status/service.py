"""The status service: what the pipeline does now, for people and programs.

reads   <pipeline>.windows, .alerts, .models, .dlq; on request .prediction-log, .examples, .expired, .events.valid; Redis;
        every service's /readyz and /metrics
writes  <pipeline>.alerts, when somebody acknowledges one
state   what it has read, in memory; it can be started anew at any time, and as often as wanted
"""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from collections.abc import Iterator, Mapping
from typing import Any

import uvicorn

from tidemill import topics
from tidemill.errors import BrokerError, StoreError
from tidemill.pipeline import Pipeline
from tidemill.records import Records
from tidemill.settings import Settings
from tidemill.status.app import Parts, build
from tidemill.status.feed import Feed
from tidemill.status.lookup import Lookup
from tidemill.status.overview import Overview
from tidemill.status.scrape import Scraper
from tidemill.stream.kafka import KafkaBroker, Sender
from tidemill.stream.view import OnlineStore

log = logging.getLogger(__name__)

PORT = 8000
LOOK_SECONDS = 2.0
"""How long what is known of Kafka and Redis holds."""


class _Server(uvicorn.Server):
    """Ends with code 0 when it is asked to; uvicorn's own raises the signal again when it has finished."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.handle_exit)
        yield


class Dependencies:
    """Whether Kafka and Redis can be reached; asked at most every so often, whoever wants to know."""

    def __init__(self, broker: KafkaBroker, store: OnlineStore, feed: Feed) -> None:
        self.broker, self.store, self.feed = broker, store, feed
        self._at = 0.0
        self._told: list[dict[str, Any]] = []

    def __call__(self) -> list[dict[str, Any]]:
        """Return each by name, with what is wrong."""
        if time.monotonic() - self._at > LOOK_SECONDS:
            self._told = [self._look("kafka", self._kafka), self._look("redis", self.store.check)]
            self._at = time.monotonic()
        return self._told

    def _kafka(self) -> None:
        self.broker.connect()
        if self.feed.trouble:
            raise BrokerError(self.feed.trouble)

    @staticmethod
    def _look(name: str, check: Any) -> dict[str, Any]:
        try:
            check()
        except (BrokerError, StoreError) as error:
            return {"name": name, "ok": False, "why": str(error)}
        return {"name": name, "ok": True, "why": ""}

    def wrong(self) -> str | None:
        """Return what is away, in words; None where nothing is."""
        away = [f"{told['name']}: {told['why']}" for told in self() if not told["ok"]]
        return "; ".join(away) or None


def run(pipeline: Pipeline, broker: KafkaBroker, settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT."""
    store = OnlineStore(settings.redis_url.get_secret_value(), pipeline.name)
    feed, scraper = Feed(broker, pipeline), Scraper(settings.services)
    dependencies = Dependencies(broker, store, feed)
    records, sender = Records(pipeline), Sender(settings.brokers, settings.kafka)

    def manifest(model: str, version: int) -> Mapping[str, Any] | None:
        with feed.lock:
            return feed.versions.get((model, version))

    def acknowledge(alert: str, by: str, why: str) -> None:
        with feed.lock:
            known = dict(feed.alerts[alert])
        record = known | {"state": "acknowledged", "by": by, "message": why}
        sender.send(topics.ALERTS.name(pipeline.name), records.alert.encode(record), alert.encode())
        sender.flush()

    parts = Parts(
        feed=feed,
        scraper=scraper,
        overview=Overview(pipeline, feed, scraper, dependencies),
        lookup=Lookup(pipeline, broker, store.features, manifest),
        ready=dependencies.wrong,
        acknowledge=acknowledge,
        token=settings.status_token,
    )
    feed.start()
    scraper.start()
    port = settings.http_port or PORT
    log.info("started", extra={"pipeline": pipeline.name, "port": port})
    try:
        config = uvicorn.Config(
            build(parts), host="0.0.0.0", port=port, log_config=None, access_log=False,  # noqa: S104  pages come from outside
            timeout_graceful_shutdown=2, server_header=False, limit_concurrency=500,
        )  # fmt: skip
        _Server(config).run()
    finally:
        scraper.stop()
        feed.stop()
