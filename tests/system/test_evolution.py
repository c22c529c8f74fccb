"""A schema changes while everything runs, on a real broker with a real registry: compatible, nothing is lost; else, refused."""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from registry_server import RegistryServer
from running import Running, until

from tidemill.encoding.schema_registry import SchemaRegistry
from tidemill.wire import topics

ORIGINS = ("EWR", "JFK", "LGA")
BEFORE, DURING, INCOMPATIBLE = 6_000, 6_000, 1_000
Sent = tuple[bytes, list[tuple[str, bytes]]]


@pytest.fixture
def server() -> Iterator[RegistryServer]:
    made = RegistryServer(login="user:password")
    yield made
    made.stop()


class Source:
    """A producer of events, by Confluent's own serializer; it notes what it has sent."""

    def __init__(self, run: Running, server: RegistryServer) -> None:
        self.topic, self.server = run.name(topics.EVENTS), server
        self.client = SchemaRegistry(server.url).client
        self.producer = Producer({"bootstrap.servers": run.broker.servers, "enable.idempotence": True, "linger.ms": 2})
        self.sent: dict[str, list[str]] = defaultdict(list)
        self.bytes: list[bytes] = []
        self._numbers = itertools.count()
        self.lost = 0

    def by(self, avro: Any) -> Callable[[dict[str, Any]], bytes]:
        """Return what writes by a schema; it registers that with the first message, as producers do."""
        to_bytes = AvroSerializer(self.client, json.dumps(avro))
        return lambda event: to_bytes(event, SerializationContext(self.topic, MessageField.VALUE))

    def event(self) -> dict[str, Any]:
        number = next(self._numbers)
        return {
            "flight_id": f"f{number}", "asked_at": 1_357_035_300_000 + number, "carrier": "UA", "flight": 1545, "tailnum": None,
            "origin": ORIGINS[number % 3], "dest": "IAH", "distance": 1400, "sched_hour": 5, "flight_date": 15_706,
            "sched_minutes": 227.0, "dep_delay": None, "temp": 39.0, "dewp": 28.0, "wind_speed": 12.6, "precip": 0.0, "visib": 10.0,
        }  # fmt: skip

    def send(self, event: dict[str, Any], value: bytes, headers: Any = None) -> None:
        while True:
            try:
                self.producer.produce(self.topic, value, event["origin"], headers=headers, on_delivery=self._delivered)
                break
            except BufferError:
                self.producer.poll(0.1)
        self.producer.poll(0)
        self.sent[event["origin"]].append(event["flight_id"])
        self.bytes.append(value)

    def in_header(self, value: bytes, *, guid: bool) -> Sent:
        """Return a message as newer clients send it: the record alone, and which schema it is by in a header."""
        number = int.from_bytes(value[1:5], "big")
        name = b"\1" + self.server.guid(number).bytes if guid else value[:5]
        return value[5:], [("__value_schema_id", name)]

    def _delivered(self, error: Any, _: Any) -> None:
        self.lost += error is not None


def test_a_schema_changes_while_events_flow(running, server: RegistryServer) -> None:
    run = running("plain", partitions=2, registry_url=server.url, registry_seconds=600, fuse="false")
    declared = run.pipeline.events.avro
    gate = {"name": "gate", "type": "string"}
    fields = [
        {**f, "type": "int"} if f["name"] == "distance" else f for f in declared["fields"] if f["name"] != "tailnum"
    ]
    compatible = {**declared, "fields": [gate, *fields]}
    incompatible = {
        **declared,
        "fields": [{**f, "type": "string"} if f["name"] == "distance" else f for f in declared["fields"]],
    }
    reader = run.reader(topics.EVENTS_VALID, topics.DLQ)
    valid, dead = [], []

    def come(many: int) -> bool:
        for record in reader.poll():
            (valid if record.topic() == run.name(topics.EVENTS_VALID) else dead).append(record)
        return len(valid) + len(dead) >= many

    run.stack.start("validator")
    run.stack.wait_ready()
    source = Source(run, server)
    first = source.by(declared)
    for _ in range(BEFORE):
        event = source.event()
        source.send(event, first(event))
    until(lambda: come(BEFORE // 10), "nothing passes", 30)

    second = source.by(compatible)  # registered with its first message, while the others still wait to be read
    for number in range(DURING):
        event = source.event()
        new = second({**event, "gate": "B4"})
        message: Sent = [
            (first(event), []), (run.records.event.encode(event), []), (new, []),
            source.in_header(new, guid=False), source.in_header(new, guid=True),
        ][number % 5]  # fmt: skip
        source.send(event, *message)
    source.producer.flush(30)
    assert source.lost == 0
    until(lambda: come(BEFORE + DURING), "what is sent does not arrive", 60)

    good = {origin: list(ids) for origin, ids in source.sent.items()}
    third, begin = source.by(incompatible), len(source.bytes)
    for number in range(INCOMPATIBLE):
        event = source.event()
        old = third({**event, "distance": "far"})
        source.send(
            event, *((old, []), source.in_header(old, guid=False), source.in_header(old, guid=True))[number % 3]
        )
    after = source.event()
    good[after["origin"]].append(after["flight_id"])
    source.send(after, second({**after, "gate": "B5"}))
    source.producer.flush(30)
    until(lambda: come(BEFORE + DURING + INCOMPATIBLE + 1), "what is sent does not arrive", 60)
    come(0)
    reader.close()

    events = [run.records.event.decode(record.value()) for record in valid]
    found = {origin: [e["flight_id"] for e in events if e["origin"] == origin] for origin in ORIGINS}
    assert found == good, "lost, doubled, or in another order"
    assert {(type(e["distance"]), e["distance"], e["tailnum"]) for e in events} == {(float, 1400.0, None)}
    assert Counter(record.value() for record in dead) == Counter(source.bytes[begin:-1])
    said = Counter((dict(r.headers())["tidemill.reason"], dict(r.headers())["tidemill.field"]) for r in dead)
    assert said == {(b"incompatible_schema", b"distance"): INCOMPATIBLE}
    looks = Counter(request for request in server.requests if request.endswith("/versions"))
    assert looks[f"GET /subjects/{source.topic}-value/versions"] <= 5, (
        "at the start, and once for each of three schemas"
    )
    assert run.stack.fetch("validator", "/metrics")[1].count('tidemill_promoted_total{field="distance"') == 1
    assert "password" not in run.stack.log("validator").read_text()
