"""The schemas that producers write by: each is the declared one, or is read by it, or is known and refused."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import fastavro

from tidemill import schemas
from tidemill.records import Codec
from tidemill.resolution import promoted, unreadable
from tidemill.safety import unsafe

Name = int | bytes
"""How a message names its schema: the id that a registry gave it, or its GUID, 16 bytes."""


@dataclass(frozen=True)
class Writer:
    """One schema that messages are written by.

    `read` is (data, where the record begins) -> (record as the declared schema has it, where it ends); `same`: its bytes
    are the declared schema's own; `strict`: it reads as strictly as the declared one. `promoted` are fields whose whole
    numbers become floats. Where `refused` says why, nothing is read by it; `field` is the one that is wrong.
    """

    name: str
    read: Callable[[bytes, int], tuple[Any, int]]
    same: bool = False
    strict: bool = False
    promoted: tuple[str, ...] = ()
    refused: str = ""
    field: str = ""


class Writers(Protocol):
    """Knows schemas beside those that are declared. Looked at for each message that names one; so it never waits."""

    def find(self, topic: str, name: Name) -> Writer | None:
        """Return the schema; None where there is none. Raises Retry where it is being looked for."""


class NoWriters(Writers):
    """Where there is no registry."""

    def find(self, topic: str, name: Name) -> Writer | None:  # noqa: ARG002  there is none, whatever the name
        return None


def refused(name: str, why: object, field: str = "") -> Writer:
    """Return a schema that is known and that nothing is read by."""
    return Writer(name, _nothing, refused=str(why), field=field)


def writer(name: str, avro: Any, codec: Codec) -> Writer:
    """Return how messages of the schema `avro` become records of `codec`'s, or why they don't; raises nothing."""
    why = unsafe(avro)
    if why:
        return refused(name, why)
    try:
        plain = schemas.plain(avro)
        if schemas.fingerprint(avro) == codec.id:
            return Writer(name, codec.read, same=True)
        mismatch = unreadable(plain, schemas.plain(codec.avro))
        if mismatch:
            return refused(name, mismatch, mismatch.field)
        own, rising = Codec(plain), promoted(plain, codec.avro)
        ways = _ways(plain, codec) if own.is_compiled and codec.is_compiled else None
        if ways is None:
            return Writer(name, _by_fastavro(own, codec), promoted=rising)
        return Writer(name, _by_field(own, ways), strict=True, promoted=rising)
    except Exception as error:  # a registry may hold anything
        return refused(name, f"it is no Avro schema of a record: {error!r:.200}")


def accepted(files: Mapping[str, Any], codec: Codec) -> dict[int, Writer]:
    """Return the other schemas that a stream's declaration accepts, by the id that we give them; `files` are by name."""
    return {schemas.fingerprint(avro): writer(name, avro, codec) for name, avro in files.items()}


_SAME, _FLOAT, _DEFAULT = range(3)


def _by_field(own: Codec, ways: list[tuple[str, int, Any]]) -> Callable[[bytes, int], tuple[Any, int]]:
    """Return what reads schemas whose fields are only left out, added or made floats, as after most changes.

    In half of fastavro's time, and as strictly as by the declared schema.
    """
    kept, floats, fixed = (
        [(name, value) for name, how, value in ways if how == kind] for kind in (_SAME, _FLOAT, _DEFAULT)
    )
    defaults, decode = dict(fixed), own.read

    def read(data: bytes, at: int) -> tuple[Any, int]:
        found, end = decode(data, at)
        record = defaults.copy()
        for name, written in kept:
            record[name] = found[written]
        for name, written in floats:
            value = found[written]
            record[name] = None if value is None else float(value)
        return record, end

    return read


def _by_fastavro(writer: Codec, codec: Codec) -> Callable[[bytes, int], tuple[Any, int]]:
    def read(data: bytes, at: int) -> tuple[Any, int]:
        stream = io.BytesIO(data)
        stream.seek(at)
        return fastavro.schemaless_reader(stream, writer.parsed, codec.parsed), stream.tell()

    return read


def _ways(avro: Mapping[str, Any], codec: Codec) -> list[tuple[str, int, Any]] | None:
    """Return where each declared field comes from: (field, how, the writer's field or the default); None where it is not simple."""
    there = {field["name"]: field["type"] for field in avro["fields"]}
    ways: list[tuple[str, int, Any]] = []
    for field in schemas.plain(codec.avro)["fields"]:
        written = next((name for name in (field["name"], *field.get("aliases", ())) if name in there), None)
        default = field.get("default")
        if written is None:
            if isinstance(default, (list, dict)) or schemas.primitive(field["type"]) == "bytes":
                return None
            ways.append((field["name"], _DEFAULT, default))
            continue
        one, other = (_primitive(kind) for kind in (there[written], field["type"]))
        if one is None or other is None:
            return None
        if one == other or (one, other) == ("int", "long"):
            ways.append((field["name"], _SAME, written))
        elif one in ("int", "long", "float") and other in ("float", "double"):
            ways.append((field["name"], _FLOAT, written))
        else:
            return None
    return ways


def _primitive(avro: Any) -> str | None:
    """Return the primitive type of a field, or of one that may be null; None for any other."""
    if isinstance(avro, list):
        others = [branch for branch in avro if branch != "null"]
        avro = others[0] if len(avro) == 2 and len(others) == 1 else None
    return avro if avro in _PRIMITIVES else None


_PRIMITIVES = ("boolean", "int", "long", "float", "double", "string", "bytes")


def _nothing(*_: Any) -> Any:
    raise AssertionError("nothing is read by a schema that is refused")
