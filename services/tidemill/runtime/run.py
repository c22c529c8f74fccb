"""The composition root: from a pipeline, a service's name and the settings to a running process."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from tidemill import metrics
from tidemill.declare.pipeline import Pipeline
from tidemill.declare.view import View
from tidemill.errors import BrokerError, SettingsError
from tidemill.features.lookup import StoredViews
from tidemill.features.redis import Redis, RedisReader, RedisView, connect
from tidemill.features.views import schema
from tidemill.files import Files
from tidemill.registry.manifests import Registry
from tidemill.registry.store import ArtifactStore
from tidemill.settings import Settings
from tidemill.stages.featurizer import service as featurizer
from tidemill.stages.gate import service as gate
from tidemill.stages.joiner import service as joiner
from tidemill.stages.learner import service as learner
from tidemill.stages.materializer import service as materializer
from tidemill.stages.scorer import service as scorer
from tidemill.stages.scorer.feed import ModelFeed
from tidemill.stages.validator import service as validator
from tidemill.stages.validator.feed import SchemaFeed
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.stream.kafka.producer import Sender
from tidemill.stream.loop import Loop, Service, stop_on_signals
from tidemill.stream.topic import Topic
from tidemill.wire import topics

log = logging.getLogger(__name__)

STALLED_SECONDS = 30.0
"""A loop that has not turned for this long is not alive any more."""


def broker_of(settings: Settings) -> KafkaBroker:
    """Return the broker that the settings name; not connected yet."""
    return KafkaBroker(settings.brokers, exactly_once=settings.delivery == "exactly_once", extra=settings.kafka)


def topic_table(pipeline: Pipeline) -> list[tuple[Topic, str, int]]:
    """Return every topic of the pipeline as (topic, name, partitions)."""
    return [(topic, topic.name(pipeline.name), topic.partitions or pipeline.partitions) for topic in topics.TOPICS]


def check_topics(pipeline: Pipeline, broker: KafkaBroker, names: tuple[str, ...]) -> None:
    """Raise BrokerError where one of the topics does not exist."""
    missing = [name for name in names if not broker.partitions(name)]
    if missing:
        raise BrokerError(
            f"no topic {', '.join(missing)} at {broker.servers}: create the pipeline's topics with "
            f"`tidemill topics {pipeline.name} --create`"
        )


class LoopHealth(metrics.Health):
    """Alive while the loop turns; ready while it has its partitions' state."""

    def __init__(self, loop: Loop, clock: Callable[[], float] = time.monotonic) -> None:
        self.loop, self.clock = loop, clock

    def alive(self) -> str | None:
        """Return what is wrong, or None."""
        since = self.clock() - self.loop.heartbeat
        return f"the loop has not turned for {since:.0f} s" if since > STALLED_SECONDS else None

    def ready(self) -> str | None:
        """Return what is wrong, or None."""
        return None if self.loop.ready else "no partitions yet, or their state is being rebuilt"


class Feed(Protocol):
    """Something that a service is told of from a thread of its own."""

    def start(self) -> None: ...
    def stop(self) -> None: ...


def run(name: str, pipeline: Pipeline, settings: Settings, model: str | None = None) -> None:
    """Run one service until SIGTERM or SIGINT. Raises a TidemillError where it can't start or go on."""
    broker = broker_of(settings)
    if name == "status":  # it is what tells that Kafka is away
        return _status(pipeline, broker, settings)
    broker.connect()
    used = {t.name(pipeline.name) for t in (*topics.reads(name), *topics.writes(name))}
    check_topics(pipeline, broker, tuple(sorted(used)))
    if name == "monitor":
        return _monitor(pipeline, broker, settings)
    feed: Feed | None = None
    if name == "validator":
        feed = schemas = _schemas(pipeline, settings)
        service = validator.build(pipeline, schemas, fuse=settings.fuse)
    elif name == "featurizer":
        client = connect(settings.redis_url.get_secret_value())
        others = StoredViews(pipeline, RedisReader(client, pipeline.name), pipeline.partitions)
        stores = _stores(pipeline, client, pipeline.inline_views)
        service = featurizer.build(pipeline, stores, others if pipeline.remote_views else None)
    elif name == "materializer":
        client = connect(settings.redis_url.get_secret_value())
        service = materializer.build(pipeline, _stores(pipeline, client, pipeline.remote_views))
    elif name == "scorer":
        feed = models = ModelFeed(registry_of(pipeline, settings), broker)
        service = scorer.build(pipeline, models.take)
    elif name == "joiner":
        service = joiner.build(pipeline)
    elif name == "learner":
        service = _learner(pipeline, settings, broker, model or pipeline.champion)
    elif name == "gate":
        service = gate.build(
            pipeline, registry_of(pipeline, settings), broker, settings.status_token.get_secret_value().encode()
        )
    elif name == "archiver":
        service = _archiver(pipeline, settings)
    else:
        raise SettingsError(f"no service {name!r}: expected one of {', '.join((*topics.SERVICES, *topics.WATCHING))}")
    return _loop(service, pipeline, broker, settings, feed)


def _loop(service: Service, pipeline: Pipeline, broker: KafkaBroker, settings: Settings, feed: Feed | None) -> None:
    loop = Loop(
        service,
        broker,
        instance=settings.instance,
        interval=settings.interval_ms / 1000,
        max_batch=settings.max_batch,
        commit_every=0.0 if settings.delivery == "exactly_once" else 0.2,
    )
    if settings.http_port:
        metrics.serve(settings.http_port, LoopHealth(loop))
    stop_on_signals(loop)
    if feed:
        feed.start()
    log.info("started", extra={"pipeline": pipeline.name, "instance": settings.instance, "delivery": settings.delivery})
    try:
        loop.run()
    finally:
        if feed:
            feed.stop()
    log.info("stopped", extra={"pipeline": pipeline.name, "instance": settings.instance})


def _schemas(pipeline: Pipeline, settings: Settings) -> SchemaFeed | None:
    url = settings.registry_url.get_secret_value()
    if not url:
        return None
    with _extra("validator", "registry"):
        from tidemill.encoding.schema_registry import SchemaRegistry
    return SchemaFeed(pipeline, SchemaRegistry(url), settings.registry_seconds)


def _stores(pipeline: Pipeline, client: Redis, views: Iterable[View]) -> Mapping[str, RedisView]:
    stores = {}
    for view in views:
        stores[view.label] = RedisView(client, pipeline.name, view.label)
        stores[view.label].describe(schema(pipeline, view))
    return stores


def _archiver(pipeline: Pipeline, settings: Settings) -> Service:
    with _extra("archiver", "parquet"):
        from tidemill.watch.archiver import service as archiver
    return archiver.build(pipeline, Files(settings.archive_url, "archive_url", "archive"), settings.archive_seconds)


def _monitor(pipeline: Pipeline, broker: KafkaBroker, settings: Settings) -> None:
    with _extra("monitor", "monitor"):
        from tidemill.watch.monitor.service import MonitorHealth, MonitorService
    service = MonitorService(pipeline, broker, settings, Sender(settings.brokers, settings.kafka))
    if settings.http_port:
        metrics.serve(settings.http_port, MonitorHealth(service, STALLED_SECONDS))
    log.info("started", extra={"pipeline": pipeline.name, "instance": settings.instance})
    service.run()


def _status(pipeline: Pipeline, broker: KafkaBroker, settings: Settings) -> None:
    with _extra("status", "status"):
        from tidemill.watch.status import service as status
    status.run(pipeline, broker, settings)


@contextlib.contextmanager
def _extra(service: str, extra: str) -> Iterator[None]:
    """Say what to install where a service's own packages are not there."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise SettingsError(f"the {service} needs {error.name}: pip install 'tidemill[{extra}]'") from error


def registry_of(pipeline: Pipeline, settings: Settings) -> Registry:
    """Return the registry that the settings name. Raises SettingsError where there is no signing key."""
    return Registry(pipeline, ArtifactStore(settings.store_url), settings.signing_secret())


def _learner(pipeline: Pipeline, settings: Settings, broker: KafkaBroker, model: str) -> Service:
    if model not in pipeline.model_names:
        raise SettingsError(f"model {model!r} is not one of the pipeline's: {', '.join(pipeline.model_names)}")
    return learner.build(
        pipeline,
        model,
        registry_of(pipeline, settings),
        broker,
        every_examples=settings.snapshot_examples,
        every_seconds=settings.snapshot_seconds,
    )
