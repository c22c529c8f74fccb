"""What a pipeline declares about being watched: windows, what is usual, and how much of something is too much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

LIMITS: Mapping[str, float] = MappingProxyType(
    {
        "psi": 0.25,
        "ks": 0.2,
        "missing": 0.05,
        "unseen": 0.02,
        "score_psi": 0.25,
        "label_psi": 0.25,
        "calibration_error": 0.1,
        "rejected": 0.05,
        "warned": 0.05,
        "stale": 0.01,
        "delay_p99": 60.0,
        "label_coverage": 0.9,
        "silent_seconds": 3600.0,
    }
)
"""Limits of figures, for which a pipeline may declare others: shares from 0 to 1, seconds, or the index itself.

`silent_seconds` is the one that is measured on the wall clock: how long no prediction, or no example, has come.
"""
ALERTS = (
    "drift", "missing", "unseen", "prediction_drift", "label_drift", "performance", "calibration", "rejected", "warned",
    "freshness", "stale", "delay", "silence", "label_coverage",
)  # fmt: skip
"""Kinds of alert; what raises each is in monitor/alerts.py."""
BY_VIEW = frozenset({"freshness_p99", "stale"})
"""Figures that can alert and are of a view, which stands where others have a feature. `freshness_p99` has no limit here: it
is held to the view's own objective, its `fresh`, and that of a view without one alerts nobody."""


@dataclass(frozen=True)
class Monitor:
    """How a pipeline is watched.

    An alert is opened when a figure is beyond its limit, and beyond what was usual by half of the usual range again, in
    `windows` windows one after the other; it is resolved when it was not for as many. What is usual is what the windows of
    the reference, the first `reference` of the examples that the champion learned from, had themselves: weekdays, weather
    and rush hours differ from the whole without anything having drifted.

    Parameters
    ----------
    window, reference
        Length of a window, and of the reference, in event time.
    lateness
        How long after its end, in event time, a window waits for records that come late.
    segments
        Categories of the vector by each of whose values performance is told apart.
    limits
        Limits by figure, or by `figure:feature` (`figure:view` for those of a view), instead of the usual ones; None: no
        alert.
    least
        A window (or one segment of it) with fewer rows than this is told, and alerts nobody.
    most
        Rows of one window that figures are computed from; of more, a uniform sample is.
    windows
        How many windows in a row open or resolve an alert.
    """

    window: str = "1h"
    reference: str = "7d"
    lateness: str = "10m"
    segments: Sequence[str] = ()
    limits: Mapping[str, float | None] = field(default_factory=dict)
    least: int = 100
    most: int = 20_000
    windows: int = 2

    def limit(self, figure: str, feature: str = "") -> float | None:
        """Return the limit of a figure; None where there is none."""
        for name in (f"{figure}:{feature}", figure):
            if name in self.limits:
                return self.limits[name]
        return LIMITS.get(figure)

    def silent(self, figure: str, feature: str = "") -> bool:
        """Whether a figure was declared never to alert."""
        declared = self.limits.get(f"{figure}:{feature}", self.limits.get(figure, 0.0))
        return declared is None
