"""Alerts: when a figure is in breach, and when breaches open and resolve an alert.

A figure is in breach when it is beyond its limit (if it has one) and beyond its usual range by half of that range. An
alert opens after several windows in a row in breach, and is resolved after as many quiet ones, so that it does not
flap.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from tidemill.declare.monitor import BY_VIEW, Monitor
from tidemill.watch.monitor.figures import FigureKey, Figures
from tidemill.watch.monitor.performance import WindowMetrics

#: How far beyond the usual range a figure may be, in widths of that range.
MARGIN_RANGES = 0.5
#: The same for a segment. Each has fewer rows than the window, and of many segments one is the worst by chance.
SEGMENT_MARGIN_RANGES = 1.0
#: The same for a view's feature. A window has the same few values of it many times, so it moves further by chance:
#: with half a range, one of 8 streams drawn at random from January had such an alert (1.4 ranges, two windows in a
#: row).
VIEW_MARGIN_RANGES = 1.5
#: Least width of a usual range, as a share of its larger end. A figure that never varied is not held to its last digit.
MIN_RANGE_SHARE = 0.25
#: Windows of the reference that a usual range takes.
MIN_USUAL_WINDOWS = 3


class AlertKind(NamedTuple):
    """One kind of alert: the figures that raise it, its message, and what to look at then."""

    name: str
    figures: tuple[str, ...]
    message: str
    look_at: str


#: A figure of a source, not of a window: without records no window closes.
SILENT = FigureKey("silent_seconds")
#: Signed records of a topic that were refused lately, and how long a model has answered with an older version than the
#: newest that was published. No window has them either.
REFUSED = FigureKey("refused_records")
UNSERVED = FigureKey("unserved_seconds")
#: How much of its time a request to forget has used, and for how long it has had none left.
FORGETTING = FigureKey("forgetting_share")
FORGETTING_LATE = FigureKey("forgetting_late_seconds")

KINDS = (
    AlertKind(
        "drift",
        ("psi", "ks"),
        "the distribution of {what} has moved",
        "the feature's quantiles over time, and its source",
    ),
    AlertKind(
        "missing", ("missing",), "{what} is missing more often than usual", "the producer, and the lookup it comes from"
    ),
    AlertKind(
        "unseen",
        ("unseen",),
        "{what} has categories that are not in the training data",
        "the newest categories of the feature",
    ),
    AlertKind(
        "prediction_drift", ("score_psi",), "the scores of {what} have moved", "feature drift, and the latest versions"
    ),
    AlertKind(
        "label_drift",
        ("label_psi", "label_mean"),
        "the labels have moved",
        "how labels are made; performance by segment",
    ),
    AlertKind(
        "performance",
        (),
        "{what} performs worse than usual",
        "feature drift, the latest versions, performance by segment",
    ),
    AlertKind(
        "calibration",
        ("calibration_error",),
        "the scores of {what} are badly calibrated",
        "label drift, the latest versions",
    ),
    AlertKind(
        "rejected", ("rejected",), "more records are rejected than usual: {what}", "the dead letters with this reason"
    ),
    AlertKind(
        "warned",
        ("warned",),
        "more records have warnings than usual: {what}",
        "the warnings of this rule; each names an event",
    ),
    AlertKind(
        "freshness",
        ("freshness_p99",),
        "the features of {what} are older than their objective",
        "the lag of materializer and featurizer; whether producers still send events of these entities",
    ),
    AlertKind(
        "stale",
        ("stale",),
        "the features of {what} could not be read",
        "the online store, and the materializer that writes it",
    ),
    AlertKind("delay", ("delay_p99",), "predictions are late", "lag and batch time of the services"),
    AlertKind(
        "silence", (SILENT.name,), "no more records: {what}", "the producers, and the services that write this topic"
    ),
    AlertKind(
        "refused",
        (REFUSED.name,),
        "signed records are refused: {what}",
        "`signed record refused` in the logs, which names offset and cause; then who can write to the topic",
    ),
    AlertKind(
        "unserved",
        (UNSERVED.name,),
        "{what} answers with an older version than the newest",
        "the scorers' log and /readyz: the artifact store, the key, River",
    ),
    AlertKind(
        "forgetting",
        (FORGETTING.name,),
        "request {what} to forget has little time left",
        "`tidemill forget PIPELINE`, which lists what is open; then --due, or the command that broke off",
    ),
    AlertKind(
        "forgetting_late",
        (FORGETTING_LATE.name,),
        "request {what} to forget is late",
        "`tidemill forget PIPELINE`, which lists what is open; then --due, or the command that broke off",
    ),
    AlertKind(
        "label_coverage", ("label_coverage",), "labels are missing", "the producer of labels; the expired predictions"
    ),
)
#: Figures that need a usual range to be judged; the limits of others hold from the first window on.
RELATIVE = frozenset({"psi", "ks", "score_psi", "label_psi", "calibration_error"})
#: Figures judged by their limit alone, whatever is usual: an objective holds.
ABSOLUTE = BY_VIEW
#: Figures in breach below their limit.
TOO_LOW = frozenset({"label_coverage"})
#: Figures in breach on both sides of their usual range.
TOO_LOW_OR_HIGH = frozenset({"label_mean"})
#: Figures, and kinds of alert, that are by rule.
BY_RULE = frozenset({"rejected", "warned"})
#: A figure that every window of predictions has.
REJECTED = FigureKey("rejected_records")


class Breach(NamedTuple):
    """A figure beyond its limit. `limit`: the value from which on it is in breach."""

    key: FigureKey
    value: float
    limit: float


@dataclass
class UsualRanges:
    """The range of each figure in the windows of the reference."""

    ranges: Mapping[FigureKey, tuple[float, float]] = field(default_factory=dict)

    @staticmethod
    def of(windows: Iterable[Figures]) -> UsualRanges:
        """Return the ranges over these windows; a figure that too few of them have gets none."""
        values: dict[FigureKey, list[float]] = {}
        for figures in windows:
            for key, value in figures.items():
                values.setdefault(key, []).append(value)
        return UsualRanges({key: (min(v), max(v)) for key, v in values.items() if len(v) >= MIN_USUAL_WINDOWS})

    def bounds(self, key: FigureKey, margin: float) -> tuple[float, float] | None:
        """Return the lower and upper bound of a figure; None without a usual range.

        `margin`: how far beyond the usual range they are, in widths of it.
        """
        usual = self.ranges.get(key)
        if usual is None:
            return None
        low, high = usual
        width = margin * max(high - low, MIN_RANGE_SHARE * max(abs(low), abs(high)))
        return low - width, high + width


class Thresholds:
    """Which of a window's figures are in breach."""

    def __init__(self, declared: Monitor, window_metrics: WindowMetrics) -> None:
        self.declared, self.window_metrics = declared, window_metrics
        self.usual = UsualRanges()
        self._kinds = {figure: kind for kind in KINDS for figure in kind.figures}
        performance = next(kind for kind in KINDS if kind.name == "performance")
        self._kinds |= dict.fromkeys(window_metrics.bigger_is_better, performance)
        views = window_metrics.pipeline.views
        # A view's feature may be missing for good reason: a plane that has not landed for half a day has no last delay.
        self._view_features = {feature for view in views for feature in view.features}
        self._objectives = {view.label: view.objective for view in views if view.objective is not None}

    def kind(self, key: FigureKey) -> AlertKind | None:
        """Return the kind of alert that a figure may raise; None for one that is only shown."""
        if key.version >= 0 or key.model == "baseline":
            return None
        return self._kinds.get(key.name)

    def bounds(self, key: FigureKey) -> tuple[float, float] | None:
        """Return the lower and upper bound of a figure; None without a usual range."""
        if key.segment:
            return self.usual.bounds(key, SEGMENT_MARGIN_RANGES)
        is_of_view = key.feature in self._view_features
        return self.usual.bounds(key, VIEW_MARGIN_RANGES if is_of_view else MARGIN_RANGES)

    def _limit(self, key: FigureKey) -> float | None:
        if key.name == "freshness_p99":
            return self._objectives.get(key.feature)
        return self.declared.limit(key.name, key.feature)

    def breach(self, key: FigureKey, value: float) -> Breach | None:
        """Return the breach that a figure is; None if it is none."""
        if self.declared.silent(key.name, key.feature):
            return None
        limit = self._limit(key)
        bounds = None if key.name in ABSOLUTE else self.bounds(key)
        better = self.window_metrics.bigger_is_better.get(key.name)
        falls = better is True or key.name in TOO_LOW
        is_relative = key.name in RELATIVE or (key.name == "missing" and key.feature in self._view_features)
        if bounds is None and (limit is None or is_relative):
            return None
        if key.name in TOO_LOW_OR_HIGH:
            if bounds is None:
                return None
            low, high = bounds
            return Breach(key, value, low if value < low else high) if not low <= value <= high else None
        if falls:
            edge = min(x for x in (limit, bounds[0] if bounds else None) if x is not None)
            return Breach(key, value, edge) if value < edge else None
        edge = max(x for x in (limit, bounds[1] if bounds else None) if x is not None)
        return Breach(key, value, edge) if value > edge else None


class AlertKey(NamedTuple):
    """What an alert is about."""

    kind: str
    model: str = ""
    segment: str = ""
    feature: str = ""

    def __str__(self) -> str:
        return ":".join(part for part in self if part)


@dataclass
class Alert:
    """One alert, as it is after a window."""

    key: AlertKey
    state: str
    breach: Breach
    since: int
    start: int
    end: int
    message: str
    look_at: str
    evidence: dict[str, float]
    opened_at: int = 0


@dataclass
class _AlertState:
    breached_windows: int = 0
    quiet_windows: int = 0
    since: int = 0
    open: bool = False
    opened_at: int = 0
    last: Alert | None = None


class Alerts:
    """The state of every alert, updated by each closed window.

    Parameters
    ----------
    windows
        How many windows in a row open or resolve an alert.
    """

    def __init__(self, thresholds: Thresholds, windows: int) -> None:
        self.thresholds, self.windows = thresholds, windows
        self._states: dict[AlertKey, _AlertState] = {}

    def restore(self, alert: Alert) -> None:
        """Restore an alert that an earlier process wrote; of several records of it the last counts."""
        state = self._states.setdefault(alert.key, _AlertState())
        state.open, state.last = alert.state != "resolved", alert
        state.since, state.opened_at = alert.since, alert.opened_at
        state.breached_windows, state.quiet_windows = (self.windows if state.open else 0), 0

    @property
    def open(self) -> list[Alert]:
        """Alerts that are open now."""
        return [state.last for state in self._states.values() if state.open and state.last]

    def update(self, figures: Figures, start: int, end: int, now: int) -> list[Alert]:
        """Take one closed window; return the alerts that it opened, continued or resolved.

        `start` and `end` in ms of event time, `now` in ms of the wall clock. An alert without a figure in the window
        stays as it is.
        """
        values: dict[AlertKey, dict[FigureKey, float]] = {}
        breaches: dict[AlertKey, list[Breach]] = {}
        for key, value in figures.items():
            kind = self.thresholds.kind(key)
            if kind is None:
                continue
            alert_key = AlertKey(kind.name, key.model, key.segment, key.feature)
            values.setdefault(alert_key, {})[key] = value
            breach = self.thresholds.breach(key, value)
            if breach:
                breaches.setdefault(alert_key, []).append(breach)
        if REJECTED in figures:  # a reason without rejected records has no figure of its own
            for alert_key in self._states:
                if alert_key.kind in BY_RULE and alert_key not in values:
                    figure = FigureKey(alert_key.kind, segment=alert_key.segment, feature=alert_key.feature)
                    values[alert_key] = {figure: 0.0}
        alerts = (
            self._advance(alert_key, own, breaches.get(alert_key, []), start, end, now, self.windows)
            for alert_key, own in values.items()
        )
        return [alert for alert in alerts if alert]

    def check(self, key: FigureKey, value: float, now: int, since: int | None = None) -> Alert | None:
        """Take a figure that belongs to no window; return the alert that it opens or resolves, at once.

        `now` and `since` in ms of the wall clock; without `since`, `value` is in s, up to now.
        """
        kind = self.thresholds.kind(key)
        if kind is None:
            return None  # it is only shown, as those of the baseline
        alert_key = AlertKey(kind.name, key.model, key.segment, key.feature)
        breach, state = self.thresholds.breach(key, value), self._states.get(alert_key)
        if (breach is not None) == (state is not None and state.open):
            return None
        start = now - int(value * 1000) if since is None else since
        return self._advance(alert_key, {key: value}, [breach] if breach else [], start, now, now, windows=1)

    def _advance(
        self,
        key: AlertKey,
        values: Mapping[FigureKey, float],
        breaches: list[Breach],
        start: int,
        end: int,
        now: int,
        windows: int,
    ) -> Alert | None:
        state = self._states.get(key)
        if state is None:
            if not breaches:
                return None
            state = self._states[key] = _AlertState()
        if breaches:
            if state.breached_windows == 0 and not state.open:
                state.since = start
            state.breached_windows, state.quiet_windows = state.breached_windows + 1, 0
        else:
            state.quiet_windows, state.breached_windows = state.quiet_windows + 1, 0
        if breaches and (state.open or state.breached_windows >= windows):
            event = "continuing" if state.open else "opened"
            if not state.open:
                state.open, state.opened_at = True, now
            state.last = self._alert(key, event, state, values, breaches[0], start, end)
            return state.last
        if not state.open:
            if not breaches:
                del self._states[key]
            return None
        assert state.last is not None  # noqa: S101  it is open
        event = "resolved" if state.quiet_windows >= windows else "continuing"
        state.last = self._alert(key, event, state, values, state.last.breach, start, end)
        if event == "resolved":
            del self._states[key]
        return state.last

    def _alert(
        self,
        key: AlertKey,
        event: str,
        state: _AlertState,
        values: Mapping[FigureKey, float],
        breach: Breach,
        start: int,
        end: int,
    ) -> Alert:
        kind = next(kind for kind in KINDS if kind.name == key.kind)
        what = ", ".join(part for part in (key.model, key.feature, key.segment) if part)
        value = values.get(breach.key, breach.value)
        message, figure = kind.message.format(what=what), breach.key.name
        if event == "resolved":
            message += f": resolved; {figure} {_short(value)}"
        elif state.quiet_windows:
            message += f": {figure} is back at {_short(value)}, within the limit {_short(breach.limit)}"
        else:
            message += (
                f": {figure} {_short(value)}, {'above' if value > breach.limit else 'below'} {_short(breach.limit)}"
            )
        evidence = {key.name: v for key, v in values.items()}
        usual = self.thresholds.usual.ranges.get(breach.key)
        if usual:
            evidence |= {f"{figure}_usual_low": usual[0], f"{figure}_usual_high": usual[1]}
        return Alert(
            key=key,
            state=event,
            breach=breach._replace(value=value),
            since=state.since,
            start=start,
            end=end,
            message=message,
            look_at=kind.look_at,
            evidence=evidence,
            opened_at=state.opened_at,
        )


def _short(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:.0f}"
