"""Decisions about who serves, as people read them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from tidemill.cli.text.shared import given_text, new_table, render, second
from tidemill.declare.pipeline import Pipeline
from tidemill.registry.decisions import Decision


def decision_json(decision: Decision) -> dict[str, Any]:
    """Return a decision with its evidence, for programs. Times are ms since the epoch."""
    return {name: value for name, value in dataclasses.asdict(decision).items() if name != "signature"}


def decisions_text(pipeline: Pipeline, decisions: Sequence[Decision]) -> str:
    """Return decisions as a table, and why each was made below it."""
    if not decisions:
        return f"no decision yet: {pipeline.champion}, the declared champion, serves\n"
    table = new_table("decision", "time", "by", "about", "serves", "examples", "questions", numbers=2)
    parts: list[Any] = [table, ""]
    for one in decisions:
        kind = one.kind.replace("_", " ")
        serves = f"{one.champion}{' (pinned)' if one.pinned else ''}"
        asked = f"{one.evidence[0].questions:,}" if one.evidence else ""
        table.add_row(
            kind, second(one.time), given_text(one.by, 20), str(one.subject), serves, f"{one.examples:,}", asked
        )
        about = f"{kind} {one.subject}" if one.subject else kind
        parts.append(given_text(f"{second(one.time)} {about}: {one.why}", 600))
    return render(*parts)
