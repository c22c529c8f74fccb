"""Offsets that were taken away: a service goes on exactly where its own progress says, or refuses; nothing doubles."""

from __future__ import annotations

from collections import Counter

import pytest
from commits import FailingCommits
from hypothesis import given
from hypothesis import strategies as st
from test_loop_promises import Summing, emitted

from tidemill.errors import Aborted, PositionError
from tidemill.offline import offsets
from tidemill.stream.api import Emit, Position, Start, TopicPartition
from tidemill.stream.commit_metadata import CommitMetadata
from tidemill.stream.group import Service
from tidemill.stream.loop import Loop
from tidemill.stream.memory import MemoryBroker
from tidemill.stream.progress import ProgressLog
from tidemill.stream.restore import Resume, mark, own_position, plan

IN_0, IN_1 = TopicPartition("in", 0), TopicPartition("in", 1)
PARTITIONS = 4
NOW = "in-1"


class Member:
    """A loop with a progress topic, turned by hand."""

    def __init__(self, broker: MemoryBroker, instance: str = "0", processor: Summing | None = None, **options) -> None:
        self.now = 0.0
        self.processor = processor or Summing()
        service = Service(
            "summing", "group", ["in"], self.processor, "progress", ["out"], "tidemill offsets set p summing"
        )
        self.loop = Loop(
            service, broker, instance=instance, max_delay=0.0, max_batch=3, clock=lambda: self.now, sleep=lambda _: None,
            **options,
        )  # fmt: skip
        self.producer = broker.producer(self.loop.instance)
        self.consumer = broker.consumer("group", ["in"], self.loop.instance)

    def turn(self, times: int = 30) -> None:
        for _ in range(times):
            self.loop.run_once(self.consumer, self.producer)

    def leave(self) -> None:
        self.producer.close()
        self.consumer.close()


def make() -> MemoryBroker:
    return MemoryBroker({"in": PARTITIONS, "out": 1, "progress": 8})


def fill(broker: MemoryBroker, expected: Counter[bytes], many: int) -> None:
    """Send `many` more records to each partition, and add what must come out: each running sum, once."""
    for partition in range(PARTITIONS):
        at = len(broker.log[TopicPartition("in", partition)])
        for number in range(at + 1, at + many + 1):
            broker.append("in", b"%d" % number, None, number, None, partition)
            expected[b"%d %d" % (partition, number * (number + 1) // 2)] += 1


@pytest.fixture
def worked() -> tuple[MemoryBroker, Counter[bytes]]:
    """A broker on which the service has worked, and what it has emitted."""
    broker, expected = make(), Counter[bytes]()
    fill(broker, expected, 10)
    member = Member(broker)
    member.turn()
    member.leave()
    assert emitted(broker) == expected
    return broker, expected


def forget_offsets(broker: MemoryBroker) -> None:
    broker.groups["group"].committed.clear()


class TestGone:
    def test_it_goes_on_where_it_was_and_commits_again(self, worked) -> None:
        broker, expected = worked
        before = dict(broker.groups["group"].committed)
        forget_offsets(broker)
        fill(broker, expected, 5)
        member = Member(broker)
        member.turn(1)
        assert broker.groups["group"].committed == before, "before any record has come"
        member.turn()
        assert emitted(broker) == expected

    def test_of_some_partitions_only(self, worked) -> None:
        broker, expected = worked
        del broker.groups["group"].committed[IN_1]
        fill(broker, expected, 5)
        Member(broker).turn()
        assert emitted(broker) == expected

    def test_with_the_progress_as_well_it_refuses_and_names_the_command(self, worked) -> None:
        broker, expected = worked
        forget_offsets(broker)
        broker.recreate("progress")
        with pytest.raises(PositionError, match=r"in\[0\].*has worked.*`tidemill offsets set p summing --to") as raised:
            Member(broker).turn()
        assert "\n" not in str(raised.value)
        assert emitted(broker) == expected

    def test_the_progress_alone_is_written_again(self, worked) -> None:
        broker, expected = worked
        broker.recreate("progress")
        fill(broker, expected, 1)
        member = Member(broker)
        member.turn()
        member.leave()
        forget_offsets(broker)
        fill(broker, expected, 1)
        Member(broker).turn()
        assert emitted(broker) == expected

    def test_what_was_kept_beside_the_offset_comes_back(self) -> None:
        class Noting(Summing):
            assigned: Position

            def assign(self, topic_partition: TopicPartition, committed: Position) -> Start:
                if topic_partition == IN_0:
                    self.assigned = committed
                return super().assign(topic_partition, committed)

            def commit_metadata(self, topic_partition: TopicPartition) -> CommitMetadata:
                return CommitMetadata(rebuild_from=3, watermark=(77,), entities=("origin",), circuit_breaker=(1, 2, 3))

        broker, expected = make(), Counter[bytes]()
        fill(broker, expected, 10)
        first = Member(broker, processor=Noting())
        first.turn()
        first.leave()
        forget_offsets(broker)
        second = Member(broker, processor=Noting())
        second.turn(1)
        kept = CommitMetadata.decode(second.processor.assigned.metadata)
        assert (kept.rebuild_from, kept.watermark, kept.entities) == (3, (77,), ("origin",))
        assert kept.circuit_breaker == (1, 2, 3)


class TestNew:
    def test_a_new_group_begins_at_the_first_record(self) -> None:
        broker, expected = make(), Counter[bytes]()
        fill(broker, expected, 5)
        Member(broker).turn()
        assert emitted(broker) == expected

    def test_one_whose_first_batch_was_aborted_is_still_new(self) -> None:
        broker, expected = make(), Counter[bytes]()
        fill(broker, expected, 5)
        member = Member(broker)
        member.producer.commit = lambda *_: (_ for _ in ()).throw(Aborted("the broker said so"))
        member.turn(5)
        member.leave()
        Member(broker).turn()
        assert emitted(broker) == expected

    def test_a_second_member_of_a_new_group_is_not_refused_for_what_the_first_has_written(self) -> None:
        broker, expected = make(), Counter[bytes]()
        fill(broker, expected, 5)
        one = Member(broker)
        two = Member(broker, "1")
        one.turn()
        assert 0 < sum(emitted(broker).values()) < sum(expected.values())
        two.turn()
        assert emitted(broker) == expected

    def test_a_place_that_was_chosen_before_the_first_start_is_taken(self) -> None:
        broker, expected = make(), Counter[bytes]()
        fill(broker, expected, 5)
        Member(broker).leave()
        broker.groups["group"].committed[IN_0] = Position(5)
        Member(broker).turn()
        assert not [value for value in emitted(broker) if value.startswith(b"0 ")]

    def test_without_a_progress_topic_nothing_is_kept_and_nothing_refused(self) -> None:
        broker, expected = MemoryBroker({"in": PARTITIONS, "out": 1}), Counter[bytes]()
        fill(broker, expected, 5)
        Member(broker).turn()
        assert emitted(broker) == expected


class TestElsewhere:
    @pytest.mark.parametrize("offset", [0, 4, 12])
    def test_an_offset_that_was_set_by_hand_is_refused(self, worked, offset: int) -> None:
        broker, expected = worked
        fill(broker, Counter(), 5)
        broker.groups["group"].committed[IN_0] = Position(offset)
        with pytest.raises(PositionError, match=rf"set to {offset} by something else; the service had come to 10"):
            Member(broker).turn()
        assert emitted(broker) == expected

    def test_one_that_was_set_where_it_was_is_taken_with_its_metadata(self, worked) -> None:
        broker, expected = worked
        before = broker.groups["group"].committed[IN_0]
        broker.groups["group"].committed[IN_0] = Position(before.offset)
        fill(broker, expected, 5)
        member = Member(broker)
        member.turn(1)
        assert broker.groups["group"].committed[IN_0] == before
        member.turn()
        assert emitted(broker) == expected

    def test_progress_of_somebody_else_passes_over_nothing(self, worked) -> None:
        """Who may write to the progress topic, and has not read the log, can't have a service pass over records."""
        broker, expected = worked
        fill(broker, expected, 5)
        for kept in (CommitMetadata(offset=14), CommitMetadata(offset=14, last="13:0123456789abcdef")):
            broker.append("progress", kept.encode().encode(), b"group/in/1", 0, None, 0)
            with pytest.raises(PositionError, match=r"in\[1\].*(something else wrote that|is another than was read)"):
                Member(broker).turn()
        broker.append("progress", CommitMetadata(offset=3).encode().encode(), b"group/in/1", 0, None, 0)
        Member(broker).turn()
        assert emitted(broker) == expected, "one that is behind says nothing"

    def test_offsets_from_an_older_backup_are_behind_the_progress_which_is_right(self, worked) -> None:
        broker, expected = worked
        older = dict(broker.groups["group"].committed)
        fill(broker, expected, 5)
        member = Member(broker)
        member.turn()
        member.leave()
        broker.groups["group"].committed |= older
        fill(broker, expected, 5)
        Member(broker).turn()
        assert emitted(broker) == expected


class TestTheLog:
    def test_one_that_is_shorter_than_what_was_committed_is_refused(self, worked) -> None:
        broker, expected = worked
        broker.cut(IN_1, 7)
        with pytest.raises(PositionError, match=r"in\[1\]: the log ends at 7, and the service had come to 10"):
            Member(broker).turn()
        assert emitted(broker) == expected

    @pytest.mark.parametrize("cut", [0, 1, 9])
    @pytest.mark.parametrize("grown", [10, 11, 50])
    def test_one_that_was_cut_and_has_grown_again_past_what_was_committed_is_refused(
        self, worked, cut: int, grown: int
    ) -> None:
        broker, expected = worked
        broker.cut(IN_1, cut)
        for number in range(cut, grown):
            broker.append("in", b"%d" % (1000 + number), None, number + 1, None, 1)
        with pytest.raises(PositionError, match=r"in\[1\]: record 9 is another than was read.*--to begin\|end"):
            Member(broker).turn()
        assert emitted(broker) == expected

    def test_the_same_records_once_more_with_other_times_are_another_log(self, worked) -> None:
        broker, _ = worked
        before = list(broker.log[IN_1])
        broker.cut(IN_1, 0)
        for record in before:
            broker.append("in", record.value(), None, record.timestamp()[1] + 1, None, 1)
        with pytest.raises(PositionError, match="is another than was read"):
            Member(broker).turn()

    def test_by_the_progress_as_well_where_the_offsets_are_gone(self, worked) -> None:
        broker, _ = worked
        forget_offsets(broker)
        broker.cut(IN_1, 5)
        fill(broker, Counter(), 9)
        broker.log[IN_1][9]._value = b"another"
        with pytest.raises(PositionError, match=r"in\[1\]: record 9 is another than was read"):
            Member(broker).turn()

    def test_where_retention_took_what_was_read_last_it_goes_on(self, worked) -> None:
        broker, expected = worked
        fill(broker, expected, 3)
        for partition in range(PARTITIONS):
            broker.truncate(TopicPartition("in", partition), 10)
        member = Member(broker)
        member.turn()
        assert emitted(broker).total() == expected.total()  # the state before the cut is gone: the sums are others

    def test_it_is_looked_at_once_where_a_partition_comes_and_not_each_time_that_it_goes_back(
        self, worked, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        broker, expected = worked
        fill(broker, expected, 6)
        read, reads = broker.read, []

        def noted(ranges):
            reads.extend(begin for p, (begin, end) in ranges.items() if p.topic == "in" and end - begin == 1)
            return read(ranges)

        monkeypatch.setattr(broker, "read", noted)
        member = Member(broker)
        member.turn(3)
        FailingCommits(monkeypatch, member.producer, 3)
        member.turn()
        assert emitted(broker) == expected
        assert reads == [9] * PARTITIONS

    def test_what_a_person_decides_then_is_obeyed(self, worked) -> None:
        broker, _ = worked
        broker.cut(IN_1, 5)
        for number in range(5, 20):
            broker.append("in", b"%d" % (1000 + number), None, number + 1, None, 1)
        held = broker.groups["group"].committed
        service = Service("summing", "group", ["in"], Summing(), "progress", ["out"])
        (one,) = [one for one in offsets.group_offsets(broker, service) if one.wrong]
        assert one.partition == IN_1
        assert "record 9 is another than was read" in one.wrong
        offsets.carry_out(broker, service, offsets.decide(broker, [one], "committed"))
        assert held[IN_1].offset == 10
        before = emitted(broker).total()
        Member(broker).turn()
        assert emitted(broker).total() == before + 10

    def test_one_that_is_shorter_than_a_snapshot_is_refused(self, worked) -> None:
        class Snapshot(Summing):
            def assign(self, topic_partition: TopicPartition, committed: Position) -> Start:
                super().assign(topic_partition, committed)
                return Start(99, 99)

        broker, _ = worked
        with pytest.raises(PositionError, match="ends at 10, and the service's own snapshot stands at 99"):
            Member(broker, processor=Snapshot()).turn()

    @pytest.mark.parametrize("again", [0, 3, 30])
    def test_a_topic_that_was_created_again_is_refused_however_much_it_holds(self, worked, again: int) -> None:
        broker, expected = worked
        broker.recreate("in")
        fill(broker, Counter(), again)
        with pytest.raises(PositionError, match="deleted and created again after the service had come to 10"):
            Member(broker).turn()
        assert emitted(broker) == expected

    @pytest.mark.parametrize("again", [0, 30])
    def test_a_topic_that_is_created_again_while_it_is_read(self, worked, again: int) -> None:
        broker, _ = worked
        member = Member(broker)
        member.turn(2)
        broker.recreate("in")
        fill(broker, Counter(), again)
        member.now += 11
        with pytest.raises(PositionError, match="created again while it was read"):
            member.turn()


class TestKeepAlive:
    def test_offsets_of_an_idle_group_are_committed_again(self, worked) -> None:
        broker, _ = worked
        member = Member(broker, keep_alive=100.0)
        member.turn(3)
        before = dict(broker.groups["group"].committed)
        forget_offsets(broker)
        member.now = 99.0
        member.turn(3)
        assert not broker.groups["group"].committed
        member.now = 101.0
        member.turn(1)
        assert broker.groups["group"].committed == before

    def test_what_waits_for_its_commit_is_not_committed_for_it(self) -> None:
        class Waiting(Summing):
            def process(self, records, emit: Emit) -> bool:
                super().process(records, emit)
                return False

        broker = make()
        fill(broker, Counter(), 2)
        member = Member(broker, processor=Waiting(), keep_alive=100.0)
        member.turn(5)
        member.now = 101.0
        member.turn(5)
        assert not broker.groups["group"].committed
        assert not emitted(broker)


OFFSETS = st.none() | st.integers(0, 20)
IDS = st.sampled_from(["", NOW, "in-0"])


@pytest.mark.slow
@given(OFFSETS, OFFSETS, IDS, IDS, st.booleans(), st.integers(0, 20), st.booleans())
def test_it_never_goes_back_by_itself(at, came_to, id_, other_id, by_hand, end, has_worked) -> None:
    committed = None if at is None else Position(at) if by_hand else mark(CommitMetadata(), at, id_)
    progress = None if came_to is None else mark(CommitMetadata(), came_to, other_id)
    try:
        position = own_position(committed, progress, NOW, end, has_worked=has_worked and progress is None)
    except PositionError:
        return
    offset = -1 if position is None else position.offset
    if came_to is not None and other_id != "in-0":
        assert offset >= came_to
    if at is not None and not by_hand and id_ != "in-0":
        assert offset >= at
    if position is None:
        assert not has_worked or progress is not None


def test_a_plan_refuses_a_snapshot_beyond_the_log() -> None:
    with pytest.raises(PositionError):
        plan({IN_0: Resume(Position(5), 0, 10)}, {IN_0: Start(11, 11)})


class TestProgressLog:
    def test_groups_do_not_see_each_other(self) -> None:
        broker = make()
        producer = broker.producer("p")
        for group, offset in (("a", 1), ("a.b", 2), ("a", 3)):
            log = ProgressLog(broker, "progress", group)
            log.read()
            log.write({IN_0: mark(CommitMetadata(), offset, NOW)}, producer.emit)
            producer.commit({}, None)
        assert ProgressLog(broker, "progress", "a").read()[IN_0].offset == 3
        assert ProgressLog(broker, "progress", "a.b").read()[IN_0].offset == 2
        assert ProgressLog(broker, "progress", "b").read() == {}

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            (b"a/in/0", b"not json"), (b"a/in/0", b"{}"), (b"a/in/0", b'{"offset":"5"}'), (b"a/in/0", None),
            (b"a/in/x", b'{"offset":5}'), (b"a/in", b'{"offset":5}'), (None, b'{"offset":5}'), (b"a/in/0", b"\xff"),
            (b"a/in/0", b'{"offset":true}'), (b"a/in/0", b'{"offset":-5}'),
        ],
    )  # fmt: skip
    def test_what_is_no_progress_says_nothing(self, key: bytes | None, value: bytes | None) -> None:
        broker = make()
        for partition in range(8):
            broker.append("progress", value, key, 1, None, partition)
        assert ProgressLog(broker, "progress", "a").read() == {}
