"""Schemas come from a registry, beside the messages: what is known stays, what is new is waited for once, nothing else is asked."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import small
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from registry_server import RegistryServer
from running import until
from test_writer_schemas import AS_V1, CODEC, EVENT, OWN, V2, V2_BODY, V2_EVENT, evolved, named, prefix

from tidemill.encoding.schema_registry import SchemaRegistry, Version
from tidemill.errors import Retry, StoreError
from tidemill.stages.validator import service as validator
from tidemill.stages.validator.schema_follower import NOT_FOUND_PAUSE_SECONDS, SchemaFollower, subject_of
from tidemill.stages.validator.service import Validator
from tidemill.stream.memory import MemoryBroker, MemoryRecord

pytestmark = pytest.mark.slow

PIPELINE = small.make()
EVENTS, LABELS = "small.events", "small.labels"
_names = itertools.count()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class FakeRegistry:
    """Subjects in a dict; counts how often it is read."""

    def __init__(self) -> None:
        self.held: dict[str, list[Version]] = {}
        self.reads = 0
        self.down = False

    def add(self, topic: str, number: int, avro: Any, **more: Any) -> None:
        subject = subject_of(topic)
        versions = self.held.setdefault(subject, [])
        text = avro if isinstance(avro, str) else json.dumps(avro)
        versions.append(Version(subject, len(versions) + 1, number, more.pop("guid", b""), text, **more))

    def versions(self, subject: str) -> list[int]:
        self.reads += subject == subject_of(EVENTS)
        if self.down:
            raise StoreError("no schema registry")
        return [version.number for version in self.held.get(subject, [])]

    def version(self, subject: str, number: int) -> Version:
        return self.held[subject][number - 1]


@pytest.fixture
def registry() -> FakeRegistry:
    return FakeRegistry()


def feed_of(registry: Any, clock: Any = time.monotonic, seconds: float = 1000.0) -> SchemaFollower:
    return SchemaFollower(PIPELINE, registry, seconds, clock)


def test_all_versions_of_both_subjects_are_known_each_to_its_topic(registry: FakeRegistry) -> None:
    registry.add(EVENTS, 1, CODEC.avro)
    registry.add(EVENTS, 2, V2, guid=b"g" * 16)
    registry.add(LABELS, 3, PIPELINE.labels.avro)
    feed = feed_of(registry)
    feed.refresh()
    assert [feed.find(EVENTS, name).refused for name in (1, 2, b"g" * 16)] == ["", "", ""]
    assert feed.find(LABELS, 3).same
    for topic, number in ((EVENTS, 3), (LABELS, 1)):
        with pytest.raises(Retry):
            feed.find(topic, number)


@pytest.mark.parametrize(
    ("avro", "more", "said"),
    [
        (evolved("carrier"), {}, "field 'carrier': it is not written"),
        ({"type": "record", "name": "R", "fields": [{"name": "r", "type": ["null", "R"]}]}, {}, "recursive"),
        ("{", {}, "it is not JSON"),
        ("[" * 100_000, {}, "it is not JSON"),
        ("7", {}, "has no type"),
        ('"string"', {}, "the record: string is written where record"),
        (
            {**V2, "fields": [*V2["fields"], {"name": "k", "type": {"type": "enum", "name": "K", "symbols": [1]}}]},
            {},
            "it is no Avro schema of a record",
        ),
        ({"type": "object"}, {"kind": "XML"}, "it is XML where AVRO, JSON or PROTOBUF was expected"),
        (V2, {"refers": True}, "it refers to other subjects"),
    ],
    ids=["field", "recursive", "torn", "deep", "number", "string", "name", "kind", "references"],
)
def test_a_schema_that_is_known_and_no_good_is_refused_with_its_reason(
    registry: FakeRegistry, avro: Any, more: Any, said: str
) -> None:
    registry.add(EVENTS, 1, avro, **more)
    feed, out = feed_of(registry), small.Emitted()
    feed.refresh()
    Validator(PIPELINE, feed).process([MemoryRecord(EVENTS, prefix(1) + V2_BODY)], out)
    said_of = {name: data.decode() for name, data in out.records[0].headers()}
    assert said_of["tidemill.reason"] == "incompatible_schema"
    assert said in said_of["__connect.errors.exception.message"]
    assert "version 1 of small.events-value: " in said_of["__connect.errors.exception.message"]


def test_an_unknown_id_is_looked_for_once_and_found(registry: FakeRegistry) -> None:
    feed = feed_of(registry, Clock())
    for _ in range(3):
        with pytest.raises(Retry):
            feed.find(EVENTS, 1)
    registry.add(EVENTS, 1, V2)
    feed.refresh()
    assert feed.find(EVENTS, 1).refused == ""
    with pytest.raises(
        Retry, match=r"schema 2 of small\.events is not known yet"
    ):  # a look that found is no reason to be deaf
        feed.find(EVENTS, 2)


def test_hostile_ids_cost_one_look_every_ten_seconds_whatever_comes(registry: FakeRegistry) -> None:
    clock = Clock()
    feed = feed_of(registry, clock)
    looks = 0
    for _ in range(30):
        for number in range(1, 50):
            clock.now += 1 / 49
            try:
                assert feed.find(EVENTS, number) is None
            except Retry:
                feed.refresh()
                looks += 1
    assert looks == registry.reads == 3


def test_a_look_that_began_before_an_id_was_seen_is_no_answer_to_it() -> None:
    clock = Clock()

    class Slow(FakeRegistry):
        def versions(self, subject: str) -> list[int]:
            found = super().versions(subject)
            if subject == subject_of(LABELS) and self.reads == 1:  # the events' subject has been read already
                clock.now += 1
                with pytest.raises(Retry):
                    feed.find(EVENTS, 1)
                self.add(EVENTS, 1, V2)
            return found

    feed = feed_of(Slow(), clock)
    feed.refresh()
    clock.now += 1
    with pytest.raises(Retry):
        feed.find(EVENTS, 1)
    feed.refresh()
    assert feed.find(EVENTS, 1).refused == ""


def test_while_the_registry_is_away_what_is_known_stays_and_it_is_said_once(
    registry: FakeRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    registry.add(EVENTS, 1, V2)
    feed = feed_of(registry, clock)
    feed.refresh()
    registry.down = True
    for _ in range(3):
        feed.refresh()
    assert feed.find(EVENTS, 1).refused == ""
    with pytest.raises(Retry):
        feed.find(EVENTS, 2)
    clock.now += 1
    feed.refresh()
    assert feed.find(EVENTS, 2) is None, "one id that nobody can look up does not stop the others"
    registry.down = False
    clock.now += NOT_FOUND_PAUSE_SECONDS
    feed.refresh()
    said = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert said == ["schemas can't be read at the moment; those that are known stay", "the schema registry is back"]


@pytest.mark.parametrize("answer", [None, {"id": "x"}, []])
def test_whatever_a_registry_answers_nobody_waits_for_ever(answer: Any) -> None:
    class Odd:
        def versions(self, subject: str) -> Any:
            return [1]

        def version(self, subject: str, number: int) -> Any:
            return answer

    clock = Clock()
    feed = feed_of(Odd(), clock)
    with pytest.raises(Retry):
        feed.find(EVENTS, 1)
    clock.now += 1
    feed.refresh()
    assert feed.find(EVENTS, 1) is None


def test_a_registry_that_is_away_when_the_service_starts_is_said_at_once(registry: FakeRegistry) -> None:
    registry.down = True
    with pytest.raises(StoreError, match="no schema registry"):
        feed_of(registry).start()


def test_without_a_registry_at_the_start_a_message_waits_until_it_was_read_once(registry: FakeRegistry) -> None:
    clock = Clock()
    registry.add(EVENTS, 1, CODEC.avro)
    registry.down = True
    feed = feed_of(registry, clock)
    feed.connect(must_answer=False)
    for _ in range(5):
        with pytest.raises(Retry, match="registry does not answer"):
            feed.find(EVENTS, 1)
        clock.now += NOT_FOUND_PAUSE_SECONDS / 3
        feed.refresh()
    with pytest.raises(Retry):
        feed.find(EVENTS, 1)
    registry.down = False
    clock.now += 1
    feed.refresh()
    assert feed.find(EVENTS, 1).same
    with pytest.raises(Retry):
        feed.find(EVENTS, 2)
    clock.now += 1
    feed.refresh()
    assert feed.find(EVENTS, 2) is None, "an id that the registry does not have is not waited for"


def test_the_loop_waits_for_a_new_schema_and_loses_doubles_and_reorders_nothing(registry: FakeRegistry) -> None:
    """The real loop on the broker in memory; the thread that looks is real."""
    from tidemill.stream.loop import Loop

    broker = MemoryBroker({EVENTS: 1, LABELS: 1, "small.events.valid": 1, "small.labels.valid": 1, "small.dlq": 1})
    feed = feed_of(registry)
    feed.start()
    loop = Loop(validator.build(PIPELINE, feed), broker, max_delay=0.0)
    thread = threading.Thread(target=loop.run, daemon=True)
    thread.start()
    producer = broker.producer("p")
    try:
        for n in range(40):
            if n == 20:
                registry.add(EVENTS, 2, V2)
            own = CODEC.encode({**EVENT, "flight_id": str(n)})
            producer.emit(EVENTS, own if n < 20 or n % 2 else prefix(2) + V2_BODY)
            producer.commit({}, None)
        until(
            lambda: len(broker.records("small.events.valid")) + len(broker.records("small.dlq")) >= 40, "all of it", 20
        )
    finally:
        loop.stop()
        thread.join(10)
        feed.stop()
    found = [CODEC.decode(record.value() or b"")["flight_id"] for record in broker.records("small.events.valid")]
    assert found == [str(n) if n < 20 or n % 2 else V2_EVENT["flight_id"] for n in range(40)]
    assert not broker.records("small.dlq")


# The client, on both of its registries.


@pytest.fixture(params=["mock", "http", "http, with a password, without GUIDs"])
def place(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "mock":
        yield f"mock://m{next(_names)}"
        return
    server = RegistryServer() if request.param == "http" else RegistryServer(guids=False, login="user:secret%word")
    yield server.url.replace("secret%word", "secret%25word")
    server.stop()


def producer_of(place: str, topic: str, avro: Any) -> Any:
    """Return what Confluent's own serializer makes of a record."""
    client = SchemaRegistry(place).client
    to_bytes = AvroSerializer(client, json.dumps(avro))
    return lambda record: to_bytes(record, SerializationContext(topic, MessageField.VALUE))


def test_what_confluents_serializer_writes_is_read(place: str) -> None:
    v1, v2 = (producer_of(place, EVENTS, avro) for avro in (CODEC.avro, V2))
    first, second = v1(EVENT), v2(V2_EVENT)
    feed, out = feed_of(SchemaRegistry(place)), small.Emitted()
    feed.refresh()
    step = Validator(PIPELINE, feed)
    header = [("__value_schema_id", second[:5])]
    step.process(
        [MemoryRecord(EVENTS, first), MemoryRecord(EVENTS, second), MemoryRecord(EVENTS, second[5:], headers=header)],
        out,
    )
    assert [record.topic() for record in out.records] == ["small.events.valid"] * 3
    assert out.records[0].value() == OWN
    assert [CODEC.decode(record.value() or b"") for record in out.records[1:]] == [AS_V1, AS_V1]


def test_the_guid_is_known_where_the_registry_tells_it() -> None:
    server = RegistryServer()
    try:
        number = server.add(subject_of(EVENTS), json.dumps(V2))
        feed, out = feed_of(SchemaRegistry(server.url)), small.Emitted()
        feed.refresh()
        Validator(PIPELINE, feed).process(
            [MemoryRecord(EVENTS, V2_BODY, headers=named(server.guid(number).bytes))], out
        )
        assert out.records[0].topic() == "small.events.valid"
        asked = len(server.requests)
        feed.refresh()
        assert server.requests[asked:] == [f"GET /subjects/{subject_of(t)}/versions" for t in (EVENTS, LABELS)]
    finally:
        server.stop()


def test_registering_again_changes_nothing(place: str) -> None:
    registry = SchemaRegistry(place)
    first = registry.register("s-value", V2)
    assert registry.register("s-value", V2) == first
    assert registry.versions("s-value") == [1]
    assert json.loads(registry.version("s-value", 1).schema) == V2
    assert registry.versions("nothing") == []


def test_a_level_is_set_and_told() -> None:
    server = RegistryServer()
    try:
        registry = SchemaRegistry(server.url)
        assert registry.level("s-value") == ""
        registry.set_level("s-value", "FULL_TRANSITIVE")
        assert registry.level("s-value") == "FULL_TRANSITIVE"
    finally:
        server.stop()


def test_no_password_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    server = RegistryServer(login="user:right")
    caplog.set_level("DEBUG")
    try:
        with pytest.raises(StoreError, match="401") as caught:
            SchemaRegistry(server.url.replace("right", "verysecret")).versions("s")
    finally:
        server.stop()
    with pytest.raises(StoreError, match=r"no schema registry at http://127\.0\.0\.1:1 ") as away:
        SchemaRegistry("http://user:verysecret@127.0.0.1:1").versions("s")
    assert "verysecret" not in caplog.text + str(caught.value) + str(away.value)


def test_one_mock_is_the_same_for_all_who_name_it() -> None:
    assert isinstance(SchemaRegistry("mock://one").client, SchemaRegistryClient)
    SchemaRegistry("mock://one").client.register_schema("s", Schema(json.dumps(V2), "AVRO"))
    assert SchemaRegistry("mock://one").versions("s") == [1]
    assert SchemaRegistry("mock://other").versions("s") == []
