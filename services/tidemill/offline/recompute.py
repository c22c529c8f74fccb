"""Vectors computed again from history under today's declaration, as for views that were declared later.

from     <pipeline>.events.valid and <pipeline>.labels.valid, or files of events and labels
how      a backtest whose model costs nothing: an event's vector holds what was known before its event time, labels
         known at that time included, and what came true counts from the time at which its label was known
not      as served: production reads views of other entities a moment late, and late events after those that overtook
         them
memory   the views' entities, the labels' timeout of predictions, and one run of the sort
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from itertools import takewhile

from tidemill.declare.pipeline import Pipeline
from tidemill.declare.stream import Stream
from tidemill.declare.view import View
from tidemill.offline.backtest import Backtest, Row, without_models
from tidemill.offline.dataset import Writer
from tidemill.offline.history import Message
from tidemill.offline.source import KafkaSource, RowSource
from tidemill.stream.api import Progress, Record, expect
from tidemill.wire.archive_rows import RowFormat, key_of


def recompute_rows(
    pipeline: Pipeline,
    events: Iterable[Row | Message],
    labels: Iterable[Row | Message],
    writer: Writer,
    *,
    complete_from: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Give `writer` the examples that `events` and `labels`, each in order of its time, are under this declaration.

    `complete_from`: the event time in ms from which on no window lacks anything, where the log was cut. Vectors of
    earlier events say `partial`.
    """
    declared = without_models(pipeline)
    run, form = Backtest(declared), RowFormat(declared, labelled=True)

    def joined(record: Record) -> None:
        row = form.row(record)
        assert row is not None  # noqa: S101  the run's own record
        row["is_corrected"] = key_of(row) in run.corrected
        row["partial"] = row["partial"] or (complete_from is not None and row["event_time"] < complete_from)
        writer.take(row)

    run.examples = joined
    end = writer.span.end
    if end is not None:  # what comes later is in no vector before it, and later labels than these do not count
        last = end + pipeline.label_timeout_ms + pipeline.corrections_ms
        events = takewhile(lambda event: _time_of(event, pipeline.events) < end, events)
        labels = takewhile(lambda label: _time_of(label, pipeline.labels) <= last, labels)
    report = run.run(events, labels, progress)
    if end is not None:
        report.label_delays = None  # labels of events after the end are none that match no event
    writer.summary.dead_letters = report.dead_letters
    writer.summary.warnings = [*report.history_warnings, *filter(None, [report.note])]


def _time_of(row: Row | Message, stream: Stream) -> int:
    """Return a row's time in ms; 0 where it has none: it follows the one before it."""
    return row.time if isinstance(row, Message) else stream.millis_of(row) or 0


def complete_from(pipeline: Pipeline, events: int | None, labels: int | None) -> int | None:
    """Return the event time in ms from which on no window lacks anything, given those times of events and labels.

    An outcome counts up to the labels' timeout after its event, so windows over outcomes reach that much further back.
    """
    times = []
    for view in pipeline.views:
        longest, is_outcome = _longest(view), view.source == "examples"
        if events is not None:
            times.append(events + longest + (pipeline.label_timeout_ms if is_outcome else 0))
        if labels is not None and is_outcome:
            times.append(labels + longest)
    return max(times, default=None)


def _longest(view: View) -> int:
    return max(aggregate.window_ms for aggregate in view.flat)


def recompute(
    pipeline: Pipeline, source: KafkaSource | RowSource, writer: Writer, progress: Progress | None = None
) -> None:
    """Give `writer` the examples that the events and labels of `source` are under this declaration."""
    with ExitStack() as stack:
        events, labels = source.histories(pipeline, stack, progress)
        expect(progress, events.count)
        writer.summary.skipped = events.skipped + labels.skipped
        complete = complete_from(pipeline, events.complete_from, labels.complete_from)
        recompute_rows(pipeline, events.rows, labels.rows, writer, complete_from=complete, progress=progress)
