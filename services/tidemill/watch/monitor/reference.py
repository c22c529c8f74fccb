"""The reference: the first examples, which later windows are compared with, and what was usual in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tidemill.declare.pipeline import Pipeline
from tidemill.durations import milliseconds
from tidemill.watch.monitor.alerts import UsualRanges
from tidemill.watch.monitor.figures import Columns, Figures, Reference, example_figures, frame_of, prediction_figures
from tidemill.watch.monitor.performance import WindowMetrics
from tidemill.watch.monitor.windows import Window, hash_of, start_of
from tidemill.watermark import NEVER, SLACK_PART, Watermark

#: Rows that the reference keeps of all its windows together.
MAX_REFERENCE_ROWS = 100_000
#: With more windows than this, each is compared with the whole reference: its own share of that makes no difference.
MAX_LEFT_OUT_WINDOWS = 30


class ReferenceBuilder:
    """Collects the examples of the declared first span of event time, and makes the reference of them."""

    def __init__(self, pipeline: Pipeline, columns: Columns, window_metrics: WindowMetrics) -> None:
        self.pipeline, self.columns, self.window_metrics = pipeline, columns, window_metrics
        declared = pipeline.monitor
        self.span, self.length = milliseconds(declared.reference), milliseconds(declared.window)
        self.complete = False
        self._next = 0
        self._begin = -NEVER
        self._watermark = Watermark(self.length // SLACK_PART)
        self.max_rows = max(2 * declared.least, min(declared.most, MAX_REFERENCE_ROWS * self.length // self.span))
        self._windows: dict[int, Window] = {}
        self._by_label: dict[int, Window] = {}

    def add(self, example: Mapping[str, Any], offset: int) -> None:
        """Take one example; one that was taken before, or that comes after the reference is complete, is ignored."""
        if self.complete or offset < self._next:
            return
        self._next = offset + 1
        features = example["prediction"]["features"]
        event, label = features["event_time"], example["label_time"]
        if self._watermark.time == NEVER:  # the first of all may be ahead: the lowest of the first few begins
            self._begin = min(self._begin, start_of(label, self.length))
        self._watermark.add(label)
        self.complete = self._watermark.time >= self._begin + self.span
        if label >= self._begin + self.span:
            return
        row, hash_ = self.columns.example_row(example), hash_of(features["event_id"].encode())
        for windows, time in ((self._windows, event), (self._by_label, label)):
            start = start_of(time, self.length)
            window = windows.get(start)
            if window is None:
                window = windows[start] = Window(start, start + self.length, self.max_rows)
            window.records += 1
            if hash_ < window.limit:
                window.add(hash_, row)

    def finish(self) -> tuple[Reference, UsualRanges]:
        """Return the reference, and the usual ranges: of each window's figures, compared with all the other windows."""
        import pandas as pd

        columns, min_rows = self.columns.example, self.pipeline.monitor.least
        frames = [frame_of(w.rows, columns) for w in self._windows.values()]
        frames = [frame.assign(partial=False, delay=None) for frame in frames]
        reference = Reference(self.pipeline, pd.concat(frames, ignore_index=True))
        usual: list[Figures] = []
        for index, frame in enumerate(frames):
            if len(frame) >= min_rows and len(frames) > 1:
                others = reference
                if len(frames) <= MAX_LEFT_OUT_WINDOWS:
                    rest = [f for i, f in enumerate(frames) if i != index]
                    others = Reference(self.pipeline, pd.concat(rest, ignore_index=True))
                usual.append(prediction_figures(self.pipeline, frame, others))
        segments = self.pipeline.monitor.segments
        for window in self._by_label.values():
            frame = frame_of(window.rows, columns)
            if len(frame) >= min_rows:
                usual.append(example_figures(self.pipeline, self.window_metrics, frame, segments, min_rows, reference))
        self._windows, self._by_label = {}, {}
        return reference, UsualRanges.of(usual)
