"""A value that is not missing."""

from __future__ import annotations

from tidemill.rules.base import Rule


def not_null(field: str, *, warn: bool = False) -> Rule:
    """The field has a value, although its schema would allow null.

    Examples
    --------
    >>> from tidemill.testing import try_rule
    >>> try_rule(not_null("temp"), {"temp": 0.0}, {"temp": None})
    [True, False]
    """
    return Rule("not_null", field, "missing_value", "True", "a value", "not null", nullable=False, warn=warn)
