"""Each record of a topic that nobody signs once more: what comes of it. The page "What was taken away" says the same."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import small
from river_in_memory import Letter, drive
from signing_keys import KEY

from tidemill import Pipeline, View, aggregates, rules
from tidemill.features.memory import MemoryView
from tidemill.registry.manifests import Registry
from tidemill.registry.store import ArtifactStore
from tidemill.runtime.run import topic_table
from tidemill.stages.featurizer import service as featurizer
from tidemill.stages.joiner import service as joiner
from tidemill.stages.learner import service as learner
from tidemill.stages.materializer import service as materializer
from tidemill.stages.scorer import service as scorer
from tidemill.stages.validator import service as validator
from tidemill.stream.memory import MemoryBroker
from tidemill.stream.topic import Topic
from tidemill.wire import topics
from tidemill.wire.records import Records

OWN = View("origin", every="1m", aggregates=[aggregates.count("1h")])
SHOPS = View("carrier", every="1m", aggregates=[aggregates.count("1h")])
PLAIN = small.make(views=[OWN, SHOPS])
EVENTS, LABELS = 20, 15


class World:
    """A pipeline's topics and stores, with events and labels that have been through all services."""

    def __init__(self, pipeline: Pipeline, folder: Path) -> None:
        self.pipeline, records = pipeline, Records(pipeline)
        self.broker = MemoryBroker({name: partitions for _, name, partitions in topic_table(pipeline)})
        self.registry = Registry(pipeline, ArtifactStore(str(folder)), KEY)
        self.stores = {view.label: MemoryView() for view in pipeline.views}
        for n in range(EVENTS):
            self.broker.append("small.events", records.event.encode(small.event(f"e{n}", n * 1000)), b"JFK", n + 1)
        for n in range(LABELS):
            label = records.label.encode(small.label(f"e{n}", n * 1000 + 500, float(n)))
            self.broker.append("small.labels", label, b"k", n + 1)
        self.run()

    def run(self) -> None:
        for service in (
            validator.build(self.pipeline, fuse=False),
            featurizer.build(self.pipeline, self.stores),
            materializer.build(self.pipeline, self.stores),
            scorer.build(self.pipeline, tuple),
            joiner.build(self.pipeline),
            learner.build(self.pipeline, "linear", self.registry, self.broker, every_examples=5, every_seconds=1e9),
        ):
            step: Any = drive(service, self.broker).processor
        self.learned = step.fold.examples

    def twice(self, topic: Topic) -> None:
        for record in list(self.broker.records(topic.name("small"))):
            self.broker.append(
                record.topic(),
                record.value(),
                record.key(),
                record.timestamp()[1],
                record.headers(),
                record.partition(),
            )
        self.run()

    def counted(self, view: View) -> int:
        features = self.stores[view.label].features.values()
        return sum(int(one[name]) for one in features for name in one if name.endswith("count_1h"))

    @property
    def refused(self) -> Counter[tuple[str, str]]:
        letters = [Letter(record) for record in self.broker.records("small.dlq")]
        return Counter((letter.stage, letter.reason) for letter in letters)


EVENT, LABEL = {("joiner", "duplicate_event"): EVENTS}, {("joiner", "duplicate_label"): LABELS}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("topic", "refused", "own", "shops", "learned"),
    [
        (topics.EVENTS, EVENT, 2, 2, 1),
        (topics.EVENTS_VALID, EVENT, 2, 2, 1),
        (topics.LABELS, LABEL, 1, 1, 1),
        (topics.LABELS_VALID, LABEL, 1, 1, 1),
        (topics.UPDATES, {}, 1, 2, 1),
        (topics.FEATURES, EVENT, 1, 1, 1),
        (topics.PREDICTION_LOG, EVENT, 1, 1, 1),
        (topics.EXAMPLES, {}, 1, 1, 2),
    ],
    ids=lambda value: value.suffix if isinstance(value, Topic) else None,
)
def test_what_counts_twice_is_what_the_page_says(
    topic: Topic, refused: dict[tuple[str, str], int], own: int, shops: int, learned: int, tmp_path: Path
) -> None:
    world = World(PLAIN, tmp_path)
    assert (world.counted(OWN), world.counted(SHOPS), world.learned) == (EVENTS, EVENTS, LABELS)
    world.twice(topic)
    assert world.refused == refused
    assert (world.counted(OWN), world.counted(SHOPS)) == (own * EVENTS, shops * EVENTS)
    assert world.learned == learned * LABELS
    ids = Counter(record.key() for record in world.broker.records("small.examples"))
    assert set(ids.values()) == {learned}


def test_a_rule_refuses_an_event_that_comes_twice_before_it_counts(tmp_path: Path) -> None:
    world = World(small.make(views=[OWN, SHOPS], rules=[rules.unique("flight_id", "1h")]), tmp_path)
    world.twice(topics.EVENTS)
    assert sum(world.refused.values()) == EVENTS
    assert {stage for stage, _ in world.refused} == {"validator"}
    assert (world.counted(OWN), world.counted(SHOPS), world.learned) == (EVENTS, EVENTS, LABELS)
