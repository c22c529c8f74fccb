"""A service whose store is away: refused at its first start, as the address may be wrong; started where it has worked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from signing_keys import SETTINGS

from tidemill import load
from tidemill.errors import StoreError
from tidemill.runtime import run
from tidemill.settings import Settings
from tidemill.stream.api import Position, TopicPartition
from tidemill.stream.memory import MemoryBroker
from tidemill.wire import topics
from tidemill.wire.services import group

PIPELINE = load("flights")
NOBODY = "127.0.0.1:1"
#: Each service that keeps or reads something outside of Kafka, and what its refusal names.
USES = {
    "validator": f"no schema registry at http://{NOBODY}",
    "featurizer": f"no Redis at redis://{NOBODY}",
    "materializer": f"no Redis at redis://{NOBODY}",
    "scorer": "store_url",
    "learner": "store_url",
    "gate": "store_url",
    "archiver": "archive_url",
}


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker({name: partitions for _, name, partitions in run.topic_table(PIPELINE)})


@pytest.fixture
def away(tmp_path: Path) -> Settings:
    """Settings that name nothing that can be reached."""
    (tmp_path / "a file").write_text("")
    return Settings(
        redis_url=SecretStr(f"redis://{NOBODY}/0"),
        registry_url=SecretStr(f"http://{NOBODY}"),
        store_url=str(tmp_path / "a file" / "artifacts"),
        archive_url=str(tmp_path / "a file" / "archive"),
        signing_key=SecretStr(SETTINGS["TIDEMILL_SIGNING_KEY"]),
        verify_keys=SETTINGS["TIDEMILL_VERIFY_KEYS"],
    )


def build(name: str, broker: Any, settings: Settings) -> Any:
    return run.load(name)(run.Context(PIPELINE, settings, broker))


def test_every_service_is_asked_or_uses_kafka_alone() -> None:
    assert set(run.SERVICES) - set(USES) == {"joiner", "monitor", "notifier", "status", "gateway"}


@pytest.mark.slow
@pytest.mark.parametrize("name", USES)
def test_a_first_start_without_its_store_is_refused_with_the_address(name: str, broker, away: Settings) -> None:
    with pytest.raises(StoreError) as refused:
        build(name, broker, away)
    assert USES[name] in str(refused.value)
    assert "TIDEMILL_" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", USES)
def test_a_service_that_has_committed_starts_without_its_store(name: str, broker, away: Settings, caplog) -> None:
    model = PIPELINE.champion if name == "learner" else ""
    consumed = TopicPartition(topics.consumes(name)[0].name(PIPELINE.name), 0)
    producer = broker.producer("p")
    producer.commit({consumed: Position(0)}, broker.consumer(group(name, PIPELINE.name, model), [consumed.topic], "0"))
    assert callable(build(name, broker, away))
    assert [r.message for r in caplog.records if r.levelname == "ERROR"] == [
        "started without its store, which is used as soon as it answers"
    ]


def own_topics() -> Iterator[tuple[str, topics.Topic]]:
    for name in USES:
        for topic in topics.writes(name):
            if topic.writers == (name,):
                yield name, topic


@pytest.mark.slow
@pytest.mark.parametrize(("name", "topic"), list(own_topics()), ids=lambda value: getattr(value, "suffix", value))
def test_a_service_whose_offsets_are_gone_starts_by_what_it_has_written(name: str, topic, broker, away) -> None:
    broker.append(topic.name(PIPELINE.name), b"x", b"k", 1, None, 0)
    assert callable(build(name, broker, away))


def test_the_outputs_of_others_are_no_sign(broker: MemoryBroker, away: Settings) -> None:
    for topic in topics.TOPICS:
        if topic.writers != ("featurizer",):
            broker.append(topic.name(PIPELINE.name), b"x", b"k", 1, None, 0)
    with pytest.raises(StoreError):
        build("featurizer", broker, away)
