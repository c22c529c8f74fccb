"""A value out of a list."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tidemill.rules.base import Rule

MAX_SHOWN_VALUES = 20


def one_of(field: str, values: Iterable[Any], *, warn: bool = False) -> Rule:
    """The value is one of `values`.

    Examples
    --------
    >>> from tidemill.testing import try_rule
    >>> try_rule(one_of("carrier", ["AA", "UA"]), {"carrier": "AA"}, {"carrier": "ZZ"})
    [True, False]
    """
    allowed = frozenset(values)
    if not allowed:
        raise ValueError(f"one_of({field!r}): give at least one allowed value")
    shown = ", ".join(map(str, sorted(allowed, key=str)[:MAX_SHOWN_VALUES])) + (
        ", ..." if len(allowed) > MAX_SHOWN_VALUES else ""
    )
    return Rule(
        "one_of", field, "not_allowed", "v in allowed", f"one of {shown}", names={"allowed": allowed}, warn=warn
    )
