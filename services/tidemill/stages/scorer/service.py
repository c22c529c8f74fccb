"""The scorer: vectors in; the champion's prediction for consumers, and all about it for the log, out.

reads   <pipeline>.features by entity; the registry (<pipeline>.models, <pipeline>.promotions), every instance all of it
writes  <pipeline>.predictions by entity, <pipeline>.prediction-log by event id, <pipeline>.dlq
state   who serves, and the newest verified version of every model; before the first, the declared ones, which know nothing
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tidemill.declare.pipeline import Pipeline
from tidemill.encoding.codec import HEADER
from tidemill.errors import Reject
from tidemill.registry.decisions import ModelRef
from tidemill.stages.scorer.feed import Loaded, ServingChange
from tidemill.stream.api import Emit, Processor, Record
from tidemill.stream.loop import Service
from tidemill.wire import topics
from tidemill.wire.dead_letters import send_dead_letter
from tidemill.wire.records import Features, Records, Score, vector_to_x
from tidemill.wire.services import service

log = logging.getLogger(__name__)


def share_of(pipeline: str, entity_id: str) -> float:
    """Return an entity's place in [0, 1): the same in every process, and as good as drawn at random."""
    digest = hashlib.blake2b(entity_id.encode(), digest_size=8, person=pipeline.encode()[:16]).digest()
    return int.from_bytes(digest, "big") / 2**64


class ServingSlot:
    """A model in its seat, and the version that was there before: what answers when this one can't."""

    __slots__ = ("before", "model", "name", "version")

    def __init__(self, name: str, version: int, model: Any) -> None:
        self.name, self.version, self.model = name, version, model
        self.before: tuple[int, Any] | None = None

    def put(self, version: int, model: Any) -> None:
        """ModelRef another version."""
        if self.version:  # one that has learned nothing is no help
            self.before = (self.version, self.model)
        self.version, self.model = version, model


class Scorer(Processor):
    """Scores vectors with the champion, and in the shadow with every other model.

    Parameters
    ----------
    take
        Returns model versions, and changes of who serves, that are ready; called between batches.
    """

    def __init__(self, pipeline: Pipeline, take: Callable[[], Sequence[Loaded | ServingChange]] = tuple) -> None:
        super().__init__()
        self.pipeline, self.records = pipeline, Records(pipeline)
        self.models = {name: ServingSlot(name, 0, pipeline.model(name)) for name in pipeline.model_names}
        self.predictions = topics.PREDICTIONS.name(pipeline.name)
        self.log = topics.PREDICTION_LOG.name(pipeline.name)
        self.dlq = topics.DLQ.name(pipeline.name)
        self._predict, self._is_sane = pipeline.kind.predict, pipeline.kind.is_valid_score
        self._take = take
        self.seat(ServingChange(ModelRef(pipeline.champion)))

    def seat(self, placed: ServingChange) -> None:
        """Change who serves; from the next vector on."""
        self._follows = {*self.pipeline.model_names, *placed.follows}
        self.models = {name: seated for name, seated in self.models.items() if name in self._follows}
        self._pinned = []
        for seat, (version, model) in placed.opened.items():
            if seat.version:
                self._pinned.append(ServingSlot(seat.model, version, model))
            elif seat.model not in self.models:
                self.models[seat.model] = ServingSlot(seat.model, version, model)
        seat = placed.champion
        pinned = [s for s in self._pinned if s.name == seat.model and s.version == seat.version]
        self.champion = pinned[0] if pinned else self.models[seat.model]
        self._arrange()

    def _arrange(self) -> None:
        # Those that are pinned come before those that learn: who takes the last of a model's scores takes the newest version's.
        self.seats = (*self._pinned, *self.models.values())
        self._shares, edge = [], 0.0
        for name, share in self.pipeline.shares.items():
            self._shares.append((edge := edge + share, self.models[name]))

    def put(self, name: str, version: int, model: Any) -> None:
        """Put another version of a model in use; that of a candidate nobody follows any more is left out."""
        if name in self.models:
            self.models[name].put(version, model)
        elif name in self._follows:
            self.models[name] = ServingSlot(name, version, model)
            self._arrange()

    def swap(self) -> None:
        """Put versions that are ready in the place of those in use, and whom the gate has chosen into the champion's."""
        for item in self._take():
            if isinstance(item, ServingChange):
                if item.champion:
                    self.seat(item)
                self.counts["model_loads", "seated" if item.champion else "refused"] += 1
            elif item.snapshot is None:
                self.counts["model_loads", "refused"] += 1
            else:
                self.put(item.manifest.model, item.manifest.version, item.snapshot.model)
                self.counts["model_loads", "loaded"] += 1

    def ask(self, name: str, version: int, model: Any, x: Mapping[str, Any]) -> Score:
        """Return what a model says. Raises Reject where it fails, or its score is none: not finite, or out of the task's range."""
        try:
            score, probabilities = self._predict(model, x)
        except Exception as error:  # a model's own code
            raise Reject(
                "model_failed", f"model {name!r} version {version} raised {type(error).__name__}: {error}"
            ) from error
        if not self._is_sane(score, probabilities):
            self.counts["not_finite", "score"] += 1
            raise Reject("not_finite_score", f"model {name!r} version {version} scores {score}", value=score)
        return {"model": name, "version": version, "score": score, "probabilities": probabilities}

    def serve(self, entity_id: str, x: Mapping[str, Any]) -> Score:
        """Return the answer of whoever serves this entity. Raises Reject where nobody can answer: then it is the vector."""
        seated = self.champion
        if self._shares:
            place = share_of(self.pipeline.name, entity_id)
            seated = next((other for edge, other in self._shares if place < edge), seated)
        try:
            return self.ask(seated.name, seated.version, seated.model, x)
        except Reject as reject:
            return self._instead(seated, x, reject)

    def _instead(self, seated: ServingSlot, x: Mapping[str, Any], reject: Reject) -> Score:
        """Ask the version before, and put that back where it can answer; ask the champion for a challenger with a share."""
        if seated.before is not None:
            try:
                answer = self.ask(seated.name, *seated.before, x)
            except Reject:
                pass
            else:
                log.error(
                    "version given up; the one before it serves again",
                    extra={
                        "model": seated.name,
                        "version": seated.version,
                        "before": answer["version"],
                        "cause": str(reject),
                    },
                )
                (seated.version, seated.model), seated.before = seated.before, None
                self.counts["model_loads", "given_up"] += 1
                return answer
        if seated is self.champion:
            raise reject
        self.counts["skipped", reject.reason] += 1
        return self.ask(self.champion.name, self.champion.version, self.champion.model, x)

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
                served = self.serve(features["entity_id"], x)
            except Reject as reject:
                send_dead_letter(record, reject, emit, self.dlq, "scorer")
                self.counts["dead_letters", reject.reason] += 1
                continue
            tail = scores({"champion": served, "challengers": self._shadow(served, x)})
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
                        "champion": served,
                    }
                ),
                record.key(),
                timestamp,
            )
        return True

    def _shadow(self, served: Score, x: Mapping[str, Any]) -> list[Score]:
        found, name, version = [], served["model"], served["version"]
        for seated in self.seats:
            if seated.version == version and seated.name == name:
                continue
            try:
                found.append(self.ask(seated.name, seated.version, seated.model, x))
            except Reject as reject:
                # A challenger that fails harms nobody: the prediction goes out without its score.
                self.counts["skipped", reject.reason] += 1
        return found

    def gauges(self) -> Mapping[tuple[str, str], float]:
        found = {("model_version", name): float(seated.version) for name, seated in self.models.items()}
        return found | {("serving_version", self.champion.name): float(self.champion.version)}


def build(pipeline: Pipeline, take: Callable[[], Sequence[Loaded | ServingChange]]) -> Service:
    """Wire the scorer to its topics."""
    return service("scorer", pipeline.name, Scorer(pipeline, take))
