"""Anything that one record says by itself: what fields say of each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from tidemill.rules.base import Rule, why_not_asked


def holds(predicate: Callable[[Mapping[str, Any]], Any], *fields: str, that: str, warn: bool = False) -> Rule:
    """`predicate(record)` is true.

    As in `holds(lambda e: e["origin"] != e["dest"], "origin", "dest", that="it goes elsewhere")`.

    `fields` are those that it looks at; where one of them has no value it is not asked. `that` says in words what is
    expected. A predicate that raises does not hold.

    Examples
    --------
    >>> from tidemill.testing import try_rule
    >>> elsewhere = holds(lambda e: e["origin"] != e["dest"], "origin", "dest", that="it goes elsewhere")
    >>> try_rule(elsewhere, {"origin": "JFK", "dest": "BOS"}, {"origin": "JFK", "dest": "JFK"})
    [True, False]
    """
    if not fields or not that:
        raise ValueError("holds(...): name the fields that the predicate looks at, and what is expected, as that='...'")

    if why := why_not_asked(predicate):
        raise ValueError(f"holds(...): {why}")

    def true(record: Mapping[str, Any]) -> bool:
        try:
            return bool(predicate(MappingProxyType(record)))
        except Exception:  # a declaration's own function may raise anything
            return False

    all_present = " and ".join(f"record[{name!r}] is not None" for name in fields[1:])
    return Rule(
        name="holds",
        field=fields[0],
        reason="does_not_hold",
        condition=f"not ({all_present}) or true(record)" if all_present else "true(record)",
        expected=that,
        names={"true": true},
        warn=warn,
        also=fields[1:],
    )
