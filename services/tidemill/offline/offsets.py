"""From where services go on, for people: listed, and decided where it was taken away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tidemill.declare.pipeline import Pipeline
from tidemill.errors import PositionError, SettingsError
from tidemill.stream import restore
from tidemill.stream.api import Broker, Position, Processor, TopicPartition
from tidemill.stream.commit_metadata import CommitMetadata
from tidemill.stream.group import Service
from tidemill.stream.progress import ProgressLog
from tidemill.wire import topics
from tidemill.wire.services import service

PLACES = ("begin", "end", "progress", "committed")


def services(pipeline: Pipeline) -> list[Service]:
    """Return the services of a pipeline that keep offsets, as the loop knows them, without what they do."""
    idle = {"learner", *([] if pipeline.remote_views else ["materializer"]), *([] if pipeline.gate else ["gate"])}
    names = [(name, "") for name in topics.KEEPING_PROGRESS if name not in idle]
    names += [("learner", model) for model in pipeline.model_names]
    return [service(name, pipeline, Processor(), model) for name, model in names]


def service_of(pipeline: Pipeline, name: str, model: str | None) -> Service:
    """Return one service. Raises SettingsError where the pipeline has none of this name, or the model is missing."""
    if name == "learner":
        model = model or pipeline.champion
        if model not in pipeline.model_names:
            raise SettingsError(f"model {model!r} is not one of the pipeline's: {', '.join(pipeline.model_names)}")
    elif model:
        raise SettingsError(f"--model is an option of the learner, not of the {name}")
    return service(name, pipeline, Processor(), model or "")


@dataclass(frozen=True)
class GroupOffset:
    """How far a group has come in one partition; `wrong` says why its service can't start, empty where it can."""

    service: str
    partition: TopicPartition
    committed: Position | None
    progress: Position | None
    begin: int
    end: int
    wrong: str = ""

    @property
    def is_well(self) -> bool:
        """Whether there is nothing to say of it: in a chain, the progress counts and not the offset."""
        in_chain = self.committed is not None and bool(restore.chain_of(self.committed))
        return not self.wrong and (in_chain or self.state in ("ok", "new"))

    @property
    def state(self) -> str:
        """One word, or what is wrong."""
        if self.wrong:
            return self.wrong
        if self.committed is None:
            return "new" if self.progress is None else "lost: it goes on at its progress"
        if chain := restore.chain_of(self.committed):
            return f"in the chain of {chain}: its progress counts"
        if self.progress is not None and self.committed.offset < self.progress.offset:
            return "older than its progress, where it goes on"
        return "records lost by retention" if self.committed.offset < self.begin else "ok"

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {
            "service": self.service,
            "topic": self.partition.topic,
            "partition": self.partition.partition,
            "committed": self.committed and self.committed.offset,
            "progress": self.progress and self.progress.offset,
            "begin": self.begin,
            "end": self.end,
            "wrong": self.wrong,
            "state": self.state,
        }


def group_offsets(broker: Broker, chosen: Service) -> list[GroupOffset]:
    """Return how far a service's group has come, and what the service would say of it at its start."""
    partitions = [
        TopicPartition(topic, number) for topic in chosen.topics for number in range(broker.partitions(topic))
    ]
    if not partitions:
        return []
    committed = broker.committed(chosen.group, partitions)
    log = ProgressLog(broker, chosen.progress, chosen.group, chosen.progress_partition)
    progress, has_worked = log.read_of(committed, chosen.outputs)
    ids = broker.topic_ids(chosen.topics)
    ranges = {partition: broker.offset_range(partition) for partition in partitions}
    positions: dict[TopicPartition, Position | None] = {}
    wrong: dict[TopicPartition, str] = {}
    for partition, (_, end) in ranges.items():
        position, own = committed[partition], progress.get(partition)
        try:
            positions[partition] = restore.own_position(position, own, ids[partition.topic], end, has_worked=has_worked)
        except PositionError as error:
            wrong[partition] = str(error)
    wrong |= restore.other_logs(broker, restore.last_read(positions), ranges)
    return [
        GroupOffset(
            chosen.name, partition, committed[partition], progress.get(partition), *ends, wrong.get(partition, "")
        )
        for partition, ends in ranges.items()
    ]


@dataclass(frozen=True)
class Decision:
    """From where a service shall go on in one partition."""

    before: GroupOffset
    position: Position

    @property
    def effect(self) -> str:
        """What the service will do again, or not do, in one sentence."""
        came_to = max((p.offset for p in (self.before.progress, self.before.committed) if p), default=None)
        if came_to is None:
            return "nothing is known of what was processed"
        if self.position.offset < came_to:
            return f"{came_to - self.position.offset} offsets are processed again, with their output"
        skipped = self.position.offset - came_to
        return f"{skipped} offsets are passed over" if skipped else "nothing is repeated or passed over"


def decide(broker: Broker, offsets: Sequence[GroupOffset], to: str) -> list[Decision]:
    """Return from where to go on: `to` is one of PLACES or an offset. Raises SettingsError where that is no place."""
    ids = broker.topic_ids(sorted({one.partition.topic for one in offsets}))
    return [Decision(one, _position(one, to, ids[one.partition.topic])) for one in offsets]


def _position(one: GroupOffset, to: str, topic_id: str) -> Position:
    place = {
        "begin": one.begin,
        "end": one.end,
        "progress": one.progress.offset if one.progress else None,
        "committed": one.committed.offset if one.committed else None,
    }
    name = f"{one.partition.topic}[{one.partition.partition}]"
    if to not in place and not to.isdecimal():
        raise SettingsError(f"--to {to}: expected {', '.join(PLACES)} or an offset")
    offset = place[to] if to in place else int(to)
    if offset is None:
        raise SettingsError(f"--to {to}: the service has no {to} offset in {name}; choose another place")
    if not one.begin <= offset <= one.end:
        raise SettingsError(f"--to {to}: {name} has the offsets {one.begin} to {one.end}, and not {offset}")
    kept = next((own for p in (one.progress, one.committed) if p and (own := restore.own_metadata(p))), None)
    if kept is not None and kept.offset == offset and kept.topic_id in ("", topic_id):
        return restore.mark(
            replace(kept, last="", chained=""), offset, topic_id
        )  # whatever the log has there: a person has decided
    # At another place what it kept of its state is not true: the state is made from all that the log has before it.
    metadata = replace(kept or CommitMetadata(), rebuild_from=min(one.begin, offset), watermark=(), last="", chained="")
    return restore.mark(metadata, offset, topic_id)


def carry_out(broker: Broker, chosen: Service, decisions: Sequence[Decision]) -> None:
    """Write decisions. Raises BrokerError where the service is running: it would not obey."""
    positions = {one.before.partition: one.position for one in decisions}
    log = ProgressLog(broker, chosen.progress, chosen.group, chosen.progress_partition)
    # A chain that does the service's work is fenced off, and obeys at its next start.
    broker.end_left_open(chosen.group, list(positions), "")
    broker.set_offsets(chosen.group, positions)  # refused while it has members: before anything else is written
    log.read()
    producer = broker.producer(f"{chosen.group}.offsets")
    try:
        log.write(positions, producer.emit)
        producer.commit({}, None)
    finally:
        producer.close()


def matching(offsets: Sequence[GroupOffset], topic: str | None, partition: int | None) -> list[GroupOffset]:
    """Return those of one topic, by its name or its last part, and of one partition. Raises SettingsError for none."""

    def matches(one: GroupOffset) -> bool:
        name, number = one.partition
        return (topic is None or name == topic or name.partition(".")[2] == topic) and partition in (None, number)

    chosen = [one for one in offsets if matches(one)]
    if not chosen:
        known = ", ".join(dict.fromkeys(one.partition.topic for one in offsets))
        raise SettingsError(f"the service reads no such partition; it reads {known}")
    return chosen


def all_offsets(broker: Broker, pipeline: Pipeline) -> Iterator[GroupOffset]:
    """Return the offsets of every service of a pipeline."""
    for chosen in services(pipeline):
        yield from group_offsets(broker, chosen)
