"""Protobuf messages as a registry's clients write them, read as the values that JSON would have for an Avro schema.

A message is what Confluent's serializer writes: after the schema's id, which of the file's messages it is, as numbers,
and the message. Its fields are those of the declared schema by name; others are passed over, as Avro does. A field that
is not set is null, or its default, where it can be told from one that is; else it has proto3's zero. The schema is a
file of a registry: as text, which protoc compiles, or as a descriptor in base64.
"""

from __future__ import annotations

import base64
import binascii
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf import timestamp_pb2 as _timestamp  # noqa: F401  known to the pool, as the next
from google.protobuf import wrappers_pb2 as _wrappers  # noqa: F401
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from tidemill.encoding import json_values, schema_files
from tidemill.errors import Reject

COMPILE_SECONDS = 20.0
#: What a file may be called: nothing else is imported but what Protobuf brings with it.
_FILE = "schema.proto"
_OWN = "google/protobuf/"
_WRAPPERS = frozenset(
    f"google.protobuf.{name}Value"
    for name in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
)
_TIMESTAMP = "google.protobuf.Timestamp"
MAX_INDEXES = 16
#: Python's bytes for a value, for a dict and for each of its entries; what one byte of a message takes at worst.
_VALUE_BYTES, _DICT_BYTES, _ENTRY_BYTES = 64, 240, 110

Values = Callable[[Message], dict[str, Any]]
Read = Callable[[bytes, int], tuple[Any, int]]


def reader(schema: str, avro: Mapping[str, Any]) -> tuple[Read, int]:
    """Return what reads messages of a file as records of an Avro schema, and the memory that a byte takes at worst.

    Raises ValueError where it is no such file.
    """
    messages = _messages(_compiled(schema))
    fields, name = json_values.fields_of(avro), str(avro["name"])
    parsed, named = schema_files.parsed(avro)
    values: dict[str, Values] = {}
    classes = {path: message_factory.GetMessageClass(one) for path, one in messages.items()}

    def read(data: bytes, at: int) -> tuple[Any, int]:
        path, at = _indexes(data, at)
        if path not in classes:
            raise Reject("undecodable", f"message {list(path)} is none of the schema's file")
        message = classes[path]()
        try:
            message.ParseFromString(data[at:])
        except DecodeError as error:
            raise Reject("undecodable", f"the bytes are no {messages[path].full_name}: {error}") from None
        if not _is_known(message):
            raise Reject("undecodable", f"the message has fields that {messages[path].full_name} has not")
        full_name = messages[path].full_name
        if full_name not in values:
            values[full_name] = _values(messages[path], parsed, named)
        try:
            return json_values.record_of(fields, values[full_name](message), "", name), len(data)
        except json_values.MismatchError as error:
            raise error.reject() from error

    return read, _memory(messages.values())


def _compiled(schema: str) -> descriptor_pb2.FileDescriptorProto:
    """Return the descriptor of a file that is text, or a descriptor in base64. Raises ValueError for anything else."""
    file = descriptor_pb2.FileDescriptorProto()
    try:
        file.ParseFromString(base64.b64decode("".join(schema.split()), validate=True))
    except (binascii.Error, DecodeError, ValueError):
        return _compiled_text(schema)
    return file


def _compiled_text(text: str) -> descriptor_pb2.FileDescriptorProto:
    with tempfile.TemporaryDirectory(prefix="tidemill-proto-") as folder:
        (Path(folder) / _FILE).write_text(text)
        own = "import sys; from grpc_tools import protoc; from importlib.resources import files; "
        own += 'sys.exit(protoc.main([*sys.argv, f\'-I{files("grpc_tools") / "_proto"}\']))'
        made = Path(folder) / "descriptor"
        command = [sys.executable, "-c", own, f"-I{folder}", f"--descriptor_set_out={made}", _FILE]
        try:  # in a process of its own: a file may do what it will to a compiler
            done = subprocess.run(command, capture_output=True, timeout=COMPILE_SECONDS, check=False, cwd=folder)  # noqa: S603
        except subprocess.TimeoutExpired:
            raise ValueError(f"protoc needs more than {COMPILE_SECONDS:.0f} s for it") from None
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines() or ["it says nothing"]
            if "No module named 'grpc_tools'" in lines[-1]:
                raise ValueError("Protobuf schemas need grpcio-tools: pip install 'tidemill[protobuf]'")
            raise ValueError(f"protoc refuses it: {lines[0]:.200}")
        files = descriptor_pb2.FileDescriptorSet.FromString(made.read_bytes())
    return files.file[0]


def _messages(file: descriptor_pb2.FileDescriptorProto) -> dict[tuple[int, ...], Descriptor]:
    """Return the messages of a file by their place in it. Raises ValueError where it imports what is not known."""
    pool = descriptor_pool.DescriptorPool()
    known = descriptor_pool.Default()

    def add(name: str) -> None:
        own = descriptor_pb2.FileDescriptorProto()
        known.FindFileByName(name).CopyToProto(own)
        for needed in own.dependency:
            add(needed)
        pool.Add(own)

    for name in file.dependency:
        if not name.startswith(_OWN):
            raise ValueError(f"it imports {name}: register it with everything written out in it")
        try:
            add(name)
        except KeyError:
            raise ValueError(f"it imports {name}, which is not known here") from None
    file.name = file.name or _FILE
    try:
        pool.Add(file)
        descriptor = pool.FindFileByName(file.name)
    except (TypeError, KeyError) as error:
        raise ValueError(f"it is no file of Protobuf: {error}") from None
    messages: dict[tuple[int, ...], Descriptor] = {}

    def walk(path: tuple[int, ...], one: Descriptor) -> None:
        messages[path] = one
        for index, inner in enumerate(one.nested_types):
            walk((*path, index), inner)

    for index, name in enumerate(message.name for message in file.message_type):
        walk((index,), descriptor.message_types_by_name[name])
    if not messages:
        raise ValueError("it has no messages")
    return messages


def _indexes(data: bytes, at: int) -> tuple[tuple[int, ...], int]:
    """Return which message of the file comes, and where it begins. Raises Reject where the bytes don't say that."""
    count, at = _zigzag(data, at)
    if count == 0:
        return (0,), at  # the first one of the file, which is the usual one
    if not 0 < count <= MAX_INDEXES:
        raise Reject("undecodable", f"{count} numbers of a message, where 1 to {MAX_INDEXES} were expected")
    path = []
    for _ in range(count):
        index, at = _zigzag(data, at)
        path.append(index)
    return tuple(path), at


def _zigzag(data: bytes, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 35, 7):
        if at >= len(data):
            raise Reject("truncated", "the message ends before it says which of the schema's messages it is")
        byte, at = data[at], at + 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (number >> 1) ^ -(number & 1), at
    raise Reject("undecodable", "the number of a message is longer than 5 bytes")


def _is_known(message: Message) -> bool:
    """Return whether all fields of a message, and of those in it, are its schema's."""
    if len(UnknownFieldSet(message)):
        return False
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if _is_map(field):
            if field.message_type.fields_by_name["value"].message_type and not all(map(_is_known, value.values())):
                return False
        elif not all(map(_is_known, value if field.is_repeated else [value])):
            return False
    return True


def _is_map(field: FieldDescriptor) -> bool:
    return bool(field.message_type and field.message_type.GetOptions().map_entry)


def _values(message: Descriptor, avro: Any, named: Mapping[str, Any]) -> Values:
    """Return what makes of a message the values that JSON would have for a record."""
    kinds = {field["name"]: field for field in avro["fields"]}
    taken = [(field, kinds[field.name]) for field in message.fields if field.name in kinds]
    parts = []
    for field, declared in taken:
        branches = declared["type"] if isinstance(declared["type"], list) else [declared["type"]]
        absent = "omit" if "default" in declared or "null" not in branches else "null"
        inner = next(
            (named.get(one, one) if isinstance(one, str) else one for one in branches if one != "null"), "null"
        )
        parts.append((field.name, field.has_presence, absent == "null", _value(field, inner, named)))

    def values(of: Message) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for name, has_presence, is_null, value in parts:
            if not has_presence or of.HasField(name):
                made[name] = value(getattr(of, name))
            elif is_null:
                made[name] = None
        return made

    return values


def _value(field: FieldDescriptor, avro: Any, named: Mapping[str, Any]) -> Callable[[Any], Any]:
    """Return what makes of a field's value what JSON would have."""

    def inner(kind: str) -> Any:
        part = avro.get(kind, "null") if isinstance(avro, Mapping) else "null"
        return named.get(part, part) if isinstance(part, str) else part

    if _is_map(field):
        of_key, of_value = (
            _one(field.message_type.fields_by_name[name], inner("values"), named) for name in ("key", "value")
        )
        return lambda value: {_key(of_key(key)): of_value(value[key]) for key in value}
    if field.is_repeated:
        one = _one(field, inner("items"), named)
        return lambda value: [one(each) for each in value]
    return _one(field, avro, named)


def _key(key: Any) -> str:
    return str(key).lower() if isinstance(key, bool) else str(key)


def _one(field: FieldDescriptor, avro: Any, named: Mapping[str, Any]) -> Callable[[Any], Any]:
    if field.type == FieldDescriptor.TYPE_BYTES:
        return lambda value: value.decode("latin-1")
    if field.enum_type is not None:
        names = field.enum_type.values_by_number
        return lambda value: names[value].name if value in names else value
    message = field.message_type
    if message is None:
        return lambda value: value
    if message.full_name == _TIMESTAMP:
        return _moment
    if message.full_name in _WRAPPERS:
        unwrapped = _one(message.fields_by_name["value"], avro, named)
        return lambda value: unwrapped(value.value)
    if isinstance(avro, Mapping) and "fields" in avro:
        return _values(message, avro, named)
    full_name = message.full_name
    return lambda _: {full_name: "a message"}  # of another type than is declared, which the error says


def _moment(value: Any) -> Any:
    """Return a Timestamp as ISO 8601 text; what is out of its range as a number, which is no time."""
    try:
        return value.ToJsonString()
    except ValueError:
        return f"{value.seconds} s and {value.nanos} ns"


def _memory(messages: Sequence[Descriptor] | Any) -> int:
    """Return how many bytes of memory a byte of a message takes at worst: an empty one in a list takes two."""
    fields = [len(field.message_type.fields) for one in messages for field in one.fields if field.message_type]
    return max(_VALUE_BYTES, (_DICT_BYTES + _ENTRY_BYTES * max(fields, default=0)) // 2)
