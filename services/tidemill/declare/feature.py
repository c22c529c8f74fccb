"""Request features: computed from the event alone."""

from __future__ import annotations

import dis
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, cast

from pydantic import Field

from tidemill.declare.checks import Fail, check_fields
from tidemill.declare.kinds import AVRO_KINDS, KEYS, Kind, Source
from tidemill.declare.stream import Stream
from tidemill.rules.base import why_not_asked
from tidemill.tables import Lookup

_KINDS_OF_RETURNS: dict[str, Kind] = {"float": "number", "int": "number", "str": "category", "bool": "flag"}


@dataclass(frozen=True)
class Feature:
    """A request feature: its kind and where its value comes from (an event field, or a function of the event)."""

    kind: Kind
    source: Annotated[Source, Field(description="the name of an event field or a function of the event")]

    def check(self, where: str, events: Stream, fail: Fail) -> None:
        """Check the fields, and that the event has what they name, of a type that fits the kind."""
        check_fields(self, where, fail)
        if isinstance(self.source, str):
            if self.kind == "flag" and _kind_of_field(where, self.source, events, fail) == "category":
                fail(
                    where,
                    f"field {self.source!r} is {events.types[self.source]}, and any text is true: give a function, "
                    f"as in flag(lambda e: e[{self.source!r}] == 'yes')",
                )
            if self.kind == "number" and _kind_of_field(where, self.source, events, fail) == "category":
                type_ = events.types[self.source]
                fail(where, f"field {self.source!r} is {type_}, not a number: use category({self.source!r})")
        elif isinstance(self.source, Lookup):
            lookup = self.source
            events.check_field(f"{where}: by", lookup.by, fail, *KEYS)
            if lookup.kind == "category" and self.kind != "category":
                why = lookup.table.why_text(lookup.column)
                fail(
                    where,
                    f"column {lookup.column!r} of {lookup.table.name} is text, not a {self.kind}, for {why}: fix the "
                    f"file, or use category(...)",
                )
        elif why := why_not_asked(self.source):
            fail(where, why)


def number(source: Source) -> Feature:
    """Declare a feature that is a number (a float in the vector); NaN, infinities and values above 1e15 are missing."""
    return Feature("number", source)


def category(source: Source) -> Feature:
    """Declare a feature that is a category (text in the vector)."""
    return Feature("category", source)


def flag(source: Source) -> Feature:
    """Declare a feature that is true or false."""
    return Feature("flag", source)


def as_feature(where: str, source: Feature | Source, events: Stream, fail: Fail) -> Feature:
    """Return one entry of a declared request as a feature that has been checked."""
    if isinstance(source, Feature):
        feature = source
    elif isinstance(source, str):
        feature = Feature(_kind_of_field(where, source, events, fail), source)
    elif isinstance(source, Lookup):
        feature = Feature(cast(Kind, source.kind), source)
    else:
        returns = getattr(source, "__annotations__", {}).get("return")
        kind = _KINDS_OF_RETURNS.get(returns.__name__ if isinstance(returns, type) else str(returns))
        if kind is None:
            fail(
                where,
                "its function does not declare what it returns: wrap it in number(...), category(...) or flag(...)",
            )
        feature = Feature(kind, source)
    feature.check(where, events, fail)
    return feature


def _kind_of_field(where: str, name: str, events: Stream, fail: Fail) -> Kind:
    events.check_field(where, name, fail)
    type_ = events.types[name]
    if type_ not in AVRO_KINDS:
        fail(where, f"field {name!r} is {type_}: give a function that makes a number or a category of it")
    return AVRO_KINDS[type_]


def goes_by_hash(function: Any) -> bool:
    """Whether a function calls Python's `hash`, itself or by another one of its module.

    Of a text that is another number in each process: what a model learned of it is not what it is asked.
    """
    waiting, seen = [function], set[int]()
    while waiting:
        one = waiting.pop()
        if not isinstance(one, types.FunctionType) or id(one) in seen:
            continue
        seen.add(id(one))
        for name in _globals_of(one.__code__):
            if name == "hash" and name not in one.__globals__:
                return True
            waiting.append(one.__globals__.get(name))
    return False


def _globals_of(code: types.CodeType) -> Iterator[str]:
    yield from (step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL")
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _globals_of(inner)
