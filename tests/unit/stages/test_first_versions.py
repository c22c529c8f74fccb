"""What a model learns first serves soon: versions after 10, 20, 50, 100, ... examples, long before one is due by number or time."""

from __future__ import annotations

from pathlib import Path

import pytest
import small
from signing_keys import KEY

from tidemill.registry.manifests import Manifest, Registry
from tidemill.registry.store import ArtifactStore
from tidemill.stages.learner.service import Learner
from tidemill.stream.api import Position, TopicPartition
from tidemill.stream.memory import MemoryRecord

pytestmark = pytest.mark.slow

SLOT = TopicPartition("small.examples", 0)
PIPELINE = small.make()


def published(folder: Path, examples: list[MemoryRecord], batch: int, first: int, stop: int | None = None) -> list[int]:
    """Return after how many examples versions are published; a new process begins after `stop` batches."""
    registry, manifests = Registry(PIPELINE, ArtifactStore(str(folder)), KEY), list[Manifest]()
    learner, begin = None, 0
    for at in range(0, len(examples), batch):
        if learner is None or at // batch == stop:
            learner = Learner(
                PIPELINE, "linear", registry, lambda _: manifests[::-1],
                every_examples=200, every_seconds=1e9, first_examples=first,
            )  # fmt: skip
            begin = learner.assign(SLOT, Position(0)).live_from
        records = [record for record in examples[at : at + batch] if record.offset() >= begin]
        learner.process(records, lambda _, value, *__: manifests.append(registry.decode(value)))
    return [manifest.examples for manifest in manifests]


@pytest.fixture(scope="module")
def examples() -> list[MemoryRecord]:
    return small.example_records(PIPELINE, 450)


def test_versions_come_by_doubling_until_they_are_due_by_number(tmp_path: Path, examples: list[MemoryRecord]) -> None:
    assert published(tmp_path, examples, 5, 10) == [10, 20, 50, 100, 300]
    assert published(tmp_path / "none", examples, 5, 0) == [200, 400]


def test_a_batch_that_passes_several_numbers_makes_one_version(tmp_path: Path, examples: list[MemoryRecord]) -> None:
    assert published(tmp_path, examples, 60, 10) == [60, 120, 360]


def test_a_learner_that_goes_on_publishes_no_number_again(tmp_path: Path, examples: list[MemoryRecord]) -> None:
    assert published(tmp_path, examples, 10, 10, stop=5) == [10, 20, 50, 100, 300]
