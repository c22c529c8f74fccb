"""What a rule is made of: a condition on a field's value, or a memory of what came before.

A new rule is a file here with a function that returns a `Rule`, its line in `__init__.py`, and its examples in
tests/contracts/test_rules.py. One that only a single pipeline needs can be `holds`, with a function of that pipeline's
file.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property, partial
from typing import Any, Protocol

from tidemill.durations import moment

#: How far a stream's time may lie ahead of this machine's clock, at most; `Pipeline.future_tolerance` may be shorter.
FUTURE_TOLERANCE = "1h"

#: A stream's time that is a plain number, or in micros or nanos, is refused outside, unless the declaration has a
#: `plausible` or a `not_before` of its own: seconds where milliseconds were expected lie in January 1970, microseconds
#: in the year 55,000.
PLAUSIBLE_TIMES = ("1971-01-01", "2100-01-01")
#: Where seconds of this century lie if they are taken for milliseconds.
SECONDS_AS_MILLIS = (moment("2000-01-01") // 1_000, moment("2100-01-01") // 1_000)

NUMBERS = ("int", "long", "float", "double", "decimal")
TEXTS = ("string", "enum")


class Memory(Protocol):
    """What a rule remembers of one partition; times are the stream's own, in ms."""

    def check(self, value: Any, record: Mapping[str, Any], time: int) -> str | None:
        """Return None where the value is fine, else what was expected. Nothing is remembered yet."""

    def add(self, value: Any, record: Mapping[str, Any], time: int, offset: int) -> None:
        """Remember the value of a record that passed every rule."""

    def begin(self) -> int | None:
        """Return the offset of the first record that is still remembered; None where nothing is."""


@dataclass(frozen=True)
class Rule:
    """One declared rule.

    Parameters
    ----------
    name
        The function's name, in counts and dead letters.
    field
        The field it looks at; "" for the record.
    reason
        The word that its rejects carry.
    condition
        A Python expression that is true where the value is fine, over `v` (the value, never None), `record`, `now`
        (wall time in ms) and what `names` has. It is compiled into one function for all rules of a stream.
    names
        What the condition refers to, by name.
    expected
        What was expected, for the message.
    text
        The rule in words, where `expected` is not enough.
    nullable
        Whether a missing value passes.
    warn
        Only warn: the record is accepted, counted and marked.
    types
        Primitive Avro types that the field may have; empty: any plain one.
    also
        Other fields that it looks at.
    memory
        Makes the memory of one partition, for a rule that needs more than the record.
    """

    name: str
    field: str
    reason: str
    condition: str
    expected: str
    text: str = ""
    names: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)
    nullable: bool = True
    warn: bool = False
    types: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    memory: Callable[[], Memory] | None = dataclasses.field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.field, str):
            raise ValueError(f"{self.name}: {self.field!r} where the name of a field was expected")
        if not isinstance(self.warn, bool):
            raise ValueError(f"{self.name}({self.field!r}): warn={self.warn!r} where True or False was expected")

    @cached_property
    def passes(self) -> Callable[[Any], Any]:
        """The condition as a function of a value that is not None; for rules that look at one value alone."""
        function: Callable[[Any], Any] = eval(f"lambda v: {self.condition}", dict(self.names))  # noqa: S307  its own
        return function

    def of_decimals(self) -> Rule:
        """Return the rule for a decimal field: 0.1 in the declaration is then a tenth, not the float beside it."""
        return dataclasses.replace(self, names={name: _exact(value) for name, value in self.names.items()})

    @property
    def description(self) -> str:
        """The rule in words, and whether it only warns."""
        return f"{self.text or self.expected}{' (warns)' if self.warn else ''}"

    def __str__(self) -> str:
        return f"{self.name}:{self.field}" if self.field else self.name


def why_not_asked(function: Callable[..., Any]) -> str:
    """Return why a function has no answer when it is called with one record; empty where it may have one."""
    called = function if inspect.isroutine(function) or isinstance(function, partial) else type(function).__call__
    if inspect.iscoroutinefunction(called) or inspect.isasyncgenfunction(called):
        return "its function is async, and has no answer when it is called: declare it with def alone"
    if inspect.isgeneratorfunction(called):
        return "its function yields, and has no answer when it is called: have it return one"
    try:
        inspect.signature(function).bind({})
    except TypeError as error:
        return f"its function is called with one record: {error}"
    except ValueError:  # of a class of C's, which says nothing of its arguments
        return ""
    return ""


def _exact(value: Any) -> Any:
    if isinstance(value, float):
        return Decimal(repr(value))
    return frozenset(map(_exact, value)) if isinstance(value, frozenset) else value
