"""What a service does before it emits: from where each partition goes on, whose state is stale, what is read again.

State is a function of the offsets. Where a partition came back and nobody has committed beyond the state at hand, that
state is right, and nothing is rebuilt.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tidemill.stream.api import Position, Start, TopicPartition
from tidemill.stream.commit_metadata import CommitMetadata


@dataclass(frozen=True)
class Resume:
    """From where a partition goes on, and which offsets its log holds.

    `lost` says how many offsets the log is short of what is committed: it was cut, or is another one.
    """

    position: Position
    log_begin: int
    log_end: int
    lost: int = 0


@dataclass(frozen=True)
class Plan:
    """What is rebuilt silently, as ranges [from, to); where reading begins; whose log begins too late for that."""

    rebuild: Mapping[TopicPartition, tuple[int, int]]
    read_from: Mapping[TopicPartition, int]
    truncated: Mapping[TopicPartition, int]


def last_instances(group: str, positions: Iterable[Position | None]) -> set[str]:
    """Return the instances of a group that committed these positions, as far as they say so."""
    instances = set()
    for position in positions:
        with contextlib.suppress(ValueError):  # another program's: whoever reads it says so
            instances.add(CommitMetadata.decode(position.metadata if position else "").instance)
    return {name for name in instances if name.startswith(f"{group}-")}


def resume_position(committed: Position | None, log_begin: int, log_end: int) -> Resume:
    """Return from where a partition goes on: what is committed, or else the nearest offset that the log has."""
    if committed is None:
        return Resume(Position(log_begin), log_begin, log_end)
    offset = min(max(committed.offset, log_begin), log_end)
    if offset == committed.offset:
        return Resume(committed, log_begin, log_end)
    return Resume(Position(offset), log_begin, log_end, lost=abs(offset - committed.offset))


def stale_partitions(
    state_offsets: Mapping[TopicPartition, int], resumes: Mapping[TopicPartition, Resume]
) -> set[TopicPartition]:
    """Return the partitions whose state is not at the position from which they go on, or that are not ours any more.

    Partitions of one number share their state, whatever their topic: where one is stale all of them are.
    """
    stale_numbers = {
        partition.partition
        for partition, resume in resumes.items()
        if state_offsets.get(partition) != resume.position.offset
    }
    stale = {partition for partition in resumes if partition.partition in stale_numbers}
    return stale | (state_offsets.keys() - resumes.keys())


def plan(resumes: Mapping[TopicPartition, Resume], starts: Mapping[TopicPartition, Start]) -> Plan:
    """Return what to rebuild and from where to read; `starts` is what the processor answered for its stale partitions.

    `truncated` holds, by partition, the offset that the processor asked for and the log does not have.
    """
    rebuild: dict[TopicPartition, tuple[int, int]] = {}
    read_from = {partition: resume.position.offset for partition, resume in resumes.items()}
    truncated: dict[TopicPartition, int] = {}
    for partition, start in starts.items():
        begin = start.rebuild_from
        if begin < resumes[partition].log_begin and begin < start.live_from:
            truncated[partition] = begin
            begin = resumes[partition].log_begin
        read_from[partition] = start.live_from
        if begin < start.live_from:
            rebuild[partition] = (begin, start.live_from)
    return Plan(rebuild, read_from, truncated)
