"""The scorer: vectors in; the champion's prediction for consumers, and all about it for the log, out.

reads   <pipeline>.features by entity; the registry (<pipeline>.models), every instance all of it
writes  <pipeline>.predictions by entity, <pipeline>.prediction-log by event id, <pipeline>.dlq
state   the newest verified version of every model; before the first one, the declared model that has learned nothing
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tidemill import topics
from tidemill.errors import Reject
from tidemill.pipeline import Pipeline
from tidemill.records import HEADER, Features, Records, Score, vector_to_x
from tidemill.scorer.feed import Loaded
from tidemill.stream.api import Emit, Record, Step
from tidemill.stream.loop import Service
from tidemill.validator.letters import dead_letter

log = logging.getLogger(__name__)


class Scorer(Step):
    """Scores vectors with the champion, and in the shadow with every other model.

    Parameters
    ----------
    take
        Returns model versions that are ready to be used; called between batches.
    """

    def __init__(self, pipeline: Pipeline, take: Callable[[], Sequence[Loaded]] = tuple) -> None:
        super().__init__()
        self.records = Records(pipeline)
        self.champion = pipeline.champion
        self.models: dict[str, tuple[int, Any]] = {name: (0, pipeline.model(name)) for name in pipeline.roster}
        self.predictions = topics.PREDICTIONS.name(pipeline.name)
        self.log = topics.PREDICTION_LOG.name(pipeline.name)
        self.dlq = topics.DLQ.name(pipeline.name)
        self._predict = pipeline.kind.predict
        self._others = tuple(name for name in pipeline.roster if name != pipeline.champion)
        self._take = take

    def swap(self) -> None:
        """Put versions that are ready in the place of those in use."""
        for manifest, snapshot in self._take():
            if snapshot is None:
                self.counts["model_loads", "refused"] += 1
                continue
            self.models[manifest.model] = (manifest.version, snapshot.model)
            self.counts["model_loads", "loaded"] += 1

    def score(self, name: str, x: Mapping[str, Any]) -> Score:
        """Return what a model says. Raises Reject where it fails or its score is no finite number."""
        version, model = self.models[name]
        try:
            score, probabilities = self._predict(model, x)
        except Exception as error:  # a model's own code
            raise Reject(
                "model_failed", f"model {name!r} version {version} raised {type(error).__name__}: {error}"
            ) from error
        if not math.isfinite(score):
            self.counts["not_finite", "score"] += 1
            raise Reject("not_finite_score", f"model {name!r} version {version} scores {score}", value=score)
        return {"model": name, "version": version, "score": score, "probabilities": probabilities}

    def process(self, records: Sequence[Record], emit: Emit) -> bool:
        self.swap()
        features_header, decode = self.records.features.header, self.records.features.decode
        log_header, scores, prediction = (
            self.records.prediction_log.header,
            self.records.scores.body,
            self.records.prediction.encode,
        )
        for record in records:
            value = record.value() or b""
            try:
                if not value.startswith(features_header):
                    given = value[:HEADER].hex()
                    raise Reject(
                        "unknown_schema", f"header {given} where {features_header.hex()} was expected", value=given
                    )
                features: Features = decode(value)
                x = vector_to_x(features["vector"])
                champion = self.score(self.champion, x)
            except Reject as reject:
                dead_letter(record, reject, emit, self.dlq, "scorer")
                self.counts["dead_letters", reject.reason] += 1
                continue
            tail = scores({"champion": champion, "challengers": self._shadow(x)})
            timestamp = record.timestamp()[1]
            event_id = features["event_id"]
            emit(self.log, log_header + value[HEADER:] + tail, event_id.encode(), timestamp)
            emit(
                self.predictions,
                prediction(
                    {
                        "event_id": event_id,
                        "entity_id": features["entity_id"],
                        "event_time": features["event_time"],
                        "champion": champion,
                    }
                ),
                record.key(),
                timestamp,
            )
        return True

    def _shadow(self, x: Mapping[str, Any]) -> list[Score]:
        found = []
        for name in self._others:
            try:
                found.append(self.score(name, x))
            except Reject as reject:
                # A challenger that fails harms nobody: the champion's prediction goes out without its score.
                self.counts["skipped", reject.reason] += 1
        return found

    def gauges(self) -> Mapping[tuple[str, str], float]:
        return {("model_version", name): version for name, (version, _) in self.models.items()}


def build(pipeline: Pipeline, take: Callable[[], Sequence[Loaded]]) -> Service:
    """Wire the scorer to its topics."""
    return Service("scorer", f"{pipeline.name}.scorer", [topics.FEATURES.name(pipeline.name)], Scorer(pipeline, take))
