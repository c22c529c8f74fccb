"""JSON carries what Avro carries: whatever Avro's own JSON encoding writes is read as the record that was written."""

from __future__ import annotations

import base64
import io
import json
from decimal import Decimal
from typing import Any

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.encoding import json_schema, json_values
from tidemill.encoding.codec import HEADER, Codec
from tidemill.errors import Reject
from tidemill.stages.validator.decode import Decoder

PRIMITIVES = {
    "boolean": st.booleans(),
    "int": st.integers(-(2**31), 2**31 - 1),
    "long": st.integers(-(2**63), 2**63 - 1),
    "double": st.floats(allow_nan=False, allow_infinity=False),
    "string": st.text(max_size=5),
    "bytes": st.binary(max_size=5),
}


class Names:
    """Names for the types of one schema, in several namespaces."""

    def __init__(self, draw: Any) -> None:
        self.draw, self.known, self.count = draw, {}, 0

    def new(self) -> dict[str, str]:
        self.count += 1
        return {"name": f"T{self.count}", "namespace": self.draw(st.sampled_from(["root", "a", "b.c"]))}

    def take(self, avro: dict[str, Any], values: Any) -> tuple[Any, Any]:
        self.known[f"{avro['namespace']}.{avro['name']}"] = values
        return avro, values


@st.composite
def schemas(draw: Any) -> tuple[dict[str, Any], Any]:
    """A record schema, and a strategy for its records."""
    names = Names(draw)

    def of_type(depth: int) -> tuple[Any, Any]:
        kinds = [*PRIMITIVES, "enum", "fixed", "nullable", *(["known"] if names.known else [])]
        kind = draw(st.sampled_from(kinds + (["array", "map", "record", "union"] if depth < 3 else [])))
        if kind in PRIMITIVES:
            return kind, PRIMITIVES[kind]
        if kind == "enum":
            return names.take({"type": "enum", **names.new(), "symbols": ["A", "B"]}, st.sampled_from(["A", "B"]))
        if kind == "fixed":
            return names.take({"type": "fixed", **names.new(), "size": 3}, st.binary(min_size=3, max_size=3))
        if kind == "known":
            name = draw(st.sampled_from(sorted(names.known)))
            return name, names.known[name]
        if kind == "nullable":
            inner = draw(st.sampled_from([*PRIMITIVES]))
            return ["null", inner], st.none() | PRIMITIVES[inner]
        if kind == "union":
            return ["null", "string", "boolean", {"type": "array", "items": "long"}], (
                st.none() | st.text(max_size=3) | st.booleans() | st.lists(PRIMITIVES["long"], max_size=2)
            )
        if kind == "record":
            return record(depth + 1)
        inner, values = of_type(depth + 1)
        if kind == "array":
            return {"type": "array", "items": inner}, st.lists(values, max_size=3)
        return {"type": "map", "values": inner}, st.dictionaries(st.text(min_size=1, max_size=3), values, max_size=3)

    def record(depth: int) -> tuple[Any, Any]:
        head = names.new()
        fields = {f"f{index}": of_type(depth) for index in range(draw(st.integers(1, 4)))}
        avro = {"type": "record", **head, "fields": [{"name": name, "type": t} for name, (t, _) in fields.items()]}
        return avro, st.fixed_dictionaries({name: values for name, (_, values) in fields.items()})

    return record(0)


@pytest.mark.slow
@given(st.data())
def test_what_avros_json_encoding_writes_is_read_as_it_was(data: Any) -> None:
    avro, values = data.draw(schemas())
    record = data.draw(values)
    out = io.StringIO()
    fastavro.json_writer(out, fastavro.parse_schema(avro), [record])
    text = json.loads(out.getvalue())
    assert json_values.record_of(json_values.fields_of(avro), text, "", "T") == record


SCHEMA = {
    "type": "record", "name": "n.Order", "fields": [
        {"name": "tags", "type": {"type": "array", "items": "string"}},
        {"name": "by", "type": {"type": "map", "values": "long"}, "default": {}},
        {"name": "to", "type": {"type": "record", "name": "Place", "fields": [
            {"name": "zip", "type": "int"}, {"name": "city", "type": ["null", "string"], "default": None}]}},
        {"name": "was", "type": {"type": "enum", "name": "Kind", "symbols": ["card", "cash"]}},
        {"name": "now", "type": "Kind"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "raw", "type": "bytes", "default": "\u00ff"},
        {"name": "from", "type": ["null", "n.Place"], "default": None},
    ],
}  # fmt: skip
ORDER = {
    "tags": ["a", "b"], "by": {"x": 1}, "to": {"zip": 4}, "was": "card", "now": "cash", "at": 1_700_000_000_000, "raw": "\u00ff\u0000",
}  # fmt: skip
READ = ORDER | {"to": {"zip": 4, "city": None}, "raw": b"\xff\0", "from": None}


@pytest.mark.parametrize(
    ("change", "read"),
    [
        ({}, {}),
        ({"at": "2023-11-14T22:13:20Z"}, {}),
        ({"at": "2023-11-14T23:13:20+01:00"}, {}),
        ({"at": "2023-11-14T22:13:20"}, {}),
        ({"from": {"zip": 5}}, {"from": {"zip": 5, "city": None}}),
        ({"from": {"n.Place": {"zip": 5}}}, {"from": {"zip": 5, "city": None}}),
        ({"to": {"zip": 4, "city": {"string": "Jena"}}}, {"to": {"zip": 4, "city": "Jena"}}),
    ],
)
def test_an_object_is_read_as_its_record(change: dict[str, Any], read: dict[str, Any]) -> None:
    assert json_values.record_of(json_values.fields_of(SCHEMA), ORDER | change, "", "n.Order") == READ | read


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tags": "a"}, "field 'tags' is 'a' (string) where an array was expected"),
        ({"tags": ["a", 2]}, "field 'tags[1]' is 2 (int) where string was expected"),
        ({"by": {"x": 1.5}}, "field 'by.x' is 1.5 (float) where long was expected"),
        ({"by": {"x": True}}, "field 'by.x' is True (boolean) where long was expected"),
        ({"to": {"zip": 2**31}}, "field 'to.zip' is 2147483648 (int) where int was expected"),
        ({"to": {}}, "field 'to.zip' is missing"),
        ({"to": {"zip": 1, "zap": 2}}, "field 'to.zap' is not in n.Place"),
        ({"to": None}, "field 'to' is None (null) where an object was expected"),
        ({"from": {"zip": "x"}}, "field 'from.zip' is 'x' (string) where int was expected"),
        ({"from": 3}, "field 'from' is 3 (int) where null or record was expected"),
        ({"now": "card "}, "field 'now' is 'card ' (string) where enum (card, cash) was expected"),
        ({"raw": "\u0100"}, "field 'raw' is 'Ā' (string) where bytes was expected, one character each"),
        ({"at": "yesterday"}, "field 'at' is 'yesterday' (string) where long was expected, or an ISO 8601 time"),
        ({"at": "x" * 999}, "xxx... (string) where long was expected"),
        ({"more": 1}, "field 'more' is not in n.Order"),
    ],
)
def test_a_value_of_another_type_is_told_by_its_place(change: dict[str, Any], words: str) -> None:
    with pytest.raises((Reject, json_values.MismatchError)) as refused:
        json_values.record_of(json_values.fields_of(SCHEMA), ORDER | change, "", "n.Order")
    assert words in str(refused.value)


@pytest.mark.parametrize(("kind", "exact"), [("float", 2**24), ("double", 2**53)])
def test_a_whole_number_is_a_float_exactly_or_refused(kind: str, exact: int) -> None:
    read = json_values.converter(kind, {})
    assert read(exact, "x") == exact
    for value in (exact + 1, 10**400):
        with pytest.raises(json_values.MismatchError, match=f"no {kind} is exactly that"):
            read(value, "x")


@pytest.mark.parametrize(
    ("type_", "default"),
    [("double", "0"), ("int", 1.5), (["null", "string"], "x"), ({"type": "array", "items": "int"}, {}), ("boolean", 0)],
)
def test_a_default_of_another_type_is_refused(type_: Any, default: Any) -> None:
    avro = {"type": "record", "name": "T", "fields": [{"name": "f", "type": type_, "default": default}]}
    if type_ == ["null", "string"]:  # Avro 1.12 lets a default be of any branch
        assert json_values.fields_of(avro)
        return
    with pytest.raises((json_values.MismatchError, ValueError), match=r"field 'f' is|Default value"):
        json_values.fields_of(avro)


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.integers(), max_size=1),
    st.sampled_from([2**31, -(2**31), 2**63, -(2**63), -(2**63) - 1, "\ud800", {}]),
)
FLAT = st.lists(
    st.one_of(
        st.sampled_from([*PRIMITIVES, "float", {"type": "long", "logicalType": "timestamp-millis"}]),
        st.sampled_from([*PRIMITIVES]).flatmap(lambda kind: st.sampled_from([["null", kind], [kind, "null"], [kind]])),
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.slow
@given(FLAT, st.data())
def test_what_is_taken_as_it_is_would_be_read_and_written_as_the_same(types: list[Any], data: Any) -> None:
    fields = [{"name": f"f{number}", "type": type_} for number, type_ in enumerate(types)]
    avro = {"type": "record", "name": "R", "fields": fields}
    names = st.sampled_from([*(field["name"] for field in fields), "more"])
    given_ = data.draw(
        st.fixed_dictionaries({field["name"]: ODD for field in fields}) | st.dictionaries(names, ODD, max_size=5)
    )
    if json_values.as_it_is(avro)(given_):
        record = json_values.record_of(json_values.fields_of(avro), given_, "", "R")
        assert {name: repr(value) for name, value in record.items()} == {n: repr(v) for n, v in given_.items()}
        codec = Codec(avro)
        try:
            message = codec.encode(given_)
        except UnicodeEncodeError:
            assert "\ud800" in given_.values()
        else:
            read = codec.read(message, HEADER)[0]
            assert {name: repr(value) for name, value in read.items()} == {n: repr(v) for n, v in given_.items()}


@pytest.mark.parametrize("text", ["NaN", "1e400", "-Infinity", '"\\ud800"', "\ufeff1", "18446744073709551617"])
def test_what_the_fast_reader_of_json_refuses_is_told_by_what_it_is(text: str) -> None:
    avro = {"type": "record", "name": "R", "fields": [{"name": "f", "type": "double"}]}
    decoder = Decoder(Codec(avro))
    if text in ("NaN", "1e400", "-Infinity"):
        assert repr(decoder.decode(b'{"f": %s}' % text.encode())[0]["f"]) == repr(json.loads(text))
    else:
        with pytest.raises(Reject) as refused:
            decoder.decode(b'{"f": %s}' % text.encode())
        assert refused.value.reason == ("not_json" if text == "\ufeff1" else "wrong_type")


DECIMAL = {"type": "bytes", "logicalType": "decimal", "precision": 12, "scale": 2}
BYTES = {
    "type": "record", "name": "n.Bytes", "fields": [
        {"name": "raw", "type": "bytes", "default": "\u00ff"},
        {"name": "maybe", "type": ["null", "bytes"], "default": None},
        {"name": "each", "type": {"type": "array", "items": {"type": "fixed", "name": "Two", "size": 2}}, "default": []},
        {"name": "price", "type": DECIMAL},
    ],
}  # fmt: skip


@pytest.mark.slow
@given(
    st.binary(max_size=5),
    st.none() | st.binary(max_size=5),
    st.lists(st.binary(min_size=2, max_size=2), max_size=3),
    st.decimals(min_value=-(10**9), max_value=10**9, places=2),
    st.sampled_from(["connect", "debezium"]),
)
def test_bytes_that_kafka_connect_has_written_are_in_base64(
    raw: bytes, maybe: bytes | None, each: list[bytes], price: Decimal, unwrap: Any
) -> None:
    codec = Codec(BYTES)
    record = {"raw": raw, "maybe": maybe, "each": each, "price": json_values.decimal_bytes(price, DECIMAL)}
    row = {
        "raw": base64_of(raw),
        "maybe": None if maybe is None else base64_of(maybe),
        "each": [base64_of(one) for one in each],
    }
    decode = Decoder(codec, unwrap=unwrap).decode
    for written in (base64_of(record["price"]), float(price)):  # by decimal.format
        payload = {**row, "price": written}
        change = {"op": "c", "after": payload, "source": {}} if unwrap == "debezium" else payload
        message = {"schema": None, "payload": change}
        assert decode(json.dumps(message).encode()) == ({**record, "price": price}, codec.encode(record))
    with pytest.raises(Reject) as refused:
        decode(
            json.dumps({"schema": None, "payload": {**payload, "raw": "\u00ff"}}).encode()
        ) if unwrap == "connect" else decode(
            json.dumps({"op": "c", "after": {**payload, "raw": "no base64"}, "source": {}}).encode()
        )
    assert refused.value.field == "raw"


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize(
    ("price", "digits"), [(12.34, 1234), (-0.5, -50), (3, 300), (1e3, 100_000), ("\u0004\u00d2", 1234), (0.1 + 0.2, None),
                          ("12.34", None), ("1234", None), ("-.5", None), (1e12, None), (0.001, None), (True, None), (None, None)]
)  # fmt: skip
def test_a_decimal_is_a_number_exactly_or_its_bytes_and_never_what_may_be_either(
    price: Any, digits: int | None
) -> None:
    message = json.dumps({"price": price, "raw": ""}).encode()
    if digits is None:
        with pytest.raises(Reject) as refused:
            Decoder(Codec(BYTES)).decode(message)
        assert (refused.value.reason, refused.value.field) == ("wrong_type", "price")
    else:
        assert Decoder(Codec(BYTES)).decode(message)[0]["price"] == Decimal(digits).scaleb(-2)


def test_the_example_of_a_schema_is_one_of_its_records_and_fits_its_json_schema() -> None:
    fixed = {"type": "fixed", "name": "F", "size": 4, "logicalType": "decimal", "precision": 6, "scale": 1}
    avro = {**BYTES, "fields": [*BYTES["fields"], {"name": "fixed", "type": fixed}]}
    record, _ = Decoder(Codec(avro)).decode(json.dumps(json_schema.example(avro)).encode())
    assert (record["price"], record["fixed"]) == (0, 0)
    properties = json_schema.json_schema(avro)["properties"]
    assert properties["price"]["type"] == properties["fixed"]["type"] == ["number", "string"]


TWICE = [
    '{"f": 1.5, "f": 2.5}', '{"f":1.5,"f":1.5}', '{"f" :1.5,"f":2.5}', '{"f"\n:1.5, "g":1, "f":2.5}', '{"f":1.5, "g":{"a":1,"a":2}}',
    '{"f":1.5, "g":[{"a":1,"b":2,"a":3}]}', '{"\\u0066":1.5,"f":2.5}',
]  # fmt: skip


@pytest.mark.parametrize("text", TWICE)
def test_a_name_that_is_in_an_object_twice_is_refused(text: str) -> None:
    avro = {"type": "record", "name": "R", "fields": [{"name": "f", "type": "double"}]}
    with pytest.raises(Reject) as refused:
        Decoder(Codec(avro)).decode(text.encode())
    assert refused.value.reason == "duplicate_field"


@pytest.mark.slow
@given(
    st.dictionaries(
        st.text(max_size=3), st.sampled_from(['":', '" :', "a:b", "", "\\", {"a": 1}, [{"a": 1}]]), max_size=4
    ),
    st.data(),
)
def test_a_name_that_only_looks_as_if_it_came_twice_is_not(record: dict[str, Any], data: Any) -> None:
    text = json.dumps(record, separators=data.draw(st.sampled_from([(",", ":"), (", ", " : "), (",\n", "\t:")])))
    json_values.check_names(text.encode(), record)
    if record:
        name = json.dumps(data.draw(st.sampled_from([*record])))
        with pytest.raises(Reject):
            json_values.check_names(f"{text[:-1]}, {name}: 1}}".encode(), {**record, json.loads(name): 1})
