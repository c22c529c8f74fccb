"""Runs the copy of a pipeline that moves to new topics."""

from __future__ import annotations

import logging
import time

from tidemill.declare.pipeline import Pipeline
from tidemill.offline import grow
from tidemill.runtime.host import Host
from tidemill.runtime.run import broker_of, check_topics, declared_partitions, topic_table
from tidemill.settings import Settings
from tidemill.stream.api import TopicPartition
from tidemill.stream.loop import Loop
from tidemill.wire import topics

log = logging.getLogger(__name__)

#: How often it is asked whether everything is copied.
FINISH_SECONDS = 1.0


def run(old: Pipeline, new: Pipeline, settings: Settings, *, finish: bool = False) -> int:
    """Copy until SIGTERM or SIGINT, or with `finish` to the end; returns how many records. Raises a TidemillError."""
    grow.check(old, new)
    broker = broker_of(settings)
    broker.connect()
    check_topics(old, broker, tuple(topic.name(old) for way in grow.WAYS for topic in way))
    if created := broker.create(topic_table(new), settings.replication):
        log.info("topics created", extra={"topics": ", ".join(created)})
    looked = time.monotonic()

    def ended(following: dict[TopicPartition, int]) -> None:
        nonlocal looked
        if finish and not loop.stopping and time.monotonic() - looked > FINISH_SECONDS:
            looked = time.monotonic()
            if grow.is_finished(broker, old, following):
                log.info("everything is copied")
                loop.stop()

    service = grow.build(old, new, ended)
    used = [valid for valid, _ in grow.WAYS]
    written = [*(raw for _, raw in grow.WAYS), topics.PROGRESS]
    loop = Loop(
        service,
        broker,
        instance=settings.instance,
        max_delay=settings.max_delay_ms / 1000,
        declared=declared_partitions(old, used) | declared_partitions(new, written),
    )
    Host().on_stop(loop.stop)
    log.info("copying", extra={"old": old.name, "new": new.name, "partitions": new.partitions})
    loop.run()
    assert isinstance(service.processor, grow.Copy)  # noqa: S101  made above
    return service.processor.copied
