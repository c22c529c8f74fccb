"""Topics that are not as declared, at a start and while running: who uses them stops, before anything is misplaced."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewPartitions
from running import Running, until

from tidemill.cli.main import cli
from tidemill.demo import data
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.stream.partition import partition_of
from tidemill.stream.ranges import full_range
from tidemill.stream.topic import Topic
from tidemill.wire import topics

pytestmark = [pytest.mark.kafka, pytest.mark.slow]
EVENTS = [flight.event for flight in data.flights((1,), days=2)]


def grow(run: Running, topic: Topic, partitions: int) -> None:
    admin = AdminClient({"bootstrap.servers": run.broker.servers})
    admin.create_partitions([NewPartitions(run.name(topic), partitions)])[run.name(topic)].result(10)


@pytest.mark.parametrize("delivery", ["exactly_once", pytest.param("at_least_once", marks=pytest.mark.long)])
def test_a_topic_that_grows_under_load_stops_who_writes_and_who_reads_it(kafka, redis_url, tmp_path, delivery) -> None:
    run = Running(kafka.servers, redis_url, tmp_path, "flights", 2, delivery=delivery)
    out, sent = Producer({"bootstrap.servers": kafka.servers, "linger.ms": 5}), 0

    def send() -> bool:
        nonlocal sent
        for event in EVENTS[sent : sent + 5]:
            out.produce(run.name(topics.EVENTS), run.records.event.encode(event), event["flight_id"].encode())
        sent += 5
        out.poll(0)
        return False

    try:
        roles = ("validator", "featurizer")
        processes = [run.stack.start(role) for role in roles]
        run.stack.wait_ready()
        send()
        assert out.flush(10) == 0
        until(
            lambda: sum(e - b for b, e in full_range(run.broker, run.name(topics.FEATURES)).values()) > 0,
            "no vector comes", 60, run.stack.check,
        )  # fmt: skip
        grow(run, topics.EVENTS_VALID, 4)
        until(lambda: send() or all(process.poll() is not None for process in processes), "they go on", 60)
        assert [process.returncode for process in processes] == [1, 1]
        for role in roles:
            last = run.stack.log(role).read_text().strip().splitlines()[-1]
            assert f"topic {run.name(topics.EVENTS_VALID)} has 4 partitions where 2 are declared" in last
            assert "tidemill grow" in last
    finally:
        run.stack.stop()
    for topic in (topics.EVENTS_VALID, topics.FEATURES):
        ranges = full_range(KafkaBroker(kafka.servers), run.name(topic))  # all partitions that there are now
        records = [record for batch in run.broker.read(ranges) for record in batch]
        assert records
        assert all(record.partition() == partition_of(record.key(), 2) for record in records)


def test_a_service_does_not_start_and_the_commands_show_what_differs(kafka, redis_url, tmp_path: Path) -> None:
    run = Running(kafka.servers, redis_url, tmp_path, "flights", 2)
    assert run.broker.partitions(run.name(topics.LABELS_VALID)) == 2
    grow(run, topics.LABELS_VALID, 4)

    def seen() -> bool:
        run.broker.topic_states([run.name(topics.LABELS_VALID)])
        return run.broker.partitions(run.name(topics.LABELS_VALID)) == 4

    until(seen, "who looks at topics knows how many partitions they have now", 60)
    env = run.stack.env | {"PATH": "", "PYTHONPATH": ":".join(sys.path)}

    def tidemill(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tidemill.cli", *words]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)

    started = tidemill("run", "joiner", run.reference)
    assert started.returncode == 1
    name = run.name(topics.LABELS_VALID)
    assert f"{name}: partitions is 4, expected 2" in started.stderr.strip().splitlines()[-1]
    shown = tidemill("topics", run.reference)
    assert shown.returncode == 0
    assert "differ" in shown.stdout
    assert f"{name}: partitions" in shown.stdout
    found = {one["what"]: one for one in json.loads(tidemill("doctor", run.reference, "--json").stdout)}
    assert (found[f"{name}: partitions"]["level"], found[f"{name}: partitions"]["value"]) == ("wrong", "4")


@pytest.mark.long
def test_derived_topics_that_are_deleted_and_grown_at_once_stop_their_services_and_the_status_service_shows_it(
    kafka, redis_url, tmp_path: Path
) -> None:
    run = Running(kafka.servers, redis_url, tmp_path, "flights", 2)
    out = Producer({"bootstrap.servers": kafka.servers, "linger.ms": 5})
    gone, grown = run.name(topics.FEATURES), [run.name(one) for one in (topics.PREDICTION_LOG, topics.EXAMPLES)]

    def send(begin: int) -> None:
        for event in EVENTS[begin : begin + 20]:
            out.produce(run.name(topics.EVENTS), run.records.event.encode(event), event["flight_id"].encode())
        assert out.flush(10) == 0

    try:
        stopped = [run.stack.start(role) for role in ("featurizer", "scorer", "monitor")]
        run.stack.start("validator")
        run.stack.start("status")
        run.stack.wait_ready()
        send(0)
        until(
            lambda: sum(e - b for b, e in full_range(run.broker, grown[0]).values()) > 0,
            "no prediction comes", 60, run.stack.check,
        )  # fmt: skip
        admin = AdminClient({"bootstrap.servers": kafka.servers})
        admin.delete_topics([gone])[gone].result(10)
        grow(run, topics.PREDICTION_LOG, 4)
        grow(run, topics.EXAMPLES, 2)
        send(20)
        until(lambda: all(process.poll() is not None for process in stopped), "they go on", 90)
        last = {role: run.stack.log(role).read_text().strip().splitlines()[-1] for role in ("featurizer", "scorer")}
        assert f"topic {gone} was deleted while it was used" in last["featurizer"]
        assert f"topic {grown[0]} has 4 partitions where 2 are declared" in last["scorer"]
        said = run.stack.log("monitor").read_text()
        assert f"topic {grown[0]} has 4 partitions where 2 are declared; topic {grown[1]} has 2" in said
        shown = ""

        def is_shown() -> bool:
            nonlocal shown
            code, shown = run.stack.fetch("status", "/readyz")
            return code == 503 and all(one in shown for one in (gone, *grown))

        until(is_shown, "the status service does not show it", 60)
    finally:
        run.stack.stop()


def test_apply_gives_topics_the_declared_settings_and_asks_where_records_would_go(
    kafka, redis_url, tmp_path: Path
) -> None:
    run = Running(kafka.servers, redis_url, tmp_path, "flights", 2)
    name, others = run.name(topics.EVENTS_VALID), run.name(topics.EVENTS)
    run.broker.change_topics({name: {"retention.ms": "99999999999", "cleanup.policy": "compact"}})
    changed = Path(run.reference)
    shorter = changed.read_text().replace(
        "partitions=2,", "partitions=2, retention=__import__('tidemill').Retention(topics={'events': '3d'}),"
    )
    env = {"TIDEMILL_BROKERS": kafka.servers}

    def tidemill(*words: str, text: str = "") -> Result:
        return CliRunner().invoke(cli, ["topics", run.reference, *words], env=env, input=text, catch_exceptions=False)

    def setting(topic: str, key: str) -> str | None:
        return run.broker.settings([topic]).topics[topic].settings.get(key)

    until(lambda: setting(name, "cleanup.policy") == "compact", "brokers have not heard of it")
    shown = tidemill("--apply", "--dry-run")
    assert shown.exit_code == 0
    assert re.search(rf"{name} .*cleanup.policy .*compact .*delete .*deletes records", shown.output)
    assert setting(name, "cleanup.policy") == "compact", "nothing was changed"
    assert tidemill("--apply", text="n\n").exit_code == 1
    assert setting(name, "cleanup.policy") == "compact"
    assert "changed 2 settings" in tidemill("--apply", text="y\n").output
    until(lambda: setting(name, "cleanup.policy") == "delete", "brokers have not heard of it")
    assert "as declared" in tidemill("--apply", "--dry-run").output

    kept = setting(others, "retention.ms")
    changed.write_text(shorter)
    assert "deletes records" in tidemill("--apply", "--dry-run").output
    assert setting(others, "retention.ms") == kept
    assert tidemill("--apply", "--yes").exit_code == 0
    until(lambda: setting(others, "retention.ms") == str(3 * 86_400_000), "brokers have not heard of it")
    changed.write_text(shorter.replace("'3d'", "'30d'"))
    longer = tidemill("--apply")  # asks nothing
    assert (longer.exit_code, "deletes records" in longer.output) == (0, False)
