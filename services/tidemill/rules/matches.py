"""A text of a form."""

from __future__ import annotations

import re

from tidemill.rules.base import TEXTS, Rule


def matches(field: str, pattern: str, *, warn: bool = False) -> Rule:
    """The whole text matches the regular expression `pattern`.

    Examples
    --------
    >>> from tidemill.testing import try_rule
    >>> try_rule(matches("dest", "[A-Z]{3}"), {"dest": "JFK"}, {"dest": "jfk"}, {"dest": "JFKX"})
    [True, False, False]
    """
    return Rule(
        name="matches",
        field=field,
        reason="no_match",
        condition="fullmatch(v)",
        expected=f"text that matches {pattern}",
        text=f"matches {pattern}",
        names={"fullmatch": re.compile(pattern).fullmatch},
        warn=warn,
        types=TEXTS,
    )
