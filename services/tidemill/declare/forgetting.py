"""That single entities can be forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from tidemill.declare.checks import Duration, Fail, check_fields


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
    """

    within: Duration = "30d"
    fields: Annotated[Sequence[str], Field(examples=[["user_id"]])] = ()

    def check(self, types: Mapping[str, Any], fail: Fail) -> None:
        """Check the fields, and that events have those that are named."""
        check_fields(self, "forgetting", fail)
        for name in self.fields:
            if name not in types:
                fail("forgetting.fields", f"{name!r} is no field of the events: there are {', '.join(types)}")
