"""Python types for clients: what a type checker takes is what the schema takes."""

from __future__ import annotations

import os
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pydantic
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import tidemill
from tidemill import load
from tidemill.cli.main import cli
from tidemill.encoding.json_schema import example, json_schema
from tidemill.encoding.python_types import module

PACKAGE = Path(tidemill.__file__).parent
NESTED = {
    "type": "record",
    "name": "Order",
    "fields": [
        {"name": "from", "type": "string"},
        {"name": "ship_to", "type": {"type": "record", "name": "Place", "fields": [{"name": "zip", "type": "string"}]}},
        {"name": "bill_to", "type": ["null", "Place"], "default": None},
        {"name": "shipTo", "type": "Place"},
        {"name": "state", "type": {"type": "enum", "name": "State", "symbols": ["new", "paid"]}},
        {"name": "amounts", "type": {"type": "array", "items": {"type": "map", "values": "double"}}},
        {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    ],
}
_FIELD = st.one_of(
    st.sampled_from(["null", "boolean", "int", "long", "double", "string", "bytes"]),
    st.sampled_from(["int", "string"]).map(lambda one: ["null", one]),
    st.sampled_from(["int", "string"]).map(lambda one: {"type": "array", "items": one}),
    st.sampled_from(["double", "boolean"]).map(lambda one: {"type": "map", "values": one}),
)


def made(avro: Any, name: str = "Event") -> Any:
    """Return the type, as a program that imports the module has it."""
    names: dict[str, Any] = {}
    source = module({name: json_schema(avro)}, "Made.")
    # pydantic, which holds values to it, takes the one of `typing` from Python 3.12 on alone.
    exec(compile(source.replace("from typing import", "from typing_extensions import"), "made.py", "exec"), names)
    return names[name]


def fits(kind: Any, value: Any) -> bool:
    strict = pydantic.ConfigDict(extra="forbid", strict=True)
    try:
        pydantic.TypeAdapter(pydantic.with_config(strict)(kind)).validate_python(value)
    except pydantic.ValidationError:
        return False
    return True


@pytest.mark.slow
@given(st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True), _FIELD, min_size=1, max_size=6))
def test_an_example_fits_and_without_a_field_that_is_needed_or_with_another_it_does_not(fields: dict[str, Any]) -> None:
    avro = {"type": "record", "name": "R", "fields": [{"name": name, "type": kind} for name, kind in fields.items()]}
    kind, value = made(avro), example(avro)
    assert set(typing.get_type_hints(kind)) == set(fields)
    assert fits(kind, value)
    assert not fits(kind, {**value, "another one": 1})
    for name in fields:
        assert not fits(kind, {other: one for other, one in value.items() if other != name})


def test_records_in_records_have_types_of_their_own_and_defaults_may_be_left_out() -> None:
    kind, value = made(NESTED), example(NESTED)
    assert fits(kind, value)
    assert fits(kind, {name: one for name, one in value.items() if name != "bill_to"})
    assert not fits(kind, {**value, "state": "lost"})
    assert not fits(kind, {**value, "ship_to": {"zip": 5}})
    assert not fits(kind, {**value, "bill_to": {}})


@pytest.mark.slow
def test_a_type_checker_finds_what_the_gateway_would_refuse(tmp_path: Path) -> None:
    source = CliRunner().invoke(cli, ["schema", "types", "flights"])
    assert source.exit_code == 0, source.output
    (tmp_path / "records.py").write_text(source.output)
    stream = load("flights").labels
    label = example(stream.avro)
    program = (
        "from records import Label\nfrom tidemill.client import Client\n\n{}\nClient('http://x', 'k').label([label])\n"
    )
    values = {"right": label, "misspelt": {**label, "flightid": "x"}, "wrong": {**label, stream.id: 5}}
    for name, value in values.items():
        (tmp_path / f"{name}.py").write_text(program.format(f"label: Label = {value!r}"))
    ran = subprocess.run(  # once for all three: it is the package that takes its time
        [sys.executable, "-m", "mypy", "--strict", *(f"{name}.py" for name in values)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "MYPYPATH": str(PACKAGE.parent)},
    )
    errors = {name: [line for line in ran.stdout.splitlines() if line.startswith(f"{name}.py")] for name in values}
    assert ran.returncode == 1, ran.stdout
    assert errors["right"] == []
    assert (PACKAGE / "py.typed").is_file(), "else checkers look at nothing of an installed package"
    assert any('Extra key "flightid"' in line for line in errors["misspelt"])
    assert any("Incompatible types" in line for line in errors["wrong"])
