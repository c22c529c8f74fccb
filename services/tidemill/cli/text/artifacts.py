"""Artifacts that were pruned, and versions that were rebuilt."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tidemill.cli.text.shared import count_of, given_text, new_table, render
from tidemill.declare.pipeline import Pipeline
from tidemill.offline.rebuild import Rebuilt
from tidemill.registry.pruning import Plan
from tidemill.registry.store import ArtifactStore


def pruned_json(plan: Plan, *, done: bool) -> dict[str, Any]:
    """Return what was pruned, for programs; `done` False: what would be."""
    return {
        "pruned": done, "artifacts": plan.artifacts, "bytes": plan.bytes,
        "models": [dataclasses.asdict(model) for model in plan.models.values()],
    }  # fmt: skip


def pruned_text(plan: Plan, store: ArtifactStore, *, done: bool) -> str:
    """Return what was pruned, model by model; `done` False: what would be."""
    table = new_table("model", "versions", "kept", "gone before", "shared", "pruned", "MB", numbers=6)
    for model in plan.models.values():
        table.add_row(
            given_text(model.name, 40), f"{model.versions:,}", f"{model.kept:,}", f"{model.gone:,}", f"{model.shared:,}",
            f"{model.pruned:,}", f"{model.bytes / 1e6:,.1f}",
        )  # fmt: skip
    what = f"{count_of(len(plan.artifacts), 'artifact')}, {plan.bytes / 1e6:,.1f} MB"
    end = f"pruned {what}, from {store.url}" if done else f"would prune {what}, from {store.url}; nothing was deleted"
    return render(table) + "\n" + end + "\n"


def rebuilt_json(found: Sequence[Rebuilt], others: int) -> dict[str, Any]:
    """Return what came of versions, for programs; `others`: how many of another declaration were left out."""
    return {
        "equal": all(one.state == "equal" for one in found),
        "others": others,
        "versions": [
            {
                "model": one.manifest.model, "version": one.manifest.version, "examples": one.manifest.examples, "state": one.state,
                "scores": one.scores, "artifact": one.artifact, "why": one.why,
            }
            for one in found
        ],
    }  # fmt: skip


def rebuilt_text(pipeline: Pipeline, found: Sequence[Rebuilt], others: int) -> str:
    """Return what came of versions, as a table."""
    table = new_table("model", "version", "examples", "scores", "", "artifact", "")
    for one in found:
        table.add_row(
            given_text(one.manifest.model, 40), f"{one.manifest.version}", f"{one.manifest.examples:,}", f"{one.scores}", one.state,
            one.artifact, given_text(one.why, 400),
        )  # fmt: skip
    states, artifacts = Counter(one.state for one in found), Counter(one.artifact for one in found)
    said = ", ".join(f"{count:,} {state}" for state, count in states.items()) or "none to rebuild"
    made = f"; {artifacts['put back']:,} put back" if artifacts["put back"] else ""
    made += f"; {artifacts['stands in']:,} stand in, with other bytes" if artifacts["stands in"] else ""
    left = f"left out: {others:,} of another declaration\n" if others else ""
    return (render(table) + "\n" if found else "") + f"{pipeline.name}.examples folded: {said}{made}\n{left}"
