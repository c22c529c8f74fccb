"""How much may be refused of a stream before the validator stops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from tidemill.declare.checks import Fail, check_fields


@dataclass(frozen=True)
class Fuse:
    """How much may be refused of a stream before the validator stops.

    Parameters
    ----------
    run
        This many records in a row; 0 for no such limit.
    share
        This share of `of` records, counted `of` by `of`; 0 for no such limit.
    """

    run: Annotated[int, Field(ge=0)] = 500
    share: Annotated[float, Field(ge=0, lt=1)] = 0.5
    of: Annotated[int, Field(ge=1)] = 2000

    def check(self, fail: Fail) -> None:
        """Check the fields."""
        check_fields(self, "fuse", fail)
