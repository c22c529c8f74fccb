"""What a pipeline declares about training a model again: which one, what starts it, on how much."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from tidemill.declare.checks import Fail, check_fields
from tidemill.declare.monitor import Alert


@dataclass(frozen=True)
class Training:
    """When a candidate is trained: a fresh copy of a declared model, folded over part of the history.

    It shadows as soon as it has caught up, and the gate compares it with the champion like any challenger.

    Parameters
    ----------
    model
        The declared model of which a fresh copy is trained.
    on
        Kinds of alert that start it; people start it by `tidemill models train`.
    examples
        How many of the latest examples it starts with; 0: all of them.
    pause
        For this many examples after a candidate was started, no alert and no correction starts another.
    corrected
        Once more than this share of the examples had their label corrected since the last such candidate, one is folded
        over all examples with their corrected labels; 0: only people start it, by `tidemill models train --corrected`.
    """

    model: str
    on: Annotated[Sequence[Alert], Field(examples=[["drift"]])] = ("drift", "performance")
    examples: Annotated[int, Field(ge=0)] = 20_000
    pause: Annotated[int, Field(ge=0)] = 20_000
    corrected: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def check(self, models: Iterable[str], fail: Fail) -> None:
        """Check the fields, and that the model is declared."""
        check_fields(self, "training", fail)
        if self.model not in models:
            fail("training.model", f"{self.model!r} is not one of the models: {', '.join(models)}")
