"""A window's figures: distributions, their distance from the reference, and how good the predictions were.

Pure functions of rows. A figure's key has its name and what it is of: a model, one of its versions, a segment, a
feature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tidemill.declare.pipeline import Pipeline
from tidemill.watch.monitor.drift import CategoryReference, NumberReference
from tidemill.watch.monitor.performance import Answers, WindowMetrics

if TYPE_CHECKING:
    import pandas as pd

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
#: Versions of the champion with metrics of their own in one window: the latest with enough rows.
MAX_VERSIONS = 20
#: Values of one segment with metrics of their own: the most frequent.
MAX_SEGMENT_VALUES = 50


class FigureKey(NamedTuple):
    """What a figure is of. `version` -1: all versions. `feature` of `freshness_*`, `stale`, `unknown`: a view."""

    name: str
    model: str = ""
    version: int = -1
    segment: str = ""
    feature: str = ""


Figures = dict[FigureKey, float]

#: Prefixes of the columns with each model's answer.
SCORE, VERSION, PROBABILITIES = "score:", "version:", "probabilities:"
#: The column with the name of the model that served.
SERVED = "served:"
#: Prefix of the columns with, by view, the time in ms of the latest event of the entity that the features include.
AS_OF = "as_of:"


class Columns:
    """The columns of a window's rows: how a record becomes a row, and rows a frame."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.models = pipeline.model_names
        self.by_class = pipeline.task == "multiclass"
        answers = [f"{prefix}{model}" for model in self.models for prefix in self._prefixes]
        self.views = tuple(view.label for view in pipeline.views)
        common = (*pipeline.vector, *answers, *(AS_OF + name for name in self.views), SERVED, "stale", "event_time")
        self.prediction = (*common, "partial", "delay")
        self.example = (*common, "label", "label_time")

    @property
    def _prefixes(self) -> tuple[str, ...]:
        return (SCORE, VERSION, PROBABILITIES) if self.by_class else (SCORE, VERSION)

    def answers(self, log: Mapping[str, Any]) -> list[Any]:
        """Return the answers of the models, in the order of `model_names`; None where a model did not answer."""
        answers = {score["model"]: score for score in (*log["challengers"], log["champion"])}  # the served one counts
        values: list[Any] = []
        for model in self.models:
            answer = answers.get(model)
            if answer is None or not answer["answered"]:
                values += [None] * len(self._prefixes)
            elif self.by_class:
                values += [answer["score"], answer["version"], answer["probabilities"]]
            else:
                values += [answer["score"], answer["version"]]
        return values

    def _common(self, log: Mapping[str, Any]) -> tuple[Any, ...]:
        features = log["features"]
        times = map(features["as_of"].get, self.views)
        served, stale = log["champion"]["model"], features["stale"] or None
        return (*features["vector"].values(), *self.answers(log), *times, served, stale, features["event_time"])

    def prediction_row(self, log: Mapping[str, Any], delay: float | None) -> tuple[Any, ...]:
        """Return the row of a record of the prediction log."""
        return (*self._common(log), log["features"]["partial"], delay)

    def example_row(self, example: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the row of an example."""
        return (*self._common(example["prediction"]), example["label"], example["label_time"])


def frame_of(rows: Sequence[Any], columns: Sequence[str]) -> pd.DataFrame:
    """Return rows as a data frame. A monitor starts without pandas, which takes half of its start to import."""
    import pandas as pd

    return pd.DataFrame(rows, columns=list(columns))


class Reference:
    """The distributions of features, scores and labels in the champion's first examples."""

    def __init__(self, pipeline: Pipeline, rows: pd.DataFrame) -> None:
        self.rows = len(rows)
        self.features = {
            name: _reference(rows[name], kind) for name, kind in pipeline.vector.items() if rows[name].notna().any()
        }
        self.scores = {
            model: NumberReference(rows[SCORE + model].dropna().to_numpy(dtype=float))
            for model in pipeline.model_names
            if rows[SCORE + model].notna().any()
        }
        self.labels = _reference(rows["label"], "number" if pipeline.task == "regression" else "category")


def _reference(column: pd.Series[Any], kind: str) -> NumberReference | CategoryReference:
    values = column.dropna()
    return NumberReference(values.to_numpy(dtype=float)) if kind == "number" else CategoryReference(values.tolist())


def prediction_figures(pipeline: Pipeline, rows: pd.DataFrame, reference: Reference | None) -> Figures:
    """Return the figures of predictions: features, scores, delays, and the age and completeness of features by view."""
    figures: Figures = {}
    for name, kind in pipeline.vector.items():
        _feature(figures, name, kind, rows[name], reference)
        if name in pipeline.personal_features:  # these two are somebody's own values
            figures.pop(FigureKey("min", feature=name), None)
            figures.pop(FigureKey("max", feature=name), None)
    for model in pipeline.model_names:
        scores = rows[SCORE + model].dropna().to_numpy(dtype=float)
        if not len(scores):
            continue
        figures[FigureKey("score_mean", model)] = float(scores.mean())
        if reference and model in reference.scores:
            figures[FigureKey("score_psi", model)] = reference.scores[model].psi(scores)
            figures[FigureKey("score_ks", model)] = reference.scores[model].ks(scores)
    figures[FigureKey("partial")] = float(rows["partial"].mean())
    _percentiles(figures, FigureKey("delay"), rows["delay"].dropna().to_numpy(dtype=float))
    _views(figures, [view.label for view in pipeline.views], rows)
    return figures


def _percentiles(figures: Figures, key: FigureKey, values: npt.NDArray[np.float64]) -> None:
    if len(values):
        for share, suffix in ((0.5, "p50"), (0.99, "p99")):
            figures[key._replace(name=f"{key.name}_{suffix}")] = float(np.quantile(values, share))


def _views(figures: Figures, views: Sequence[str], rows: pd.DataFrame) -> None:
    """Add, by view: the age of its features in s of event time, and the shares of vectors without them.

    `stale`: the view could not be read. `unknown`: it has nothing of the entity, or the event has no such entity.
    """
    time = rows["event_time"].to_numpy(dtype=float)
    has_stale = rows["stale"].notna().to_numpy()
    for view in views:
        as_of = rows[AS_OF + view].to_numpy(dtype=float)
        stale = np.zeros(len(rows), dtype=bool)
        stale[has_stale] = [view in stale_views for stale_views in rows["stale"].to_numpy()[has_stale]]
        known = ~np.isnan(as_of)
        # A view may be ahead of the event: by events of others, or because the event itself is late.
        _percentiles(figures, FigureKey("freshness", feature=view), np.maximum(time[known] - as_of[known], 0.0) / 1000)
        figures[FigureKey("stale", feature=view)] = float(stale.mean())
        figures[FigureKey("unknown", feature=view)] = float((~known & ~stale).mean())


def _feature(figures: Figures, name: str, kind: str, column: pd.Series[Any], reference: Reference | None) -> None:
    values = column.dropna()
    figures[FigureKey("missing", feature=name)] = 1.0 - len(values) / len(column)
    if not len(values):
        return
    known = reference.features.get(name) if reference else None
    if kind == "number":
        numbers = values.to_numpy(dtype=float)
        figures[FigureKey("mean", feature=name)] = float(numbers.mean())
        figures[FigureKey("std", feature=name)] = float(numbers.std())
        figures[FigureKey("min", feature=name)] = float(numbers.min())
        figures[FigureKey("max", feature=name)] = float(numbers.max())
        for share, value in zip(QUANTILES, np.quantile(numbers, QUANTILES), strict=True):
            figures[FigureKey(f"p{int(share * 100):02d}", feature=name)] = float(value)
        if isinstance(known, NumberReference):
            figures[FigureKey("psi", feature=name)] = known.psi(numbers)
            figures[FigureKey("ks", feature=name)] = known.ks(numbers)
    else:
        counts = values.value_counts()
        figures[FigureKey("distinct", feature=name)] = float(len(counts))
        figures[FigureKey("top_share", feature=name)] = float(counts.iloc[0] / len(values))
        if isinstance(known, CategoryReference):
            figures[FigureKey("psi", feature=name)] = known.psi(values.tolist())
            figures[FigureKey("unseen", feature=name)] = known.unseen(values.tolist())


def example_figures(
    pipeline: Pipeline,
    window_metrics: WindowMetrics,
    rows: pd.DataFrame,
    segments: Sequence[str],
    min_rows: int,
    reference: Reference | None,
) -> Figures:
    """Return the figures of examples: each model's metrics, overall, by segment and by version; and the labels."""
    figures: Figures = {}
    label = rows["label"]
    if pipeline.task in ("binary", "regression", "anomaly"):
        figures[FigureKey("label_mean")] = float(label.astype(float).mean())
    if reference:
        labels = reference.labels
        figures[FigureKey("label_psi")] = (
            labels.psi(label.to_numpy(dtype=float))
            if isinstance(labels, NumberReference)
            else labels.psi(label.tolist())
        )
    waited = (rows["label_time"] - rows["event_time"]).to_numpy(dtype=float) / 1000
    figures[FigureKey("label_delay_p50")], figures[FigureKey("label_delay_p95")] = map(
        float, np.quantile(waited, (0.5, 0.95))
    )
    groups = {segment: _groups(rows[segment], min_rows) for segment in segments}
    answers = {model: _answers(rows, model) for model in pipeline.model_names}
    for model, (answered, positions) in answers.items():
        if len(answered):
            _performance(figures, window_metrics, model, answered, positions, groups, min_rows)
    if "baseline" in answers and answers["baseline"][0].version.any():  # else it has learned nothing: no measure
        _gains(figures, window_metrics)
    served = rows[SERVED].mode()
    champion = served[0] if len(served) and served[0] in answers else pipeline.champion
    _versions(figures, window_metrics, champion, answers[champion][0], min_rows)
    return figures


def _groups(column: pd.Series[Any], min_rows: int) -> dict[str, npt.NDArray[Any]]:
    """Return the positions of each value's rows in a segment, the most frequent values first, without rare values."""
    groups = column.groupby(column).indices.items()
    rows = {str(value): np.asarray(positions) for value, positions in groups if len(positions) >= min_rows}
    return dict(sorted(rows.items(), key=lambda item: -len(item[1]))[:MAX_SEGMENT_VALUES])


def _answers(rows: pd.DataFrame, model: str) -> tuple[Answers, npt.NDArray[Any]]:
    """Return the answers of `model`, and for each row the position of its answer among them, or -1."""
    has_score = rows[SCORE + model].notna().to_numpy()
    positions = np.where(has_score, np.cumsum(has_score) - 1, -1)
    label = rows["label"].to_numpy()[has_score]
    by_class = rows[PROBABILITIES + model].to_numpy()[has_score] if PROBABILITIES + model in rows else None
    score, version = (rows[name + model].to_numpy()[has_score] for name in (SCORE, VERSION))
    return Answers(label, score.astype(float), version.astype(np.int64), by_class), positions


def _performance(
    figures: Figures,
    window_metrics: WindowMetrics,
    model: str,
    answers: Answers,
    positions: npt.NDArray[Any],
    groups: Mapping[str, Mapping[str, npt.NDArray[Any]]],
    min_rows: int,
) -> None:
    for name, value in (window_metrics.metrics(answers) | window_metrics.calibration(answers)).items():
        figures[FigureKey(name, model)] = value
    for segment, values in groups.items():
        for segment_value, rows in values.items():
            answered = positions[rows]
            part = answers.some(answered[answered >= 0])
            if len(part) >= min_rows:
                for name, measured in window_metrics.metrics(part).items():
                    figures[FigureKey(name, model, segment=f"{segment}={segment_value}")] = measured


def _gains(figures: Figures, window_metrics: WindowMetrics) -> None:
    """Add each model's gain over the baseline; above 0 is better."""
    for key, value in list(figures.items()):
        if key.name in window_metrics.bigger_is_better and key.model not in ("", "baseline"):
            base = figures.get(key._replace(model="baseline"))
            if base is not None:
                figures[key._replace(name=f"{key.name}_gain")] = window_metrics.gain(key.name, value, base)


def _versions(figures: Figures, window_metrics: WindowMetrics, champion: str, answers: Answers, min_rows: int) -> None:
    """Add the champion's metrics by version, and the gain of each version over the previous one."""
    versions, counts = np.unique(answers.version, return_counts=True)
    previous: Mapping[str, float] = {}
    for version in versions[counts >= min_rows][-MAX_VERSIONS:].tolist():
        now = window_metrics.metrics(answers.some(answers.version == version))
        for name, value in now.items():
            figures[FigureKey(name, champion, version)] = value
            if name in previous:
                figures[FigureKey(f"{name}_gain", champion, version)] = window_metrics.gain(name, value, previous[name])
        previous = now
