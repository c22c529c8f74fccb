"""Headers by which a prediction is a CloudEvent: the Kafka protocol binding, binary content mode, version 1.0."""

from __future__ import annotations

from collections.abc import Callable

from tidemill.declare.pipeline import Pipeline
from tidemill.stream.api import Headers

#: By the name of the record's schema.
TYPE = b"tidemill.prediction.v1"


def prediction_headers(pipeline: Pipeline) -> Callable[[str, str], Headers] | None:
    """Return what makes the headers of an event's id and an entity's; None where none are declared."""
    if not pipeline.predictions_headers:
        return None
    form = b"application/json" if pipeline.predictions_encoding == "json" else b"application/avro"
    fixed: Headers = [
        ("ce_specversion", b"1.0"),
        ("ce_type", TYPE),
        ("ce_source", f"/tidemill/{pipeline.name}".encode()),
        ("content-type", form),
    ]

    def headers(event_id: str, entity_id: str) -> Headers:
        own = [*fixed, ("ce_id", event_id.encode())]
        return [*own, ("ce_subject", entity_id.encode())] if entity_id else own

    return headers
