"""What a topic is created with, where the cluster's own settings would eat a pipeline."""

from __future__ import annotations

import pytest

from tidemill.stream.kafka.broker import _topic_config
from tidemill.wire import topics


@pytest.mark.parametrize(("replicas", "least"), [(0, None), (1, None), (2, None), (3, "2"), (5, "2")])
def test_a_record_is_on_two_brokers_where_one_of_them_may_be_away(replicas: int, least: str | None) -> None:
    assert _topic_config(topics.EVENTS, replicas).get("min.insync.replicas") == least


@pytest.mark.parametrize("topic", topics.TOPICS, ids=lambda topic: topic.suffix)
def test_what_is_kept_is_not_left_to_the_cluster(topic: topics.Topic) -> None:
    config = _topic_config(topic, 3)
    assert config["cleanup.policy"] == ("compact" if topic is topics.PROGRESS else "delete")
    assert config["retention.ms"] == str(topic.retention_ms)
