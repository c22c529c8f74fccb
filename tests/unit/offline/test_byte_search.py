"""Ids are found in whatever bytes they are, and in no other id."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.encoding.codec import Codec
from tidemill.offline.byte_search import ByteSearch

IDS = st.text(st.characters(codec="ascii", categories=("Lu", "Nd")), min_size=4, max_size=80)
CODEC = Codec({"type": "record", "name": "R", "fields": [{"name": n, "type": "string"} for n in ("a", "b", "c")]})


@given(IDS, st.text(max_size=70), st.text(max_size=70))
def test_an_id_is_found_in_avro_json_keys_and_python_text(id_: str, before: str, after: str) -> None:
    search = ByteSearch([id_, "another id"])
    record = {"a": before, "b": id_, "c": after}
    for data in (CODEC.encode(record), json.dumps(record).encode(), f"tailnum:{id_}".encode(), repr(record).encode()):
        assert search.holds(data)
        assert search.among([b"", data, b"N1", data]) == [1, 3]


@given(IDS.filter(lambda id_: len(id_) < 16))  # of longer ones, what Avro writes before them is a character of text
def test_an_id_is_not_found_in_a_longer_one(id_: str) -> None:
    search = ByteSearch([id_])
    assert not search.holds(f" {id_}X X{id_} {id_}_".encode())
    assert search.holds(f"{id_}X {id_}".encode())


@pytest.mark.parametrize("data", [b"", b"a", b"abc", b"\0" * 9])
def test_what_is_too_short_or_empty_holds_nothing(data: bytes) -> None:
    search = ByteSearch(["abc", "", "JFK1"])
    assert search.too_short == ["", "abc"]
    assert not search.holds(data)
    assert not ByteSearch([]).holds(b"JFK1 JFK1")
