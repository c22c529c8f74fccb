"""One input of a pipeline: a schema, and which of its fields are id, time, key and label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tidemill.declare.feature import Source
from tidemill.encoding import schema_files as schemas
from tidemill.loading import loading


@dataclass(frozen=True)
class Stream:
    """One input of the pipeline.

    Parameters
    ----------
    schema
        An Avro record schema (`.avsc`), looked for beside the pipeline's file, in `schemas/`, and among those shipped.
    id
        The field that names the event: text or an integer, the same in the event and in its label.
    time
        The field with the event time: `timestamp-millis`, or a long of milliseconds since the epoch.
    key
        Events only: the field that names the entity; it is the Kafka key of everything downstream.
    value
        Labels only: the field that is the label, or a function of the label record.
    accepts
        Other schemas that producers may write by, each a file as `schema` is; `schema` must be able to read them.
    encoding
        "avro" or "json" where producers may send only that; both by default.
    """

    schema: str
    id: str
    time: str
    key: str = ""
    value: Source = ""
    accepts: Sequence[str] = ()
    encoding: str = ""

    @cached_property
    def avro(self) -> dict[str, Any]:
        """The schema file as JSON."""
        return schemas.find(self.schema, loading.get())

    @cached_property
    def others(self) -> dict[str, dict[str, Any]]:
        """The other schemas that producers may write by, as JSON, by the name of their file."""
        return {name: schemas.find(name, loading.get()) for name in self.accepts}

    @cached_property
    def types(self) -> dict[str, str]:
        """Primitive Avro type of each field, by name; of a union with null, the other branch's."""
        return {f["name"]: schemas.primitive(f["type"]) for f in self.avro["fields"]}
