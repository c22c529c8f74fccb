"""The OpenAPI of the gateway: bodies by the pipeline's own Avro schemas, and what is answered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from tidemill.declare.pipeline import Pipeline
from tidemill.encoding.json_schema import MOMENT_MS, Schema, example, json_schema
from tidemill.gateway.cloudevents import STRUCTURED

_SCORE: Schema = {
    "type": "object",
    "properties": {
        "model": {"type": "string"},
        "version": {"type": "integer", "description": "Offset in the examples before which the model has learned all."},
        "epoch": {"type": "integer"},
        "score": {"type": "number"},
        "probabilities": {"type": "object", "additionalProperties": {"type": "number"}},
        "answered": {"type": "boolean", "description": "False where the model had no answer yet."},
    },
}
_ANSWER: Schema = {
    "type": "object",
    "required": ["state"],
    "properties": {
        "state": {
            "enum": ["predicted", "pending", "refused", "conflict", "unwritten", "written", "repeated"],
        },
        "event_id": {"type": "string"},
        "entity_id": {"type": "string"},
        "event_time": {"type": "integer"},
        "champion": _SCORE,
        "as_of": {"type": "object", "additionalProperties": {"type": "integer"}},
        "stale": {"type": "array", "items": {"type": "string"}},
        "repeated": {
            "type": "boolean",
            "description": "Whether the id came before: its first answer.",
        },
        "trace_id": {"type": "string"},
        "reason": {"type": "string"},
        "rule": {"type": "string"},
        "field": {"type": "string"},
        "value": {"type": "string"},
        "message": {"type": "string"},
        "service": {"type": "string"},
        "letter": {"type": "string", "description": "Where the dead letter is: PARTITION:OFFSET."},
    },
}
_PREDICTED = {
    "state": "predicted",
    "event_id": "o-17",
    "entity_id": "c-4",
    "event_time": MOMENT_MS,
    "champion": {"model": "logreg", "version": 2600, "epoch": 0, "score": 0.83, "probabilities": {}, "answered": True},
    "as_of": {"customer": MOMENT_MS - 60_000},
    "stale": [],
    "repeated": False,
    "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
}
_REFUSED = {
    "state": "refused",
    "reason": "out_of_range",
    "rule": "between",
    "field": "amount",
    "value": "-3.0",
    "message": "field 'amount' is -3.0 where 0 to 10000 was expected",
    "service": "gateway",
}

_FEATURES = {
    "entity": "customer",
    "entity_id": "c-4",
    "views": [
        {
            "view": "customer",
            "at": MOMENT_MS,
            "event_time": MOMENT_MS - 60_000,
            "age_seconds": 60.0,
            "whole": True,
            "stale": False,
            "features": {"customer_count_1h": 3.0},
        }
    ],
}

_WHAT_IF = {
    "state": "what_if",
    "written": False,
    **{name: _PREDICTED[name] for name in ("event_id", "entity_id", "event_time", "as_of", "stale")},
    "vector": {"amount": 12.0, "customer_count_1h": 3.0},
    "scores": [_PREDICTED["champion"]],
}


def _answers(codes: Mapping[int, tuple[str, Any]]) -> dict[int | str, dict[str, Any]]:
    one_or_more = {"anyOf": [{"$ref": "#/components/schemas/Answer"}, {"type": "array"}]}
    return {
        code: {"description": text, "content": {"application/json": {"schema": one_or_more, "example": example}}}
        for code, (text, example) in codes.items()
    }


def problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    """Return error responses, each with what is wrong as `detail`."""
    detail = {"type": "object", "properties": {"detail": {}}}
    texts = {
        400: "a header is malformed",
        401: "no key",
        403: "another role",
        404: "not known here",
        409: "another body came before",
        413: "too large",
        415: "packed",
        422: "refused",
        429: "too many records or wrong keys",
        503: "not now; see Retry-After",
        504: "not known whether it was given: send it again with the same id",
    }
    return {code: {"description": texts[code], "content": {"application/json": {"schema": detail}}} for code in codes}


_REFUSALS = problems(400, 401, 403, 409, 413, 415, 429, 503)
#: What is answered about predictions, by code.
ANSWERS = _REFUSALS | _answers(
    {
        200: ("the prediction; a list has an answer for each of its events", _PREDICTED),
        202: ("not predicted yet", {"state": "pending", "event_id": "o-17"}),
        422: ("refused, in the words of its dead letter", _REFUSED),
    }
)
#: What is answered about records that are only sent, by code.
OUTCOMES = _REFUSALS | _answers(
    {
        200: ("what became of each", {"state": "written", "event_id": "o-17"}),
        422: ("refused, in the words of its dead letter", _REFUSED),
    }
)
WHAT_IF: dict[int | str, dict[str, Any]] = {
    200: {"description": "vector and scores", "content": {"application/json": {"example": _WHAT_IF}}},
    **problems(401, 403, 413, 415, 422, 429, 503),
}
FEATURES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "what each view knows of each entity",
        "content": {"application/json": {"example": [_FEATURES]}},
    },
    **problems(401, 403, 413, 415, 422, 429, 503),
}
_ONE_COMMAND: Schema = {
    "type": "object",
    "required": ["id", "kind", "why"],
    "properties": {
        "id": {"type": "string", "minLength": 8, "maxLength": 100, "pattern": "^[A-Za-z0-9._-]+$"},
        "kind": {"enum": ["promote", "rollback", "pin", "unpin", "train", "train_corrected"]},
        "target": {"type": "string", "description": "MODEL or MODEL@VERSION; empty for rollback and unpin."},
        "steps": {"type": "integer", "minimum": 1, "description": "rollback: how many champions back."},
        "begin": {"type": "integer", "description": "train: offset of the first example; negative: from the newest."},
        "why": {"type": "string", "minLength": 1, "maxLength": 900},
    },
}
COMMAND: dict[str, Any] = {"requestBody": {"required": True, "content": {"application/json": {"schema": _ONE_COMMAND}}}}
COMMANDED: dict[int | str, dict[str, Any]] = {
    202: {"description": "given; the decision, once there is one", "content": {"application/json": {}}},
    **problems(401, 403, 409, 413, 415, 422, 429, 503, 504),
}
TRYING: dict[int | str, dict[str, Any]] = problems(401, 403, 404, 429, 503)
STREAM: dict[int | str, dict[str, Any]] = {
    200: {"description": "`event: prediction` with its JSON", "content": {"text/event-stream": {}}},
    **problems(401, 403, 429),
}


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """Return the request body of a route that takes what a model describes."""
    content = {"application/json": {"schema": model.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}


def body(one: str, several: str = "", *more: str) -> dict[str, Any]:
    """Return a route's request body: a record, or perhaps a list; `more` are media types with a record a line.

    A record may come as a CloudEvent.
    """
    cloud_event = {"schema": {"type": "object", "required": ["specversion", "id", "source", "type", "data"]}}
    either = {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in (one, several) if name]}
    lines = {"schema": {"type": "string", "description": f"One {one} a line."}}
    content = {"application/json": {"schema": either}, STRUCTURED: cloud_event, **dict.fromkeys(more, lines)}
    return {"requestBody": {"required": True, "content": content}}


def completed(made: Schema, pipeline: Pipeline) -> Schema:
    """Return the OpenAPI with the pipeline's records, and how a key is given."""
    known = made.setdefault("components", {}).setdefault("schemas", {})
    for name, stream in (("Event", pipeline.events), ("Label", pipeline.labels)):
        known[name] = json_schema(stream.avro) | {"example": example(stream.avro)}
        known[f"{name}s"] = {"type": "array", "items": {"$ref": f"#/components/schemas/{name}"}, "maxItems": 1000}
    known["Answer"] = _ANSWER
    made["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    made["security"] = [{"key": []}]
    made["x-pipeline"] = pipeline.name
    return made
