"""A value out of a list."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Any

from tidemill.rules.base import NUMBERS, TEXTS, Rule

MAX_SHOWN_VALUES = 20


def one_of(field: str, values: Iterable[Any], *, warn: bool = False) -> Rule:
    """The value is one of `values`, which are all texts, all numbers or all true and false, as the field is.

    An Enum stands for its values.

    Examples
    --------
    >>> from tidemill.testing import try_rule
    >>> try_rule(one_of("carrier", ["AA", "UA"]), {"carrier": "AA"}, {"carrier": "ZZ"})
    [True, False]
    """
    if isinstance(values, str):
        raise ValueError(f"one_of({field!r}, {values!r}): give a list of values; a text would be one of its letters")
    try:
        allowed = frozenset(value.value if isinstance(value, Enum) else value for value in values)
    except TypeError:
        raise ValueError(f"one_of({field!r}, {values!r}): give a list of texts, numbers, or true and false") from None
    if not allowed:
        raise ValueError(f"one_of({field!r}): give at least one allowed value")
    shown = ", ".join(map(str, sorted(allowed, key=str)[:MAX_SHOWN_VALUES])) + (
        ", ..." if len(allowed) > MAX_SHOWN_VALUES else ""
    )
    return Rule(
        "one_of", field, "not_allowed", "v in allowed", f"one of {shown}", names={"allowed": allowed}, warn=warn,
        types=_types(allowed),
    )  # fmt: skip


def _types(values: Iterable[Any]) -> tuple[str, ...]:
    """Return the types of fields that such values may be in: in others no value would pass."""
    kinds = {bool if isinstance(value, bool) else str if isinstance(value, str) else float for value in values}
    return {bool: ("boolean",), str: TEXTS, float: NUMBERS}[kinds.pop()] if len(kinds) == 1 else ()
