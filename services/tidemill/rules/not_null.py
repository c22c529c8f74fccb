"""A value that is there."""

from __future__ import annotations

from tidemill.rules.base import Rule


def not_null(field: str, *, warn: bool = False) -> Rule:
    """The field has a value, although its schema would allow null."""
    return Rule("not_null", field, "missing_value", "True", "a value", "not null", nullable=False, warn=warn)
