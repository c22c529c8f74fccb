"""Decoding what producers send: Avro behind Confluent's header, or JSON, against one schema; strict about both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tidemill import schemas
from tidemill.errors import Reject
from tidemill.records import HEADER, Codec

LARGEST = 1_000_000
"""Bytes; a larger message is refused before anything looks into it."""

_PYTHON: Mapping[str, tuple[type, ...]] = {
    "null": (type(None),), "boolean": (bool,), "int": (int,), "long": (int,), "float": (float, int),
    "double": (float, int), "string": (str,), "enum": (str,),
}  # fmt: skip
_RANGE = {"int": 2**31, "long": 2**63}


class Decoder:
    """Decodes one stream's messages to (record, Avro bytes with header).

    A message that is already Avro by the declared schema goes on as it came, bytes untouched.
    """

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self._fields = [
            (f["name"], _branches(f["type"]), "default" in f, f.get("default")) for f in codec.avro["fields"]
        ]
        self._names = {name for name, *_ in self._fields}

    def decode(self, data: bytes | None) -> tuple[dict[str, Any], bytes]:
        """Return the record and its Avro message. Raises Reject with what is wrong."""
        if not data:
            raise Reject("empty", "the message has no value")
        if len(data) > LARGEST:
            raise Reject("too_large", f"{len(data)} bytes where at most {LARGEST} are allowed")
        if data[0] == 0:
            return self._avro(data), data
        if data[:1] in b"{ \t\r\n":
            given = self._json(data)
            try:
                message = self.codec.encode(given)
                return self.codec.read(message, HEADER)[0], message  # what is checked is what will be read again
            except Exception as error:  # half a surrogate, no symbol of the enum, ...
                name = self.codec.avro["name"]
                raise Reject("wrong_type", f"the object can't be written as {name}: {error}", rule="schema") from error
        raise Reject(
            "bad_magic",
            f"the first byte is 0x{data[0]:02x}; expected 0x00 (Avro behind a schema id) or a JSON object",
            value=f"0x{data[0]:02x}",
        )

    def _avro(self, data: bytes) -> dict[str, Any]:
        if len(data) < HEADER:
            raise Reject("truncated", f"{len(data)} bytes are less than the header's {HEADER}")
        if not data.startswith(self.codec.header):
            given = int.from_bytes(data[1:HEADER], "big")
            raise Reject(
                "unknown_schema",
                f"schema id {given} where {self.codec.id} ({self.codec.avro['name']}) was expected",
                value=given,
            )
        try:
            record, end = self.codec.read(data, HEADER)
        except (EOFError, IndexError) as error:
            raise Reject("truncated", "the record ends before its last field") from error
        except Exception as error:  # whatever hostile bytes make a decoder raise, it is one bad message
            raise Reject("undecodable", f"the bytes are no {self.codec.avro['name']}: {error}") from error
        if end != len(data):
            raise Reject("trailing_bytes", f"{len(data) - end} bytes follow the record")
        return record  # type: ignore[no-any-return]

    def _json(self, data: bytes) -> dict[str, Any]:
        try:
            given = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise Reject("not_json", f"the bytes begin like JSON and are none: {error}") from error
        if not isinstance(given, dict):
            raise Reject("not_json", f"{type(given).__name__} where an object was expected")
        record = {}
        for name, branches, has_default, default in self._fields:
            if name in given:
                record[name] = _checked(name, given[name], branches)
            elif has_default:
                record[name] = default
            else:
                raise Reject("missing_field", f"field {name!r} is missing", rule="schema", field=name)
        unexpected = sorted(given.keys() - self._names)
        if unexpected:
            name = unexpected[0]
            raise Reject(
                "unexpected_field",
                f"field {name!r} is not in {self.codec.avro['name']}",
                rule="schema",
                field=name,
                value=given[name],
            )
        return record


def _branches(avro: Any) -> tuple[str, ...]:
    return tuple(schemas.primitive(b) for b in avro) if isinstance(avro, list) else (schemas.primitive(avro),)


def _checked(name: str, given: Any, branches: tuple[str, ...]) -> Any:
    """Return a JSON value as the field's type. An int is a legal double, as in Avro; a float is never a legal int."""
    value: Any = given
    for branch in branches:
        kinds: Any = _PYTHON.get(branch)
        if kinds is None or not isinstance(given, kinds) or (isinstance(given, bool) and branch != "boolean"):
            continue
        if branch in _RANGE and not -_RANGE[branch] <= value < _RANGE[branch]:
            continue
        if branch not in ("float", "double"):
            return value
        try:
            return float(value)
        except OverflowError:
            continue
    found = {bool: "boolean", int: "int", float: "float", str: "string", type(None): "null"}.get(
        type(value), type(value).__name__
    )
    raise Reject(
        "wrong_type",
        f"field {name!r} is {value!r} ({found}) where {' or '.join(branches)} was expected",
        rule="schema",
        field=name,
        value=value,
    )
