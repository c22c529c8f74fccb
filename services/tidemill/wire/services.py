"""One service as the loop runs it: its name, its consumer group and its topics, from the table of topics."""

from __future__ import annotations

from tidemill.stream.api import Processor
from tidemill.stream.loop import Service
from tidemill.wire import topics


def service(name: str, pipeline: str, processor: Processor, model: str = "") -> Service:
    """Return the service `name` of a pipeline. A service with a process for each model has a group for each, too."""
    parts = (name, model) if model else (name,)
    consumed = [topic.name(pipeline) for topic in topics.consumes(name)]
    return Service("-".join(parts), ".".join((pipeline, *parts)), consumed, processor)
