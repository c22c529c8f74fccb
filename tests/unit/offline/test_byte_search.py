"""Ids are found in whatever bytes they are, and in no other id."""

from __future__ import annotations

import io
import json
import pickle
import struct

import fastavro
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.encoding.codec import Codec
from tidemill.offline.byte_search import ByteSearch, VectorSearch

IDS = st.text(st.characters(codec="ascii", categories=("Lu", "Nd")), min_size=4, max_size=80)  # codespell:ignore nd
CODEC = Codec({"type": "record", "name": "R", "fields": [{"name": n, "type": "string"} for n in ("a", "b", "c")]})


@pytest.mark.slow
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


class TestVectors:
    NUMBERS = (39.02, 1400.0, -0.5, 6.9049)

    def encoded(self) -> dict[str, bytes]:
        named = {f"feature_{index}": x for index, x in enumerate(self.NUMBERS)}
        schema = {"type": "record", "name": "V", "fields": [{"name": n, "type": ["null", "double"]} for n in named]}
        avro = io.BytesIO()
        fastavro.schemaless_writer(avro, fastavro.parse_schema(schema), named)
        return {
            "Avro": avro.getvalue(), "array": np.array(self.NUMBERS).tobytes(),
            "from the other end": np.array(self.NUMBERS, ">f8").tobytes(), "JSON": json.dumps(named).encode(),
            "JSON of others": json.dumps(named | {"feature_1": 1400}, separators=(",", ":")).encode(),
            "Python": repr(named).encode(), "pickle": pickle.dumps(named), "old pickle": pickle.dumps(list(self.NUMBERS), protocol=2),
            "a window of a model": pickle.dumps([{"other": 1.25}, named, {"other": 2.25}]),
        }  # fmt: skip

    def test_it_is_found_in_each_encoding_wherever_it_stands(self) -> None:
        search = VectorSearch([(7.1, 8.3), self.NUMBERS])
        for kind, data in self.encoded().items():
            for shift in range(9):
                items = [b"x" * 50, b"y" * shift + data + b"z" * 30, b""]
                assert search.among(items) == {(1, 1)}, kind

    def test_what_has_all_of_its_numbers_but_one_or_has_them_far_apart_is_none(self) -> None:
        search = VectorSearch([self.NUMBERS])
        for index in range(4):
            changed = [x + (0.001 if index == at else 0) for at, x in enumerate(self.NUMBERS)]
            assert search.among([json.dumps(changed).encode(), np.array(changed).tobytes()]) == set()
        far = json.dumps(self.NUMBERS[:2]).encode() + b" " * 500 + json.dumps(self.NUMBERS[2:]).encode()
        assert search.among([far]) == set()
        parts = [json.dumps(self.NUMBERS[:2]).encode(), json.dumps(self.NUMBERS[2:]).encode()]
        assert search.among(parts) == set(), "two records are not one"

    def test_of_vectors_with_the_same_rare_number_each_is_told(self) -> None:
        search = VectorSearch([(39.02, 1.0), (39.02, 2.0), (3.0, 0.25), ()])
        assert search.too_plain == 2
        assert search.among([np.array([2.0, 39.02]).tobytes(), np.array([39.02, 1.0]).tobytes()]) == {(0, 1), (1, 0)}

    def test_one_of_small_whole_numbers_is_found_as_a_whole(self) -> None:
        plain = [
            (1.0, 0.0, 3.0, 12.0, 0.0),
            (1.0, 0.0, 3.0, 12.0, 1.0),
            (2.0, 5.0, 0.0, 1.0, 1.0),
            (0.0, 7.0, 0.0, 1.0),
        ]
        bodies = [b"".join(b"\x02" + struct.pack("<d", x) for x in vector) for vector in plain]
        search = VectorSearch(plain, bodies)
        assert search.too_plain == 1
        for index, body in enumerate(bodies[:3]):
            rows = [np.array(plain[index]).tobytes(), np.array(plain[index], ">f8").tobytes(), body]
            for shift in range(9):
                items = [b"y" * shift + row + b"z" * 30 for row in rows]
                assert search.among(items) == {(0, index), (1, index), (2, index)}
                assert search.among([row[:-1] + b"!" for row in rows] + [b"\0" + row[1:-1] for row in rows]) == set()
        assert search.among([np.array([x for vector in plain for x in vector[::-1]]).tobytes()]) == set()
