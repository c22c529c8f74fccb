"""Envelopes that a record comes in: Debezium's change events, Kafka Connect's JSON beside its schema, CloudEvents.

Source: Debezium's reference, "Data change events"; Kafka Connect, `JsonConverter` with `schemas.enable`;
CloudEvents 1.0, its JSON format and its Kafka protocol binding.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

from tidemill.encoding import schema_files
from tidemill.encoding.json_values import Form, check_names, shown
from tidemill.encoding.resolution import Mismatch, other_unit
from tidemill.errors import Reject

Unwrap = Literal["", "debezium", "connect", "cloudevents"]

#: Debezium's operations that leave a row behind: created, read by a snapshot, updated.
_KEPT = ("c", "r", "u")
#: What Debezium writes for a large value that an update left as it was, as PostgreSQL does not log it: text, bytes, and
#: bytes as JSON has them.
_UNAVAILABLE = ("__debezium_unavailable_value", b"__debezium_unavailable_value",
                "X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==")  # fmt: skip
_SKIPPED = {"d": "delete", "t": "truncate", "m": "message"}


class SkippedError(Exception):
    """A message that is no record and no fault: a tombstone, a row that was deleted; `kind` names it."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


def form_of(unwrap: Unwrap) -> Form:
    """Return who has written the values of records in this envelope."""
    return "connect" if unwrap in ("debezium", "connect") else "json"


_CONNECT_KINDS = {
    "struct": "record",
    "int8": "int",
    "int16": "int",
    "int32": "int",
    "int64": "long",
    "float32": "float",
    "float64": "double",
}


_CONNECT_DECIMAL = "org.apache.kafka.connect.data.Decimal"


class EmbeddedSchemas:
    """Holds the schemas that Kafka Connect puts beside its JSON to a declared one, `avro` with the `units` it lacks.

    The values are read by the declared schema alone, so what they count must be the same.
    """

    def __init__(self, avro: Mapping[str, Any], units: Mapping[str, str]) -> None:
        self._avro, self._units = avro, units
        self._last: tuple[Any, Mismatch | None] = (None, None)  # one table's messages have one schema after another

    def check(self, schema: Any, unwrap: Unwrap) -> None:
        """Raise Reject where a number counts something else than what is declared."""
        try:
            if schema != self._last[0]:
                self._last = schema, other_unit(_rows_of(_as_avro(schema), unwrap), self._avro, self._units)
        except RecursionError:
            raise Reject("incompatible_schema", "the schema in the message nests too deep", rule="schema") from None
        if wrong := self._last[1]:
            raise Reject("incompatible_schema", f"the schema in the message: {wrong}", rule="schema", field=wrong.field)


def _as_avro(schema: Any) -> dict[str, Any]:
    """Return as much of a schema of Connect's as says what its numbers count, as Avro has it."""
    if not isinstance(schema, Mapping):
        return {"type": "null"}
    kind = str(schema.get("type"))
    made: dict[str, Any] = {"type": _CONNECT_KINDS.get(kind, kind), "connect.name": schema.get("name")}
    parameters = schema.get("parameters")
    if schema.get("name") == _CONNECT_DECIMAL and isinstance(parameters, Mapping):
        made |= {"logicalType": "decimal", "scale": parameters.get("scale", 0)}
    if kind == "struct":
        fields = schema.get("fields")
        named = [one for one in fields if isinstance(one, Mapping)] if isinstance(fields, list) else []
        made["fields"] = [{"name": str(one.get("field")), "type": _as_avro(one)} for one in named]
    return made | {part: _as_avro(schema[part]) for part in ("items", "values") if part in schema}


def registered_unit(schema: Any, unwrap: Unwrap, avro: Mapping[str, Any], units: Mapping[str, str]) -> Mismatch | None:
    """Return the first number that counts something else by a JSON schema, as Connect's converter registers one.

    Raises RecursionError where it nests too deep.
    """
    return other_unit(_rows_of(_described(schema), unwrap), avro, units)


def _rows_of(avro: Any, unwrap: Unwrap) -> Any:
    fields = avro.get("fields", ()) if unwrap == "debezium" and isinstance(avro, dict) else ()
    rows = next((field["type"] for field in fields if field["name"] == "after"), avro)
    return next((one for one in rows if "fields" in one), rows) if isinstance(rows, list) else rows


def _described(schema: Any) -> Any:
    """Return as much of a JSON schema as says what its numbers count, as Avro has it: `title` is Connect's name."""
    if not isinstance(schema, Mapping):
        return {"type": "null"}
    for several in ("oneOf", "anyOf"):
        if isinstance(branches := schema.get(several), list):
            return [_described(branch) for branch in branches]
    made: dict[str, Any] = {"type": str(schema.get("type")), "connect.name": schema.get("title")}
    parameters = schema.get("connect.parameters")
    if schema.get("title") == _CONNECT_DECIMAL and isinstance(parameters, Mapping):
        made |= {"logicalType": "decimal", "scale": parameters.get("scale", 0)}
    if isinstance(fields := schema.get("properties"), Mapping):
        made["fields"] = [{"name": str(name), "type": _described(one)} for name, one in fields.items()]
    inside = {"items": schema.get("items"), "values": schema.get("additionalProperties")}
    return made | {part: _described(one) for part, one in inside.items() if isinstance(one, Mapping)}


#: What an attribute of a CloudEvent is called as a header, and as a field of the declared schema.
_ATTRIBUTE = "ce_"


def unwrapped(
    given: Any,
    unwrap: Unwrap,
    *,
    bare: bool = False,
    headers: Iterable[Any] = (),
    fields: Collection[str] = (),
    embedded: EmbeddedSchemas | None = None,
) -> Any:
    """Return the record in an envelope. Raises SkippedError where it has none, Reject where it is no envelope.

    With `bare` what is no envelope is the record itself. `headers` are the message's, `fields` those of the record.
    `embedded` is what a schema in the message is held to.
    """
    if unwrap == "cloudevents":
        return event_data(given, headers, fields, bare=bare)
    if isinstance(given, dict) and given.keys() == {"schema", "payload"}:
        schema, given = given["schema"], given["payload"]
        if given is None:
            raise SkippedError("tombstone")
        if embedded is not None:
            embedded.check(schema, unwrap)
    elif unwrap == "connect":
        if bare:
            return _complete(given)
        raise _no_envelope("payload", "an object with schema and payload, as unwrap='connect' declares", given)
    if unwrap == "debezium":
        return after_image(given, bare=bare)
    return _complete(given) if unwrap == "connect" else given


def after_image(given: Any, *, bare: bool = False) -> Any:
    """Return the row as a change left it. Raises as `unwrapped` does."""
    if not isinstance(given, Mapping) or "op" not in given or not given.keys() & {"after", "before", "source"}:
        if bare:
            return _complete(given)
        raise _no_envelope("op", "a change event with op and after, as unwrap='debezium' declares", given)
    op = given["op"]
    if kind := _SKIPPED.get(op) if isinstance(op, str) else None:
        raise SkippedError(kind)
    if op not in _KEPT:
        expected = ", ".join((*_KEPT, *_SKIPPED))
        raise Reject("wrong_type", f"op is {shown(op)} where one of {expected} was expected", rule="schema", field="op")
    if given.get("after") is None:
        raise Reject(
            "missing_field", f"field 'after' is missing in a change with op {op}", rule="schema", field="after"
        )
    return _complete(given["after"])


def _complete(row: Any) -> Any:
    """Return a row; raises Reject where Debezium put a placeholder into it, which would pass for the value."""
    for name, value in row.items() if isinstance(row, Mapping) else ():
        first = next(iter(value), None) if isinstance(value, (list, Mapping)) else value
        if isinstance(first, (str, bytes)) and first in _UNAVAILABLE:
            message = (
                f"field {name!r} is {_UNAVAILABLE[0]}: the change left it as it was, and the database did not log it: "
                f"set REPLICA IDENTITY FULL on the table"
            )
            raise Reject("unavailable_value", message, rule="schema", field=str(name), value=_UNAVAILABLE[0])
    return row


def event_data(given: Any, headers: Iterable[Any], fields: Collection[str], *, bare: bool = False) -> Any:
    """Return the data of a CloudEvent, with those of its attributes that are fields: `ce_id`, `ce_time`, ...

    In binary mode the attributes are headers and the value is the data; in structured mode both are in the value.
    """
    own = {name.lower(): value for name, value in headers if name.lower().startswith(_ATTRIBUTE)}
    attributes = dict[str, Any]()
    for name, value in own.items():
        try:
            attributes[name] = (value or b"").decode()
        except UnicodeDecodeError:  # two of them would be one id
            raise Reject("wrong_type", f"the header {name} is no UTF-8", rule="schema", field=name) from None
    data = given
    if not attributes:
        if not isinstance(given, Mapping) or "specversion" not in given:
            if bare:
                return given
            raise _no_envelope("specversion", "a CloudEvent, as unwrap='cloudevents' declares", given)
        attributes = {f"{_ATTRIBUTE}{name}": value for name, value in given.items()}
        data = given.get("data")
        if "data_base64" in given:
            try:
                text = base64.b64decode(given["data_base64"], validate=True)
                data = json.loads(text)
                check_names(text, data)
            except (TypeError, ValueError, RecursionError) as error:
                raise Reject("not_json", f"data_base64 holds no JSON: {error}", field="data_base64") from error
    for name in ("specversion", "id", "source", "type"):
        value = attributes.get(_ATTRIBUTE + name)
        if not isinstance(value, str) or not value:
            message = f"attribute {name!r} of the CloudEvent is {'missing' if value is None else 'no text'}"
            raise Reject("missing_field", message, rule="schema", field=_ATTRIBUTE + name, value=value)
    if not str(version := attributes["ce_specversion"]).startswith("1."):
        message = f"CloudEvents {version!r:.50} where 1.0 was expected"
        raise Reject("wrong_type", message, rule="schema", field="ce_specversion", value=version)
    if not isinstance(data, dict):
        return data
    return {**data, **{name: value for name, value in attributes.items() if name in fields}}


def inner_schema(avro: Any, name: str) -> Any:
    """Return the schema of the rows in a change event's schema, under this `name`; None where it is no such schema.

    Debezium calls every row `Value`, and Avro reads a record only by a schema of its name.
    """
    content, named = schema_files.parsed(avro)
    for field in content.get("fields", ()) if isinstance(content, dict) else ():
        branches = field["type"] if isinstance(field["type"], list) else [field["type"]]
        rows = [named.get(one, one) if isinstance(one, str) else one for one in branches if one != "null"]
        if field["name"] == "after" and len(rows) == 1 and isinstance(rows[0], dict) and rows[0]["type"] == "record":
            return schema_files.standalone(rows[0] | {"name": name}, named)
    return None


def _no_envelope(field: str, expected: str, given: Any) -> Reject:
    kind = f"an object with {', '.join(sorted(given)[:5])}" if isinstance(given, dict) and given else shown(given)
    return Reject("missing_field", f"{kind} where {expected} was expected", rule="schema", field=field)
