"""A record of another event that only mentions an id is told from those of the entity, wherever it can be read."""

from __future__ import annotations

import json

import pytest

import tidemill
from tidemill.demo import data
from tidemill.demo.script import script
from tidemill.errors import SettingsError
from tidemill.runtime.forget import Findings, Forget, Subject
from tidemill.stream.memory import MemoryRecord
from tidemill.stream.topic import Topic
from tidemill.wire import topics
from tidemill.wire.records import Records


@pytest.fixture(scope="module")
def work() -> Forget:
    work = Forget.__new__(Forget)
    work.pipeline = tidemill.load("flights")
    work.records, work.mentions_too = Records(work.pipeline), False
    return work


def split(work: Forget, topic: Topic, values: list[bytes | None], subject: Subject) -> tuple[set[int], set[int]]:
    batch = [MemoryRecord(topic.name(work.pipeline), value, b"key", 0, []) for value in values]
    hits = set(subject.search.among([value or b"" for value in values]))
    return work._by_id(topic, batch, hits, subject, frozenset())


@pytest.mark.slow
@pytest.mark.parametrize("topic", [topics.EVENTS, topics.EVENTS_VALID], ids=lambda topic: topic.suffix)
def test_an_event_that_has_the_id_in_another_field_is_of_others(work: Forget, topic: Topic) -> None:
    codec = work.records.of_topic(topic)
    assert codec is not None
    messages = [m for m in script(work.pipeline, data.flights((1,), days=1)) if m.is_event]
    own, other = (work.records.sent_event.decode(m.value) for m in messages[:2])
    plane = own["tailnum"]
    other = {**other, "tailnum": "N00000", "origin": plane}
    subject = Subject([("tailnum", plane)], {own["flight_id"]})
    values = [codec.encode(own), codec.encode(other), None, b"\0garbage " + plane.encode()]
    assert split(work, topic, values, subject) == ({0}, {1}), "what can't be read and names it goes"


@pytest.mark.slow
def test_a_dead_letter_is_of_the_event_that_it_names(work: Forget) -> None:
    id_ = work.pipeline.events.id
    subject = Subject([("tailnum", "N12345")], {"mine"})
    letters = [{id_: "mine"}, {id_: "other", "note": "as N12345"}, {id_: "other"}, {"note": "N12345"}]
    codec, event = work.records.sent_event, next(script(work.pipeline, data.flights((1,), days=1)).__iter__())
    avro = codec.encode({**codec.decode(event.value), "origin": "N12345"})
    values = [*(json.dumps(one).encode() for one in letters), avro]
    assert split(work, topics.DLQ, values, subject) == ({0}, {1, 4})


def test_nothing_is_erased_where_others_mention_it(work: Forget) -> None:
    findings = Findings(mentions=[MemoryRecord("shop.events", b"", b"", 0, [], partition=1, offset=7)])
    with pytest.raises(SettingsError, match=r"1 records of other events .* shop\.events\[1\]@7.*--mentions-too"):
        work.check_mentions(findings)
    work.check_mentions(Findings())
