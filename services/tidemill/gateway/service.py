"""The gateway: applications ask over HTTP, and the river answers; as many instances as are needed.

reads   <pipeline>.predictions, .dlq and .events, without a group; on request <pipeline>.prediction-log, Redis
        and the registry
writes  <pipeline>.events and .labels, as any producer; commands for the gate by the status service, which signs them
state   the latest event ids with their answers, in memory; read again from the topics at a start
"""

from __future__ import annotations

import logging
import resource
from collections.abc import Callable, Mapping

from tidemill.declare.pipeline import Pipeline
from tidemill.features.store import Store
from tidemill.gateway.app import build
from tidemill.gateway.asking import Gateway
from tidemill.gateway.commands import Commands
from tidemill.gateway.requests import Rates
from tidemill.gateway.river import River
from tidemill.gateway.what_if import Models, WhatIf
from tidemill.limits import GATEWAY_CONNECTIONS
from tidemill.metrics import GATEWAY_REFUSED
from tidemill.offline.lookup import LogLookup
from tidemill.settings import Settings
from tidemill.stream.declared import NOTHING_DECLARED
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.stream.kafka.producer import Sender
from tidemill.stream.loop import tune_collector
from tidemill.stream.trace import Traces
from tidemill.web.access import Access
from tidemill.web.connections import Server, server_config
from tidemill.wire import access_log
from tidemill.wire.access_log import AccessLog

log = logging.getLogger(__name__)

PORT = 8001
#: How long requests may go on once the service is to end; and what is left of it for answers after all waiting.
DRAIN_SECONDS, ANSWER_SECONDS = 10, 2
#: A record goes out at once: somebody waits for its prediction. What can't be delivered is given up after 10 s.
PRODUCER = {
    "linger.ms": 0,
    "delivery.report.only.error": False,
    "delivery.timeout.ms": 10_000,
    "queue.buffering.max.messages": 20_000,
}


def run(
    pipeline: Pipeline,
    broker: KafkaBroker,
    settings: Settings,
    on_stop: Callable[[Callable[..., None]], None],
    open_models: Callable[[], Models],
    traces: Traces,
    declared: Mapping[str, int] = NOTHING_DECLARED,
) -> None:
    """Serve until what `on_stop` was given is called; requests that wait are answered first.

    `declared` is the number of partitions of each topic that it reads or writes.
    `open_models` returns what follows the registry, for who asks what would be predicted.
    """
    holders, store = settings.key_holders(), Store(pipeline, settings.redis_address())
    access = Access(
        holders,
        reading_is_free=False,
        count_refused=lambda reason: GATEWAY_REFUSED.labels(reason).inc(),
        setting="TIDEMILL_GATEWAY_KEYS",
    )
    accesses = Sender(settings.brokers, {**broker.common, **access_log.PRODUCER}) if settings.access_log else None
    if accesses:
        access.on_access = AccessLog(pipeline, "gateway", settings.instance, accesses).note
    gateway = Gateway(
        pipeline,
        River(pipeline, broker, Sender(settings.brokers, {**broker.common, **PRODUCER}), declared),
        LogLookup(pipeline, broker, lambda _view, _entity: {}, lambda _model, _version: None),
        access,
        Rates(settings.gateway_rate),
        store,
        WhatIf(pipeline, store, open_models),
        Commands(settings.status_url, settings.status_token.get_secret_value(), settings.client_context()),
        traces=traces,
    )

    def on_drain(stop: Callable[..., None]) -> None:
        def drain(*_: object) -> None:
            gateway.drain(DRAIN_SECONDS - ANSWER_SECONDS)
            stop()

        on_stop(drain)

    port = settings.http_port or PORT
    if not holders:
        log.warning("nobody has a key, so every request is refused: set TIDEMILL_GATEWAY_KEYS")
    log.info("started", extra={"pipeline": pipeline.name, "port": port})
    allow_files(2 * GATEWAY_CONNECTIONS.max)
    application = build(gateway)
    tls, connections = settings.server_context(), GATEWAY_CONNECTIONS.max
    config = server_config(application, settings.gateway_bind, port, DRAIN_SECONDS, connections, tls)
    tune_collector()  # the ids that are remembered are many, and hold no cycles
    try:
        Server(config, on_drain).run()
    finally:
        if accesses:
            accesses.drain(1.0)


def allow_files(count: int) -> None:
    """Have this process open so many files and connections, as far as it may: it is often 1,024 until it asks."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        most = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
