"""Features of one kind of entity, kept in tiles of event time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from tidemill.aggregates.base import Aggregate
from tidemill.durations import milliseconds


@dataclass(frozen=True)
class View:
    """Features of one kind of entity, kept in event-time tiles: from events, or from what came true of them.

    Parameters
    ----------
    entity
        The event field that names the entity.
    every
        The tile's length: the resolution of every window of this view.
    aggregates
        What to keep: lists as the functions in `tidemill.aggregates` return them, or single aggregates.
    name
        The view's name, in Redis keys and as prefix of its features; the entity's by default, over examples with
        `_outcome` behind it.
    source
        "events", or "examples": then aggregates are over "label" (true counts 1), the fields of the label's record and
        the request features, and what came true counts from the time at which its label was known.
    expires
        How long after its last event, in event time, an entity is forgotten; never by default.
    fresh
        The objective: an alert where of the features that were served in a window more than one in a hundred were older
        than this, in event time.
    """

    entity: str
    every: str
    aggregates: Sequence[Aggregate | Sequence[Aggregate]]
    name: str = ""
    source: str = "events"
    expires: str = ""
    fresh: str = ""

    @property
    def label(self) -> str:
        """The view's name."""
        return self.name or (self.entity if self.source == "events" else f"{self.entity}_outcome")

    @property
    def objective(self) -> float | None:
        """How old its features may be, in s of event time; None where nothing is declared."""
        return milliseconds(self.fresh) / 1000 if self.fresh else None

    @cached_property
    def flat(self) -> tuple[Aggregate, ...]:
        """All aggregates, in declared order."""
        return tuple(a for item in self.aggregates for a in ((item,) if isinstance(item, Aggregate) else item))

    @cached_property
    def features(self) -> tuple[str, ...]:
        """Feature names, in the order of `flat`."""
        return tuple(f"{self.label}_{a.name}" for a in self.flat)
