"""What producers send by mistake or on purpose, against the running validator on a real Kafka."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType
from poison import Bad, Poison, is_event
from running import Running, until, worker

from tidemill.demo import data
from tidemill.stream.api import TopicPartition
from tidemill.stream.ranges import full_range
from tidemill.stream.topic import Topic
from tidemill.wire import topics
from tidemill.wire.dead_letters import text_headers

MUTANTS, FLIPPED, PARTITIONS = 12_000, 3_000, 4
FLIGHTS = data.flights((1,), days=12)
EVENTS = [flight.event for flight in FLIGHTS]
MB = 2**20


@pytest.fixture
def run(kafka, redis_url: str, tmp_path: Path) -> Iterator[Any]:
    made: list[Running] = []

    def begin(**options: Any) -> Running:
        made.append(Running(kafka.servers, redis_url, tmp_path, "flights", PARTITIONS, **options))
        return made[-1]

    yield begin
    for each in made:
        each.stack.stop()


def start(run: Running) -> int:
    """Start the validator; returns its worker's process id."""
    process = run.stack.start("validator")
    run.stack.wait_ready()
    return worker(process)


def producer(run: Running) -> Producer:
    return Producer(
        {"bootstrap.servers": run.broker.servers, "message.max.bytes": 2 * MB, "linger.ms": 5, "acks": "all"}
    )


def everything(run: Running, topic: Topic) -> list[Any]:
    """Return all committed records of a topic, in order within each partition.

    What is committed is read a moment later, when the transaction's markers are written.
    """
    name, broker = run.name(topic), run.broker
    slots = [TopicPartition(name, number) for number in range(broker.partitions(name))]
    until(
        lambda: all(broker.offset_range(slot)[1] == broker.end_offset(slot) for slot in slots),
        f"a transaction is open in {name}",
    )
    return [record for batch in broker.read(full_range(broker, name)) for record in batch]


def settled(run: Running, sent: int) -> bool:
    """Whether the validator has committed everything that was sent."""
    slots = [TopicPartition(run.name(topics.EVENTS), p) for p in range(PARTITIONS)]
    done = run.broker.committed(f"{run.pipeline.name}.validator", slots)
    return sum(position.offset for position in done.values() if position) >= sent


def test_every_mutant_is_a_dead_letter_byte_for_byte_and_the_good_events_among_them_pass_in_order(run) -> None:
    here = run(fuse="false")
    pid = start(here)
    chance = random.Random(7)
    codec, topic = here.records.event, here.name(topics.EVENTS)
    labels = [{"flight_id": e["flight_id"], "landed_at": e["asked_at"] + 1, "arr_delay": 1.0} for e in EVENTS[:50]]
    bad = list(Poison(here.records, EVENTS[:500], labels).made(MUTANTS, 11))
    changed = [{**chance.choice(EVENTS), "flight_id": f"changed-{n}"} for n in range(FLIPPED)]
    flipped = [Bad(flip(codec.encode(event), chance), (), "flipped") for event in changed]
    plan: list[Bad | dict[str, Any]] = [*bad, *flipped]
    chance.shuffle(plan)
    for place, event in zip(sorted(chance.sample(range(len(plan)), len(EVENTS) // 2)), EVENTS, strict=False):
        plan.insert(place + chance.randrange(2), event)
    out = producer(here)
    process = psutil.Process(pid)
    for number, message in enumerate(plan):
        is_bad = isinstance(message, Bad)
        value = message.data if is_bad else codec.encode(message)
        headers = [("sent-as", f"{number}".encode()), ("null", None)]
        key = b"\xff\0" if is_bad else message["origin"].encode()
        out.produce(topic, value, key, headers=headers, partition=chance.randrange(PARTITIONS) if is_bad else -1)
        out.poll(0)
        if number % 1500 == 0:
            assert out.flush(30) == 0  # some are a megabyte each
    assert out.flush(30) == 0
    until(lambda: settled(here, len(plan)), "the validator does not get on", 90, here.stack.check)
    assert worker(here.stack.processes["validator"]) == pid, "it was started again"

    source = {(r.partition(), r.offset()): r for r in everything(here, topics.EVENTS)}
    letters, valid = everything(here, topics.DLQ), everything(here, topics.EVENTS_VALID)
    assert len(source) == len(plan) == len(letters) + len(valid)
    refused, wrong = Counter(), []
    for letter in letters:
        headers = text_headers(letter)
        number = int(headers["sent-as"])
        at = (int(headers["__connect.errors.partition"]), int(headers["__connect.errors.offset"]))
        message = plan[number]
        assert isinstance(message, Bad), (message, headers)
        assert text_headers(source[at])["sent-as"] == str(number), "it says that it came from elsewhere"
        assert letter.value() == (source[at].value() or b"") == (message.data or b"")
        assert letter.key() == source[at].key()
        assert dict(letter.headers())["null"] is None
        refused[number] += 1
        if message.reasons and headers["tidemill.reason"] not in message.reasons:
            wrong.append(
                (message.kind, headers["tidemill.reason"], headers["__connect.errors.exception.message"][:120])
            )
    assert not wrong, wrong[:10]
    assert max(refused.values()) == 1
    assert all(number in refused for number, m in enumerate(plan) if isinstance(m, Bad) and m.reasons)
    let_in = [plan[n] for n in range(len(plan)) if isinstance(plan[n], Bad) and n not in refused]
    assert all(is_event(codec, message.data) for message in let_in), "only a flipped one that is an event again"

    good = [codec.encode(m) for m in plan if not isinstance(m, Bad)]
    of_ours = set(good)
    for origin in ("EWR", "JFK", "LGA"):
        expected = [value for value in good if codec.decode(value)["origin"] == origin]
        found = [r.value() for r in valid if r.key() == origin.encode() and r.value() in of_ours]
        assert found == expected, "the good ones, in order"
    # All of it again: what is kept of a bad message would be there once more each time. What a busy machine has on its
    # way takes memory, too, but only once.
    sent = len(plan)
    for _ in range(4):
        before = process.memory_info().rss
        for number, message in enumerate(bad):
            out.produce(topic, message.data, b"again", partition=chance.randrange(PARTITIONS))
            out.poll(0)
            if number % 1500 == 0:
                assert out.flush(30) == 0  # as before: no more is on its way at a time
        assert out.flush(30) == 0
        sent += len(bad)
        until(lambda sent=sent: settled(here, sent), "the validator does not get on", 90, here.stack.check)
        grown = (process.memory_info().rss - before) / MB
        if grown < 10:
            return
    pytest.fail(f"memory grew by {grown:.1f} MB over {len(bad):,} messages that it had seen before")


def flip(data: bytes, chance: random.Random) -> bytes:
    """Change a few bytes behind the header."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(5, len(changed))
        kind = chance.randrange(4)
        if kind == 0:
            changed[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del changed[place : place + chance.randint(1, 4)]
        elif kind == 2:
            changed[place:place] = chance.randbytes(chance.randint(1, 9))
        else:
            changed[place] = chance.choice((0, 0x7F, 0x80, 0xFF))
        if len(changed) < 8:
            break
    return bytes(changed)


def test_when_everything_is_poison_the_fuse_stops_it_within_a_thousand_and_it_stays_stopped(run) -> None:
    here = run()
    out, topic = producer(here), here.name(topics.EVENTS)
    for number in range(3_000):
        out.produce(topic, b"\x01poison %d" % number, partition=number % PARTITIONS)
    assert out.flush(30) == 0
    process = here.stack.start("validator")
    assert process.wait(30) not in (0, -signal.SIGKILL)
    line = here.stack.last_line("validator")
    for word in ("fuse", topic, "500 in a row", "bad_magic 500", "0x01", here.name(topics.DLQ), "TIDEMILL_FUSE"):
        assert word in line, line
    assert "Traceback" not in line
    assert len(everything(here, topics.DLQ)) == 500
    assert here.stack.start("validator").wait(30) != 0, "it holds when it is started again"
    assert len(everything(here, topics.DLQ)) == 501
    here.stack.env["TIDEMILL_FUSE"] = "false"
    start(here)
    until(lambda: settled(here, 3_000), "it does not go on without the fuse", 30, here.stack.check)
    letters = everything(here, topics.DLQ)
    assert sorted(letter.value() for letter in letters) == sorted(b"\x01poison %d" % n for n in range(3_000))


def test_a_record_that_no_topic_of_ours_takes_is_kept_in_part_and_its_neighbours_pass_once(run) -> None:
    """A bomb of 30 MB, 30 KB when it is compressed, a megabyte of headers, a key and an id that are as long."""
    here = run()
    topic, codec = here.name(topics.EVENTS), here.records.event
    start(here)
    out = Producer(
        {
            "bootstrap.servers": here.broker.servers,
            "message.max.bytes": 64 * MB,
            "compression.type": "gzip",
            "acks": "all",
        }
    )
    bombs: list[tuple[bytes, bytes, list[tuple[str, bytes]]]] = [
        (b"\0" * 30 * MB, b"k", []),
        (b"\x01", b"k", [(f"h{n}", b"x" * 1000) for n in range(3_000)]),
        (b"\x01", b"k" * 3 * MB, []),
        (codec.encode({**EVENTS[0], "flight_id": "x" * 900_000}), b"k", []),
        (codec.encode({**EVENTS[0], "tailnum": "x" * 900_000}), b"k", []),
    ]
    for number, (value, key, headers) in enumerate(bombs):
        out.produce(topic, codec.encode(EVENTS[2 * number]), b"k", partition=0)
        out.produce(topic, value, key, headers=headers, partition=0)
        out.produce(topic, codec.encode(EVENTS[2 * number + 1]), b"k", partition=0)
        assert out.flush(30) == 0  # a batch of each
    until(lambda: settled(here, 3 * len(bombs)), "it does not go on", 60, here.stack.check)
    valid = [codec.decode(r.value())["flight_id"] for r in everything(here, topics.EVENTS_VALID)]
    assert sorted(valid) == sorted(event["flight_id"] for event in EVENTS[: 2 * len(bombs)])
    letters = sorted(everything(here, topics.DLQ), key=lambda r: int(text_headers(r)["__connect.errors.offset"]))
    said = [(text_headers(letter)["tidemill.reason"], "tidemill.cut" in text_headers(letter)) for letter in letters]
    assert said == [
        ("too_large", True), ("bad_magic", True), ("bad_magic", True), ("too_long", False), ("too_long", False),
    ]  # fmt: skip
    assert int(text_headers(letters[0])["tidemill.cut"]) > 30 * MB
    assert [letter.value() for letter in letters[3:]] == [value for value, _, _ in bombs[3:]]


def test_while_dead_letters_cannot_be_written_nothing_advances_and_then_nothing_is_missing(run) -> None:
    here = run()
    dlq, topic, codec = here.name(topics.DLQ), here.name(topics.EVENTS), here.records.event
    admin = AdminClient({"bootstrap.servers": here.broker.servers})

    def allow(most: int) -> None:
        entry = ConfigEntry("max.message.bytes", str(most), incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ResourceType.TOPIC, dlq, incremental_configs=[entry])
        for done in admin.incremental_alter_configs([resource]).values():
            done.result(10)

    pid = start(here)  # a topic that takes no letter is found at a start: this one comes to be so while it runs
    allow(200)  # room for the marks of transactions, and for no letter
    out = producer(here)
    sent = [codec.encode(e) if n % 10 else b"\x01%d" % n for n, e in enumerate(EVENTS[:1000])]
    for value in sent:
        out.produce(topic, value, partition=0)
    assert out.flush(30) == 0
    with pytest.raises(AssertionError, match="it advanced"):
        until(lambda: settled(here, 1), "it advanced", 8, here.stack.check)
    assert everything(here, topics.DLQ) == everything(here, topics.EVENTS_VALID) == []
    allow(2 * MB)
    until(lambda: settled(here, len(sent)), "it does not go on", 60, here.stack.check)
    assert Counter(r.value() for r in everything(here, topics.DLQ)) == Counter(v for v in sent if v[:1] == b"\x01")
    assert Counter(r.value() for r in everything(here, topics.EVENTS_VALID)) == Counter(
        v for v in sent if v[:1] == b"\0"
    )
    os.kill(pid, 0)  # the same process
