"""What of a cluster can eat a pipeline is named, with what to do; what state hangs on stops a service at its start."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tidemill import Retention, load, settings
from tidemill.cli import doctor as command
from tidemill.errors import BrokerError
from tidemill.runtime import run as running
from tidemill.runtime.doctor import Finding, check_settings, examine_settings, judge, keep_alive
from tidemill.stream.kafka.settings import ClusterSettings, TopicSettings
from tidemill.stream.topic import DAY
from tidemill.wire import topics

PIPELINE = load("flights")
GOOD_BROKER = {
    "offsets.retention.minutes": "10080",
    "offset.metadata.max.bytes": "4096",
    "auto.create.topics.enable": "false",
}


def good(name: str = "", **changes: Any) -> ClusterSettings:
    """Return a cluster of three brokers on which all is well; `changes` are of the topic whose suffix is `name`."""
    made = {}
    for topic, full, partitions in running.topic_table(PIPELINE):
        settings = {
            "cleanup.policy": "compact" if topic.compacted else "delete", "retention.ms": str(topic.retention_ms),
            "retention.bytes": "-1", "unclean.leader.election.enable": "false", "min.insync.replicas": "2",
            "max.message.bytes": str(2**21), "message.timestamp.type": "CreateTime",
        }  # fmt: skip
        made[full] = TopicSettings(partitions, 3, settings)
        if topic.suffix == name:
            settings |= {key.replace("_", "."): value for key, value in changes.get("settings", {}).items()}
            made[full] = replace(made[full], **{key: value for key, value in changes.items() if key != "settings"})
    return ClusterSettings(dict.fromkeys((1, 2, 3), GOOD_BROKER), made)


def bad(cluster: ClusterSettings) -> list[Finding]:
    return [finding for finding in judge(PIPELINE, cluster, topics.TOPICS) if finding.level != "ok"]


def test_where_all_is_well_nothing_is_said() -> None:
    assert bad(good()) == []
    assert len(judge(PIPELINE, good(), topics.TOPICS)) > 100


@pytest.mark.parametrize(
    ("topic", "setting", "value", "level"),
    [
        ("examples", "cleanup.policy", "compact", "wrong"),
        ("events.valid", "cleanup.policy", "compact,delete", "wrong"),
        ("progress", "cleanup.policy", "delete", "wrong"),
        ("progress", "cleanup.policy", "compact,delete", "wrong"),
        ("examples", "retention.ms", str(365 * DAY), "wrong"),
        ("models", "retention.ms", "0", "wrong"),
        ("promotions", "retention.bytes", "1000000", "wrong"),
        ("events.valid", "retention.ms", str(7 * DAY), "warning"),
        ("events.valid", "retention.ms", "60000", "wrong"),
        ("prediction-log", "retention.ms", str(PIPELINE.label_timeout_ms - 1), "wrong"),
        ("labels.valid", "retention.ms", str(PIPELINE.label_timeout_ms + 1), "warning"),
        ("predictions", "retention.ms", "1000", "warning"),
        ("features", "retention.bytes", "1000000", "warning"),
        ("dlq", "max.message.bytes", "1000000", "wrong"),
        ("features", "unclean.leader.election.enable", "true", "warning"),
        ("features", "min.insync.replicas", "4", "wrong"),
        ("features", "min.insync.replicas", "3", "warning"),
        ("features", "min.insync.replicas", "1", "warning"),
        ("events", "message.timestamp.before.max.ms", str(2**63 - 1), "warning"),
        ("labels", "message.timestamp.after.max.ms", str(DAY), "warning"),
    ],
)
def test_a_topic_setting_that_can_eat_a_pipeline(topic: str, setting: str, value: str, level: str) -> None:
    (finding,) = bad(good(topic, settings={setting.replace(".", "_"): value}))
    assert finding.level == level
    assert finding.what.startswith(f"flights.{topic}: {setting}")
    assert value in finding.value
    assert finding.fix


@pytest.mark.parametrize(
    ("topic", "setting", "value"),
    [
        ("features", "retention.ms", "-1"),
        ("features", "retention.ms", str(400 * DAY)),
        ("features", "message.timestamp.type", "LogAppendTime"),
        ("events", "message.timestamp.type", "LogAppendTime"),
        ("labels", "message.timestamp.before.max.ms", str(DAY)),
    ],
)
def test_to_keep_longer_is_right(topic: str, setting: str, value: str) -> None:
    assert bad(good(topic, settings={setting.replace(".", "_"): value})) == []


@pytest.mark.parametrize(("apart", "levels"), [(2**63 - 1, 2), (DAY, 1), (3_600_000, 0)])
def test_of_a_broker_before_3_6_its_one_limit_of_timestamps_is_judged(apart: int, levels: int) -> None:
    cluster = good("events", settings={"message_timestamp_difference_max_ms": str(apart)})
    findings = bad(cluster)
    assert [one.level for one in findings] == ["warning"] * levels
    assert all(one.what == "flights.events: message.timestamp.difference.max.ms" for one in findings)
    own = {"message_timestamp_before_max_ms": str(DAY), "message_timestamp_after_max_ms": "3600000"}
    assert bad(good("events", settings={"message_timestamp_difference_max_ms": str(apart), **own})) == []


def test_to_keep_longer_than_is_declared_is_not() -> None:
    pipeline = replace(PIPELINE, retention=Retention(topics={"features": "3d"}))
    for kept, level in ((3 * DAY, "ok"), (4 * DAY, "warning"), (-1, "warning")):
        findings = judge(pipeline, good("features", settings={"retention_ms": str(kept)}), topics.TOPICS)
        assert [one.level for one in findings if one.level != "ok"] == ([] if level == "ok" else [level]), kept


@pytest.mark.parametrize(
    ("setting", "value", "level"),
    [
        ("offsets.retention.minutes", "1", "warning"),
        ("offset.metadata.max.bytes", "1024", "wrong"),
        ("auto.create.topics.enable", "true", "warning"),
    ],
)
def test_a_broker_setting_that_can_eat_a_pipeline_on_any_broker(setting: str, value: str, level: str) -> None:
    cluster = good()
    cluster = replace(cluster, brokers={**cluster.brokers, 2: {**GOOD_BROKER, setting: value}})
    (finding,) = bad(cluster)
    assert (finding.level, finding.what, finding.value) == (level, f"broker 2: {setting}", value)


def test_topics_that_are_missing_or_have_other_partitions_are_wrong() -> None:
    cluster = good("features", partitions=3)
    cluster = replace(cluster, topics={name: topic for name, topic in cluster.topics.items() if "models" not in name})
    assert {(finding.what, finding.value) for finding in bad(cluster)} == {
        ("flights.features: partitions", "3"),
        ("flights.models", "missing"),
    }


def test_one_copy_on_several_brokers_is_a_warning_and_on_one_broker_all_there_can_be() -> None:
    cluster = good("features", replicas=1, settings={"min_insync_replicas": "1"})
    assert [finding.level for finding in bad(cluster)] == ["warning"]
    assert bad(replace(good(), brokers={1: GOOD_BROKER})) == []


def test_a_cluster_that_says_nothing_is_not_judged() -> None:
    assert judge(PIPELINE, ClusterSettings(), topics.TOPICS) == []


def test_idle_groups_commit_well_before_their_offsets_expire() -> None:
    assert keep_alive(good()) == keep_alive(ClusterSettings()) == 3600
    assert keep_alive(ClusterSettings({1: GOOD_BROKER, 2: {"offsets.retention.minutes": "1"}})) == 15


class Cluster:
    """A broker that only says how it is set."""

    servers = "kafka:9092"

    def __init__(self, cluster: ClusterSettings | BrokerError) -> None:
        self.cluster = cluster

    def connect(self) -> None:
        pass

    def settings(self, _: object) -> ClusterSettings:
        if isinstance(self.cluster, BrokerError):
            raise self.cluster
        return self.cluster


class TestAtTheStart:
    def test_what_state_hangs_on_stops_it_in_one_line(self) -> None:
        cluster = Cluster(good("examples", settings={"cleanup_policy": "compact"}))
        with pytest.raises(
            BrokerError, match=r"examples: cleanup\.policy is compact, expected delete: .*tidemill doctor"
        ):
            check_settings(PIPELINE, cluster, topics.TOPICS)  # type: ignore[arg-type]

    def test_what_can_hurt_is_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        cluster = Cluster(good("features", settings={"unclean_leader_election_enable": "true"}))
        check_settings(PIPELINE, cluster, topics.TOPICS)  # type: ignore[arg-type]
        (record,) = caplog.records
        assert "unclean.leader.election.enable is true" in record.cause  # type: ignore[attr-defined]

    def test_settings_that_may_not_be_read_stop_nothing(self, caplog: pytest.LogCaptureFixture) -> None:
        check_settings(PIPELINE, Cluster(BrokerError("not authorised")), topics.TOPICS)  # type: ignore[arg-type]
        assert "are not checked" in caplog.text


class TestTheCommand:
    def run(self, monkeypatch: pytest.MonkeyPatch, cluster: object, *options: str) -> Any:
        monkeypatch.setattr(running, "broker_of", lambda _: Cluster(cluster))  # type: ignore[arg-type]
        return CliRunner().invoke(command.doctor, ["flights", *options])

    def test_something_wrong_ends_in_exit_code_1(self, monkeypatch: pytest.MonkeyPatch) -> None:
        cluster = good()
        del cluster.topics["flights.models"]  # type: ignore[attr-defined]
        done = self.run(monkeypatch, cluster)
        assert done.exit_code == 1
        assert "flights.models" in done.output
        assert "1 wrong, 0 warnings" in done.output
        (finding,) = json.loads(self.run(monkeypatch, cluster, "--json").output)
        assert (finding["level"], finding["what"]) == ("wrong", "flights.models")

    def test_a_broker_that_is_away_is_one_finding(self, monkeypatch: pytest.MonkeyPatch) -> None:
        done = self.run(monkeypatch, BrokerError("no Kafka at kafka:9092"), "--json")
        assert done.exit_code == 1
        (finding,) = json.loads(done.output)
        assert "no Kafka" in finding["fix"]


def test_a_redis_that_is_set_is_asked_and_a_clock_that_is_apart_is_a_warning(redis_url: str) -> None:
    now = time.time()
    found = {one.what: one for one in examine_settings(PIPELINE, settings.load(redis_url=redis_url), lambda: now)}
    assert {name: one.level for name, one in found.items()} == {"redis": "ok", "clock": "ok"}
    apart = {one.what: one for one in examine_settings(PIPELINE, settings.load(redis_url=redis_url), lambda: now + 60)}
    assert apart["clock"].level == "warning"
    assert "NTP" in apart["clock"].fix


def test_a_redis_that_is_away_and_keys_that_can_not_be_read_are_wrong_and_no_password_is_shown(tmp_path: Path) -> None:
    chosen = settings.load(redis_url="redis://:hush@127.0.0.1:1/0", verify_keys=str(tmp_path / "none.json"))
    found = {one.what: one for one in examine_settings(PIPELINE, chosen)}
    assert {name: one.level for name, one in found.items()} == {"redis": "wrong", "keys": "wrong"}
    assert "tidemill keys new" in found["keys"].fix
    assert "hush" not in str([one.as_dict() for one in found.values()])
    assert examine_settings(PIPELINE, settings.load()) == []
