"""Decoding what producers send: JSON, or Avro, JSON or Protobuf behind a schema's id, against one schema; strict."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from tidemill import limits
from tidemill.declare.stream import Stream
from tidemill.encoding import json_values, schema_files
from tidemill.encoding.codec import HEADER, Codec, read_all
from tidemill.encoding.envelopes import EmbeddedSchemas, SkippedError, Unwrap, form_of, unwrapped
from tidemill.encoding.schema_limits import memory_per_byte
from tidemill.errors import Reject
from tidemill.stages.validator.writer_schemas import SchemaName, WriterSchema, accepted_schemas

MAX_MESSAGE_BYTES, MAX_MEMORY_BYTES = limits.MESSAGE_BYTES.max, limits.MESSAGE_MEMORY_BYTES.max

_fast_json = msgspec.json.Decoder().decode

#: Where newer clients of Confluent's put the schema's id; the message is then the record alone.
SCHEMA_HEADER = "__value_schema_id"


def _no_headers() -> Any:
    return None


class Decoder:
    """Decodes one stream's messages to (record, Avro bytes with header).

    A message that is already Avro by the declared schema goes on as it came, bytes untouched. One by another known
    schema becomes what the declared one reads in it.

    Parameters
    ----------
    accepted
        Other schemas that producers may write by, by the id in the message.
    find
        Returns the schema that a registry knows by an id or a GUID, None where there is none; may raise Retry.
    encoding
        "avro" or "json" where only that is taken.
    counts
        Where promotions are counted, as ("promoted", field).
    unwrap
        The envelope that records come in; with `bare`, or come without.
    """

    def __init__(
        self,
        codec: Codec,
        accepted: Mapping[int, WriterSchema] | None = None,
        find: Callable[[SchemaName], WriterSchema | None] = lambda _: None,
        encoding: str = "",
        counts: Counter[tuple[str, str]] | None = None,
        unwrap: Unwrap = "",
        *,
        bare: bool = False,
    ) -> None:
        self.codec = codec
        self._avro_memory, self._json_memory = memory_per_byte(codec.avro)
        declared = WriterSchema(str(codec.avro["name"]), codec.read, same=True, memory_per_byte=self._avro_memory)
        self._accepted = {codec.id: declared, **(accepted or {})}
        self._find = find
        self._embedded = EmbeddedSchemas(codec.avro, codec.units)
        self._encoding, self._unwrap, self._bare = encoding, unwrap, bare
        self._counts = Counter() if counts is None else counts
        self._header, self._takes_avro = codec.header, encoding != "json"
        self._fields = json_values.fields_of(codec.avro, form_of(unwrap))
        self._is_record = json_values.as_it_is(codec.avro)
        types = self._names = schema_files.field_types(codec.avro)
        self._floats = [name for name, kind in types.items() if kind in ("float", "double", "union")]

    def decode(self, data: bytes | None, headers: Callable[[], Any] = _no_headers) -> tuple[dict[str, Any], bytes]:
        """Return the record and its Avro message.

        Raises Reject with what is wrong, Retry for a schema not known yet, SkippedError for what is no record.

        `headers` returns the message's headers; it is called only where the message does not begin as most do.
        """
        if not data:
            if data is None and self._unwrap == "debezium":
                raise SkippedError("tombstone")
            raise Reject("empty", "the message has no value")
        if len(data) > MAX_MESSAGE_BYTES:
            raise Reject("too_large", limits.MESSAGE_BYTES.excess(len(data)))
        if self._takes_avro and data.startswith(self._header):
            return self._read(self.codec.read, data, HEADER, self._avro_memory), data
        return self._other(data, headers() or ())

    def _other(self, data: bytes, headers: Any) -> tuple[dict[str, Any], bytes]:
        declared_form, schema_name = "", None
        for name, value in headers:
            if name == SCHEMA_HEADER:
                schema_name = value or b""
            elif name.lower() == "content-type":
                declared_form = _form(value)
        if schema_name is not None:
            return self._by_schema(data, _name(schema_name), 0, headers)
        form = declared_form or ("avro" if data[0] == 0 else "json" if data[:1] in b"{ \t\r\n" else "")
        if form == "json":
            return self._as_json(data, headers)
        if data[0] == 0:
            if len(data) < HEADER:
                self._allow("avro")
                raise Reject("truncated", f"{len(data)} bytes are less than the header's {HEADER}")
            return self._by_schema(data, int.from_bytes(data[1:HEADER], "big"), HEADER, headers)
        raise Reject(
            "bad_magic",
            f"the first byte is 0x{data[0]:02x}; expected 0x00 (Avro behind a schema id) or a JSON object",
            value=f"0x{data[0]:02x}",
        )

    def _allow(self, form: str) -> None:
        if self._encoding not in ("", form):
            raise Reject("wrong_encoding", f"the message is {form} where the stream is declared {self._encoding}")

    def _as_json(self, data: bytes, headers: Any) -> tuple[dict[str, Any], bytes]:
        self._allow("json")
        record = self._json(data, headers)
        return (record, self._encoded(record)) if self._is_record(record) else self._reencoded(self._record(record))

    def _by_schema(self, data: bytes, name: SchemaName, at: int, headers: Any) -> tuple[dict[str, Any], bytes]:
        writer = self._accepted.get(name) if isinstance(name, int) else None
        if writer is None:
            writer = self._find(name)
        if writer is None or writer.form == "avro":
            self._allow("avro")
        if writer is None:
            shown = name if isinstance(name, int) else name.hex()
            raise Reject(
                "unknown_schema",
                f"schema id {shown} where {self.codec.id} ({self.codec.avro['name']}) was expected",
                value=shown,
            )
        if writer.refused:
            raise Reject(
                "incompatible_schema",
                f"{writer.name}: {writer.refused}",
                rule="schema",
                field=writer.field,
                value=writer.name,
            )
        if writer.form == "json":
            return self._as_json(data[at:], headers)
        self._allow(writer.form)
        record = self._read(writer.read, data, at, writer.memory_per_byte)
        if writer.same:
            return record, self._header + data[at:]
        for field in writer.promoted:
            self._counts["promoted", field] += 1
        return (record, self.codec.encode(record)) if writer.strict else self._reencoded(record)

    def _read(
        self, read: Callable[[bytes, int], tuple[Any, int]], data: bytes, at: int, memory_per_byte: int
    ) -> dict[str, Any]:
        _check_memory(data, memory_per_byte)
        return read_all(read, data, at, self.codec.avro["name"])  # type: ignore[no-any-return]

    def _reencoded(self, record: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Return the record as consumers will read it, which is what has to be checked, and its message."""
        message = self._encoded(record)
        return self.codec.read(message, HEADER)[0], message

    def _encoded(self, record: dict[str, Any]) -> bytes:
        try:
            message: bytes = self.codec.encode(record)
        except Exception as error:  # half a surrogate, no symbol of the enum, an int of 40 bits, ...
            name = self.codec.avro["name"]
            raise Reject("wrong_type", f"the record can't be written as {name}: {error}", rule="schema") from error
        if len(message) > MAX_MESSAGE_BYTES:  # with the defaults of what was left out
            raise Reject("too_large", limits.MESSAGE_BYTES.excess(len(message)))
        return message

    def _json(self, data: bytes, headers: Any) -> dict[str, Any]:
        _check_memory(data, self._json_memory)
        try:
            given = _fast_json(data)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            # It is stricter than Python's own, which takes NaN, 1e400 and UTF-16: they are told by what they are.
            try:
                given = json.loads(data)
            except (ValueError, RecursionError) as error:
                raise Reject("not_json", f"the bytes begin like JSON and are none: {error}") from error
        json_values.check_names(data, given)
        if self._unwrap:
            given = unwrapped(
                given, self._unwrap, bare=self._bare, headers=headers, fields=self._names, embedded=self._embedded
            )
        if not isinstance(given, dict):
            raise Reject("not_json", f"{type(given).__name__} where an object was expected")
        return given

    def _record(self, given: dict[str, Any]) -> dict[str, Any]:
        try:
            record = json_values.record_of(self._fields, given, "", self.codec.avro["name"])
        except json_values.MismatchError as error:
            raise error.reject() from error
        for name in self._floats:
            if type(given.get(name)) is int and type(record[name]) is float:
                self._counts["promoted", name] += 1
        return record


class InMillis:
    """Decodes as another decoder does, and makes milliseconds of the record's time.

    What has them already goes on as it came: `valid` are the records that the validator passes on.
    """

    def __init__(self, decoder: Decoder, valid: Codec, time: str, as_millis: Callable[[Any], int]) -> None:
        self._decoder, self._time, self._as_millis = decoder, time, as_millis
        self._valid, self._decode_valid = valid, Decoder(valid).decode

    def decode(self, data: bytes | None, headers: Callable[[], Any] = _no_headers) -> tuple[dict[str, Any], bytes]:
        """Return the record and its Avro message. Raises as `Decoder.decode`, and Reject for what is no time."""
        if data and data.startswith(self._valid.header):
            return self._decode_valid(data)
        record, _ = self._decoder.decode(data, headers)
        value = record[self._time]
        try:
            record[self._time] = self._as_millis(value)
        except ValueError as error:
            message = f"field {self._time!r}: {error}"
            raise Reject("bad_time", message, rule="time", field=self._time, value=value) from None
        data = self._valid.encode(record)
        if len(data) > MAX_MESSAGE_BYTES:
            raise Reject("too_large", limits.MESSAGE_BYTES.excess(len(data)))
        return record, data


def stream_decoder(
    stream: Stream,
    sent: Codec,
    valid: Codec,
    find: Callable[[SchemaName], WriterSchema | None] = lambda _: None,
    encoding: str = "",
    counts: Counter[tuple[str, str]] | None = None,
    *,
    bare: bool = False,
) -> Decoder | InMillis:
    """Return what decodes a stream's messages; arguments as `Decoder`'s."""
    others = accepted_schemas(stream.others, sent, stream.unwrap)
    decoder = Decoder(sent, others, find, encoding, counts, stream.unwrap, bare=bare)
    return InMillis(decoder, valid, stream.time, stream.as_millis) if stream.as_millis else decoder


def _check_memory(data: bytes, memory_per_byte: int) -> None:
    if len(data) * memory_per_byte > MAX_MEMORY_BYTES:
        raise Reject("too_large", limits.MESSAGE_MEMORY_BYTES.excess(len(data) * memory_per_byte))


def _form(content_type: bytes | None) -> str:
    """Return "json" or "avro" where a content type says so, else nothing."""
    kind = (content_type or b"").partition(b";")[0].strip().lower()
    if kind.endswith((b"/json", b"+json")):
        return "json"
    return "avro" if b"avro" in kind else ""  # avro/binary, application/avro, application/vnd.apache.avro+binary, ...


def _name(header: bytes) -> SchemaName:
    """Return the schema's id or GUID that the header gives."""
    if len(header) == HEADER and header[0] == 0:
        return int.from_bytes(header[1:], "big")
    if len(header) == 17 and header[0] == 1:
        return header[1:]
    raise Reject(
        "bad_magic",
        f"the header {SCHEMA_HEADER} holds {len(header)} bytes that begin with {header[:1].hex() or 'nothing'}; "
        f"expected 0x00 and an id of 4 bytes, or 0x01 and a GUID of 16",
        value=header[:17].hex(),
    )
