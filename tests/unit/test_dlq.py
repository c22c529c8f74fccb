"""Dead letters: what they say, which are meant, and that each goes back once, whatever stops a redrive."""

from __future__ import annotations

import json
import shlex
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from test_deployment import accepts
from test_loop_crash import Bomb, Crash, Fragile, drive

from tidemill import load, redrive, rules, topics
from tidemill.cli import cli
from tidemill.demo import data
from tidemill.demo.replay import script
from tidemill.describe import letter_text, letters_text, printable, stats_text
from tidemill.dlq import MOST_KINDS, Letters, Places, Stats, Wanted, content
from tidemill.errors import Aborted, BrokerError, Fenced, Reject, SettingsError
from tidemill.featurizer import service as featurizer
from tidemill.joiner import service as joiner
from tidemill.records import Records
from tidemill.redrive import Found, Redrive
from tidemill.run import topic_table
from tidemill.stream.embedded import EmbeddedBroker
from tidemill.stream.kafka import KafkaBroker
from tidemill.stream.memory import MemoryBroker, MemoryRecord
from tidemill.validator import letters
from tidemill.validator import service as validator
from tidemill.validator.letters import Letter, Mark, Place, dead_letter, letter_of, own, place_of, split

PLAIN = load("plain")
WRONG = replace(PLAIN, rules=[*PLAIN.rules, rules.between("sched_hour", 0, 10)])
RECORDS = Records(PLAIN)
EVENTS, LABELS, DLQ = (topic.name("plain") for topic in (topics.EVENTS, topics.LABELS, topics.DLQ))
VALID, REDRIVES = topics.EVENTS_VALID.name("plain"), topics.REDRIVES.name("plain")
ALL = Wanted()
OWN = [("trace", b"t-1"), ("tidemill.reason", b"the producer's own"), ("nothing", None)]
BOMBS = range(60)


def new_broker() -> MemoryBroker:
    return MemoryBroker({name: count for _, name, count in topic_table(PLAIN)})


def refuse(
    broker: MemoryBroker, record: MemoryRecord, reason: str = "out_of_range", stage: str = "validator", **of: Any
) -> None:
    dead_letter(record, Reject(reason, f"{reason} it is", **of), broker.append, DLQ, stage)


@pytest.fixture(scope="module")
def sent() -> list:
    return list(script(PLAIN, data.flights((1,), days=2)[::20]))


def refused(sent: list) -> MemoryBroker:
    """Have a validator with a wrong rule refuse some of what was sent."""
    broker = new_broker()
    for message in sent:
        broker.append(message.topic, message.value, message.key, 1000, [*OWN])
    drive(validator.build(WRONG), broker)
    return broker


def ids(broker: MemoryBroker, topic: str) -> Counter[str]:
    return Counter(RECORDS.event.decode(r.value())["flight_id"] for r in broker.records(topic))


def back(broker: Any, wanted: Wanted = ALL, **options: Any) -> Found:
    return Redrive(PLAIN, broker, wanted, **options).run()


def said(record: MemoryRecord) -> dict[str, str]:
    return dict(letters.said(record))


class TestHeaders:
    def test_a_letter_says_when_it_was_refused_and_that_it_was_the_first_attempt(self, monkeypatch) -> None:
        monkeypatch.setattr(letters.time, "time", lambda: 1234.5678)
        broker = new_broker()
        refuse(broker, MemoryRecord(EVENTS, b"x", b"k", 77, [*OWN], 3, 9), field="carrier", value="ZZ", rule="one_of")
        (record,) = broker.records(DLQ)
        letter = letter_of(record)
        assert (letter.refused_at, letter.sent_at, letter.attempt, letter.redriven_from) == (1_234_567, 77, 1, "")
        assert (letter.topic, letter.partition, letter.offset, letter.stage) == (EVENTS, 3, 9, "validator")
        assert (letter.reason, letter.rule, letter.field, letter.value) == ("out_of_range", "one_of", "carrier", "ZZ")
        assert (letter.key, letter.size, letter.message) == ("k", 1, "out_of_range it is")
        assert own(record) == OWN

    def test_a_letter_of_before_has_its_own_timestamp_and_is_the_first_attempt(self) -> None:
        old = [("trace", b"t"), ("__connect.errors.topic", EVENTS.encode()), ("tidemill.reason", b"truncated")]
        letter = letter_of(MemoryRecord(DLQ, b"x", None, 55, old, 1, 2))
        assert (letter.refused_at, letter.attempt, letter.place, letter.key) == (55, 1, Place(1, 2), "")
        assert own(MemoryRecord(DLQ, b"x", None, 55, old)) == [("trace", b"t")]

    def test_a_mark_is_taken_off_and_every_other_header_is_its_producers(self) -> None:
        mark = Mark(Place(2, 17), 3)
        assert split([*OWN, *mark.headers()]) == (OWN, mark)
        assert split(OWN) == (OWN, None)
        assert split(None) == ([], None)

    @pytest.mark.parametrize(
        "forged",
        [
            [("tidemill.attempt", b"7")],
            [("tidemill.attempt", b"7"), ("tidemill.redriven", b"0:1")],
            [("tidemill.redriven", b"0:1"), ("tidemill.attempt", b"seven")],
            [("tidemill.redriven", b"0:1"), ("tidemill.attempt", b"9" * 5000)],
            [("tidemill.redriven", b"9" * 5000 + b":1"), ("tidemill.attempt", b"1")],
            [("tidemill.redriven", b"\xff"), ("tidemill.attempt", None)],
            [("tidemill.redriven", "٣:١".encode()), ("tidemill.attempt", "٣".encode())],
        ],
    )
    def test_what_a_redrive_does_not_write_is_no_mark(self, forged: list) -> None:
        broker = new_broker()
        refuse(broker, MemoryRecord(EVENTS, b"x", b"k", 77, forged))
        (record,) = broker.records(DLQ)
        assert letter_of(record).attempt == 1
        assert own(record) == forged
        back(broker)
        assert broker.records(EVENTS)[0].headers() == [*forged, *Mark(Place(*_place(record)), 2).headers()]

    def test_headers_that_look_like_ours_are_kept_and_do_not_speak_for_the_letter(self) -> None:
        hostile = [
            ("__connect.errors.topic", b"elsewhere"),
            ("tidemill.refused_at", b"9" * 5000),
            ("tidemill.attempt", b"x"),
        ]
        broker = new_broker()
        refuse(broker, MemoryRecord(EVENTS, b"x", b"k", 77, hostile))
        (record,) = broker.records(DLQ)
        assert own(record) == hostile
        assert (letter_of(record).topic, letter_of(record).attempt) == (EVENTS, 1)
        assert back(broker).by_topic() == {EVENTS: 1}
        assert broker.records(EVENTS)[0].headers()[:3] == hostile

    @given(st.lists(st.tuples(st.text(max_size=9) | st.sampled_from(["tidemill.redriven", "tidemill.attempt", "__connect.errors.topic"]),
                              st.none() | st.binary(max_size=9)), max_size=6))  # fmt: skip
    @settings(max_examples=200, deadline=None)
    def test_whatever_headers_a_producer_gives_come_back_as_they_were(self, given_: list) -> None:
        producers, mark = split(given_)
        found = letters.headers(MemoryRecord(EVENTS, b"x", None, 0, given_), Reject("r", "m"), "validator", 5)
        assert own(MemoryRecord(DLQ, b"x", None, 0, found)) == producers
        assert letter_of(MemoryRecord(DLQ, b"x", None, 0, found)).attempt == (mark.attempt if mark else 1)

    @pytest.mark.parametrize(
        "text", ["", "1", "1:", ":1", "1:2:3", "-1:2", "a:b", "1: 2", "9" * 10 + ":1", "1:" + "9" * 19]
    )
    def test_a_place_that_is_none_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match="PARTITION:OFFSET"):
            place_of(text)


def _place(record: MemoryRecord) -> tuple[int, int]:
    return record.partition(), record.offset()


class TestThereAndBack:
    def test_after_the_rule_is_mended_every_event_is_valid_once_with_its_own_headers_bytes_and_key(self, sent) -> None:
        broker = refused(sent)
        events = [m for m in sent if m.is_event]
        dead = broker.records(DLQ)
        assert 40 < len(dead) < len(events) < 120
        before = ids(broker, VALID)
        raw = len(broker.records(EVENTS))
        found = back(broker)
        assert found.going == {(EVENTS, "out_of_range"): len(dead)}
        again = broker.records(EVENTS)
        assert len(again) == raw + len(dead)
        marked = {r.headers()[-2][1]: r for r in again if split(r.headers())[1]}
        assert len(marked) == len(dead)
        for letter in dead:
            record = marked[str(Place(*_place(letter))).encode()]
            assert (record.value(), record.key()) == (letter.value(), letter.key())
            assert record.headers() == [*OWN, *Mark(Place(*_place(letter)), 2).headers()]
            assert record.timestamp()[1] > 10**12, "now, and not when its producer sent it"
        drive(validator.build(PLAIN), broker)
        after = ids(broker, VALID)
        assert after == Counter(m.key.decode() for m in events)
        assert len(after) == len(before) + len(dead)
        assert len(broker.records(DLQ)) == len(dead)

    def test_a_second_redrive_sends_nothing(self, sent) -> None:
        broker = refused(sent)
        count = back(broker).going.total()
        length = len(broker.records(EVENTS))
        found = back(broker)
        assert (found.there, found.going.total(), len(broker.records(EVENTS))) == (count, 0, length)
        assert back(broker, again=True).going.total() == count
        assert len(broker.records(EVENTS)) == length + count
        assert back(broker).there == count

    def test_each_redrive_is_told(self) -> None:
        broker = new_broker()
        refuse(broker, MemoryRecord(LABELS, b"x", b"k", 77), reason="bad_label")
        Redrive(PLAIN, broker, ALL, clock=lambda: 12.5).run()
        (record,) = broker.records(REDRIVES)
        place = str(Place(*_place(broker.records(DLQ)[0])))
        assert record.key() == place.encode()
        assert RECORDS.redrive.decode(record.value()) == {
            "letter": place, "to": LABELS, "attempt": 2, "reason": "bad_label", "time": 12_500,
        }  # fmt: skip
        assert Letters(PLAIN, broker).history(place_of(place)) == [RECORDS.redrive.decode(record.value())]
        assert Letters(PLAIN, broker).history(Place(0, 99)) == []

    def test_what_is_refused_again_is_a_new_letter_of_the_second_attempt_with_the_headers_once(self, sent) -> None:
        broker = refused(sent)
        first = {str(Place(*_place(r))): r for r in broker.records(DLQ)}
        for attempt in (2, 3):
            known = {_place(r) for r in broker.records(DLQ)}
            assert back(broker).going.total() == len(first)
            drive(validator.build(WRONG), broker)
            newer = [r for r in broker.records(DLQ) if _place(r) not in known]
            assert len(newer) == len(first)
            for record in newer:
                letter, names = letter_of(record), [name for name, _ in record.headers()]
                assert letter.attempt == attempt
                assert own(record) == OWN
                assert Counter(names)["__connect.errors.topic"] == Counter(names)["tidemill.attempt"] == 1
                assert record.value() == first[letter.redriven_from].value()
            first = {str(Place(*_place(r))): r for r in newer}
        stats = Letters(PLAIN, broker).stats(ALL)
        n = len(first)
        assert (stats.total.letters, stats.total.open, stats.total.redriven, stats.total.again) == (
            3 * n,
            n,
            2 * n,
            2 * n,
        )

    def test_a_later_service_knows_the_attempt_as_well(self) -> None:
        broker, pipeline = new_broker(), replace(PLAIN, label_timeout="1h")
        label = {"flight_id": "a", "landed_at": 0, "arr_delay": 1.0}
        mark = Mark(Place(0, 4), 2)
        broker.append(LABELS, RECORDS.label.encode(label), b"a", 5, [*OWN, *mark.headers()])
        drive(validator.build(pipeline), broker)
        (valid,) = broker.records(topics.LABELS_VALID.name("plain"))
        assert valid.headers() == mark.headers()
        step = joiner.Joiner(pipeline)
        step._emit = broker.append
        step._reject(valid, Reject("unmatched_label", "no prediction came"))
        (record,) = broker.records(DLQ)
        assert (letter_of(record).attempt, letter_of(record).redriven_from, own(record)) == (2, "0:4", [])

    def test_letters_of_later_services_go_to_the_raw_topic_of_their_stream(self, sent) -> None:
        def fails(event: Any) -> float:
            raise ValueError("no such thing")

        from tidemill import number

        broken = replace(PLAIN, request={**PLAIN.request, "distance": number(fails)})
        broker = new_broker()
        events = [m for m in sent if m.is_event][:20]
        for message in events:
            broker.append(message.topic, message.value, message.key, 1000)
        drive(validator.build(PLAIN), broker)
        drive(featurizer.build(broken, {}), broker)
        assert {letter_of(r).topic for r in broker.records(DLQ)} == {VALID}
        refuse(broker, MemoryRecord(topics.LABELS_VALID.name("plain"), b"label", b"k"), "unmatched_label", "joiner")
        assert back(broker).going == {(EVENTS, "request_feature"): 20, (LABELS, "unmatched_label"): 1}
        drive(validator.build(PLAIN), broker)
        drive(featurizer.build(PLAIN, {}), broker)
        vectors = Counter(
            RECORDS.features.decode(r.value())["event_id"] for r in broker.records(topics.FEATURES.name("plain"))
        )
        assert vectors == Counter(m.key.decode() for m in events)

    def test_what_no_validator_takes_stays_and_is_counted(self) -> None:
        broker = new_broker()
        for topic, stage in (
            (topics.FEATURES, "scorer"),
            (topics.PREDICTION_LOG, "joiner"),
            (topics.PREDICTION_LOG, "joiner"),
        ):
            refuse(broker, MemoryRecord(topic.name("plain"), b"x", b"k"), "unknown_schema", stage)
        refuse(broker, MemoryRecord(EVENTS, b"x" * 1_000_001, b"k"), "too_large")
        broker.append(DLQ, b"by hand", b"k")
        found = back(broker)
        assert not found.going
        assert found.cannot.total() == 5
        assert {why: n for why, n in found.cannot.items() if "prediction-log" in why} == {
            "it is about plain.prediction-log, which a service of ours writes": 2
        }
        assert not broker.records(EVENTS)
        assert not broker.records(REDRIVES)

    def test_a_key_and_a_value_that_are_missing_and_empty(self) -> None:
        broker = new_broker()
        refuse(broker, MemoryRecord(EVENTS, None, None), "empty")
        back(broker)
        assert [(r.value(), r.key()) for r in broker.records(EVENTS)] == [(b"", None)]


class TestCrash:
    """A redrive that is stopped, and begun again."""

    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch) -> None:
        monkeypatch.setattr(redrive, "BATCH", 5)

    @staticmethod
    def _letters() -> MemoryBroker:
        broker = new_broker()
        for number in range(23):
            refuse(broker, MemoryRecord(EVENTS, b"%d" % number, b"k%d" % number))
        return broker

    def _once(self, broker: MemoryBroker) -> None:
        assert Counter(r.value() for r in broker.records(EVENTS)) == Counter(b"%d" % n for n in range(23))
        assert len({r.key() for r in broker.records(REDRIVES)}) == len(broker.records(REDRIVES)) == 23

    def test_a_crash_at_any_emit_or_commit_sends_nothing_twice(self) -> None:
        fired = 0
        for moment in BOMBS:
            broker, bomb = self._letters(), Bomb(moment)
            try:
                back(Fragile(broker, bomb))
            except Crash:
                fired += 1
            assert len(broker.records(EVENTS)) == len(broker.records(REDRIVES)), f"crash at moment {moment}"
            back(broker)
            self._once(broker)
        assert fired == 23 * 2 + 5 * 2, "every emit, and before and after every commit"
        assert fired < len(BOMBS), "and the last ones met nothing any more"

    def test_a_crash_in_every_run_still_comes_to_an_end(self) -> None:
        broker, crashes = self._letters(), 0
        while True:
            try:
                back(Fragile(broker, Bomb(11)))
                break
            except Crash:
                crashes += 1
        assert crashes >= 4
        self._once(broker)

    def test_of_two_at_once_the_older_is_fenced_off_and_nothing_is_sent_twice(self) -> None:
        broker = self._letters()
        older = Redrive(PLAIN, broker, ALL)
        began: list[Found] = []

        def meanwhile(n: int) -> None:
            if older.committed >= 5 and not began:
                began.append(back(broker))

        one_by_one(broker)
        with pytest.raises(Fenced, match=r"another redrive of 'plain' has begun meanwhile .* sent 5 letters back"):
            older.run(meanwhile)
        assert began[0].going.total() == 18
        assert began[0].there == 5
        self._once(broker)

    def test_an_aborted_commit_says_how_far_it_came(self, monkeypatch) -> None:
        broker = self._letters()

        class Aborts:
            def __getattr__(self, name: str) -> Any:
                return getattr(broker, name)

            def producer(self, name: str) -> Any:
                producer, commit = broker.producer(name), 0
                inner = producer.commit

                def second(*arguments: Any) -> None:
                    nonlocal commit
                    commit += 1
                    if commit == 2:
                        raise Aborted("committing: timed out")
                    inner(*arguments)

                producer.commit = second
                return producer

        with pytest.raises(BrokerError, match="timed out; 5 letters went back before that: run it again"):
            back(Aborts())
        assert back(broker).there == 5
        self._once(broker)


def one_by_one(broker: MemoryBroker) -> None:
    """Have the broker hand out one record at a time, so that something may happen between two."""
    read = broker.read

    def one(ranges: Any) -> Iterator[list]:
        for batch in read(ranges):
            for record in batch:
                yield [record]

    broker.read = one


@pytest.fixture(scope="module")
def various() -> MemoryBroker:
    broker = new_broker()
    with pytest.MonkeyPatch.context() as patch:
        for number in range(40):
            patch.setattr(letters.time, "time", lambda number=number: float(number))
            topic = (EVENTS, LABELS, VALID, topics.FEATURES.name("plain"))[number % 4]
            refuse(
                broker, MemoryRecord(topic, b"%d" % number, b"k%d" % number), ("truncated", "not_allowed")[number % 2],
                ("validator", "joiner")[number % 5 == 0], rule=("between", "one_of")[number % 3 == 0],
                field=("carrier", "origin")[number % 7 == 0], value="long" * 100 if number == 30 else number,
            )  # fmt: skip
    back(broker, Wanted(since=20_000))
    return broker


class TestFilters:
    @pytest.mark.parametrize(
        ("wanted", "expected"),
        [
            (ALL, lambda n: True),
            (Wanted(reason="truncated"), lambda n: n % 2 == 0),
            (Wanted(rule="one_of"), lambda n: n % 3 == 0),
            (Wanted(field="origin"), lambda n: n % 7 == 0),
            (Wanted(stage="joiner"), lambda n: n % 5 == 0),
            (Wanted(source="events"), lambda n: n % 4 in (0, 2)),
            (Wanted(source="labels"), lambda n: n % 4 == 1),
            (Wanted(value="7"), lambda n: n == 7),
            (Wanted(value="long" * 100), lambda n: n == 30),
            (Wanted(value=""), lambda n: False),
            (Wanted(since=10_000), lambda n: n >= 10),
            (Wanted(until=10_000), lambda n: n < 10),
            (Wanted(since=5_000, until=7_000), lambda n: n in (5, 6)),
            (Wanted(state="redriven"), lambda n: n >= 20 and n % 4 != 3),
            (Wanted(state="open"), lambda n: n < 20 or n % 4 == 3),
            (Wanted(reason="truncated", stage="joiner", state="open"), lambda n: n in (0, 10)),
        ],
    )
    def test_each_takes_what_it_says(self, various, wanted: Wanted, expected: Any) -> None:
        found = {letter.key for letter, _ in Letters(PLAIN, various).read(wanted)}
        assert found == {f"k{n}" for n in range(40) if expected(n)}

    def test_single_letters(self, various) -> None:
        there = Letters(PLAIN, various)
        two = [Place(*_place(r)) for r in various.records(DLQ)][::25]
        wanted = Wanted(places=frozenset(two))
        assert sorted(letter.place for letter, _ in there.read(wanted)) == sorted(two)
        assert there.count(wanted) <= there.count(ALL) == 40
        assert there.one(two[0])[0].place == two[0]
        for place in (Place(9, 0), Place(0, 1000)):
            with pytest.raises(SettingsError, match=f"no letter {place} in plain.dlq: it holds 0:0 to 0:"):
                there.one(place)

    def test_a_letter_that_retention_took_is_none(self, various) -> None:
        broker = TestCrash._letters()
        slot = next(iter(Letters(PLAIN, broker).ranges))
        broker.truncate(slot, 2)
        with pytest.raises(SettingsError, match=f"no letter {slot.partition}:1"):
            Letters(PLAIN, broker).one(Place(slot.partition, 1))

    def test_the_last_so_many_the_newest_at_the_end(self, various) -> None:
        found = Letters(PLAIN, various).last(ALL, 5)
        assert [letter.key for letter in found] == [f"k{n}" for n in range(35, 40)]
        assert len(Letters(PLAIN, various).last(ALL, 100)) == 40

    def test_a_redrive_of_a_few(self) -> None:
        broker = TestCrash._letters()
        assert back(broker, most=4).going.total() == 4
        assert back(broker, Wanted(places=frozenset([Place(*_place(broker.records(DLQ)[-1]))]))).going.total() == 1
        found = back(broker)
        assert (found.there, found.going.total(), len(broker.records(EVENTS))) == (5, 18, 23)

    def test_a_plan_says_what_the_run_then_does_and_writes_nothing(self, various) -> None:
        broker = TestCrash._letters()
        plan = Redrive(PLAIN, broker, ALL).plan(Letters(PLAIN, broker))
        assert not broker.records(EVENTS)
        assert back(broker) == plan


class TestStats:
    def test_kinds_shares_and_times(self, various) -> None:
        stats = Letters(PLAIN, various).stats(ALL)
        kinds = stats.most()
        assert sum(kind.letters for kind in kinds) == stats.total.letters == 40
        assert [kind.letters for kind in kinds] == sorted((kind.letters for kind in kinds), reverse=True)
        assert (stats.total.first, stats.total.last) == (0, 39_000)
        assert (stats.total.redriven, stats.total.open, stats.total.again) == (15, 25, 0)

    def test_kinds_are_bounded(self) -> None:
        stats = Stats()
        letter = letter_of(MemoryRecord(DLQ, b"", b"", 5, []))
        for number in range(10_000):
            stats.add(replace(letter, field=f"f{number}"), "open")
        assert len(stats.kinds) == MOST_KINDS + 1
        assert stats.total.letters == 10_000
        assert stats.most()[0].reason == "others"

    def test_places_of_millions_of_letters_take_next_to_nothing(self) -> None:
        tracemalloc.start()
        places = Places()
        for offset in range(0, 3_000_000, 70):
            places.add(Place(offset % 3, offset))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 4_000_000
        assert Place(0, 210) in places
        assert Place(1, 210) not in places
        assert Place(0, 10**9) not in places
        assert Place(5, 0) not in places

    def test_reading_any_number_of_letters_takes_bounded_memory(self) -> None:
        class Endless:
            """A broker with any number of letters, that it makes as they are asked for."""

            def partitions(self, topic: str) -> int:
                return int(topic == DLQ)

            def watermarks(self, slot: Any) -> tuple[int, int]:
                return 0, 30_000

            def read(self, ranges: Any) -> Iterator[list]:
                if not ranges:
                    return
                for begin in range(0, 30_000, 500):
                    yield [
                        MemoryRecord(DLQ, b"x" * 100, b"k", n, [("tidemill.reason", b"truncated")], 0, n)
                        for n in range(begin, begin + 500)
                    ]

        there: Any = Letters(PLAIN, Endless())  # type: ignore[arg-type]
        tracemalloc.start()
        assert there.stats(ALL).total.letters == 30_000
        assert [letter.place.offset for letter in there.last(ALL, 3)] == [29_997, 29_998, 29_999]
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2_000_000, "a batch or two, not all"


class TestWrongTopics:
    def test_a_topic_that_was_begun_again_is_found(self) -> None:
        broker = TestCrash._letters()
        back(broker)
        for slot, entries in broker.log.items():
            if slot.topic == DLQ:
                entries.clear()
        with pytest.raises(BrokerError, match=r"deleted and begun again; delete plain\.redrives as well"):
            Letters(PLAIN, broker)

    @pytest.mark.parametrize("key", [None, b"", b"x", b"\xff"])
    def test_a_record_among_the_redrives_that_is_none_is_named(self, key: bytes | None) -> None:
        broker = TestCrash._letters()
        broker.append(REDRIVES, b"x", key)
        with pytest.raises(BrokerError, match=r"plain\.redrives\[0\]@0: the key .* only `tidemill dlq redrive`"):
            Letters(PLAIN, broker)

    def test_without_the_topic_of_redrives_nothing_went_back(self) -> None:
        broker = MemoryBroker({name: count for _, name, count in topic_table(PLAIN) if name != REDRIVES})
        refuse(broker, MemoryRecord(EVENTS, b"x", b"k"))
        assert Letters(PLAIN, broker).stats(ALL).total.open == 1


HOSTILE = "\x1b[31m[bold]red[/bold]\u202e\r\n\x00"


class TestShown:
    def letter(self, data_: bytes = b"x", topic: str = EVENTS) -> tuple[MemoryBroker, Letter, MemoryRecord]:
        broker = new_broker()
        headers = [(HOSTILE, HOSTILE.encode())]
        record = MemoryRecord(topic, data_, HOSTILE.encode(), 2**60, headers)
        reject = Reject(
            "unexpected_field", f"field {HOSTILE} is not in it", field=HOSTILE, value=HOSTILE, rule="schema"
        )
        dead_letter(record, reject, broker.append, DLQ, "validator")
        (found,) = broker.records(DLQ)
        return broker, letter_of(found), found

    def test_nothing_that_a_producer_writes_commands_the_terminal(self) -> None:
        broker, letter, record = self.letter()
        there = Letters(PLAIN, broker)
        texts = [letters_text(there, [letter]), stats_text(there, there.stats(ALL))]
        texts += [
            letter_text(letter, there, own(record), [], content(PLAIN, letter, data_))
            for data_ in (HOSTILE.encode(), b"a\x1b[31m", b"\xff\x1b")
        ]
        for text in texts:
            assert not [c for c in text if not c.isprintable() and c != "\n"]
            assert "\\x1b" in text, "it is told as text"
            assert "[bold]" in text.replace("\n", "").replace(" ", ""), "and no markup is obeyed"

    def test_printable_text_stays_as_it_is(self) -> None:
        assert printable("Zürich, 5 µs [x]") == "Zürich, 5 µs [x]"

    @pytest.mark.parametrize(
        ("data_", "form", "part"),
        [
            (b"", "nothing", ""),
            (b"\x01\x02\xff" * 100, "bytes", "0000  01 02 ff"),
            (b'{"carrier": 5, "more": [1]}', "text", '  "carrier": 5,'),
            (b"hello\nthere", "text", "hello\nthere"),
            (b"[" * 100_000, "text", "[[["),
            (b"\x1b[31m", "bytes", "1b 5b 33 31 6d"),
            (b"\0\0\0\0\0\xff", "bytes", "00 00 00 00 00 ff"),
        ],
    )
    def test_bytes_in_the_form_that_says_most(self, data_: bytes, form: str, part: str) -> None:
        _, letter, _ = self.letter(data_)
        held = content(PLAIN, letter, data_)
        assert (held.form, held.record) == (form, None)
        assert part in held.text
        assert len(held.text) < 5000

    def test_records_are_decoded_by_where_they_came_from(self, sent) -> None:
        event = next(m for m in sent if m.is_event)
        label = next(m for m in sent if not m.is_event)
        _, letter, _ = self.letter()
        assert content(PLAIN, letter, event.value).record["flight_id"] == event.key.decode()
        assert content(PLAIN, replace(letter, topic=VALID), event.value).record["flight_id"] == event.key.decode()
        assert content(PLAIN, replace(letter, topic=LABELS), label.value).record["flight_id"] == label.key.decode()
        assert content(PLAIN, letter, label.value).form == "bytes", "that schema is not the events'"
        features = {
            "event_id": "a", "entity_id": "b", "event_time": 5, "partition": 1, "offset": 2, "partial": True, "entities": {},
            "as_of": {}, "stale": [], "vector": dict.fromkeys(PLAIN.vector),
        }  # fmt: skip
        encoded = RECORDS.features.encode(features)
        of_ours = replace(letter, topic=topics.FEATURES.name("plain"))
        assert content(PLAIN, of_ours, encoded).record["event_id"] == "a"
        assert content(PLAIN, of_ours, encoded[:9]).form == "bytes"


@pytest.fixture(scope="module")
def embedded() -> Iterator[EmbeddedBroker]:
    broker = EmbeddedBroker()
    broker.create([name for _, name, _ in topic_table(PLAIN)])
    producer = KafkaBroker(broker.servers).producer("test")
    for number in range(6):
        record = MemoryRecord(EVENTS, b"\x01\x02%d" % number, b"k%d" % number, 1000, [("trace", b"t")], 1, number)
        dead_letter(
            record, Reject("bad_magic", "the first byte is 0x01", value="0x01"), producer.emit, DLQ, "validator"
        )
    refused_ = Reject("duplicate_event", "predicted already")
    dead_letter(MemoryRecord(topics.PREDICTION_LOG.name("plain"), b"x", b"k"), refused_, producer.emit, DLQ, "joiner")
    producer.commit({}, None)
    producer.close()
    return broker


def dlq(broker: EmbeddedBroker, *arguments: str, **options: Any) -> Any:
    return CliRunner().invoke(
        cli, ["dlq", arguments[0], "plain", *arguments[1:], "--brokers", broker.servers], catch_exceptions=False, **options
    )  # fmt: skip


class TestCommands:
    def test_in_the_order_in_which_they_are_used(self, embedded, tmp_path: Path, monkeypatch) -> None:
        listed = [json.loads(line) for line in dlq(embedded, "list", "--json").stdout.splitlines()]
        assert len(listed) == 7
        assert {letter["state"] for letter in listed} == {"open"}
        one = next(letter for letter in listed if letter["reason"] == "bad_magic")["letter"]
        text = dlq(embedded, "list", "--reason", "bad_magic", "--limit", "2").stdout
        assert text.count("bad_magic") == 2
        shown = dlq(embedded, "show", one, "--out", str(tmp_path / "bytes")).stdout
        for words in (f"letter {one} of plain.dlq, open", "the first byte is 0x01", "header trace", "0000  01 02 3"):
            assert words in shown
        assert (tmp_path / "bytes").read_bytes().startswith(b"\x01\x02")
        with pytest.raises(SettingsError, match="File exists; name a new file"):
            dlq(embedded, "show", one, "--out", str(tmp_path / "bytes"))
        with pytest.raises(SettingsError, match="no terminal: say --yes"):
            dlq(embedded, "redrive")
        said = dlq(embedded, "redrive", "--dry-run").stdout
        assert "would send 6 letters back; nothing was sent" in said
        assert "1 can't go back: it is about plain.prediction-log" in said
        monkeypatch.setattr("tidemill.commands.dlq.asks", lambda: True)
        declined = dlq(embedded, "redrive", input="n\n")
        assert (declined.exit_code, "send 6 letters back? [y/N]" in declined.stdout) == (1, True)
        assert "sent 1 letter back: 1 to plain.events" in dlq(embedded, "redrive", "--letter", one, input="y\n").stdout
        assert "sent 5 letters back: 5 to plain.events" in dlq(embedded, "redrive", "--yes").stdout
        assert dlq(embedded, "redrive", "--yes").stdout.splitlines()[::2] == [
            "6 went back already and stay (--again sends them once more)", "nothing to send",
        ]  # fmt: skip
        assert f"letter {one} of plain.dlq, redriven" in (again := dlq(embedded, "show", one).stdout)
        assert "went back" in again
        total = json.loads(dlq(embedded, "stats", "--json").stdout)["total"]
        assert (total["letters"], total["open"], total["redriven"]) == (7, 1, 6)
        assert len(dlq(embedded, "list", "--open", "--json").stdout.splitlines()) == 1
        assert len(dlq(embedded, "list", "--redriven", "--json").stdout.splitlines()) == 6
        assert dlq(embedded, "stats", "--reason", "x").stdout == "no such letter in plain.dlq\n"
        assert dlq(embedded, "list", "--value", "x").stdout == "no such letter in plain.dlq\n"

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["list", "--since", "soon"], "--since 'soon' is no time"),
            (["stats", "--until", "13"], "--until '13' is no time"),
            (["show", "x"], "'x' is no dead letter: expected PARTITION:OFFSET"),
            (["redrive", "--yes", "--letter", "7"], "--letter '7' is no dead letter"),
            (["redrive", "--yes", "--letter", "3:999"], "no letter 3:999 in plain.dlq"),
            (["show", "44:0"], "no letter 44:0 in plain.dlq"),
        ],
    )
    def test_what_is_wrong_is_named(self, embedded, arguments: list[str], words: str) -> None:
        with pytest.raises(SettingsError, match=words):
            dlq(embedded, *arguments)

    def test_commands_in_the_page_about_dead_letters_parse(self) -> None:
        text = (Path(__file__).parents[2] / "docs" / "dead-letters.md").read_text()
        commands = [
            line.removeprefix("$ ") for line in text.splitlines() if line.startswith(("tidemill ", "$ tidemill "))
        ]
        assert len(commands) >= 6
        for command in commands:
            accepts(shlex.split(command.partition("  #")[0])[1:])
