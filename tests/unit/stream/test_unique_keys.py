"""Keys that are each record's own: no other has one, and the natural key comes back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tidemill.stream.unique_keys import UniqueKeys, is_unique, may_be_among, natural


@given(st.text())
def test_the_natural_key_comes_back_and_no_text_is_taken_for_a_unique_key(text: str) -> None:
    key = text.encode()
    assert not is_unique(key)
    assert natural(key) == key
    unique = UniqueKeys()(key)
    assert is_unique(unique)
    assert natural(unique) == (key or None)


def test_no_two_keys_are_equal() -> None:
    first, second = UniqueKeys(), UniqueKeys()
    keys = [make(b"JFK") for make in (first, second) for _ in range(10_000)]
    assert len(set(keys)) == len(keys)
    assert natural(first(None)) is None
    assert not is_unique(None)
    assert natural(None) is None


@given(st.lists(st.none() | st.binary(max_size=20), max_size=5), st.booleans(), st.integers(0, 5))
def test_one_among_others_is_never_passed_over(keys: list[bytes | None], is_made: bool, place: int) -> None:
    if is_made:
        keys.insert(place, UniqueKeys()(b"JFK"))
    assert may_be_among(keys) >= any(map(is_unique, keys))
