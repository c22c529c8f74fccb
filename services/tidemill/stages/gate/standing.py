"""The standing: the serving model, and the decisions that led to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tidemill.declare.pipeline import Pipeline
from tidemill.registry.decisions import NOBODY, Decision, ModelRef
from tidemill.stages.gate.trial import Trial

BASELINE = "baseline"

#: The evidence starts again when one of these changes.
RESTARTS_EVIDENCE = frozenset({"champion", "pinned", "candidate", "epochs"})


class Draft(NamedTuple):
    """A decision before it is dated and signed; `changes` has the new values of fields of `Standing`."""

    kind: str
    why: str
    subject: ModelRef
    changes: Mapping[str, Any] = {}
    trial: Trial | None = None


@dataclass(frozen=True)
class Standing:
    """The serving model after all decisions so far.

    Parameters
    ----------
    champion
        The serving model.
    on_probation_against
        The champion before, while the new one is on probation; else nobody.
    pinned
        Whether a person has pinned the champion; then the gate decides nothing.
    candidate
        The name of the candidate that is trained; empty where none is.
    since
        The offset of the first example that counts as evidence.
    epochs
        The present life of each model that was ever reset.
    decisions
        All decisions, the oldest first.
    """

    pipeline: Pipeline = field(repr=False)
    champion: ModelRef
    on_probation_against: ModelRef = NOBODY
    pinned: bool = False
    candidate: str = ""
    since: int = 0
    epochs: Mapping[str, int] = field(default_factory=dict)
    decisions: tuple[Decision, ...] = ()

    @classmethod
    def initial(cls, pipeline: Pipeline) -> Standing:
        """Return the standing before the first decision: the declared champion serves."""
        return cls(pipeline, ModelRef(pipeline.champion))

    def after(self, decision: Decision) -> Standing:
        """Return the standing after a decision.

        A champion that is no longer declared is replaced by the declared one, as in the scorer.
        """
        decisions = (*self.decisions, decision)
        if not self.pipeline.knows(decision.champion.model):
            initial = Standing.initial(self.pipeline)
            return dataclasses.replace(initial, since=decision.since, epochs=decision.epochs, decisions=decisions)
        return Standing(
            self.pipeline,
            decision.champion,
            decision.on_probation_against,
            decision.pinned,
            decision.candidate,
            decision.since,
            decision.epochs,
            decisions,
        )

    def since_with(self, changes: Mapping[str, Any], offset: int) -> int:
        """Return the offset from which examples count when these changes are made at an offset."""
        restarts = any(changes[name] != getattr(self, name) for name in RESTARTS_EVIDENCE & changes.keys())
        return offset if restarts else self.since

    @property
    def challengers(self) -> list[ModelRef]:
        """Models that may replace the champion: every model as it learns, except the baseline.

        The champion's own model is one of them while one version of it serves.
        """
        names = dict.fromkeys((*self.pipeline.model_names, self.candidate, self.champion.model))
        refs = [ModelRef(name) for name in names if name not in ("", BASELINE)]
        return [ref for ref in refs if ref != self.champion]

    @property
    def has_baseline(self) -> bool:
        """Whether the champion can be compared with a baseline."""
        return BASELINE in self.pipeline.model_names and self.champion.model != BASELINE

    @property
    def predecessor(self) -> ModelRef:
        """The champion before this one; nobody where it is the first."""
        changes = (one for one in reversed(self.decisions) if one.changes and one.champion == self.champion)
        return next((one.before for one in changes), NOBODY)

    @property
    def earlier_champions(self) -> list[ModelRef]:
        """The champion and all before it, the latest first, each once."""
        served = [ref for one in self.decisions if one.changes for ref in (one.before, one.champion)]
        return list(dict.fromkeys((self.champion, *reversed(served))))

    def has_decided(self, kind: str, subject: ModelRef, offset: int) -> bool:
        """Whether the gate has decided this at this very example: without transactions some examples are read twice."""
        wanted = (kind, subject, offset, "")
        return any((one.kind, one.subject, one.examples, one.command) == wanted for one in self.decisions)
