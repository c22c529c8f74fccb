"""River's metrics, counted instead of updated where that comes to the same, to the last digit.

A confusion matrix sums up whole numbers, in whatever order: so predictions are counted by outcome, and added to it when
somebody asks. ROCAUC has ten such matrices. River is the oracle of tests/unit/declare/test_counted_metrics.py.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Hashable
from typing import Any

from river import metrics, stats
from river.metrics.base import BinaryMetric, ClassificationMetric

from tidemill.declare.tasks import Judged

#: Judges one prediction by its label.
Take = Callable[[Any, Judged], None]


class CountedMetric:
    """One metric of River's; `take` judges a prediction, and `add` brings the metric up to date."""

    def __init__(self, metric: Any) -> None:
        self.metric = metric
        self._counts: dict[tuple[Hashable, Hashable], int] = {}
        self.take: Take = self._taking()

    def _taking(self) -> Take:
        metric, counts = self.metric, self._counts
        kind = type(metric)
        if kind is metrics.LogLoss and type(metric._mean) is stats.Mean:
            return self._take_log_loss
        if kind is metrics.ROCAUC and all(type(cm) is metrics.ConfusionMatrix for cm in metric.cms):
            thresholds = metric.thresholds

            def take_score(label: Any, judged: Judged) -> None:
                key = label, bisect_left(thresholds, judged.score)
                counts[key] = counts.get(key, 0) + 1

            return take_score
        if self._is_of_labels and type(metric.cm) is metrics.ConfusionMatrix:

            def take_label(label: Any, judged: Judged) -> None:
                key = label, judged.label
                counts[key] = counts.get(key, 0) + 1

            return take_label
        if getattr(metric, "requires_labels", False):
            return lambda label, judged: metric.update(label, judged.label)
        return lambda label, judged: metric.update(label, judged.prediction)

    @property
    def _is_of_labels(self) -> bool:
        update = getattr(type(self.metric), "update", None)
        return update is ClassificationMetric.update or (
            update is BinaryMetric.update and bool(self.metric.requires_labels)
        )

    def _take_log_loss(self, label: Any, judged: Judged) -> None:
        score, mean = max(min(judged.score, 1 - 1e-15), 1e-15), self.metric._mean
        mean.n += 1.0
        mean._mean += (1.0 / mean.n) * (-math.log(score if label else 1 - score) - mean._mean)

    def add(self) -> Any:
        """Return the metric, up to date."""
        metric = self.metric
        for (label, outcome), count in self._counts.items():
            if type(metric) is metrics.ROCAUC:
                for place, cm in enumerate(metric.cms):
                    _add(cm, label == metric.pos_val, place < outcome, count)  # type: ignore[operator]
            elif isinstance(metric, BinaryMetric):
                _add(metric.cm, label == metric.pos_val, outcome == metric.pos_val, count)
            else:
                _add(metric.cm, label, outcome, count)
        self._counts.clear()
        return metric


def _add(cm: metrics.ConfusionMatrix, label: Hashable, predicted: Hashable, count: int) -> None:
    """Update a confusion matrix so many times."""
    weight = float(count)
    cm.n_samples += count
    cm.data[label][predicted] += weight
    cm.total_weight += weight
    cm.sum_row[label] += weight
    cm.sum_col[predicted] += weight
    if label == predicted:
        cm._total_true_positives += weight
