"""Topics that are not as declared: a loop stops before it reads or writes anything at a wrong place."""

from __future__ import annotations

import logging
from collections import Counter

import pytest
from test_lost_offsets import Member, emitted, fill, make

from tidemill.errors import PositionError, TopicError
from tidemill.stream.declared import MISSING_SECONDS, TOPIC_CHECK_SECONDS, DeclaredTopics

DECLARED = {"in": 4, "out": 1, "progress": 8}


@pytest.mark.parametrize("topic", DECLARED)
def test_a_topic_that_grows_while_it_is_used_stops_the_service_before_it_writes(topic: str) -> None:
    broker, expected = make(), Counter[bytes]()
    fill(broker, expected, 5)
    member = Member(broker, declared=DECLARED)
    member.turn()
    before = emitted(broker)
    assert before == expected
    broker.grow(topic, DECLARED[topic] + 1)
    fill(broker, Counter(), 5)
    member.now += TOPIC_CHECK_SECONDS
    with pytest.raises(
        TopicError, match=rf"topic {topic} has {DECLARED[topic] + 1} partitions where {DECLARED[topic]}"
    ):
        member.turn()
    member.leave()
    assert emitted(broker) == before


@pytest.mark.parametrize("topic", DECLARED)
def test_a_topic_of_other_partitions_is_refused_before_anything_is_read(topic: str) -> None:
    broker = make()
    fill(broker, Counter(), 5)
    broker.grow(topic, 9)
    member = Member(broker, declared=DECLARED)
    with pytest.raises(TopicError, match=f"topic {topic} has 9 partitions"):
        member.turn()
    assert not emitted(broker)


def test_a_group_that_is_given_new_partitions_looks_at_once() -> None:
    broker = make()
    fill(broker, Counter(), 5)
    member = Member(broker, declared=DECLARED)
    member.turn()
    broker.grow("in", 6)
    with pytest.raises(TopicError, match="topic in has 6 partitions"):  # no time has passed: by the new assignment
        member.turn(2)


def test_a_topic_that_is_written_and_was_created_again_as_declared_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = make()
    member = Member(broker, declared=DECLARED)
    member.turn()
    broker.recreate("out")
    member.now += TOPIC_CHECK_SECONDS
    with caplog.at_level(logging.ERROR):
        member.turn()
    assert [record.topic for record in caplog.records] == ["out"]


def test_a_topic_that_is_read_and_was_created_again_needs_a_decision() -> None:
    broker = make()
    fill(broker, Counter(), 5)
    member = Member(broker, declared=DECLARED)
    member.turn()
    broker.recreate("in")
    member.now += TOPIC_CHECK_SECONDS
    with pytest.raises(PositionError, match="created again while it was read"):
        member.turn()


def test_a_topic_that_a_broker_does_not_know_for_a_moment_stops_nobody_and_one_that_is_gone_does() -> None:
    now = 0.0
    topics = DeclaredTopics(make(), {**DECLARED, "gone": 1}, lambda: now)
    topics.check()
    now = MISSING_SECONDS
    topics.check()
    now = MISSING_SECONDS + 1
    with pytest.raises(TopicError, match="topic gone was deleted"):
        topics.check()


def test_all_topics_that_differ_at_once_are_named_in_one_line() -> None:
    broker, now = make(), 0.0
    topics = DeclaredTopics(broker, {**DECLARED, "gone": 1, "lost": 2}, lambda: now)
    topics.check()
    now = MISSING_SECONDS + 1
    broker.grow("in", 6)
    broker.grow("out", 2)
    with pytest.raises(TopicError) as raised:
        topics.check()
    text = str(raised.value)
    assert "topic in has 6 partitions where 4 are declared; topic out has 2 partitions where 1 are declared" in text
    assert "topic gone was deleted while it was used; topic lost was deleted while it was used" in text
    assert "progress" not in text
    assert "\n" not in text
    assert text.count("tidemill topics PIPELINE --create") == 1
    assert text.count("Keys are placed by their number") == 1
