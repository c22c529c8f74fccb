"""Which of two models is better: on the same questions, by what each answered then, overall and segment by segment.

reads    <pipeline>.examples: what challengers would have answered is in each, so no model is opened or asked again;
         twice where corrections of labels are declared: each label is the last one; <pipeline>.prediction-log, for what
         has no label
memory   a row for each segment: River's metrics, and MAX_RUNS numbers; segments beyond MAX_VALUES are one row; a bit
         for each event
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from tidemill.declare.pipeline import Pipeline
from tidemill.declare.scorecard import Scorecard, metric_names
from tidemill.errors import NotAllowed, SettingsError
from tidemill.models.corrections import read_corrections
from tidemill.models.evidence import LOSSES, MAX_VALUES, Differences, Interval, Terms, comparison_terms, segment_terms
from tidemill.offline.backtest import MAX_SHARE_LEFT_OUT
from tidemill.offline.unlabelled import Unlabelled
from tidemill.stream.api import Broker, Progress, expect
from tidemill.stream.ranges import full_range
from tidemill.wire import topics
from tidemill.wire.records import Example, Records, Score, newness

#: Not a model, but whichever served.
CHAMPION = "champion"

Verdict = Literal["A better", "B better", "no difference shown"]


@dataclass(frozen=True)
class ComparisonRequest:
    """What is compared: two models, the event times [begin, end) in ms, and by which features the segments are."""

    a: str
    b: str
    begin: int | None = None
    end: int | None = None
    segments: Sequence[str] = ()

    def check(self, pipeline: Pipeline) -> None:
        """Raise SettingsError where this pipeline can't answer the request."""
        if self.a == self.b:
            raise SettingsError(f"A and B are both {self.a!r}: name two models, of {', '.join(pipeline.model_names)}")
        for name in (self.a, self.b):
            if "@" in name:
                raise SettingsError(
                    f"{name!r} names a version: expected a model, whose versions answered one after another: "
                    f"{CHAMPION}, {', '.join(pipeline.model_names)}"
                )
        if self.begin is not None and self.end is not None and self.begin >= self.end:
            raise SettingsError("--from is not before --to: no time is between them; --to is not included")
        for name in self.segments:
            if pipeline.vector.get(name) not in ("category", "flag"):
                categories = ", ".join(of for of, kind in pipeline.vector.items() if kind != "number") or "none"
                raise SettingsError(f"--segment {name!r} is no category of the vector: it has {categories}")

    def covers(self, event_time: int) -> bool:
        """Whether an event of this time is meant."""
        return (self.begin is None or self.begin <= event_time) and (self.end is None or event_time < self.end)


class Segment(NamedTuple):
    """The questions of a row: all (no field), one value of a field, those without a value, or the others together."""

    field: str = ""
    value: str | None = None
    others: bool = False

    def __str__(self) -> str:
        if not self.field:
            return "all"
        return f"{self.field} {'(others)' if self.others else '(missing)' if self.value is None else self.value}"


@dataclass(frozen=True)
class SegmentRow:
    """One segment. `difference`: of the mean loss, A less B: below 0, A is better. `loss`: A's own mean loss."""

    segment: Segment
    questions: int
    a: Mapping[str, float]
    b: Mapping[str, float]
    difference: Interval | None
    loss: Interval | None = None

    @property
    def verdict(self) -> Verdict:
        """Which model is better: the one on whose side all of the interval lies, if it lies on one side."""
        if self.difference and self.difference.high < 0:
            return "A better"
        if self.difference and self.difference.low > 0:
            return "B better"
        return "no difference shown"

    def as_dict(self) -> dict[str, Any]:
        """Return the row for programs."""
        return self.segment._asdict() | {
            "questions": self.questions,
            "a": self.a,
            "b": self.b,
            "difference": self.difference._asdict() if self.difference else None,
            "verdict": self.verdict,
        }


@dataclass
class ComparisonReport:
    """A comparison's result.

    `questions`: those that both answered; `same`: of them, those where A and B were one model; `corrected`: those whose
    label is another than the first. `predictions`: those that the prediction log still has; `unlabelled`: of them,
    those without a label: it did not come within `label_timeout`, or has not come yet; `uncounted`: why that is not
    known. `left_out`: which metrics have no number, and why. `untaught`: by model, the questions that its version 0
    answered, and a later one of the other model. `rate`: the probability that a row's interval is ever
    wrong. The row of all questions has an interval from `min_questions` on, a segment's row from
    `min_segment_questions` on.
    """

    pipeline: str
    a: str
    b: str
    loss: str
    metrics: Sequence[str]
    rate: float
    min_questions: int
    min_segment_questions: int
    questions: int = 0
    only_a: int = 0
    only_b: int = 0
    neither: int = 0
    same: int = 0
    corrected: int = 0
    skipped: int = 0
    predictions: int = 0
    unlabelled: int = 0
    uncounted: str = ""
    label_timeout: str = ""
    first_event: int = 0
    last_event: int = 0
    versions: dict[str, tuple[int, int]] = field(default_factory=dict)
    lines: Sequence[SegmentRow] = ()
    left_out: Sequence[str] = ()
    untaught: Counter[str] = field(default_factory=Counter)

    @property
    def warnings(self) -> list[str]:
        """What a reader must know before the figures: what they leave out, and the setting to change."""
        texts = [
            f"{name} had learned nothing when it answered {count:,} of the {self.questions:,} questions, and the other "
            f"model had: compare from a later time on, with --from"
            for name, count in self.untaught.items()
            if count > MAX_SHARE_LEFT_OUT * self.questions
        ]
        texts += self.left_out
        if self.unlabelled <= MAX_SHARE_LEFT_OUT * self.predictions:
            return texts
        return [
            *texts,
            f"the figures leave out {self.unlabelled / self.predictions:.0%} of the predictions, which got no label "
            f"within label_timeout={self.label_timeout!r}, or not yet: `tidemill check --events F --labels F` shows "
            f"how late labels come",
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return the report for programs. Times are ms since the epoch; the segment without field and value is all."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return fields | {"lines": [line.as_dict() for line in self.lines], "warnings": self.warnings}


class _Running:
    """A row while the examples are read."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.questions = 0
        self.differences, self.losses = Differences(), Differences()
        self._kind, self._loss = pipeline.kind, LOSSES.get(pipeline.task)
        self._a, self._b = Scorecard(pipeline.metric()), Scorecard(pipeline.metric())
        self._label: Any = None
        self._is_mixed = False

    def add(self, label: Any, a: Score, b: Score) -> None:
        self._is_mixed |= bool(self.questions) and label != self._label
        self._label = label
        self.questions += 1
        for scorecard, answer in ((self._a, a), (self._b, b)):
            scorecard.update(label, self._kind.judged(answer["score"], answer["probabilities"]))
        if self._loss:
            loss = self._loss[1](label, a)
            self.losses.add(loss)
            self.differences.add(loss - self._loss[1](label, b))

    def row(self, segment: Segment, terms: Terms) -> SegmentRow:
        difference, loss = self.differences.interval(terms), self.losses.interval(terms)
        return SegmentRow(segment, self.questions, self._values(self._a), self._values(self._b), difference, loss)

    def left_out(self) -> list[str]:
        """Return which metrics have no number, and why."""
        sides = (("A", self._a), ("B", self._b))
        return [
            f"{name} of {side} is left out: {why}"
            for side, scorecard in sides
            for name, why in scorecard.without_number().items()
        ]

    def _values(self, scorecard: Scorecard) -> dict[str, float]:
        """Return the metrics that mean something: where all labels are the same, River's ROCAUC is -0."""
        values = scorecard.values()
        if not self._is_mixed:
            values.pop("ROCAUC", None)
        return values


class Comparison:
    """Compares, example by example. Raises SettingsError where this pipeline can't answer the request."""

    def __init__(self, pipeline: Pipeline, request: ComparisonRequest) -> None:
        request.check(pipeline)
        self.pipeline, self.request, self.records = pipeline, request, Records(pipeline)
        names = list(metric_names(pipeline.metric()))
        loss = LOSSES[pipeline.task][0] if pipeline.task in LOSSES else ""
        self._terms, self._segment_terms = comparison_terms(pipeline), segment_terms(pipeline)
        self.report = ComparisonReport(
            pipeline.name,
            request.a,
            request.b,
            loss,
            names,
            rate=self._terms.rate,
            min_questions=self._terms.first,
            min_segment_questions=self._segment_terms.first,
            label_timeout=pipeline.label_timeout,
        )
        self._answered: Counter[str] = Counter()
        self._rows: dict[Segment, _Running] = {}
        self._values: Counter[str] = Counter()

    def take(self, example: Example, *, is_corrected: bool = False) -> None:
        """Take an example; one of other event times than the request's is left out."""
        log, report = example["prediction"], self.report
        now = log["features"]["event_time"]
        if not self.request.covers(now):
            return
        by_version = sorted((log["champion"], *log["challengers"]), key=newness)
        # Of a model with a pinned version its newest counts; what was no answer River's metrics skip as well.
        answers = {answer["model"]: answer for answer in by_version if answer["answered"]}
        self._answered.update(answers.keys())
        if CHAMPION not in self.pipeline.model_names and log["champion"]["model"] in answers:
            answers[CHAMPION] = log["champion"]
        a, b = answers.get(self.request.a), answers.get(self.request.b)
        if a is None or b is None:
            report.only_a += a is not None
            report.only_b += b is not None
            report.neither += a is None and b is None
            return
        report.first_event = min(now, report.first_event) if report.questions else now
        report.last_event = max(now, report.last_event) if report.questions else now
        report.questions += 1
        report.corrected += is_corrected
        report.same += (a["model"], a["version"]) == (b["model"], b["version"])
        for side, answer in (("a", a), ("b", b)):
            first, last = report.versions.get(side, (answer["version"],) * 2)
            report.versions[side] = min(first, answer["version"]), max(last, answer["version"])
        if bool(a["version"]) != bool(b["version"]):
            report.untaught[report.b if a["version"] else report.a] += 1
        self._row(Segment()).add(example["label"], a, b)
        for name in self.request.segments:
            self._row(self._segment(name, log["features"]["vector"][name])).add(example["label"], a, b)

    def _segment(self, name: str, value: Any) -> Segment:
        segment = Segment(name, None if value is None else str(value))
        if segment in self._rows or value is None:
            return segment
        if self._values[name] >= MAX_VALUES:
            return Segment(name, others=True)
        self._values[name] += 1
        return segment

    def _row(self, segment: Segment) -> _Running:
        running = self._rows.get(segment)
        if running is None:
            running = self._rows[segment] = _Running(self.pipeline)
        return running

    def count(self, unlabelled: Unlabelled) -> None:
        """Take what the examples leave out."""
        self.report.predictions, self.report.unlabelled = unlabelled.predictions, unlabelled.count

    def finish(self) -> ComparisonReport:
        """Return the report. Raises SettingsError where nothing could be compared."""
        self._check()
        fields = ["", *self.request.segments]

        def place(item: tuple[Segment, _Running]) -> tuple[int, bool, bool, int, str]:
            segment, running = item
            return (
                fields.index(segment.field),
                segment.others,
                segment.value is None,
                -running.questions,
                segment.value or "",
            )

        self.report.left_out = self._row(Segment()).left_out()
        self.report.lines = [
            running.row(segment, self._segment_terms if segment.field else self._terms)
            for segment, running in sorted(self._rows.items(), key=place)
        ]
        return self.report

    def _check(self) -> None:
        report = self.report
        if report.questions and report.same == report.questions:
            one = next(iter(name for name in (report.a, report.b) if name != CHAMPION))
            raise SettingsError(
                f"{one!r} was the champion in all {report.questions:,} questions: A and B are the same; "
                "compare it to another model"
            )
        for name, side in ((report.a, "a"), (report.b, "b")):
            if report.questions >= report.min_questions and not report.versions[side][1]:
                raise SettingsError(
                    f"{name!r} has learned nothing: version 0 answered all {report.questions:,} questions; run its "
                    f"learner, `tidemill run learner {report.pipeline} --model {name}`"
                )
        if report.questions:
            return
        if not (report.only_a or report.only_b or report.neither):
            old = f"; {report.skipped:,} are of an earlier declaration, with other vectors" if report.skipped else ""
            late = (
                f"; {report.unlabelled:,} predictions have no label: label_timeout is {report.label_timeout!r}"
                if report.unlabelled
                else ""
            )
            raise SettingsError(f"{report.pipeline}.examples has no example in these event times{old}{late}")
        counts = ", ".join(f"{name} {count:,}" for name, count in self._answered.most_common(20))
        for name, count in ((report.a, report.only_a), (report.b, report.only_b)):
            if not count:
                raise SettingsError(
                    f"model {name!r} answered no question in these event times; those that did: {counts}"
                )
        raise SettingsError(f"no question in these event times was answered by both; answers by model: {counts}")


def compare(
    pipeline: Pipeline, broker: Broker, request: ComparisonRequest, progress: Progress | None = None
) -> ComparisonReport:
    """Compare two models on what <pipeline>.examples holds at this moment.

    Examples of an earlier declaration, whose vectors were others, are counted and left out.
    """
    comparison = Comparison(pipeline, request)
    records, corrections = comparison.records, read_corrections(pipeline, broker)
    unlabelled = Unlabelled(records, request.covers)
    try:
        unlabelled.read_log(pipeline.name, broker, progress)
    except NotAllowed as error:  # who may read the examples may compare
        comparison.report.uncounted, unlabelled = str(error), Unlabelled(records)
    ranges = full_range(broker, topics.EXAMPLES.name(pipeline.name))
    expect(progress, sum(end - begin for begin, end in ranges.values()))
    for batch in broker.read(ranges):
        for record in batch:
            data = record.value() or b""
            if corrections.is_one(record):
                continue
            unlabelled.joined(record)
            example = records.example.of(data)
            if example is not None:
                corrected = corrections.apply(example)
                comparison.take(corrected, is_corrected=corrected is not example)
            elif (time := records.event_time(data)) is None or request.covers(time):
                comparison.report.skipped += 1
        if progress:
            progress(len(batch))
    comparison.count(unlabelled)
    return comparison.finish()
