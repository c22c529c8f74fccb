"""An Avro codec behind the 5-byte header that Confluent's clients write and read."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import fastavro

from tidemill.encoding import avro_codegen, decimals, resolution, schema_files
from tidemill.encoding.envelopes import SkippedError
from tidemill.errors import Reject

#: Bytes before the record: a zero, then the schema's id, 4 bytes, big-endian.
HEADER = 5


#: No record yet: the first who decodes the message keeps it there for the others.
_UNREAD: Any = object()


class Carried(bytes):
    """A message that knows the record that its maker's codec would read from it; see `Codec.decode`.

    It stays within one process, and nobody changes the record, which passes its codec's check. What is kept for long is
    kept as `bytes(message)`.
    """

    record: Any = _UNREAD


def carried(data: bytes, record: Any) -> Carried:
    """Return the message with its record, which must be what decoding gives, to the type of every value."""
    message = Carried(data)
    message.record = record
    return message


class Codec:
    """Encodes and decodes one record schema.

    `encode` and `decode` are with the 5-byte header; `body` and `record` without. The work is done by code compiled
    from the schema where its shape allows that, else by fastavro; the bytes are the same. `of` and `decode` read
    records of the `others` as well, which this schema must be able to read: a log holds what an earlier declaration
    wrote. What they return has passed `check`, which raises Reject. `units` are what numbers count that the schema has
    no logical type for, by field. Decimals are `decimal.Decimal`; they may be written as their bytes as well.
    """

    def __init__(
        self,
        avro: Mapping[str, Any],
        others: Iterable[Mapping[str, Any]] = (),
        check: Callable[[Any], None] | None = None,
        units: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.avro, self.units, self._check = avro, units, check
        self.id = schema_files.fingerprint(avro)
        self.header = b"\0" + self.id.to_bytes(4, "big")
        plain = schema_files.plain(avro)
        self.parsed = fastavro.parse_schema(plain, named_schemas={})
        try:
            self._encode, self.read = avro_codegen.make(self.parsed)  # with every name in full
            self.is_compiled = True
        except avro_codegen.UnsupportedError:
            self._encode, self.read = self._write_by_fastavro, self._read_by_fastavro
            self.is_compiled = False
        self._to_decimals, to_bytes = decimals.reader(avro), decimals.writer(avro)
        if self._to_decimals and to_bytes:
            encode, write = self._encode, to_bytes
            self._encode = lambda record: encode(write(record))
            self.read = self._with_decimals(self.read)
        readers = [(schema_files.fingerprint(other), self.reading(schema_files.plain(other))[0]) for other in others]
        self._others = {b"\0" + number.to_bytes(4, "big"): read for number, read in readers}

    def reading(self, avro: Mapping[str, Any]) -> tuple[avro_codegen.Decode, bool]:
        """Return what reads records of another schema as this one's, and whether it is as strict about the bytes.

        The other has no logical types, and this one must be able to read it.
        """
        own = Codec(avro)
        mapping = (
            resolution.field_mapping(avro, schema_files.plain(self.avro))
            if own.is_compiled and self.is_compiled
            else None
        )
        if mapping is not None:
            return self._with_decimals(resolution.by_field(own.read, mapping)), True

        def read(data: bytes, at: int) -> tuple[Any, int]:
            stream = io.BytesIO(data)
            stream.seek(at)
            return fastavro.schemaless_reader(stream, own.parsed, self.parsed), stream.tell()

        return self._with_decimals(read), False

    def _with_decimals(self, read: avro_codegen.Decode) -> avro_codegen.Decode:
        make = self._to_decimals
        if make is None:
            return read

        def read_decimals(data: bytes, at: int) -> tuple[Any, int]:
            record, end = read(data, at)
            return make(record), end

        return read_decimals

    def _write_by_fastavro(self, record: Mapping[str, Any]) -> bytes:
        out = io.BytesIO()
        fastavro.schemaless_writer(out, self.parsed, record)
        return out.getvalue()

    def _read_by_fastavro(self, data: bytes, at: int) -> tuple[Any, int]:
        stream = io.BytesIO(data)
        stream.seek(at)
        return fastavro.schemaless_reader(stream, self.parsed, None), stream.tell()

    def body(self, record: Mapping[str, Any]) -> bytes:
        """Return the record's Avro bytes. Raises one of many errors where the record does not fit the schema."""
        return self._encode(record)

    def encode(self, record: Mapping[str, Any]) -> bytes:
        """Return header and record."""
        return self.header + self._encode(record)

    def record(self, body: bytes, at: int = 0) -> Any:
        """Return the record that begins at `at`; what follows it is not looked at."""
        return self.read(body, at)[0]

    def trusted(self, data: bytes) -> Any:
        """Return the record in a message of this schema that has been decoded before."""
        if type(data) is Carried and data.record is not _UNREAD:
            return data.record
        return self.record(data, HEADER)

    def of(self, data: bytes | None) -> Any:
        """Return the record in `data`; None where it holds none: of another schema, as after a new declaration."""
        try:
            return self.decode(data)
        except Reject:
            return None

    def decode(self, data: bytes | None) -> Any:
        """Return the record in `data`. Raises Reject where it is none, not complete, or not as checked."""
        if not data:
            raise Reject("empty", "the record has no value")
        read = self.read if data.startswith(self.header) else self._others.get(data[:HEADER])
        if read is None:
            given = data[:HEADER].hex()
            message = f"header {given} where {self.header.hex()} ({self.avro['name']}) was expected"
            raise Reject("unknown_schema", message, value=given)
        is_carried = type(data) is Carried and read is self.read
        if is_carried and data.record is not _UNREAD:  # type: ignore[attr-defined]
            return data.record  # type: ignore[attr-defined]
        record = read_all(read, data, HEADER, self.avro["name"])
        if self._check is not None:
            self._check(record)
        if is_carried:
            data.record = record  # type: ignore[attr-defined]
        return record


def read_all(read: avro_codegen.Decode, data: bytes, at: int, name: str) -> Any:
    """Return the record `name` that the bytes from `at` on are. Raises Reject where they are none, or more."""
    try:
        record, end = read(data, at)
    except (Reject, SkippedError):
        raise
    except (EOFError, IndexError) as error:
        raise Reject("truncated", "the record ends before its last field") from error
    except Exception as error:  # whatever hostile bytes make a decoder raise, it is one bad record
        raise Reject("undecodable", f"the bytes are no {name}: {error}") from error
    if end != len(data):
        raise Reject("trailing_bytes", f"{len(data) - end} bytes follow the record")
    return record
