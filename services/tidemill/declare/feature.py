"""Request features: what is asked of the event alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

AVRO_KINDS = {"int": "number", "long": "number", "float": "number", "double": "number",
              "string": "category", "enum": "category", "boolean": "flag"}  # fmt: skip


KINDS: Mapping[str, str] = {"number": "double", "category": "string", "flag": "boolean"}
"""Kinds of feature and the Avro type each has in the vector."""


Source = str | Callable[[Mapping[str, Any]], Any]


@dataclass(frozen=True)
class Feature:
    """A request feature: its kind and where its value comes from (an event field, or a function of the event)."""

    kind: str
    source: Source


def number(source: Source) -> Feature:
    """Declare a feature that is a number (a float in the vector); NaN, infinities and what is beyond 1e15 become missing."""
    return Feature("number", source)


def category(source: Source) -> Feature:
    """Declare a feature that is a category (text in the vector)."""
    return Feature("category", source)


def flag(source: Source) -> Feature:
    """Declare a feature that is true or false."""
    return Feature("flag", source)
