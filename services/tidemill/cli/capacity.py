"""`tidemill capacity`: what machine a pipeline needs at a rate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import tidemill
from tidemill.cli.shared import AS_JSON, PIPELINE, print_report, progress, with_source
from tidemill.errors import SettingsError

if TYPE_CHECKING:
    from tidemill.offline.source import FileSource


@click.command()
@PIPELINE
@click.option("--rate", type=click.FloatRange(0, min_open=True), required=True, metavar="N", help="Events a second.")
@with_source(kafka=False, archive=False, required=True)
@click.option(
    "--label-delay", metavar="DURATION", help="Time from an event to its label, as 2h. Default: the mean of the files."
)
@click.option(
    "--busy", type=click.FloatRange(0.05, 1), default=0.6, show_default=True, help="Share of a core a process may use."
)
@click.option(
    "--replicas", type=click.IntRange(1), default=3, show_default=True, help="Copies that Kafka keeps of each topic."
)
@click.option(
    "--limit", type=click.IntRange(100), default=5_000, show_default=True, help="Events to measure on, the newest."
)
@AS_JSON
def capacity(
    pipeline: str,
    rate: float,
    source: FileSource,
    label_delay: str | None,
    busy: float,
    replicas: int,
    limit: int,
    *,
    as_json: bool,
) -> None:
    """Say what machine a pipeline needs at a rate.

    All services run in this process on the newest of the events, for a few seconds. It prints cores, processes,
    partitions, memory, and what Kafka keeps. Measure on the machine that is to run it, with nothing else running.
    """
    from tidemill.cli.text.capacity import capacity_text
    from tidemill.durations import milliseconds
    from tidemill.offline.capacity import capacity as measure

    declared = tidemill.load(pipeline)
    try:
        delay = milliseconds(label_delay) / 1_000 if label_delay else None
    except ValueError as error:
        raise SettingsError(f"--label-delay: {error}") from None
    with progress("reading", None) as advance:
        events, labels = source.rows(declared, advance)
    earlier = {event.id for event in events[:-limit]}
    events, labels = events[-limit:], [label for label in labels if label.id not in earlier]
    with progress("measuring", len(events)) as advance:
        needed = measure(
            declared, events, labels, rate, label_delay=delay, busy=busy, replicas=replicas, progress=advance
        )
    print_report(needed, capacity_text, as_json=as_json)
