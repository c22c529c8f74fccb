"""Features of one kind of entity, kept in tiles of event time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field

from tidemill.aggregates.base import Aggregate, columns_of
from tidemill.declare.checks import Duration, Fail, Is, OptionalDuration, check_fields, feature_name
from tidemill.declare.kinds import AVRO_KINDS, KEYS, KINDS
from tidemill.declare.stream import Stream
from tidemill.durations import milliseconds
from tidemill.rules.base import NUMBERS

_AGGREGATES = "an aggregate of tidemill.aggregates, or a list of them,"


@dataclass(frozen=True)
class View:
    """Features of one kind of entity, kept in event-time tiles: from events, or from their labels.

    Parameters
    ----------
    entity
        The event field that names the entity.
    every
        The tile's length: the resolution of every window of this view.
    aggregates
        What to keep: lists as the functions in `tidemill.aggregates` return them, or single aggregates.
    name
        The view's name, in Redis keys and as prefix of its features. Default: the entity's name, over examples followed
        by `_outcome`.
    source
        "events", or "examples": then aggregates are over "label" (true counts 1), the fields of the label's record and
        the request features, and an example counts from the time at which its label was known.
    expires
        How long after its last event, in event time, an entity is forgotten; never by default.
    fresh
        The objective, in event time: an alert is raised where more than one in a hundred of a window's served features
        were older than this.
    """

    entity: str
    every: Duration
    aggregates: Sequence[Annotated[Is[Aggregate] | Sequence[Is[Aggregate]], Field(description=_AGGREGATES)]]
    name: str = ""
    source: Literal["events", "examples"] = "events"
    expires: OptionalDuration = ""
    fresh: OptionalDuration = ""

    @property
    def label(self) -> str:
        """The view's name."""
        return self.name or (self.entity if self.source == "events" else f"{self.entity}_outcome")

    @property
    def objective(self) -> float | None:
        """How old its features may be, in seconds of event time; None where no objective is declared."""
        return milliseconds(self.fresh) / 1000 if self.fresh else None

    @cached_property
    def flat(self) -> tuple[Aggregate, ...]:
        """All aggregates, in declared order."""
        return tuple(a for item in self.aggregates for a in ((item,) if isinstance(item, Aggregate) else item))

    @cached_property
    def features(self) -> tuple[str, ...]:
        """Feature names, in the order of `flat`."""
        return tuple(f"{self.label}_{a.name}" for a in self.flat)

    def check(self, where: str, events: Stream, known_later: Mapping[str, str], fail: Fail) -> None:
        """Check the fields, and that the pipeline has what they name.

        `known_later` has the kind of each thing, by name, that aggregates over examples can look at.
        """
        check_fields(self, where, fail)
        events.check_field(where, self.entity, fail, *KEYS)
        if not self.flat:
            fail(where, "it keeps nothing: declare at least one aggregate")
        for aggregate in self.flat:
            for part in aggregate.parts or (aggregate,):
                for name in part.fields:
                    if self.source == "events":
                        types = tuple(AVRO_KINDS) if part.text else NUMBERS
                        events.check_field(f"{where}: {part.kind}", name, fail, *types)
                    else:
                        _check_known_later(f"{where}: {part.kind}", name, known_later, fail, text=part.text)
            if aggregate.window_ms % milliseconds(self.every):
                message = f"window {aggregate.window} is not a multiple of every={self.every}"
                fail(f"{where}: {aggregate.name}", message)
        try:
            columns_of(self.flat)
            for name in (self.label, *self.features):
                feature_name(name)
        except ValueError as error:
            fail(where, str(error))


def _check_known_later(where: str, name: str, kinds: Mapping[str, str], fail: Fail, *, text: bool) -> None:
    if name not in kinds:
        fail(
            where,
            f"{name!r} is neither 'label' nor a field of the label nor a request feature: there are {', '.join(kinds)}",
        )
    if kinds[name] not in KINDS or (kinds[name] == "category" and not text):
        fail(where, f"{name!r} is {kinds[name]}, not a number")
