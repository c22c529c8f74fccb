"""A pipeline's topics as an AsyncAPI 3 document: made of the table of topics, and of the schemas of their records.

https://www.asyncapi.com/docs/reference/specification/v3.0.0
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from tidemill.declare.pipeline import Pipeline
from tidemill.encoding.codec import Codec
from tidemill.encoding.json_schema import Schema, json_schema
from tidemill.errors import Reject
from tidemill.stream.memory import MemoryRecord
from tidemill.stream.topic import Topic
from tidemill.wire import topics
from tidemill.wire.dead_letters import dead_letter_headers
from tidemill.wire.records import Records
from tidemill.wire.services import group

VERSION, BINDING = "3.0.0", "0.5.0"
AVRO, JSON, BYTES = "application/vnd.apache.avro+binary", "application/json", "application/octet-stream"
AVRO_SCHEMA, JSON_SCHEMA = "application/vnd.apache.avro+json;version=1.9.0", "application/schema+json;version=draft-07"


def document(
    pipeline: Pipeline, brokers: Sequence[str], *, is_secure: bool = False, registry: str = "", inner: bool = False
) -> dict[str, Any]:
    """Return the document: of the topics that others write or read, with `inner` of all.

    `brokers` are host:port each, over TLS where `is_secure`; `registry` is the schema registry's address, or empty.
    """
    records = Records(pipeline)
    shown = [topic for topic in topics.TOPICS if inner or {*topic.writers, *topic.readers} & {*topics.APPLICATIONS}]
    channels = {_id(topic): _channel(pipeline, records, topic) for topic in shown}
    operations: dict[str, Any] = {}
    for topic in shown:
        operations |= _operations(pipeline, topic, channels[_id(topic)]["messages"])
    contract = {"channels": channels, "operations": operations}
    digest = hashlib.sha256(json.dumps(contract, sort_keys=True).encode()).hexdigest()[:12]
    server: dict[str, Any] = {"protocol": "kafka-secure" if is_secure else "kafka"}
    if registry:
        server |= {"bindings": _kafka(schemaRegistryUrl=registry, schemaRegistryVendor="confluent")}
    return {
        "asyncapi": VERSION,
        "info": {
            "title": pipeline.name,
            # It is another one when what is on the topics is another, and only then.
            "version": digest,
            "description": f"What the pipeline {pipeline.name} reads from Kafka, and writes to it.",
        },
        "defaultContentType": AVRO,
        "servers": {f"kafka-{number}": {"host": host, **server} for number, host in enumerate(brokers)},
        **contract,
    }


def _id(topic: Topic) -> str:
    """Return what a topic is called in the document, where names have no dots."""
    return topic.suffix.replace(".", "-")


def _kafka(**binding: Any) -> dict[str, Any]:
    return {"kafka": {**binding, "bindingVersion": BINDING}}


def _channel(pipeline: Pipeline, records: Records, topic: Topic) -> dict[str, Any]:
    name = topic.name(pipeline)
    binding: dict[str, Any] = {"topic": name}
    if name not in pipeline.raw_topics.values():  # else somebody else has made it, and keeps it as he will
        kept: dict[str, Any] = {"retention.ms": topic.kept_ms(pipeline)}
        if topic.compacted:
            kept["cleanup.policy"] = ["compact"]
        if topic.max_message_bytes:
            kept["max.message.bytes"] = topic.max_message_bytes
        binding |= {"partitions": topic.partitions or pipeline.partitions, "topicConfiguration": kept}
    return {
        "address": name,
        "description": topic.doc,
        "messages": _messages(pipeline, records, topic),
        "bindings": _kafka(**binding),
        "x-writers": list(topic.writers),
        "x-readers": list(topic.readers),
    }


def _messages(pipeline: Pipeline, records: Records, topic: Topic) -> dict[str, Any]:
    codec = records.of_topic(topic)
    key = {"type": "string", "description": topic.key}
    if codec is None:
        more: dict[str, Any] = {"contentType": BYTES, "payload": {"description": topic.record}}
        if topic is topics.DLQ:
            more["headers"] = _letter_headers()
        elif topic.record == "JSON":
            more = {"contentType": JSON, "payload": {}}
        return {_id(topic): {"name": topic.record, **more, "bindings": _kafka(key=key)}}
    codecs = [codec, records.correction] if topic is topics.EXAMPLES and pipeline.corrections_ms else [codec]
    named = [(str(one.avro["name"]).rpartition(".")[2], one) for one in codecs]
    return {f"{name}-{form}": _message(one, form, key) for name, one in named for form in _forms(pipeline, topic)}


def _forms(pipeline: Pipeline, topic: Topic) -> Sequence[str]:
    if topic.is_raw:
        stream = pipeline.events if topic is topics.EVENTS else pipeline.labels
        return [stream.encoding] if stream.encoding else ["avro", "json"]
    return ["json"] if topic is topics.PREDICTIONS and pipeline.predictions_encoding == "json" else ["avro"]


def _message(codec: Codec, form: str, key: Schema) -> dict[str, Any]:
    avro = codec.avro
    about = {"name": str(avro["name"])} | ({"summary": str(avro["doc"])} if avro.get("doc") else {})
    if form == "json":
        payload = {"schemaFormat": JSON_SCHEMA, "schema": json_schema(avro)}
        return {**about, "contentType": JSON, "payload": payload, "bindings": _kafka(key=key)}
    binding = _kafka(key=key, schemaIdLocation="payload", schemaIdPayloadEncoding="confluent")
    payload = {"schemaFormat": AVRO_SCHEMA, "schema": _with_namespaces(avro)}
    return {**about, "contentType": AVRO, "payload": payload, "bindings": binding, "x-schema-id": codec.id}


def _with_namespaces(avro: Any) -> Any:
    """Return an Avro schema whose names have their namespaces apart: AsyncAPI takes no full ones."""
    if isinstance(avro, list):
        return [_with_namespaces(one) for one in avro]
    if not isinstance(avro, dict):
        return avro
    made = {
        key: _with_namespaces(avro[key]) if key in ("type", "items", "values", "fields") else avro[key] for key in avro
    }
    namespace, dot, name = str(avro.get("name", "")).rpartition(".")
    return made | {"name": name, "namespace": namespace} if dot else made


def _letter_headers() -> Schema:
    """Return the schema of the headers that every dead letter has."""
    names = [name for name, _ in dead_letter_headers(MemoryRecord("", b""), Reject("", ""), topics.SERVICES[0], 0)]
    return {"type": "object", "properties": {name: {"type": "string"} for name in names}, "required": names}


def _operations(pipeline: Pipeline, topic: Topic, messages: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the pipeline does with a topic: it receives what others write, and sends what it writes itself."""
    channel = f"#/channels/{_id(topic)}"
    of = {"channel": {"$ref": channel}, "messages": [{"$ref": f"{channel}/messages/{name}"} for name in messages]}
    operations = {}
    if {*topic.writers} & {"producers", "redrive"}:
        groups = [group(name, pipeline.name) for name in topic.readers if name in topics.KEEPING_PROGRESS]
        binding = {"bindings": _kafka(groupId={"type": "string", "enum": groups})} if groups else {}
        operations[f"receive-{_id(topic)}"] = {"action": "receive", **of, **binding}
    if {*topic.writers} & {*topics.ALL}:
        operations[f"send-{_id(topic)}"] = {"action": "send", **of}
    return operations
