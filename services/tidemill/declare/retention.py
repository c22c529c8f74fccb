"""Which versions' artifacts stay in the store, and for how long records are kept."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from tidemill.declare.checks import Duration, Fail, check_fields
from tidemill.durations import milliseconds

#: Those that the joiner's state is made of.
JOINED = ("labels.valid", "prediction-log")
#: Topics whose records are kept for a time; of all others everything is kept, or the last record of each key.
KeptTopic = Literal[
    "events",
    "labels",
    "events.valid",
    "labels.valid",
    "dlq",
    "warnings",
    "updates",
    "features",
    "predictions",
    "prediction-log",
    "expired",
    "commands",
    "windows",
    "alerts",
    "access",
]


@dataclass(frozen=True)
class Retention:
    """Which versions' artifacts stay in the store, and for how long records are kept.

    The learner deletes the artifacts of other versions, which `models rebuild` makes again.

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
    topics
        For how long topics keep their records, instead of the usual times. Examples and decisions are always kept for
        ever: models are folds over all examples.
    archive
        For how long the archive keeps rows after their event; None: for ever.
    """

    all: Duration = "1h"
    hourly: Duration = "2d"
    daily: Duration = "30d"
    topics: Annotated[Mapping[KeptTopic, Duration], Field(examples=[{"events": "3d"}])] = field(default_factory=dict)
    archive: Duration | None = None

    def check(self, joined_ms: int, foreign: Collection[str], fail: Fail) -> None:
        """Check the fields, and their order.

        `joined_ms`: how far back the joiner must be able to read, in ms; `foreign`: topics that are not ours to change.
        """
        check_fields(self, "retention", fail)
        for name, text in self.topics.items():
            if name in JOINED and milliseconds(text) < joined_ms:
                needed = joined_ms // 60_000
                fail(
                    "retention.topics", f"{name}: {text} is shorter than what the joiner's state is made of, {needed}m"
                )
            if name in foreign:
                fail("retention.topics", f"{name}: it was there before the pipeline: its owner decides")
        for shorter, longer in (("all", "hourly"), ("hourly", "daily")):
            short, long = getattr(self, shorter), getattr(self, longer)
            if milliseconds(short) > milliseconds(long):
                fail(f"retention.{longer}", f"{long!r} where at least {shorter}, {short!r}, was expected")
