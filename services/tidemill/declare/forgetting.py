"""That single entities can be forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from tidemill.declare.checks import Duration, Fail, check_fields
from tidemill.durations import milliseconds


@dataclass(frozen=True)
class Forgetting:
    """That single entities can be forgotten by `tidemill forget`: what is written from now on can be erased.

    Declare it before the first record: of a topic whose records were written without it, Kafka could not erase some and
    keep the others.

    Parameters
    ----------
    within
        How long after a request it has to be done; `tidemill forget` says until when.
    fields
        Fields of events that name entities, beside the key and the entities of views.
    every
        How often requests are carried out, all that wait at once, so that models are folded again once in that time;
        None: each at once.
    shadow
        So many predictions a model that was folded again answers in the shadow of itself as it was, before it serves.
    """

    within: Duration = "30d"
    fields: Annotated[Sequence[str], Field(examples=[["user_id"]])] = ()
    every: Duration | None = None
    shadow: Annotated[int, Field(ge=0, le=1_000_000)] = 100

    def check(self, types: Mapping[str, Any], fail: Fail) -> None:
        """Check the fields, and that events have those that are named."""
        check_fields(self, "forgetting", fail)
        if self.every is not None and milliseconds(self.every) >= milliseconds(self.within):
            fail("forgetting.every", f"{self.every} is not shorter than within, {self.within}: requests would be late")
        for name in self.fields:
            if name not in types:
                fail("forgetting.fields", f"{name!r} is no field of the events: there are {', '.join(types)}")
