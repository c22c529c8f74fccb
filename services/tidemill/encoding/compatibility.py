"""Is a change of a schema safe? Confluent's compatibility levels, judged by Apache Avro's own checker.

Backward: the new schema reads what the earlier ones wrote, so consumers are deployed first. Forward: the earlier ones
read what the new one writes, so producers may go first. Full: both. `_TRANSITIVE`: not the last version alone, but all.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import avro.schema
from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType

from tidemill.encoding.resolution import mismatches, other_unit, unreadable
from tidemill.encoding.schema_limits import unsafe
from tidemill.errors import SettingsError

_FIXES = {
    ("backward", "missing"): "give it a default in the new schema, as null for a type that may be null",
    ("backward", "type"): (
        "keep the type, or one that it can be promoted to (int, long, float, double); or add a field of another name"
    ),
    ("backward", "symbol"): "keep the symbol, or give the enum a default",
    ("backward", "name"): "keep the name, or give the new one the old one as an alias",
    ("forward", "missing"): "keep the field: readers with the earlier schema need it",
    ("forward", "type"): "keep the type, or one that can be promoted to it; or add a field of another name",
    ("forward", "symbol"): "leave the symbol out until all readers know it",
    ("forward", "name"): "keep the name",
}


@dataclass(frozen=True)
class Problem:
    """One thing that does not fit one earlier version, and what to do about it."""

    version: str
    direction: str
    field: str
    why: str
    fix: str


@dataclass(frozen=True)
class Verdict:
    """The result of `check`: `problems` with earlier versions; `unreadable`: why the pipeline can't read it."""

    level: str
    versions: Sequence[str]
    problems: Sequence[Problem]
    unreadable: str

    @property
    def is_safe(self) -> bool:
        """Whether producers may use the new schema now."""
        return not self.problems and not self.unreadable

    def as_dict(self) -> dict[str, Any]:
        """Return the verdict for programs."""
        return {**dataclasses.asdict(self), "safe": self.is_safe}


def check(
    new: Any,
    declared: Any,
    earlier: Mapping[str, Any],
    level: str,
    units: Mapping[str, str] = MappingProxyType({}),
) -> Verdict:
    """Judge the schema `new` against the earlier ones, oldest first, and against the one that a pipeline declares.

    `units` are what the declared one's numbers count where it does not say it, by field.

    Raises SettingsError where one is no Avro schema.
    """
    against = dict(earlier) if level.endswith("_TRANSITIVE") else dict(list(earlier.items())[-1:])
    against = {} if level == "NONE" else against
    _parsed(new)
    problems = [problem for name, avro_ in against.items() for problem in _problems(name, avro_, new, level)]
    why = unsafe(new) or unreadable(new, declared) or other_unit(new, declared, units) or ""
    return Verdict(level, tuple(against), problems, str(why))


def _problems(name: str, earlier: Any, new: Any, level: str) -> Iterator[Problem]:
    if not level.startswith("FORWARD"):
        yield from _direction("backward", name, writer=earlier, reader=new)
    if not level.startswith("BACKWARD"):
        yield from _direction("forward", name, writer=new, reader=earlier)


def _direction(direction: str, name: str, writer: Any, reader: Any) -> Iterator[Problem]:
    reason = _by_apache(writer, reader)
    if not reason:
        return
    for mismatch in mismatches(writer, reader):
        yield Problem(name, direction, mismatch.field, mismatch.why, _FIXES[direction, mismatch.kind])
        reason = ""
    if reason:
        yield Problem(name, direction, "", reason, "keep to what the earlier version has")


def _by_apache(writer: Any, reader: Any) -> str:
    """Return what Apache Avro finds incompatible; nothing where the schemas are compatible."""
    result = ReaderWriterCompatibilityChecker().get_compatibility(_parsed(reader), _parsed(writer))
    if result.compatibility is SchemaCompatibilityType.compatible:
        return ""
    return "; ".join(sorted(result.messages)) or "incompatible"


def _parsed(schema: Any) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # logical types that it does not know
            return avro.schema.parse(json.dumps(schema))
    except Exception as error:  # its errors have no one class
        raise SettingsError(f"{str(schema)[:60]}...: no Avro schema: {error}") from error
