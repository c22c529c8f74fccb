"""Patterns of `rules.matches`: what they mean, beside Python's, and that no text and no pattern costs without bound."""

from __future__ import annotations

import re
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill import limits, load, rules
from tidemill.errors import DeclarationError

#: What both Python's `re` and RE2 have: no classes such as \\d, which are ASCII in RE2; `$` is no literal here.
CHARACTERS = st.one_of(
    st.sampled_from("aAbB19_ .-/\n\t\0é€𝒳ßſİ"), st.characters(exclude_categories=("Cs",), exclude_characters="$")
)
LITERALS = CHARACTERS.map(re.escape)
SETS = st.builds(
    lambda negated, items: f"[{'^' if negated else ''}{''.join(items)}]",
    st.booleans(),
    st.lists(st.sampled_from(["a-z", "A-Z", "0-9", r"\n", r"\-", "_", "é", "€", r"\]"]), min_size=1, max_size=4),
)
ATOMS = st.one_of(LITERALS, SETS, st.sampled_from([".", "^", "$", r"\A", r"\t", r"\x41", ""]))
COUNTS = st.sampled_from(["*", "+", "?", "{2}", "{0,3}", "{1,}", "*?", "+?", "??", "{1,2}?"])


def _composed(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.builds("{}{}".format, inner, inner),
        st.builds("(?:{}|{})".format, inner, inner),
        st.builds("({})".format, inner),
        st.builds("(?P<name>{})".format, LITERALS),
        st.builds("(?i:{})".format, st.sampled_from(["abc", "[a-c]", "1"])),
        st.builds("(?s:{})".format, st.just(".")),
        st.builds("(?:{}){}".format, inner, COUNTS),
    )


PATTERNS = st.recursive(ATOMS, _composed, max_leaves=8)
TEXTS = st.one_of(st.text(CHARACTERS, max_size=12), st.text("abAB1", max_size=12))


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(PATTERNS, TEXTS)
def test_a_pattern_of_the_common_subset_means_what_it_means_to_python(pattern: str, text: str) -> None:
    """But for `$` before a last line feed: Python's holds there, RE2's only at the end."""
    try:
        expected = re.compile(pattern.replace("$", r"\Z"))
    except re.error:  # two groups of one name
        return
    passes = rules.matches("field", pattern).passes(text)
    assert bool(passes) == (expected.fullmatch(text) is not None)


@pytest.mark.parametrize(
    ("pattern", "passes", "fails"),
    [
        (r"\d+", "12", "١٢"),
        (r"\p{Nd}+", "١٢", "XII"),
        (r"\w+", "ab_1", "é"),
        (r"[\pL_]+", "é_", "1"),
        (r"a\sb", "a\tb", "a\u00a0b"),
        (r".+", "a b", "a\nb"),
        (r"(?s).+", "a\nb", ""),
        (r"(?i)straße", "STRAßE", "STRASSE"),
        (r"a$", "a", "a\n"),
        (r"", "", " "),
        (r"\x{20AC}", "€", "$"),
    ],
)
def test_classes_are_ascii_and_the_whole_text_is_matched(pattern: str, passes: str, fails: str) -> None:
    rule = rules.matches("field", pattern)
    assert rule.passes(passes)
    assert not rule.passes(fails)


@pytest.mark.parametrize(
    ("pattern", "mend"),
    [
        (r"(a)\1", "RE2 has no back-references, which take time without bound: use `holds` with a function"),
        (r"(?P<x>a)(?P=x)", "no back-references"),
        (r"(a)?(?(1)b|c)", "no back-references"),
        (r"(?=a).", "RE2 has no look-around, which takes time without bound: use `holds` with a function"),
        (r"(?!a).", "no look-around"),
        (r"(?<=a)b", "no look-around"),
        (r"(?<!a)b", "no look-around"),
        (r"a++", "leave them out"),
        (r"(?>a+)b", "leave them out"),
        (r"a{,3}", "RE2 reads {,n} as text: write {0,n}"),
        (r"a\Z", r"leave \Z out"),
        (r"\u20ac", r"\x{20AC}"),
        (r"\N{EURO SIGN}", r"\x{20AC}"),
        (r"(?x) a", "the flags are i, m and s"),
        (r"(?a)\d", "the flags are i, m and s"),
        (r"(", "google/re2/wiki/Syntax"),
        (r"[b-a]", "google/re2/wiki/Syntax"),
        ("a{1001}", "google/re2/wiki/Syntax"),
        ("\ud800", "surrogates not allowed"),
        (r"\pL{1,500}", "it takes more than 8,388,608 bytes of memory; make its counts smaller"),
    ],
)
def test_check_refuses_a_pattern_that_re2_does_not_take_with_the_reason_and_what_to_do(
    pattern: str, mend: str, tmp_path: Path
) -> None:
    file = tmp_path / "pipeline.py"
    file.write_text(f"from tidemill import rules\nRULES = [\n    rules.matches('dest', {pattern!r}),\n]\n")
    with pytest.raises(DeclarationError) as refused:
        load(str(file))
    message = str(refused.value)
    assert "line 3" in message
    assert f"matches('dest', {pattern!r}): RE2 can't take this pattern" in message
    assert mend in message


def test_a_pattern_is_text() -> None:
    with pytest.raises(ValueError, match="a pattern is text"):
        rules.matches("dest", 5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+b", "(a|a)*b", "(a|aa)+b", "(.*a){20}€", "((a*)*)*b", r"(\w+\s?)*:", "(x+x+)+y", "(a|b)*a(a|b){15}c"],
)
def test_a_bad_text_takes_time_in_proportion_to_its_length(pattern: str) -> None:
    """A megabyte, the longest message; Python's `re` took 10 s for 28 characters, and four times more for each two."""
    passes = rules.matches("field", pattern).passes
    for text in ("a" * limits.MESSAGE_BYTES.max, "ab" * (limits.MESSAGE_BYTES.max // 2), string.printable * 10_000):
        assert not passes(text)


def test_a_pattern_as_large_as_its_limit_is_taken_and_compiled_within_it() -> None:
    assert rules.matches("field", "[A-Za-z0-9]{1000}").passes("x" * 1000)
