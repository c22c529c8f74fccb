"""A snapshot: a learned model with its metrics and its place in the examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tidemill.models.segments import State


@dataclass(frozen=True)
class Snapshot:
    """The saved state of a learner: enough to serve, and to go on learning as if it had never stopped.

    `shares`: the sources of the last examples, where the pipeline limits a source's share.
    """

    model: Any
    metrics: list[Any]
    examples: int
    version: int
    learned_until: int
    begin: int = 0
    segments: State = field(default_factory=list)
    shares: Sequence[str | None] | None = None

    def saved(self) -> dict[str, Any]:
        """Return the content of an artifact."""
        return dict(self.__dict__)
