"""What a service does before it emits: from where each partition goes on, whose state is stale, what is read again.

From where it goes on is what its group has committed, or what its progress says where that was taken away. Where
neither can be right, a person decides.

State is a function of the offsets. Where a partition came back and nobody has committed beyond the state at hand, that
state is right, and nothing is rebuilt.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from tidemill.errors import PositionError
from tidemill.stream.api import Broker, Position, Record, Start, TopicPartition
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


#: What the transactional id of a chain ends with: another one than that of its first service, run by itself.
CHAIN_SUFFIX = "+chain"


def member_of(transactional_id: str) -> str:
    """Return the group member that has this transactional id."""
    return transactional_id.removesuffix(CHAIN_SUFFIX)


def left_behind(transactional_ids: Iterable[str], members: Collection[str], own: str) -> list[str]:
    """Return the ids but one's own that no member of a group has any more: its own in another form, too."""
    left = set(transactional_ids) - {own}
    return sorted(name for name in left if member_of(name) not in members or member_of(name) == member_of(own))


def last_instances(group: str, positions: Iterable[Position | None]) -> set[str]:
    """Return the instances that did a group's work up to these positions, as far as they say so."""
    instances = set()
    for position in positions:
        with contextlib.suppress(ValueError):  # another program's: whoever reads it says so
            metadata = CommitMetadata.decode(position.metadata if position else "")
            if metadata.chained or metadata.instance.startswith(f"{group}-"):
                instances.add(metadata.chained or metadata.instance)
    return instances


def fingerprint(record: Record) -> str:
    """Return the offset of a record, and a fingerprint of what it is."""
    digest = hashlib.blake2b(digest_size=8)
    for part in (b"%d" % record.timestamp()[1], record.key() or b"", record.value() or b""):
        digest.update(b"%d:" % len(part) + part)
    return f"{record.offset()}:{digest.hexdigest()}"


def last_read(positions: Mapping[TopicPartition, Position | None]) -> dict[TopicPartition, str]:
    """Return the fingerprint of a record before each position, where it has one."""
    metadata = {partition: own_metadata(position) for partition, position in positions.items() if position}
    return {partition: one.last for partition, one in metadata.items() if one and one.last}


def other_logs(
    broker: Broker, expected: Mapping[TopicPartition, str], ranges: Mapping[TopicPartition, tuple[int, int]]
) -> dict[TopicPartition, str]:
    """Return what is wrong with partitions whose log has another record, or none, where one was read before.

    Of a topic of which records can be erased, one that is missing says nothing.
    """
    offsets = {partition: int(text.partition(":")[0]) for partition, text in expected.items()}
    wanted = {p: (offset, offset + 1) for p, offset in offsets.items() if ranges[p][0] <= offset < ranges[p][1]}
    actual = {
        TopicPartition(record.topic(), record.partition()): fingerprint(record)
        for batch in (broker.read(wanted) if wanted else ())
        for record in batch
    }
    return {
        partition: f"record {offset} is another than was read: the log was cut and has grown again (--to begin|end)"
        for partition, (offset, _) in sorted(wanted.items())
        if actual.get(partition) != expected[partition]
        and (partition in actual or partition.topic not in broker.erasable)
    }


def mark(metadata: CommitMetadata, offset: int, topic_id: str) -> Position:
    """Return a position as the loop commits it: its metadata shows that a service of Tidemill has set it."""
    return Position(offset, replace(metadata, offset=offset, topic_id=topic_id).encode())


def own_metadata(position: Position) -> CommitMetadata | None:
    """Return the metadata of a position that `mark` has made; None where anything else has set the offset."""
    try:
        metadata = CommitMetadata.decode(position.metadata)
    except ValueError:
        return None
    return metadata if metadata.offset == position.offset else None


def of_topic(position: Position, topic_id: str) -> Position:
    """Return a position that says of which topic it is, also where nobody of ours has committed it."""
    metadata = own_metadata(position)
    return position if metadata and metadata.topic_id else mark(metadata or CommitMetadata(), position.offset, topic_id)


def chain_of(position: Position | None) -> str:
    """Return the instance whose chain does a group's work, by what the group has committed; empty where none does."""
    metadata = own_metadata(position) if position else None
    return metadata.chained if metadata else ""


def chained(position: Position, instance: str) -> Position:
    """Return a position that says whose chain does the group's work from there on."""
    metadata = own_metadata(position) or CommitMetadata()
    return mark(replace(metadata, chained=instance), position.offset, metadata.topic_id)


def own_position(
    committed: Position | None, progress: Position | None, topic_id: str, log_end: int, *, has_worked: bool
) -> Position | None:
    """Return how far the group has come; None where it has never worked.

    Parameters
    ----------
    committed, progress
        What the group has committed, and what its progress says.
    topic_id, log_end
        The topic's present id, and where the partition ends.
    has_worked
        Whether the service's output shows that it has worked, although it has no progress in any partition.

    Raises
    ------
    PositionError
        Without a name: what is wrong, and between which places a person has to choose.
    """
    is_own = committed is not None and own_metadata(committed) is not None
    if committed is not None and not is_own:
        if progress is None and not has_worked:
            return committed  # somebody has chosen where a new group begins
        if progress is None or progress.offset != committed.offset:
            before = "" if progress is None else f"; the service had come to {progress.offset}"
            choices = "committed" if progress is None else "committed or --to progress"
            raise PositionError(f"its offset was set to {committed.offset} by something else{before} (--to {choices})")
    if committed is None and progress is None and has_worked:
        raise PositionError("its offsets and its progress are gone, and its output shows that it has worked (--to end)")
    if is_own and progress and committed and progress.offset > committed.offset and not chain_of(committed):
        metadata = own_metadata(progress)
        if metadata is None or not metadata.last:  # offsets of a backup: what was read since has its fingerprint
            raise PositionError(
                f"its progress says {progress.offset} where it has committed {committed.offset}, and names no record "
                f"that it has read: something else wrote that (--to committed)"
            )
    own = [position for position in (progress, committed if is_own else None) if position is not None]
    if not own:
        return None
    of_this_topic = [position for position in own if _topic_id(position) in ("", topic_id) or not topic_id]
    if not of_this_topic:
        raise PositionError(
            f"the topic was deleted and created again after the service had come to {own[0].offset} (--to begin|end)"
        )
    position = max(of_this_topic, key=lambda position: position.offset)
    if position.offset > log_end:
        raise PositionError(
            f"the log ends at {log_end}, and the service had come to {position.offset}: the log was cut, or is an "
            f"older copy (--to end|begin)"
        )
    return position


def _topic_id(position: Position) -> str:
    metadata = own_metadata(position)
    return metadata.topic_id if metadata else ""


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

    `truncated` holds, by partition, the offset that the processor asked for and the log does not have. Raises
    PositionError where a processor's own snapshot stands beyond the end of its log.
    """
    rebuild: dict[TopicPartition, tuple[int, int]] = {}
    read_from = {partition: resume.position.offset for partition, resume in resumes.items()}
    truncated: dict[TopicPartition, int] = {}
    for partition, start in starts.items():
        begin, log_end = start.rebuild_from, resumes[partition].log_end
        if start.live_from > log_end:
            raise PositionError(
                f"{partition.topic}[{partition.partition}]: the log ends at {log_end}, and the service's own snapshot "
                f"stands at {start.live_from}: the log was cut, or is an older copy; bring back the log that it was "
                f"made from"
            )
        if begin < resumes[partition].log_begin and begin < start.live_from:
            truncated[partition] = begin
            begin = resumes[partition].log_begin
        read_from[partition] = start.live_from
        if begin < start.live_from:
            rebuild[partition] = (begin, start.live_from)
    return Plan(rebuild, read_from, truncated)
