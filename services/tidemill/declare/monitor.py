"""What a pipeline declares about being watched: windows, what is usual, and how much of something is too much."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Literal, get_args

from pydantic import Field

from tidemill.declare.checks import Duration, Fail, Segments, check_fields, check_segments
from tidemill.durations import milliseconds

#: Limits of figures, for which a pipeline may declare others: shares from 0 to 1, seconds, or the index itself.
#: Measured on the wall clock are `silent_seconds`: how long no prediction, or no example, has come; `refused_records`:
#: signed records of a topic that were refused in the last hour; `unserved_seconds`: how long after a version was
#: published a model still answers with an older one; `forgetting_share`: how much of its time a request to forget has
#: used; `forgetting_late_seconds`: for how long it has had none left.
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
        "refused_records": 0.0,
        "unserved_seconds": 600.0,
        "forgetting_share": 0.8,
        "forgetting_late_seconds": 0.0,
    }
)
#: Kinds of alert; what raises each is in watch/monitor/alerts.py.
Alert = Literal[
    "drift",
    "missing",
    "unseen",
    "prediction_drift",
    "label_drift",
    "performance",
    "calibration",
    "rejected",
    "warned",
    "freshness",
    "stale",
    "delay",
    "silence",
    "refused",
    "unserved",
    "forgetting",
    "forgetting_late",
    "label_coverage",
]
ALERTS: tuple[str, ...] = get_args(Alert)
#: Figures of a view that can alert; their limits name a view where others name a feature. `freshness_p99` has no limit
#: in `LIMITS`: its limit is the view's own `fresh`, and a view without one raises no alert.
BY_VIEW = frozenset({"freshness_p99", "stale"})


@dataclass(frozen=True)
class Monitor:
    """How a pipeline is watched.

    An alert is opened when a figure is beyond its limit, and beyond the usual range by half of that range, in `windows`
    windows in a row; it is resolved after as many windows without that. The usual range is that of the windows of the
    reference, the first `reference` of the examples that the champion learned from: weekdays, weather and rush hours
    differ from the average although nothing has drifted.

    Parameters
    ----------
    window, reference
        Length of a window, and of the reference, in event time.
    lateness
        How long after its end, in event time, a window waits for late records.
    segments
        Categories of the vector: performance is measured for each of their values.
    limits
        Limits by figure, or by `figure:feature` (`figure:view` for those of a view), instead of the usual ones; None:
        no alert.
    least
        A window (or one segment of it) with fewer rows than this is reported, and raises no alert.
    most
        Rows of one window that figures are computed from; of a longer window, a uniform sample is used.
    windows
        How many windows in a row open or resolve an alert.
    """

    window: Duration = "1h"
    reference: Duration = "7d"
    lateness: Duration = "10m"
    segments: Segments = ()
    limits: Annotated[Mapping[str, float | None], Field(examples=[{"psi": 0.3}])] = field(default_factory=dict)
    least: Annotated[int, Field(ge=2)] = 100
    most: Annotated[int, Field(ge=100)] = 20_000
    windows: Annotated[int, Field(ge=1)] = 2

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

    def check(self, vector: Mapping[str, str], views: Iterable[str], metrics: Iterable[str], fail: Fail) -> None:
        """Check the fields, and that the pipeline has what they name."""
        check_fields(self, "monitor", fail)
        if milliseconds(self.reference) < 3 * milliseconds(self.window):
            fail(
                "monitor.reference",
                f"{self.reference} is shorter than three windows of {self.window}: too few to know what is usual",
            )
        check_segments("monitor.segments", self.segments, vector, fail)
        figures = {*LIMITS, *BY_VIEW, "label_mean", *metrics}
        for name, limit in self.limits.items():
            problem = _problem(name, limit, figures, vector, views)
            if problem:
                fail("monitor.limits", problem)


def _problem(name: str, limit: float | None, figures: set[str], vector: Mapping[str, str], views: Iterable[str]) -> str:
    """Return what is wrong with one limit; nothing where it is fine."""
    figure, _, feature = name.partition(":")
    if figure not in figures:
        return f"{name!r} is no figure that can alert: expected one of {', '.join(sorted(figures))}"
    if feature and figure in BY_VIEW and feature not in views:
        return f"{name!r}: {feature!r} is no view: there are {', '.join(views) or 'none'}"
    if feature and figure not in BY_VIEW and feature not in vector:
        return f"{name!r}: {feature!r} is no feature: the vector has {', '.join(vector)}"
    if figure == "label_mean" and limit is not None:
        return "'label_mean' is held to what is usual, not to a limit: give None for no alert"
    if figure == "freshness_p99" and limit is not None:
        return f"{name!r} is held to its view's fresh=..., declare that; give None for no alert"
    if limit != limit:
        return f"{name!r} is {limit!r} where a number, or None for no alert, was expected"
    return ""
