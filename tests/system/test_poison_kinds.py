"""Each kind of record that could stop a partition, among ten thousand good ones, on a real broker."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType
from fork_server import spawn_forked
from running import Running, until, worker

from tidemill.declare.load import load
from tidemill.local.stack import Stack
from tidemill.runtime.run import topic_table
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.stream.ranges import full_range
from tidemill.stream.topic import Topic
from tidemill.wire import topics
from tidemill.wire.dead_letters import DeadLetter, read_dead_letter, text_headers
from tidemill.wire.records import Records

GOOD, NOTES = 10_000, 8
MB = 1_000_000
STAGES = ("validator", "featurizer", "scorer", "joiner")
DECLARATION = """
from river import compose, linear_model
from tidemill import Pipeline, Stream, View, aggregates, category, number

notes = {{f"note{{n}}": category(f"note{{n}}") for n in range({notes})}}
pipeline = Pipeline(
    name="{name}",
    events=Stream("event.avsc", id="id", time="at", key="user"),
    labels=Stream("label.avsc", id="id", time="at", value="bad"),
    task="binary",
    request={{"amount": number("amount"), **notes}},
    models={{"m": compose.SelectType(float) | linear_model.LogisticRegression()}},
    champion="m", label_timeout="48h", partitions=2,
    views=[
        View("user", every="1m", aggregates=[aggregates.count("1h")]),
        View("shop", every="1m", aggregates=[aggregates.last("amount", "1h")]),
    ],
)
"""


def schema(name: str, *fields: tuple[str, Any]) -> str:
    return json.dumps({"type": "record", "name": name, "fields": [{"name": n, "type": kind} for n, kind in fields]})


TIME = {"type": "long", "logicalType": "timestamp-millis"}
EVENT = schema(
    "Event", ("id", "string"), ("at", TIME), ("user", "string"), ("shop", "string"), ("amount", "double"),
    *((f"note{n}", "string") for n in range(NOTES)),
)  # fmt: skip
LABEL = schema("Label", ("id", "string"), ("at", TIME), ("bad", "boolean"))


class Shop(Running):
    """A pipeline whose events have many texts, as processes."""

    def __init__(self, servers: str, redis_url: str, folder: Path, name: str, **settings: object) -> None:
        (folder / "event.avsc").write_text(EVENT)
        (folder / "label.avsc").write_text(LABEL)
        declaration = folder / f"{name}.py"
        declaration.write_text(DECLARATION.format(name=name, notes=NOTES))
        self.reference = str(declaration)
        self.pipeline = load(self.reference)
        self.records, self.broker = Records(self.pipeline), KafkaBroker(servers)
        self.broker.create(topic_table(self.pipeline))
        self.stack = Stack(
            self.reference,
            self.pipeline,
            folder,
            {"brokers": servers, "redis_url": redis_url, "fuse": "false", **settings},
        )
        self.stack.spawn = spawn_forked
        self.out = Producer(
            {
                "bootstrap.servers": servers, "message.max.bytes": 10 * MB, "compression.type": "gzip",
                "linger.ms": 5, "acks": "all", "partitioner": "murmur2_random",
            }
        )  # fmt: skip

    def allow(self, topic: Topic, most: int) -> None:
        """Set the largest message that a topic takes."""
        entry = ConfigEntry("max.message.bytes", str(most), incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ResourceType.TOPIC, self.name(topic), incremental_configs=[entry])
        admin = AdminClient({"bootstrap.servers": self.broker.servers})
        for done in admin.incremental_alter_configs([resource]).values():
            done.result(10)

    def event(self, number: int, **changes: Any) -> bytes:
        texts = dict.fromkeys((f"note{n}" for n in range(NOTES)), "")
        event = {"id": f"e{number}", "user": f"u{number % 50}", "shop": f"s{number % 9}", "amount": float(number)}
        return self.records.event.encode({**event, "at": int(time.time() * 1000), **texts, **changes})

    def send(self, value: bytes | None, key: bytes | None, headers: Any = (), topic: Topic = topics.EVENTS) -> None:
        self.out.produce(self.name(topic), value, key, headers=list(headers))
        self.out.poll(0)

    def committed(self, topic: Topic) -> list[Any]:
        return [one for batch in self.broker.read(full_range(self.broker, self.name(topic))) for one in batch]

    def ids(self, topic: Topic) -> Counter[str]:
        head, is_ours = self.records.head.record, self.records.event_time
        sound = (one.value() for one in self.committed(topic) if is_ours(one.value()) is not None)
        return Counter(head(value, 5)["event_id"] for value in sound)

    def letters(self) -> list[DeadLetter]:
        return [read_dead_letter(one) for one in self.committed(topics.DLQ)]


def small_kinds(here: Shop) -> list[tuple[str, bytes]]:
    """Return messages of a usual size that are no event, with the reason of each."""
    good = here.event(-10, user="marked")
    event = {"id": "e-11", "at": int(time.time() * 1000), "user": "u1", "shop": "s1", "amount": 1.0}
    event |= dict.fromkeys((f"note{n}" for n in range(NOTES)), "")

    def as_json(**changes: Any) -> bytes:
        return json.dumps({**event, **changes}).encode()

    return [
        ("truncated", good[:-2]),
        ("trailing_bytes", good + b"x"),
        ("unknown_schema", b"\0\0\0\0\1" + good[5:]),
        ("undecodable", good.replace(b"marked", b"\xff\xfe\xff\xfe\xff\xfe")),
        ("undecodable", good[:5] + b"\xff" * 20 + good[5:]),
        ("not_finite", here.event(-12, amount=math.nan)),
        ("out_of_range", here.event(-13, amount=1e300)),
        ("in_the_future", here.event(-14, at=4_000_000_000_000)),
        ("implausible_time", here.event(-15, at=-(2**62))),
        ("missing_value", here.event(-16, id="")),
        ("not_json", as_json()[:-5]),
        ("not_json", as_json() + as_json()),
        ("duplicate_field", as_json()[:-1] + b', "amount": 2.0}'),
        ("missing_field", json.dumps({name: event[name] for name in event if name != "amount"}).encode()),
        ("wrong_type", as_json(amount="much")),
        ("unexpected_field", as_json(other=1)),
    ]


@pytest.fixture
def shop(kafka, redis_url: str, tmp_path: Path) -> Iterator[Callable[..., Shop]]:
    made: list[Shop] = []

    def begin(name: str, **settings: object) -> Shop:
        made.append(Shop(kafka.servers, redis_url, tmp_path, name, **settings))
        return made[-1]

    yield begin
    for one in made:
        one.stack.stop()


@pytest.mark.slow
@pytest.mark.parametrize("delivery", ["exactly_once", pytest.param("at_least_once", marks=pytest.mark.long)])
def test_every_good_event_is_predicted_once_and_every_poison_is_a_dead_letter(shop, delivery: str) -> None:
    here = shop(f"kinds-{delivery.partition('_')[0]}", delivery=delivery)
    for topic in (topics.EVENTS, topics.LABELS):
        here.allow(topic, 10 * MB)
    for stage in STAGES:
        here.stack.start(stage)
    here.stack.wait_ready()
    workers = {stage: worker(here.stack.processes[stage]) for stage in STAGES}
    long = "x" * 400_000
    kinds: list[tuple[str, bytes | None, bytes | None, list[tuple[str, bytes]]]] = [
        ("too_long", here.event(-1, user=long), long.encode(), []),
        ("too_large", here.event(-2, note0="x" * 3 * MB), b"k", []),
        ("too_large", b"\0" * 5 * MB, b"k", []),
        ("bad_magic", b"\1", b"k", [(f"h{n}", b"x" * 1000) for n in range(3_000)]),
        ("too_long", here.event(-3, id=long), b"k", []),
        ("too_long", here.event(-4, **{f"note{n}": "x" * 20_000 for n in range(NOTES)}), b"k", []),
        ("empty", None, None, []),
        ("empty", b"", b"", []),
        *((reason, value, b"k", []) for reason, value in small_kinds(here)),
    ]
    large = {f"note{n}": "é" * 10_000 for n in range(NOTES)}  # 160 kB that are allowed, and twice in what is served
    at = {100 + 400 * number: kind for number, kind in enumerate(kinds)}
    assert max(at) < GOOD
    for number in range(GOOD):
        if number in at:
            here.send(*at[number][1:])
        here.send(here.event(number, **(large if number % 1000 == 7 else {})), b"u%d" % (number % 50))
    label = {"id": "y" * 400_000, "at": int(time.time() * 1000), "bad": True}
    here.send(here.records.label.encode(label), b"k", topic=topics.LABELS)
    assert here.out.flush(60) == 0
    expected = Counter(kind for kind, *_ in kinds) + Counter(["too_long"])

    def all_letters(many: int) -> bool:
        return len(here.letters()) >= many

    until(lambda: all_letters(len(kinds) + 1), "not all are dead letters", 120, here.stack.check)
    until(lambda: sum(here.ids(topics.PREDICTION_LOG).values()) >= GOOD, "not all are predicted", 120, here.stack.check)
    assert Counter(letter.reason for letter in here.letters()) == expected
    for one in here.committed(topics.DLQ):
        letter, headers = read_dead_letter(one), text_headers(one)
        assert letter.offset is not None
        if letter.cut_from:
            assert len(headers["tidemill.sha256"]) == 64
            assert letter.cut_from > 2 * MB

    # What fits is made not to fit, while it runs.
    here.allow(topics.FEATURES, 50_000)
    late = 300
    for number in range(GOOD, GOOD + late):
        here.send(here.event(number, **(large if number % 100 == 50 else {})), b"u%d" % (number % 50))
    assert here.out.flush(60) == 0
    refused = {f"e{number}" for number in range(GOOD, GOOD + late) if number % 100 == 50}
    until(lambda: all_letters(len(kinds) + 1 + len(refused)), "what is refused is no letter", 120, here.stack.check)
    many = GOOD + late - len(refused)
    until(lambda: sum(here.ids(topics.PREDICTION_LOG).values()) >= many, "the others wait", 120, here.stack.check)
    of_refused = [letter for letter in here.letters() if letter.reason == "not_written"]
    assert [letter.stage for letter in of_refused] == ["featurizer"] * len(refused)
    delays = [(letter.refused_at - letter.sent_at) / 1000 for letter in here.letters()]
    print(f"{delivery}: dead letters after {max(delays):.1f} s at most: {sorted(delays)}")

    # Each return gives up a transaction, which is what takes the time: one to learn the limit, one to find all refused.
    returns = here.stack.log("featurizer").read_text().count("going back to what is committed")
    assert returns <= 2 * len(refused)
    print(f"{delivery}: {returns} returns")

    good = {f"e{number}" for number in range(GOOD + late)} - refused
    for topic in (topics.FEATURES, topics.PREDICTION_LOG, topics.PREDICTIONS):
        assert here.ids(topic) == Counter(dict.fromkeys(good, 1)), topic.suffix

    # Somebody else writes to topics of ours.
    readers = {
        topics.EVENTS_VALID: "featurizer",
        topics.FEATURES: "scorer",
        topics.PREDICTION_LOG: "joiner",
        topics.LABELS_VALID: "joiner",
    }
    before = len(here.letters())
    for topic in readers:
        here.send(b"\0\0\0", b"k", topic=topic)
    assert here.out.flush(60) == 0
    until(lambda: all_letters(before + len(readers)), "not all are dead letters", 120, here.stack.check)
    foreign = {letter.topic: (letter.stage, letter.reason) for letter in here.letters() if letter.size == 3}
    assert foreign == {here.name(topic): (stage, "unknown_schema") for topic, stage in readers.items()}
    here.send(here.event(-5), b"u1")
    assert here.out.flush(60) == 0
    until(lambda: here.ids(topics.PREDICTIONS)["e-5"] == 1, "the stream stands still", 60, here.stack.check)
    assert {stage: worker(here.stack.processes[stage]) for stage in STAGES} == workers, "one was started again"
