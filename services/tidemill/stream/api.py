"""The ports: what a processor and a broker are. Processors import this and no client library."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from tidemill.errors import Reject
from tidemill.limits import DEAD_LETTER_BYTES
from tidemill.stream.commit_metadata import CommitMetadata
from tidemill.stream.trace import Traces

Headers = list[tuple[str, bytes]]
#: Called with how many more records were handled. One that shows how long it will take has `expect` as well.
Progress = Callable[[int], None]
NO_METADATA = CommitMetadata()


def expect(progress: Progress | None, count: int) -> None:
    """Tell a progress that so many more records are to come, if it wants to know."""
    if (add := getattr(progress, "expect", None)) is not None:
        add(count)


class Record(Protocol):
    """One message as it was read; confluent-kafka's own Message fits, so nothing is copied on the way."""

    def topic(self) -> str: ...
    def partition(self) -> int: ...
    def offset(self) -> int: ...
    def key(self) -> bytes | None: ...
    def value(self) -> bytes | None: ...
    def headers(self) -> Any: ...
    def timestamp(self) -> tuple[int, int]: ...


class TopicPartition(NamedTuple):
    """A partition of a topic."""

    topic: str
    partition: int


class Position(NamedTuple):
    """How far a group has come in a partition: the next offset to read, and the commit's metadata as text."""

    offset: int
    metadata: str = ""


#: No offsets to compare.
NOT_EXPECTED: Mapping[TopicPartition, int] = MappingProxyType({})


class TopicState(NamedTuple):
    """A topic as it is. The `id` is "" where nobody can be asked for it; then the partitions are not known either."""

    id: str
    partitions: int


class Emit(Protocol):
    """Send one record; `partition` -1 lets the key decide.

    `timestamp` is its origin in ms since the epoch, 0 for now: when a producer sent what it came from. A header carries
    it on, so that at any topic now - origin is the delay. The record's own timestamp is when it is written: by that
    Kafka keeps it.
    """

    def __call__(
        self,
        topic: str,
        value: bytes,
        key: bytes | None = None,
        timestamp: int = 0,
        headers: Headers | None = None,
        partition: int = -1,
    ) -> None: ...


def discard(
    topic: str,
    value: bytes,
    key: bytes | None = None,
    timestamp: int = 0,
    headers: Headers | None = None,
    partition: int = -1,
) -> None:
    """Emit nothing: for records that are only read again to rebuild state."""


@dataclass(frozen=True)
class Start:
    """Where to begin in a partition: rebuild silently from `rebuild_from` up to `live_from`, then go on emitting."""

    rebuild_from: int
    live_from: int


class Processor:
    """What a service does to a batch of records, without I/O of its own.

    A processor's state is a function of the offsets it has read up to, and of nothing else. So the loop may drop it and
    rebuild it. `counts` is what happened since the loop last took it, by (metric, label), and `observed` the largest of
    what was measured since then; the loop publishes those of live records and drops those of a rebuild. `has_written`
    is set where something was emitted that is to be committed although no record has come. `in_hand` is the record of
    which is made what is emitted. `dlq` is the topic of its dead letters, empty where it has none. `traces` has the
    headers that go on with what is made of a live record. `erased` counts what was erased from the log: state
    that was kept elsewhere when it was less is made again from the log.
    """

    dlq = ""
    traces = Traces()
    erased = 0

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.observed: dict[tuple[str, str], float] = {}
        self.has_written = False
        self.in_hand: Record | None = None

    def assign(self, topic_partition: TopicPartition, committed: Position) -> Start:
        """Start with a partition. A processor without state, the default, begins at what is committed."""
        return Start(committed.offset, committed.offset)

    def truncated(self, topic_partition: TopicPartition) -> None:
        """The log does not reach back to where `assign` asked to rebuild from."""

    def process(self, records: Sequence[Record], emit: Emit) -> bool:
        """Handle a batch, in order; called with an empty one when nothing has come for a while.

        Returns whether what was read may be committed now. Raises Retry to have the batch again later.
        """
        raise NotImplementedError

    def refuse(self, record: Record, reject: Reject, emit: Emit, max_bytes: int = DEAD_LETTER_BYTES.max) -> None:
        """Make a record a dead letter of at most so many bytes; only called where there is a `dlq`."""
        raise NotImplementedError

    def commit_metadata(self, topic_partition: TopicPartition) -> CommitMetadata:
        """Return what to keep beside the offset that is about to be committed."""
        return NO_METADATA

    def committed(self) -> None:
        """All that was processed is committed: views may be written now. Called also while nothing comes."""

    def revoke(self, topic_partitions: Iterable[TopicPartition]) -> None:
        """Drop the state of these partitions."""

    def finish(self, emit: Emit) -> bool:
        """Emit what is left before a clean stop; returns whether it should be committed."""
        return False

    def not_ready(self) -> str:
        """Return why it can't work although its state is restored; empty where it can. Other threads ask."""
        return ""

    def gauges(self) -> Mapping[tuple[str, str], float]:
        """Return levels worth watching (pending events, model versions), by (metric, label)."""
        return {}


class Consumer(Protocol):
    """A member of a consumer group. Offsets are only ever set by the loop; nothing is committed by itself."""

    def poll(self, limit: int, timeout: float) -> list[Record]:
        """Return at most `limit` records, waiting up to `timeout` s for the first; none after a reassignment."""

    def joined(self) -> bool:
        """Whether the group has given this member its share, be it nothing."""

    def changes(self) -> tuple[set[TopicPartition], set[TopicPartition]]:
        """Return the partitions taken away and the partitions given since the last call."""

    def committed(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, Position | None]:
        """Return what the group has committed."""

    def start(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Read the given partitions from these offsets on, and only them."""

    def positions(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Return the next offset to be read, for partitions where anything has been."""

    def lag(self) -> Mapping[TopicPartition, int]:
        """Return how many records this member is behind the end of each partition, without asking the broker."""

    def close(self) -> None:
        """Leave."""


class Producer(Protocol):
    """Sends records and commits offsets, together where the delivery guarantee is exactly once."""

    @property
    def is_transactional(self) -> bool:
        """Whether records and offsets become visible together."""

    @property
    def end_markers(self) -> int:
        """How many offsets the end of a transaction takes in each of its partitions."""

    @property
    def emit(self) -> Emit:
        """How to send a record."""

    def emit_of(self, source: Callable[[], Record | None]) -> Emit:
        """Return how to send what is made of the record that `source` returns at that moment."""

    def wait(self) -> None:
        """Wait until Kafka has taken all that was emitted. Raises as `commit` does where it does not."""

    def commit(
        self,
        offsets: Mapping[TopicPartition, Position],
        consumer: Consumer | None,
        expected: Mapping[TopicPartition, int] = NOT_EXPECTED,
    ) -> None:
        """Commit what was emitted and these offsets; without offsets no consumer is needed.

        `expected` has the offset that the last record emitted to a partition of a counted topic must have.

        Raises Aborted (nothing was), or Fenced, or Refused for records that Kafka will never take: nothing was
        committed then either. Without transactions all else was sent, and Refused has the sources of what was not.
        """

    def abort(self) -> None:
        """Throw away what was emitted since the last commit."""

    def close(self) -> None:
        """Send what is left."""


class Broker(Protocol):
    """Kafka, or something that behaves like it."""

    @property
    def erasable(self) -> Collection[str]:
        """Topics of which single records may have been erased."""

    def consumer(self, group: str, topics: Sequence[str], instance: str, max_wait: float = 0.0) -> Consumer:
        """Join `group` as the member called `instance`; records may wait for `max_wait` s to be fetched together."""

    def producer(self, name: str, beat: Callable[[], None] = ..., counted: Collection[str] = ()) -> Producer:
        """Return the producer called `name`; an older one of that name is fenced off.

        `beat` is called about once a second while something waits for the cluster; what it raises ends the waiting.
        `counted` are topics whose offsets `commit` can compare.
        """

    def partitions(self, topic: str) -> int:
        """Return the number of partitions; 0 where there is no such topic."""

    def offset_range(self, partition: TopicPartition) -> tuple[int, int]:
        """Return the first offset that the log still has, and the one after the last that is committed."""

    def end_offset(self, partition: TopicPartition) -> int:
        """Return the offset after the last record, be it committed or in a transaction that is still open."""

    def offsets_at(self, partitions: Sequence[TopicPartition], time: int) -> dict[TopicPartition, int]:
        """Return, by partition, the first offset whose record was written at `time` (ms) or later, else its end."""

    def topic_states(self, topics: Sequence[str], timeout: float = 10.0) -> dict[str, TopicState]:
        """Return these topics as they are; those that do not exist are missing.

        A topic that was created again has another id. Raises BrokerError where nothing is heard for `timeout` s.
        """

    def topic_ids(self, topics: Sequence[str], timeout: float = 10.0) -> dict[str, str]:
        """Return the id of each topic, "" where it is not known. Raises BrokerError as `topic_states` does."""

    def committed(self, group: str, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, Position | None]:
        """Return what a group has committed, without joining it."""

    def set_offsets(self, group: str, positions: Mapping[TopicPartition, Position]) -> None:
        """Commit for a group from outside. Raises BrokerError where the group has members."""

    def end_left_open(self, group: str, partitions: Sequence[TopicPartition], instance: str) -> list[str]:
        """End the transactions of instances that are in the group no more; returns their transactional ids.

        Asked are those that committed last in these partitions, but `instance` itself. They are fenced off.
        """

    def read(self, ranges: Mapping[TopicPartition, tuple[int, int]]) -> Iterator[list[Record]]:
        """Yield batches of what is committed in the ranges [from, to), in order within a partition."""

    def follow(self, partition: TopicPartition, offset: int) -> Follower:
        """Follow a partition from an offset on."""

    def follow_from(self, offsets: Mapping[TopicPartition, int], max_wait: float = 0.0) -> Follower:
        """Follow several partitions, each from its offset on; records may wait `max_wait` s for others."""


class Follower(Protocol):
    """Reads partitions as they grow, outside of any group."""

    def poll(self, limit: int, timeout: float) -> list[Record]:
        """Return at most `limit` committed records, waiting up to `timeout` s for the first."""

    def close(self) -> None:
        """Stop."""
