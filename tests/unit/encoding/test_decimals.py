"""Decimals are decimal.Decimal for features, rules, labels and views, whatever a producer sends, and bytes on the wire."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st
from river import linear_model, preprocessing

from tidemill import Pipeline, Stream, View, aggregates, category, number, rules, testing
from tidemill.encoding.codec import Codec
from tidemill.errors import Reject
from tidemill.gateway import app
from tidemill.offline.backtest import Backtest
from tidemill.offline.source import FileSource, past_of
from tidemill.stages.validator.decode import Decoder

PRICE = {"type": "bytes", "logicalType": "decimal", "precision": 10, "scale": 2}
FIXED = {"type": "fixed", "name": "F", "size": 4, "logicalType": "decimal", "precision": 6, "scale": 1}


def record(**types: Any) -> dict[str, Any]:
    return {"type": "record", "name": "R", "fields": [{"name": name, "type": of} for name, of in types.items()]}


NESTED = record(
    id="string",
    price=PRICE,
    maybe=["null", PRICE],
    many={"type": "array", "items": PRICE},
    named={"type": "map", "values": ["null", PRICE]},
    fixed=FIXED,
    again=["F", "null"],
    inner={"type": "record", "name": "I", "fields": [{"name": "price", "type": PRICE}, {"name": "n", "type": "int"}]},
)
PRICES = st.decimals(min_value=-(10**7), max_value=10**7, places=2)
SHORT = st.decimals(min_value=-(10**4), max_value=10**4, places=1)


@pytest.mark.slow
@given(
    st.fixed_dictionaries(
        {
            "id": st.text(),
            "price": PRICES,
            "maybe": st.none() | PRICES,
            "many": st.lists(PRICES),
            "named": st.dictionaries(st.text(), st.none() | PRICES),
            "fixed": SHORT,
            "again": st.none() | SHORT,
            "inner": st.fixed_dictionaries({"price": PRICES, "n": st.integers(0, 9)}),
        }
    )
)
def test_a_codec_reads_and_writes_what_fastavro_does(values: dict[str, Any]) -> None:
    codec, out = Codec(NESTED), io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(NESTED, named_schemas={}), values)
    before = repr(values)
    assert codec.body(values) == out.getvalue()
    assert repr(values) == before, "its input stays as it is"
    read = codec.decode(codec.header + out.getvalue())
    assert repr(read) == repr(codec.decode(codec.encode(read)))
    assert read == values
    assert isinstance(read["price"], Decimal)
    assert read["price"].as_tuple().exponent == -2


def test_bytes_may_be_written_for_a_decimal_and_without_decimals_nothing_is_done() -> None:
    codec = Codec(record(price=PRICE))
    assert codec.decode(codec.encode({"price": b"\x05"})) == {"price": Decimal("0.05")}
    assert codec.decode(codec.encode({"price": b""})) == {"price": 0}
    plain = Codec(record(price="bytes"))
    assert plain.decode(plain.encode({"price": b"\x05"})) == {"price": b"\x05"}
    assert Codec(record(price={**PRICE, "precision": 4, "scale": 0})).body({"price": Decimal(-9999)})


@pytest.mark.parametrize("value", [b"\x7f" * 5, b"\x80" * 100_000, (10**10).to_bytes(6, "big")])
def test_more_digits_than_are_declared_are_a_reject_that_names_the_field(value: bytes) -> None:
    codec = Codec(record(price=PRICE))
    with pytest.raises(Reject, match=r"field 'price' has more than the 10 digits of its decimal"):
        codec.decode(codec.encode({"price": value}))


@pytest.mark.parametrize("value", [Decimal("1.001"), Decimal(10**9), Decimal("NaN"), 1.5, "1.5", None, True])
def test_what_is_no_such_decimal_is_not_written(value: Any) -> None:
    with pytest.raises(ValueError, match=r"field 'price' is .*, no decimal as declared"):
        Codec(record(price=PRICE)).body({"price": value})


def test_another_schema_s_decimals_are_read_as_well() -> None:
    other = record(price=PRICE, more="long")
    codec, writer = Codec(record(price=PRICE), others=[other]), Codec(other)
    assert codec.decode(writer.encode({"price": Decimal("1.50"), "more": 2})) == {"price": Decimal("1.50")}


@dataclass
class Asked:
    order_id: str
    asked_at: dt.datetime
    customer: str
    price: Annotated[Decimal, (10, 2)]
    discount: Annotated[Decimal, (6, 3)] | None


@dataclass
class Paid:
    order_id: str
    paid_at: dt.datetime
    amount: Annotated[Decimal, (10, 2)]


def _is_small(event: Any) -> bool:
    return bool(event["price"] < Decimal("99.99"))


def declared(**label: Any) -> Pipeline:
    return Pipeline(
        name="orders",
        events=Stream(Asked, key="customer"),
        labels=Stream(Paid, **(label or {"value": "amount"})),
        task="regression",
        rules=[rules.between("price", 0.1, 1_000.1), rules.one_of("discount", (0.5, 0.1))],
        label_rules=[rules.between("amount", 0, 5_000)],
        request={
            "price": "price",
            "discount": "discount",
            "net": number(lambda event: event["price"] * (1 - (event["discount"] or Decimal(0)))),
            "size": category(lambda event: "small" if _is_small(event) else str(event["price"])),
        },
        views=[
            View(
                "customer",
                every="1m",
                aggregates=[aggregates.mean("price", "1h"), aggregates.quantile("discount", 0.5, "1h")],
            )
        ],
        models={"linear": preprocessing.StandardScaler() | linear_model.LinearRegression()},
        champion="linear",
    )


START = dt.datetime.now(dt.UTC).replace(microsecond=0) - dt.timedelta(days=3)
EVENTS = [
    {
        "order_id": f"o{n}",
        "asked_at": START + dt.timedelta(minutes=n),
        "customer": "ab"[n % 2],
        "price": Decimal(n * 997 % 15_000 + 10) / 100,
        "discount": [None, Decimal("0.5"), Decimal("0.1")][n % 3],
    }
    for n in range(40)
]
LABELS = [
    {
        "order_id": event["order_id"],
        "paid_at": event["asked_at"] + dt.timedelta(minutes=3),
        "amount": Decimal(event["price"]) * 2,
    }
    for event in EVENTS
]


def as_json(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: float(value)
        if isinstance(value, Decimal)
        else value.isoformat()
        if isinstance(value, dt.datetime)
        else value
        for name, value in row.items()
    }


def as_avro(stream: Stream, row: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(stream.avro, named_schemas={}), row)
    return Codec(stream.avro).header + out.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
@pytest.mark.parametrize(
    "label", [{"value": "amount"}, {"value": lambda label: label["amount"] + Decimal(0)}], ids=["name", "function"]
)
def test_production_and_a_backtest_are_given_the_same_decimals(tmp_path: Path, label: Any, suffix: str) -> None:
    pipeline = declared(**label)
    served: dict[str, list[Any]] = {}
    for form in ("class", "json", "avro"):
        run, served[form] = testing.Pipeline(pipeline), []
        events: list[Any] = {
            "class": [Asked(**event) for event in EVENTS],
            "json": [as_json(event) for event in EVENTS],
            "avro": [as_avro(pipeline.events, event) for event in EVENTS],
        }[form]
        outcome = run.send(*events)
        assert not outcome.dead_letters
        served[form] = [features["vector"] for features in outcome.features]
    assert served["class"] == served["json"] == served["avro"]
    assert [(v["price"], v["net"]) for v in served["json"][:3]] == [(0.1, 0.1), (10.07, 5.035), (20.04, 18.036)]
    assert served["json"][11]["size"] == "109.77"

    for name, rows in ("events", EVENTS), ("labels", LABELS):
        with (tmp_path / f"{name}.{suffix}").open("w", newline="") as file:
            if suffix == "csv":
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
            else:
                file.writelines(json.dumps(as_json(row)) + "\n" for row in rows)
    source = FileSource(tmp_path / f"events.{suffix}", tmp_path / f"labels.{suffix}")
    run_again, vectors, seen = Backtest(pipeline), list[Any](), list[Any]()
    run_again.predictions = lambda log: vectors.append(log["features"]["vector"])
    run_again.examples = lambda example: seen.append(run_again.records.example.decode(example.value())["label"])
    report = past_of(source, pipeline).run(run_again, None)
    assert (report.valid, report.joined) == (40, 40)
    assert vectors == served["json"]
    assert seen == [float(row["amount"]) for row in LABELS]


def test_the_gateway_shows_an_event_as_it_can_be_sent() -> None:
    event = as_json(EVENTS[0]) | {"price": Decimal("12.50")}
    shown = app._json({"event": event}).body
    assert b'"price":12.50' in bytes(shown)
    record, _ = Decoder(Codec(Stream(Asked).avro)).decode(json.dumps(json.loads(shown)["event"]).encode())
    assert record["price"] == Decimal("12.5")


@pytest.mark.slow
def test_a_rule_refuses_a_decimal_and_shows_it_as_people_write_it() -> None:
    run = testing.Pipeline(declared())
    outcome = run.send(Asked("a", START, "a", Decimal("1000.11"), None), Asked("b", START, "a", Decimal(1), Decimal(1)))
    assert [letter.reason for letter in outcome.dead_letters] == ["out_of_range", "not_allowed"]
    assert "1000.11 where 0.1 to 1000.1 was expected" in outcome.dead_letters[0].message
