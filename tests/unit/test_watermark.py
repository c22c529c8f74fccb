"""The watermark: what most of the recent records have reached; exact for streams in order, whatever a minority claims."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.watermark import NEVER, QUORUM_RECORDS, RECENT_RECORDS, Marks, Watermark

pytestmark = pytest.mark.slow

SLACK = 1000
#: Steps between records in order: so small that a quorum of them always lies within the slack.
STEPS = st.lists(st.integers(0, SLACK // (2 * RECENT_RECORDS)), min_size=QUORUM_RECORDS, max_size=150)
#: How many records that are ahead come before each of the others: at most 23 of any 32 in a row.
AHEAD = st.sampled_from([0, 0, 0, 1, 2])
FAR = st.integers(SLACK + 1, 10**12)


def in_order(steps: list[int]) -> list[int]:
    now, times = 10**12, []
    for step in steps:
        now += step
        times.append(now)
    return times


def after(times: list[int], watermark: Watermark) -> Watermark:
    for time in times:
        watermark.add(time)
    return watermark


@given(STEPS)
def test_records_in_order_are_each_followed_at_once_when_there_is_a_quorum(steps: list[int]) -> None:
    watermark = Watermark(SLACK)
    for number, time in enumerate(in_order(steps), 1):
        watermark.add(time)
        assert watermark.time == (time if number >= QUORUM_RECORDS else NEVER)


@settings(max_examples=200, deadline=None)
@given(STEPS, st.data())
def test_records_far_ahead_change_nothing_as_long_as_they_are_no_quorum(steps: list[int], data: st.DataObject) -> None:
    with_them, without = Watermark(SLACK), Watermark(SLACK)
    begun = False
    for time in in_order(steps):
        for _ in range(data.draw(AHEAD)):
            with_them.add(time + data.draw(FAR))
            assert with_them.time <= time, "it never passes a record that is not ahead"
        with_them.add(time)
        without.add(time)
        begun |= without.time > NEVER
        if begun:
            assert with_them.time == without.time == time


def test_a_burst_of_fewer_than_a_quorum_moves_nothing_and_a_quorum_does() -> None:
    start = after(in_order([1] * 50), Watermark(SLACK))
    mark = start.time
    burst = [mark + 10**9] * (QUORUM_RECORDS - 1)
    assert after(burst, start).time == mark
    start.add(mark + 10**9)
    assert start.time == mark + 10**9


def test_a_source_that_creeps_ahead_step_by_step_gets_no_further_than_the_slack() -> None:
    watermark = Watermark(SLACK)
    for number, time in enumerate(in_order([1] * 500)):
        watermark.add(time)
        # Once there is a quorum: each a little ahead of its last, and far ahead of the others by the end.
        watermark.add(time + 100 * max(0, number - QUORUM_RECORDS))
        assert watermark.time <= time + SLACK


def test_the_first_records_of_all_may_be_ahead() -> None:
    watermark = after([10**13] * (QUORUM_RECORDS - 1), Watermark(SLACK))
    assert watermark.time == NEVER
    assert after(in_order([1] * RECENT_RECORDS), watermark).time == 10**12 + RECENT_RECORDS


def test_after_a_gap_in_all_of_it_the_quorum_moves_it_on() -> None:
    before, day = in_order([5] * 60), 86_400_000
    watermark = after(before, Watermark(SLACK))
    on_monday = [before[-1] + 3 * day + n for n in range(QUORUM_RECORDS)]
    assert after(on_monday[:-1], watermark).time == before[-1]
    watermark.add(on_monday[-1])
    assert watermark.time == on_monday[-1]


def test_where_records_are_rarer_than_the_slack_it_is_a_quorum_behind() -> None:
    times = in_order([10 * SLACK] * 100)
    assert after(times, Watermark(SLACK)).time == times[-QUORUM_RECORDS]


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.01, 0.1, 0.3])
def test_a_source_that_is_ahead_with_a_share_of_the_records_well_mixed_moves_nothing(share: float) -> None:
    rng, watermark = random.Random(1), Watermark(60_000)
    for now in range(10**12, 10**12 + 10 * 200_000, 10):
        ahead = rng.random() < share
        watermark.add(now + (300_000 if ahead else 0))
        assert watermark.time <= now


def test_records_that_are_late_do_not_hold_it_back_unless_they_are_many() -> None:
    for every, reaches in ((4, True), (2, False)):
        watermark, times = Watermark(SLACK), in_order([1] * 500)
        for number, time in enumerate(times):
            watermark.add(time - (10**8 if number % every == 0 else 0))
        assert (watermark.time == times[-1]) is reaches


@given(st.lists(st.integers(0, 5000), max_size=120), st.integers(0, 120))
def test_it_never_goes_back_and_goes_on_from_its_state_as_if_nothing_had_happened(times: list[int], cut: int) -> None:
    one, marks = Watermark(SLACK), []
    for time in times:
        one.add(time)
        marks.append(one.time)
    assert marks == sorted(marks)
    first = after(times[:cut], Watermark(SLACK))
    second = after(times[cut:], Watermark(SLACK, first.state))
    assert second.state == one.state


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=200), st.integers(0, 199))
def test_a_rebuild_begins_at_a_state_that_is_exact_and_not_long_before(times: list[int], wanted: int) -> None:
    marks, watermark = Marks(), Watermark(SLACK)
    for offset, time in enumerate(times):
        marks.note(offset, watermark)
        watermark.add(time)
    begin, state = marks.before(min(wanted, len(times) - 1))
    assert min(wanted, len(times) - 1) - RECENT_RECORDS < begin <= wanted
    assert state == after(times[:begin], Watermark(SLACK)).state
    assert after(times[begin:], Watermark(SLACK, state)).state == watermark.state


def test_a_quorum_of_one_is_the_highest_time() -> None:
    watermark = Watermark(0, recent=1, quorum=1)
    assert [after([time], watermark).time for time in (5, 3, 90, 7)] == [5, 5, 90, 90]
