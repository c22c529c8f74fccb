"""Predictions in the log: those of named events, or a random sample.

reads   <pipeline>.prediction-log
memory  the predictions that are asked for
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from typing import NamedTuple

from tidemill.declare.pipeline import Pipeline
from tidemill.encoding.codec import HEADER
from tidemill.errors import SettingsError
from tidemill.stream.api import Broker, Progress, Record, TopicPartition
from tidemill.stream.partition import partition_of
from tidemill.stream.ranges import full_range
from tidemill.wire import topics
from tidemill.wire.records import PredictionLog, Records, Score

#: Records that lie no further apart are read together, which is faster than to start another reader.
MAX_GAP_OFFSETS = 10_000

Ranges = dict[TopicPartition, tuple[int, int]]
#: A partition and an offset.
Place = tuple[TopicPartition, int]


class Prediction(NamedTuple):
    """A record of the prediction log, and its content."""

    record: Record
    log: PredictionLog

    @property
    def event_id(self) -> str:
        """The predicted event; one that was sent or handled twice has two predictions."""
        return self.log["features"]["event_id"]

    @property
    def scores(self) -> list[Score]:
        """The champion's score, then the challengers'."""
        return [self.log["champion"], *self.log["challengers"]]


class PredictionReader:
    """Reads one pipeline's prediction log; `skipped` counts drawn records of an earlier declaration."""

    def __init__(self, pipeline: Pipeline, broker: Broker) -> None:
        self.broker = broker
        self.topic = topics.PREDICTION_LOG.name(pipeline.name)
        self.skipped = 0
        self._codec = Records(pipeline).prediction_log

    def find(self, event_ids: Collection[str], progress: Progress | None = None) -> list[Prediction]:
        """Return every prediction of these events, in the order of the ids. Raises SettingsError where one has none."""
        by_key: dict[bytes, list[Record]] = {event_id.encode(): [] for event_id in event_ids}
        ranges = full_range(self.broker, self.topic)
        own = {TopicPartition(self.topic, partition_of(key, len(ranges))) for key in by_key}
        self._scan({partition: ranges[partition] for partition in own}, by_key, progress)
        missing = {key: records for key, records in by_key.items() if not records}
        if missing:  # a producer may have spread its keys in another way
            others = {partition: ends for partition, ends in ranges.items() if partition not in own}
            self._scan(others, missing, progress)
        for key, records in by_key.items():
            if not records:
                raise SettingsError(f"no prediction of event {key.decode()!r} in {self.topic}: {_extent_text(ranges)}")
        return [self._decoded(record) for records in by_key.values() for record in records]

    def total(self, event_ids: Collection[str]) -> int:
        """Return how many offsets are read to find these events' predictions."""
        ranges = full_range(self.broker, self.topic)
        own = {partition_of(event_id.encode(), len(ranges)) for event_id in event_ids}
        return sum(end - begin for partition, (begin, end) in ranges.items() if partition.partition in own)

    def draw(self, count: int, seed: int, ranges: Ranges | None = None) -> list[Prediction]:
        """Return `count` predictions drawn at random, each as likely as any other; all, where there are no more.

        Some offsets hold none (the ends of transactions), so more are drawn until there are enough. `ranges`: of these
        offsets alone; by default of all that the log holds.
        """
        ranges = full_range(self.broker, self.topic) if ranges is None else ranges
        rng = random.Random(seed)  # noqa: S311  it hides nothing
        total = sum(end - begin for begin, end in ranges.values())
        drawn: list[Prediction] = []
        tried: set[int] = set()
        while len(drawn) < count and len(tried) < total:
            numbers = rng.sample(range(total), min(total, len(tried) + 2 * (count - len(drawn))))
            places = {number: _place(number, ranges) for number in numbers if number not in tried}
            tried |= places.keys()
            records = self._read(places.values())
            for place in places.values():
                if len(drawn) == count or place not in records:
                    continue
                log = self._codec.of(records[place].value())
                if log is None:
                    self.skipped += 1
                else:
                    drawn.append(Prediction(records[place], log))
        return drawn

    def _scan(self, ranges: Ranges, by_key: Mapping[bytes, list[Record]], progress: Progress | None) -> None:
        for batch in self.broker.read(ranges):
            for record in batch:
                records = by_key.get(record.key() or b"")
                if records is not None:
                    records.append(record)
            if progress:
                progress(len(batch))

    def _decoded(self, record: Record) -> Prediction:
        value, codec = record.value() or b"", self._codec
        log = codec.of(value)
        if log is None:
            event_id = (record.key() or b"").decode(errors="replace")
            raise SettingsError(
                f"the prediction of event {event_id!r} in {self.topic}[{record.partition()}]@{record.offset()} has "
                f"schema id {int.from_bytes(value[1:HEADER], 'big')} where {codec.id} was expected: it is of an "
                f"earlier declaration, with another vector; name the pipeline's file as it was then"
            )
        return Prediction(record, log)

    def _read(self, places: Collection[Place]) -> dict[Place, Record]:
        """Return the records at these places; neighbours are read together, and partitions side by side."""
        runs: dict[TopicPartition, list[tuple[int, int]]] = {}
        for partition, offset in sorted(places):
            own = runs.setdefault(partition, [])
            if own and offset - own[-1][1] < MAX_GAP_OFFSETS:
                own[-1] = own[-1][0], offset + 1
            else:
                own.append((offset, offset + 1))
        records, wanted = {}, set(places)
        for number in range(max(map(len, runs.values()), default=0)):
            ranges = {partition: own[number] for partition, own in runs.items() if number < len(own)}
            for batch in self.broker.read(ranges):
                for record in batch:
                    place = TopicPartition(record.topic(), record.partition()), record.offset()
                    if place in wanted:
                        records[place] = record
        return records


def _extent_text(ranges: Ranges) -> str:
    cut = [f"[{partition.partition}] begins at {low:,}" for partition, (low, _) in sorted(ranges.items()) if low]
    total = sum(high - low for low, high in ranges.values())
    more = f", and what came before was cut off ({', '.join(cut)}); the archive has it" if cut else ""
    return f"it holds {total:,} offsets{more}; expected an event's id, exactly as the event has it"


def _place(number: int, ranges: Ranges) -> Place:
    """Return the place of the `number`-th of all offsets."""
    for partition, (begin, end) in ranges.items():
        if number < end - begin:
            return partition, begin + number
        number -= end - begin
    raise IndexError(number)
