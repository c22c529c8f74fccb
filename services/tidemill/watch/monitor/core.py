"""What the monitor does with records, without Kafka or Faust: windows that fill, close, and are judged."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from river import drift

from tidemill.declare.pipeline import Pipeline
from tidemill.durations import milliseconds
from tidemill.encoding.codec import HEADER
from tidemill.stream.api import Record
from tidemill.watch.monitor.alerts import SILENT, Alert, Alerts, Rules, Usual
from tidemill.watch.monitor.figures import Columns, Figures, Key, Reference, of_examples, of_predictions
from tidemill.watch.monitor.performance import Judge
from tidemill.watch.monitor.windows import Window, Windows, hashed, start_of
from tidemill.wire import dead_letters as letters
from tidemill.wire import topics
from tidemill.wire.records import Records

log = logging.getLogger(__name__)

PREDICTIONS, EXAMPLES = topics.PREDICTION_LOG.suffix, topics.EXAMPLES.suffix
MOST_REFERENCE = 100_000
"""Rows that the reference keeps of all its windows together."""
MOST_LEFT_OUT = 30
"""With more windows than this, one is compared with the whole reference: its own share in that makes no difference."""
Broken = tuple[str, str, str]
"""Reason, rule and field."""
MOST_REASONS = 50
"""Kinds of dead letter, and of warning, that are told apart in one window."""


@dataclass
class Closed:
    """A closed window with its figures, and the alerts that came of it."""

    source: str
    window: Window
    rows: int
    figures: Figures
    alerts: list[Alert] = field(default_factory=list)


class Core:
    """One pipeline's monitor.

    Parameters
    ----------
    clock
        Wall time in seconds since the epoch.
    """

    def __init__(self, pipeline: Pipeline, clock: Callable[[], float]) -> None:
        self.pipeline, self.clock = pipeline, clock
        self.declared = pipeline.monitor
        self.records = Records(pipeline)
        self.columns = Columns(pipeline)
        self.judge = Judge(pipeline)
        self.rules = Rules(self.declared, self.judge)
        self.alerts = Alerts(self.rules, self.declared.windows)
        self.length = milliseconds(self.declared.window)
        lateness = milliseconds(self.declared.lateness)
        self.windows = {
            source: Windows(self.length, lateness, self.declared.most) for source in (PREDICTIONS, EXAMPLES)
        }
        self.reference: Reference | None = None
        self._training = Training(pipeline, self.columns, self.judge)
        self._rejected: dict[int, Counter[Broken]] = {}
        self._warned: dict[int, Counter[Broken]] = {}
        self._expired: Counter[int] = Counter()
        self._heard = dict.fromkeys(self.windows, clock())
        self.catching_up = False
        """Whether records are read long after they were written: then the delay would be the monitor's own."""
        self._adwin = drift.ADWIN()
        self._changes = 0

    def predictions(self, batch: Iterable[Record]) -> None:
        """Take records of the prediction log."""
        codec, head, header = self.records.prediction_log, self.records.head.record, self.records.prediction_log.header
        windows = self.windows[PREDICTIONS]
        now = self._heard[PREDICTIONS] = self.clock()
        for record in batch:
            value = record.value() or b""
            if not value.startswith(header):
                continue  # of an earlier declaration
            window = windows.window(head(value, HEADER)["event_time"], record.partition())
            if window is None:
                continue
            hash_ = hashed(record.key() or b"")
            if hash_ < window.limit:
                delay = None if self.catching_up else now - record.timestamp()[1] / 1000
                window.add(hash_, self.columns.prediction_row(codec.record(value, HEADER), delay))

    def examples(self, batch: Iterable[Record]) -> None:
        """Take examples, in their order."""
        decode, windows = self.records.example.of, self.windows[EXAMPLES]
        self._heard[EXAMPLES] = self.clock()
        for record in batch:
            example = decode(record.value())
            if example is None:
                continue  # of an earlier declaration
            self._training.add(example, record.offset())
            if self.reference is None and self._training.complete:
                self._compare()
            champion = example["prediction"]["champion"]
            self._adwin.update(self.judge.error(example["label"], champion["score"], champion["probabilities"]))
            self._changes += bool(self._adwin.drift_detected)
            window = windows.window(example["label_time"], record.partition())
            if window is None:
                continue
            hash_ = hashed(record.key() or b"")
            if hash_ < window.limit:
                window.add(hash_, self.columns.example_row(example))

    def training(self, batch: Iterable[Record]) -> bool:
        """Take examples from before this process, for the reference alone; returns whether that has enough."""
        for record in batch:
            example = self.records.example.of(record.value())
            if example is not None:
                self._training.add(example, record.offset())
            if self._training.complete:
                self._compare()
                return True
        return False

    def _compare(self) -> None:
        """From now on there is something to compare with."""
        self.reference, self.rules.usual = self._training.finish()
        log.info(
            "reference complete",
            extra={"rows": self.reference.rows, "usual_figures": len(self.rules.usual.ranges)},
        )

    def letters(self, batch: Iterable[Record]) -> None:
        """Count dead letters, by reason, in the window in which predictions are now: a dead letter may have no event time."""
        for record in batch:
            said = letters.said(record)
            name = (said.get("tidemill.reason", "?"), said.get("tidemill.rule", ""), said.get("tidemill.field", ""))
            self._count(self._rejected, name, 1)

    def warnings(self, batch: Iterable[Record]) -> None:
        """Count what rules that only warn have found, in the same window."""
        for record in batch:
            told = self.records.warnings.of(record.value())
            for of in told["rules"] if told else ():
                self._count(self._warned, (of["reason"], of["rule"], of["field"]), of["records"])

    def _count(self, by_window: dict[int, Counter[Broken]], name: Broken, records: int) -> None:
        mark = self.windows[PREDICTIONS].watermark
        if mark is None:
            return
        counter = by_window.setdefault(start_of(mark, self.length), Counter())
        counter[name if name in counter or len(counter) < MOST_REASONS else ("others", "", "")] += records

    def expired(self, batch: Iterable[Record]) -> None:
        """Count predictions whose label did not come, in the window in which it would have come at the latest."""
        header, head = self.records.prediction_log.header, self.records.head.record
        for record in batch:
            value = record.value() or b""
            if value.startswith(header):
                until = head(value, HEADER)["event_time"] + self.pipeline.label_timeout_ms
                self._expired[start_of(until, self.length)] += 1

    def time_of(self, source: str, record: Record) -> int:
        """Return the event time by which a record finds its window; 0 for one of an earlier declaration."""
        if source == EXAMPLES:
            example = self.records.example.of(record.value())
            return int(example["label_time"]) if example else 0
        prediction = self.records.prediction_log.of(record.value())
        return int(prediction["features"]["event_time"]) if prediction else 0

    def close(
        self, idle: Mapping[str, Sequence[int]], settled: Container[str] = (PREDICTIONS, EXAMPLES)
    ) -> list[Closed]:
        """Close the windows that are complete, and judge them.

        `idle`: partitions of each source without traffic; `settled`: the sources that have met all their partitions.
        """
        return [
            self._judge(source, window)
            for source, windows in self.windows.items()
            if source in settled
            for window in windows.due(idle.get(source, ()))
        ]

    def silence(self) -> list[Alert]:
        """Return the alerts that were opened or resolved because a source fell silent, or speaks again."""
        now = self.clock()
        looks = (
            self.alerts.look(SILENT._replace(segment=source), now - heard, int(now * 1000))
            for source, heard in self._heard.items()
        )
        return [alert for alert in looks if alert]

    def _judge(self, source: str, window: Window) -> Closed:
        rows = window.rows
        figures: Figures = {}
        if rows and source == PREDICTIONS:
            frame = pd.DataFrame(rows, columns=list(self.columns.prediction))
            figures = of_predictions(self.pipeline, frame, self.reference)
            figures |= self._broken(window)
        elif rows:
            frame = pd.DataFrame(rows, columns=list(self.columns.example))
            figures = of_examples(
                self.pipeline, self.judge, frame, self.declared.segments, self.declared.least, self.reference
            )
            figures |= self._coverage(window)
            figures[Key("adwin_changes", self.pipeline.champion)], self._changes = float(self._changes), 0
        closed = Closed(source, window, len(rows), figures | self._edges(figures))
        if len(rows) >= self.declared.least and not window.interrupted:
            closed.alerts = self.alerts.step(figures, window.start, window.end, int(self.clock() * 1000))
        return closed

    def _edges(self, figures: Figures) -> Figures:
        """Return, for each index of drift, what is usual, and what it takes for an alert."""
        found: Figures = {}
        for key in figures:
            if key.name not in ("psi", "score_psi", "label_psi"):
                continue
            usual, reach = self.rules.usual.ranges.get(key), self.rules.reach(key)
            limit = self.declared.limit(key.name, key.feature)
            if usual is not None and reach is not None:
                found[key._replace(name=f"{key.name}_usual_least")] = usual[0]
                found[key._replace(name=f"{key.name}_usual_most")] = usual[1]
                if limit is not None:
                    found[key._replace(name=f"{key.name}_limit")] = max(limit, reach[1])
        return found

    def _broken(self, window: Window) -> Figures:
        """Return the share of what was refused, and of what was warned of, by rule."""
        rejected = _by_rule("rejected", self._rejected, window)
        warned = _by_rule("warned", self._warned, window)
        records = rejected.total() + window.records
        shares = {key: min(1.0, count / records) for key, count in (rejected | warned).items()}
        return shares | {Key("rejected_records"): float(rejected.total())}

    def _coverage(self, window: Window) -> Figures:
        gone = sum(self._expired.pop(start) for start in [start for start in self._expired if start <= window.start])
        return {Key("expired"): float(gone), Key("label_coverage"): window.records / (window.records + gone)}


def _by_rule(figure: str, by_window: dict[int, Counter[Broken]], window: Window) -> Counter[Key]:
    """Take what was counted up to this window."""
    found: Counter[Key] = Counter()
    for start in [start for start in by_window if start <= window.start]:
        for (reason, rule, name), count in by_window.pop(start).items():
            found[Key(figure, segment=f"{reason}:{rule}" if rule else reason, feature=name)] += count
    return found


class Training:
    """The reference in the making: the first examples, for as long in event time as the pipeline declares."""

    def __init__(self, pipeline: Pipeline, columns: Columns, judge: Judge) -> None:
        self.pipeline, self.columns, self.judge = pipeline, columns, judge
        declared = pipeline.monitor
        self.span, self.length = milliseconds(declared.reference), milliseconds(declared.window)
        self.complete = False
        self._next = 0
        self._begin: int | None = None
        self.most = max(2 * declared.least, min(declared.most, MOST_REFERENCE * self.length // self.span))
        self._windows: dict[int, Window] = {}
        self._by_label: dict[int, Window] = {}

    def add(self, example: Mapping[str, Any], offset: int) -> None:
        """Take one example; one that was taken already, or comes when there are enough, counts for nothing."""
        if self.complete or offset < self._next:
            return
        self._next = offset + 1
        of = example["prediction"]["features"]
        event, label = of["event_time"], example["label_time"]
        if self._begin is None:
            self._begin = start_of(label, self.length)
        if label >= self._begin + self.span:
            self.complete = True
            return
        row, hash_ = self.columns.example_row(example), hashed(of["event_id"].encode())
        for windows, time in ((self._windows, event), (self._by_label, label)):
            start = start_of(time, self.length)
            window = windows.get(start)
            if window is None:
                window = windows[start] = Window(start, start + self.length, self.most)
            window.records += 1
            if hash_ < window.limit:
                window.add(hash_, row)

    def finish(self) -> tuple[Reference, Usual]:
        """Return the reference, and what is usual: each of its windows' figures, compared with all the others."""
        columns, least = list(self.columns.example), self.pipeline.monitor.least
        frames = [pd.DataFrame(w.rows, columns=columns) for w in self._windows.values()]
        frames = [frame.assign(partial=False, delay=None) for frame in frames]
        reference = Reference(self.pipeline, pd.concat(frames, ignore_index=True))
        usual: list[Figures] = []
        for index, frame in enumerate(frames):
            if len(frame) >= least and len(frames) > 1:
                others = reference
                if len(frames) <= MOST_LEFT_OUT:
                    rest = [f for i, f in enumerate(frames) if i != index]
                    others = Reference(self.pipeline, pd.concat(rest, ignore_index=True))
                usual.append(of_predictions(self.pipeline, frame, others))
        segments = self.pipeline.monitor.segments
        for window in self._by_label.values():
            frame = pd.DataFrame(window.rows, columns=columns)
            if len(frame) >= least:
                usual.append(of_examples(self.pipeline, self.judge, frame, segments, least, reference))
        self._windows, self._by_label = {}, {}
        return reference, Usual.of(usual)
