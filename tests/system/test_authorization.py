"""A broker that does not allow what a service has to do: it ends with one line that names it, and tries nothing for ever."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from real_kafka import RealKafka
from running import Running, until

from tidemill.demo import data
from tidemill.errors import NotAllowed
from tidemill.stream.api import Emit, Processor, Record, TopicPartition
from tidemill.stream.group import Service
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.stream.loop import Loop
from tidemill.stream.ranges import full_range
from tidemill.stream.topic import Topic
from tidemill.wire import topics

pytestmark = [pytest.mark.kafka, pytest.mark.slow]
#: Each may take a second or so: to give up a transaction, or to wait for an answer.
MAX_TURNS = 40


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealKafka]:
    """A broker that allows everything but what an ACL denies."""
    kafka = RealKafka(
        tmp_path_factory.mktemp("guarded"),
        "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found=true",
    )
    yield kafka
    kafka.stop()


def deny(kafka: RealKafka, kind: ResourceType, name: str, operation: AclOperation) -> None:
    """Deny one operation on a resource; all others stay allowed."""
    bindings = [
        AclBinding(kind, name, ResourcePatternType.LITERAL, "User:*", "*", operation_, permission)
        for operation_, permission in ((AclOperation.ALL, AclPermissionType.ALLOW), (operation, AclPermissionType.DENY))
    ]
    admin = AdminClient({"bootstrap.servers": kafka.servers})
    for done in admin.create_acls(bindings).values():
        done.result(10)
    until(lambda: len(acls_of(admin, kind, name)) >= len(bindings), "the broker does not know of them")


def acls_of(admin: AdminClient, kind: ResourceType, name: str) -> list[AclBinding]:
    """Return what the broker goes by; it hears of a change a moment after that is made."""
    every = AclBindingFilter(
        kind, name, ResourcePatternType.LITERAL, None, None, AclOperation.ANY, AclPermissionType.ANY
    )
    return admin.describe_acls(every).result(10)  # type: ignore[no-any-return]


def grant_again(kafka: RealKafka, kind: ResourceType, name: str) -> None:
    """Take away all ACLs of a resource: everything is allowed that none denies."""
    every = AclBindingFilter(
        kind, name, ResourcePatternType.LITERAL, None, None, AclOperation.ANY, AclPermissionType.ANY
    )
    admin = AdminClient({"bootstrap.servers": kafka.servers})
    for done in admin.delete_acls([every]).values():
        assert done.result(10)
    until(lambda: not acls_of(admin, kind, name), "the broker still goes by them")


class PassOn(Processor):
    """Passes records on; one that says so becomes a dead letter."""

    def __init__(self, out: str, dlq: str) -> None:
        super().__init__()
        self.out, self.dlq = out, dlq

    def process(self, records: list[Record], emit: Emit) -> bool:  # type: ignore[override]
        for self.in_hand in records:
            value = self.in_hand.value() or b""
            emit(self.dlq if value == b"bad" else self.out, value)
        return True


CASES = {
    "output": (ResourceType.TOPIC, "{0}.out", AclOperation.WRITE),
    "dead letters": (ResourceType.TOPIC, "{0}.dlq", AclOperation.WRITE),
    "input": (ResourceType.TOPIC, "{0}.in", AclOperation.READ),
    "group": (ResourceType.GROUP, "{0}", AclOperation.READ),
}


class Run:
    """One service on topics of its own, and who sends to it."""

    def __init__(self, kafka: RealKafka, name: str, *, exactly_once: bool) -> None:
        self.name = name
        self.broker = KafkaBroker(kafka.servers, exactly_once=exactly_once)
        self.broker.create([(topics.PREDICTIONS, f"{name}.{one}", 1) for one in ("in", "out", "dlq")])
        self.service = Service("test", name, [f"{name}.in"], PassOn(f"{name}.out", f"{name}.dlq"))
        self.sender = self.broker.producer(f"{name}-sender")

    def send(self, *values: bytes) -> None:
        for value in values:
            self.sender.emit(f"{self.name}.in", value)
        self.sender.commit({}, None)

    def turn(self, then: Callable[[], None]) -> None:
        """Turn; once the first record has arrived, do something and turn on. A service that does not end is a failure."""
        loop, out = Loop(self.service, self.broker, max_delay=0.0), TopicPartition(f"{self.name}.out", 0)
        consumer = self.broker.consumer(self.service.group, self.service.topics, loop.instance)
        producer, turns = self.broker.producer(loop.instance), 0
        try:
            while not self.broker.offset_range(out)[1]:
                loop.run_once(consumer, producer)
                turns += 1
                assert turns < 200, "nothing arrives"
            then()
            for _ in range(MAX_TURNS):
                loop.run_once(consumer, producer)
        finally:
            consumer.close()
        pytest.fail("it goes on and on")


@pytest.mark.parametrize("exactly_once", [True, False], ids=["exactly_once", "at_least_once"])
@pytest.mark.parametrize("what", CASES)
def test_what_is_denied_ends_the_service_with_what_to_grant(guarded: RealKafka, what: str, exactly_once: bool) -> None:
    name = "-".join((*what.split(), str(int(exactly_once))))
    kind, resource, operation = CASES[what]
    run = Run(guarded, name, exactly_once=exactly_once)
    run.send(b"good")

    def then() -> None:
        deny(guarded, kind, resource.format(name), operation)
        run.send(b"more", b"bad")

    with pytest.raises(NotAllowed, match=r"AUTHORIZATION_FAILED.*grant it to the service's user") as raised:
        run.turn(then)
    assert "\n" not in str(raised.value)
    if operation == AclOperation.WRITE:
        assert resource.format(name) in str(raised.value)
    again = Loop(run.service, run.broker, max_delay=0.0)  # what an orchestrator starts in its place
    with pytest.raises(NotAllowed, match=r"AUTHORIZATION_FAILED.*grant it to the service's user"):
        run_for_some_turns(again)


def run_for_some_turns(loop: Loop) -> None:
    beat, turns = loop.run_once, 0

    def counted(*clients: Any) -> int:
        nonlocal turns
        turns += 1
        if turns > MAX_TURNS:
            loop.stop()
        return beat(*clients)

    loop.run_once = counted  # type: ignore[method-assign]
    loop.run()


def test_a_process_that_may_not_write_says_so_in_one_line(guarded: RealKafka, redis_url: str, tmp_path: Path) -> None:
    run = Running(guarded.servers, redis_url, tmp_path, "flights", 2)
    deny(guarded, ResourceType.TOPIC, run.name(topics.EVENTS_VALID), AclOperation.WRITE)
    env = run.stack.env | {"PATH": "", "PYTHONPATH": ":".join(sys.path)}
    event, producer = data.flights((1,), days=2)[0].event, run.broker.producer("outside")
    producer.emit(run.name(topics.EVENTS), run.records.event.encode(event), event["flight_id"].encode())
    producer.commit({}, None)
    producer.close()
    command = [sys.executable, "-m", "tidemill.cli", "run", "validator", run.reference]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert run.name(topics.EVENTS_VALID) in last
    assert "TOPIC_AUTHORIZATION_FAILED" in last
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
@pytest.mark.parametrize("topic", [topics.EVENTS_VALID, topics.DLQ], ids=lambda topic: topic.suffix)
def test_what_was_taken_away_and_given_back_loses_nothing(
    guarded: RealKafka, redis_url: str, tmp_path: Path, topic: Topic, delivery: str
) -> None:
    """A validator loses a right while it runs, is started again in vain, and once more when it has the right again."""
    run = Running(guarded.servers, redis_url, tmp_path, "flights", 2, delivery=delivery, fuse=False)
    events = [flight.event for flight in data.flights((1,), days=2)][:300]
    sender = run.broker.producer("outside")

    def send(begin: int, end: int) -> None:
        for number, event in enumerate(events[begin:end], begin):
            good = run.records.event.encode(event)
            sender.emit(run.name(topics.EVENTS), good if number % 10 else b"bad", event["flight_id"].encode())
        sender.commit({}, None)

    def records(of: Topic) -> list[Record]:
        return [one for batch in run.broker.read(full_range(run.broker, run.name(of))) for one in batch]

    def seen() -> Counter[bytes | None]:
        return Counter(one.key() for of in (topics.EVENTS_VALID, topics.DLQ) for one in records(of))

    def sent(of: Topic) -> Counter[str]:
        if of is topics.DLQ:
            return Counter(str((one.key() or b"").decode()) for one in records(of))
        return Counter(run.records.event.decode(one.value() or b"")["flight_id"] for one in records(of))

    try:
        first = run.stack.start("validator")
        run.stack.wait_ready()
        send(0, 100)
        until(lambda: sum(seen().values()) >= 100, "nothing arrives", 60, run.stack.check)
        deny(guarded, ResourceType.TOPIC, run.name(topic), AclOperation.WRITE)
        send(100, 200)
        until(lambda: first.poll() is not None, "it goes on without the right", 60)
        assert first.returncode == 1
        assert run.name(topic) in run.stack.last_line("validator")
        assert "TOPIC_AUTHORIZATION_FAILED" in run.stack.last_line("validator")
        before = seen()
        for _ in range(2):
            again = run.stack.start("validator")
            until(lambda process=again: process.poll() is not None, "it starts without the right", 60)
            assert again.returncode == 1
        assert seen() == before, "what is started again in vain writes nothing"
        send(200, 300)
        grant_again(guarded, ResourceType.TOPIC, run.name(topic))
        run.stack.start("validator")
        until(lambda: len(sent(topics.EVENTS_VALID) + sent(topics.DLQ)) >= 300, "some are lost", 60, run.stack.check)
    finally:
        run.stack.stop()
    counts = sent(topics.EVENTS_VALID) + sent(topics.DLQ)
    assert set(counts) == {event["flight_id"] for event in events}
    most = 1 if delivery == "exactly_once" else 2  # what had arrived of the batch whose offsets were not committed
    assert max(counts.values()) <= most
    assert "Traceback" not in run.stack.log("validator").read_text()
