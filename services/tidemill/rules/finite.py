"""A number that is one."""

from __future__ import annotations

from tidemill.rules.base import NUMBERS, Rule


def finite(field: str, *, warn: bool = False) -> Rule:
    """Neither NaN nor infinite. Every float field is checked anyway; this rule makes it visible.

    Examples
    --------
    >>> from tidemill.testing import try_rule
    >>> try_rule(finite("temp"), {"temp": 21.5}, {"temp": float("nan")}, {"temp": float("inf")})
    [True, False, False]
    """
    return Rule("finite", field, "not_finite", "v - v == 0", "a finite number", "finite", warn=warn, types=NUMBERS)
