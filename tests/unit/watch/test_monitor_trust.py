"""The monitor alerts where signed records are refused, and where nobody serves the newest version."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import small
from signing_keys import KEY

from tidemill import Forgetting as Declared
from tidemill import Monitor
from tidemill.models.fold import Fold
from tidemill.registry.decisions import Command, ModelRef, commands
from tidemill.registry.forgetting import CHAIN, Forgetting, forgetting_codec
from tidemill.registry.manifests import Manifest, Registry
from tidemill.registry.signing import Chains, LogWriter
from tidemill.registry.store import ArtifactStore
from tidemill.runtime.run import topic_table
from tidemill.stream.memory import MemoryBroker, MemoryRecord
from tidemill.watch.monitor.core import Core
from tidemill.watch.monitor.trust import MAX_REMEMBERED, MAX_START_RECORDS, REFUSED_SECONDS
from tidemill.wire import topics
from tidemill.wire.records import Records

pytestmark = pytest.mark.slow

PIPELINE, RECORDS = small.make(), Records(small.make())
MODELS = topics.MODELS.name("small")
COMMANDS = topics.COMMANDS.name("small")


def unsigned(registry: Registry, model: str = "linear") -> Manifest:
    """Return a manifest that is in no chain yet."""
    return Registry(PIPELINE, registry.store, KEY).publish(model, Fold(PIPELINE, model).snapshot(), ())


class World:
    """A registry that publishes, and a monitor at a time of its own."""

    def __init__(self, folder: Path, forgetting: Declared | None = None, **limits: float | None) -> None:
        self.now = 1_000_000.0
        self.pipeline = dataclasses.replace(PIPELINE, monitor=Monitor(limits=limits), forgetting=forgetting)
        self.broker = MemoryBroker({name: partitions for _, name, partitions in topic_table(PIPELINE)})
        self.registry = Registry(PIPELINE, ArtifactStore(str(folder)), KEY)
        self.core = self.started()

    def started(self) -> Core:
        core = Core(self.pipeline, lambda: self.now, KEY)
        core.trust.read(self.broker, self.now)
        return core

    def publish(self, version: int, model: str = "linear") -> Manifest:
        made = unsigned(self.registry, model)
        manifest = self.registry.sign(dataclasses.replace(made, version=version, examples=version))
        self.append(self.registry.encode(manifest), model)
        return manifest

    def append(self, value: bytes, key: str, topic: str = MODELS) -> None:
        self.broker.append(topic, value, key.encode(), int(self.now * 1000), partition=0)

    def predict(self, **versions: int) -> None:
        scores = [small.score(model, version=version) for model, version in versions.items()]
        log = {"features": small.features(PIPELINE, "e", 1), "champion": scores[0], "challengers": scores[1:]}
        value = RECORDS.prediction_log.encode(log)
        self.core.predictions([MemoryRecord(topics.PREDICTION_LOG.name("small"), value, b"e", int(self.now * 1000))])

    def request(self, id_: str, state: str, content: str = "{}") -> None:
        writer = LogWriter(forgetting_codec(self.pipeline, KEY), self.broker, CHAIN)
        writer.begin()
        record = Forgetting(id_, state, "ann", "letter", int(self.now * 1000), [], content=content)
        self.append(writer.sign(record), id_, writer.topic)

    def alerts(self) -> list[tuple[str, str]]:
        self.core.trust.read(self.broker, self.now)
        return [(str(alert.key), alert.state) for alert in self.core.distrust()]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_nothing_alerts_while_all_is_signed_and_served(world: World) -> None:
    for version in range(1, 5):
        world.publish(version)
        world.now += 10
        world.predict(linear=version, slow=0)
        assert world.alerts() == []


@pytest.mark.parametrize("reason", ["old", "damaged", "forged", "foreign", "forked"])
def test_a_signed_record_that_is_refused_alerts_at_once_and_is_resolved_an_hour_after_the_last(
    world: World, reason: str
) -> None:
    first = world.publish(1)
    world.publish(2)
    assert world.alerts() == []
    data = world.registry.encode(first)
    forged = world.registry.encode(dataclasses.replace(first, version=9))
    other = Registry(dataclasses.replace(PIPELINE, name="other"), world.registry.store, KEY)
    foreign = other.encode(other.publish("linear", Fold(PIPELINE, "linear").snapshot(), ()))
    branch = Registry(PIPELINE, world.registry.store, KEY)  # another process with the same key
    forked = [branch.encode(branch.sign(dataclasses.replace(unsigned(branch), version=version))) for version in (7, 8)]
    bad = {"old": data, "damaged": b"no manifest", "forged": forged, "foreign": foreign, "forked": forked[1]}[reason]
    world.append(bad, "linear")
    ((key, state),) = world.alerts()
    assert key.startswith("refused:models:")
    assert state == "opened"
    assert reason in (key.rpartition(":")[2], "forged")
    world.now += REFUSED_SECONDS - 1
    assert world.alerts() == []
    world.now += 1
    assert world.alerts() == [(key, "resolved")]


def test_a_command_that_is_appended_again_alerts_too(world: World) -> None:
    chains = Chains(commands(PIPELINE, KEY))
    data = chains.sign(Command("c1", "promote", ModelRef("slow"), 0, 0, "ann", "why", 5), "status-0")
    world.append(data, "c1", COMMANDS)
    assert world.alerts() == []
    world.append(data, "c1", COMMANDS)
    assert world.alerts() == [("refused:commands:old", "opened")]


def test_what_was_refused_before_the_monitor_started_counts_by_its_own_time(world: World) -> None:
    data = world.registry.encode(world.publish(1))
    world.append(data, "linear")
    world.now += 60
    world.core = world.started()
    assert world.alerts() == [("refused:models:old", "opened")]
    world.now += REFUSED_SECONDS
    world.core = world.started()
    assert world.alerts() == []


def test_a_model_that_answers_with_an_older_version_for_long_alerts_until_a_newer_one_answers(world: World) -> None:
    world.publish(1)
    world.predict(linear=1)
    assert world.alerts() == []
    world.publish(2)
    assert world.alerts() == []
    world.now += 601
    assert world.alerts() == []  # nothing was asked: nobody knows what would answer
    world.predict(linear=1)
    assert world.alerts() == [("unserved:linear", "opened")]
    world.publish(3)
    world.predict(linear=2)  # one behind, as a scorer is for a moment after each version
    assert world.alerts() == [("unserved:linear", "resolved")]
    world.now += 601
    world.predict(linear=2)
    assert world.alerts() == [("unserved:linear", "opened")]


def test_versions_of_the_baseline_alert_nobody(world: World) -> None:
    world.publish(1, "baseline")
    world.publish(1)
    world.predict(linear=1, baseline=0)
    world.now += 5_000
    world.predict(linear=1, baseline=0)
    assert world.alerts() == []


def test_a_pinned_version_does_not_alert_where_the_newest_answers_beside_it(world: World) -> None:
    world.publish(1)
    world.publish(2)
    world.alerts()
    world.now += 5_000
    log = {"features": small.features(PIPELINE, "e", 1), "champion": small.score("linear", version=1)}
    log["challengers"] = [small.score("linear", version=2)]
    value = RECORDS.prediction_log.encode(log)
    world.core.predictions([MemoryRecord(topics.PREDICTION_LOG.name("small"), value, b"e")])
    assert world.alerts() == []


def test_both_may_be_declared_never_to_alert(tmp_path: Path) -> None:
    world = World(tmp_path, refused_records=None, unserved_seconds=None)
    world.publish(1)
    world.append(b"no manifest", "linear")
    world.now += 5_000
    world.predict(linear=0)
    assert world.alerts() == []


def test_thousands_of_old_records_at_the_end_hide_no_version_and_each_is_counted_once(tmp_path: Path) -> None:
    world = World(tmp_path)
    for version in range(1, 4):
        world.publish(version)
    world.publish(1, "slow")
    old = world.broker.records(MODELS)[0].value() or b""
    for _ in range(MAX_START_RECORDS + 100):
        world.append(old, "linear")
    world.now += 1
    world.core = world.started()
    refused = world.core.trust._refused["models", "old"]
    assert len(refused) == MAX_REMEMBERED
    world.publish(4)
    world.alerts()
    assert len(refused) == MAX_REMEMBERED, "what follows the newest is not refused"
    assert set(world.core.trust._refused) == {("models", "old")}
    assert [newness for newness, _ in world.core.trust._unserved["linear"]][-2:] == [(0, 3), (0, 4)]
    assert [newness for newness, _ in world.core.trust._unserved["slow"]] == [(0, 1)]


class TestRequestsToForget:
    @pytest.fixture
    def world(self, tmp_path: Path) -> World:
        return World(tmp_path, Declared(within="10d", every="2d"))

    def test_one_that_nears_its_deadline_alerts_and_one_that_is_late_again(self, world: World) -> None:
        world.request("r1", "waiting")
        world.now += 3 * 86_400
        world.request("r2", "asked")
        world.now += 5 * 86_400
        assert world.alerts() == []
        world.now += 1
        assert world.alerts() == [("forgetting:r1", "opened")]
        world.now += 2 * 86_400
        assert world.alerts() == [("forgetting_late:r1", "opened")]
        world.core = world.started()  # it reads all of it again
        world.now += 86_400
        assert set(world.alerts()) == {
            ("forgetting:r1", "opened"),
            ("forgetting_late:r1", "opened"),
            ("forgetting:r2", "opened"),
        }
        world.request("r3", "done", '{"requests": ["r1", "r2"]}')
        assert {state for _, state in world.alerts()} == {"resolved"}
        world.now += 100 * 86_400
        assert world.alerts() == []

    def test_an_alert_of_before_is_resolved_where_it_was_done_while_no_monitor_ran(self, world: World) -> None:
        world.request("r1", "asked")
        world.now += 9 * 86_400
        world.core.trust.read(world.broker, world.now)
        (alert,) = world.core.distrust()
        world.request("r1", "done")
        world.core = world.started()
        world.core.alerts.restore(alert)
        assert world.alerts() == [("forgetting:r1", "resolved")]
