"""A model's metrics again, for each value of some categories.

memory   at most MAX_VALUES values of a feature, those that come first, and the others together; of each its metrics
cost     the learner takes 5 to 9% longer with two features (docs/how-to/registry.md); River's ROCAUC walks ten
         thresholds, so here scores are counted instead
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from river import metrics

from tidemill.declare.pipeline import Pipeline
from tidemill.declare.scorecard import Scorecard, metric_names
from tidemill.declare.tasks import Judged
from tidemill.models.evidence import MAX_VALUES

#: Segments as plain values and River's own, as they are saved beside a model.
State = list[tuple[Any, ...]]


class Segment(NamedTuple):
    """Examples in which a feature has one value, in which it is missing (None), or the others together."""

    feature: str
    value: str | None
    others: bool = False


class SegmentMetrics:
    """One segment's metrics.

    Parameters
    ----------
    own
        River's metrics, all but a ROCAUC that is counted.
    places
        By label, how many scores lie above the first so many of ROCAUC's thresholds: all that ROCAUC needs of a score.
    """

    __slots__ = ("examples", "places", "scorecard")

    def __init__(
        self,
        own: Sequence[Any],
        examples: int = 0,
        places: Mapping[Any, Sequence[int]] | None = None,
        declared: Sequence[Any] = (),
    ) -> None:
        self.scorecard = Scorecard(own, declared=declared)
        self.examples = examples
        self.places = {label: list(counts) for label, counts in (places or {}).items()}


class Segments:
    """The segments of one model on its way through the examples; `Monitor(segments=...)` names the features."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.features = tuple(pipeline.monitor.segments)
        self.lines: dict[Segment, SegmentMetrics] = {}
        #: By feature and text, the segments that `_line` gives again and again.
        self._line_of: dict[tuple[str, Any], SegmentMetrics] = {}
        self._fresh = pipeline.metric
        self._declared = pipeline.metric()
        self._names = metric_names(self._declared)
        areas = [metric for metric in self._declared if type(metric) is metrics.ROCAUC]
        #: What is counted instead; two with other thresholds are updated as all other metrics are.
        self._area = areas[0] if len(areas) == 1 else None
        self._values = dict.fromkeys(self.features, 0)

    def add(self, vector: Mapping[str, Any], label: Any, judged: Judged) -> None:
        """Judge one prediction in each of its segments."""
        place = None
        if self._area is not None:
            place = bisect_left(self._area.thresholds, judged.score)
        for feature in self.features:
            value = vector[feature]
            line = self._line_of.get((feature, value)) if type(value) is str else None  # for 1 is True, and 1.0
            if line is None:
                line = self._line(feature, value)
            line.examples += 1
            line.scorecard.update(label, judged)
            if place is not None:
                if label not in line.places:
                    line.places[label] = [0] * (len(self._area.thresholds) + 1)  # type: ignore[union-attr]
                line.places[label][place] += 1

    def _line(self, feature: str, value: Any) -> SegmentMetrics:
        key = Segment(feature, value if value is None else str(value))
        line = self.lines.get(key)
        if line is not None and type(value) is str:
            self._line_of[feature, value] = line
        if line is None and value is not None:
            if self._values[feature] < MAX_VALUES:
                self._values[feature] += 1
            else:
                key = Segment(feature, None, others=True)
                line = self.lines.get(key)
        if line is None:
            line = self.lines[key] = SegmentMetrics(
                [m for m in self._fresh() if self._area is None or type(m) is not metrics.ROCAUC],
                declared=self._declared,
            )
        return line

    def state(self) -> State:
        """Return the segments as they are saved."""
        return [(*key, line.examples, line.scorecard.metrics, line.places) for key, line in self.lines.items()]

    def resume(self, state: State) -> None:
        """Go on from what was saved; features that are no segments any more are dropped."""
        for feature, value, others, examples, own, places in state:
            if feature in self._values:
                self.lines[Segment(feature, value, others)] = SegmentMetrics(own, examples, places, self._declared)
                self._values[feature] += value is not None

    def as_dicts(self) -> list[dict[str, Any]]:
        """Return each segment's metrics, as in a manifest: by feature, the largest first, missing and others last.

        A metric without a finite value is left out, and ROCAUC where all labels are the same.
        """

        def place(item: tuple[Segment, SegmentMetrics]) -> tuple[int, bool, bool, int, str]:
            segment, line = item
            return (
                self.features.index(segment.feature),
                segment.others,
                segment.value is None,
                -line.examples,
                segment.value or "",
            )

        return [
            {**segment._asdict(), "examples": line.examples, "metrics": self._figures(line)}
            for segment, line in sorted(self.lines.items(), key=place)
        ]

    def _figures(self, line: SegmentMetrics) -> dict[str, float]:
        values = line.scorecard.values()
        if len(line.places) > 1:
            values["ROCAUC"] = self._area_of(line.places)
        return {name: values[name] for name in self._names if name in values and math.isfinite(values[name])}

    def _area_of(self, places: Mapping[Any, Sequence[int]]) -> float:
        """Return River's ROCAUC from the number of scores at each place: scores of one place count alike."""
        area = self._area.clone()  # type: ignore[union-attr]
        scores = [*area.thresholds, area.thresholds[-1] + 1.0]
        for label, counts in places.items():
            for score, count in zip(scores, counts, strict=True):
                if count:
                    area.update(label, score, float(count))
        return float(area.get())


def segment_metrics(pipeline: Pipeline, state: State) -> list[dict[str, Any]]:
    """Return the metrics of saved segments, as a manifest has them."""
    segments = Segments(pipeline)
    segments.resume(state)
    return segments.as_dicts()
