"""A model is a fold of `learn_one` over the examples, in their one order: version N has learned examples[begin..N)."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from tidemill.declare.pipeline import Pipeline
from tidemill.declare.scorecard import Scorecard
from tidemill.errors import ArtifactError, ScoreError
from tidemill.models.linear import river_model, specialised
from tidemill.models.segments import Segments
from tidemill.models.snapshot import Snapshot
from tidemill.models.source_shares import Shares, source_of
from tidemill.wire.records import Example, newness, vector_to_x

#: The latest vectors that go into a manifest, with the scores that the version gives them.
MAX_GOLDEN_VECTORS = 8

#: Examples between two checks of the model's score: every process notices at the same example that a model diverges.
LOOK_EVERY_EXAMPLES = 10


class Fold:
    """One model on its way through the examples, with its prequential metrics.

    The metrics judge the score that was served (or, for a challenger, would have been) when the question was asked:
    exactly what a user of the predictions saw. `diverged`: why the model's answer was no score, else empty.

    Parameters
    ----------
    begin
        Offset of the first example that the model is given; a candidate's name has it, and for others it is 0.
    """

    def __init__(self, pipeline: Pipeline, name: str, begin: int | None = None) -> None:
        self.pipeline = pipeline
        self.name = name
        #: What learns and answers: the model, or the same in a faster form.
        self.running = specialised(pipeline.model(name))
        self.scorecard = Scorecard(pipeline.metric())
        self.segments = Segments(pipeline)
        self.examples = 0
        self.version = self.begin = pipeline.parts(name)[1] if begin is None else begin
        self.diverged = ""
        self.learned_until = 0
        self.vectors: deque[Mapping[str, Any]] = deque(maxlen=MAX_GOLDEN_VECTORS)
        self._kind = pipeline.kind
        self._shares: Shares | None = None
        if pipeline.protect is not None:
            self._shares = Shares(pipeline.protect)
            self._source = source_of(pipeline.protect.source, pipeline.vector)

    @property
    def model(self) -> Any:
        """River's model, with everything that was learned; it learns on in `running`."""
        return river_model(self.running)

    @model.setter
    def model(self, model: Any) -> None:
        self.running = specialised(model)

    @property
    def metrics(self) -> list[Any]:
        """The prequential metrics, over all examples so far."""
        return self.scorecard.metrics

    def learn(self, example: Example, offset: int) -> bool:
        """Judge the served score, then learn the example that lies at `offset`.

        Returns whether it was learned: not where its source has its share already (see `source_shares`). An error of
        the model's own `learn_one` is raised; the fold moves on all the same, because the model may have changed, and a
        second try would learn the example twice.
        """
        prediction, label = example["prediction"], example["label"]
        vector = prediction["features"]["vector"]
        self.judge(example)
        self.version = offset + 1
        self.examples += 1
        self.learned_until = max(self.learned_until, example["label_time"])
        self.vectors.append(vector)
        if self._shares is not None and not self._shares.take(self._source(prediction["features"])):
            return False
        x = vector_to_x(vector)
        self._kind.learn(self.running, x, label)
        if not self.examples % LOOK_EVERY_EXAMPLES and not self.diverged:
            self._check_score(x)
        return True

    def judge(self, example: Example) -> None:
        """Judge the score that was served of an example, and learn nothing."""
        prediction, label = example["prediction"], example["label"]
        # Beside a pinned version the newest one answers too: the newest is judged.
        served = max(
            (s for s in (prediction["champion"], *prediction["challengers"]) if s["model"] == self.name),
            key=newness,
            default=None,
        )
        judged = served and self._kind.judged(served["score"], served["probabilities"], served["answered"])
        if judged is not None:
            self.scorecard.update(label, judged)
            self.segments.add(prediction["features"]["vector"], label, judged)

    def judge_again(self) -> None:
        """Begin to judge from the first example on."""
        self.scorecard, self.segments = Scorecard(self.pipeline.metric()), Segments(self.pipeline)

    def _check_score(self, x: Mapping[str, Any]) -> None:
        """Mark the model as diverged where its answer is no score, even if a later answer is one again."""
        try:
            self._kind.ask(self.running, x)
        except ScoreError as error:
            self.diverged = str(error)
        except ArtifactError:
            pass  # the model raises: it may have learned too little

    def snapshot(self) -> Snapshot:
        """Return what is needed to go on from here."""
        shares = None if self._shares is None else self._shares.saved()
        return Snapshot(
            self.model,
            self.scorecard.metrics,
            self.examples,
            self.version,
            self.learned_until,
            self.begin,
            self.segments.state(),
            shares,
        )

    def resume(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot."""
        self.model, self.scorecard = snapshot.model, Scorecard(snapshot.metrics, declared=self.pipeline.metric())
        self.examples, self.version, self.learned_until = snapshot.examples, snapshot.version, snapshot.learned_until
        self.begin = snapshot.begin
        self.segments = Segments(self.pipeline)
        self.segments.resume(snapshot.segments)
        if self._shares is not None:
            self._shares.restore(snapshot.shares or ())
