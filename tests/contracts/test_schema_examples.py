"""Every schema that producers write by has messages that must be accepted, and others that must be refused, and why.

`schemas/examples/<team>/<schema>/<what>.json` are accepted; `schemas/invalid/<team>/<schema>/<reason>.<what>.json` are refused
for that reason. A file that belongs to no schema fails.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tidemill.encoding import schema_files
from tidemill.encoding.codec import Codec
from tidemill.errors import Reject
from tidemill.stages.validator.decode import Decoder

ROOT = schema_files.root()
OWN = "tidemill"  # our own records: no producer writes them
SCHEMAS = {
    str(path.relative_to(ROOT))[: -len(".avsc")]: path for path in sorted(ROOT.rglob("*.avsc")) if path.parent.name != OWN
}  # fmt: skip
EXAMPLES = sorted(path for path in (ROOT / "examples").rglob("*") if path.is_file())
INVALID = sorted(path for path in (ROOT / "invalid").rglob("*") if path.is_file())


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def decoder(path: Path) -> Decoder:
    schema = str(path.parent.relative_to(ROOT / path.relative_to(ROOT).parts[0]))
    assert schema in SCHEMAS, f"{short(path)} belongs to no schema: there are {', '.join(SCHEMAS)}"
    return Decoder(Codec(json.loads(SCHEMAS[schema].read_text())))


@pytest.mark.parametrize("path", EXAMPLES, ids=short)
def test_an_example_is_accepted_as_json_and_as_avro(path: Path) -> None:
    accepts = decoder(path)
    record, message = accepts.decode(path.read_bytes())
    given = json.loads(path.read_bytes())
    assert record.items() >= given.items()
    assert accepts.decode(message) == (record, message)


@pytest.mark.parametrize("path", INVALID, ids=short)
def test_an_invalid_message_is_refused_for_the_reason_in_its_name(path: Path) -> None:
    with pytest.raises(Reject) as caught:
        decoder(path).decode(path.read_bytes())
    assert caught.value.reason == path.name.partition(".")[0]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_schema_has_an_example_and_two_that_are_invalid(schema: str) -> None:
    assert any(path.parent == ROOT / "examples" / schema for path in EXAMPLES)
    reasons = {path.name.partition(".")[0] for path in INVALID if path.parent == ROOT / "invalid" / schema}
    assert len(reasons) >= 2


def test_the_flights_are_found() -> None:
    assert {"flights/departure.v1", "flights/arrival.v1"} <= SCHEMAS.keys()


@pytest.mark.parametrize("path", [*EXAMPLES, *INVALID], ids=short)
def test_no_file_is_left_that_is_not_looked_at(path: Path) -> None:
    assert path.suffix == ".json"
    assert decoder(path)
