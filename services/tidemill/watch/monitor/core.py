"""The monitor without Kafka or Faust: records fill windows, and closed windows give figures and alerts."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from river import drift

from tidemill.declare.pipeline import Pipeline
from tidemill.durations import milliseconds
from tidemill.keys import Keyring
from tidemill.models.corrections import Corrections
from tidemill.stream.api import Record
from tidemill.stream.origin import origin_of
from tidemill.watch.monitor.alerts import SILENT, Alert, Alerts, Thresholds
from tidemill.watch.monitor.figures import (
    Columns,
    FigureKey,
    Figures,
    Reference,
    example_figures,
    frame_of,
    prediction_figures,
)
from tidemill.watch.monitor.performance import WindowMetrics
from tidemill.watch.monitor.reference import ReferenceBuilder
from tidemill.watch.monitor.trust import Trust
from tidemill.watch.monitor.windows import SourceWindows, Window, hash_of, start_of
from tidemill.wire import dead_letters, topics
from tidemill.wire.records import Records

log = logging.getLogger(__name__)

PREDICTIONS, EXAMPLES = topics.PREDICTION_LOG.suffix, topics.EXAMPLES.suffix
#: Kinds of dead letter, and of warning, that one window counts apart; further ones are counted as "others".
MAX_REASONS = 50

#: Reason, rule and field.
RuleKey = tuple[str, str, str]


@dataclass
class ClosedWindow:
    """A closed window with its figures, and the alerts that it opened, continued or resolved."""

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
    keys
        What verifies signed records; without keys, only their order is.
    """

    def __init__(self, pipeline: Pipeline, clock: Callable[[], float], keys: Keyring | None = None) -> None:
        self.pipeline, self.clock = pipeline, clock
        self.trust = Trust(pipeline, keys)
        self.declared = pipeline.monitor
        self.records = Records(pipeline)
        self.columns = Columns(pipeline)
        self.window_metrics = WindowMetrics(pipeline)
        self.thresholds = Thresholds(self.declared, self.window_metrics)
        self.alerts = Alerts(self.thresholds, self.declared.windows)
        self.length = milliseconds(self.declared.window)
        lateness = milliseconds(self.declared.lateness)
        self.windows = {
            source: SourceWindows(self.length, lateness, self.declared.most) for source in (PREDICTIONS, EXAMPLES)
        }
        self.reference: Reference | None = None
        self._reference_builder = ReferenceBuilder(pipeline, self.columns, self.window_metrics)
        self._rejected: dict[int, Counter[RuleKey]] = {}
        self._warned: dict[int, Counter[RuleKey]] = {}
        self._expired: Counter[int] = Counter()
        self._corrections, self._corrected = Corrections(self.records), Counter[int]()
        self._last_record_at = dict.fromkeys(self.windows, clock())
        #: Whether records are read long after they were written: then their delay would be the monitor's own.
        self.catching_up = False
        self._adwin = drift.ADWIN()
        self._changes = 0

    def predictions(self, batch: Iterable[Record]) -> None:
        """Take records of the prediction log."""
        decode, header = self.records.prediction_log.of, self.records.prediction_log.header
        event_time, windows = self.records.event_time, self.windows[PREDICTIONS]
        now = self._last_record_at[PREDICTIONS] = self.clock()
        for record in batch:
            value = record.value() or b""
            time = event_time(value) if value.startswith(header) else None
            if time is None:
                continue  # of an earlier declaration, or no prediction
            window = windows.window(time, record.partition())
            if window is None:
                continue
            hash_ = hash_of(record.key() or b"")
            log = decode(value) if hash_ < window.limit else None
            if log is not None:
                if not self.catching_up:
                    self.trust.answered((log["champion"], *log["challengers"]), now)
                delay = None if self.catching_up else now - origin_of(record) / 1000
                window.add(hash_, self.columns.prediction_row(log, delay))

    def examples(self, batch: Iterable[Record]) -> None:
        """Take examples, in their order."""
        decode, windows = self.records.example.of, self.windows[EXAMPLES]
        self._last_record_at[EXAMPLES] = self.clock()
        for record in batch:
            if self._corrections.is_one(record):
                self._count_correction(record)
                continue
            example = decode(record.value())
            if example is None:
                continue  # of an earlier declaration
            self._reference_builder.add(example, record.offset())
            if self.reference is None and self._reference_builder.complete:
                self._finish_reference()
            champion = example["prediction"]["champion"]
            self._adwin.update(
                self.window_metrics.error(example["label"], champion["score"], champion["probabilities"])
            )
            self._changes += bool(self._adwin.drift_detected)
            window = windows.window(example["label_time"], record.partition())
            if window is None:
                continue
            hash_ = hash_of(record.key() or b"")
            if hash_ < window.limit:
                window.add(hash_, self.columns.example_row(example))

    def _count_correction(self, record: Record) -> None:
        """Count a correction in the window of its time: what a window says of the labels is what was known then."""
        correction = self.records.correction.of(record.value())
        if correction is not None:
            self._corrected[start_of(correction["label_time"], self.length)] += 1

    def restore_reference(self, batch: Iterable[Record]) -> bool:
        """Take examples from before this process, for the reference alone; return whether that is complete."""
        for record in batch:
            example = self.records.example.of(record.value())
            if example is not None:
                self._reference_builder.add(example, record.offset())
            if self._reference_builder.complete:
                self._finish_reference()
                return True
        return False

    def _finish_reference(self) -> None:
        self.reference, self.thresholds.usual = self._reference_builder.finish()
        log.info(
            "reference complete",
            extra={"rows": self.reference.rows, "usual_figures": len(self.thresholds.usual.ranges)},
        )

    def letters(self, batch: Iterable[Record]) -> None:
        """Count dead letters, by reason, in the current window of predictions: a dead letter may have no event time."""
        for record in batch:
            headers = dead_letters.text_headers(record)
            reason, rule = headers.get("tidemill.reason", "?"), headers.get("tidemill.rule", "")
            self._count(self._rejected, (reason, rule, headers.get("tidemill.field", "")), 1)

    def warnings(self, batch: Iterable[Record]) -> None:
        """Count records that rules warned of, in the same window."""
        for record in batch:
            warnings = self.records.warnings.of(record.value())
            for rule in warnings["rules"] if warnings else ():
                self._count(self._warned, (rule["reason"], rule["rule"], rule["field"]), rule["records"])

    def _count(self, by_window: dict[int, Counter[RuleKey]], name: RuleKey, records: int) -> None:
        watermark = self.windows[PREDICTIONS].watermark
        if watermark is None:
            return
        counter = by_window.setdefault(start_of(watermark, self.length), Counter())
        counter[name if name in counter or len(counter) < MAX_REASONS else ("others", "", "")] += records

    def expired(self, batch: Iterable[Record]) -> None:
        """Count predictions whose label did not come, in the window of its deadline."""
        header = self.records.prediction_log.header
        for record in batch:
            value = record.value() or b""
            time = self.records.event_time(value) if value.startswith(header) else None
            if time is not None:
                self._expired[start_of(time + self.pipeline.label_timeout_ms, self.length)] += 1

    def time_of(self, source: str, record: Record) -> int:
        """Return the event time that decides a record's window; 0 for a record of an earlier declaration."""
        if source == EXAMPLES:
            example = self.records.example.of(record.value())
            return int(example["label_time"]) if example else 0
        prediction = self.records.prediction_log.of(record.value())
        return int(prediction["features"]["event_time"]) if prediction else 0

    def close(
        self, idle: Mapping[str, Sequence[int]], settled: Container[str] = (PREDICTIONS, EXAMPLES)
    ) -> list[ClosedWindow]:
        """Close the windows that are complete, and return them with their figures and alerts.

        `idle`: partitions of each source without traffic; `settled`: the sources all of whose partitions are known.
        """
        return [
            self._evaluate(source, window)
            for source, windows in self.windows.items()
            if source in settled
            for window in windows.due(idle.get(source, ()))
        ]

    def finish(self) -> list[ClosedWindow]:
        """Close all windows, also those that are not complete; those alert nobody."""
        rest = [(source, window) for source, windows in self.windows.items() for window in windows.finish()]
        return [self._evaluate(source, window) for source, window in rest]

    def silence(self) -> list[Alert]:
        """Return the alerts that are opened or resolved because a source fell silent, or has records again."""
        now = self.clock()
        alerts = (
            self.alerts.check(SILENT._replace(segment=source), now - last, int(now * 1000))
            for source, last in self._last_record_at.items()
        )
        return [alert for alert in alerts if alert]

    def distrust(self) -> list[Alert]:
        """Return the alerts about refused records, unserved versions and late requests that open or resolve."""
        now = self.clock()
        alerts = (
            self.alerts.check(key, value, int(now * 1000), int(since * 1000))
            for key, (value, since) in self.trust.levels(now).items()
        )
        return [alert for alert in alerts if alert]

    def _evaluate(self, source: str, window: Window) -> ClosedWindow:
        rows = window.rows
        figures: Figures = {}
        if rows and source == PREDICTIONS:
            frame = frame_of(rows, self.columns.prediction)
            figures = prediction_figures(self.pipeline, frame, self.reference)
            figures |= self._rule_shares(window)
        elif rows:
            frame = frame_of(rows, self.columns.example)
            figures = example_figures(
                self.pipeline, self.window_metrics, frame, self.declared.segments, self.declared.least, self.reference
            )
            figures |= self._coverage(window)
            figures[FigureKey("adwin_changes", self.pipeline.champion)], self._changes = float(self._changes), 0
        closed = ClosedWindow(source, window, len(rows), figures | self._drift_limits(figures))
        if len(rows) >= self.declared.least and not window.interrupted:
            closed.alerts = self.alerts.update(figures, window.start, window.end, int(self.clock() * 1000))
        return closed

    def _drift_limits(self, figures: Figures) -> Figures:
        """Return, for each drift index, its usual range, and the limit that opens an alert."""
        limits: Figures = {}
        for key in figures:
            if key.name not in ("psi", "score_psi", "label_psi"):
                continue
            usual, bounds = self.thresholds.usual.ranges.get(key), self.thresholds.bounds(key)
            limit = self.declared.limit(key.name, key.feature)
            if usual is not None and bounds is not None:
                limits[key._replace(name=f"{key.name}_usual_low")] = usual[0]
                limits[key._replace(name=f"{key.name}_usual_high")] = usual[1]
                if limit is not None:
                    limits[key._replace(name=f"{key.name}_limit")] = max(limit, bounds[1])
        return limits

    def _rule_shares(self, window: Window) -> Figures:
        """Return the share of records that were rejected, and that were warned of, by rule."""
        rejected = _by_rule("rejected", self._rejected, window)
        warned = _by_rule("warned", self._warned, window)
        records = rejected.total() + window.records
        shares = {key: min(1.0, count / records) for key, count in (rejected | warned).items()}
        return shares | {FigureKey("rejected_records"): float(rejected.total())}

    def _coverage(self, window: Window) -> Figures:
        expired = sum(self._expired.pop(start) for start in [start for start in self._expired if start <= window.start])
        coverage = window.records / (window.records + expired)
        figures = {FigureKey("expired"): float(expired), FigureKey("label_coverage"): coverage}
        if self.pipeline.corrections_ms:
            past = [start for start in self._corrected if start <= window.start]
            figures[FigureKey("corrections")] = float(sum(self._corrected.pop(start) for start in past))
        return figures


def _by_rule(figure: str, by_window: dict[int, Counter[RuleKey]], window: Window) -> Counter[FigureKey]:
    """Take the counts up to this window out of `by_window`."""
    counts: Counter[FigureKey] = Counter()
    for start in [start for start in by_window if start <= window.start]:
        for (reason, rule, name), count in by_window.pop(start).items():
            counts[FigureKey(figure, segment=f"{reason}:{rule}" if rule else reason, feature=name)] += count
    return counts
