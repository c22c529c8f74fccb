"""A text of a form."""

from __future__ import annotations

import re

import re2

from tidemill import limits
from tidemill.rules.base import TEXTS, Rule

#: What Python's patterns have and RE2's have not, or read otherwise, and what to write instead.
_INSTEAD = (
    (r"\(\?<?[=!]", "RE2 has no look-around, which takes time without bound: use `holds` with a function"),
    (
        r"\\[1-9]|\(\?P=|\(\?\(",
        "RE2 has no back-references, which take time without bound: use `holds` with a function",
    ),
    (r"\(\?>|[*+?}]\+", "possessive and atomic groups are not needed, for RE2 never goes back: leave them out"),
    (r"\{,\d+\}", "RE2 reads {,n} as text: write {0,n}"),
    (r"\\Z", "the pattern is held to the whole text: leave \\Z out"),
    (r"\\[uUN]", "write the character itself, or its number as in \\x{20AC}"),
    (r"\(\?[imsU-]*[aLux]", "the flags are i, m and s, and digits, words and spaces are ASCII anyway"),
)
_SYNTAX = "see https://github.com/google/re2/wiki/Syntax, or use `holds` with a function"


def matches(field: str, pattern: str, *, warn: bool = False) -> Rule:
    r"""The whole text matches the regular expression `pattern`, in the syntax of RE2.

    RE2 takes time proportional to the text whatever the pattern, so no text can hold up a stream. It has no
    back-references and no look-around. `\d`, `\w`, `\s` and `\b` are ASCII; `\pL` is any letter.

    Raises ValueError where RE2 does not take the pattern.

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
        names={"fullmatch": _compiled(field, pattern).Match},
        warn=warn,
        types=TEXTS,
    )


def _compiled(field: str, pattern: str) -> re2.Set:
    """Return the pattern as a set of one: of RE2's forms the one that asks only whether a text matches, and fastest."""
    if not isinstance(pattern, str):
        raise ValueError(f"matches({field!r}, {pattern!r}): a pattern is text")
    options = re2.Options()
    options.max_mem, options.log_errors = limits.PATTERN_BYTES.max, False
    why = "it means something else to RE2" if re.search(r"\{,\d+\}", pattern) else ""
    try:
        re2.compile(pattern, options)
        compiled = re2.Set.FullMatchSet(options)
        compiled.Add(pattern)
        compiled.Compile()
    except UnicodeError as error:
        why = str(error)
    except re2.error as error:
        (cause,) = error.args  # bytes, or text where the set did not compile: there is no memory for its states
        why = cause.decode(errors="replace") if isinstance(cause, bytes) else "pattern too large"
    if not why:
        return compiled
    if "too large" in why:
        why, fix = f"it takes more than {limits.PATTERN_BYTES.max:,} bytes of memory", "make its counts smaller"
    else:
        fix = next((fix for form, fix in _INSTEAD if re.search(form, pattern)), _SYNTAX)
    raise ValueError(f"matches({field!r}, {pattern!r}): RE2 can't take this pattern: {why}; {fix}")
