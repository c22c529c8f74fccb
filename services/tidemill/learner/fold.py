"""A model is a fold of `learn_one` over the examples, in their one order: version N has learned examples[begin..N)."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from tidemill.pipeline import Pipeline
from tidemill.records import Example, vector_to_x
from tidemill.registry.manifests import Snapshot
from tidemill.segments import Segments, about_labels

GOLDEN = 8
"""How many of the latest vectors go into a manifest, with the scores that the version gives them."""


class Fold:
    """One model on its way through the examples, with its prequential metrics.

    The metrics judge the score that was served (or, for a challenger, would have been) when the question was asked:
    exactly what a user of the predictions saw.

    Parameters
    ----------
    begin
        Offset of the first example that it is given.
    """

    def __init__(self, pipeline: Pipeline, name: str, begin: int = 0) -> None:
        self.pipeline = pipeline
        self.name = name
        self.model = pipeline.model(name)
        self.metrics = pipeline.metric()
        self._about_labels = [about_labels(metric) for metric in self.metrics]
        self.segments = Segments(pipeline)
        self.examples = 0
        self.version = self.begin = begin
        self.learned_until = 0
        self.vectors: deque[Mapping[str, Any]] = deque(maxlen=GOLDEN)
        self._kind = pipeline.kind

    def learn(self, example: Example, offset: int) -> None:
        """Judge the served score, then learn the example that lies at `offset`.

        What a model's own `learn_one` raises comes out of here; the fold has moved on all the same, because the
        model may have changed: to try again would be to learn it twice.
        """
        prediction, label = example["prediction"], example["label"]
        vector = prediction["features"]["vector"]
        self.version = offset + 1
        self.examples += 1
        self.learned_until = max(self.learned_until, example["label_time"])
        self.vectors.append(vector)
        served = prediction["champion"]
        if served["model"] != self.name:
            served = next((s for s in prediction["challengers"] if s["model"] == self.name), None)  # type: ignore[assignment]
        judged = self._kind.judged(served["score"], served["probabilities"]) if served is not None else None
        if judged is not None:
            for metric, is_about_labels in zip(self.metrics, self._about_labels, strict=True):
                metric.update(label, judged.label if is_about_labels else judged.told)
            self.segments.add(vector, label, judged)
        self._kind.learn(self.model, vector_to_x(vector), label)

    def snapshot(self) -> Snapshot:
        """Return what is needed to go on from here."""
        return Snapshot(
            self.model, self.metrics, self.examples, self.version, self.learned_until, self.begin, self.segments.state()
        )

    def resume(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot."""
        self.model, self.metrics = snapshot.model, snapshot.metrics
        self.examples, self.version, self.learned_until = snapshot.examples, snapshot.version, snapshot.learned_until
        self.begin = snapshot.begin
        self._about_labels = [about_labels(metric) for metric in self.metrics]
        self.segments = Segments(self.pipeline)
        self.segments.resume(snapshot.segments)
