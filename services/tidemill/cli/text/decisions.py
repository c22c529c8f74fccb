"""Decisions about which model serves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tidemill.cli.text.shared import format_value, new_table, render, second

if TYPE_CHECKING:
    from tidemill.declare.pipeline import Pipeline
    from tidemill.registry.decisions import Decision


def decisions_text(pipeline: Pipeline, decisions: Sequence[Decision]) -> str:
    """Return decisions as a table, and below it the reason for each."""
    if not decisions:
        return f"no decision yet: {pipeline.champion}, the declared champion, serves\n"
    table = new_table("decision", "time", "by", "about", "serves", "examples", "questions", numbers=2)
    parts: list[Any] = [table, ""]
    for one in decisions:
        kind = one.kind.replace("_", " ")
        serves = f"{one.champion}{' (pinned)' if one.pinned else ''}"
        asked = f"{one.evidence[0].questions:,}" if one.evidence else ""
        table.add_row(
            kind, second(one.time), format_value(one.by, 20), str(one.subject), serves, f"{one.examples:,}", asked
        )
        about = f"{kind} {one.subject}" if one.subject else kind
        parts.append(format_value(f"{second(one.time)} {about}: {one.why}", 600))
    return render(*parts)
