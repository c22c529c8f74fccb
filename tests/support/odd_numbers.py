"""Records of any schema, and copies of them with one number that no service of ours writes."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

from tidemill.durations import FIRST_TIME_MS, LAST_TIME_MS

_PLAIN = {"string": "a", "bytes": b"a", "boolean": True, "double": 0.5, "float": 0.5, "int": 1, "long": 1}
_NOT_FINITE = (math.nan, math.inf, -math.inf)


def filled(avro: Any, named: dict[str, Any] | None = None) -> Any:
    """Return a value of a schema in which nothing is missing or empty."""
    named = {} if named is None else named
    if isinstance(avro, str):
        return _PLAIN[avro] if avro in _PLAIN else filled(named[avro], named)
    if isinstance(avro, list):
        return filled(next(branch for branch in avro if branch != "null"), named)
    if avro["type"] == "record":
        named[avro["name"]] = avro
        return {field["name"]: filled(field["type"], named) for field in avro["fields"]}
    if avro["type"] == "map":
        return {"a": filled(avro["values"], named)}
    return [filled(avro["items"], named)] if avro["type"] == "array" else filled(avro["type"], named)


def odd_numbers(avro: Any, record: Any) -> Iterator[tuple[str, Any]]:
    """Yield (path of a field, a copy of the record with an odd number there), for every number in the schema."""
    for path, where, odd in _odd(avro, record, "", (), {}):
        changed = holder = copy.deepcopy(record)
        for step in where[:-1]:
            holder = holder[step]
        holder[where[-1]] = odd
        yield path, changed


def _odd(
    avro: Any, value: Any, path: str, where: tuple[Any, ...], named: dict[str, Any]
) -> Iterator[tuple[str, tuple[Any, ...], Any]]:
    avro = named.get(avro, avro) if isinstance(avro, str) else avro
    if isinstance(avro, list):
        for branch in avro:
            if branch != "null":
                yield from _odd(branch, value, path, where, named)
    elif isinstance(avro, Mapping) and avro["type"] == "record":
        named[avro["name"]] = avro
        for field in avro["fields"]:
            name = field["name"]
            yield from _odd(field["type"], value[name], f"{path}.{name}".lstrip("."), (*where, name), named)
    elif isinstance(avro, Mapping) and avro["type"] == "map":
        yield from _odd(avro["values"], None, path, (*where, "odd"), named)
    elif isinstance(avro, Mapping) and avro["type"] == "array":
        for index, item in enumerate(value):
            yield from _odd(avro["items"], item, path, (*where, index), named)
    else:
        kind = avro["type"] if isinstance(avro, Mapping) else avro
        is_time = isinstance(avro, Mapping) and avro.get("logicalType") == "timestamp-millis"
        times = (FIRST_TIME_MS - 1, LAST_TIME_MS + 1, -(2**63), 2**63 - 1)
        odd = {
            "double": _NOT_FINITE,
            "float": _NOT_FINITE,
            "int": (-2, -(2**31)),
            "long": times if is_time else (-2, -(2**63)),
        }
        for number in odd.get(kind, ()):
            yield path, where, number
