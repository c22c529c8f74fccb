"""Offsets of groups."""

from __future__ import annotations

from collections.abc import Sequence

from tidemill.cli.text.shared import new_table, render
from tidemill.offline.offsets import Decision, GroupOffset
from tidemill.stream.api import Position


def offsets_text(offsets: Sequence[GroupOffset]) -> str:
    """Return the table of what groups have committed."""
    table = new_table("service", "partition", "committed", "progress", "log", "state")
    for one in offsets:
        log = f"{one.begin} to {one.end}"
        table.add_row(one.service, _name(one), _offset(one.committed), _offset(one.progress), log, one.state)
    return render(table)


def decisions_text(decisions: Sequence[Decision]) -> str:
    """Return the table of what would be set, and what it does."""
    table = new_table("partition", "committed", "progress", "log", "to", "what it does")
    for one in decisions:
        before = one.before
        log = f"{before.begin} to {before.end}"
        table.add_row(
            _name(before),
            _offset(before.committed),
            _offset(before.progress),
            log,
            str(one.position.offset),
            one.effect,
        )
    return render(table)


def _name(one: GroupOffset) -> str:
    return f"{one.partition.topic}[{one.partition.partition}]"


def _offset(position: Position | None) -> str:
    return "none" if position is None else str(position.offset)
