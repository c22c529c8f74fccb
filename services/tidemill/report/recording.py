"""What a report shows of a backtest, recorded while it runs and measured at its end.

memory   scores and labels of all examples, 16 bytes a model each; served vectors as Avro, for the run with labels at
         once; rows of open windows
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tidemill.declare.pipeline import Pipeline
from tidemill.durations import milliseconds
from tidemill.models.evidence import LOSSES
from tidemill.models.linear import specialised
from tidemill.offline.backtest import Backtest, BacktestReport, KnownLabel
from tidemill.stream.api import Progress, Record
from tidemill.watch.monitor.alerts import Alert
from tidemill.watch.monitor.core import ClosedWindow, Core
from tidemill.wire import topics
from tidemill.wire.records import Features, vector_to_x

#: Windows that a chart has room for: with more of them, longer windows are measured.
MAX_WINDOWS = 60
#: Lengths of windows that people can read.
WINDOWS = ("1m", "5m", "15m", "1h", "3h", "6h", "12h", "1d", "2d", "7d", "14d", "30d", "91d", "365d", "3650d")
#: The latest examples by which the importance of features is measured.
MAX_IMPORTANCE_EXAMPLES = 1_000

Numbers = npt.NDArray[np.float64]


def with_window(pipeline: Pipeline, times: Sequence[int]) -> Pipeline:
    """Return the pipeline with windows of its monitor so long that MAX_WINDOWS hold nearly all `times` (ms, sorted)."""
    declared, few = pipeline.monitor, len(times) // 200
    span = times[-1 - few] - times[few] if times else 0
    wanted = max(milliseconds(declared.window), span // MAX_WINDOWS)
    if wanted == milliseconds(declared.window):
        return pipeline
    window = next((w for w in WINDOWS if milliseconds(w) >= wanted), WINDOWS[-1])
    least = 3 * milliseconds(window)
    reference = declared.reference if milliseconds(declared.reference) >= least else f"{least}ms"
    return replace(pipeline, monitor=replace(declared, window=window, reference=reference))


@dataclass(frozen=True)
class Answered:
    """One model's answers to the questions whose label came, in the order of the examples.

    `hit`: of classes, whether the likeliest was right; else the label, as a number.
    """

    score: Numbers
    hit: Numbers


@dataclass(frozen=True)
class Importance:
    """By how much a model's loss grows where one feature is mixed up among the examples; `error` is of the mean."""

    feature: str
    increase: float
    error: float


@dataclass
class Recording:
    """A backtest with what a report shows of it. Times are ms since the epoch, delays in seconds.

    `at_once`: each model's metrics where every label is known with its question; None where it was not measured.
    `importance` is of the model that served last.
    """

    pipeline: Pipeline
    backtest: BacktestReport
    windows: list[ClosedWindow]
    answered: dict[str, Answered]
    delays: Numbers
    segments: dict[str, list[dict[str, Any]]]
    serving: str
    importance: list[Importance] = field(default_factory=list)
    importance_examples: int = 0
    at_once: dict[str, dict[str, float]] | None = None

    @property
    def alerts(self) -> list[Alert]:
        """What opened or resolved an alert, in the order of the windows."""
        changed = [alert for window in self.windows for alert in window.alerts if alert.state != "continuing"]
        return sorted(changed, key=lambda alert: alert.end)


class Recorder:
    """Records a backtest; make it before the backtest runs."""

    def __init__(self, backtest: Backtest) -> None:
        self.backtest, self.pipeline = backtest, backtest.pipeline
        self._core = Core(self.pipeline, clock=lambda: 0.0)
        self._core.catching_up = True  # the delay of a prediction is nothing here
        name, core = self.pipeline.name, self._core
        self._takers: dict[str, Callable[[Record], None]] = {
            topics.FEATURES.name(name): self._vector,
            topics.PREDICTION_LOG.name(name): lambda record: core.predictions((record,)),
            topics.EXAMPLES.name(name): self._example,
            topics.DLQ.name(name): lambda record: core.letters((record,)),
            topics.WARNINGS.name(name): lambda record: core.warnings((record,)),
            topics.EXPIRED.name(name): lambda record: core.expired((record,)),
        }
        self._records = backtest.records
        self._vectors: list[bytes] = []
        self._labels: list[KnownLabel] = []
        self._scores: dict[str, list[float]] = {model: [] for model in self.pipeline.model_names}
        self._hits: dict[str, list[float]] = {model: [] for model in self.pipeline.model_names}
        self._delays: list[float] = []
        self._latest: deque[tuple[Mapping[str, Any], Any]] = deque(maxlen=MAX_IMPORTANCE_EXAMPLES)
        self._windows: list[ClosedWindow] = []
        backtest.emitted, backtest.examples = self._take, self._count

    def _take(self, record: Record) -> None:
        taker = self._takers.get(record.topic())
        if taker is not None:
            taker(record)

    def _vector(self, record: Record) -> None:
        self._vectors.append(record.value() or b"")

    def _example(self, record: Record) -> None:
        self._core.examples((record,))
        self._windows += self._core.close({})

    def _count(self, record: Record) -> None:
        example = self._records.example.decode(record.value() or b"")
        prediction, label = example["prediction"], example["label"]
        features = prediction["features"]
        self._delays.append((example["label_time"] - features["event_time"]) / 1000)
        self._latest.append((features["vector"], label))
        self._labels.append(KnownLabel(features["event_id"], label, features["event_time"]))
        is_multiclass = self.pipeline.task == "multiclass"
        for score in (prediction["champion"], *prediction["challengers"]):
            judged = self.pipeline.kind.judged(score["score"], score["probabilities"], score["answered"])
            if judged is None or score["model"] not in self._scores:
                continue
            self._scores[score["model"]].append(score["score"])
            self._hits[score["model"]].append(float(judged.label == label) if is_multiclass else float(label))

    def finish(self, report: BacktestReport, progress: Progress | None = None, *, at_once: bool = True) -> Recording:
        """Return the recording. With `at_once` the models run again over the same vectors, with no label delayed."""
        self._windows += self._core.finish()
        serving = self.backtest.scorer.champion.name
        recording = Recording(
            self.pipeline,
            report,
            self._windows,
            {
                model: Answered(np.array(scores, dtype=float), np.array(self._hits[model], dtype=float))
                for model, scores in self._scores.items()
                if scores
            },
            np.array(self._delays, dtype=float),
            {name: fold.segments.as_dicts() for name, fold in self.backtest.folds.items()},
            serving,
        )
        if serving in self.backtest.folds:
            model = self.backtest.folds[serving].model
            recording.importance = importance(self.pipeline, model, self._latest)
            recording.importance_examples = len(self._latest)
        if at_once and self._labels:
            recording.at_once = self._run_at_once(progress)
        return recording

    def _run_at_once(self, progress: Progress | None) -> dict[str, dict[str, float]]:
        run = Backtest(replace(self.pipeline, gate=None))
        decode = self._records.features.decode
        vectors: Iterator[Features] = map(decode, self._vectors)
        labels = sorted(self._labels, key=lambda label: label.label_time)
        return run.replay(vectors, labels, progress).metrics


def importance(pipeline: Pipeline, model: Any, examples: Sequence[tuple[Mapping[str, Any], Any]]) -> list[Importance]:
    """Return what each feature is worth to a model, the most important first; nothing for anomaly scores.

    A feature's values are mixed up among the examples, and the model is asked again: what its loss gains is what the
    feature told it. Features that say the same stand in for each other. Source: Breiman, Random Forests, Machine
    Learning 45 (2001).
    """
    known = LOSSES.get(pipeline.task)
    if known is None or not examples:
        return []
    predict, loss, model = pipeline.kind.predict, known[1], specialised(model)

    def losses(vectors: Iterable[Mapping[str, Any]]) -> Numbers:
        values = []
        for vector, (_, label) in zip(vectors, examples, strict=True):
            score, probabilities, answered = predict(model, vector_to_x(vector))
            values.append(
                loss(
                    label,
                    {
                        "model": "",
                        "version": 0,
                        "epoch": 0,
                        "score": score,
                        "probabilities": probabilities,
                        "answered": answered,
                    },
                )
            )
        return np.array(values, dtype=float)

    draw = random.Random(0)  # noqa: S311  the same report of the same data
    measured = []
    try:
        as_served = losses(vector for vector, _ in examples)
        for name in pipeline.vector:
            values = [vector[name] for vector, _ in examples]
            draw.shuffle(values)
            mixed = ({**vector, name: value} for (vector, _), value in zip(examples, values, strict=True))
            more = losses(mixed) - as_served
            measured.append(Importance(name, float(more.mean()), float(more.std() / np.sqrt(len(more)))))
    except Exception:  # a model's own code, asked about vectors that nobody has seen
        return []
    return sorted(measured, key=lambda one: -one.increase)
