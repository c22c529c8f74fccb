"""All rules of a stream as one function, compiled when the pipeline is loaded: every event passes here."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NoReturn, Protocol

from tidemill.declare.stream import Stream
from tidemill.durations import FIRST_TIME_MS, LAST_TIME_MS
from tidemill.encoding import schema_files
from tidemill.encoding.times import looks_like_date
from tidemill.errors import Reject
from tidemill.limits import ID_CHARACTERS, TEXT_CHARACTERS
from tidemill.rules import LARGEST_NUMBER, Memory, Rule

#: The last day of the year 9999, in days since 1970.
LAST_DAY = LAST_TIME_MS // 86_400_000


@dataclass(frozen=True)
class RuleWarning:
    """A rule that only warns was broken."""

    rule: Rule
    value: Any
    message: str


class RuleCheck(Protocol):
    """Takes a record and the wall time in ms; returns its warnings, None where there are none. Raises Reject."""

    def __call__(self, record: Mapping[str, Any], now: float) -> list[RuleWarning] | None: ...


def compile_rules(stream: Stream, rules: Sequence[Rule]) -> RuleCheck:
    """Return the function for rules that look at one record: the declared ones, after those of every pipeline.

    Those are: floats finite and within `LARGEST_NUMBER`, the stream's time one that a calendar has, dates a number of
    days and not 20240131, its id not empty.
    """
    names: dict[str, Any] = {
        "refuse_number": _refuse_number,
        "refuse_empty": _refuse_empty,
        "refuse_time": _refuse_time,
        "refuse_date": _refuse_date,
        "looks_like_date": looks_like_date,
        "first_time": FIRST_TIME_MS,
        "last_time": LAST_TIME_MS,
        "refuse": _refuse,
        "add_warning": _add_warning,
        "lowest": -LARGEST_NUMBER,
        "largest": LARGEST_NUMBER,
    }
    lines = ["def check(record, now):", "    warnings = None"]
    types = {field["name"]: field["type"] for field in stream.valid_avro["fields"]}
    for name, kind in stream.types.items():
        check_ = ""
        if kind in ("float", "double", "decimal"):
            check_ = f"not lowest <= v <= largest: refuse_number({name!r}, v)"
        elif kind == "int" and schema_files.logical_type(types[name]) == "date":
            check_ = f"v > {LAST_DAY} and looks_like_date(v): refuse_date({name!r}, v)"
        if check_:
            if_present = "v is not None and " if schema_files.nullable(types[name]) else ""
            lines += [f"    v = record[{name!r}]", f"    if {if_present}{check_}"]
    for number, rule in enumerate(rules):
        if rule.memory is not None:
            continue
        if stream.types[rule.field] == "decimal":
            rule = rule.of_decimals()
        names |= {f"{name}_{number}": value for name, value in rule.names.items()}
        condition = _renamed(rule.condition, {name: f"{name}_{number}" for name in rule.names})
        names[f"rule_{number}"] = rule
        broken = f"warnings = add_warning(warnings, rule_{number}, v)" if rule.warn else f"refuse(rule_{number}, v)"
        lines += [f"    v = record[{rule.field!r}]"]
        can_lack = schema_files.nullable(types[rule.field])
        if not rule.nullable:
            lines += [f"    if v is None: {broken}"] if can_lack else []
        else:
            if_present = "v is not None and " if can_lack else ""
            lines += [f"    if {if_present}not ({condition}): {broken}"]
    lines += [
        f"    if record[{stream.id!r}] == '': refuse_empty({stream.id!r})",
        f"    if not first_time <= (v := record[{stream.time!r}]) <= last_time: refuse_time({stream.time!r}, v)",
        "    return warnings",
    ]
    exec("\n".join(lines), names)  # noqa: S102  made of the declaration alone, and of field names as literals
    check: RuleCheck = names["check"]
    return check


def text_check(stream: Stream, entities: Collection[str]) -> Callable[[Mapping[str, Any]], None]:
    """Return what refuses a record with a text that is too long; ids, which become keys, may be shorter than others."""
    ids = {stream.id, stream.key, *entities}
    fields = [
        (name, ID_CHARACTERS if name in ids else TEXT_CHARACTERS)
        for name, kind in stream.types.items()
        if kind in ("string", "bytes")
    ]

    def check(record: Mapping[str, Any]) -> None:
        for name, limit in fields:
            value = record[name]
            if value is not None and len(value) > limit.max:
                message = limit.excess(len(value), repr(name))
                raise Reject("too_long", message, rule="length", field=name, value=value)

    return check


def _renamed(condition: str, names: Mapping[str, str]) -> str:
    """Return an expression whose names were replaced."""
    tree = ast.parse(condition, mode="eval")
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in names:
            node.id = names[node.id]
    return ast.unparse(tree)


class RuleState:
    """The rules of a stream that remember, for one partition."""

    def __init__(self, stream: Stream, rules: Sequence[Rule]) -> None:
        self._time = stream.time
        self._memories: list[tuple[Rule, Memory]] = [(rule, rule.memory()) for rule in rules if rule.memory is not None]

    def __bool__(self) -> bool:
        return bool(self._memories)

    def check(self, record: Mapping[str, Any], offset: int) -> list[RuleWarning] | None:
        """Return the record's warnings, and remember it. Raises Reject; then nothing is remembered."""
        time, warnings = record[self._time], None
        for rule, memory in self._memories:
            value = record[rule.field]
            expected = None if value is None else memory.check(value, record, time)
            if expected is not None:
                if not rule.warn:
                    _refuse(rule, value, expected)
                warnings = _add_warning(warnings, rule, value, expected)
        for rule, memory in self._memories:
            if (value := record[rule.field]) is not None:
                memory.add(value, record, time, offset)
        return warnings

    def begin(self) -> int | None:
        """Return the first offset that is still needed to remember all this; None where nothing is remembered."""
        begins = (memory.begin() for _, memory in self._memories)
        return min((begin for begin in begins if begin is not None), default=None)


def _message(rule: Rule, value: Any, expected: str = "") -> str:
    if value is None:
        return f"field {rule.field!r} has no value"
    others = f" (with {', '.join(rule.also)})" if rule.also else ""
    shown = f"{value}" if isinstance(value, Decimal) else repr(value)
    return f"field {rule.field!r}{others} is {shown} where {expected or rule.expected} was expected"


def _refuse(rule: Rule, value: Any, expected: str = "") -> NoReturn:
    raise Reject(rule.reason, _message(rule, value, expected), rule=rule.name, field=rule.field, value=value)


def _add_warning(warnings: list[RuleWarning] | None, rule: Rule, value: Any, expected: str = "") -> list[RuleWarning]:
    return [*(warnings or ()), RuleWarning(rule, value, _message(rule, value, expected))]


def _refuse_empty(name: str) -> NoReturn:
    raise Reject("missing_value", f"field {name!r} is empty", rule="id", field=name)


def _refuse_time(name: str, value: int) -> NoReturn:
    message = f"field {name!r} is {value} where a time of the years 1 to 9999, in milliseconds since 1970, was expected"
    raise Reject("implausible_time", message, rule="calendar", field=name, value=value)


def _refuse_date(name: str, value: int) -> NoReturn:
    message = f"field {name!r} is {value} where a number of days since 1970, or text as 2024-01-31, was expected"
    raise Reject("implausible_time", message, rule="calendar", field=name, value=value)


def _refuse_number(name: str, value: float) -> NoReturn:
    if math.isfinite(value):
        reason, rule, expected = "out_of_range", "magnitude", f"a number from {-LARGEST_NUMBER:g} to {LARGEST_NUMBER:g}"
    else:
        reason, rule, expected = "not_finite", "finite", "a finite number"
    raise Reject(reason, f"field {name!r} is {value} where {expected} was expected", rule=rule, field=name, value=value)
