"""One input of a pipeline: a schema, and which of its fields are id, time, key and label."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field

from tidemill.declare.checks import Fail, check_fields
from tidemill.declare.kinds import AVRO_KINDS, KEYS, Source
from tidemill.encoding import json_values, schema_files, times
from tidemill.encoding.envelopes import Unwrap, inner_schema
from tidemill.encoding.resolution import other_unit, unreadable
from tidemill.encoding.schema_limits import unsafe
from tidemill.loading import loading
from tidemill.rules.base import NUMBERS, TEXTS, Rule

#: The Avro types that a label may have in its record, by its type in an example.
_LABEL_TYPES = {
    "boolean": ("boolean",),
    "double": ("double", "float", "int", "long"),
    "string": ("string", "enum"),
}


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
        The field with the event time: a timestamp (`timestamp-millis`, `-micros`, `-nanos`, also `local-`, as UTC), a
        long of milliseconds since the epoch, or what `time_unit` says. From the validator on it is in milliseconds:
        rules and functions of the declaration see that.
    key
        Events only: the field that names the entity; it is the Kafka key of everything downstream.
    value
        Labels only: the field that is the label, or a function of the label record.
    accepts
        Other schemas that producers may write with, each a file as `schema` is; `schema` must be able to read them.
    encoding
        "avro" or "json" where producers may send only that; both by default.
    empty_entities
        Events only: whether an empty text names an entity as any other does. Otherwise it is as a missing one: nothing
        is known of it, and nothing remembered.
    time_unit
        "seconds", "millis", "micros" or "nanos", where `time` is a number whose schema does not say it; "iso8601" where
        it is text, UTC where it has no zone.
    unwrap
        "debezium": the record is the row as a change event left it; deletes and tombstones are counted and passed over.
        "connect": it is the payload beside a schema, as Kafka Connect writes JSON.
    """

    schema: str
    id: str
    time: str
    key: str = ""
    value: Annotated[Source, Field(description="the name of a field or a function of the record")] = ""
    accepts: Annotated[Sequence[str], Field(description="a list of schema files")] = ()
    encoding: Literal["", "avro", "json"] = ""
    empty_entities: bool = False
    time_unit: Literal["", "seconds", "millis", "micros", "nanos", "iso8601"] = ""
    unwrap: Unwrap = ""

    @cached_property
    def avro(self) -> dict[str, Any]:
        """The schema file as JSON: what producers send."""
        return schema_files.find(self.schema, loading.get())

    @cached_property
    def valid_avro(self) -> dict[str, Any]:
        """The schema of what the validator passes on: as producers send it, with the time in milliseconds."""
        return self._in_millis(self.avro)

    @cached_property
    def valid_others(self) -> list[dict[str, Any]]:
        """The other schemas, with the time in milliseconds as well."""
        return [self._in_millis(avro) for avro in self.others.values()]

    def _in_millis(self, avro: dict[str, Any]) -> dict[str, Any]:
        if self.as_millis is None:
            return avro
        fields = [
            {"name": self.time, "type": times.MILLIS_TYPE} if field["name"] == self.time else field
            for field in avro["fields"]
        ]
        return {**avro, "name": f"{avro['name']}InMillis", "fields": fields}

    @cached_property
    def unit(self) -> str:
        """What the time is in: one of `times.PER_SECOND`, or `times.TEXT`."""
        return times.LOGICAL_UNITS.get(self._logical(self.time)) or self.time_unit or "millis"

    @cached_property
    def as_millis(self) -> Callable[[Any], int] | None:
        """What makes milliseconds of the time as it is sent; None where it is a long of them.

        It raises ValueError with what was expected instead.
        """
        is_long = schema_files.field_types(self.avro).get(self.time) == "long"
        return None if self.unit == "millis" and is_long else times.as_millis(self.unit)

    def millis_of(self, record: Mapping[str, Any]) -> int | None:
        """Return the time of a record as it is sent, in milliseconds; None where it has none that can be read."""
        try:
            value = record[self.time]
            millis = self.as_millis(value) if self.as_millis else value
        except Exception:  # a file may hold anything
            return None
        return millis if type(millis) is int else None

    def _logical(self, name: str) -> str:
        return next((schema_files.logical_type(f["type"]) for f in self.avro["fields"] if f["name"] == name), "")

    @cached_property
    def others(self) -> dict[str, dict[str, Any]]:
        """The other schemas that producers may write with, as JSON, by the name of their file."""
        return {name: schema_files.find(name, loading.get()) for name in self.accepts}

    @cached_property
    def types(self) -> dict[str, str]:
        """Primitive Avro type of each field that is passed on, by name; of a union with null, the other branch's."""
        return schema_files.field_types(self.valid_avro)

    @cached_property
    def logical_types(self) -> dict[str, str]:
        """Logical type of each field that is passed on, by name; empty where it has none."""
        return {f["name"]: schema_files.logical_type(f["type"]) for f in self.valid_avro["fields"]}

    @property
    def is_time_plain(self) -> bool:
        """Whether the time is a number of which the schema does not say what it counts."""
        return self.unit != times.TEXT and not self._logical(self.time)

    def check(self, where: str, fail: Fail) -> None:
        """Check the fields, that the schemas can be read, and that id and time exist and are never missing."""
        check_fields(self, where, fail)
        try:
            _ = self.types  # reads the file
        except (OSError, ValueError, KeyError, TypeError) as error:
            fail(f"{where}.schema", str(error))
        self._check_schemas(where, fail)
        self.check_field(f"{where}.id", self.id, fail, "string", "int", "long")
        self._check_time(where, fail)
        self._check_never_null(where, (self.id, self.time), fail)

    def _check_time(self, where: str, fail: Fail) -> None:
        """Check that the time is of a type that has one meaning."""
        self.check_field(f"{where}.time", self.time, fail)
        kind, logical = schema_files.field_types(self.avro)[self.time], self._logical(self.time)
        shown = f"field {self.time!r} is {logical or kind}"
        unit = times.LOGICAL_UNITS.get(logical)
        if kind not in ("long", "string", "int", "double") or (logical and kind != "string" and unit is None):
            fail(f"{where}.time", f"{shown}; expected a timestamp, a long of ms since the epoch, or ISO 8601 text")
        if unit and self.time_unit not in ("", unit):
            fail(f"{where}.time_unit", f"{self.time_unit!r} where {shown}, which says its unit: leave time_unit out")
        if kind == "string" and self.time_unit != times.TEXT:
            fail(f"{where}.time", f"{shown}; expected a timestamp or a long: of ISO 8601 text, say time_unit='iso8601'")
        if kind != "string" and self.time_unit == times.TEXT:
            fail(f"{where}.time_unit", f"{self.time_unit!r} where {shown}; expected text")
        if kind in ("int", "double") and not self.time_unit:
            fail(f"{where}.time", f"{shown}: say what it counts, as in time_unit='seconds'")

    def check_key(self, where: str, fail: Fail) -> None:
        """Check that the key is declared, and a field that names an entity and is never missing."""
        if not self.key:
            fail(f"{where}.key", "name the field that is the entity, as in key='origin'")
        self.check_field(f"{where}.key", self.key, fail, *KEYS)
        self._check_never_null(where, (self.key,), fail)

    def check_value(self, where: str, label_type: str, fail: Fail) -> None:
        """Check that the label is declared, and a field of its type or a function."""
        if not self.value:
            fail(f"{where}.value", "name the field that is the label, or give a function of the label record")
        if isinstance(self.value, str):
            self.check_field(f"{where}.value", self.value, fail, *_LABEL_TYPES[label_type])

    def check_rules(self, where: str, rules: Sequence[Rule], fail: Fail) -> None:
        """Check that the fields that rules look at exist, and are of a type that the rule can judge."""
        for rule in rules:
            for name in (rule.field, *rule.also):
                self.check_field(f"{where}: {rule.name}", name, fail)
            type_ = self.types[rule.field]
            if rule.types and type_ not in rule.types:
                expected = {NUMBERS: "a number", TEXTS: "text"}.get(rule.types, " or ".join(rule.types))
                fail(f"{where}: {rule.name}", f"field {rule.field!r} is {type_}, not {expected}")
            if type_ not in AVRO_KINDS:
                fail(f"{where}: {rule.name}", f"field {rule.field!r} is {type_}; rules are for plain values")

    def check_field(self, where: str, name: str, fail: Fail, *types: str) -> None:
        """Check that there is such a field, and that it has one of these types."""
        if name not in self.types:
            fail(where, f"{name!r} is not a field of {self.schema}: it has {', '.join(self.types)}")
        if types and self.types[name] not in types:
            fail(where, f"field {name!r} is {self.types[name]}; expected {' or '.join(types)}")

    def _check_never_null(self, where: str, names: Sequence[str], fail: Fail) -> None:
        for field in self.avro["fields"]:
            if field["name"] in names and schema_files.nullable(field["type"]):
                fail(
                    where, f"field {field['name']!r} may be null in {self.schema}; id, time and key may not be missing"
                )

    def _check_schemas(self, where: str, fail: Fail) -> None:
        """Check what producers may send: that it is safe to decode, and that the declared schema can read it."""
        problem = unsafe(self.avro)
        if problem:
            fail(f"{where}.schema", f"{self.schema} can't be decoded safely: {problem}")
        try:
            json_values.fields_of(self.avro)
        except json_values.MismatchError as error:
            fail(f"{where}.schema", f"{self.schema}: the default of {error}")
        try:
            others = self.others
        except (OSError, ValueError) as error:
            fail(f"{where}.accepts", str(error))
        for name, avro in others.items():
            if self.unwrap == "debezium" and (rows := inner_schema(avro, schema_files.full_name(self.avro))):
                avro = rows
            problem = unsafe(avro) or schema_files.malformed(avro)
            if problem:
                fail(f"{where}.accepts", f"{name} can't be decoded safely: {problem}")
            mismatch = unreadable(avro, self.avro) or other_unit(avro, self.avro)
            if mismatch:
                fail(f"{where}.accepts", f"{self.schema} can't read {name}: {mismatch}")
