"""A pipeline moves to new topics, with another number of partitions: what the old ones hold is copied, exactly once.

Keys are placed by the number of partitions, so a topic can't be given more of them where it is. The valid events and
labels of the old pipeline become raw ones of the new one, keyed, in order of time; its services make everything else
again. The copy follows the old pipeline until the producers write to the new one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from tidemill.declare.pipeline import Pipeline
from tidemill.errors import SettingsError
from tidemill.stream.api import Broker, Emit, Position, Processor, Record, Start, TopicPartition
from tidemill.stream.group import Service
from tidemill.stream.origin import origin_of
from tidemill.stream.ranges import full_range
from tidemill.stream.topic import Topic
from tidemill.stream.trace import trace_of
from tidemill.wire import topics
from tidemill.wire.records import Records
from tidemill.wire.services import group

#: From which topic of the old pipeline to which of the new one.
WAYS: tuple[tuple[Topic, Topic], ...] = ((topics.EVENTS_VALID, topics.EVENTS), (topics.LABELS_VALID, topics.LABELS))


class Copy(Processor):
    """Copies valid records into raw topics; `copied` counts them.

    Parameters
    ----------
    ended
        Called while nothing comes, with the next offset of each partition.
    """

    def __init__(self, old: Pipeline, new: Pipeline, ended: Callable[[dict[TopicPartition, int]], None]) -> None:
        super().__init__()
        self._to = {valid.name(old): raw.name(new) for valid, raw in WAYS}
        self._ended, self._next = ended, dict[TopicPartition, int]()
        self.copied = 0

    def assign(self, topic_partition: TopicPartition, committed: Position) -> Start:
        self._next[topic_partition] = committed.offset
        return Start(committed.offset, committed.offset)

    def revoke(self, topic_partitions: Iterable[TopicPartition]) -> None:
        for topic_partition in topic_partitions:
            self._next.pop(topic_partition, None)

    def process(self, records: Sequence[Record], emit: Emit) -> bool:
        for record in records:
            emit(self._to[record.topic()], record.value() or b"", record.key(), origin_of(record), trace_of(record))
            self._next[TopicPartition(record.topic(), record.partition())] = record.offset() + 1
        self.copied += len(records)
        return True

    def committed(self) -> None:
        self._ended(self._next)


def check(old: Pipeline, new: Pipeline) -> None:
    """Raise SettingsError where what the old pipeline let pass is not what the new one takes."""
    if old.name == new.name:
        raise SettingsError(
            f"both pipelines are called {old.name!r}: declare the new one with another name, so that it has topics of "
            f"its own"
        )
    for what, stream in (("events", new.events), ("labels", new.labels)):
        if stream.encoding == "json":
            raise SettingsError(
                f"the {what} of {new.name!r} are declared as JSON, and what was valid is copied as Avro: leave out "
                f"encoding='json' until the producers write to the new topics"
            )
    before, after = Records(old), Records(new)
    for what, one, other in (("events", before.event, after.event), ("labels", before.label, after.label)):
        if one.header != other.header:
            raise SettingsError(
                f"the {what} of {old.name!r} and {new.name!r} have different schemas: change the partitions first, and "
                f"the schema when the new pipeline runs"
            )


def is_finished(broker: Broker, old: Pipeline, following: Mapping[TopicPartition, int]) -> bool:
    """Whether everything in the old raw topics was validated, and everything valid was copied up to `following`."""
    raw = [topic.name(old) for topic in topics.consumes("validator")]
    partitions = [partition for name in raw for partition in full_range(broker, name)]
    committed = broker.committed(group("validator", old.name), partitions)
    validated = {partition: position.offset for partition, position in committed.items() if position}
    # The raw topics first: what is validated by then is in the valid ones.
    return not _has_more(broker, raw, validated) and not _has_more(
        broker, [valid.name(old) for valid, _ in WAYS], following
    )


def _has_more(broker: Broker, names: Iterable[str], following: Mapping[TopicPartition, int]) -> bool:
    """Whether topics have records from these offsets on; the last offsets may be markers, which nobody reads."""
    left = {}
    for name in names:
        for partition, (begin, end) in full_range(broker, name).items():
            begin = max(begin, following.get(partition, 0))
            if begin < end:
                left[partition] = begin, end
    return bool(left) and any(broker.read(left))


def build(old: Pipeline, new: Pipeline, ended: Callable[[dict[TopicPartition, int]], None]) -> Service:
    """Wire the copy to its topics; its progress is kept with the new pipeline."""
    return Service(
        "grow",
        f"{new.name}.grow.{old.name}",
        [valid.name(old) for valid, _ in WAYS],
        Copy(old, new, ended),
        topics.PROGRESS.name(new.name),
    )
