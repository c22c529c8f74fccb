"""What a dead letter's headers say; and that it goes back once, whatever stops a redrive."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusing import (
    ALL,
    DLQ,
    EVENTS,
    LABELS,
    OWN,
    PLAIN,
    RECORDS,
    REDRIVES,
    VALID,
    back,
    new_broker,
    place,
    refuse,
    with_letters,
)
from test_loop_crash import Bomb, Crash, Fragile, drive

from tidemill import rules
from tidemill.demo import data
from tidemill.demo.script import script
from tidemill.errors import Aborted, BrokerError, Fenced, Reject
from tidemill.offline import redrive
from tidemill.offline.dead_letters import DeadLetters
from tidemill.offline.redrive import Redrive, RedriveCounts
from tidemill.stages.featurizer import service as featurizer
from tidemill.stages.joiner import service as joiner
from tidemill.stages.validator import service as validator
from tidemill.stream.memory import MemoryBroker, MemoryRecord
from tidemill.wire import dead_letters, topics
from tidemill.wire.dead_letters import (
    Place,
    RedriveMark,
    parse_place,
    producer_headers,
    read_dead_letter,
    split_redrive_mark,
)

BOMBS = range(60)
WRONG = replace(PLAIN, rules=[*PLAIN.rules, rules.between("sched_hour", 0, 10)])


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


class TestHeaders:
    def test_a_letter_says_when_it_was_refused_and_that_it_was_the_first_attempt(self, monkeypatch) -> None:
        monkeypatch.setattr(dead_letters.time, "time", lambda: 1234.5678)
        broker = new_broker()
        refuse(broker, MemoryRecord(EVENTS, b"x", b"k", 77, [*OWN], 3, 9), field="carrier", value="ZZ", rule="one_of")
        (record,) = broker.records(DLQ)
        letter = read_dead_letter(record)
        assert (letter.refused_at, letter.sent_at, letter.attempt, letter.redriven_from) == (1_234_567, 77, 1, "")
        assert (letter.topic, letter.partition, letter.offset, letter.stage) == (EVENTS, 3, 9, "validator")
        assert (letter.reason, letter.rule, letter.field, letter.value) == ("out_of_range", "one_of", "carrier", "ZZ")
        assert (letter.key, letter.size, letter.message) == ("k", 1, "out_of_range it is")
        assert producer_headers(record) == OWN

    def test_a_letter_of_another_program_has_its_own_timestamp_and_is_the_first_attempt(self) -> None:
        foreign = [("trace", b"t"), ("__connect.errors.topic", EVENTS.encode()), ("tidemill.reason", b"truncated")]
        letter = read_dead_letter(MemoryRecord(DLQ, b"x", None, 55, foreign, 1, 2))
        assert (letter.refused_at, letter.attempt, letter.place, letter.key) == (55, 1, Place(1, 2), "")
        assert producer_headers(MemoryRecord(DLQ, b"x", None, 55, foreign)) == [("trace", b"t")]

    def test_a_mark_is_taken_off_and_every_other_header_is_its_producers(self) -> None:
        mark = RedriveMark(Place(2, 17), 3)
        assert split_redrive_mark([*OWN, *mark.headers()]) == (OWN, mark)
        assert split_redrive_mark(OWN) == (OWN, None)
        assert split_redrive_mark(None) == ([], None)

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
        assert read_dead_letter(record).attempt == 1
        assert producer_headers(record) == forged
        back(broker)
        assert broker.records(EVENTS)[0].headers() == [*forged, *RedriveMark(place(record), 2).headers()]

    def test_headers_that_look_like_ours_are_kept_and_do_not_speak_for_the_letter(self) -> None:
        hostile = [
            ("__connect.errors.topic", b"elsewhere"),
            ("tidemill.refused_at", b"9" * 5000),
            ("tidemill.attempt", b"x"),
        ]
        broker = new_broker()
        refuse(broker, MemoryRecord(EVENTS, b"x", b"k", 77, hostile))
        (record,) = broker.records(DLQ)
        assert producer_headers(record) == hostile
        assert (read_dead_letter(record).topic, read_dead_letter(record).attempt) == (EVENTS, 1)
        assert back(broker).by_topic() == {EVENTS: 1}
        assert broker.records(EVENTS)[0].headers()[:3] == hostile

    @pytest.mark.slow
    @given(st.lists(st.tuples(st.text(max_size=9) | st.sampled_from(["tidemill.redriven", "tidemill.attempt", "__connect.errors.topic"]),
                              st.none() | st.binary(max_size=9)), max_size=6))  # fmt: skip
    @settings(max_examples=200, deadline=None)
    def test_whatever_headers_a_producer_gives_come_back_as_they_were(self, given_: list) -> None:
        producers, mark = split_redrive_mark(given_)
        found = dead_letters.dead_letter_headers(
            MemoryRecord(EVENTS, b"x", None, 0, given_), Reject("r", "m"), "validator", 5
        )
        assert producer_headers(MemoryRecord(DLQ, b"x", None, 0, found)) == producers
        assert read_dead_letter(MemoryRecord(DLQ, b"x", None, 0, found)).attempt == (mark.attempt if mark else 1)

    @pytest.mark.parametrize(
        "text", ["", "1", "1:", ":1", "1:2:3", "-1:2", "a:b", "1: 2", "9" * 10 + ":1", "1:" + "9" * 19]
    )
    def test_a_place_that_is_none_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match="PARTITION:OFFSET"):
            parse_place(text)


class TestThereAndBack:
    @pytest.mark.slow
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
        marked = {r.headers()[-2][1]: r for r in again if split_redrive_mark(r.headers())[1]}
        assert len(marked) == len(dead)
        for letter in dead:
            record = marked[str(place(letter)).encode()]
            assert (record.value(), record.key()) == (letter.value(), letter.key())
            assert record.headers() == [*OWN, *RedriveMark(place(letter), 2).headers()]
            assert record.timestamp()[1] > 10**12, "now, and not when its producer sent it"
        drive(validator.build(PLAIN), broker)
        after = ids(broker, VALID)
        assert after == Counter(m.key.decode() for m in events)
        assert len(after) == len(before) + len(dead)
        assert len(broker.records(DLQ)) == len(dead)

    @pytest.mark.slow
    def test_a_second_redrive_sends_nothing(self, sent) -> None:
        broker = refused(sent)
        count = back(broker).going.total()
        length = len(broker.records(EVENTS))
        found = back(broker)
        assert (found.redriven_before, found.going.total(), len(broker.records(EVENTS))) == (count, 0, length)
        assert back(broker, again=True).going.total() == count
        assert len(broker.records(EVENTS)) == length + count
        assert back(broker).redriven_before == count

    def test_each_redrive_is_told(self) -> None:
        broker = new_broker()
        refuse(broker, MemoryRecord(LABELS, b"x", b"k", 77), reason="bad_label")
        Redrive(PLAIN, broker, ALL, clock=lambda: 12.5).run()
        (record,) = broker.records(REDRIVES)
        name = str(place(broker.records(DLQ)[0]))
        assert record.key() == name.encode()
        assert RECORDS.redrive.decode(record.value()) == {
            "letter": name, "to": LABELS, "attempt": 2, "reason": "bad_label", "time": 12_500,
        }  # fmt: skip
        assert DeadLetters(PLAIN, broker).history(parse_place(name)) == [RECORDS.redrive.decode(record.value())]
        assert DeadLetters(PLAIN, broker).history(Place(0, 99)) == []

    @pytest.mark.slow
    def test_what_is_refused_again_is_a_new_letter_of_the_second_attempt_with_the_headers_once(self, sent) -> None:
        broker = refused(sent)
        first = {str(place(r)): r for r in broker.records(DLQ)}
        for attempt in (2, 3):
            known = {place(r) for r in broker.records(DLQ)}
            assert back(broker).going.total() == len(first)
            drive(validator.build(WRONG), broker)
            newer = [r for r in broker.records(DLQ) if place(r) not in known]
            assert len(newer) == len(first)
            for record in newer:
                letter, names = read_dead_letter(record), [name for name, _ in record.headers()]
                assert letter.attempt == attempt
                assert producer_headers(record) == OWN
                assert Counter(names)["__connect.errors.topic"] == Counter(names)["tidemill.attempt"] == 1
                assert record.value() == first[letter.redriven_from].value()
            first = {str(place(r)): r for r in newer}
        stats = DeadLetters(PLAIN, broker).stats(ALL)
        n = len(first)
        assert (stats.total.letters, stats.total.open, stats.total.redriven, stats.total.again) == (
            3 * n,
            n,
            2 * n,
            2 * n,
        )

    @pytest.mark.slow
    def test_a_later_service_knows_the_attempt_as_well(self) -> None:
        broker, pipeline = new_broker(), replace(PLAIN, label_timeout="1h")
        label = {"flight_id": "a", "landed_at": 0, "arr_delay": 1.0}
        mark = RedriveMark(Place(0, 4), 2)
        broker.append(LABELS, RECORDS.label.encode(label), b"a", 5, [*OWN, *mark.headers()])
        drive(validator.build(pipeline), broker)
        (valid,) = broker.records(topics.LABELS_VALID.name("plain"))
        assert valid.headers()[1:] == mark.headers()
        step = joiner.Joiner(pipeline)
        step._emit = broker.append
        step._reject(valid, Reject("unmatched_label", "no prediction came"))
        (record,) = broker.records(DLQ)
        assert (read_dead_letter(record).attempt, read_dead_letter(record).redriven_from, producer_headers(record)) == (
            2,
            "0:4",
            [],
        )

    @pytest.mark.slow
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
        assert {read_dead_letter(r).topic for r in broker.records(DLQ)} == {VALID}
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
        assert found.unsendable.total() == 5
        assert {why: n for why, n in found.unsendable.items() if "prediction-log" in why} == {
            "it is about plain.prediction-log, which a service of ours writes": 2
        }
        assert not broker.records(EVENTS)
        assert not broker.records(REDRIVES)

    def test_a_letter_that_was_cut_does_not_go_back(self) -> None:
        """Its key is another one now, so it would come to another partition; what is left of it would fit."""
        broker = new_broker()

        def emit(topic: str, value: bytes, key: Any = None, timestamp: int = 0, headers: Any = None) -> None:
            broker.append(topic, value, key, timestamp, headers)

        record = MemoryRecord(EVENTS, b"x", b"k" * 3_000_000, 5, OWN)
        dead_letters.send_dead_letter(record, Reject("bad_magic", "it is"), emit, DLQ, "validator")
        found = back(broker)
        assert not found.going
        assert found.unsendable == {"it is a part of its record, which was too large to be kept": 1}
        assert not broker.records(EVENTS)

    def test_a_producers_header_does_not_make_a_letter_one_that_was_cut(self) -> None:
        broker = new_broker()
        refuse(broker, MemoryRecord(EVENTS, b"x", b"k", 77, [("tidemill.cut", b"5"), ("tidemill.entity", b"theirs")]))
        (record,) = broker.records(DLQ)
        assert (read_dead_letter(record).cut_from, read_dead_letter(record).entity) == (None, "")
        assert back(broker).by_topic() == {EVENTS: 1}

    def test_a_key_and_a_value_that_are_missing_and_empty(self) -> None:
        broker = new_broker()
        refuse(broker, MemoryRecord(EVENTS, None, None), "empty")
        back(broker)
        assert [(r.value(), r.key()) for r in broker.records(EVENTS)] == [(b"", None)]


class TestCrash:
    """A redrive that is stopped, and begun again."""

    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch) -> None:
        monkeypatch.setattr(redrive, "BATCH_LETTERS", 5)

    def _once(self, broker: MemoryBroker) -> None:
        assert Counter(r.value() for r in broker.records(EVENTS)) == Counter(b"%d" % n for n in range(23))
        assert len({r.key() for r in broker.records(REDRIVES)}) == len(broker.records(REDRIVES)) == 23

    def test_a_crash_at_any_emit_or_commit_sends_nothing_twice(self) -> None:
        fired = 0
        for moment in BOMBS:
            broker, bomb = with_letters(), Bomb(moment)
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
        broker, crashes = with_letters(), 0
        while True:
            try:
                back(Fragile(broker, Bomb(11)))
                break
            except Crash:
                crashes += 1
        assert crashes >= 4
        self._once(broker)

    def test_no_transaction_is_open_while_letters_are_looked_for(self) -> None:
        broker = with_letters()
        one_by_one(broker)
        made = []
        inner = broker.producer
        broker.producer = lambda name: made.append(inner(name)) or made[-1]
        looked = []

        def look(n: int) -> None:
            assert not made[-1]._pending, "it would run out of its time where the next one is far"
            looked.append(n)

        Redrive(PLAIN, broker, ALL).run(look)
        assert len(looked) == 23
        self._once(broker)

    def test_large_letters_make_small_transactions(self, monkeypatch) -> None:
        monkeypatch.setattr(redrive, "BATCH_BYTES", 6)
        broker = with_letters()
        with pytest.raises(Crash):
            back(Fragile(broker, Bomb(5)))  # four records of two letters, before their commit, after it
        assert len(broker.records(EVENTS)) == 2
        back(broker)
        self._once(broker)

    def test_of_two_at_once_the_older_is_fenced_off_and_nothing_is_sent_twice(self) -> None:
        broker = with_letters()
        older = Redrive(PLAIN, broker, ALL)
        began: list[RedriveCounts] = []

        def meanwhile(n: int) -> None:
            if older.committed >= 5 and not began:
                began.append(back(broker))

        one_by_one(broker)
        with pytest.raises(Fenced, match=r"another redrive of 'plain' has started meanwhile .* sent 5 letters back"):
            older.run(meanwhile)
        assert began[0].going.total() == 18
        assert began[0].redriven_before == 5
        self._once(broker)

    def test_an_aborted_commit_says_how_far_it_came(self, monkeypatch) -> None:
        broker = with_letters()

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

        with pytest.raises(BrokerError, match="timed out; at least 5 letters went back before that: run it again"):
            back(Aborts())
        assert back(broker).redriven_before == 5
        self._once(broker)


def one_by_one(broker: MemoryBroker) -> None:
    """Have the broker hand out one record at a time, so that something may happen between two."""
    read = broker.read

    def one(ranges: Any) -> Iterator[list]:
        for batch in read(ranges):
            for record in batch:
                yield [record]

    broker.read = one
