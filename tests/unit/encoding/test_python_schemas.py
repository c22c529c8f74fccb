"""A schema that is made of a Python class: what it is, that Avro's own library and our codec agree on it, what is refused."""

from __future__ import annotations

import datetime as dt
import enum
import io
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass
from decimal import Decimal
from keyword import iskeyword
from types import NoneType
from typing import Annotated, Any, Final, Generic, Literal, NamedTuple, NotRequired, TypedDict, TypeVar

import attrs
import fastavro
import msgspec
import pydantic
import pytest
import typing_extensions
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.encoding import decimals, json_values, python_schemas, schema_files
from tidemill.encoding.codec import Codec

pytestmark = pytest.mark.slow

T = TypeVar("T")


class Size(enum.Enum):
    SMALL = "small"
    LARGE = "large"


@dataclass
class Place:
    city: str
    floor: int = 0


@dataclass
class Order:
    order_id: uuid.UUID
    at: dt.datetime
    exact: Annotated[dt.datetime, "micros"]
    day: dt.date
    price: Annotated[Decimal, (10, 2)]
    size: Size
    channel: Literal["web", "shop"] | None
    to: Place
    back: Place | None = None
    weight: float = 1
    tags: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    note: str | None = "none"
    data: bytes = b"\xff"
    since: dt.datetime = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    fee: Annotated[Decimal, pydantic.Field(max_digits=6, decimal_places=3)] = Decimal("-1.5")
    other: Size = Size.LARGE


class Model(pydantic.BaseModel):
    __avro_name__ = "com.example.Model"

    id: str
    amount: Decimal = pydantic.Field(max_digits=8, decimal_places=1)
    score: Annotated[float, pydantic.Field(ge=0)] = 0.5
    places: list[Place] = []
    maybe: int | None = None
    at: pydantic.AwareDatetime | None = None


class Typed(TypedDict):
    id: str
    seen: NotRequired[int]


def test_every_type_has_its_avro_type() -> None:
    avro = python_schemas.record_of(Order)
    place = {
        "type": "record",
        "name": "Place",
        "fields": [{"name": "city", "type": "string"}, {"name": "floor", "type": "long", "default": 0}],
    }
    size = {"type": "enum", "name": "Size", "symbols": ["small", "large"]}
    decimal = {"type": "bytes", "logicalType": "decimal"}
    assert avro["name"] == "Order"
    assert {f["name"]: f["type"] for f in avro["fields"]} == {
        "order_id": {"type": "string", "logicalType": "uuid"},
        "at": {"type": "long", "logicalType": "timestamp-millis"},
        "exact": {"type": "long", "logicalType": "timestamp-micros"},
        "day": {"type": "int", "logicalType": "date"},
        "price": decimal | {"precision": 10, "scale": 2},
        "size": size,
        "channel": ["null", {"type": "enum", "name": "Order_channel", "symbols": ["web", "shop"]}],
        "to": place,
        "back": ["null", "Place"],
        "weight": "double",
        "tags": {"type": "array", "items": "string"},
        "counts": {"type": "map", "values": "long"},
        "note": ["string", "null"],
        "data": "bytes",
        "since": {"type": "long", "logicalType": "timestamp-millis"},
        "fee": decimal | {"precision": 6, "scale": 3},
        "other": "Size",
    }
    assert {f["name"]: f["default"] for f in avro["fields"] if "default" in f} == {
        "back": None,
        "weight": 1.0,
        "tags": [],
        "counts": {},
        "note": "none",
        "data": "\xff",
        "since": 1_577_836_800_000,
        "fee": (-1500).to_bytes(2, "big", signed=True).decode("latin-1"),
        "other": "large",
    }
    json_values.fields_of(avro)  # holds every default to its type


def test_pydantic_models_typed_dicts_and_annotations_are_taken() -> None:
    model = python_schemas.record_of(Model)
    assert model["name"] == "com.example.Model"
    types = {f["name"]: f["type"] for f in model["fields"]}
    assert types["amount"]["precision"] == 8
    assert types["places"]["items"]["name"] == "Place"
    assert types["maybe"] == ["null", "long"]
    assert types["at"] == ["null", {"type": "long", "logicalType": "timestamp-millis"}]
    seen = {"name": "seen", "type": ["null", "long"], "default": None}
    assert python_schemas.record_of(Typed)["fields"] == [{"name": "id", "type": "string"}, seen]
    by_hand = python_schemas.record_of({"id": "str", "at": dt.datetime, "price": "float | None"})
    assert by_hand["name"] == "Record"
    assert [f["type"] for f in by_hand["fields"]][::2] == ["string", ["null", "double"]]


class Value(pydantic.BaseModel, Generic[T]):
    value: T
    price: Annotated[Decimal, (6, 2)]


class Count(Value[int]):
    day: pydantic.PastDate


@pydantic.dataclasses.dataclass
class Checked:
    id: Final[str]
    n: int = pydantic.Field(default=3, ge=0)
    tags: list[str] = pydantic.Field(default_factory=list)
    price: Decimal = pydantic.Field(default=Decimal("1.5"), max_digits=5, decimal_places=1)


def test_what_pydantic_has_made_of_a_class_is_taken() -> None:
    day, price = (
        {"type": "int", "logicalType": "date"},
        {"type": "bytes", "logicalType": "decimal", "precision": 6, "scale": 2},
    )
    types = {f["name"]: f["type"] for f in python_schemas.record_of(Count)["fields"]}
    assert types == {"value": "long", "price": price, "day": day}
    fields = {f["name"]: f for f in python_schemas.record_of(Checked)["fields"]}
    assert fields["id"] == {"name": "id", "type": "string"}
    assert fields["n"] == {"name": "n", "type": "long", "default": 3}
    assert fields["tags"]["default"] == []
    assert fields["price"]["type"] == price | {"precision": 5, "scale": 1}
    assert fields["price"]["default"] == "\x0f"


SCALARS: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (bool, st.booleans()),
    (int, st.integers(-(2**63), 2**63 - 1)),
    (float, st.floats(allow_nan=False)),
    (str, st.text()),
    (bytes, st.binary()),
    (dt.date, st.dates()),
    (dt.time, st.times()),
    (uuid.UUID, st.uuids()),
    (Size, st.sampled_from([size.value for size in Size])),
    (Literal["a", "b_1"], st.sampled_from(["a", "b_1"])),
    (Literal[Size.SMALL, Size.LARGE], st.sampled_from([size.value for size in Size])),
    (Literal[1, 2], st.sampled_from([1, 2])),
    (Annotated[Decimal, (12, 3)], st.decimals(-(10**9) + 1, 10**9 - 1, places=3)),
    (
        dt.datetime,
        st.integers(-(10**12), 10**13).map(
            lambda ms: dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(milliseconds=ms)
        ),
    ),
    (
        Annotated[dt.datetime, "micros"],
        st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2200, 1, 1), timezones=st.just(dt.UTC)),
    ),
]
NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,6}", fullmatch=True).filter(lambda name: not iskeyword(name))


@st.composite
def typed(draw: Any, depth: int) -> tuple[Any, st.SearchStrategy[Any]]:
    kind = draw(st.sampled_from(["scalar"] * 4 + ["optional", "list", "dict", "class"] * (depth > 0)))
    if kind == "scalar":
        return draw(st.sampled_from(SCALARS))
    if kind == "class":
        return draw(classes(depth - 1))
    inner, values = draw(typed(depth - 1))
    if kind == "optional":
        return inner | None, st.none() | values
    if kind == "list":
        return list[inner], st.lists(values, max_size=3)  # type: ignore[valid-type]
    return dict[str, inner], st.dictionaries(st.text(max_size=4), values, max_size=3)  # type: ignore[valid-type]


@st.composite
def classes(draw: Any, depth: int = 2) -> tuple[Any, st.SearchStrategy[Any]]:
    """A class with fields of any types, and what fills one, as dictionaries."""
    fields = draw(st.dictionaries(NAMES, typed(depth), min_size=1, max_size=4))
    annotations = {name: type_ for name, (type_, _) in fields.items()}
    name = f"Record{draw(st.uuids()).hex}"
    make = draw(st.sampled_from(["dataclass", "pydantic", "typed"]))
    if make == "dataclass":
        cls: Any = make_dataclass(name, annotations.items())
    elif make == "pydantic" and not any(
        name.startswith("model_") or hasattr(pydantic.BaseModel, name) for name in fields
    ):
        cls = pydantic.create_model(name, **{name: (type_, ...) for name, type_ in annotations.items()})
    else:
        cls = typing_extensions.TypedDict(name, annotations)
    return cls, st.fixed_dictionaries({name: values for name, (_, values) in fields.items()})


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_fastavro_reads_what_any_class_writes_and_our_codec_has_the_same_bytes(data: Any) -> None:
    cls, values = data.draw(classes())
    avro = python_schemas.record_of(cls)
    assert avro == python_schemas.record_of(cls)
    record = data.draw(values)
    logical = fastavro.parse_schema(avro, named_schemas={})
    out = io.BytesIO()
    fastavro.schemaless_writer(out, logical, record)
    written = out.getvalue()
    assert fastavro.schemaless_reader(io.BytesIO(written), logical, None) == record
    plain = fastavro.parse_schema(schema_files.plain(avro), named_schemas={})
    as_sent = fastavro.schemaless_reader(io.BytesIO(written), plain, None)
    codec = Codec(avro)
    assert codec.body(as_sent) == written
    to_decimals = decimals.reader(avro)  # the codec's records have them as such
    assert codec.record(written) == (to_decimals(as_sent) if to_decimals else as_sent)


U = TypeVar("U")


@dataclass
class Measured(Generic[T]):
    id: str
    many: list[T | None]
    value: T


@dataclass
class Twice(Measured[int], Generic[T]):  # its own T is another one than that of Measured
    other: T


@dataclass
class Thrice(Twice[bool]):
    value: float  # type: ignore[assignment]


@dataclass
class Mid(Measured[U], Generic[U]):
    mid: U


class Answered(TypedDict, Generic[T]):
    id: str
    value: NotRequired[T]


class TypedFurther(Answered[float]):
    more: int


class Modelled(pydantic.BaseModel, Generic[T]):
    id: str
    value: T


class Named(NamedTuple):
    id: str
    value: float = 0.5


class Packed(msgspec.Struct):
    id: str
    many: list[int] = []
    value: float = 0.5


@attrs.define
class Attributed:
    id: str
    value: float = 0.5
    many: list[int] = attrs.field(factory=list)


LONGS = {"type": "array", "items": ["null", "long"]}


@pytest.mark.parametrize(
    ("cls", "name", "fields"),
    [
        (Measured[int], "Measured_int", {"id": "string", "value": "long", "many": LONGS}),
        (Measured[dict[str, int]], "Measured_dict_str_int", {"value": {"type": "map", "values": "long"}}),
        (Twice[str], "Twice_str", {"id": "string", "value": "long", "many": LONGS, "other": "string"}),
        (Thrice, "Thrice", {"value": "double", "many": LONGS, "other": "boolean"}),
        (Mid[float], "Mid_float", {"value": "double", "many": {"type": "array", "items": ["null", "double"]}, "mid": "double"}),
        (Answered[int], "Answered_int", {"id": "string", "value": ["null", "long"]}),
        (TypedFurther, "TypedFurther", {"id": "string", "value": ["null", "double"], "more": "long"}),
        (Modelled[int], "Modelled_int", {"id": "string", "value": "long"}),
        (Named, "Named", {"id": "string", "value": "double"}),
        (Packed, "Packed", {"id": "string", "value": "double", "many": {"type": "array", "items": "long"}}),
        (Attributed, "Attributed", {"id": "string", "value": "double", "many": {"type": "array", "items": "long"}}),
    ],
)  # fmt: skip
def test_generic_classes_and_those_of_other_libraries_are_records(cls: Any, name: str | None, fields: Any) -> None:
    avro = python_schemas.record_of(cls)
    assert avro["name"] == (name or avro["name"])
    types = {one["name"]: one["type"] for one in avro["fields"]}
    assert types | fields == types
    assert python_schemas.source_of(cls).startswith("class ")


def test_types_of_one_generic_class_are_records_of_their_own() -> None:
    both = make_dataclass("Both", [("a", Measured[int]), ("b", Measured[str]), ("c", Measured[int])])
    a, b, c = (field["type"] for field in python_schemas.record_of(both)["fields"])
    assert (a["name"], b["name"], c) == ("Measured_int", "Measured_str", "Measured_int")


@pytest.mark.parametrize(
    ("annotation", "avro"),
    [
        (tuple[int, ...], {"type": "array", "items": "long"}),
        (Sequence[str], {"type": "array", "items": "string"}),
        (Mapping[str, float], {"type": "map", "values": "double"}),
    ],
)
def test_what_is_read_as_a_list_or_a_dict_is_one(annotation: Any, avro: Any) -> None:
    assert python_schemas.record_of(made(annotation))["fields"] == [{"name": "x", "type": avro}]


@pytest.mark.parametrize(
    "given",
    [Measured("a", [], 0.5), Named("a"), Packed("a"), Attributed("a"), Modelled[float](id="a", value=0.5)],
    ids=lambda given: type(given).__name__,
)
def test_instances_of_such_classes_are_taken(given: Any) -> None:
    values = python_schemas.as_dict(given)
    assert (values["id"], values["value"]) == ("a", 0.5)


def made(type_: Any, **more: Any) -> Any:
    return make_dataclass("Event", [("x", type_, field(**more))])


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Rights(enum.IntFlag):
    READ = 1
    WRITE = 2


class Mixed(enum.Enum):
    ONE = 1
    TWO = "two"


class Empty(enum.Enum):
    pass


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (made(Decimal), ["'x'", "Decimal", "(10, 2)"]),
        (made(Annotated[Decimal, (2, 5)]), ["'x'", "Decimal"]),
        (made(Any), ["'x'", "Any", "int, float, str"]),
        (made(object), ["'x'", "object"]),
        (made(set[str]), ["'x'", "set[str]"]),
        (made(list), ["'x'", "list"]),
        (made(dict[int, str]), ["'x'", "dict[int, str]"]),
        (made(list[set[int]]), ["'x[]'", "set[int]"]),
        (made(int | str), ["'x'", "int | str", "one type"]),
        (made(int | str | None), ["'x'", "one type"]),
        (made(NoneType), ["'x'", "NoneType"]),
        (made(complex), ["'x'", "complex"]),
        (made(dt.timedelta), ["'x'", "timedelta"]),
        (made(Literal["on-time"]), ["'x'", "on-time", "one_of"]),
        (made(Literal[1, "a"]), ["'x'", "1", "symbol"]),
        (made(Mixed), ["'x'", "Mixed", "1"]),
        (made(Empty), ["'x'", "Empty", "members"]),
        (made(Annotated[dt.datetime, "hours"]), ["'x'", "hours", "millis"]),
        (made(int, default="a"), ["'x'", "'a'", "long"]),
        (made(int, default=True), ["'x'", "True", "long"]),
        (made(float, default=float("nan")), ["'x'", "nan"]),
        (made(str, default=None), ["'x'", "None", "string"]),
        (made(dt.datetime, default=dt.datetime(2020, 1, 1, 0, 0, 0, 5)), ["'x'", "timestamp"]),
        (made(str, default_factory=lambda: uuid.uuid4().hex), ["'x'", "made by a function"]),
        (made("Nowhere"), ["Event", "Nowhere"]),
        (make_dataclass("Größe", [("x", int)]), ["Größe", "__avro_name__"]),
        (make_dataclass("Event", [("größe", int)]), ["größe"]),
        (make_dataclass("Event", []), ["Event", "no fields"]),
        (make_dataclass("Event", [("x", Place), ("y", make_dataclass("Place", [("z", int)]))]), ["'y'", "Place", "two"]),
        (int, ["int", "dataclass"]),
        (5, ["5", "dataclass"]),
    ],
)  # fmt: skip
def test_what_has_no_avro_type_is_refused_in_one_line_that_names_the_field(cls: Any, words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        python_schemas.record_of(cls)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("kind", "default", "avro"),
    [
        (Level, Level.LOW, "long"),
        (Rights, Rights.READ | Rights.WRITE, "long"),
        (Literal[3, 4], 3, "long"),
        (Literal[Level.LOW, Level.HIGH], Level.LOW, "long"),
        (Level | None, None, ["null", "long"]),
        (Literal[1, None], 1, ["long", "null"]),
    ],
)
def test_enums_of_whole_numbers_are_whole_numbers(kind: Any, default: Any, avro: Any) -> None:
    (field,) = python_schemas.record_of(made(kind, default=default))["fields"]
    assert field["type"] == avro
    assert field["default"] == default
    assert type(field["default"]) in (int, NoneType)


def test_values_of_instances_are_plain_at_any_depth() -> None:
    @dataclass
    class Inner:
        size: Size
        level: Level

    @dataclass
    class Outer:
        inners: tuple[Inner, ...]
        by_name: dict[str, Inner]
        size: Size | None = None

    plain = {"size": "small", "level": 2}
    inner = Inner(Size.SMALL, Level.HIGH)
    row = python_schemas.as_plain(Outer((inner, inner), {"a": inner}, Size.LARGE))
    assert row == {"inners": [plain, plain], "by_name": {"a": plain}, "size": "large"}
    assert type(row["inners"][0]["level"]) is int
