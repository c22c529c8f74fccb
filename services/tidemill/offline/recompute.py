"""Vectors computed anew from history under today's declaration, as for views that were declared later.

from     <pipeline>.events.valid and <pipeline>.labels.valid, or files of events and labels
how      a backtest whose model costs nothing: an event's vector holds what was known before its event time, labels known
         at that time included, and what came true counts from the time at which its label was known
not      as served: production reads views of other entities a moment late, and late events after those that overtook them
memory   the views' entities, the labels' timeout of predictions, and one run of the sort
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from itertools import takewhile
from typing import Any

from tidemill.declare.pipeline import Pipeline
from tidemill.declare.view import View
from tidemill.offline.backtest import Backtest, Progress
from tidemill.offline.dataset import Writer
from tidemill.offline.log_history import past, without_models
from tidemill.stream.api import Broker, Record
from tidemill.wire import topics
from tidemill.wire.archive_rows import RowFormat
from tidemill.wire.records import Records


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
    run, form = Backtest(declared), RowFormat(declared, labelled=True)

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
