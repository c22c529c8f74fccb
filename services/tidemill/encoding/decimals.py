"""Decimals: bytes on the wire, `decimal.Decimal` in the records that users' functions get.

A schema's decimals have a precision; without one, as for fastavro, they stay bytes. So do those of a union with more
than one branch beside null.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import MAX_PREC, Context, Decimal
from typing import Any

from tidemill.encoding import schema_files
from tidemill.encoding.json_values import MAX_DECIMAL_DIGITS, decimal_bytes

#: Makes one value of another.
Convert = Callable[[Any], Any]
_EXACT = Context(prec=MAX_PREC)


def names_of(avro: Mapping[str, Any]) -> set[str]:
    """Return the fields of a record that are decimals, or null."""
    content, named = schema_files.parsed(avro)
    names = set()
    for field in content["fields"]:
        kinds = [kind for kind in _branches(field["type"]) if kind != "null"]
        if len(kinds) == 1 and _is_decimal(named.get(kinds[0], kinds[0]) if isinstance(kinds[0], str) else kinds[0]):
            names.add(str(field["name"]))
    return names


def _branches(avro: Any) -> list[Any]:
    return avro if isinstance(avro, list) else [avro]


def _is_decimal(avro: Any) -> bool:
    return (
        isinstance(avro, Mapping)
        and avro.get("logicalType") == "decimal"
        and avro["type"] in ("bytes", "fixed")
        and "precision" in avro
    )


def reader(avro: Any) -> Convert | None:
    """Return what makes Decimals of a record's bytes, in the record itself; None where it has no decimals.

    It raises ValueError for more digits than are declared.
    """
    return _convert(*schema_files.parsed(avro), _of_bytes, "")


def writer(avro: Any) -> Convert | None:
    """Return what makes bytes of a record's Decimals, in a copy; None where it has none. Bytes stay as they are."""
    return _convert(*schema_files.parsed(avro), _to_bytes, "")


def _convert(avro: Any, named: Mapping[str, Any], leaf: Callable[[Any, str], Convert], path: str) -> Convert | None:
    if isinstance(avro, str):
        return _convert(named[avro], named, leaf, path) if avro in named else None
    if isinstance(avro, list):
        others = [branch for branch in avro if branch != "null"]
        inner = _convert(others[0], named, leaf, path) if len(others) == 1 else None
        return inner and (lambda value: None if value is None else inner(value))
    if _is_decimal(avro):
        return leaf(avro, path)
    if avro["type"] == "array":
        item = _convert(avro["items"], named, leaf, f"{path}[]")
        return item and (lambda values: [item(value) for value in values])
    if avro["type"] == "map":
        one = _convert(avro["values"], named, leaf, f"{path}[]")
        return one and (lambda values: {key: one(value) for key, value in values.items()})
    if avro["type"] != "record":
        return None
    fields = {
        field["name"]: convert
        for field in avro["fields"]
        if (convert := _convert(field["type"], named, leaf, f"{path}.{field['name']}".lstrip(".")))
    }
    if not fields:
        return None
    return lambda record: {**record, **{name: convert(record[name]) for name, convert in fields.items()}}


def _of_bytes(avro: Mapping[str, Any], path: str) -> Convert:
    digits, down = int(avro["precision"]), -int(avro.get("scale", 0))
    limit = 10 ** min(digits, MAX_DECIMAL_DIGITS)

    def convert(data: bytes) -> Decimal:
        unscaled = int.from_bytes(data, "big", signed=True)
        if not -limit < unscaled < limit:
            raise ValueError(f"field {path!r} has more than the {digits} digits of its decimal")
        return Decimal(unscaled).scaleb(down, _EXACT)

    return convert


def _to_bytes(avro: Mapping[str, Any], path: str) -> Convert:
    def convert(value: Any) -> bytes:
        if isinstance(value, bytes):
            return value
        try:
            return decimal_bytes(value, avro)
        except (TypeError, ValueError, ArithmeticError):
            raise ValueError(f"field {path!r} is {value!r:.100}, no decimal as declared") from None

    return convert
