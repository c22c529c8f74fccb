"""Avro schema files: where they are found, what their fields are, and the id that every process gives them.

Schemas are in `schemas/` of the repository and ship inside the wheel as `tidemill/schemas`; an editable install reads
the repository's own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import fastavro
from fastavro.schema import to_parsing_canonical_form

from tidemill.encoding.times import CONNECT_TYPES

_PACKAGED = Path(__file__).parents[1] / "schemas"
_REPOSITORY = Path(__file__).parents[3] / "schemas"


def root() -> Path:
    """Return the folder of the shipped schemas: inside the wheel, or the repository's."""
    return _PACKAGED if _PACKAGED.is_dir() else _REPOSITORY


def find(name: str, beside: Path | None = None) -> dict[str, Any]:
    """Return the schema file `name` as JSON. Raises as `locate`, and ValueError where it is no Avro record schema."""
    return _read(locate(name, beside))


def locate(name: str, beside: Path | None = None) -> Path:
    """Return the schema file `name`, looked for beside the pipeline, in ./schemas, and among the shipped ones.

    Raises FileNotFoundError with the places looked at.
    """
    places = [Path.cwd() / "schemas" / name, root() / name]
    if beside:
        places = [beside / name, beside / "schemas" / name, *places]
    if Path(name).is_absolute():
        places = [Path(name)]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(f"no schema file {name!r} in {', '.join(str(place.parent) for place in places)}")


def _read(place: Path) -> dict[str, Any]:
    try:
        avro = json.loads(place.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{place} is not JSON: {error}") from error
    if not isinstance(avro, dict) or avro.get("type") != "record" or not avro.get("fields"):
        raise ValueError(f"{place} is no Avro record schema: expected type 'record' with fields")
    return avro


@cache
def own(name: str) -> dict[str, Any]:
    """Return one of our own record schemas, `schemas/tidemill/NAME.avsc`."""
    return _read(root() / "tidemill" / f"{name}.avsc")


def parsed(avro: Any) -> tuple[Any, dict[str, Any]]:
    """Return the schema with every name in full, and its named types by that name. Raises ValueError for no schema."""
    named: dict[str, Any] = {}
    try:
        return fastavro.parse_schema(avro, named_schemas=named), named
    except Exception as error:  # fastavro raises many kinds of error
        raise ValueError(f"it is no Avro schema: {error}") from error


def full_name(avro: Any) -> str:
    """Return the full name of a named type's schema."""
    return str(parsed(avro)[0]["name"])


def standalone(avro: Any, named: Mapping[str, Any], seen: set[str] | None = None) -> Any:
    """Return the schema with each `named` type where it is referred to: in full the first time, as Avro wants."""
    seen = set() if seen is None else seen
    if isinstance(avro, str) and avro in named and avro not in seen:
        return standalone(named[avro], named, seen)
    if isinstance(avro, list):
        return [standalone(branch, named, seen) for branch in avro]
    if not isinstance(avro, dict):
        return avro
    if "name" in avro and "type" in avro and avro["type"] in ("record", "error", "enum", "fixed"):
        seen.add(avro["name"])
    made = {key: standalone(avro[key], named, seen) for key in ("type", "items", "values") if key in avro}
    if "fields" in avro:
        made["fields"] = [{**field, "type": standalone(field["type"], named, seen)} for field in avro["fields"]]
    return avro | made


def field_types(avro: Mapping[str, Any]) -> dict[str, str]:
    """Return the primitive type of each field, by name, as `primitive`."""
    content, named = parsed(avro)
    return {field["name"]: primitive(field["type"], named) for field in content["fields"]}


def primitive(avro: Any, named: Mapping[str, Any] = MappingProxyType({})) -> str:
    """Return a field's primitive type; of a union with null, the other branch's; `union` for a wider one.

    `named`: the schema's named types, where it refers to one.
    """
    if isinstance(avro, list):
        rest = [branch for branch in avro if branch != "null"]
        return primitive(rest[0], named) if len(rest) == 1 else "union"
    if isinstance(avro, str) and avro in named:
        return primitive(named[avro], named)
    return primitive(avro["type"], named) if isinstance(avro, dict) else str(avro)


def logical_type(avro: Any) -> str:
    """Return a field's logical type; of a union with null, the other branch's; empty where it has none.

    Debezium's types have no Avro name of their own: its schemas say them as Kafka Connect does, in `connect.name`.
    """
    if isinstance(avro, list):
        return next((logical_type(branch) for branch in avro if branch != "null"), "")
    if not isinstance(avro, dict):
        return ""
    return str(avro.get("logicalType") or CONNECT_TYPES.get(str(avro.get("connect.name", "")), ""))


def nullable(avro: Any) -> bool:
    """Return whether a field of this type may be null."""
    return avro == "null" or (isinstance(avro, list) and "null" in avro)


#: What a schema says of how its values are read; the rest is for people, and for other programs.
_READ_BY = ("type", "name", "namespace", "aliases", "fields", "default", "symbols", "size", "items", "values")


def plain(avro: Any) -> Any:
    """Return the schema without logical types, docs and properties: times then decode as the integers on the wire."""
    if isinstance(avro, list):
        return [plain(branch) for branch in avro]
    if not isinstance(avro, dict):
        return avro
    kept = {k: v for k, v in avro.items() if k in _READ_BY}
    if isinstance(kept.get("type"), (dict, list)):
        kept["type"] = plain(kept["type"])
    for part in ("items", "values"):
        if part in kept:
            kept[part] = plain(kept[part])
    if "fields" in kept:
        kept["fields"] = [plain(f) for f in kept["fields"]]
    return kept if set(kept) != {"type"} or not isinstance(kept["type"], str) else kept["type"]


def malformed(avro: Any) -> str:
    """Return why this is no Avro schema; nothing where it is one."""
    try:
        parsed(plain(avro))
    except ValueError as error:
        return str(error)
    return ""


def fingerprint(avro: Any) -> int:
    """Return the schema's id: the first 31 bits of the SHA-256 of its parsing canonical form.

    Avro 1.12, "Transforming into Parsing Canonical Form". Equal in every process and on every machine, without a
    server.
    """
    canonical: str = to_parsing_canonical_form(avro)
    return int.from_bytes(hashlib.sha256(canonical.encode()).digest()[:4], "big") >> 1
