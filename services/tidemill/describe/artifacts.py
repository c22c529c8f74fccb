"""Artifacts that were pruned."""

from __future__ import annotations

import dataclasses
from typing import Any

from tidemill.describe.shared import count_of, given_text, new_table, render
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
