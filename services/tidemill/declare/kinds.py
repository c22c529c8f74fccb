"""Kinds of feature, the Avro types that they come from, and the type that each has in the vector."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

Kind = Literal["number", "category", "flag"]

#: The Avro type of each kind in the vector.
KINDS: Mapping[str, str] = {"number": "double", "category": "string", "flag": "boolean"}

#: The kind that a field of each Avro type is.
AVRO_KINDS: Mapping[str, Kind] = {
    "int": "number",
    "long": "number",
    "float": "number",
    "double": "number",
    "decimal": "number",
    "string": "category",
    "enum": "category",
    "boolean": "flag",
}

#: Avro types that can name an entity, or a row of a table.
KEYS = ("string", "enum", "int", "long")

#: Where a value comes from: a field of the record, or a function of the record.
Source = str | Callable[[Mapping[str, Any]], Any]
