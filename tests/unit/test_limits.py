"""Every limit on what comes from outside: as much as it allows passes, one more is refused by name, value and limit."""

from __future__ import annotations

import gzip
import http.server
import json
import threading
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import small
from signing_keys import SETTINGS

from tidemill import category, limits, rows, tokens
from tidemill.encoding import json_values, schema_registry
from tidemill.encoding.codec import Codec
from tidemill.encoding.schema_limits import memory_per_byte, unsafe
from tidemill.encoding.schema_registry import SchemaRegistry, Version
from tidemill.errors import ArtifactError, DeclarationError, Reject, SettingsError, StoreError
from tidemill.keys import Keyring
from tidemill.limits import Limit
from tidemill.registry import store as registry_store
from tidemill.registry import values
from tidemill.registry.store import ArtifactStore
from tidemill.stages.featurizer.service import Featurizer
from tidemill.stages.scorer.service import Scorer
from tidemill.stages.validator.decode import Decoder
from tidemill.stages.validator.schema_follower import SchemaFollower
from tidemill.stages.validator.service import Validator
from tidemill.stream.api import Position, TopicPartition
from tidemill.stream.memory import MemoryRecord
from tidemill.watch.status import scrape
from tidemill.wire.dead_letters import read_dead_letter, send_dead_letter
from tidemill.wire.records import Records

TESTS = Path(__file__).parents[1]
PIPELINE = small.make()
RECORDS = Records(PIPELINE)
NO_HEADERS: Mapping[str, str] = MappingProxyType({})


def record(*fields: tuple[str, Any], name: str = "R") -> dict[str, Any]:
    return {"type": "record", "name": name, "fields": [{"name": field, "type": kind} for field, kind in fields]}


def validated(message: bytes) -> str:
    """Return why the validator refuses an event; nothing where it passes."""
    out = small.Emitted()
    Validator(PIPELINE).process([MemoryRecord("small.events", message, b"k")], out)
    (one,) = out.records
    if one.topic() == "small.events.valid":
        return ""
    assert one.value() == message
    return dict(one.headers() or [])["__connect.errors.exception.message"].decode()


def message_bytes(size: int, _: Path) -> str:
    message = small.as_json(small.event())
    return validated(message + b" " * (size - len(message)))


def message_memory(size: int, _: Path) -> str:
    avro = record(("items", {"type": "array", "items": record(("x", "boolean"), name="I")}))
    codec = Codec(avro)
    most = limits.MESSAGE_MEMORY_BYTES.max // memory_per_byte(avro).avro
    message = codec.encode({"items": [{"x": True}] * (most - len(codec.encode({"items": []})) - 3)})
    assert len(message) <= most
    message += b"" if size == limits.MESSAGE_MEMORY_BYTES.max else b"\0" * (most + 1 - len(message))
    try:
        Decoder(codec).decode(message)
    except Reject as reject:
        return str(reject) if reject.reason == "too_large" else f"another reason: {reject.reason}"
    return ""


def message_memory_of_json(size: int) -> str:
    """JSON may leave out fields with a default: three bytes become three records in one another."""
    items: Any = {"type": "record", "name": "C", "fields": [{"name": "x", "type": "boolean", "default": False}]}
    default: Any = {"x": False}
    for name in "BA":
        fields = [{"name": "x", "type": items, "default": default}]
        items, default = {"type": "record", "name": name, "fields": fields}, {"x": default}
    avro = record(("items", {"type": "array", "items": items}))
    most = limits.MESSAGE_MEMORY_BYTES.max // memory_per_byte(avro).json
    message = b'{"items": [{}' + b",{}" * ((most - 20) // 3) + b"]}"
    try:
        Decoder(Codec(avro)).decode(message + b" " * (most - len(message) + (size > limits.MESSAGE_MEMORY_BYTES.max)))
    except Reject as reject:
        return str(reject) if reject.reason == "too_large" else f"another reason: {reject.reason}"
    return ""


def id_characters(size: int, _: Path) -> str:
    problems = {validated(RECORDS.event.encode(small.event(**{name: "é" * size}))) for name in ("flight_id", "origin")}
    assert len(problems) == (1 if "" in problems else 2)
    return problems.pop()


def text_characters(size: int, _: Path) -> str:
    return validated(RECORDS.event.encode(small.event(tailnum="x" * size)))


def vector_bytes(size: int, _: Path) -> str:
    length = 0
    pipeline = small.make(views=[], request={"big": category(lambda _: "x" * length)})
    topic = "small.events.valid"

    def served() -> MemoryRecord:
        out, step = small.Emitted(), Featurizer(pipeline)
        step.assign(TopicPartition(topic, 0), Position(0))
        step.process([MemoryRecord(topic, RECORDS.event.encode(small.event()))], out)
        (one,) = out.records
        return one

    length = size - 1000
    length += size - len(served().value() or b"")
    one = served()
    if one.topic() == "small.features":
        assert len(one.value() or b"") == size
        return ""
    return read_dead_letter(one).message


def prediction_bytes(size: int, _: Path) -> str:
    def written(length: int) -> MemoryRecord:
        out, vector = small.Emitted(), small.features(PIPELINE, "a", 0) | {"entity_id": "x" * length}
        Scorer(PIPELINE).process([MemoryRecord("small.features", RECORDS.features.encode(vector), b"k")], out)
        return out.records[0]

    length = size - 1000
    one = written(length + size - len(written(length).value() or b""))
    if one.topic() == "small.prediction-log":
        assert len(one.value() or b"") == size
        return ""
    assert read_dead_letter(one).stage == "scorer"
    return read_dead_letter(one).message


def dead_letter_bytes(size: int, _: Path) -> str:
    out, headers = small.Emitted(), [("theirs", b"x" * 1000)]

    def sent(length: int) -> MemoryRecord:
        one = MemoryRecord("small.events", b"v" * length, b"k" * 1000, 5, headers)
        send_dead_letter(one, Reject("too_large", "it is"), out, "small.dlq", "validator")
        return out.records[-1]

    def total(one: MemoryRecord) -> int:
        of_headers = sum(len(name) + len(data or b"") + 10 for name, data in one.headers() or [])
        return len(one.value() or b"") + len(one.key() or b"") + of_headers

    length = size - total(sent(0))
    one = sent(length)
    assert total(one) <= limits.DEAD_LETTER_BYTES.max
    letter = read_dead_letter(one)
    assert letter.reason == "too_large"
    if letter.cut_from is None:
        assert one.value() == b"v" * length
        assert (one.headers() or [])[:1] == headers
        return ""
    return limits.DEAD_LETTER_BYTES.excess(letter.cut_from)


def schema_depth(size: int, _: Path) -> str:
    avro: Any = "int"
    for n in range(size):
        avro = record(("x", avro), name=f"R{n}")
    return unsafe(avro)


def schema_fields(size: int, _: Path) -> str:
    return unsafe(record(*((f"f{n}", "int") for n in range(size - 1))))


class Registry:
    """A registry with one subject."""

    def __init__(self, schemas: list[str]) -> None:
        self.schemas, self.read = schemas, 0

    def versions(self, subject: str) -> list[int]:
        return list(range(1, len(self.schemas) + 1)) if subject == "small.events-value" else []

    def version(self, subject: str, number: int) -> Version:
        self.read += 1
        return Version(subject, number, number, b"", self.schemas[number - 1])


def schema_bytes(size: int, _: Path) -> str:
    text = json.dumps(RECORDS.event.avro)
    follower = SchemaFollower(PIPELINE, Registry([text + " " * (size - len(text))]), 30)
    follower.refresh()
    schema = follower.find("small.events", 1)
    assert schema is not None
    return schema.refused


def schema_versions(size: int, _: Path) -> str:
    registry = Registry([""] * size)
    follower = SchemaFollower(PIPELINE, registry, 30)
    follower.refresh()
    assert follower.find("small.events", size) is not None
    assert registry.read == limits.SCHEMA_VERSIONS.max
    return limits.SCHEMA_VERSIONS.excess(size) if size > registry.read else ""


@contextmanager
def answering(pieces: Callable[[], Iterator[bytes]], headers: Mapping[str, str] = NO_HEADERS) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                for piece in pieces():
                    self.wfile.write(piece)
            except OSError:
                pass

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()


def scrape_bytes(size: int, _: Path) -> str:
    with answering(lambda: iter([b"x" * size])) as url:
        status, answer = scrape.fetch(url)
    return "" if status == 200 else answer


def registry_bytes(size: int, _: Path) -> str:
    with answering(lambda: iter([b"[" + b" " * (size - 2) + b"]"])) as url:
        try:
            return "" if SchemaRegistry(url.removesuffix("/metrics")).versions("a") == [] else "other versions"
        except StoreError as error:
            return str(error)


def unzipped_bytes(size: int, folder: Path) -> str:
    with zipfile.ZipFile(folder / "a.csv.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.csv", b"x" * size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "UNZIPPED_BYTES", replace(limits.UNZIPPED_BYTES, max=SMALL))
        try:
            return "" if len(rows.content(folder / "a.csv.zip")) == size else "another size"
        except ValueError as error:
            return str(error)


def held_back(size: int, folder: Path, name: str, what: str) -> str:
    """Put a file without contents of a size at the place of an artifact or its note; return why it is not read."""
    store = ArtifactStore(str(folder))
    digest = store.put(b"a model")
    limit = replace(limits.table()[name], max=SMALL)
    place = folder / (store.path(digest) + what)
    with place.open("wb") as file:
        file.truncate(size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry_store, name, limit)
        try:
            data = store.note(digest) if what else store.get(digest)
        except ArtifactError as error:
            return "" if "damaged" in str(error) else str(error)
        return "" if data == b"\0" * size else "other bytes"


def artifact_bytes(size: int, folder: Path) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry_store, "ARTIFACT_BYTES", replace(limits.ARTIFACT_BYTES, max=SMALL))
        try:
            ArtifactStore(str(folder)).put(b"x" * size)
            is_put = True
        except ArtifactError:
            is_put = False
    problem = held_back(size, folder, "ARTIFACT_BYTES", "")
    assert is_put == (problem == "")
    return problem


def replacement_bytes(size: int, folder: Path) -> str:
    return held_back(size, folder, "REPLACEMENT_BYTES", ".again")


def refusal(kind: type[Exception], make: Callable[[], Any]) -> str:
    try:
        make()
    except kind as error:
        return str(error)
    return ""


def key_file_bytes(size: int, folder: Path) -> str:
    (folder / "verify.json").write_text(SETTINGS["TIDEMILL_VERIFY_KEYS"].ljust(size))
    return refusal(SettingsError, lambda: Keyring(str(folder / "verify.json")).keys)


#: A limit that is too large for a test is replaced by this, in the module that holds to it.
SMALL = 1000
SWEEP: dict[str, Callable[[int, Path], str]] = {
    "MESSAGE_BYTES": message_bytes,
    "MESSAGE_MEMORY_BYTES": message_memory,
    "ID_CHARACTERS": id_characters,
    "TEXT_CHARACTERS": text_characters,
    "VECTOR_BYTES": vector_bytes,
    "PREDICTION_BYTES": prediction_bytes,
    "DEAD_LETTER_BYTES": dead_letter_bytes,
    "SCHEMA_DEPTH": schema_depth,
    "SCHEMA_FIELDS": schema_fields,
    "SCHEMA_BYTES": schema_bytes,
    "SCHEMA_VERSIONS": schema_versions,
    "SCRAPE_BYTES": scrape_bytes,
    "REGISTRY_BYTES": registry_bytes,
    "UNZIPPED_BYTES": unzipped_bytes,
    "SNAPSHOT_ITEMS": lambda size, _: refusal(ArtifactError, lambda: values.span(0, size * 3, 3)),
    "SNAPSHOT_BITS": lambda size, _: refusal(ArtifactError, lambda: values.fraction(1 << (size - 1), 1)),
    "KEY_FILE_BYTES": key_file_bytes,
    "TOKEN_CHARACTERS": lambda size, _: tokens.weakness(("0123456789abcdef" * size)[:size]),
    "NAME_CHARACTERS": lambda size, _: refusal(DeclarationError, lambda: replace(small.make(), name="n" * size)),
    "ARTIFACT_BYTES": artifact_bytes,
    "REPLACEMENT_BYTES": replacement_bytes,
}
#: What needs sockets and time, or has no size of its own to count, and where it is shown.
SHOWN_ELSEWHERE = {
    "GATEWAY_BODY_BYTES": "unit/gateway/test_gateway_send.py::test_a_body_that_is_too_large_is_refused_before_it_is_read",
    "GATEWAY_CONNECTIONS": "unit/gateway/test_gateway_connections.py::test_of_too_many_connections_the_one_that_idles_longest",
    "GATEWAY_BODIES_BYTES": "unit/gateway/test_gateway_connections.py::test_bodies_in_sum_take_a_bounded_memory",
    "GATEWAY_RECORDS": "unit/gateway/test_gateway_send.py::test_a_request_has_so_many_records",
    "GATEWAY_QUESTIONS": "unit/gateway/test_gateway_send.py::test_a_request_has_so_many_records",
    "GATEWAY_UNANSWERED": "unit/gateway/test_gateway_predict.py::test_a_full_queue_and_a_river_that_is_behind_ask_to_come_later",
    "GATEWAY_IDS": "unit/gateway/test_gateway_send.py::test_of_many_ids_the_latest_are_remembered",
    "GATEWAY_STREAMS": "unit/gateway/test_gateway_send.py::test_so_many_streams_are_open_and_no_more",
    "GATEWAY_STREAM_RECORDS": "unit/gateway/test_gateway_send.py::test_a_reader_that_is_too_slow_is_told_that_it_lost",
    "GATEWAY_HEADER_CHARACTERS": "unit/gateway/test_gateway_predict.py::test_an_idempotency_key_stands_for_one_body",
    "NOTICE_ANSWER_BYTES": "unit/watch/test_notifier.py::test_a_hostile_receiver_costs_a_bounded_time_and_is_an_error",
    "REGISTRY_SECONDS": "unit/test_limits.py::test_an_answer_of_a_registry_that_never_ends_or_is_packed_is_given_up",
    "SCRAPE_SECONDS": "unit/test_limits.py::test_an_answer_that_never_ends_is_given_up",
    "PATTERN_BYTES": "unit/rules/test_patterns.py::test_check_refuses_a_pattern_that_re2_does_not_take",
    "PROBE_CONNECTIONS": "unit/test_probes.py::test_as_many_connections_as_may_be_open_stay_and_one_more_closes_the_oldest",
    "PROBE_SECONDS": "unit/test_probes.py::test_a_connection_is_closed_after_its_time_however_little_it_sends",
    "PROBE_HEAD_BYTES": "unit/test_probes.py::test_a_request_as_long_as_the_limit_is_answered_and_a_longer_one_refused",
    "STATUS_CONNECTIONS": "unit/watch/test_status_connections.py::test_of_more_connections_than_may_be_open_the_one",
    "STATUS_SECONDS": "unit/watch/test_status_connections.py::test_a_request_that_takes_longer_than_its_time_is_closed",
    "STATUS_HEAD_BYTES": "unit/watch/test_status_connections.py::test_a_request_with_as_many_bytes_as_may_be",
    "STATUS_BODY_BYTES": "unit/watch/test_status_connections.py::test_a_body_as_long_as_the_limit_is_read",
    "STATUS_GUESSERS": "unit/watch/test_status_access.py::test_however_many_clients_guess_few_are_remembered",
    "STATUS_COMMANDS": "unit/watch/test_status_commands.py::test_however_many_commands_are_given_few_are_remembered",
    "STATUS_CHANGES": "unit/watch/test_status_commands.py::test_while_many_wait_for_kafka_others_are_refused_and_reading_goes_on",
    "STATUS_STREAMS": "unit/watch/test_status_connections.py::test_500_idle_connections_and_100_open_pages",
    "STATUS_STREAMS_OF_CLIENT": "unit/watch/test_status_connections.py::test_one_client_has_no_more_than_its_share",
    "LOG_LOOKUPS": "unit/watch/test_status_connections.py::test_a_look_up_ends_when_its_asker_has_gone_and_makes_room",
    "LOG_LOOKUP_SECONDS": "unit/watch/test_status_connections.py::test_a_look_up_that_reads_nothing_ends_after_its_time",
    "ENTITY_LOOKUPS": "unit/watch/test_status_connections.py::test_look_ups_in_the_online_store_leave_threads_for_others",
}


def max_of(name: str) -> int:
    return SMALL if name in ("UNZIPPED_BYTES", "ARTIFACT_BYTES", "REPLACEMENT_BYTES") else limits.table()[name].max


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEEP)
def test_as_much_as_a_limit_allows_passes(name: str, tmp_path: Path) -> None:
    assert SWEEP[name](max_of(name), tmp_path) == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEEP)
def test_one_more_is_refused_by_name_value_and_limit(name: str, tmp_path: Path) -> None:
    limit = limits.table()[name]
    message = SWEEP[name](max_of(name) + 1, tmp_path)
    assert f"{limit.subject}" in message
    assert f"{limit.unit} where at most {max_of(name):,} are allowed" in message
    if name not in ("MESSAGE_MEMORY_BYTES", "SCRAPE_BYTES", "REGISTRY_BYTES"):  # these grow in steps
        assert f"has {max_of(name) + 1:,} " in message


def test_every_limit_of_the_table_is_shown() -> None:
    assert {*SWEEP, *SHOWN_ELSEWHERE} == limits.table().keys()
    assert not SWEEP.keys() & SHOWN_ELSEWHERE.keys()
    for place in SHOWN_ELSEWHERE.values():
        file, _, test = place.partition("::")
        assert f"def {test}" in (TESTS / file).read_text(), place


def test_a_limit_says_what_it_is_about() -> None:
    for name, limit in limits.table().items():
        assert limit.max > 0
        assert limit.then, name
        assert limit.excess(limit.max + 1).startswith(limit.subject)
    assert Limit("id in field", 5, "characters", "").excess(6, "'x'") == (
        "id in field 'x' has 6 characters where at most 5 are allowed"
    )


@pytest.mark.slow
def test_json_is_held_to_what_its_shortest_records_take() -> None:
    assert message_memory_of_json(limits.MESSAGE_MEMORY_BYTES.max) == ""
    assert "at most 100,000,000 are allowed" in message_memory_of_json(limits.MESSAGE_MEMORY_BYTES.max + 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "items",
    [
        record(("x", "boolean"), name="I"),
        record(*((f"f{n}", "boolean") for n in range(9)), name="I"),
        record(("a", record(("b", record(("c", "boolean"), name="C")), name="B")), name="A"),
        {"type": "array", "items": "int"}, {"type": "map", "values": "int"}, "string", "long", "double", "boolean",
        {"type": "fixed", "name": "F", "size": 2}, ["null", record(("x", "boolean"), name="I")],
    ],
    ids=str,
)  # fmt: skip
def test_a_message_takes_no_more_memory_than_its_schema_says(items: Any) -> None:
    """Of the smallest items and of small ones, which are not the same objects in each record as the smallest are."""
    codec = Codec(record(("items", {"type": "array", "items": items})))
    for value in (_smallest(items, small=False), _smallest(items, small=True)):
        message = codec.encode({"items": [value] * 10_000})
        tracemalloc.start()
        try:
            read = codec.decode(message)
            memory, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert len(read["items"]) == 10_000
        assert memory <= memory_per_byte(codec.avro).avro * len(message) + 10_000


def _smallest(avro: Any, *, small: bool) -> Any:
    if isinstance(avro, list):
        return _smallest(avro[1], small=small)
    if isinstance(avro, str):
        return {"string": "ab" if small else "", "long": 1000 if small else 0, "double": 0.5, "boolean": True}[avro]
    if avro["type"] == "record":
        return {field["name"]: _smallest(field["type"], small=small) for field in avro["fields"]}
    return {"array": [], "map": {}, "fixed": b"ab"}[avro["type"]]


def test_a_mismatch_deep_inside_is_looked_for_once_at_each_depth() -> None:
    """Optional records in one another: each was tried twice, so 15 of them 32,768 times."""
    tried = []

    class Deep(dict[str, Any]):
        def __contains__(self, name: object) -> bool:
            tried.append(name)
            return super().__contains__(name)

    avro: Any = "int"
    given: Any = "no int"
    for n in range(15):
        avro, given = ["null", record(("x", avro), name=f"R{n}")], Deep(x=given)
    fields = json_values.fields_of(record(("x", avro)))
    with pytest.raises(json_values.MismatchError):
        json_values.record_of(fields, {"x": given}, "", "R")
    assert len(tried) == 15


def drops(stop: threading.Event, what: bytes) -> Iterator[bytes]:
    while not stop.wait(0.05):
        yield what


@pytest.mark.slow
def test_an_answer_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrape, "SCRAPE_SECONDS", replace(limits.SCRAPE_SECONDS, max=1))
    stop = threading.Event()
    with answering(lambda: drops(stop, b"x")) as url:
        status, why = scrape.fetch(url)
        stop.set()
    assert status == 0
    assert why == "answer of a service takes more than 1 seconds"


@pytest.mark.slow
def test_an_answer_of_a_registry_that_never_ends_or_is_packed_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema_registry, "REGISTRY_SECONDS", replace(limits.REGISTRY_SECONDS, max=1))
    stop = threading.Event()
    with (
        answering(lambda: drops(stop, b" ")) as url,
        pytest.raises(StoreError, match="schema registry takes more than 1 seconds"),
    ):
        SchemaRegistry(url.removesuffix("/metrics")).versions("a")
    stop.set()
    packed = gzip.compress(b"[" + b" " * 100_000 + b"]")
    with (
        answering(lambda: iter([packed]), {"Content-Encoding": "gzip"}) as url,
        pytest.raises(StoreError, match=r"is packed \(gzip\)"),
    ):
        SchemaRegistry(url.removesuffix("/metrics")).versions("a")


@pytest.mark.parametrize("entity", ["tailnum", "carrier"])
def test_the_entity_of_a_view_is_held_to_the_limit_of_an_id(entity: str) -> None:
    from tidemill import View, aggregates

    pipeline = small.make(views=[View(entity, every="1m", aggregates=[aggregates.count("1h")])])
    for size, topic in ((limits.ID_CHARACTERS.max, "small.events.valid"), (limits.ID_CHARACTERS.max + 1, "small.dlq")):
        out = small.Emitted()
        message = RECORDS.event.encode(small.event(**{entity: "x" * size}))
        Validator(pipeline).process([MemoryRecord("small.events", message)], out)
        assert out.records[0].topic() == topic
