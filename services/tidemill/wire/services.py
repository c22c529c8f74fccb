"""One service as the loop runs it: its name, its consumer group and its topics, from the table of topics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tidemill.errors import SettingsError
from tidemill.stream.api import Processor
from tidemill.stream.group import Service
from tidemill.stream.topic import Named
from tidemill.wire import topics
from tidemill.wire.dead_letters import DeadLetterProcessor

#: Services whose messages carry their records to the next one in a chain. The joiner's do not: it would have to keep
#: the records for as long as labels take.
CARRYING = ("validator", "featurizer", "scorer")


def group(name: str, pipeline: str, model: str = "") -> str:
    """Return the consumer group of a service. A service with a process for each model has a group for each, too."""
    return ".".join((pipeline, name, model) if model else (pipeline, name))


def service(name: str, pipeline: Named, processor: Processor, model: str = "") -> Service:
    """Return the service `name` of a pipeline."""
    consumed = [topic.name(pipeline) for topic in topics.consumes(name)]
    # Learners share their topic, and a learner goes on at its own snapshot, whatever is committed.
    outputs = [topic.name(pipeline) for topic in topics.outputs(name)] if name != "learner" else []
    return Service(
        f"{name}-{model}" if model else name,
        group(name, pipeline.name, model),
        consumed,
        processor,
        topics.PROGRESS.name(pipeline),
        outputs,
        " ".join(("tidemill offsets set", pipeline.name, name, *(("--model", model) if model else ()))),
        progress_partition=0 if name in topics.WAITED_FOR else 1,
        unhurried=[topics.LABELS.name(pipeline)] if name == "validator" else (),
    )


def check_chain(names: Sequence[str]) -> None:
    """Raise SettingsError where services can't run in one process: each must read what those before it alone write."""
    asked = "+".join(names)
    if alone := [name for name in names if name not in topics.SERVICES]:
        raise SettingsError(f"{asked}: the {alone[0]} runs by itself")
    if list(names) != sorted(set(names), key=topics.SERVICES.index):
        raise SettingsError(f"{asked}: expected each service once, in the order {', '.join(topics.SERVICES)}")
    for index, name in enumerate(names[1:], 1):
        for topic in topics.consumes(name):
            if others := [writer for writer in topic.writers if writer not in names[:index]]:
                raise SettingsError(
                    f"{asked}: the {name} reads {topic.suffix}, which the {others[0]} writes; chain it as well, or run "
                    f"the {name} by itself"
                )


def chain(services: Sequence[Service], names: Sequence[str], pipeline: str) -> Service:
    """Return services as one that runs all of them; `names` has the name of each in the table of topics."""
    check_chain(tuple(dict.fromkeys(names)))
    for one, name in zip(services[:-1], names, strict=False):
        if name in CARRYING and isinstance(one.processor, DeadLetterProcessor):
            one.processor.records.carries = True
    inner = [topic for topic in topics.TOPICS if any(name in topic.readers for name in names[1:])]
    inner = [topic for topic in inner if set(topic.writers) <= set(names)]
    return replace(
        services[0],
        chained=tuple(services[1:]),
        unwritten=[topic.name(pipeline) for topic in inner if topic.passing and set(topic.readers) <= set(names)],
        # Others are keyed by the event, or have one partition: what comes of a record belongs to another one.
        needs_all=any(topic.key != topics.EVENTS_VALID.key or topic.partitions for topic in inner),
    )
