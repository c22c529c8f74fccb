"""Which versions' artifacts stay in the store."""

from __future__ import annotations

from dataclasses import dataclass

from tidemill.declare.checks import Duration, Fail, check_fields
from tidemill.durations import milliseconds


@dataclass(frozen=True)
class Retention:
    """Which versions' artifacts stay in the store; the learner deletes the others, which `models rebuild` makes again.

    A version is as old as the newest of its model is younger. Whatever is declared, these stay: the newest 20 of each
    model, those that decisions name (promoted, pinned), and with a gate those of its last rounds.

    Parameters
    ----------
    all
        Every version up to so old.
    hourly
        The last one of each hour, up to so old.
    daily
        The last one of each day (UTC), up to so old.
    """

    all: Duration = "1h"
    hourly: Duration = "2d"
    daily: Duration = "30d"

    def check(self, fail: Fail) -> None:
        """Check the fields, and their order."""
        check_fields(self, "retention", fail)
        for shorter, longer in (("all", "hourly"), ("hourly", "daily")):
            short, long = getattr(self, shorter), getattr(self, longer)
            if milliseconds(short) > milliseconds(long):
                fail(f"retention.{longer}", f"{long!r} where at least {shorter}, {short!r}, was expected")
