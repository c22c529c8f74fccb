"""The schemas of a pipeline's topics, and how their records look on the wire."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tidemill.cli.text.shared import new_table, render
from tidemill.declare.pipeline import Pipeline
from tidemill.stream.topic import Topic
from tidemill.wire import topics
from tidemill.wire.records import Records

#: Bytes of a record that is Avro; `id` is that of its schema.
FRAMED = "each record is 0x00, the id in 4 bytes (big-endian), and Avro, as Confluent's clients write and read it"


@dataclass(frozen=True)
class TopicSchema:
    """What a topic's records are; without `avro` and `id` where they are not Avro."""

    topic: str
    short: str
    key: str
    name: str
    id: int | None
    framing: str
    avro: dict[str, Any] | None

    def as_dict(self) -> dict[str, Any]:
        """Return it for programs."""
        return dataclasses.asdict(self)


def topic_schemas(pipeline: Pipeline) -> list[TopicSchema]:
    """Return the schema of every topic that the pipeline touches, as they are in the table of topics."""
    records = Records(pipeline)
    schemas = []
    shown = [(topic, records.of_topic(topic)) for topic in topics.TOPICS]
    if pipeline.corrections_ms:
        shown.insert(shown.index((topics.EXAMPLES, records.example)) + 1, (topics.EXAMPLES, records.correction))
    for topic, codec in shown:
        name = str(codec.avro["name"]) if codec else topic.record
        schemas.append(
            TopicSchema(
                topic=topic.name(pipeline),
                short=topic.suffix,
                key=topic.key,
                name=name,
                id=codec.id if codec else None,
                framing=_framing(pipeline, topic) if codec else topic.record,
                avro=dict(codec.avro) if codec else None,
            )
        )
    return schemas


def _framing(pipeline: Pipeline, topic: Topic) -> str:
    json = "a JSON object with every field by its name"
    if topic is topics.PREDICTIONS and pipeline.predictions_encoding == "json":
        return f"each record is {json}"
    if not topic.is_raw:
        return FRAMED
    encoding = (pipeline.events if topic is topics.EVENTS else pipeline.labels).encoding
    return {"avro": FRAMED, "json": f"each record is {json}"}.get(encoding, f"{FRAMED}; or {json}")


def topic_schemas_text(schemas: Sequence[TopicSchema]) -> str:
    """Return the table of the topics' schemas."""
    table = new_table("topic", "key", "record", "id", numbers=1)
    for one in schemas:
        table.add_row(one.topic, one.key, one.name, "" if one.id is None else str(one.id))
    notes = (
        f"With an id, {FRAMED}.\n"
        "Programs may write events and labels as JSON too.\n"
        "`tidemill schema show PIPELINE TOPIC` prints a schema.\n"
    )
    return render(table) + notes
