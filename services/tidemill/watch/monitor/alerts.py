"""Alerts: which figures are too much, and when that opens, keeps open and resolves an alert.

A figure is too much when it is beyond its limit (where it has one) and beyond what was usual by half of the usual range again.
It takes several windows in a row to open an alert, and as many quiet ones to resolve it, so that nothing flaps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from tidemill.declare.monitor import BY_VIEW, Monitor
from tidemill.watch.monitor.figures import Figures, Key
from tidemill.watch.monitor.performance import Judge

MARGIN = 0.5
"""How far beyond the usual range, in ranges, is too far."""
SEGMENT_MARGIN = 1.0
"""The same for one segment of many: each has fewer rows, and by chance one of them is always the worst."""
VIEW_MARGIN = 1.5
"""The same for a view's feature: a window has the same few values of it many times, and moves further by chance.

With half a range one of 8 streams drawn at random from January had such an alert (1.4 ranges, two windows in a row).
"""
LEAST_RANGE = 0.25
"""The least width of a usual range, as a share of its larger end: what never varied is not held to its last digit."""
LEAST_USUAL = 3
"""Windows of the reference that it takes to say what is usual."""


class Kind(NamedTuple):
    """One kind of alert: the figures that raise it, and what to look at then."""

    name: str
    figures: tuple[str, ...]
    says: str
    look_at: str


SILENT = Key("silent_seconds")
"""A figure of a source, not of a window: without records no window closes."""

KINDS = (
    Kind("drift", ("psi", "ks"), "the distribution of {what} has moved", "the feature's quantiles over time, and its source"),
    Kind("missing", ("missing",), "{what} is missing more often than usual", "the producer, and the lookup it comes from"),
    Kind("unseen", ("unseen",), "{what} has categories that training did not have", "the newest categories of the feature"),
    Kind("prediction_drift", ("score_psi",), "the scores of {what} have moved", "drift of features, and the last versions"),
    Kind("label_drift", ("label_psi", "label_mean"), "the labels have moved", "how labels are made; performance by segment"),
    Kind("performance", (), "{what} does worse than usual", "drift of features, the last versions, performance by segment"),
    Kind("calibration", ("calibration_error",), "the scores of {what} are not as likely as they say", "label drift, versions"),
    Kind("rejected", ("rejected",), "more is rejected than usual: {what}", "the dead letters of this reason"),
    Kind("warned", ("warned",), "more is warned of than usual: {what}", "the warnings of this rule, with an id each"),
    Kind("freshness", ("freshness_p99",), "the features of {what} are older than their objective",
         "the lag of materializer and featurizer, and the producers: whether events of these entities come at all"),
    Kind("stale", ("stale",), "the features of {what} could not be read", "the online store, and the materializer that fills it"),
    Kind("delay", ("delay_p99",), "predictions come late", "lag and step time of the services"),
    Kind("silence", (SILENT.name,), "nothing comes any more: {what}", "producers, and the services before this topic"),
    Kind("label_coverage", ("label_coverage",), "labels stay away", "the producer of labels; what has expired"),
)  # fmt: skip
COMPARED = frozenset({"psi", "ks", "score_psi", "label_psi", "calibration_error"})
"""Figures that say something only beside what is usual; others have a limit that holds from the first window on."""
ABSOLUTE = BY_VIEW
"""Figures whose limit is all that counts: an objective holds, however old or stale was usual."""
FALLING = frozenset({"label_coverage"})
"""Figures of which too little is wrong."""
BOTH = frozenset({"label_mean"})
"""Figures of which too much and too little are wrong."""


BY_RULE = frozenset({"rejected", "warned"})
"""Figures, and kinds of alert, that are by rule."""
REJECTED = Key("rejected_records")
"""A figure that every window of predictions has."""


class Breach(NamedTuple):
    """A figure that is too much."""

    key: Key
    value: float
    limit: float


@dataclass
class Usual:
    """The range in which each figure was in the windows of the reference."""

    ranges: Mapping[Key, tuple[float, float]] = field(default_factory=dict)

    @staticmethod
    def of(windows: Iterable[Figures]) -> Usual:
        """Return the ranges over these windows; a figure that too few of them have has none."""
        values: dict[Key, list[float]] = {}
        for figures in windows:
            for key, value in figures.items():
                values.setdefault(key, []).append(value)
        return Usual({key: (min(v), max(v)) for key, v in values.items() if len(v) >= LEAST_USUAL})

    def reach(self, key: Key, margin: float) -> tuple[float, float] | None:
        """Return what is as far as a figure may go, down and up; None where nobody knows what is usual.

        `margin`: how far beyond the usual range, in ranges.
        """
        found = self.ranges.get(key)
        if found is None:
            return None
        low, high = found
        width = margin * max(high - low, LEAST_RANGE * max(abs(low), abs(high)))
        return low - width, high + width


class Rules:
    """What of a window's figures is too much."""

    def __init__(self, declared: Monitor, judge: Judge) -> None:
        self.declared, self.judge = declared, judge
        self.usual = Usual()
        self._kinds = {figure: kind for kind in KINDS for figure in kind.figures}
        performance = next(kind for kind in KINDS if kind.name == "performance")
        self._kinds |= dict.fromkeys(judge.bigger_is_better, performance)
        views = judge.pipeline.views
        # A plane that has not landed for half a day has no last delay, and nothing is wrong with that.
        self._of_views = {feature for view in views for feature in view.features}
        self._objectives = {view.label: view.objective for view in views if view.objective is not None}

    def kind(self, key: Key) -> Kind | None:
        """Return the kind of alert that a figure may raise; None for one that is only told."""
        if key.version >= 0 or key.model == "baseline":
            return None
        return self._kinds.get(key.name)

    def reach(self, key: Key) -> tuple[float, float] | None:
        """Return what is as far as a figure may go, down and up; None where nobody knows what is usual."""
        margin = SEGMENT_MARGIN if key.segment else VIEW_MARGIN if key.feature in self._of_views else MARGIN
        return self.usual.reach(key, margin)

    def _limit(self, key: Key) -> float | None:
        if key.name == "freshness_p99":
            return self._objectives.get(key.feature)
        return self.declared.limit(key.name, key.feature)

    def breach(self, key: Key, value: float) -> Breach | None:
        """Return the figure as a breach where it is too much."""
        if self.declared.silent(key.name, key.feature):
            return None
        limit = self._limit(key)
        reach = None if key.name in ABSOLUTE else self.reach(key)
        better = self.judge.bigger_is_better.get(key.name)
        falls = better is True or key.name in FALLING
        is_compared = key.name in COMPARED or (key.name == "missing" and key.feature in self._of_views)
        if reach is None and (limit is None or is_compared):
            return None
        if key.name in BOTH:
            if reach is None:
                return None
            low, high = reach
            return Breach(key, value, low if value < low else high) if not low <= value <= high else None
        if falls:
            edge = min(x for x in (limit, reach[0] if reach else None) if x is not None)
            return Breach(key, value, edge) if value < edge else None
        edge = max(x for x in (limit, reach[1] if reach else None) if x is not None)
        return Breach(key, value, edge) if value > edge else None


class Subject(NamedTuple):
    """What an alert is about."""

    kind: str
    model: str = ""
    segment: str = ""
    feature: str = ""

    def __str__(self) -> str:
        return ":".join(part for part in self if part)


@dataclass
class Alert:
    """One alert, as it stands after a window."""

    subject: Subject
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
class _Course:
    breached: int = 0
    quiet: int = 0
    since: int = 0
    open: bool = False
    opened_at: int = 0
    last: Alert | None = None


class Alerts:
    """The state of every alert, moved on by each closed window.

    Parameters
    ----------
    windows
        How many windows in a row open or resolve an alert.
    """

    def __init__(self, rules: Rules, windows: int) -> None:
        self.rules, self.windows = rules, windows
        self._courses: dict[Subject, _Course] = {}

    def restore(self, alert: Alert) -> None:
        """Take over an alert as an earlier process left it; of several the last counts."""
        course = self._courses.setdefault(alert.subject, _Course())
        course.open, course.last = alert.state != "resolved", alert
        course.since, course.opened_at = alert.since, alert.opened_at
        course.breached, course.quiet = (self.windows if course.open else 0), 0

    @property
    def open(self) -> list[Alert]:
        """Alerts that are open now."""
        return [course.last for course in self._courses.values() if course.open and course.last]

    def step(self, figures: Figures, start: int, end: int, now: int) -> list[Alert]:
        """Take one closed window; returns the alerts that were opened, go on or were resolved by it.

        `start` and `end` in ms of event time, `now` in ms of the wall clock. What a window has no figure of stays as it is.
        """
        seen: dict[Subject, dict[Key, float]] = {}
        breaches: dict[Subject, list[Breach]] = {}
        for key, value in figures.items():
            kind = self.rules.kind(key)
            if kind is None:
                continue
            subject = Subject(kind.name, key.model, key.segment, key.feature)
            seen.setdefault(subject, {})[key] = value
            breach = self.rules.breach(key, value)
            if breach:
                breaches.setdefault(subject, []).append(breach)
        if REJECTED in figures:  # a reason that does not appear any more has no figure of its own
            for subject in self._courses:
                if subject.kind in BY_RULE and subject not in seen:
                    seen[subject] = {Key(subject.kind, segment=subject.segment, feature=subject.feature): 0.0}
        told = []
        for subject, values in seen.items():
            alert = self._move(subject, values, breaches.get(subject, []), start, end, now, self.windows)
            if alert:
                told.append(alert)
        return told

    def look(self, key: Key, value: float, now: int) -> Alert | None:
        """Take a figure that belongs to no window; returns an alert when that opens or resolves it, which takes one look.

        `now` in ms of the wall clock; `value` in s, up to now.
        """
        kind = self.rules.kind(key)
        assert kind is not None, key  # noqa: S101  the caller's mistake
        subject = Subject(kind.name, key.model, key.segment, key.feature)
        breach, course = self.rules.breach(key, value), self._courses.get(subject)
        if (breach is not None) == (course is not None and course.open):
            return None
        start = now - int(value * 1000)
        return self._move(subject, {key: value}, [breach] if breach else [], start, now, now, windows=1)

    def _move(
        self, subject: Subject, values: Mapping[Key, float], breaches: list[Breach], start: int, end: int, now: int,
        windows: int,
    ) -> Alert | None:  # fmt: skip
        course = self._courses.get(subject)
        if course is None:
            if not breaches:
                return None
            course = self._courses[subject] = _Course()
        if breaches:
            if course.breached == 0 and not course.open:
                course.since = start
            course.breached, course.quiet = course.breached + 1, 0
        else:
            course.quiet, course.breached = course.quiet + 1, 0
        if breaches and (course.open or course.breached >= windows):
            state = "continuing" if course.open else "opened"
            if not course.open:
                course.open, course.opened_at = True, now
            course.last = self._alert(subject, state, course, values, breaches[0], start, end)
            return course.last
        if not course.open:
            if not breaches:
                del self._courses[subject]
            return None
        assert course.last is not None  # noqa: S101  it is open
        state = "resolved" if course.quiet >= windows else "continuing"
        course.last = self._alert(subject, state, course, values, course.last.breach, start, end)
        if state == "resolved":
            del self._courses[subject]
        return course.last

    def _alert(
        self,
        subject: Subject,
        state: str,
        course: _Course,
        values: Mapping[Key, float],
        breach: Breach,
        start: int,
        end: int,
    ) -> Alert:
        kind = next(kind for kind in KINDS if kind.name == subject.kind)
        what = ", ".join(part for part in (subject.model, subject.feature, subject.segment) if part)
        value = values.get(breach.key, breach.value)
        says, figure = kind.says.format(what=what), breach.key.name
        if state == "resolved":
            message = f"{says}: over; {figure} {_short(value)}"
        elif course.quiet:
            message = f"{says}: {figure} {_short(value)} for the moment, where {_short(breach.limit)} is the limit"
        else:
            message = f"{says}: {figure} {_short(value)}, {'above' if value > breach.limit else 'below'} {_short(breach.limit)}"
        evidence = {key.name: v for key, v in values.items()}
        usual = self.rules.usual.ranges.get(breach.key)
        if usual:
            evidence |= {f"{breach.key.name}_usual_least": usual[0], f"{breach.key.name}_usual_most": usual[1]}
        return Alert(
            subject, state, breach._replace(value=value), course.since, start, end, message, kind.look_at, evidence,
            course.opened_at,
        )  # fmt: skip


def _short(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:.0f}"
