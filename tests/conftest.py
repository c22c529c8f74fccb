"""Fixtures that several kinds of test share: a real Kafka broker and a real Redis, one of each for the session."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Helpers in support/, and what one test takes from another: every folder of tests can be imported from.
sys.path.extend(sorted({str(path.parent) for path in Path(__file__).parent.rglob("*.py")}))

from real_kafka import RealKafka, missing
from running import Running

from tidemill.local.servers import Redis

# How long an example takes decides no test: a machine may be busy.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

RIVER = ("tests/system/", "[kafka", "KafkaAlone", "test_short")
APART = ("::test_a_mistake_ends", "::test_a_wrong_", "::test_a_property_that", "test_wheel.py")
"""What runs a command of its own, and needs neither broker nor quiet."""
LAST = ("system/test_demo.py", "system/test_page.py")
"""What fills both cores by itself."""


_first_group: list[str] = []


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> None:
    """Let the river go first: the other workers take what it leaves of both cores."""
    if "PYTEST_XDIST_WORKER" in os.environ and not _first_group:
        _first_group.append(_group(item.nodeid))
        if not _first_group[0] and any(_group(other.nodeid) for other in item.session.items):
            os.nice(10)  # not more: while the river fills both cores they would stand still


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import no module of which all is slow, with the libraries that it alone needs, where slow tests are left out."""
    if "not slow" not in config.option.markexpr or collection_path.suffix != ".py":
        return None
    return "\npytestmark = pytest.mark.slow\n" in collection_path.read_text(encoding="utf-8") or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "kafka" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.kafka)
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.browser)
    items.sort(key=lambda item: ("river", "", "last").index(_group(item.nodeid)))


def _group(nodeid: str) -> str:
    """Return `river` for what needs the broker, `last` for what fills both cores by itself, nothing for all else."""
    if any(word in nodeid for word in APART) or not any(word in nodeid for word in RIVER):
        return ""
    return "last" if any(word in nodeid for word in LAST) else "river"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """What needs the broker in one worker, in its order; beside it, in the others, all that needs none.

    There a file's tests stay together, and what they share is made once.
    """
    from xdist.scheduler import LoadScopeScheduling

    class OneRiver(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid) or nodeid.partition("::")[0]

        def _reschedule(self, node: Any) -> None:
            # Twice: a worker runs a test once it has another one, and who takes a crashed one's place is given one alone.
            super()._reschedule(node)
            super()._reschedule(node)

        def remove_node(self, node: Any) -> str | None:
            """Have others do what a worker that has crashed leaves, but for the test at which it did: that has failed."""
            workload = self.assigned_work.pop(node)
            crashed = next((one for unit in workload.values() for one, is_done in unit.items() if not is_done), None)
            if crashed is not None:
                workload[self._split_scope(crashed)][crashed] = True
            self.workqueue.update({scope: unit for scope, unit in workload.items() if not all(unit.values())})
            for other in self.assigned_work:
                self._reschedule(other)
            return crashed

    config.option.loadscopereorder = False  # in the order of the collection: the river is given out first
    return OneRiver(config, log)


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealKafka]:
    lacking = missing()
    if lacking:
        if os.environ.get("TIDEMILL_REQUIRE_KAFKA"):
            pytest.fail(f"the tests on a real Kafka broker are mandatory here, and {lacking}")
        pytest.skip(f"NO REAL KAFKA: {lacking}; install Java 17 and Maven to run the tests that prove the guarantees")
    broker = RealKafka(tmp_path_factory.mktemp("kafka"))
    yield broker
    broker.stop()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    server = Redis(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def redis_url(redis_server: Redis) -> str:
    import redis

    redis.Redis.from_url(redis_server.url).flushall()
    return redis_server.url


def _runs(kafka: RealKafka, redis_server: Redis, folder: Path) -> Iterator[Callable[..., Running]]:
    made: list[Running] = []

    def make(base: str, partitions: int, **settings: object) -> Running:
        made.append(Running(kafka.servers, redis_server.url, folder, base, partitions, **settings))
        return made[-1]

    yield make
    for one in made:
        one.stack.stop()


@pytest.fixture
def running(kafka: RealKafka, redis_server: Redis, tmp_path: Path) -> Iterator[Callable[..., Running]]:
    yield from _runs(kafka, redis_server, tmp_path)


@pytest.fixture(scope="module")
def module_running(
    kafka: RealKafka, redis_server: Redis, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Running]]:
    """The same for several tests of one module."""
    yield from _runs(kafka, redis_server, tmp_path_factory.mktemp("running"))
