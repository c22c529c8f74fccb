"""Fixtures that several kinds of test share: a real Kafka broker and a real Redis, one of each for the session."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "support"))

from real_kafka import RealKafka, missing

from tidemill.demo.stack import Redis


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "kafka" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.kafka)


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
