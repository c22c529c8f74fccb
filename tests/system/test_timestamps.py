"""Whatever timestamps producers give their records: what services write is kept until it is read, and refused never."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import TIMESTAMP_CREATE_TIME, Producer
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType
from real_kafka import RealKafka, missing
from running import Running, until

from tidemill.demo import data
from tidemill.stream.api import TopicPartition
from tidemill.stream.origin import IMPLAUSIBLE, origin_of
from tidemill.stream.ranges import full_range
from tidemill.stream.topic import DAY, Topic
from tidemill.wire import topics

pytestmark = [pytest.mark.kafka, pytest.mark.slow]
PARTITIONS, OF_EACH = 2, 20
NOW = int(time.time() * 1000)
#: By name, the timestamp of some records; 0 leaves it to the client. Other negative ones no broker takes.
TIMESTAMPS = {
    "tomorrow": NOW + DAY, "1970": 1, "2013": 1_357_000_000_000, "year 9999": 253_402_300_799_000, "none": -1,
    "now": 0,
}  # fmt: skip
PLAUSIBLE = ("1970", "2013", "now")
KINDS = list(TIMESTAMPS)
EVENTS = [flight.event for flight in data.flights((1,), days=2)][: OF_EACH * len(KINDS)]


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealKafka]:
    """A broker that deletes by time every quarter of a second."""
    if lacking := missing():
        pytest.skip(f"no real Kafka: {lacking}")
    broker = RealKafka(tmp_path_factory.mktemp("hasty"), "log.retention.check.interval.ms=250")
    yield broker
    broker.stop()


def kind_of(number: int) -> str:
    return KINDS[number % len(KINDS)]


def configure(servers: str, topic: str, **settings: object) -> None:
    """Set a topic's settings, and wait until the broker goes by them."""
    _configure(servers, topic, **settings)
    # It goes by what was set in the order in which it was: when a later setting holds, the earlier does.
    canary, kinds, out = f"{topic}-canary-{time.monotonic_ns()}", [], Producer({"bootstrap.servers": servers})
    config = {"message.timestamp.type": "LogAppendTime"}
    admin = AdminClient({"bootstrap.servers": servers})
    admin.create_topics([NewTopic(canary, 1, 1, config=config)])[canary].result(10)
    _configure(servers, canary, message_timestamp_type="CreateTime")

    def holds() -> bool:
        out.produce(canary, b"now", on_delivery=lambda _, record: kinds.append(record.timestamp()[0]))
        return out.flush(10) == 0 and kinds[-1] == TIMESTAMP_CREATE_TIME

    until(holds, "the settings do not come to the broker", 30)


def _configure(servers: str, topic: str, **settings: object) -> None:
    entries = [
        ConfigEntry(name.replace("_", "."), str(value), incremental_operation=AlterConfigOpType.SET)
        for name, value in settings.items()
    ]
    admin = AdminClient({"bootstrap.servers": servers})
    for future in admin.incremental_alter_configs(
        [ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)]
    ).values():
        future.result(10)


def retention_runs(run: Running) -> None:
    """Wait until the broker has deleted by time twice since now: what it had to delete is gone then."""
    admin = AdminClient({"bootstrap.servers": run.broker.servers})
    for number in (1, 2):
        canary = f"{run.pipeline.name}-canary-{time.monotonic_ns()}-{number}"
        admin.create_topics([NewTopic(canary, 1, 1, config={"retention.ms": str(7 * DAY)})])[canary].result(10)
        out = Producer({"bootstrap.servers": run.broker.servers})
        out.produce(canary, b"old", timestamp=TIMESTAMPS["2013"])
        assert out.flush(10) == 0
        until(lambda name=canary: run.broker.offset_range(TopicPartition(name, 0))[0] == 1, "nothing is ever deleted")


def everything(run: Running, topic: Topic) -> list:
    return [record for batch in run.broker.read(full_range(run.broker, run.name(topic))) for record in batch]


def settled(run: Running, service: str, topic: Topic, sent: int) -> bool:
    """Whether a service has committed all that was sent to a topic."""
    partitions = [TopicPartition(run.name(topic), p) for p in range(run.broker.partitions(run.name(topic)))]
    ends = {p: run.broker.offset_range(p)[1] for p in partitions}
    done = run.broker.committed(f"{run.pipeline.name}.{service}", partitions)
    return sum(ends.values()) >= sent and all(
        end == 0 or (done[p] is not None and done[p].offset >= end - 1) for p, end in ends.items()
    )


def send(run: Running) -> None:
    """Send the events, each with its kind of timestamp."""
    out = Producer({"bootstrap.servers": run.broker.servers})
    refused = []
    for kind, timestamp in TIMESTAMPS.items():  # a broker refuses a batch of which it refuses one record

        def sent(error: object, _: object, kind: str = kind) -> None:
            if error:
                refused.append(f"{kind}: {error}")

        for number, event in enumerate(EVENTS):
            if kind_of(number) == kind:
                value, key = run.records.event.encode(event), event["flight_id"].encode()
                out.produce(run.name(topics.EVENTS), value, key, timestamp=timestamp, on_delivery=sent)
        assert out.flush(30) == 0
    assert not refused


@pytest.mark.parametrize(
    ("delivery", "is_ours"),
    [
        ("exactly_once", False),
        pytest.param("at_least_once", False, marks=pytest.mark.long),
        pytest.param("exactly_once", True, marks=pytest.mark.long),
    ],
)
def test_history_and_wrong_clocks_pass_whole_and_once(
    hasty: RealKafka, redis_url: str, tmp_path: Path, delivery: str, *, is_ours: bool
) -> None:
    run = Running(hasty.servers, redis_url, tmp_path, "flights", PARTITIONS, delivery=delivery)
    if not is_ours:  # the topic of somebody who wants producers' times in it
        configure(
            hasty.servers, run.name(topics.EVENTS), retention_ms=-1, message_timestamp_type="CreateTime",
            message_timestamp_after_max_ms=2**63 - 1,
        )  # fmt: skip
    send(run)
    sent_by = time.time() * 1000
    try:
        run.stack.start("validator")
        run.stack.wait_ready()
        until(
            lambda: settled(run, "validator", topics.EVENTS, len(EVENTS)), "the validator stands", 60, run.stack.check
        )
        retention_runs(run)
        valid = everything(run, topics.EVENTS_VALID)
        assert len(valid) == len(EVENTS), "what the featurizer still has to read was deleted"

        run.stack.start("featurizer")
        run.stack.wait_ready()
        until(
            lambda: settled(run, "featurizer", topics.EVENTS_VALID, len(EVENTS)), "the featurizer stands", 60,
            run.stack.check,
        )  # fmt: skip
        retention_runs(run)
        for service in ("validator", "featurizer"):
            metrics = run.stack.fetch(service, "/metrics")[1]
            assert f'tidemill_retries_total{{service="{service}"}} 0.0' in metrics
        many, metrics = OF_EACH * (len(KINDS) - len(PLAUSIBLE)), run.stack.fetch("validator", "/metrics")[1]
        counted = (
            f'tidemill_implausible_timestamps_total{{service="validator",topic="{run.name(topics.EVENTS)}"}} {many}'
        )
        assert (counted in metrics) is not is_ours
        assert ("may delete them before they are read" in run.stack.log("validator").read_text()) is not is_ours
    finally:
        run.stack.stop()

    features = everything(run, topics.FEATURES)
    assert not everything(run, topics.DLQ)
    numbers = {event["flight_id"]: number for number, event in enumerate(EVENTS)}
    by_id = {run.records.features.decode(record.value())["event_id"]: record for record in features}
    assert Counter(map(kind_of, (numbers[id_] for id_ in by_id))) == dict.fromkeys(KINDS, OF_EACH)
    assert len(features) == len(EVENTS)
    for record in (*valid, *features):
        assert abs(record.timestamp()[1] - sent_by) < DAY / 24, "it is kept by when it was written"
    for record in valid:
        kind = kind_of(numbers[run.records.event.decode(record.value())["flight_id"]])
        headers = dict(record.headers())
        if kind in PLAUSIBLE or is_ours:
            assert IMPLAUSIBLE not in headers
        else:
            assert headers[IMPLAUSIBLE] == str(TIMESTAMPS[kind]).encode()
    for id_, record in by_id.items():
        kind = kind_of(numbers[id_])
        expected = TIMESTAMPS[kind] if kind in ("1970", "2013") and not is_ours else sent_by
        assert abs(origin_of(record) - expected) < (DAY / 24 if expected == sent_by else 1), kind


def test_a_raw_topic_that_deletes_history_unread_is_named_at_the_start_and_by_doctor(
    hasty: RealKafka, redis_url: str, tmp_path: Path
) -> None:
    from tidemill.runtime.doctor import examine

    run = Running(hasty.servers, redis_url, tmp_path, "flights", PARTITIONS)
    raw = run.name(topics.EVENTS)
    configure(hasty.servers, raw, message_timestamp_type="CreateTime", message_timestamp_after_max_ms=2 * DAY)
    spoken = {finding.what: finding for finding in examine(run.pipeline, run.broker) if finding.level == "warning"}
    settings = {f"{raw}: message.timestamp.before.max.ms", f"{raw}: message.timestamp.after.max.ms"}
    assert settings <= spoken.keys()
    assert "LogAppendTime" in spoken[f"{raw}: message.timestamp.before.max.ms"].expected
    try:
        run.stack.start("validator")
        run.stack.wait_ready()
        assert all(setting in run.stack.log("validator").read_text() for setting in settings)
    finally:
        run.stack.stop()
