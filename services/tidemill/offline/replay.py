"""Predictions done again, from their records in the log: by the version that answered, or by that version folded anew.

reads   <pipeline>.prediction-log; <pipeline>.models and the artifact store, or <pipeline>.examples from the first one on;
        for those that are told of whole also .events.valid, .examples and .expired
equal   to the last digit: the same vector, the same declaration, the same examples in the same order
memory  the predictions that are asked for, and one model; to fold, one of each name
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tidemill.declare.pipeline import Pipeline
from tidemill.encoding.codec import HEADER
from tidemill.errors import ArtifactError, SettingsError, StoreError
from tidemill.models.refold import Refold, Wanted
from tidemill.offline.backtest import Progress
from tidemill.offline.lookup import LogLookup, public_manifest
from tidemill.registry.latest import Version, versions
from tidemill.registry.manifests import Manifest, Registry
from tidemill.stream.api import Broker, Record, TopicPartition
from tidemill.stream.partition import partition_of
from tidemill.stream.ranges import full_range
from tidemill.wire import topics
from tidemill.wire.records import PredictionLog, Records, Score, vector_to_x

NEAR = 10_000
"""Offsets that lie no further apart are read together: sooner done than a second reader is there."""

Ranges = dict[TopicPartition, tuple[int, int]]


class Prediction(NamedTuple):
    """A record of the prediction log, and what it says."""

    record: Record
    log: PredictionLog

    @property
    def event_id(self) -> str:
        """The event that it is of; one that was sent or handled twice has two predictions."""
        return self.log["features"]["event_id"]

    @property
    def scores(self) -> list[Score]:
        """The champion's score, then the challengers'."""
        return [self.log["champion"], *self.log["challengers"]]


@dataclass(frozen=True)
class Again:
    """One model's score then and now. `now` is None where it can't be done again; `why` says why."""

    role: str
    then: Score
    now: Score | None
    manifest: Manifest | None
    why: str

    @property
    def state(self) -> str:
        """Return "equal", "different", or "gone" where something that it takes is not there any more."""
        return "gone" if self.now is None else "equal" if self.now == self.then else "different"


@dataclass(frozen=True)
class Done:
    """One prediction done again."""

    prediction: Prediction
    scores: Sequence[Again]

    @property
    def is_equal(self) -> bool:
        """Whether each of its scores came out as it was."""
        return all(again.state == "equal" for again in self.scores)


@dataclass
class Summary:
    """What came of all. `skipped`: records of the log by another declaration, whose vectors were others."""

    predictions: int = 0
    scores: int = 0
    versions: int = 0
    equal: int = 0
    different: int = 0
    gone: int = 0
    skipped: int = 0
    seed: int | None = None
    rebuilt: bool = False
    seconds: float = 0.0

    def add(self, done: Sequence[Done]) -> None:
        """Count what was done."""
        states = Counter(again.state for one in done for again in one.scores)
        self.predictions, self.scores = len(done), states.total()
        self.versions = len({version_of(again.then) for one in done for again in one.scores})
        self.equal, self.different, self.gone = states["equal"], states["different"], states["gone"]

    @property
    def is_equal(self) -> bool:
        """Whether every score came out as it was."""
        return self.equal == self.scores


def version_of(score: Score) -> Version:
    """Return which version of which model gave a score."""
    return score["model"], score["version"]


class Model(NamedTuple):
    """A version, and the model as it was; None where there is none any more, and why."""

    version: Version
    model: Any
    why: str = ""


class Replay:
    """Finds one pipeline's predictions, and does them again."""

    def __init__(self, pipeline: Pipeline, broker: Broker, registry: Registry) -> None:
        self.pipeline, self.broker, self.registry = pipeline, broker, registry
        self.records = Records(pipeline)
        self.topic, self.examples = (t.name(pipeline.name) for t in (topics.PREDICTION_LOG, topics.EXAMPLES))
        self.skipped = 0
        self._lookup = LogLookup(pipeline, broker, lambda *_: {}, lambda *_: None)

    def find(self, event_ids: Collection[str], progress: Progress | None = None) -> list[Prediction]:
        """Return every prediction of these events, in the order of the ids. Raises SettingsError where there is none."""
        keys: dict[bytes, list[Record]] = {event_id.encode(): [] for event_id in event_ids}
        everywhere = full_range(self.broker, self.topic)
        own = {TopicPartition(self.topic, partition_of(key, len(everywhere))) for key in keys}
        self._scan({slot: everywhere[slot] for slot in own}, keys, progress)
        if not all(keys.values()):  # whoever wrote it may have spread its keys in another way
            missing = {key: found for key, found in keys.items() if not found}
            self._scan({slot: ends for slot, ends in everywhere.items() if slot not in own}, missing, progress)
        for key, found in keys.items():
            if not found:
                raise SettingsError(f"no prediction of event {key.decode()!r} in {self.topic}: {_held(everywhere)}")
        return [self._decoded(record) for found in keys.values() for record in found]

    def _scan(self, ranges: Ranges, keys: Mapping[bytes, list[Record]], progress: Progress | None) -> None:
        for batch in self.broker.read(ranges):
            for record in batch:
                found = keys.get(record.key() or b"")
                if found is not None:
                    found.append(record)
            if progress:
                progress(len(batch))

    def _decoded(self, record: Record) -> Prediction:
        value, codec = record.value() or b"", self.records.prediction_log
        log = codec.of(value)
        if log is None:
            raise SettingsError(
                f"the prediction of event {(record.key() or b'').decode(errors='replace')!r} in {self.topic}[{record.partition()}]"
                f"@{record.offset()} has schema id {int.from_bytes(value[1:HEADER], 'big')} where {codec.id} was expected: it is of "
                f"an earlier declaration, with another vector; name the pipeline's file as it was then"
            )
        return Prediction(record, log)

    def total(self, event_ids: Collection[str]) -> int:
        """Return how many offsets are read to find these events' predictions."""
        ranges = full_range(self.broker, self.topic)
        own = {partition_of(event_id.encode(), len(ranges)) for event_id in event_ids}
        return sum(end - begin for slot, (begin, end) in ranges.items() if slot.partition in own)

    def draw(self, count: int, seed: int) -> list[Prediction]:
        """Return `count` predictions drawn at random, each as likely as any other; all, where the log holds no more.

        Some offsets hold none (the ends of transactions), so one after the other is drawn until there are enough.
        """
        ranges, rng = full_range(self.broker, self.topic), random.Random(seed)  # noqa: S311  it hides nothing
        total = sum(end - begin for begin, end in ranges.values())
        drawn: list[Prediction] = []
        tried: set[int] = set()
        while len(drawn) < count and len(tried) < total:
            numbers = rng.sample(range(total), min(total, len(tried) + 2 * (count - len(drawn))))
            fresh = {number: _place(number, ranges) for number in numbers if number not in tried}
            tried |= fresh.keys()
            there = self._at(fresh.values())
            for place in fresh.values():
                if len(drawn) == count or place not in there:
                    continue
                log = self.records.prediction_log.of(there[place].value())
                if log is None:
                    self.skipped += 1
                else:
                    drawn.append(Prediction(there[place], log))
        return drawn

    def _at(self, offsets: Collection[tuple[TopicPartition, int]]) -> dict[tuple[TopicPartition, int], Record]:
        """Return the records that lie exactly at these offsets; neighbours are read together, and partitions side by side."""
        runs: dict[TopicPartition, list[tuple[int, int]]] = {}
        for slot, offset in sorted(offsets):
            of = runs.setdefault(slot, [])
            if of and offset - of[-1][1] < NEAR:
                of[-1] = of[-1][0], offset + 1
            else:
                of.append((offset, offset + 1))
        found, wanted = {}, set(offsets)
        for number in range(max(map(len, runs.values()), default=0)):
            for batch in self.broker.read({slot: of[number] for slot, of in runs.items() if number < len(of)}):
                for record in batch:
                    place = TopicPartition(record.topic(), record.partition()), record.offset()
                    if place in wanted:
                        found[place] = record
        return found

    def again(
        self, predictions: Sequence[Prediction], *, rebuild: bool, progress: Progress | None = None
    ) -> list[Done]:
        """Do predictions again: each version is opened, or with `rebuild` folded, once for all that it answered."""
        asked: dict[Version, list[Prediction]] = {}
        for prediction in predictions:
            for score in prediction.scores:
                asked.setdefault(version_of(score), []).append(prediction)
        published = {version for version in asked if version[1] > 0}  # 0 has learned nothing: it is the declaration
        manifests, refused = versions(self.broker, self.registry, published)
        models = self._folded if rebuild else self._opened
        answers: dict[tuple[int, Version], Score | str] = {}
        for version, model, why in models(sorted(asked, key=lambda v: v[1]), manifests, refused, progress):
            for prediction in asked[version]:
                answers[id(prediction), version] = why or self._score(version, model, prediction)
        return [
            Done(prediction, [
                _again("champion" if index == 0 else "challenger", then, answers[id(prediction), version_of(then)],
                       manifests.get(version_of(then)))
                for index, then in enumerate(prediction.scores)
            ])
            for prediction in predictions
        ]  # fmt: skip

    def _score(self, version: Version, model: Any, prediction: Prediction) -> Score | str:
        try:
            score, probabilities = self.pipeline.kind.predict(model, vector_to_x(prediction.log["features"]["vector"]))
        except Exception as error:  # a model's own code
            return f"model {version[0]!r} version {version[1]} raised {type(error).__name__}: {error}"
        return {"model": version[0], "version": version[1], "score": score, "probabilities": probabilities}

    def _undeclared(self, version: Version, manifest: Manifest | None) -> str:
        """Return why a version is none of what is declared now; nothing where it is."""
        name, number = version
        if not self.pipeline.knows(name):
            return f"model {name!r} is not declared any more: name the pipeline's file as it was then"
        if manifest and manifest.declaration != self.pipeline.declaration_hash(name):
            return (
                f"model {name!r} version {number} was learned under another declaration of the model or the vector: name the "
                f"pipeline's file as it was then"
            )
        return ""

    def _opened(self, wanted: Sequence[Version], manifests: Mapping[Version, Manifest], refused: Mapping[Version, str],
                progress: Progress | None) -> Iterator[Model]:  # fmt: skip
        """Yield versions as the scorer has them: from their artifacts, after all checks."""
        for version in wanted:
            name, number = version
            manifest = manifests.get(version)
            why = self._undeclared(version, manifest)
            if why:
                yield Model(version, None, why)
            elif not number:
                yield Model(version, self.pipeline.model(name))
            elif manifest is None:
                topic = topics.MODELS.name(self.pipeline.name)
                why = refused.get(version, f"{topic} has no manifest of model {name!r} version {number}")
                yield Model(version, None, f"{why}; --rebuild folds it anew from the examples")
            else:
                try:
                    model = self.registry.open(manifest).model
                except (ArtifactError, StoreError) as error:
                    why = f"model {name!r} version {number}: {error}; --rebuild folds it anew from the examples"
                    yield Model(version, None, why)
                else:
                    yield Model(version, model)
            if progress:
                progress(1)

    def _folded(self, wanted: Sequence[Version], manifests: Mapping[Version, Manifest], _: Mapping[Version, str],
                progress: Progress | None) -> Iterator[Model]:  # fmt: skip
        """Yield versions as they were when one fold over the examples came by; what comes first learned least."""
        waiting: dict[Wanted, Version] = {}
        for version in wanted:
            manifest = manifests.get(version)
            why = self._undeclared(version, manifest)
            if why:
                yield Model(version, None, why)
            else:
                waiting[Wanted(*version, manifest.begin if manifest else self.pipeline.parts(version[0])[1])] = version
        for came in Refold(self.pipeline, self.broker).snapshots(waiting, progress):
            why = f"{came.why}; without --rebuild the artifact is taken" if came.why else ""
            yield Model(waiting[came.wanted], came.fold.model if came.fold else None, why)

    def told(self, done: Sequence[Done], progress: Progress | None = None) -> list[dict[str, Any]]:
        """Return all about some predictions, as the status service does: event, vector, scores then and now, outcome."""
        outcomes = self._outcomes([one.prediction for one in done], progress)
        return [
            self._lookup.event_and_vector(one.prediction.record, one.prediction.log)
            | {"scores": scores_told(one), "outcome": outcome}
            for one, outcome in zip(done, outcomes, strict=True)
        ]

    def _outcomes(self, predictions: Sequence[Prediction], progress: Progress | None) -> list[dict[str, Any]]:
        """Find the predictions' labels. An example lies behind all that its prediction's models had learned."""
        slot = TopicPartition(self.examples, 0)
        low, high = self.broker.offset_range(slot)
        begin = max(low, min((score["version"] for p in predictions for score in p.scores), default=high))
        keys = {p.event_id.encode() for p in predictions}
        joined = self._records({slot: (begin, high)}, keys, progress)
        expired: dict[bytes, Record] = {}
        if missing := keys - joined.keys():
            ranges = full_range(self.broker, topics.EXPIRED.name(self.pipeline.name))
            expired = self._records(ranges, missing, progress)
        return [
            self._outcome(p, joined.get(p.event_id.encode()), expired.get(p.event_id.encode())) for p in predictions
        ]

    def _records(self, ranges: Ranges, keys: Collection[bytes], progress: Progress | None) -> dict[bytes, Record]:
        """Return the records with these keys; reads no further when all are found."""
        found: dict[bytes, Record] = {}
        for batch in self.broker.read(ranges):
            found |= {key: record for record in batch if (key := record.key() or b"") in keys}
            if progress:
                progress(len(batch))
            if len(found) == len(keys):
                break
        return found

    def _outcome(self, prediction: Prediction, joined: Record | None, expired: Record | None) -> dict[str, Any]:
        record = joined or expired
        if record is None:
            return {"state": "pending"}
        place = {"topic": record.topic(), "partition": record.partition(), "offset": record.offset()}
        # A record of either begins with the bytes of the prediction that it is about.
        if not (record.value() or b"")[HEADER:].startswith((prediction.record.value() or b"")[HEADER:]):
            return {"state": "other", "why": "the label went to another prediction of this event", **place}
        if joined is None:
            return {"state": "expired", **place}
        example = self.records.example.of(joined.value())
        said = {"label": example["label"], "label_time": example["label_time"]} if example else {}
        return {"state": "joined", **said, **place}


def _held(ranges: Ranges) -> str:
    cut = [f"[{slot.partition}] begins at {low:,}" for slot, (low, _) in sorted(ranges.items()) if low]
    total = sum(high - low for low, high in ranges.values())
    more = f", and what came before was cut off ({', '.join(cut)}); the archive has it" if cut else ""
    return f"it holds {total:,} offsets{more}; expected an event's id, exactly as the event has it"


def _place(number: int, ranges: Mapping[TopicPartition, tuple[int, int]]) -> tuple[TopicPartition, int]:
    """Return slot and offset of the `number`-th of all offsets."""
    for slot, (begin, end) in ranges.items():
        if number < end - begin:
            return slot, begin + number
        number -= end - begin
    raise IndexError(number)


def _again(role: str, then: Score, answer: Score | str, manifest: Manifest | None) -> Again:
    role = "baseline" if then["model"] == "baseline" else role
    now, why = (None, answer) if isinstance(answer, str) else (answer, "")
    return Again(role, then, now, manifest, why)


def briefly(done: Done) -> dict[str, Any]:
    """Return which prediction it is, and its scores then and now."""
    record = done.prediction.record
    place = {"topic": record.topic(), "partition": record.partition(), "offset": record.offset()}
    return {"event_id": done.prediction.event_id, "log": place, "scores": scores_told(done)}


def scores_told(done: Done) -> list[dict[str, Any]]:
    """Return each score as the log has it, and beside it the one of now and the version's manifest."""
    return [
        {
            **again.then,
            "role": again.role,
            "state": again.state,
            "score_now": None if again.now is None else again.now["score"],
            "probabilities_now": None if again.now is None else again.now["probabilities"],
            "why": again.why,
            "manifest": public_manifest(dataclasses.asdict(again.manifest)) if again.manifest else None,
        }
        for again in done.scores
    ]
