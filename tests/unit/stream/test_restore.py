"""The three decisions before a service emits: from where partitions go on, whose state is stale, what is rebuilt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.stream.api import Position, Start, TopicPartition
from tidemill.stream.commit_metadata import CommitMetadata
from tidemill.stream.restore import Plan, Resume, last_instances, plan, resume_position, stale_partitions

LOG_0, LOG_1 = TopicPartition("log", 0), TopicPartition("log", 1)
LABELS_0, LABELS_1 = TopicPartition("labels", 0), TopicPartition("labels", 1)


def resume(offset: int, begin: int = 0, end: int = 100) -> Resume:
    return Resume(Position(offset), begin, end)


class TestResume:
    def test_a_new_group_begins_at_the_first_offset_that_the_log_has(self) -> None:
        assert resume_position(None, 7, 20) == Resume(Position(7), 7, 20)

    @pytest.mark.parametrize("offset", [7, 12, 20])
    def test_what_is_committed_goes_on_with_its_metadata(self, offset: int) -> None:
        committed = Position(offset, "kept")
        assert resume_position(committed, 7, 20) == Resume(committed, 7, 20)

    @pytest.mark.parametrize(("offset", "expected", "lost"), [(3, 7, 4), (25, 20, 5)])
    def test_beyond_the_log_it_is_the_nearest_offset_and_the_metadata_is_dropped(
        self, offset: int, expected: int, lost: int
    ) -> None:
        assert resume_position(Position(offset, "kept"), 7, 20) == Resume(Position(expected), 7, 20, lost)

    @given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
    def test_it_is_always_in_the_log(self, offset: int, one: int, other: int) -> None:
        begin, end = sorted((one, other))
        found = resume_position(Position(offset), begin, end)
        assert begin <= found.position.offset <= end
        assert found.lost == abs(found.position.offset - offset)


class TestStale:
    def test_state_at_the_position_is_kept(self) -> None:
        assert stale_partitions({LOG_0: 5, LOG_1: 6}, {LOG_0: resume(5), LOG_1: resume(6)}) == set()

    @pytest.mark.parametrize("state_offsets", [{LOG_1: 6}, {LOG_0: 4, LOG_1: 6}, {LOG_0: 9, LOG_1: 6}])
    def test_no_state_or_state_of_another_offset_is_stale(self, state_offsets: dict[TopicPartition, int]) -> None:
        assert stale_partitions(state_offsets, {LOG_0: resume(5), LOG_1: resume(6)}) == {LOG_0}

    def test_partitions_of_one_number_are_stale_together(self) -> None:
        resumes = {LOG_0: resume(5), LABELS_0: resume(5), LOG_1: resume(5), LABELS_1: resume(5)}
        assert stale_partitions({LOG_0: 5, LABELS_0: 4, LOG_1: 5, LABELS_1: 5}, resumes) == {LOG_0, LABELS_0}

    def test_what_is_not_ours_any_more_is_stale(self) -> None:
        assert stale_partitions({LOG_0: 5, LOG_1: 6}, {LOG_1: resume(6)}) == {LOG_0}
        assert stale_partitions({LOG_0: 5}, {}) == {LOG_0}


class TestPlan:
    def test_state_that_is_kept_is_read_on(self) -> None:
        assert plan({LOG_0: resume(5)}, {}) == Plan({}, {LOG_0: 5}, {})

    def test_a_processor_without_state_rebuilds_nothing(self) -> None:
        assert plan({LOG_0: resume(5)}, {LOG_0: Start(5, 5)}) == Plan({}, {LOG_0: 5}, {})

    def test_a_rebuild_ends_where_reading_begins(self) -> None:
        assert plan({LOG_0: resume(5)}, {LOG_0: Start(2, 5)}) == Plan({LOG_0: (2, 5)}, {LOG_0: 5}, {})

    def test_a_processor_may_go_on_elsewhere_than_at_what_is_committed(self) -> None:
        assert plan({LOG_0: resume(5)}, {LOG_0: Start(3, 3)}) == Plan({}, {LOG_0: 3}, {})

    def test_a_log_that_was_cut_is_rebuilt_from_its_first_offset(self) -> None:
        found = plan({LOG_0: resume(50, begin=40)}, {LOG_0: Start(10, 50)})
        assert found == Plan({LOG_0: (40, 50)}, {LOG_0: 50}, {LOG_0: 10})

    def test_a_log_that_was_cut_to_its_position_has_nothing_to_rebuild(self) -> None:
        assert plan({LOG_0: resume(50, begin=50)}, {LOG_0: Start(10, 50)}) == Plan({}, {LOG_0: 50}, {LOG_0: 10})

    def test_each_partition_is_planned_for_itself(self) -> None:
        resumes = {LOG_0: resume(5), LABELS_0: resume(8), LOG_1: resume(3)}
        starts = {LABELS_0: Start(0, 8), LOG_0: Start(5, 5)}
        assert plan(resumes, starts) == Plan({LABELS_0: (0, 8)}, {LOG_0: 5, LABELS_0: 8, LOG_1: 3}, {})


def test_only_instances_of_the_group_itself_count_as_those_who_committed() -> None:
    texts = [CommitMetadata(instance=name).encode() for name in ("p.scorer-0", "p.validator-0", "p.validator-a", "")]
    positions = [None, Position(1, "of another program"), *(Position(1, text) for text in texts)]
    assert last_instances("p.validator", positions) == {"p.validator-0", "p.validator-a"}
