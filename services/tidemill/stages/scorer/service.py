"""The scorer: vectors in; the champion's prediction for consumers, and all about it for the log, out.

reads   <pipeline>.features by entity; the registry (<pipeline>.models, <pipeline>.promotions), every instance all of it
writes  <pipeline>.predictions by entity, <pipeline>.prediction-log by event id, <pipeline>.dlq
state   the serving model, and the newest verified version of every model; before a model's first version, the declared
        one, which has learned nothing. A model that was folded again answers in the shadow of itself as it was, where
        that is declared, for so many predictions, or until records were erased or the process starts
outage  a newest version that can't be opened leaves the version in use where it is. Where none is in use, as after a
        start, the model does not answer; where it is the serving one, no prediction is made until it can be opened
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tidemill.declare.pipeline import Pipeline
from tidemill.encoding.codec import HEADER, carried
from tidemill.errors import Reject, Retry
from tidemill.limits import PREDICTION_BYTES
from tidemill.models.linear import specialised
from tidemill.registry.decisions import ModelRef
from tidemill.stages.scorer.feed import Ready, ServingChange, Unopened
from tidemill.stream.api import Emit, Position, Record, Start, TopicPartition
from tidemill.stream.group import Service
from tidemill.stream.origin import origin_of
from tidemill.wire import topics
from tidemill.wire.cloudevents import prediction_headers
from tidemill.wire.dead_letters import DeadLetterProcessor
from tidemill.wire.records import Features, Records, Score, vector_to_x
from tidemill.wire.services import service

log = logging.getLogger(__name__)

MAX_PREDICTION_BYTES = PREDICTION_BYTES.max


def share_of(pipeline: str, entity_id: str) -> float:
    """Return an entity's place in [0, 1): the same in every process, and as good as drawn at random."""
    digest = hashlib.blake2b(entity_id.encode(), digest_size=8, person=pipeline.encode()[:16]).digest()
    return int.from_bytes(digest, "big") / 2**64


class ServingSlot:
    """A model in use, and its version before this one, which answers when this one can't.

    `why_not` says why the model can't answer although it has versions; `is_declared`: no version was put in use.
    """

    __slots__ = ("before", "epoch", "is_declared", "model", "name", "version", "why_not")

    def __init__(self, name: str, version: int, model: Any, epoch: int = 0, *, why_not: str = "") -> None:
        self.name, self.version, self.model, self.epoch = name, version, model, epoch
        self.why_not, self.is_declared = why_not, not version
        self.before: tuple[int, Any, int] | None = None

    def put(self, version: int, model: Any, epoch: int = 0) -> None:
        """Serve another version from now on."""
        if self.version:  # version 0 has learned nothing, so it is no help
            self.before = (self.version, self.model, self.epoch)
        self.version, self.model, self.epoch = version, model, epoch
        self.why_not, self.is_declared = "", False


class Scorer(DeadLetterProcessor):
    """Scores vectors with the champion, and in the shadow with every other model.

    Parameters
    ----------
    take
        Returns model versions and serving changes that are ready; called between batches.
    shadow
        So many predictions another life of a model answers in the shadow of the one before; 0: it serves at once.
    """

    def __init__(self, pipeline: Pipeline, take: Callable[[], Sequence[Ready]] = tuple, *, shadow: int = 0) -> None:
        super().__init__(pipeline.name, "scorer")
        self.pipeline, self.records = pipeline, Records(pipeline)
        self.models = {name: ServingSlot(name, 0, specialised(pipeline.model(name))) for name in pipeline.model_names}
        self.predictions = topics.PREDICTIONS.name(pipeline.name)
        self.log = topics.PREDICTION_LOG.name(pipeline.name)
        self._predict, self._is_valid_score = pipeline.kind.predict, pipeline.kind.is_valid_score
        self._take, self._prediction_headers = take, prediction_headers(pipeline)
        self.shadow, self._shadowed, self._erased = shadow, Counter[str](), self.erased
        #: By model, another life of it that answers in the shadow.
        self._lives: dict[str, ServingSlot] = {}
        self._unopened = dict.fromkeys(pipeline.model_names, False)
        self.change(ServingChange(ModelRef(pipeline.champion)))

    def change(self, change: ServingChange) -> None:
        """Change the serving model, from the next vector on."""
        self._follows = {*self.pipeline.model_names, *change.follows}
        self.models = {name: slot for name, slot in self.models.items() if name in self._follows}
        self._pinned = []
        for ref, opened in change.opened.items():
            if ref.version:
                self._pinned.append(ServingSlot(ref.model, *opened))
            elif ref.model not in self.models:
                self.models[ref.model] = ServingSlot(ref.model, *opened)
        ref = change.champion
        pinned = [slot for slot in self._pinned if (slot.name, slot.version) == (ref.model, ref.version)]
        self.champion = pinned[0] if pinned else self.models[ref.model]
        self._arrange()

    def _arrange(self) -> None:
        # Pinned versions come first: the last of a model's scores is then its newest version's.
        self.serving_slots = (*self._pinned, *self.models.values())
        self._shares, edge = [], 0.0
        for name, share in self.pipeline.shares.items():
            self._shares.append((edge := edge + share, self.models[name]))

    def put(self, name: str, version: int, model: Any, epoch: int = 0) -> None:
        """Put another version of a model in use; a candidate that is no longer followed is left out."""
        slot = self.models.get(name)
        if slot and self.shadow and slot.version and epoch > slot.epoch:
            self._lives[name] = ServingSlot(name, version, model, epoch)
        elif slot:
            slot.put(version, model, epoch)
        elif name in self._follows:
            self.models[name] = ServingSlot(name, version, model, epoch)
            self._arrange()

    def assign(self, topic_partition: TopicPartition, committed: Position) -> Start:
        self.swap()  # what it serves is known before it is ready
        return super().assign(topic_partition, committed)

    def swap(self) -> None:
        """Put versions that are ready in place of those in use, and make the gate's choice the champion."""
        for item in self._take():
            if isinstance(item, ServingChange):
                if item.champion:
                    self.change(item)
                elif item.refused:
                    self.champion = ServingSlot(item.refused.model, 0, None, why_not=item.refused.why)
                self.counts["model_loads", "changed" if item.champion else "refused"] += 1
            elif isinstance(item, Unopened):
                self._keep(item)
            else:
                manifest = item.manifest
                self.put(manifest.model, manifest.version, item.snapshot.model, manifest.epoch)
                self.counts["model_loads", "loaded"] += 1
                self._unopened[manifest.model] = False
        self._end_shadows()

    def _end_shadows(self) -> None:
        """Have other lives serve that have answered often enough.

        Where records were erased, all do, and no model of a life before answers ever again.
        """
        were_erased, self._erased = self.erased > self._erased, self.erased
        for name in [name for name in self._lives if were_erased or self._shadowed[name] >= self.shadow]:
            life = self._lives.pop(name)
            del self._shadowed[name]
            if name in self.models:
                self.models[name].put(life.version, life.model, life.epoch)
        for slot in self.models.values() if were_erased else ():
            if slot.before and slot.before[-1] < slot.epoch:
                slot.before = None

    def _keep(self, unopened: Unopened) -> None:
        """Keep the version in use where there is one; a model that has only been declared does not answer instead."""
        slot = self.models.get(unopened.model)
        if slot is not None and slot.is_declared:
            slot.why_not = unopened.why
        self._unopened[unopened.model] = True
        self.counts["model_loads", "refused"] += 1

    def not_ready(self) -> str:
        if not self.champion.why_not:
            return ""
        return f"the serving model {self.champion.name!r} can't be opened: {self.champion.why_not}"

    def ask(self, name: str, version: int, model: Any, epoch: int, x: Mapping[str, Any]) -> Score:
        """Return a model's score. Raises Reject where it fails, or its score is not finite or out of range."""
        try:
            score, probabilities, answered = self._predict(model, x)
        except Exception as error:  # a model's own code
            raise Reject(
                "model_failed", f"model {name!r} version {version} raised {type(error).__name__}: {error}"
            ) from error
        if not self._is_valid_score(score, probabilities):
            self.counts["not_finite", "score"] += 1
            raise Reject("not_finite_score", f"model {name!r} version {version} scores {score}", value=score)
        return {
            "model": name,
            "version": version,
            "epoch": epoch,
            "score": score,
            "probabilities": probabilities,
            "answered": answered,
        }

    def _ask(self, slot: ServingSlot, x: Mapping[str, Any]) -> Score:
        return self.ask(slot.name, slot.version, slot.model, slot.epoch, x)

    def serve(self, entity_id: str, x: Mapping[str, Any]) -> Score:
        """Return the score of the model that serves this entity.

        Raises Reject where no model can answer: then the vector is at fault.
        """
        slot = self.champion
        if self._shares:
            place = share_of(self.pipeline.name, entity_id)
            slot = next((other for edge, other in self._shares if place < edge), slot)
            slot = self.champion if slot.why_not else slot
        try:
            return self._ask(slot, x)
        except Reject as reject:
            return self._instead(slot, x, reject)

    def _instead(self, slot: ServingSlot, x: Mapping[str, Any], reject: Reject) -> Score:
        """Ask the version before, and serve that again where it can answer; for a challenger, ask the champion."""
        if slot.before is not None:
            try:
                answer = self.ask(slot.name, *slot.before, x)
            except Reject:
                pass
            else:
                log.error(
                    "a version failed; the version before it serves again",
                    extra={
                        "model": slot.name,
                        "version": slot.version,
                        "before": answer["version"],
                        "cause": str(reject),
                    },
                )
                (slot.version, slot.model, slot.epoch), slot.before = slot.before, None
                self.counts["model_loads", "given_up"] += 1
                return answer
        if slot is self.champion:
            raise reject
        self.counts["skipped", reject.reason] += 1
        return self._ask(self.champion, x)

    def process(self, records: Sequence[Record], emit: Emit) -> bool:
        self.swap()
        if records and self.champion.why_not:
            raise Retry(self.not_ready())
        decode, log_header = self.records.features.decode, self.records.prediction_log.header
        scores, prediction = self.records.scores.body, self.records.prediction_for_consumers
        are_seen = self.records.are_seen
        for record in records:
            self.in_hand, value = record, record.value() or b""
            try:
                features: Features = decode(value)
                x = vector_to_x(features["vector"])
                served = self.serve(features["entity_id"], x)
            except Reject as reject:
                self.refuse(record, reject, emit)
                continue
            given = {"champion": served, "challengers": self._shadow(served, x)}
            entry = log_header + value[HEADER:] + scores(given) if are_seen else log_header
            if len(entry) > MAX_PREDICTION_BYTES:  # with a score of each of very many classes
                why = PREDICTION_BYTES.excess(len(entry))
                self.refuse(record, Reject("too_large", why, entity=features["entity_id"]), emit)
                continue
            event_id, origin, trace = features["event_id"], origin_of(record), self.traces.of(record)
            if self.records.carries:
                entry = carried(entry, {"features": features, **given})
            emit(self.log, entry, event_id.encode(), origin, trace)
            if not are_seen:
                continue
            if self._prediction_headers:
                trace = [*(trace or ()), *self._prediction_headers(event_id, features["entity_id"])]
            emit(
                self.predictions,
                prediction(
                    {
                        "event_id": event_id,
                        "entity_id": features["entity_id"],
                        "event_time": features["event_time"],
                        "champion": served,
                        "as_of": features["as_of"],
                        "stale": features["stale"],
                    }
                ),
                record.key(),
                origin,
                trace,
            )
        return True

    def answers(self, entity_id: str, x: Mapping[str, Any]) -> list[Score]:
        """Return what each model in use answers, the one that serves this entity first. Raises as `process` does."""
        self.swap()
        if self.champion.why_not:
            raise Retry(self.not_ready())
        served = self.serve(entity_id, x)
        return [served, *self._shadow(served, x)]

    def _shadow(self, served: Score, x: Mapping[str, Any]) -> list[Score]:
        scores, name, version, epoch = [], served["model"], served["version"], served["epoch"]
        slots = self.serving_slots
        if self._lives:
            self._shadowed.update(self._lives.keys())
            slots = (*slots, *self._lives.values())
        for slot in slots:
            if slot.why_not or (slot.version == version and slot.name == name and slot.epoch == epoch):
                continue
            try:
                scores.append(self._ask(slot, x))
            except Reject as reject:
                # A challenger that fails harms nobody: the prediction goes out without its score.
                self.counts["skipped", reject.reason] += 1
        return scores

    def gauges(self) -> Mapping[tuple[str, str], float]:
        versions = {("model_version", name): float(slot.version) for name, slot in self.models.items()}
        unopened = {("unopened", name): float(is_unopened) for name, is_unopened in self._unopened.items()}
        return versions | unopened | {("serving_version", self.champion.name): float(self.champion.version)}


def build(pipeline: Pipeline, take: Callable[[], Sequence[Ready]]) -> Service:
    """Wire the scorer to its topics."""
    shadow = pipeline.forgetting.shadow if pipeline.forgetting else 0
    return service("scorer", pipeline, Scorer(pipeline, take, shadow=shadow))
