"""Pruned artifacts and rebuilt versions."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from tidemill.cli.text.shared import count_of, format_value, new_table, render

if TYPE_CHECKING:
    from tidemill.offline.rebuild import RebuildReport
    from tidemill.registry.pruning import Plan


def pruned_text(plan: Plan, store_url: str) -> str:
    """Return what was pruned, or would be, model by model."""
    table = new_table("model", "versions", "kept", "gone before", "shared", "pruned", "MB", numbers=6)
    for model in plan.models.values():
        table.add_row(
            format_value(model.name, 40),
            f"{model.versions:,}",
            f"{model.kept:,}",
            f"{model.gone:,}",
            f"{model.shared:,}",
            f"{model.pruned:,}",
            f"{model.bytes / 1e6:,.1f}",
        )
    what = f"{count_of(len(plan.artifacts), 'artifact')}, {plan.bytes / 1e6:,.1f} MB, from {store_url}"
    end = f"pruned {what}" if plan.is_done else f"would prune {what}; nothing was deleted"
    return render(table) + "\n" + end + "\n"


def rebuilt_text(pipeline: str, report: RebuildReport) -> str:
    """Return what came of each version, as a table."""
    table = new_table("model", "version", "examples", "scores", "", "artifact", "")
    for one in report.versions:
        table.add_row(
            format_value(one.manifest.model, 40),
            f"{one.manifest.version}",
            f"{one.manifest.examples:,}",
            f"{one.scores}",
            one.state,
            one.artifact,
            format_value(one.why, 400),
        )
    states = Counter(one.state for one in report.versions)
    artifacts = Counter(one.artifact for one in report.versions)
    counts = ", ".join(f"{count:,} {state}" for state, count in states.items()) or "none to rebuild"
    counts += f"; {artifacts['restored']:,} restored" if artifacts["restored"] else ""
    counts += f"; {artifacts['replaced']:,} replaced, with other bytes" if artifacts["replaced"] else ""
    left = f"left out: {report.others:,} of another declaration\n" if report.others else ""
    return (render(table) + "\n" if report.versions else "") + f"{pipeline}.examples folded: {counts}\n{left}"
