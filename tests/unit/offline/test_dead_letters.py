"""Dead letters, for people: which are meant, how many there are, and how they are shown."""

from __future__ import annotations

import json
import shlex
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from refusing import (
    ALL,
    DLQ,
    EVENTS,
    LABELS,
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
from test_deployment import accepts

from tidemill.cli.main import cli
from tidemill.cli.text.dead_letters import letter_text, letters_text, stats_text
from tidemill.cli.text.shared import printable
from tidemill.demo import data
from tidemill.demo.script import script
from tidemill.errors import BrokerError, Reject, SettingsError
from tidemill.offline.dead_letters import MAX_KINDS, DeadLetters, LetterFilter, LetterStats, PlaceSet, content
from tidemill.offline.redrive import Redrive
from tidemill.runtime.run import topic_table
from tidemill.stream.embedded import EmbeddedBroker
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.stream.memory import MemoryBroker, MemoryRecord
from tidemill.stream.ranges import full_range
from tidemill.wire import dead_letters, topics
from tidemill.wire.dead_letters import DeadLetter, Place, producer_headers, read_dead_letter, send_dead_letter


@pytest.fixture(scope="module")
def sent() -> list:
    return list(script(PLAIN, data.flights((1,), days=2)[::20]))


@pytest.fixture(scope="module")
def various() -> MemoryBroker:
    broker = new_broker()
    with pytest.MonkeyPatch.context() as patch:
        for number in range(40):
            patch.setattr(dead_letters.time, "time", lambda number=number: float(number))
            topic = (EVENTS, LABELS, VALID, topics.FEATURES.name("plain"))[number % 4]
            refuse(
                broker, MemoryRecord(topic, b"%d" % number, b"k%d" % number), ("truncated", "not_allowed")[number % 2],
                ("validator", "joiner")[number % 5 == 0], rule=("between", "one_of")[number % 3 == 0],
                field=("carrier", "origin")[number % 7 == 0], value="long" * 100 if number == 30 else number,
            )  # fmt: skip
    back(broker, LetterFilter(since=20_000))
    return broker


class TestFilters:
    @pytest.mark.parametrize(
        ("wanted", "expected"),
        [
            (ALL, lambda n: True),
            (LetterFilter(reason="truncated"), lambda n: n % 2 == 0),
            (LetterFilter(rule="one_of"), lambda n: n % 3 == 0),
            (LetterFilter(field="origin"), lambda n: n % 7 == 0),
            (LetterFilter(stage="joiner"), lambda n: n % 5 == 0),
            (LetterFilter(source="events"), lambda n: n % 4 in (0, 2)),
            (LetterFilter(source="labels"), lambda n: n % 4 == 1),
            (LetterFilter(value="7"), lambda n: n == 7),
            (LetterFilter(value="long" * 100), lambda n: n == 30),
            (LetterFilter(value=""), lambda n: False),
            (LetterFilter(since=10_000), lambda n: n >= 10),
            (LetterFilter(until=10_000), lambda n: n < 10),
            (LetterFilter(since=5_000, until=7_000), lambda n: n in (5, 6)),
            (LetterFilter(state="redriven"), lambda n: n >= 20 and n % 4 != 3),
            (LetterFilter(state="open"), lambda n: n < 20 or n % 4 == 3),
            (LetterFilter(reason="truncated", stage="joiner", state="open"), lambda n: n in (0, 10)),
        ],
    )
    def test_each_takes_what_it_says(self, various, wanted: LetterFilter, expected: Any) -> None:
        found = {letter.key for letter, _ in DeadLetters(PLAIN, various).read(wanted)}
        assert found == {f"k{n}" for n in range(40) if expected(n)}

    def test_single_letters(self, various) -> None:
        there = DeadLetters(PLAIN, various)
        two = [place(r) for r in various.records(DLQ)][::25]
        wanted = LetterFilter(places=frozenset(two))
        assert sorted(letter.place for letter, _ in there.read(wanted)) == sorted(two)
        assert there.count(wanted) <= there.count(ALL) == 40
        assert there.one(two[0])[0].place == two[0]
        for nowhere in (Place(9, 0), Place(0, 1000)):
            with pytest.raises(SettingsError, match=f"no letter {nowhere} in plain.dlq: it holds 0:0 to 0:"):
                there.one(nowhere)

    def test_a_letter_that_retention_took_is_none(self, various) -> None:
        broker = with_letters()
        slot = next(iter(DeadLetters(PLAIN, broker).ranges))
        broker.truncate(slot, 2)
        with pytest.raises(SettingsError, match=f"no letter {slot.partition}:1"):
            DeadLetters(PLAIN, broker).one(Place(slot.partition, 1))

    def test_the_last_so_many_the_newest_at_the_end(self, various) -> None:
        found = DeadLetters(PLAIN, various).last(ALL, 5)
        assert [letter.key for letter in found] == [f"k{n}" for n in range(35, 40)]
        assert len(DeadLetters(PLAIN, various).last(ALL, 100)) == 40

    def test_a_redrive_of_a_few(self) -> None:
        broker = with_letters()
        assert back(broker, most=4).going.total() == 4
        assert back(broker, LetterFilter(places=frozenset([place(broker.records(DLQ)[-1])]))).going.total() == 1
        found = back(broker)
        assert (found.redriven_before, found.going.total(), len(broker.records(EVENTS))) == (5, 18, 23)

    def test_a_plan_says_what_the_run_then_does_and_writes_nothing(self) -> None:
        broker = with_letters()
        driving = Redrive(PLAIN, broker, ALL)
        plan = driving.plan(DeadLetters(PLAIN, broker))
        assert not broker.records(EVENTS)
        refuse(broker, MemoryRecord(EVENTS, b"later", b"k"))
        assert driving.run() == plan, "what came after it was shown was not agreed to"
        assert back(broker).going.total() == 1


class TestStats:
    def test_kinds_shares_and_times(self, various) -> None:
        stats = DeadLetters(PLAIN, various).stats(ALL)
        kinds = stats.most()
        assert sum(kind.letters for kind in kinds) == stats.total.letters == 40
        assert [kind.letters for kind in kinds] == sorted((kind.letters for kind in kinds), reverse=True)
        assert (stats.total.first, stats.total.last) == (0, 39_000)
        assert (stats.total.redriven, stats.total.open, stats.total.again) == (15, 25, 0)

    def test_kinds_are_bounded(self) -> None:
        stats = LetterStats()
        letter = read_dead_letter(MemoryRecord(DLQ, b"", b"", 5, []))
        for number in range(10_000):
            stats.add(replace(letter, field=f"f{number}"), "open")
        assert len(stats.kinds) == MAX_KINDS + 1
        assert stats.total.letters == 10_000
        assert stats.most()[0].reason == "others"

    @pytest.mark.slow
    def test_places_of_millions_of_letters_take_next_to_nothing(self) -> None:
        tracemalloc.start()
        places = PlaceSet()
        for offset in range(0, 3_000_000, 70):
            places.add(Place(offset % 3, offset))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 4_000_000
        assert Place(0, 210) in places
        assert Place(1, 210) not in places
        assert Place(0, 10**9) not in places
        assert Place(5, 0) not in places

    @pytest.mark.slow
    def test_reading_any_number_of_letters_takes_bounded_memory(self) -> None:
        class Endless:
            """A broker with any number of letters, that it makes as they are asked for."""

            def partitions(self, topic: str) -> int:
                return int(topic == DLQ)

            def offset_range(self, slot: Any) -> tuple[int, int]:
                return 0, 30_000

            def read(self, ranges: Any) -> Iterator[list]:
                if not ranges:
                    return
                for begin in range(0, 30_000, 500):
                    yield [
                        MemoryRecord(DLQ, b"x" * 100, b"k", n, [("tidemill.reason", b"truncated")], 0, n)
                        for n in range(begin, begin + 500)
                    ]

        there: Any = DeadLetters(PLAIN, Endless())  # type: ignore[arg-type]
        tracemalloc.start()
        assert there.stats(ALL).total.letters == 30_000
        assert [letter.place.offset for letter in there.last(ALL, 3)] == [29_997, 29_998, 29_999]
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2_000_000, "a batch or two, not all"


class TestWrongTopics:
    def test_a_topic_that_was_begun_again_is_found(self) -> None:
        broker = with_letters()
        back(broker)
        for slot, entries in broker.log.items():
            if slot.topic == DLQ:
                entries.clear()
        with pytest.raises(BrokerError, match=r"deleted and created again; delete plain\.redrives as well"):
            DeadLetters(PLAIN, broker)

    @pytest.mark.parametrize("key", [None, b"", b"x", b"\xff"])
    def test_a_record_among_the_redrives_that_is_none_is_named(self, key: bytes | None) -> None:
        broker = with_letters()
        broker.append(REDRIVES, b"x", key)
        with pytest.raises(BrokerError, match=r"plain\.redrives\[0\]@0: the key .* only `tidemill dlq redrive`"):
            DeadLetters(PLAIN, broker)

    def test_without_the_topic_of_redrives_nothing_went_back(self) -> None:
        broker = MemoryBroker({name: count for _, name, count in topic_table(PLAIN) if name != REDRIVES})
        refuse(broker, MemoryRecord(EVENTS, b"x", b"k"))
        assert DeadLetters(PLAIN, broker).stats(ALL).total.open == 1


HOSTILE = "\x1b[31m[bold]red[/bold]\u202e\r\n\x00"


class TestShown:
    def letter(self, data_: bytes = b"x", topic: str = EVENTS) -> tuple[MemoryBroker, DeadLetter, MemoryRecord]:
        broker = new_broker()
        headers = [(HOSTILE, HOSTILE.encode())]
        record = MemoryRecord(topic, data_, HOSTILE.encode(), 2**60, headers)
        reject = Reject(
            "unexpected_field", f"field {HOSTILE} is not in it", field=HOSTILE, value=HOSTILE, rule="schema"
        )
        send_dead_letter(record, reject, broker.append, DLQ, "validator")
        (found,) = broker.records(DLQ)
        return broker, read_dead_letter(found), found

    def test_nothing_that_a_producer_writes_commands_the_terminal(self) -> None:
        broker, letter, record = self.letter()
        there = DeadLetters(PLAIN, broker)
        texts = [letters_text(there, [letter]), stats_text(there, there.stats(ALL))]
        texts += [
            letter_text(letter, there, producer_headers(record), [], content(PLAIN, letter, data_))
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

    @pytest.mark.slow
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
        send_dead_letter(
            record, Reject("bad_magic", "the first byte is 0x01", value="0x01"), producer.emit, DLQ, "validator"
        )
    refused_ = Reject("duplicate_event", "predicted already")
    send_dead_letter(
        MemoryRecord(topics.PREDICTION_LOG.name("plain"), b"x", b"k"), refused_, producer.emit, DLQ, "joiner"
    )
    producer.commit({}, None)
    producer.close()
    return broker


def dlq(broker: EmbeddedBroker, *arguments: str, **options: Any) -> Any:
    return CliRunner().invoke(
        cli, ["dlq", arguments[0], "plain", *arguments[1:], "--brokers", broker.servers], catch_exceptions=False, **options
    )  # fmt: skip


class TestCommands:
    @pytest.mark.slow
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
        with pytest.raises(SettingsError, match="no terminal: add --yes"):
            dlq(embedded, "redrive")
        said = dlq(embedded, "redrive", "--dry-run").stdout
        assert "would send 6 letters back; nothing was sent" in said
        assert "1 can't go back: it is about plain.prediction-log" in said
        monkeypatch.setattr("tidemill.cli.dead_letters.can_ask", lambda: True)
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
        assert dlq(embedded, "stats", "--reason", "x").stdout == "no such dead letter in plain.dlq\n"
        assert dlq(embedded, "list", "--value", "x").stdout == "no such dead letter in plain.dlq\n"

    @pytest.mark.slow
    @pytest.mark.parametrize("command", ["stats", "list"])
    def test_where_nothing_was_refused_it_says_so(self, command: str) -> None:
        broker = EmbeddedBroker()
        broker.create([name for _, name, _ in topic_table(PLAIN)])
        assert dlq(broker, command).stdout == "plain.dlq is empty: nothing was refused\n"

    def test_where_what_was_refused_is_deleted_it_does_not_say_that_nothing_was(self) -> None:
        broker = MemoryBroker({name: partitions for _, name, partitions in topic_table(PLAIN)})

        def text(**wanted: str) -> set[str]:
            letters, filter_ = DeadLetters(PLAIN, broker), LetterFilter(**wanted)
            return {
                stats_text(letters, letters.stats(filter_)), letters_text(letters, letters.last(filter_, 5))
            }  # fmt: skip

        assert text() == {"plain.dlq is empty: nothing was refused\n"}
        broker.append("plain.dlq", b"x", b"k", 0)
        (partition,) = (slot for slot, (begin, end) in full_range(broker, "plain.dlq").items() if begin < end)
        assert text(reason="x") == {"no such dead letter in plain.dlq\n"}
        broker.truncate(partition, 1)
        deleted = "the dead letters that it had are deleted, by its retention or somebody"
        assert text() == text(reason="x") == {f"plain.dlq is empty: {deleted}\n"}

    @pytest.mark.slow
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
        text = (Path(__file__).parents[3] / "docs" / "how-to" / "dead-letters.md").read_text()
        commands = [
            line.removeprefix("$ ") for line in text.splitlines() if line.startswith(("tidemill ", "$ tidemill "))
        ]
        assert len(commands) >= 6
        for command in commands:
            accepts(shlex.split(command.partition("  #")[0])[1:])
