"""Vectors computed anew from history under today's declaration, as for views that were declared later.

from     <pipeline>.events.valid and <pipeline>.labels.valid, or files of events and labels
how      a backtest whose model costs nothing: an event's vector holds what was known before its event time, labels known
         at that time included, and what came true counts from the time at which its label was known
not      as served: production reads views of other entities a moment late, and late events after those that overtook them
memory   the views' entities, the labels' timeout of predictions, and one run of the sort
"""

from __future__ import annotations

import heapq
import struct
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import IO, Any, NamedTuple

from tidemill import topics
from tidemill.archiver.rows import Form
from tidemill.backtest import Backtest, Progress
from tidemill.dataset import Writer
from tidemill.monitor.declaration import Monitor
from tidemill.pipeline import Pipeline, View
from tidemill.records import Codec, Records
from tidemill.stream.api import Broker, Record, Slot

RUN = 200_000
"""Records that are sorted at once; more are sorted in runs, which are merged from temporary files."""
_FRAME = struct.Struct(">qiqI")


class _Nobody:
    """A model and a metric that cost nothing."""

    requires_labels = False

    def learn_one(self, x: object, y: object = None) -> None: ...

    def predict_one(self, x: object) -> float:
        del x
        return 0.0

    score_one = predict_one

    def predict_proba_one(self, x: object) -> dict[Any, float]:
        del x
        return {}

    def clone(self) -> _Nobody:
        return self

    def update(self, y: object, predicted: object) -> None: ...

    def get(self) -> float:
        return 0.0


def without_models(pipeline: Pipeline) -> Pipeline:
    """Return the pipeline with a model that costs nothing in the place of all."""
    nobody = _Nobody()
    return replace(
        pipeline, models={"baseline": nobody}, champion="baseline", baseline=None, metrics=[nobody], monitor=Monitor()
    )


def recompute(
    pipeline: Pipeline,
    events: Iterable[Mapping[str, Any]],
    labels: Iterable[Mapping[str, Any]],
    writer: Writer,
    *,
    whole_from: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Give `writer` the examples that `events` and `labels`, each in order of its time, are under this declaration.

    `whole_from`, where something is missing before what is there: the event time in ms up to which windows may lack it.
    Vectors of earlier events say `partial`.
    """
    declared = without_models(pipeline)
    run, form = Backtest(declared), Form(declared, labelled=True)

    def joined(record: Record) -> None:
        row = form.row(record)
        assert row is not None  # noqa: S101  the run's own record
        row["partial"] = row["partial"] or (whole_from is not None and row["event_time"] < whole_from)
        writer.take(row)

    run.examples = joined
    end, event_time, label_time = writer.span.end, pipeline.events.time, pipeline.labels.time
    if end is not None:  # what comes later is in no vector before it, and later labels than these do not count
        last = end + pipeline.label_timeout_ms
        events = takewhile(lambda event: event[event_time] < end, events)
        labels = takewhile(lambda label: label[label_time] <= last, labels)
    writer.summary.dead_letters = run.run(events, labels, progress).dead_letters


class Sortable(NamedTuple):
    """A record on its way into order of time; equal times by partition, and within one as they came."""

    time: int
    partition: int
    offset: int
    value: bytes


def in_order(records: Iterable[Sortable], held: ExitStack, run: int = RUN) -> Iterator[bytes]:
    """Read all records, and return their values in order, with few more than `run` of them in memory at any time.

    `held` closes the temporary files.
    """
    files: list[IO[bytes]] = []
    some: list[Sortable] = []
    for record in records:
        some.append(record)
        if len(some) >= run:
            files.append(_spill(some, held))
            some = []
    some.sort()
    return (record.value for record in heapq.merge(*map(_spilt, files), some))


def _spill(some: list[Sortable], held: ExitStack) -> IO[bytes]:
    some.sort()
    file = held.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  it is closed with the others
    for time, partition, offset, value in some:
        file.write(_FRAME.pack(time, partition, offset, len(value)))
        file.write(value)
    file.seek(0)
    return file


def _spilt(file: IO[bytes]) -> Iterator[Sortable]:
    while head := file.read(_FRAME.size):
        time, partition, offset, size = _FRAME.unpack(head)
        yield Sortable(time, partition, offset, file.read(size))


@dataclass
class Past:
    """What a topic of valid records held: its rows in order of time.

    `firsts` has the first time of each partition whose log was cut; `skipped` counts records of an earlier schema.
    """

    rows: Iterator[dict[str, Any]] = field(default_factory=lambda: iter(()))
    firsts: dict[int, int] = field(default_factory=dict)
    skipped: int = 0

    @property
    def lacks_before(self) -> int | None:
        """The time in ms from which on every partition is whole; None where all of them always were."""
        return max(self.firsts.values(), default=None)


def past(
    broker: Broker, topic: str, codec: Codec, time: str, held: ExitStack, progress: Progress | None = None
) -> Past:
    """Read a topic of events or labels up to this moment; `time` is the field with a record's time."""
    slots = [Slot(topic, partition) for partition in range(broker.partitions(topic))]
    ranges = {slot: broker.watermarks(slot) for slot in slots}
    cut = {slot.partition for slot, (begin, _) in ranges.items() if begin > 0}
    found = Past()

    def read() -> Iterator[Sortable]:
        for batch in broker.read(ranges):
            for record in batch:
                value, partition = record.value() or b"", record.partition()
                row = codec.of(value)
                if row is None:
                    found.skipped += 1
                    continue
                now = row[time]
                if partition in cut:
                    found.firsts[partition] = min(now, found.firsts.get(partition, now))
                yield Sortable(now, partition, record.offset(), value)
            if progress:
                progress(len(batch))

    found.rows = map(codec.decode, in_order(read(), held))
    return found


def whole_from(pipeline: Pipeline, events: int | None, labels: int | None) -> int | None:
    """Return the event time in ms from which every window is whole, where events or labels are missing before these.

    An outcome counts up to the labels' timeout after its event, so windows over outcomes reach that much further back.
    """
    found = [0]
    for view in pipeline.views:
        longest, is_outcome = _longest(view), view.source == "examples"
        if events is not None:
            found.append(events + longest + (pipeline.label_timeout_ms if is_outcome else 0))
        if labels is not None and is_outcome:
            found.append(labels + longest)
    return max(found) if len(found) > 1 else None


def _longest(view: View) -> int:
    return max(aggregate.window_ms for aggregate in view.flat)


def from_kafka(pipeline: Pipeline, broker: Broker, writer: Writer, progress: Progress | None = None) -> None:
    """Give `writer` the examples that the valid events and labels in Kafka are under this declaration."""
    records, name = Records(pipeline), pipeline.name
    with ExitStack() as held:
        events = past(broker, topics.EVENTS_VALID.name(name), records.event, pipeline.events.time, held, progress)
        labels = past(broker, topics.LABELS_VALID.name(name), records.label, pipeline.labels.time, held, progress)
        writer.summary.skipped = events.skipped + labels.skipped
        since = whole_from(pipeline, events.lacks_before, labels.lacks_before)
        recompute(pipeline, events.rows, labels.rows, writer, whole_from=since, progress=progress)
