"""The composition root: from a pipeline, a service's name and the settings to a running process.

`SERVICES` has one entry a service, and what each is made of; wire/topics.py has what each reads and writes. A service
imports its own stage, and nothing of the others.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from tidemill import probes
from tidemill.declare.pipeline import Pipeline
from tidemill.errors import BrokerError, NotAllowed, SettingsError, StoreError
from tidemill.runtime.doctor import check_settings, keep_alive
from tidemill.runtime.host import Host
from tidemill.runtime.lineage import Published, lineage
from tidemill.runtime.tracing import TracesOf, tracing
from tidemill.settings import Settings
from tidemill.stream.api import Broker, TopicPartition
from tidemill.stream.group import Service
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.stream.kafka.settings import ClusterSettings
from tidemill.stream.loop import KEEP_ALIVE_SECONDS, Loop
from tidemill.stream.pace import BUSY_SHARE, BUSY_SHARE_AT_LEAST_ONCE
from tidemill.stream.topic import Topic
from tidemill.stream.trace import Traces
from tidemill.wire import topics
from tidemill.wire.rights import rights
from tidemill.wire.services import chain, group

if TYPE_CHECKING:
    from tidemill.declare.view import View
    from tidemill.features.redis import Redis, RedisView
    from tidemill.registry.manifests import Registry
    from tidemill.stages.scorer.feed import ModelFeed

log = logging.getLogger(__name__)

Store = TypeVar("Store")

#: A model's first version is published after so many examples, and the next after 20, 50, 100, ...
FIRST_VERSION_EXAMPLES = 10

#: Services that no prediction waits for have so many times the longest delay, up to so many seconds (or the delay
#: itself), and use it: the fewer their transactions, the more of the broker is left to those that are waited for.
UNHURRIED_TIMES, UNHURRIED_SECONDS, UNHURRIED_SHARE = 10, 0.2, 1 / 20

#: A loop that has not completed a turn for this long is no longer alive.
STALLED_SECONDS = 30.0


def broker_of(settings: Settings, pipeline: Pipeline | None = None) -> KafkaBroker:
    """Return the broker that the settings name, for who writes records of a pipeline; not connected yet."""
    broker = KafkaBroker(
        settings.brokers, exactly_once=settings.delivery == "exactly_once", extra=settings.kafka_properties()
    )
    if pipeline is not None:
        broker.erasable = topics.erasable(pipeline, is_declared=pipeline.forgetting is not None)
    return broker


def topic_table(pipeline: Pipeline) -> list[tuple[Topic, str, int]]:
    """Return every topic of the pipeline as (topic, name, partitions)."""
    kept = [topic.of(pipeline) for topic in topics.TOPICS]
    return [(topic, topic.name(pipeline), topic.partitions or pipeline.partitions) for topic in kept]


def declared_partitions(pipeline: Pipeline, some: Iterable[Topic]) -> dict[str, int]:
    """Return the declared number of partitions of these topics, by name."""
    return {topic.name(pipeline): topic.partitions or pipeline.partitions for topic in some}


def registry_of(pipeline: Pipeline, settings: Settings, service: str = "", *, must_answer: bool = True) -> Registry:
    """Return the registry that the settings name, with the keys of a service. Raises SettingsError without keys.

    Raises StoreError where the artifact store can't be used, unless `must_answer` is False.
    """
    from tidemill.registry.manifests import Registry
    from tidemill.registry.store import ArtifactStore

    store = ArtifactStore(settings.store_url, create=must_answer)
    return Registry(pipeline, store, settings.keyring(service))


def check_topics(pipeline: Pipeline, broker: KafkaBroker, names: tuple[str, ...]) -> None:
    """Raise BrokerError where one of the topics does not exist."""
    missing = [name for name in names if not broker.partitions(name)]
    if missing:
        raise BrokerError(
            f"no topic {', '.join(missing)} at {broker.servers}: create the pipeline's topics with "
            f"`tidemill topics {pipeline.name} --create`"
        )


def check_rights(pipeline: Pipeline, broker: KafkaBroker, name: str, model: str = "") -> None:
    """Raise NotAllowed where this process' user may not do all that its services need, before they need it.

    What a user may not see of settings is only not checked.
    """
    needed = rights(pipeline, name)
    wanted = {one.name: {*one.operations} - {"DescribeConfigs"} for one in needed if one.kind == "topic"}
    others = {group(name, pipeline.name, one) for one in pipeline.model_names if model and one != model}
    groups = {one.name: one.operations for one in needed if one.kind == "group" and one.name not in others}
    if missing := broker.lacking(wanted, groups):
        raise NotAllowed(
            f"Kafka does not allow this user what the {name} needs: {'; '.join(missing)}; grant it, as "
            f"`tidemill acl {pipeline.name} --service {name}` prints it, then start it again"
        )


def connected(pipeline: Pipeline, settings: Settings, *used: Topic) -> KafkaBroker:
    """Return the broker. Raises BrokerError where it can't be reached, or lacks one of these topics."""
    broker = broker_of(settings, pipeline)
    broker.connect()
    check_topics(pipeline, broker, tuple(topic.name(pipeline) for topic in used))
    return broker


def has_worked(broker: Broker, name: str, pipeline: Pipeline, model: str = "") -> bool:
    """Whether a service has worked before: a topic that it alone writes has records, or its group has committed."""

    def partitions(topic: Topic) -> list[TopicPartition]:
        return [TopicPartition(topic.name(pipeline), n) for n in range(topic.partitions or pipeline.partitions)]

    own = [p for topic in topics.writes(name) if topic.writers == (name,) for p in partitions(topic)]
    consumed = [p for topic in topics.consumes(name) for p in partitions(topic)]
    try:
        if any(broker.offset_range(partition)[1] for partition in own):
            return True
        committed = broker.committed(group(name, pipeline.name, model), consumed)
    except BrokerError as error:  # as while the transaction of a killed predecessor is open
        log.warning("it is not known whether the service has worked before", extra={"cause": str(error)})
        return True
    return any(position is not None for position in committed.values())


def _reach(context: Context, name: str, connect: Callable[[bool], Store]) -> Store:
    """Return what a service keeps or reads elsewhere; `connect` takes whether it must answer now.

    A store that is away stops no service that has worked before: it goes on, and uses the store when that is back.
    Raises StoreError at the first start: an address that was never reached may be wrong.
    """
    try:
        return connect(True)
    except StoreError as error:
        if not has_worked(context.broker, name, context.pipeline, context.model or ""):
            raise
        log.error("started without its store, which is used as soon as it answers", extra={"cause": str(error)})
        return connect(False)


class LoopHealth(probes.Health):
    """Alive while the loop turns; ready once the state of its partitions is restored."""

    def __init__(self, loop: Loop, clock: Callable[[], float] = time.monotonic) -> None:
        self.loop, self.clock = loop, clock

    def alive(self) -> str | None:
        """Return what is wrong, or None."""
        since = self.clock() - self.loop.heartbeat
        return f"the loop has not turned for {since:.0f} s" if since > STALLED_SECONDS else None

    def ready(self) -> str | None:
        """Return what is wrong, or None."""
        why = self.loop.processor.not_ready()
        if why:
            return why
        return None if self.loop.ready else "no partitions yet, or their state is being rebuilt"


class Follower(Protocol):
    """A thread beside the loop that reads what the service needs to know, as model versions or schemas."""

    def start(self) -> None: ...
    def stop(self) -> None: ...


@dataclass(frozen=True)
class Context:
    """What a service is built from. `model` is the learner's, or None; `keep_alive` is the loop's, in seconds.

    `declared` is the number of partitions of each topic that the service reads or writes.
    """

    pipeline: Pipeline
    settings: Settings
    broker: KafkaBroker
    model: str | None = None
    keep_alive: float = KEEP_ALIVE_SECONDS
    declared: Mapping[str, int] = field(default_factory=dict)
    host: Host = field(default_factory=Host)
    traces: TracesOf = lambda _: Traces()
    on_published: Published = lambda _model, _version: None


@dataclass(frozen=True)
class Step:
    """A service that the loop runs, and what it follows beside it; to call it is to run it by itself."""

    context: Context
    service: Service
    follower: Follower | None = None

    def __call__(self) -> None:
        """Run it until its host asks it to stop."""
        _loop(self.context, self.service, [self.follower])


#: Takes the context; returns the function that runs the service until SIGTERM or SIGINT.
Build = Callable[[Context], Callable[[], None]]


@dataclass(frozen=True)
class Spec:
    """One service.

    Parameters
    ----------
    load
        Imports what the service needs, and opens nothing; returns the function that builds it.
    extra
        The extra of the distribution that its packages are in.
    needs_kafka
        Whether it can't start without Kafka and its topics.
    """

    load: Callable[[], Build]
    extra: str = ""
    needs_kafka: bool = True


def _validator() -> Build:
    from tidemill.stages.validator.schema_follower import SchemaFollower
    from tidemill.stages.validator.service import build

    def compose(context: Context) -> Step:
        settings, schemas = context.settings, None
        if url := settings.registry_url.get_secret_value():
            from tidemill.encoding.schema_registry import SchemaRegistry

            schemas = SchemaFollower(context.pipeline, SchemaRegistry(url, settings.http_ca), settings.registry_seconds)
            _reach(context, "validator", schemas.connect)
        return Step(context, build(context.pipeline, schemas, fuse=settings.fuse), schemas)

    return compose


def _featurizer() -> Build:
    from tidemill.features.lookup import StoredRemoteViews
    from tidemill.features.redis import RedisReader
    from tidemill.stages.featurizer.service import build

    def compose(context: Context) -> Step:
        pipeline, client = context.pipeline, _redis(context, "featurizer")
        others = StoredRemoteViews(pipeline, RedisReader(client, pipeline.name), pipeline.partitions)
        stores = _stores(pipeline, client, pipeline.inline_views)
        return Step(context, build(pipeline, stores, others if pipeline.remote_views else None))

    return compose


def _materializer() -> Build:
    from tidemill.stages.materializer.service import build

    def compose(context: Context) -> Step:
        pipeline, client = context.pipeline, _redis(context, "materializer")
        return Step(context, build(pipeline, _stores(pipeline, client, pipeline.remote_views)))

    return compose


def _redis(context: Context, name: str) -> Redis:
    from tidemill.features.redis import connect

    url = context.settings.redis_address()
    return _reach(context, name, lambda must_answer: connect(url, must_answer=must_answer))


def _registry(context: Context, name: str) -> Registry:
    return _reach(
        context,
        name,
        lambda must_answer: registry_of(context.pipeline, context.settings, name, must_answer=must_answer),
    )


def _stores(pipeline: Pipeline, client: Redis, views: Iterable[View]) -> Mapping[str, RedisView]:
    from tidemill.features.redis import RedisView
    from tidemill.features.views import schema

    return {view.label: RedisView(client, pipeline.name, view.label, schema(pipeline, view)) for view in views}


def _scorer() -> Build:
    from tidemill.stages.scorer.feed import ModelFeed
    from tidemill.stages.scorer.service import build

    def compose(context: Context) -> Step:
        models = ModelFeed(_registry(context, "scorer"), context.broker)
        return Step(context, build(context.pipeline, models.take), models)

    return compose


def _joiner() -> Build:
    from tidemill.stages.joiner.service import build

    def compose(context: Context) -> Step:
        pipeline, settings, open_state = context.pipeline, context.settings, None
        if settings.state_dir:
            from tidemill.stream.lmdb_state import open_in

            place = Path(settings.state_dir, group("joiner", pipeline.name), settings.instance)
            open_state = open_in(place)
        return Step(context, build(pipeline, open_state=open_state))

    return compose


def _learner() -> Build:
    from tidemill.registry.retention import Retainer
    from tidemill.stages.learner.service import build

    def compose(context: Context) -> Step:
        pipeline, settings, model = context.pipeline, context.settings, context.model or context.pipeline.champion
        if model not in pipeline.model_names:
            raise SettingsError(f"model {model!r} is not one of the pipeline's: {', '.join(pipeline.model_names)}")
        registry = _registry(replace(context, model=model), "learner")
        service = build(
            pipeline,
            model,
            registry,
            context.broker,
            every_examples=settings.snapshot_examples,
            every_seconds=settings.snapshot_seconds,
            first_examples=FIRST_VERSION_EXAMPLES,
            on_published=context.on_published,
        )
        return Step(context, service, Retainer(pipeline, model, registry, context.broker))

    return compose


def _gate() -> Build:
    from tidemill.stages.gate.service import build

    def compose(context: Context) -> Step:
        pipeline = context.pipeline
        return Step(context, build(pipeline, _registry(context, "gate"), context.broker))

    return compose


def _archiver() -> Build:
    from tidemill.files import Files
    from tidemill.watch.archiver.service import build

    def compose(context: Context) -> Step:
        url, seconds = context.settings.archive_url, context.settings.archive_seconds
        files = _reach(
            context, "archiver", lambda must_answer: Files(url, "archive_url", "archive", create=must_answer)
        )
        if (name := context.settings.archive_format) != "parquet":
            try:
                tables = import_module(f"tidemill.watch.archiver.{name}")
            except ModuleNotFoundError as error:
                raise SettingsError(
                    f"archive_format {name!r} needs {error.name}: pip install 'tidemill[{name}]'"
                ) from error
            return Step(context, tables.build(context.pipeline, url, seconds))
        return Step(context, build(context.pipeline, files, seconds))

    return compose


def _monitor() -> Build:
    from tidemill.stream.kafka.producer import Sender
    from tidemill.watch.monitor.service import MonitorHealth, MonitorService

    def compose(context: Context) -> Callable[[], None]:
        pipeline, settings = context.pipeline, context.settings
        sender, keys = Sender(settings.brokers, context.broker.common), settings.keyring("monitor")
        service = MonitorService(pipeline, context.broker, settings, sender, keys, context.declared)
        context.host.serve(settings, MonitorHealth(service, STALLED_SECONDS))
        log.info("started", extra={"pipeline": pipeline.name, "instance": settings.instance})
        return partial(service.run, context.host.on_stop)

    return compose


def _notifier() -> Build:
    from tidemill.watch.notifier.service import build

    def compose(context: Context) -> Step:
        settings, pipeline = context.settings, context.pipeline
        keys, hours = settings.keyring("notifier"), settings.notify_hours
        return Step(context, build(pipeline, keys, context.broker, settings.receivers(), 3600 * hours))

    return compose


def _status() -> Build:
    from tidemill.watch.status.service import run

    def compose(context: Context) -> Callable[[], None]:
        declared = declared_partitions(context.pipeline, topics.TOPICS)  # what it shows is of all of them
        return partial(run, context.pipeline, context.broker, context.settings, declared, context.host.on_stop)

    return compose


def _gateway() -> Build:
    from tidemill.gateway.service import run

    def compose(context: Context) -> Callable[[], None]:
        pipeline, broker, settings = context.pipeline, context.broker, context.settings

        def open_models() -> ModelFeed:
            from tidemill.stages.scorer.feed import ModelFeed

            return ModelFeed(registry_of(pipeline, settings, must_answer=False), broker)

        traces, declared = context.traces("gateway"), context.declared
        return partial(run, pipeline, broker, settings, context.host.on_stop, open_models, traces, declared)

    return compose


SERVICES: Mapping[str, Spec] = {
    "validator": Spec(_validator, extra="registry"),
    "featurizer": Spec(_featurizer),
    "materializer": Spec(_materializer),
    "scorer": Spec(_scorer),
    "joiner": Spec(_joiner),
    "learner": Spec(_learner),
    "gate": Spec(_gate),
    "archiver": Spec(_archiver, extra="parquet"),
    "monitor": Spec(_monitor, extra="monitor"),
    "status": Spec(_status, extra="status", needs_kafka=False),  # it is the one that shows when Kafka is away
    "notifier": Spec(_notifier, extra="notify"),
    "gateway": Spec(_gateway, extra="status"),
}


@contextmanager
def _extra(name: str) -> Iterator[None]:
    """Name the extra to install where a package that the service needs is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if not (extra := SERVICES[name].extra):
            raise
        raise SettingsError(f"the {name} needs {error.name}: pip install 'tidemill[{extra}]'") from error


def load(name: str) -> Build:
    """Import what a service needs, and open nothing. Raises SettingsError where a package is missing."""
    if name not in SERVICES:
        raise SettingsError(f"no service {name!r}: expected one of {', '.join(SERVICES)}")
    with _extra(name):
        return SERVICES[name].load()


def run(name: str, pipeline: Pipeline, settings: Settings, model: str | None = None, host: Host | None = None) -> None:
    """Run one service, or several as `validator+featurizer+scorer`, until its host asks it to stop.

    In a chain, `learner` is the learners of all models but where one is named. Raises a TidemillError where it can't
    start or go on.
    """
    names, broker, cluster = name.split("+"), broker_of(settings, pipeline), ClusterSettings()
    is_chain = len(names) > 1
    if is_chain and settings.delivery != "exactly_once":
        raise SettingsError(f"{name}: services share a process only with TIDEMILL_DELIVERY=exactly_once")
    builds = {one: load(one) for one in names}
    used = tuple(topic for topic in topics.TOPICS if {*topic.readers, *topic.writers} & {*names})
    if any(SERVICES[one].needs_kafka for one in names):
        broker.connect()
        check_rights(pipeline, broker, name, model or "")
        check_topics(pipeline, broker, tuple(topic.name(pipeline) for topic in used))
        cluster = check_settings(pipeline, broker, used)
    declared = declared_partitions(pipeline, used)
    lineage_of_run = lineage(pipeline, names, settings, model)
    with tracing(group(name, pipeline.name, model or "")) as traces, lineage_of_run as on_published:
        alive, host = keep_alive(cluster), host or Host()
        _run(builds, Context(pipeline, settings, broker, model, alive, declared, host, traces, on_published))


def _run(builds: Mapping[str, Build], context: Context) -> None:
    names, pipeline, model = tuple(builds), context.pipeline, context.model
    is_chain, services, of = len(names) > 1, [], []
    for one in names:
        with _extra(one):
            for each in pipeline.model_names if is_chain and one == "learner" and model is None else [model]:
                services.append(builds[one](replace(context, model=each)))
                of.append(one)
    if not is_chain:
        services[0]()
        return
    steps = [service for service in services if isinstance(service, Step)]  # those that `chain` takes are all
    _loop(context, chain([step.service for step in steps], of, pipeline.name), [step.follower for step in steps])


def pace(service: str, max_delay: float, *, exactly_once: bool) -> tuple[float, float]:
    """Return the longest delay of a service, in seconds, and the share of its time that batches may take."""
    if service.partition("-")[0] in topics.WAITED_FOR:
        return max_delay, BUSY_SHARE if exactly_once else BUSY_SHARE_AT_LEAST_ONCE
    return unhurried(max_delay), UNHURRIED_SHARE


def unhurried(max_delay: float) -> float:
    """Return the longest delay, in seconds, where no prediction waits."""
    return min(UNHURRIED_TIMES * max_delay, max(max_delay, UNHURRIED_SECONDS))


def _loop(context: Context, service: Service, followers: Sequence[Follower | None]) -> None:
    settings, following = context.settings, [follower for follower in followers if follower]
    for one in (service, *service.chained):
        one.processor.traces = context.traces(one.name)
    is_exactly_once = settings.delivery == "exactly_once"
    max_delay = settings.max_delay_ms / 1000
    delay, share = pace(service.name, max_delay, exactly_once=is_exactly_once)
    loop = Loop(
        service,
        context.broker,
        instance=settings.instance,
        max_delay=delay,
        busy_share=share,
        unhurried=unhurried(max_delay) / 2,  # those who read them next have as much for themselves
        commit_every=0.0 if is_exactly_once else 0.2,
        keep_alive=context.keep_alive,
        declared=context.declared,
        forgotten=topics.FORGOTTEN.name(context.pipeline) if context.pipeline.forgetting else "",
    )
    context.host.serve(settings, LoopHealth(loop))
    context.host.on_stop(loop.stop)
    for follower in following:
        follower.start()
    process = {"pipeline": context.pipeline.name, "instance": settings.instance}
    log.info("started", extra=process | {"delivery": settings.delivery})
    try:
        loop.run()
    finally:
        for follower in following:
            follower.stop()
    log.info("stopped", extra=process)
