"""What has to be written so that records have the offsets that they had, whatever lies between them."""

from __future__ import annotations

from collections.abc import Sequence
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.stream.kafka import exact_log
from tidemill.stream.kafka.exact_log import Kept, Run, runs


def kept(offset: int) -> Kept:
    return Kept(offset, 1_000 + offset, None, b"%d" % offset, [])


def written(parts: Sequence[Run]) -> tuple[list[tuple[int, Kept]], int]:
    """Return what can be read, with the offsets that a broker gives, and where the log ends."""
    at, readable = 0, []
    for run in parts:
        for record in run.records:
            readable.append((at, record))
            at += 1
        # One offset is the marker of the transaction that the records were in; more are records and their marker.
        assert run.gap != 1 or run.records, "a marker alone can't be written"
        at += run.gap
    return readable, at


@st.composite
def logs(draw: st.DrawFn) -> tuple[int, list[int], int]:
    """A log's beginning, the offsets that have a record, and its end."""
    begin = draw(st.integers(0, 60))
    gaps = draw(st.lists(st.integers(0, 40), max_size=30))
    offsets, at = [], begin
    for gap in gaps:
        offsets.append(at + gap)
        at += gap + 1
    return begin, offsets, at + draw(st.integers(0, 40))


@given(logs())
def test_every_record_has_its_offset_again_and_the_log_its_end(log: tuple[int, list[int], int]) -> None:
    begin, offsets, end = log
    if begin == 0 and (offsets[0] if offsets else end) == 1:
        begin = 1  # as a restore does: offset 0 alone can't be left out
    records = [kept(offset) for offset in offsets]
    with patch.object(exact_log, "MAX_RUN_RECORDS", 5), patch.object(exact_log, "MAX_GAP_OFFSETS", 7):
        parts = list(runs(records, begin, end))
    readable, actual_end = written(parts)
    assert [one for one in readable if one[0] >= begin] == [(record.offset, record) for record in records]
    assert actual_end == end
    assert all(len(run.records) <= 5 and run.gap <= 7 for run in parts)


@pytest.mark.parametrize(("begin", "offsets", "end"), [(0, [3, 2], 9), (0, [2, 2], 9), (4, [3], 9), (0, [9], 9)])
def test_what_is_out_of_order_or_beyond_the_log_is_refused(begin: int, offsets: list[int], end: int) -> None:
    with pytest.raises(ValueError, match="offset"):
        list(runs([kept(offset) for offset in offsets], begin, end))
