"""Predictions repeated from the log, by the versions that made them, or by those versions folded again.

reads   <pipeline>.prediction-log; <pipeline>.models and the artifact store, or all of <pipeline>.examples; for details
        also .events.valid, .examples and .expired
equal   to the last digit: the same vector, the same declaration, the same examples in the same order
memory  the predictions, and one model; to fold, one model of each name
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from tidemill.declare.pipeline import Pipeline
from tidemill.encoding.codec import HEADER
from tidemill.errors import ArtifactError, SettingsError, StoreError
from tidemill.models.corrections import Corrections
from tidemill.models.linear import specialised
from tidemill.models.refold import FoldRange, Refold
from tidemill.offline.lookup import LogLookup, public_manifest
from tidemill.offline.prediction_reader import Prediction, PredictionReader, Ranges
from tidemill.registry.forgetting import Requests
from tidemill.registry.latest import versions
from tidemill.registry.manifests import Manifest, Registry
from tidemill.stream.api import Broker, Progress, Record, TopicPartition
from tidemill.stream.ranges import full_range
from tidemill.wire import topics
from tidemill.wire.records import Records, Score, vector_to_x

#: A model's name, version and epoch.
Version = tuple[str, int, int]
#: Shows how far something has come: (what, how much in all) -> what is told of each step, or None.
ShowProgress = Callable[[str, int | None], contextlib.AbstractContextManager[Progress | None]]


@dataclass(frozen=True)
class ReplayedScore:
    """One model's score then and now. `now` is None where it can't be repeated; `why` has the reason."""

    role: str
    then: Score
    now: Score | None
    manifest: Manifest | None
    why: str

    @property
    def state(self) -> str:
        """Return "equal", "different", or "gone" where something that is needed does not exist any more."""
        return "gone" if self.now is None else "equal" if self.now == self.then else "different"


@dataclass(frozen=True)
class ReplayedPrediction:
    """One prediction with its scores then and now."""

    prediction: Prediction
    scores: Sequence[ReplayedScore]

    @property
    def is_equal(self) -> bool:
        """Whether each score is equal to what it was."""
        return all(score.state == "equal" for score in self.scores)

    def as_dict(self) -> dict[str, Any]:
        """Return which prediction it is, and its scores, for programs."""
        record = self.prediction.record
        place = {"topic": record.topic(), "partition": record.partition(), "offset": record.offset()}
        return {"event_id": self.prediction.event_id, "log": place, "scores": self.scores_as_dict()}

    def scores_as_dict(self) -> list[dict[str, Any]]:
        """Return each score of the log, with the score of now and the version's manifest."""
        return [
            {
                **score.then,
                "role": score.role,
                "state": score.state,
                "score_now": None if score.now is None else score.now["score"],
                "probabilities_now": None if score.now is None else score.now["probabilities"],
                "why": score.why,
                "manifest": public_manifest(dataclasses.asdict(score.manifest)) if score.manifest else None,
            }
            for score in self.scores
        ]


@dataclass
class Summary:
    """Counts over all predictions. `skipped`: records of the log by another declaration, with other vectors."""

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

    def add(self, replayed: Sequence[ReplayedPrediction]) -> None:
        """Count these predictions."""
        scores = [score for one in replayed for score in one.scores]
        states = Counter(score.state for score in scores)
        self.predictions, self.scores = len(replayed), len(scores)
        self.versions = len({version_of(score.then) for score in scores})
        self.equal, self.different, self.gone = states["equal"], states["different"], states["gone"]

    @property
    def is_equal(self) -> bool:
        """Whether every score is equal to what it was."""
        return self.equal == self.scores


@dataclass(frozen=True)
class ReplayReport:
    """The replayed predictions, the summary of them, and what is printed of each."""

    replayed: Sequence[ReplayedPrediction]
    summary: Summary
    predictions: Sequence[Mapping[str, Any]]

    @property
    def unequal(self) -> list[ReplayedPrediction]:
        """Predictions with a score that is not equal."""
        return [one for one in self.replayed if not one.is_equal]

    def as_dict(self) -> dict[str, Any]:
        """Return the report for programs."""
        summary = dataclasses.asdict(self.summary)
        return {"equal": self.summary.is_equal, "summary": summary, "predictions": self.predictions}


def check_choice(ids: Sequence[str], sample: int | None, seed: int | None) -> None:
    """Raise SettingsError unless predictions are named, or a sample is drawn: one of the two."""
    if bool(ids) == (sample is not None):
        raise SettingsError("name the predictions to replay, or draw some with --sample: one of the two")
    if sample is not None and sample < 1:
        raise SettingsError(f"--sample {sample}: expected 1 or more")
    if seed is not None and sample is None:
        raise SettingsError(f"--seed {seed} goes with --sample: named predictions are not drawn")


def version_of(score: Score) -> Version:
    """Return which version of which model, in which of its lives, made a score."""
    return score["model"], score["version"], score["epoch"]


class _Model(NamedTuple):
    """A version and its model; None where there is none any more, and why."""

    version: Version
    model: Any
    why: str = ""


class Replay:
    """Repeats one pipeline's predictions; `log` finds them."""

    def __init__(self, pipeline: Pipeline, broker: Broker, registry: Registry) -> None:
        self.pipeline, self.broker, self.registry = pipeline, broker, registry
        self.log = PredictionReader(pipeline, broker)
        records = Records(pipeline)
        self._example, self._corrections = records.example, Corrections(records)
        self._lookup = LogLookup(pipeline, broker, lambda *_: {}, lambda *_: None, keys=registry.keys)

    @cached_property
    def requests(self) -> Requests:
        """The requests to forget, which say why something is gone."""
        return Requests(self.pipeline, self.broker, self.registry.keys)

    def report(
        self,
        ids: Sequence[str] = (),
        *,
        sample: int | None = None,
        seed: int | None = None,
        rebuild: bool = False,
        ranges: Ranges | None = None,
        shows_personal: bool = True,
        progress: ShowProgress = lambda _what, _total: contextlib.nullcontext(),
    ) -> ReplayReport:
        """Repeat the predictions of these ids, with all that is known of each; or a sample, drawn at random.

        `ranges`: the offsets of the prediction log that a sample is drawn from; by default all. Unless
        `shows_personal`, personal fields are masked in what is known of each.
        Raises SettingsError as `check_choice`, and where there is nothing to draw from.
        """
        check_choice(ids, sample, seed)
        started, summary = time.perf_counter(), Summary(rebuilt=rebuild)
        if sample is None:
            ids = tuple(dict.fromkeys(ids))
            with progress("prediction log", self.log.total(ids)) as advance:
                predictions = self.log.find(ids, advance)
        else:
            summary.seed = random.randrange(2**32) if seed is None else seed  # noqa: S311  it hides nothing
            predictions = self.log.draw(sample, summary.seed, ranges)
            if not predictions:
                raise SettingsError(f"--sample {sample}: {self.log.topic} holds no prediction of this declaration")
        versions = {version_of(score) for prediction in predictions for score in prediction.scores}
        total = max(number for _, number, _ in versions) if rebuild else len(versions)
        with progress("folding examples" if rebuild else "versions", total) as advance:
            replayed = self.run(predictions, rebuild=rebuild, progress=advance)
        summary.add(replayed)
        summary.skipped = self.log.skipped
        if sample is None:
            with progress("outcomes", None) as advance:
                printed = self.details(replayed, advance)
            if not shows_personal:
                printed = [self._lookup.records.mask.named(one) for one in printed]
        else:
            printed = [one.as_dict() for one in replayed if not one.is_equal]
        summary.seconds = time.perf_counter() - started
        return ReplayReport(replayed, summary, printed)

    def run(
        self, predictions: Sequence[Prediction], *, rebuild: bool, progress: Progress | None = None
    ) -> list[ReplayedPrediction]:
        """Repeat predictions: each version is opened, or with `rebuild` folded, once for all its predictions."""
        by_version: dict[Version, list[Prediction]] = {}
        for prediction in predictions:
            for score in prediction.scores:
                by_version.setdefault(version_of(score), []).append(prediction)
        published = {
            version for version in by_version if version[1] > 0
        }  # 0 has learned nothing: it is the declaration
        manifests, refused = versions(self.broker, self.registry, published)
        models = self._folded if rebuild else self._opened
        answers: dict[tuple[int, Version], Score | str] = {}
        for version, model, why in models(sorted(by_version, key=lambda v: v[1]), manifests, refused, progress):
            for prediction in by_version[version]:
                answers[id(prediction), version] = why or self._score(version, model, prediction)

        def replayed(prediction: Prediction) -> Iterator[ReplayedScore]:
            for index, then in enumerate(prediction.scores):
                version = version_of(then)
                answer = answers[id(prediction), version]
                role = "baseline" if then["model"] == "baseline" else "challenger" if index else "champion"
                now, why = (None, answer) if isinstance(answer, str) else (answer, "")
                yield ReplayedScore(role, then, now, manifests.get(version), why)

        return [ReplayedPrediction(prediction, list(replayed(prediction))) for prediction in predictions]

    def _score(self, version: Version, model: Any, prediction: Prediction) -> Score | str:
        try:
            x = vector_to_x(prediction.log["features"]["vector"])
            score, probabilities, answered = self.pipeline.kind.predict(model, x)
        except Exception as error:  # a model's own code
            return f"model {version[0]!r} version {version[1]} raised {type(error).__name__}: {error}"
        name, number, epoch = version
        return {
            "model": name,
            "version": number,
            "epoch": epoch,
            "score": score,
            "probabilities": probabilities,
            "answered": answered,
        }

    def _undeclared(self, version: Version, manifest: Manifest | None) -> str:
        """Return why a version is not of the present declaration; "" where it is."""
        name, number, _ = version
        if not self.pipeline.knows(name):
            return f"model {name!r} is not declared any more: name the pipeline's file as it was then"
        if manifest and manifest.declaration != self.pipeline.declaration_hash(name):
            return (
                f"model {name!r} version {number} was learned under another declaration of the model or the vector: "
                f"name the pipeline's file as it was then"
            )
        return ""

    def _forgotten(self, version: Version, manifest: Manifest | None) -> str:
        """Return that what a version had learned was forgotten; "" where nothing of it was."""
        name, number, epoch = version
        begin = manifest.begin if manifest else self.pipeline.parts(name)[1]
        request = self.requests.of_version(name, number, epoch, begin)
        return f"model {name!r} version {number}: {request.why_gone}" if request else ""

    def _opened(
        self,
        wanted: Sequence[Version],
        manifests: Mapping[Version, Manifest],
        refused: Mapping[Version, str],
        progress: Progress | None,
    ) -> Iterator[_Model]:
        """Yield versions as the scorer opens them: from their artifacts, after all checks."""
        for version in wanted:
            name, number, _ = version
            manifest = manifests.get(version)
            why = self._undeclared(version, manifest)
            if why:
                yield _Model(version, None, why)
            elif not number:
                yield _Model(version, self.pipeline.model(name))
            elif manifest is None:
                topic = topics.MODELS.name(self.pipeline.name)
                why = refused.get(version, f"{topic} has no manifest of model {name!r} version {number}")
                why = self._forgotten(version, None) or f"{why}; --rebuild folds it again from the examples"
                yield _Model(version, None, why)
            else:
                try:
                    model = specialised(self.registry.open(manifest).model)
                except (ArtifactError, StoreError) as error:
                    why = self._forgotten(version, manifest)
                    why = why or f"model {name!r} version {number}: {error}; --rebuild folds it again from the examples"
                    yield _Model(version, None, why)
                else:
                    yield _Model(version, model)
            if progress:
                progress(1)

    def _folded(
        self,
        wanted: Sequence[Version],
        manifests: Mapping[Version, Manifest],
        _: Mapping[Version, str],
        progress: Progress | None,
    ) -> Iterator[_Model]:
        """Yield versions as one fold over the examples reaches them, those with the fewest examples first."""
        waiting: dict[FoldRange, list[Version]] = {}
        for version in wanted:
            manifest = manifests.get(version)
            why = self._undeclared(version, manifest) or self._forgotten(version, manifest)
            if why:
                yield _Model(version, None, why)
            else:
                begin = manifest.begin if manifest else self.pipeline.parts(version[0])[1]
                waiting.setdefault(FoldRange(version[0], version[1], begin), []).append(version)
        for reached in Refold(self.pipeline, self.broker).snapshots(waiting, progress):
            why = f"{reached.why}; without --rebuild the artifact is taken" if reached.why else ""
            for version in waiting[reached.target]:
                yield _Model(version, reached.fold.running if reached.fold else None, why)

    def details(self, replayed: Sequence[ReplayedPrediction], progress: Progress | None = None) -> list[dict[str, Any]]:
        """Return everything about some predictions, as the status service does: event, vector, scores, outcome."""
        outcomes = self._outcomes([one.prediction for one in replayed], progress)
        return [
            self._lookup.event_and_vector(one.prediction.record, one.prediction.log)
            | {"scores": one.scores_as_dict(), "outcome": outcome}
            for one, outcome in zip(replayed, outcomes, strict=True)
        ]

    def _outcomes(self, predictions: Sequence[Prediction], progress: Progress | None) -> list[dict[str, Any]]:
        """Find the predictions' labels: an example lies behind all that its prediction's models had learned."""
        partition = TopicPartition(topics.EXAMPLES.name(self.pipeline.name), 0)
        low, high = self.broker.offset_range(partition)
        begin = max(low, min((score["version"] for p in predictions for score in p.scores), default=high))
        keys = {p.event_id.encode() for p in predictions}
        joined = self._records({partition: (begin, high)}, keys, progress)
        expired: dict[bytes, Record] = {}
        if missing := keys - joined.keys():
            ranges = full_range(self.broker, topics.EXPIRED.name(self.pipeline.name))
            expired = self._records(ranges, missing, progress)
        return [
            self._outcome(p, joined.get(p.event_id.encode()), expired.get(p.event_id.encode())) for p in predictions
        ]

    def _records(self, ranges: Ranges, keys: Collection[bytes], progress: Progress | None) -> dict[bytes, Record]:
        """Return the records with these keys; stops when it has all."""
        records: dict[bytes, Record] = {}
        for batch in self.broker.read(ranges):
            records |= {
                key: record
                for record in batch
                if (key := record.key() or b"") in keys and not self._corrections.is_one(record)
            }
            if progress:
                progress(len(batch))
            if len(records) == len(keys):
                break
        return records

    def _outcome(self, prediction: Prediction, joined: Record | None, expired: Record | None) -> dict[str, Any]:
        record = joined or expired
        if record is None:
            return {"state": "pending"}
        place = {"topic": record.topic(), "partition": record.partition(), "offset": record.offset()}
        # A record of either topic begins with the bytes of its prediction.
        if not (record.value() or b"")[HEADER:].startswith((prediction.record.value() or b"")[HEADER:]):
            return {"state": "other", "why": "the label went to another prediction of this event", **place}
        if joined is None:
            return {"state": "expired", **place}
        example = self._example.of(joined.value())
        label = {"label": example["label"], "label_time": example["label_time"]} if example else {}
        return {"state": "joined", **label, **place}
