"""One service as the loop runs it: its name, its consumer group and its topics, from the table of topics."""

from __future__ import annotations

from tidemill.stream.api import Processor
from tidemill.stream.group import Service
from tidemill.wire import topics


def group(name: str, pipeline: str, model: str = "") -> str:
    """Return the consumer group of a service. A service with a process for each model has a group for each, too."""
    return ".".join((pipeline, name, model) if model else (pipeline, name))


def service(name: str, pipeline: str, processor: Processor, model: str = "") -> Service:
    """Return the service `name` of a pipeline."""
    consumed = [topic.name(pipeline) for topic in topics.consumes(name)]
    # Learners share their topic, and a learner goes on at its own snapshot, whatever is committed.
    outputs = [topic.name(pipeline) for topic in topics.outputs(name)] if name != "learner" else []
    return Service(
        f"{name}-{model}" if model else name,
        group(name, pipeline, model),
        consumed,
        processor,
        topics.PROGRESS.name(pipeline),
        outputs,
        " ".join(("tidemill offsets set", pipeline, name, *(("--model", model) if model else ()))),
    )
