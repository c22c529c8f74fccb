"""What is kept beside a committed offset: it comes back as it was written, and never grows beyond what brokers take."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.stream.commit_metadata import AT_COMMITTED_OFFSET, MAX_BYTES, CommitMetadata

OFFSETS = st.integers(AT_COMMITTED_OFFSET, 2**63 - 1)
KEPT = st.builds(
    CommitMetadata,
    rebuild_from=st.none() | OFFSETS,
    watermark=st.lists(st.integers(-(2**62), 2**62), max_size=34).map(tuple),
    entities=st.lists(st.text(max_size=20), max_size=10).map(tuple),
    circuit_breaker=st.just(()) | st.tuples(OFFSETS, OFFSETS, OFFSETS),
    undelivered=st.lists(st.tuples(st.text(max_size=9), OFFSETS), max_size=5).map(tuple),
)


@pytest.mark.slow
@given(KEPT)
def test_what_is_encoded_is_decoded(metadata: CommitMetadata) -> None:
    text = metadata.encode()
    assert CommitMetadata.decode(text) == metadata
    assert len(text.encode()) <= MAX_BYTES
    assert text.isascii()


def test_nothing_is_no_text() -> None:
    assert CommitMetadata().encode() == ""
    assert CommitMetadata.decode("") == CommitMetadata()


@pytest.mark.parametrize("zero", [CommitMetadata(rebuild_from=0), CommitMetadata(watermark=(0,))])
def test_zero_is_not_nothing(zero: CommitMetadata) -> None:
    assert CommitMetadata.decode(zero.encode()) == zero


def test_more_than_brokers_take_is_refused_before_it_is_sent() -> None:
    with pytest.raises(ValueError, match=f"{MAX_BYTES} are allowed"):
        CommitMetadata(entities=tuple(f"entity_{number}" for number in range(400))).encode()


@pytest.mark.parametrize(
    "text", ["12:34:origin", "origin,dest", "not json", "[1]", "5", '{"fuse":[1,2,3]}', '{"entities":5}', "[" * 100_000]
)
def test_what_another_program_wrote_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no commit metadata of this version"):
        CommitMetadata.decode(text)


@given(st.text(max_size=50))
def test_any_text_is_metadata_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        CommitMetadata.decode(text)
