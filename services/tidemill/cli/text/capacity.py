"""What a pipeline needs, as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidemill.cli.text.shared import new_table, render
from tidemill.durations import approximate

if TYPE_CHECKING:
    from tidemill.offline.capacity import Capacity

_UNITS = ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def size(count: float) -> str:
    """Return a number of bytes for people.

    >>> size(824), size(130_168_282_643)
    ('824 B', '130 GB')
    """
    for factor, unit in _UNITS:
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f} B"


def capacity_text(needed: Capacity) -> str:
    """Return what a pipeline needs."""
    services = new_table("service", "us an event", "cores", "processes", numbers=3)
    for service in needed.services:
        services.add_row(service.name, f"{service.us:.1f}", f"{service.cores:.2f}", f"{service.instances:,}")
    processes = sum(service.instances for service in needed.services)
    services.add_row("all", f"{sum(s.us for s in needed.services):.1f}", f"{needed.cores:.2f}", f"{processes:,}")
    kept = new_table("topic", "bytes an event", "a second", "kept", "with replicas", numbers=4)
    for topic in needed.topics:
        kept.add_row(
            topic.name,
            f"{topic.bytes:,.0f}",
            size(topic.bytes * needed.rate),
            "for ever; a year:" if topic.kept_seconds >= 365 * 86_400 else approximate(topic.kept_seconds * 1_000),
            size(topic.gigabytes * 1e9),
        )
    kept.add_row("all", f"{sum(t.bytes for t in needed.topics):,.0f}", "", "",
                 size(sum(t.gigabytes for t in needed.topics) * 1e9))  # fmt: skip
    timeout = approximate(round(needed.label_timeout * 1_000))
    lines = [
        f"partitions  {needed.partitions} or more, for the service that needs most processes; "
        f"{needed.declared_partitions} are declared",
        f"processes   {size(needed.process_bytes)} each, as this one had when it began: "
        f"{size(needed.process_bytes * processes)}",
        f"joiner      {size(needed.joiner_bytes)} besides: {needed.waiting:,.0f} predictions wait for their label, "
        f"{needed.waiting_bytes:,.0f} B each,",
        f"            and {needed.joined:,.0f} that have it are remembered, {needed.joined_bytes:,.0f} B each, for "
        + (
            f"label_timeout={timeout!r}"
            if needed.remembered <= needed.label_timeout
            else f"corrections and two of label_timeout={timeout!r}"
        ),
    ]
    if needed.entity_bytes:
        lines.append(f"featurizer  {size(needed.entity_bytes)} besides for each entity, as far as this history goes")
    if needed.rate > needed.most:
        lines.append(
            f"TOO MUCH    a model is learned by one process, and the slowest learner here takes {needed.most:,.0f} "
            f"events a second: choose a cheaper model"
        )
    return render(
        f"pipeline {needed.pipeline} at {needed.rate:,.6g} events a second, labels after "
        f"{approximate(round(needed.label_delay * 1_000))}; measured here on {needed.events:,} events in "
        f"{needed.seconds:.1f} s\n",
        services,
        f"\ncores are for steps and Kafka's client; a process uses {needed.busy:.0%} of one at most\n",
        kept,
        "\n" + "\n".join(lines),
    )
