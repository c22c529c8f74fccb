"""Which schemas can be read by which, held to Apache Avro's checker and to fastavro; and which are not safe to decode at all."""

from __future__ import annotations

import io
import json
from typing import Any

import avro.compatibility
import avro.schema
import fastavro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.encoding import schema_files
from tidemill.encoding.resolution import promoted, unreadable
from tidemill.encoding.schema_limits import unsafe
from tidemill.limits import SCHEMA_DEPTH

PRIMITIVES = ("boolean", "int", "long", "float", "double", "string")
VALUES: dict[str, Any] = {
    "boolean": True,
    "int": 7,
    "long": 2**40,
    "float": 0.5,
    "double": 0.1,
    "string": "é",
    "null": None,
}


def record(*fields: Any, name: str = "R") -> dict[str, Any]:
    return {"type": "record", "name": name, "fields": list(fields)}


def field(name: str, kind: Any, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, **more}


primitive = st.sampled_from(PRIMITIVES)
nullable = st.one_of(primitive.map(lambda kind: ["null", kind]), primitive.map(lambda kind: [kind, "null"]))
symbols = st.lists(st.sampled_from("ABCD"), min_size=1, max_size=4, unique=True)


@st.composite
def types(draw: st.DrawFn, name: str, depth: int = 1) -> Any:
    kind = draw(st.sampled_from(("plain", "plain", "nullable", "nullable", "array", "map", "enum", "record")))
    if kind == "plain" or depth > 2:
        return draw(primitive)
    if kind == "nullable":
        return draw(nullable)
    if kind == "enum":
        return {"type": "enum", "name": f"E_{name}", "symbols": draw(symbols)}
    if kind == "record":
        return draw(records(f"R_{name}", depth + 1))
    inner = draw(types(f"{name}x", depth + 1))
    return {"type": "array", "items": inner} if kind == "array" else {"type": "map", "values": inner}


@st.composite
def records(draw: st.DrawFn, name: str = "R", depth: int = 0) -> dict[str, Any]:
    fields = []
    for one in draw(st.lists(st.sampled_from("abcde"), min_size=1, max_size=4, unique=True)):
        kind = draw(types(f"{name}_{one}", depth + 1))
        more: dict[str, Any] = {}
        if draw(st.booleans()) and kind in PRIMITIVES:
            more["default"] = VALUES[kind] if kind != "long" else 5
        elif isinstance(kind, list) and kind[0] == "null":
            more["default"] = None
        fields.append(field(one, kind, **more))
    return record(*fields, name=name)


@st.composite
def changed(draw: st.DrawFn, avro: dict[str, Any]) -> dict[str, Any]:
    """The schema with some fields gone, some of another type, some more, and others where they were not."""
    fields = []
    for one in avro["fields"]:
        what = draw(st.sampled_from(("keep", "keep", "drop", "retype", "widen")))
        kind = one["type"]
        if what == "keep":
            fields.append(one)
        elif what == "retype":
            fields.append(field(one["name"], draw(types(f"{avro['name']}_{one['name']}", 2))))
        elif what == "widen" and kind in PRIMITIVES:
            fields.append(field(one["name"], ["null", kind], default=None))
    more = draw(st.sampled_from(([], [field("z", "string", default="")], [field("z", ["null", "long"], default=None)])))
    return record(*draw(st.permutations([*fields, *more])), name=avro["name"])


def by_apache(writer: Any, reader: Any) -> bool:
    made = [avro.schema.parse(json.dumps(one)) for one in (reader, writer)]
    found = avro.compatibility.ReaderWriterCompatibilityChecker().get_compatibility(*made)
    return found.compatibility is avro.compatibility.SchemaCompatibilityType.compatible


def value_of(kind: Any) -> Any:
    if isinstance(kind, list):
        return value_of([branch for branch in kind if branch != "null"][-1])  # null shows nothing of a promotion
    if isinstance(kind, str):
        return VALUES[kind]
    if kind["type"] == "record":
        return {one["name"]: value_of(one["type"]) for one in kind["fields"]}
    if kind["type"] == "enum":
        return kind["symbols"][-1]
    return [value_of(kind["items"])] if kind["type"] == "array" else {"k": value_of(kind["values"])}


pairs = records().flatmap(lambda one: st.tuples(st.just(one), changed(one)))


@pytest.mark.slow
@settings(max_examples=250, deadline=None)
@given(pairs)
def test_what_can_be_read_is_what_apache_avro_says_can_be_read(pair: tuple[Any, Any]) -> None:
    for writer, reader in (pair, pair[::-1]):
        mismatch = unreadable(writer, reader)
        assert (mismatch is None) == by_apache(writer, reader), mismatch
        if mismatch is not None:
            names = {one["name"] for avro_ in pair for one in avro_["fields"]}
            assert mismatch.field.partition(".")[0] in names
            assert str(mismatch).startswith(f"field '{mismatch.field}': ")


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(pairs)
def test_what_can_be_read_fastavro_reads(pair: tuple[Any, Any]) -> None:
    for writer, reader in (pair, pair[::-1]):
        if unreadable(writer, reader) is None:
            out = io.BytesIO()
            parsed = fastavro.parse_schema(writer, named_schemas={})
            fastavro.schemaless_writer(out, parsed, value_of(writer))
            out.seek(0)
            found: Any = fastavro.schemaless_reader(out, parsed, fastavro.parse_schema(reader, named_schemas={}))
            assert set(found) == {one["name"] for one in reader["fields"]}
            for name in promoted(writer, reader):
                assert isinstance(found[name], float)


KIND = {"type": "enum", "name": "K", "symbols": ["A", "B"]}


@pytest.mark.parametrize(
    ("writer", "reader", "said"),
    [
        (field("a", "string"), field("a", "double"), "field 'a': string is written where double is read"),
        (field("a", ["null", "double"]), field("a", "double"), "field 'a': null is written where double is read"),
        (field("b", "int"), field("a", "int"), "field 'a': it is not written, and has no default where it is read"),
        (field("a", KIND), field("a", {**KIND, "symbols": ["A"]}), "field 'a': the symbol 'B' is written, and not known"),
        (field("a", record(field("b", "int"), name="N")), field("a", record(field("b", "string"), name="N")),
         "field 'a.b': int is written where string is read"),
        (field("a", record(field("b", "int"), name="N")), field("a", record(field("b", "int"), name="M")),
         "field 'a': record N is written where M is read"),
        (field("a", {"type": "fixed", "name": "F", "size": 3}), field("a", {"type": "fixed", "name": "F", "size": 4}),
         "field 'a': 3 bytes are written where 4 are read"),
        (field("a", {"type": "array", "items": "string"}), field("a", {"type": "array", "items": "int"}), "field 'a': string"),
    ],
)  # fmt: skip
def test_what_does_not_fit_names_the_field(writer: Any, reader: Any, said: str) -> None:
    assert said in str(unreadable(record(writer), record(reader)))


def test_names_and_aliases_are_followed() -> None:
    twice = record(field("a", KIND), field("b", "K"))
    assert unreadable(twice, record(field("b", KIND))) is None
    assert unreadable(record(field("old", "int")), record(field("new", "long", aliases=["old"]))) is None
    assert (
        unreadable({**record(field("a", KIND)), "namespace": "x"}, {**record(field("a", KIND)), "namespace": "y"})
        is None
    )
    assert promoted(record(field("old", "int")), record(field("new", ["null", "double"], aliases=["old"]))) == ("new",)
    assert promoted(record(field("a", "int")), record(field("a", ["int", "double"]))) == ()


def fixed(size: int, **name: str) -> dict[str, Any]:
    return {"type": "fixed", "size": size, **name}


@pytest.mark.parametrize("own", [{"name": "o.A"}, {"name": "A", "namespace": "o"}, {"name": "A"}])
@pytest.mark.parametrize("other", [{"name": "n.A"}, {"name": "A", "namespace": "n"}])
@pytest.mark.parametrize("reference", ["A", "o.A"])
def test_a_name_is_of_the_namespace_that_it_stands_in(own: Any, other: Any, reference: str) -> None:
    a, b, c = field("a", fixed(1, **own)), field("b", reference), field("c", fixed(2, **other))
    writer, *readers = (
        {**record(*fields), "namespace": "o"}
        for fields in ((a, b, c), (c, a, b), (a, c, b), (c, field("b", a["type"])))
    )
    assert [unreadable(writer, reader) for reader in readers] == [None, None, None]
    assert [unreadable(reader, writer) for reader in readers[:2]] == [None, None]
    wrong = {**record(c, field("b", "n.A")), "namespace": "o"}
    assert "field 'b': 1 bytes are written where 2 are read" in str(unreadable(writer, wrong))


def nested(depth: int) -> Any:
    kind: Any = "int"
    for n in range(depth):
        kind = record(field("x", kind), name=f"N{n}")
    return record(field("a", kind))


def doubling(depth: int) -> Any:
    fields = [field("f", record(field("x", "null"), name="D0"))]
    fields += [
        field(f"f{n}", record(*(field(f"y{i}", f"D{n - 1}") for i in range(10)), name=f"D{n}")) for n in range(1, depth)
    ]
    return record(*fields)


LOOP = record(field("next", ["null", "R"]))


@pytest.mark.parametrize(
    ("avro_", "said"),
    [
        (LOOP, "field 'next' makes the schema recursive: R contains itself"),
        (record(field("a", {"type": "array", "items": "R"})), "recursive"),
        ({**record(field("a", {"type": "map", "values": "n.R"})), "namespace": "n"}, "recursive"),
        (record(field("a", record(field("b", record(field("c", "N"), name="O")), name="N"))), "N contains itself"),
        (record(field("a", {"type": "array", "items": "null"})), "field 'a' takes no bytes and may come any number of times"),
        (record(field("a", {"type": "map", "values": "null"})), "takes no bytes"),
        (record(field("a", {"type": "array", "items": record(name="Empty")})), "takes no bytes"),
        (record(field("a", {"type": "array", "items": {"type": "fixed", "name": "F", "size": 0}})), "takes no bytes"),
        (record(field("a", {"type": "array", "items": record(field("b", "int"), field("c", "null"), name="N")})),
         "field 'a.c' takes no bytes"),
        (record(field("e", record(name="Empty")), field("a", {"type": "array", "items": "Empty"})), "takes no bytes"),
        (nested(SCHEMA_DEPTH.max), "nested records, arrays and maps where at most 16 are allowed"),
        (nested(5000), "nested records, arrays and maps where at most 16 are allowed"),
        (doubling(6), "written out where it is used, has 10,001 fields where at most 10,000 are allowed"),
        (record(field("a", "Nowhere")), "field 'a' is of the type 'Nowhere', which is not known"),
        (record({"name": "a"}), "field 'a' has no type"),
        (record(field("a", {"type": "enum", "name": "E", "symbols": []})), "field 'a' is an enum without symbols"),
        (record(field("a", "int"), field("a", "string")), "field 'a' is declared twice"),
        (record(field("x", record(field("a", "int"), field("a", "int"), name="N"))), "field 'x.a' is declared twice"),
        (record(field("a", ["string", "string"])), "field 'a' is a union that has 'string' twice"),
        (record(field("a", ["int", {"type": "int", "logicalType": "date"}])), "a union that has 'int' twice"),
        (record(field("a", [{"type": "array", "items": "int"}, {"type": "array", "items": "long"}])), "'array' twice"),
        (record(field("a", ["null", ["string", "int"]])), "field 'a' is a union in a union"),
        ({"type": "record", "name": "R", "fields": 7}, "fields can't be read"),
        (None, "has no type"),
        (7, "has no type"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)  # fmt: skip
def test_a_schema_by_which_few_bytes_become_much_is_refused(avro_: Any, said: str) -> None:
    assert said in unsafe(avro_)


@pytest.mark.parametrize("name", [*sorted(p.stem for p in (schema_files.root() / "tidemill").glob("*.avsc"))])
def test_our_own_shapes_are_safe(name: str) -> None:
    avro_ = schema_files.own(name)
    named = [
        f
        for f in avro_["fields"]
        if f["type"] not in ("Vector", "Label", "tidemill.Features", "tidemill.PredictionLog")
    ]
    plain = [f for f in named if "tidemill." not in json.dumps(f["type"])]
    assert unsafe({**avro_, "fields": plain}) == ""


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(records())
def test_ordinary_schemas_are_safe(avro_: dict[str, Any]) -> None:
    assert unsafe(avro_) == ""


def test_a_null_that_is_not_repeated_and_one_with_a_branch_are_safe() -> None:
    assert unsafe(record(field("a", "null"), field("b", {"type": "array", "items": ["null", "int"]}))) == ""
    assert unsafe(nested(SCHEMA_DEPTH.max - 1)) == ""
    alike = [{**record(field("x", "int"), name="N"), "namespace": space} for space in "ab"]
    assert unsafe(record(field("a", ["null", *alike]))) == ""
