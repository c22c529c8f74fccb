"""How much of what a model learns may come from one source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from tidemill.declare.checks import Fail, check_fields


@dataclass(frozen=True)
class Protect:
    """How much of what is learned may come from one source.

    Parameters
    ----------
    source
        A category of the vector, or the events' key.
    share
        An example is not learned where its source already has this share of the last `of` examples that were learned.
    of
        How many sources are remembered, in memory and in every snapshot. Of the very first, one source may have share *
        of.
    """

    source: str
    share: Annotated[float, Field(gt=0, lt=1)] = 0.3
    of: Annotated[int, Field(ge=1, le=100_000)] = 1000

    def check(self, vector: Mapping[str, str], entity: str, fail: Fail) -> None:
        """Check the fields, and that the source is one that every example has; `entity`: the events' key, or empty."""
        check_fields(self, "protect", fail)
        sources = list(
            dict.fromkeys([*(name for name, kind in vector.items() if kind == "category"), *([entity] * bool(entity))])
        )
        if self.source not in sources:
            fail(
                "protect.source",
                f"{self.source!r} is neither a category of the vector nor the events' key: "
                f"there are {', '.join(sources) or 'none'}",
            )
