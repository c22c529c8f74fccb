"""Records in envelopes: Debezium's change events in JSON and Avro, Connect's JSON beside its schema."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small
from hypothesis import given
from hypothesis import strategies as st
from test_writer_schemas import CODEC, EVENT, body

from tidemill import Pipeline
from tidemill.encoding.envelopes import SkippedError, inner_schema, unwrapped
from tidemill.errors import Reject
from tidemill.offline.backtest import Backtest
from tidemill.stages.validator.service import Validator
from tidemill.stages.validator.writer_schemas import WriterSchema, accepted_schemas, writer_schema
from tidemill.stream.memory import MemoryRecord

pytestmark = pytest.mark.slow

ROW = {**CODEC.avro, "name": "Value", "namespace": "shop.flights"}
ENVELOPE = {
    "type": "record",
    "name": "Envelope",
    "namespace": "shop.flights",
    "fields": [
        {"name": "before", "type": ["null", ROW], "default": None},
        {"name": "after", "type": ["null", "Value"], "default": None},
        {"name": "source", "type": {"type": "record", "name": "Source", "fields": [{"name": "lsn", "type": "long"}]}},
        {"name": "op", "type": "string"},
        {"name": "ts_ms", "type": ["null", "long"], "default": None},
    ],
}


def change(op: Any, after: Any = EVENT, before: Any = None) -> dict[str, Any]:
    return {"before": before, "after": after, "source": {"lsn": 7}, "op": op, "ts_ms": 1}


def pipeline(unwrap: str) -> Pipeline:
    return small.make(events=replace(small.EVENTS, unwrap=unwrap))


class Ran:
    """What a validator makes of messages: the records that go on, reasons of dead letters, and what was passed over."""

    def __init__(self, of: Pipeline, *messages: bytes | None, find: Any = None) -> None:
        class Known:
            def find(self, topic: str, name: Any) -> WriterSchema | None:
                return find

        validator = Validator(of, Known() if find else None)
        self.valid: list[dict[str, Any]] = []
        self.reasons: list[str] = []

        def emit(topic: str, value: bytes, key: Any = None, timestamp: int = 0, headers: Any = None) -> None:
            if topic == validator.dlq:
                self.reasons.append(dict(headers)["tidemill.reason"].decode())
            else:
                self.valid.append(CODEC.of(value))

        records = [MemoryRecord("small.events", value, offset=at) for at, value in enumerate(messages)]
        validator.process(records, emit)
        self.skipped = {kind: n for (what, kind), n in validator.counts.items() if what == "unwrapped"}


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"schema": {"type": "struct"}, "payload": x}])
def test_the_row_as_a_change_left_it_goes_on_and_what_left_none_is_counted(wrap: Any) -> None:
    changes = [change(op) for op in "cru"] + [change("d", None, EVENT), change("t", None)]
    ran = Ran(pipeline("debezium"), *(small.as_json(wrap(one)) for one in changes), None)
    assert ran.valid == [EVENT] * 3
    assert ran.skipped == {"delete": 1, "truncate": 1, "tombstone": 1}
    assert ran.reasons == []


@pytest.mark.parametrize(
    ("unwrap", "message", "reason"),
    [
        ("debezium", EVENT, "missing_field"),
        ("debezium", change("c", None), "missing_field"),
        ("debezium", change("x"), "wrong_type"),
        ("debezium", change(None), "wrong_type"),
        ("debezium", change(["d"]), "wrong_type"),
        ("debezium", change("c", 7), "not_json"),
        ("debezium", {"schema": {}, "payload": 7}, "missing_field"),
        ("debezium", change("c", {**EVENT, "distance": "far"}), "wrong_type"),
        ("connect", EVENT, "missing_field"),
        ("connect", {"schema": {}, "payload": [EVENT]}, "not_json"),
        ("connect", {"schema": {}, "payload": {**EVENT, "sched_hour": 77}}, "out_of_range"),
        ("", change("c"), "missing_field"),
    ],
)
def test_what_is_no_envelope_is_a_dead_letter(unwrap: str, message: Any, reason: str) -> None:
    ran = Ran(pipeline(unwrap), small.as_json(message))
    assert (ran.valid, ran.reasons, ran.skipped) == ([], [reason], {})


@pytest.mark.parametrize(
    "value",
    ["__debezium_unavailable_value", "X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==", ["__debezium_unavailable_value"]],
)
def test_a_value_that_debezium_could_not_read_is_not_taken_for_one(value: Any) -> None:
    """PostgreSQL does not log a large value that an update left as it was."""
    row = {**EVENT, "carrier": value}
    assert Ran(pipeline("debezium"), small.as_json(change("u", row))).reasons == ["unavailable_value"]
    assert Ran(pipeline("connect"), small.as_json({"schema": None, "payload": row})).reasons == ["unavailable_value"]
    if isinstance(value, str):
        known = writer_schema("shop.flights.Envelope", ENVELOPE, CODEC, "debezium")
        message = b"\x00\x00\x00\x00\x07" + body(ENVELOPE, change("u", row))
        assert Ran(pipeline("debezium"), message, find=known).reasons == ["unavailable_value"]


def test_connects_payload_goes_on() -> None:
    message = {"schema": {"type": "struct", "fields": []}, "payload": EVENT}
    ran = Ran(pipeline("connect"), small.as_json(message), small.as_json({"schema": None, "payload": None}))
    assert (ran.valid, ran.skipped, ran.reasons) == ([EVENT], {"tombstone": 1}, [])


def test_an_empty_message_is_a_tombstone_for_debezium_alone() -> None:
    assert Ran(pipeline("connect"), None).reasons == ["empty"]
    assert Ran(pipeline("debezium"), b"").reasons == ["empty"]


def test_avro_change_events_are_read_by_the_schema_of_their_rows() -> None:
    older = {**ENVELOPE, "fields": [*ENVELOPE["fields"], {"name": "more", "type": ["null", "int"], "default": None}]}
    for avro in (ENVELOPE, older):
        known = writer_schema("shop.flights.Envelope", avro, CODEC, "debezium")
        assert not known.refused
        more = {"more": 1} if avro is older else {}
        changes = [change("c"), change("d", None, EVENT), change("u", None)]
        messages = [b"\x00\x00\x00\x00\x07" + body(avro, one | more) for one in changes]
        ran = Ran(pipeline("debezium"), *messages, find=known)
        assert (ran.valid, ran.skipped, ran.reasons) == ([EVENT], {"delete": 1}, ["missing_field"])


def test_a_schema_of_change_events_may_be_declared(tmp_path: Path) -> None:
    import json

    (tmp_path / "envelope.avsc").write_text(json.dumps(ENVELOPE))
    declared = small.make(events=replace(small.EVENTS, unwrap="debezium", accepts=[str(tmp_path / "envelope.avsc")]))
    (known,) = accepted_schemas(declared.events.others, CODEC, "debezium").values()
    assert known.read(body(ENVELOPE, change("c")), 0)[0] == EVENT
    assert inner_schema(ENVELOPE, "my.Row")["name"] == "my.Row"
    assert inner_schema(CODEC.avro, "my.Row") is None


def test_rows_whose_schema_does_not_fit_are_refused_with_the_field() -> None:
    row = {**ROW, "fields": [f for f in ROW["fields"] if f["name"] != "distance"]}
    before, *others = ENVELOPE["fields"]
    known = writer_schema("e", {**ENVELOPE, "fields": [{**before, "type": ["null", row]}, *others]}, CODEC, "debezium")
    assert known.field == "distance"


def test_history_may_come_without_its_envelope() -> None:
    events = [small.event(f"f{n}", asked_at=n * small.MINUTE) for n in range(4)]
    labels = [small.label(f"f{n}", n * small.MINUTE + 1, 5.0) for n in range(4)]
    for unwrap in ("debezium", "connect", ""):
        assert Backtest(pipeline(unwrap)).run(events, labels).joined == 4


@pytest.mark.parametrize("unwrap", ["debezium", "connect", ""])
@pytest.mark.parametrize(
    "form", ["%s", '{"op": %s, "after": {}}', '{"op": "c", "after": %s}', '{"schema": 1, "payload": %s}']
)
def test_nesting_of_any_depth_is_a_dead_letter(unwrap: str, form: str) -> None:
    for depth in (10, 500, 990, 3_000, 100_000):
        ran = Ran(pipeline(unwrap), (form % ("[" * depth + "]" * depth)).encode())
        assert len(ran.reasons) == 1


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["op", "after", "before", "source", "schema", "payload", "x"]), inner)
        ),
    )
)
def test_whatever_comes_is_unwrapped_refused_or_passed_over(given_: Any) -> None:
    for unwrap in ("debezium", "connect"):
        try:
            unwrapped(given_, unwrap)  # type: ignore[arg-type]
        except (Reject, SkippedError):
            continue
