"""Schemas of Avro as JSON schemas, of the JSON that producers may send instead; and values of them as examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tidemill.encoding import schema_files

Schema = dict[str, Any]

_PLAIN: Mapping[str, Schema] = {
    "null": {"type": "null"},
    "boolean": {"type": "boolean"},
    "int": {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1},
    "long": {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
    "float": {"type": "number"},
    "double": {"type": "number"},
    "bytes": {"type": "string", "description": "One character a byte."},
    "string": {"type": "string"},
}
_EXAMPLES = {
    "null": None,
    "boolean": True,
    "int": 1,
    "long": 1,
    "float": 1.5,
    "double": 1.5,
    "bytes": "",
    "string": "a",
}
#: A time as an example: 2026-01-01, in the unit of each logical type.
MOMENT_MS = 1_767_225_600_000
_TIMES = {"timestamp-millis": 1, "timestamp-micros": 1_000, "timestamp-nanos": 1_000_000}


def json_schema(avro: Any) -> Schema:
    """Return the JSON schema of values of an Avro schema; named types are written out where they are used."""
    return _schema(*schema_files.parsed(avro))


def _schema(avro: Any, named: Mapping[str, Any]) -> Schema:
    if isinstance(avro, list):
        return {"anyOf": [_schema(branch, named) for branch in avro]}
    if isinstance(avro, str):
        return dict(_PLAIN[avro]) if avro in _PLAIN else _schema(named[avro], named)
    kind, doc = avro["type"], {"description": avro["doc"]} if avro.get("doc") else {}
    if kind in ("record", "error"):
        fields = {field["name"]: field for field in avro["fields"]}
        properties = {
            name: _schema(field["type"], named) | ({"description": field["doc"]} if field.get("doc") else {})
            for name, field in fields.items()
        }
        required = [name for name, field in fields.items() if "default" not in field]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False} | doc
    if kind == "array":
        return {"type": "array", "items": _schema(avro["items"], named)}
    if kind == "map":
        return {"type": "object", "additionalProperties": _schema(avro["values"], named)}
    if kind == "enum":
        return {"enum": list(avro["symbols"])} | doc
    if avro.get("logicalType") == "decimal":
        return {"type": ["number", "string"], "description": "A number, or its digits as bytes, one character each."}
    if kind == "fixed":
        return {"type": "string", "minLength": avro["size"], "maxLength": avro["size"]}
    return _schema(kind, named)


def example(avro: Any) -> Any:
    """Return a value of an Avro schema, for people to begin with; rules may ask for another."""
    return _example(*schema_files.parsed(avro))


def _example(avro: Any, named: Mapping[str, Any]) -> Any:
    if isinstance(avro, list):
        return _example(next((branch for branch in avro if branch != "null"), "null"), named)
    if isinstance(avro, str):
        return _EXAMPLES[avro] if avro in _EXAMPLES else _example(named[avro], named)
    kind, logical = avro["type"], str(avro.get("logicalType", "")).removeprefix("local-")
    if kind in ("record", "error"):
        return {field["name"]: _example(field["type"], named) for field in avro["fields"]}
    if kind == "array":
        return [_example(avro["items"], named)]
    if kind == "map":
        return {}
    if kind == "enum":
        return avro["symbols"][0]
    if logical == "decimal" and "precision" in avro:
        return 0
    if kind == "fixed":
        return "a" * avro["size"]
    if logical in _TIMES:
        return MOMENT_MS * _TIMES[logical]
    return _example(kind, named)
