"""One input of a pipeline: a schema, and which of its fields are id, time, key and label."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any, Literal, NoReturn

from pydantic import Field, PlainValidator

from tidemill.declare.checks import Fail, OptionalDuration, check_fields
from tidemill.declare.kinds import AVRO_KINDS, KEYS, Source
from tidemill.encoding import json_values, python_schemas, schema_files, times
from tidemill.encoding.decimals import names_of as decimals_of
from tidemill.encoding.envelopes import Unwrap, inner_schema
from tidemill.encoding.resolution import other_unit, unreadable
from tidemill.encoding.schema_limits import unsafe
from tidemill.loading import loading
from tidemill.rules.base import NUMBERS, TEXTS, Rule, why_not_asked

#: The Avro types that a label may have in its record, by its type in an example.
_LABEL_TYPES = {
    "boolean": ("boolean",),
    "double": ("double", "float", "int", "long", "decimal"),
    "string": ("string", "enum"),
}


def _schema(value: Any) -> Any:
    if not isinstance(value, str) and not python_schemas.is_declaration(value):
        raise ValueError(
            f"{value!r} where the name of a file, a dataclass, a pydantic model or a TypedDict was expected"
        )
    return value


def _accepted(value: Any) -> Any:
    try:
        return _schema(value)
    except ValueError:
        raise ValueError(f"{value!r} where a list of schema files, or of classes, was expected") from None


def _avro(schema: Any) -> dict[str, Any]:
    if isinstance(schema, str):
        return schema_files.find(schema, loading.get())
    return python_schemas.record_of(schema)


def _name(schema: Any) -> str:
    return schema if isinstance(schema, str) else python_schemas.name_of(schema)


@dataclass(frozen=True)
class Stream:
    """One input of the pipeline.

    Parameters
    ----------
    schema
        An Avro record schema (`.avsc`), looked for beside the pipeline's file, in `schemas/`, and among those shipped.
        Or a dataclass, a pydantic model or a TypedDict, of which one is made: `tidemill schema show` prints it.
    id
        The field that names the event: text or an integer, the same in the event and in its label. Default: the one
        field of both that is called `id`, or ends in `_id`.
    time
        The field with the event time: a timestamp (`timestamp-millis`, `-micros`, `-nanos`, also `local-`, as UTC), a
        long of milliseconds since the epoch, or what `time_unit` says. From the validator on it is in milliseconds:
        rules and functions of the declaration see that. Default: the one field that is a timestamp.
    key
        Events only: the field that names the entity; it is the Kafka key of everything downstream. Without an entity
        that is the event's id.
    value
        Labels only: the field that is the label, or a function of the label record.
    corrections
        Labels only: for so long after an event's first label, by the labels' times, a later label of the event with
        another value corrects it, as "30d". It is a record of its own among the examples. Otherwise the first stays.
    accepts
        Other schemas that producers may write with, each given as `schema` is; `schema` must be able to read them.
    encoding
        "avro" or "json" where producers may send only that; both by default.
    empty_entities
        Events only: whether an empty text names an entity as any other does. Otherwise it is as a missing one: nothing
        is known of it, and nothing remembered.
    time_unit
        "seconds", "millis", "micros" or "nanos", where `time` is a number whose schema does not say it; "iso8601" where
        it is text, UTC where it has no zone.
    topic
        The topic that producers send to, where it is there already and called otherwise than the pipeline's own would
        be, as `orders.events`. It has as many partitions as the pipeline.
    unwrap
        "debezium": the record is the row as a change event left it; deletes and tombstones are counted and passed over.
        "connect": it is the payload beside a schema, as Kafka Connect writes JSON. "cloudevents": it is the data of a
        CloudEvent, binary or structured; a field `ce_id`, `ce_time` or the like is that attribute of it.
    personal
        Fields that only those see who have the right to; so are those with `"personal": true` in the schema. Others see
        that there is a value. It may not be the id, which every record has, nor the time.
    """

    schema: Annotated[Any, PlainValidator(_schema)]
    id: str = ""
    time: str = ""
    key: str = ""
    value: Annotated[Source, Field(description="the name of a field or a function of the record")] = ""
    accepts: Annotated[
        Sequence[Annotated[Any, PlainValidator(_accepted)]], Field(description="a list of schema files")
    ] = ()
    encoding: Literal["", "avro", "json"] = ""
    empty_entities: bool = False
    time_unit: Literal["", "seconds", "millis", "micros", "nanos", "iso8601"] = ""
    unwrap: Unwrap = ""
    topic: str = ""
    corrections: OptionalDuration = ""
    personal: Annotated[Sequence[str], Field(description="a list of fields")] = ()
    #: Which of id, time and key are not declared, but what the schema left as the one choice.
    chosen: tuple[str, ...] = field(init=False, default=(), repr=False, compare=False)

    @cached_property
    def avro(self) -> dict[str, Any]:
        """The schema as JSON: what producers send."""
        return _avro(self.schema)

    @property
    def schema_name(self) -> str:
        """What the schema is called in reports and errors: its file, or its class."""
        return _name(self.schema)

    @cached_property
    def schema_source(self) -> str:
        """Where the schema comes from: the path of its file, or its class."""
        if isinstance(self.schema, str):
            return str(schema_files.locate(self.schema, loading.get()))
        return python_schemas.source_of(self.schema)

    def with_fields(self, **fields: Any) -> Stream:
        """Return the same stream with other fields, its schemas as they were found when it was declared."""
        made = replace(self, **fields)
        made.__dict__.update({name: getattr(self, name) for name in ("avro", "schema_source", "others")})
        return made

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
            {"name": self.time, "type": times.MILLIS_TYPE} if one["name"] == self.time else one
            for one in avro["fields"]
        ]
        return {**avro, "name": f"{avro['name']}InMillis", "fields": fields}

    @cached_property
    def unit(self) -> str:
        """What the time is in: one of `times.PER_SECOND`, or `times.TEXT`."""
        return times.LOGICAL_UNITS.get(self._logical(self.time)) or self.time_unit or "millis"

    @property
    def units(self) -> dict[str, str]:
        """What the time is in, where its schema does not say it."""
        return {} if self._logical(self.time) else {self.time: self.unit}

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

    def candidates(self, parameter: Literal["id", "time"]) -> list[str]:
        """Return the fields that may be the id, or that are certainly times, in the schema's order."""
        kinds, names = schema_files.field_types(self.avro), []
        for one in self.avro["fields"]:
            name, logical = one["name"], schema_files.logical_type(one["type"])
            if schema_files.nullable(one["type"]):
                continue
            if parameter == "time":
                fits = logical in times.LOGICAL_UNITS
            else:
                is_name = kinds[name] in ("string", "int", "long") and logical in ("", "uuid")
                fits = is_name and name not in (self.time, self.key)
            if fits:
                names.append(name)
        return names

    def _logical(self, name: str) -> str:
        return next((schema_files.logical_type(f["type"]) for f in self.avro["fields"] if f["name"] == name), "")

    @cached_property
    def others(self) -> dict[str, dict[str, Any]]:
        """The other schemas that producers may write with, as JSON, by the name of their file or class."""
        named: dict[str, dict[str, Any]] = {}
        for schema in self.accepts:
            name = _name(schema)
            is_taken = name in named or (name == self.schema_name and not isinstance(schema, str))
            named[f"{name} ({len(named) + 1})" if is_taken else name] = _avro(schema)
        return named

    @cached_property
    def types(self) -> dict[str, str]:
        """Primitive Avro type of each field passed on, or `decimal`, by name; of a union with null, the other one's."""
        return schema_files.field_types(self.valid_avro) | dict.fromkeys(decimals_of(self.valid_avro), "decimal")

    @property
    def is_time_plain(self) -> bool:
        """Whether the time is a number of which the schema does not say what it counts."""
        return self.unit != times.TEXT and not self._logical(self.time)

    @cached_property
    def personal_fields(self) -> frozenset[str]:
        """The fields that are declared personal, here or in the schema; one with such a field in it is as a whole."""
        marked = (one["name"] for one in self.avro["fields"] if _is_personal(one))
        return frozenset({*self.personal, *marked})

    def check_schema(self, where: str, fail: Fail) -> None:
        """Check the fields, and that the schemas can be read."""
        check_fields(self, where, fail)
        try:
            _ = self.types, self.schema_source  # reads the file
        except (OSError, ValueError, KeyError, TypeError) as error:
            fail(f"{where}.schema", str(error))
        self._check_schemas(where, fail)

    def check(self, where: str, fail: Fail) -> None:
        """Check that id and time exist and are never missing."""
        self.check_field(f"{where}.id", self.id, fail, "string", "int", "long")
        self._check_time(where, fail)
        self._check_never_null(where, (self.id, self.time), fail)
        for name in sorted(self.personal_fields):
            self.check_field(f"{where}.personal", name, fail)
            if name in (self.id, self.time):
                what = "the id, which is in every record and log" if name == self.id else "the time"
                fail(f"{where}.personal", f"{name!r} is {what}, and can't be hidden: give events another id")

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
        if kind == "int" and self.unit != "seconds":
            fail(
                f"{where}.time",
                f"{shown}, whose 32 bits end in January 1970 where they count {self.unit}: declare a long",
            )

    def check_key(self, where: str, fail: Fail) -> None:
        """Check that the key is a field that names an entity and is never missing."""
        self.check_field(f"{where}.key", self.key, fail, *KEYS)
        self._check_never_null(where, (self.key,), fail)

    def check_value(self, where: str, label_type: str, fail: Fail) -> None:
        """Check that the label is declared, and a field of its type or a function."""
        if not self.value:
            fail(f"{where}.value", "name the field that is the label, or give a function of the label record")
        if isinstance(self.value, str):
            self.check_field(f"{where}.value", self.value, fail, *_LABEL_TYPES[label_type])
        elif why := why_not_asked(self.value):
            fail(f"{where}.value", why)

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
            fail(where, f"{name!r} is not a field of {self.schema_name}: it has {', '.join(self.types)}")
        if types and self.types[name] not in types:
            fail(where, f"field {name!r} is {self.types[name]}; expected {' or '.join(types)}")

    def _check_never_null(self, where: str, names: Sequence[str], fail: Fail) -> None:
        for name in (one["name"] for one in self.avro["fields"] if schema_files.nullable(one["type"])):
            if name in names:
                fail(where, f"field {name!r} may be null in {self.schema_name}; id, time and key may not be missing")

    def _check_schemas(self, where: str, fail: Fail) -> None:
        """Check what producers may send: that it is safe to decode, and that the declared schema can read it."""
        problem = unsafe(self.avro)
        if problem:
            fail(f"{where}.schema", f"{self.schema_name} can't be decoded safely: {problem}")
        try:
            json_values.fields_of(self.avro)
        except json_values.MismatchError as error:
            fail(f"{where}.schema", f"{self.schema_name}: the default of {error}")
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
            mismatch = unreadable(avro, self.avro) or other_unit(avro, self.avro, self.units)
            if mismatch:
                fail(f"{where}.accepts", f"{self.schema_name} can't read {name}: {mismatch}")


def _is_personal(avro: Any) -> bool:
    """Whether a field's schema, or one within it, says that it is personal."""
    if isinstance(avro, dict):
        return avro.get("personal") is True or any(map(_is_personal, avro.values()))
    return isinstance(avro, list) and any(map(_is_personal, avro))


def with_defaults(events: Stream, labels: Stream, fail: Fail) -> tuple[Stream, Stream]:
    """Return the streams with what they do not declare: ids and times where their schemas leave one choice, and a key.

    Their schemas must be readable.
    """
    chosen: dict[str, dict[str, str]] = {"events": {}, "labels": {}}
    streams = {"events": events, "labels": labels}
    for where, stream in streams.items():
        if not stream.time:
            streams[where] = stream.with_fields(time=_time_of(where, stream, fail))
            chosen[where]["time"] = streams[where].time
    names = {where: stream.id for where, stream in streams.items() if stream.id}
    if len(names) < len(streams):
        shared = next(iter(names.values()), "") or _shared_id(streams["events"], streams["labels"], fail)
        for where, stream in streams.items():
            if not stream.id:
                if shared not in stream.candidates("id"):
                    _ask(where, stream, "id", f"there is no {shared!r}", stream.candidates("id"), fail)
                chosen[where]["id"] = shared
    if not events.key:
        chosen["events"]["key"] = events.id or chosen["events"]["id"]
    for where, fields in chosen.items():
        if fields:
            streams[where] = streams[where].with_fields(**fields)
            object.__setattr__(streams[where], "chosen", tuple(fields))
    return streams["events"], streams["labels"]


def _time_of(where: str, stream: Stream, fail: Fail) -> str:
    names = stream.candidates("time")
    if len(names) != 1:
        why = "several are timestamps" if names else "none of its fields is a timestamp"
        _ask(where, stream, "time", why, names or [one["name"] for one in stream.avro["fields"]], fail)
    return names[0]


def _shared_id(events: Stream, labels: Stream, fail: Fail) -> str:
    """Return the one field of both streams that is called as an id is."""
    others = labels.candidates("id")
    shared = [name for name in events.candidates("id") if name in others]
    named = [name for name in shared if name == "id" or name.endswith(("_id", "Id", "_ID"))]
    if len(named) != 1:
        why = "several are in events and labels" if named else "no field of events and labels is called as an id is"
        _ask("events", events, "id", why, named or shared or events.candidates("id"), fail)
    return named[0]


def _ask(where: str, stream: Stream, parameter: str, why: str, names: Sequence[str], fail: Fail) -> NoReturn:
    what = {"id": "names the event", "time": "is the event's time"}[parameter]
    example = f", as in {parameter}={names[0]!r}" if names else ""
    fail(
        f"{where}.{parameter}",
        f"name the field of {stream.schema_name} that {what}{example}: {why}; candidates: {', '.join(names) or 'none'}",
    )
