"""The schemas that producers write by: each is the declared one, or is read by it, or is known and refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from tidemill.encoding import schema_files
from tidemill.encoding.codec import HEADER, Codec
from tidemill.encoding.envelopes import Unwrap, after_image, inner_schema, registered_unit
from tidemill.encoding.resolution import other_unit, promoted, unreadable
from tidemill.encoding.schema_limits import memory_per_byte, unsafe

#: How a message names its schema: by the id that a registry gave it, or by its GUID, 16 bytes.
SchemaName = int | bytes


@dataclass(frozen=True)
class WriterSchema:
    """One schema that messages are written by.

    `read` is (data, where the record begins) -> (record as the declared schema has it, where it ends). `same`: its
    bytes are the declared schema's own. `strict`: it reads as strictly as the declared one. `promoted` are fields whose
    whole numbers become floats. `form` is how its messages are written: "avro", "json" or "protobuf"; of "json" they
    are read as JSON without an id is, and `read` is not used. Where `refused` says why, nothing is read by it; `field`
    is the one that is wrong. `memory_per_byte` is what a byte of a message takes at worst, in bytes.
    """

    name: str
    read: Callable[[bytes, int], tuple[Any, int]]
    same: bool = False
    strict: bool = False
    promoted: tuple[str, ...] = ()
    refused: str = ""
    field: str = ""
    memory_per_byte: int = 0
    form: str = "avro"


class WriterSchemas(Protocol):
    """Knows schemas beside those that are declared. Called for each message that names one, so it never waits."""

    def find(self, topic: str, name: SchemaName) -> WriterSchema | None:
        """Return the schema; None where there is none. Raises Retry where the registry is being read for it."""


class NoWriterSchemas(WriterSchemas):
    """Where there is no registry."""

    def find(self, topic: str, name: SchemaName) -> WriterSchema | None:  # noqa: ARG002  there is none
        return None


def refused_schema(name: str, why: object, field: str = "") -> WriterSchema:
    """Return a schema that is known and that nothing is read by."""
    return WriterSchema(name, _nothing, refused=str(why), field=field)


def writer_schema(name: str, avro: Any, codec: Codec, unwrap: Unwrap = "") -> WriterSchema:
    """Return how messages of the schema `avro` become records of `codec`'s, or why they don't; raises nothing."""
    why = unsafe(avro)
    if why:
        return refused_schema(name, why)
    try:
        if unwrap == "debezium" and (rows := inner_schema(avro, schema_files.full_name(codec.avro))):
            return _change_events(name, avro, writer_schema(name, rows, codec), rows)
        memory = memory_per_byte(avro).avro
        plain = schema_files.plain(avro)
        if unit := other_unit(avro, codec.avro, codec.units):
            return refused_schema(name, unit, unit.field)
        if schema_files.fingerprint(avro) == codec.id:
            return WriterSchema(name, codec.read, same=True, memory_per_byte=memory)
        mismatch = unreadable(plain, schema_files.plain(codec.avro))
        if mismatch:
            return refused_schema(name, mismatch, mismatch.field)
        read, strict = codec.reading(plain)
        return WriterSchema(name, read, strict=strict, promoted=promoted(plain, codec.avro), memory_per_byte=memory)
    except Exception as error:  # a registry may hold anything
        return refused_schema(name, f"it is no Avro schema of a record: {error!r:.200}")


def json_schema(name: str, schema: str, codec: Codec, unwrap: Unwrap = "") -> WriterSchema:
    """Return a JSON schema of a registry: the declared schema decides about each message, so long as units agree."""
    try:
        unit = registered_unit(json.loads(schema), unwrap, codec.avro, codec.units)
    except (ValueError, RecursionError):  # it says nothing of units
        unit = None
    return refused_schema(name, unit, unit.field) if unit else WriterSchema(name, _nothing, form="json")


def protobuf_schema(name: str, file: str, codec: Codec) -> WriterSchema:
    """Return how Protobuf messages become records of `codec`'s, or why they don't; raises nothing."""
    try:
        from tidemill.encoding.protobuf import reader
    except ModuleNotFoundError as error:
        return refused_schema(name, f"Protobuf needs {error.name}: pip install 'tidemill[protobuf]'")
    try:
        read, memory = reader(file, codec.avro)
    except Exception as error:  # a registry may hold anything
        return refused_schema(name, f"it is no schema of Protobuf: {error!s:.300}")
    return WriterSchema(name, read, memory_per_byte=memory, form="protobuf")


def _change_events(name: str, avro: Any, inner: WriterSchema, rows: Any) -> WriterSchema:
    """Return how the rows of change events are read; `inner` is how they would be by themselves."""
    if inner.refused:
        return inner
    envelope, row = Codec(schema_files.plain(avro)), Codec(schema_files.plain(rows))

    def read(data: bytes, at: int) -> tuple[Any, int]:
        given, end = envelope.read(data, at)
        return inner.read(row.encode(after_image(given)), HEADER)[0], end

    return WriterSchema(name, read, promoted=inner.promoted, memory_per_byte=memory_per_byte(avro).avro)


def accepted_schemas(files: Mapping[str, Any], codec: Codec, unwrap: Unwrap = "") -> dict[int, WriterSchema]:
    """Return the other schemas that a stream's declaration accepts, by our id of each; `files` are by name."""
    return {schema_files.fingerprint(avro): writer_schema(name, avro, codec, unwrap) for name, avro in files.items()}


def _nothing(*_: Any) -> Any:
    raise AssertionError("nothing is read by a schema that is refused")
