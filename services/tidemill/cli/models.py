"""`tidemill models`: versions of models (versions.py), and which model serves (champion.py)."""

from __future__ import annotations

import click

from tidemill.cli.lazy import LazyGroup

#: The commands by name: where each is, and its line in `tidemill models --help`.
COMMANDS = {
    "compare": ("versions:compare", "Compare two models on the same questions."),
    "decisions": ("champion:decisions", "Print decisions about which model serves, newest first."),
    "list": ("versions:list_", "Print the newest versions, newest first."),
    "mirror": ("versions:mirror", "Copy versions to MLflow."),
    "pin": ("champion:pin", "Serve one version until `unpin`; the gate does not replace it."),
    "promote": ("champion:promote", "Make a model, or one version of it, the champion."),
    "prune": ("versions:prune", "Delete the artifacts of old versions."),
    "rebuild": ("versions:rebuild", "Rebuild versions from the examples, and compare scores."),
    "reset": ("champion:reset", "Begin another life of a model, with nothing learned."),
    "rollback": ("champion:rollback", "Make the previous champion, or an earlier one, serve again."),
    "show": ("versions:show", "Print everything about one version, the newest by default."),
    "train": ("champion:train", "Train a fresh copy of a model on history."),
    "unpin": ("champion:unpin", "End `pin`: the gate decides again."),
}


@click.group(cls=LazyGroup, lazy=COMMANDS)
def models() -> None:
    """List, compare, promote, prune and rebuild versions of models."""
