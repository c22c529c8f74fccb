"""A label that contradicts the first is told from one that repeats it, and whose labels do is told as well."""

from __future__ import annotations

from collections import Counter

import pytest
import small
from river_in_memory import River, drive

from tidemill.cli.text.dead_letters import letter_text, stats_text
from tidemill.offline.dead_letters import Content, DeadLetters, LetterFilter
from tidemill.stages.joiner import service as joiner
from tidemill.stream.api import Position, TopicPartition
from tidemill.wire import topics

PIPELINE = small.make()
CONTRADICTORY, REPEATED = LetterFilter(reason="contradictory_label"), LetterFilter(reason="duplicate_label")


def told() -> River:
    """Forty events of two airports, each labelled; every fourth again with the same label, EWR's even ones with another."""
    river = River(PIPELINE)
    for number in range(40):
        river.event(small.event(f"e{number}", number * 1000, ("JFK", "EWR")[number % 2]))
    for number in range(40):
        river.label(small.label(f"e{number}", number * 1000 + 5, float(number)))
        if number % 4 == 0:
            river.label(small.label(f"e{number}", number * 1000 + 6, float(number)))
        if number % 4 == 1:
            river.label(small.label(f"e{number}", number * 1000 + 7, number + 0.5))
    return river


@pytest.fixture(scope="module")
def river() -> River:
    river = told()
    river.run()
    return river


def test_one_is_told_from_the_other_with_both_values(river: River) -> None:
    there = DeadLetters(PIPELINE, river.broker)
    against = {letter.key: letter for letter, _ in there.read(CONTRADICTORY)}
    again = {letter.key: letter for letter, _ in there.read(REPEATED)}
    assert set(against) == {f"e{n}" for n in range(1, 40, 4)}
    assert set(again) == {f"e{n}" for n in range(0, 40, 4)}
    assert against["e5"].message == "event 'e5' was labelled 5.0 and now 5.5; the first stays"
    assert (against["e5"].value, against["e5"].entity, again["e4"].entity) == ("5.5", "EWR", "JFK")
    assert "EWR" in letter_text(against["e5"], there, [], [], Content("nothing"))
    assert len(river.of(topics.EXAMPLES)) == 40
    assert {e["prediction"]["features"]["event_id"]: e["label"] for e in river.decoded(topics.EXAMPLES)} == {
        f"e{n}": float(n) for n in range(40)
    }


@pytest.mark.parametrize("labels_first", [True, False])
def test_what_is_said_does_not_depend_on_which_log_was_read_first(river: River, labels_first: bool) -> None:
    other = told()
    for service in list(other._services())[:3]:  # all but the joiner
        drive(service(), other.broker)
    step = joiner.Joiner(PIPELINE)
    found: Counter[tuple[str, ...]] = Counter()

    def emit(topic, value, key=None, timestamp=0, headers=None, partition=-1) -> None:
        del value, timestamp, partition
        if topic == "small.dlq":
            said = {name: text.decode() for name, text in headers}
            found[key.decode(), said["tidemill.reason"], said["tidemill.entity"]] += 1

    names = ["small.labels.valid", "small.prediction-log"]
    for partition in range(2):
        for name in names:
            step.assign(TopicPartition(name, partition), Position(0))
    for name in names if labels_first else names[::-1]:
        step.process(other.broker.records(name), emit)
    expected = Counter(
        (letter.key, letter.reason, letter.entity)
        for letter, _ in DeadLetters(PIPELINE, river.broker).read(LetterFilter())
    )
    assert found == expected
    assert sum(step.counts["dead_letters", reason] for reason in ("contradictory_label", "duplicate_label")) == 20


def test_whose_labels_contradict_is_in_the_statistics(river: River) -> None:
    there = DeadLetters(PIPELINE, river.broker)
    plain, by_entity = there.stats(LetterFilter()), there.stats(LetterFilter(), by_entity=True)
    assert [(kind.reason, kind.entity, kind.letters) for kind in plain.most()] == [
        ("contradictory_label", "", 10), ("duplicate_label", "", 10),
    ]  # fmt: skip
    assert [(kind.reason, kind.entity, kind.letters) for kind in by_entity.most()] == [
        ("contradictory_label", "EWR", 10), ("duplicate_label", "JFK", 10),
    ]  # fmt: skip
    assert "entity" in stats_text(there, by_entity)
    assert "EWR" in stats_text(there, by_entity)
    assert "entity" not in stats_text(there, plain)
    assert by_entity.as_dict()["kinds"][0]["entity"] == "EWR"
