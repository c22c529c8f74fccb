"""A window's figures: what it was like, how far that is from the reference, and how good the predictions were.

Pure functions of rows. A figure has a name and says of what it is: a model, one of its versions, a segment, a feature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from tidemill.declare.pipeline import Pipeline
from tidemill.watch.monitor.drift import CategoryReference, NumberReference
from tidemill.watch.monitor.performance import Answers, Judge

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MOST_VERSIONS = 20
"""Versions of the champion that are told apart in one window: the latest with rows enough."""
MOST_SEGMENTS = 50
"""Values of one segment that are told apart: the most frequent."""


class Key(NamedTuple):
    """What a figure is of. `version` -1: of all versions; `feature` of `freshness_*`, `stale` and `unknown`: a view's name."""

    name: str
    model: str = ""
    version: int = -1
    segment: str = ""
    feature: str = ""


Figures = dict[Key, float]

SCORE, VERSION, PROBABILITIES = "score:", "version:", "probabilities:"
"""Prefixes of the columns that hold what each model said."""
SERVED = "served:"
"""The column that has the model that served."""
AS_OF = "as_of:"
"""Prefix of the columns that hold, by view, the time in ms of the latest event that the features knew of their entity."""


class Columns:
    """The columns of a window's rows: how a record becomes a row, and rows a frame."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.models = pipeline.model_names
        self.by_class = pipeline.task == "multiclass"
        said = [f"{prefix}{model}" for model in self.models for prefix in self._prefixes]
        self.views = tuple(view.label for view in pipeline.views)
        common = (*pipeline.vector, *said, *(AS_OF + name for name in self.views), SERVED, "stale", "event_time")
        self.prediction = (*common, "partial", "delay")
        self.example = (*common, "label", "label_time")

    @property
    def _prefixes(self) -> tuple[str, ...]:
        return (SCORE, VERSION, PROBABILITIES) if self.by_class else (SCORE, VERSION)

    def said(self, log: Mapping[str, Any]) -> list[Any]:
        """Return what each model of the model_names said, in its order; None where one did not answer."""
        answers = {score["model"]: score for score in (*log["challengers"], log["champion"])}  # what was served counts
        found: list[Any] = []
        for model in self.models:
            answer = answers.get(model)
            if answer is None:
                found += [None] * len(self._prefixes)
            elif self.by_class:
                found += [answer["score"], answer["version"], answer["probabilities"]]
            else:
                found += [answer["score"], answer["version"]]
        return found

    def _common(self, log: Mapping[str, Any]) -> tuple[Any, ...]:
        of = log["features"]
        ages = map(of["as_of"].get, self.views)
        served = log["champion"]["model"]
        return (*of["vector"].values(), *self.said(log), *ages, served, of["stale"] or None, of["event_time"])

    def prediction_row(self, log: Mapping[str, Any], delay: float | None) -> tuple[Any, ...]:
        """Return the row of a record of the prediction log."""
        return (*self._common(log), log["features"]["partial"], delay)

    def example_row(self, example: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the row of an example."""
        return (*self._common(example["prediction"]), example["label"], example["label_time"])


class Reference:
    """What the features, scores and labels of the champion's training window were like."""

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


def of_predictions(pipeline: Pipeline, rows: pd.DataFrame, reference: Reference | None) -> Figures:
    """Return the figures of predictions: features, scores, delays, and by view how old and how whole its features were."""
    found: Figures = {}
    for name, kind in pipeline.vector.items():
        _feature(found, name, kind, rows[name], reference)
    for model in pipeline.model_names:
        scores = rows[SCORE + model].dropna().to_numpy(dtype=float)
        if not len(scores):
            continue
        found[Key("score_mean", model)] = float(scores.mean())
        if reference and model in reference.scores:
            found[Key("score_psi", model)] = reference.scores[model].psi(scores)
            found[Key("score_ks", model)] = reference.scores[model].ks(scores)
    found[Key("partial")] = float(rows["partial"].mean())
    _percentiles(found, Key("delay"), rows["delay"].dropna().to_numpy(dtype=float))
    _views(found, [view.label for view in pipeline.views], rows)
    return found


def _percentiles(found: Figures, key: Key, values: npt.NDArray[np.float64]) -> None:
    if len(values):
        for share, shown in ((0.5, "p50"), (0.99, "p99")):
            found[key._replace(name=f"{key.name}_{shown}")] = float(np.quantile(values, share))


def _views(found: Figures, views: Sequence[str], rows: pd.DataFrame) -> None:
    """Add, by view: the age of its features in s of event time, and the shares of vectors without any, and why.

    `stale`: it could not be read; `unknown`: it was, and was never told of the entity, or the event names none.
    """
    time = rows["event_time"].to_numpy(dtype=float)
    troubled = rows["stale"].notna().to_numpy()
    names = rows["stale"].to_numpy()[troubled]
    for view in views:
        as_of = rows[AS_OF + view].to_numpy(dtype=float)
        stale = np.zeros(len(rows), dtype=bool)
        stale[troubled] = [view in of for of in names]
        known = ~np.isnan(as_of)
        # What the view knows may well be later than the event: another entity's events, or a late one's own.
        _percentiles(found, Key("freshness", feature=view), np.maximum(time[known] - as_of[known], 0.0) / 1000)
        found[Key("stale", feature=view)] = float(stale.mean())
        found[Key("unknown", feature=view)] = float((~known & ~stale).mean())


def _feature(found: Figures, name: str, kind: str, column: pd.Series[Any], reference: Reference | None) -> None:
    values = column.dropna()
    found[Key("missing", feature=name)] = 1.0 - len(values) / len(column)
    if not len(values):
        return
    known = reference.features.get(name) if reference else None
    if kind == "number":
        numbers = values.to_numpy(dtype=float)
        found[Key("mean", feature=name)] = float(numbers.mean())
        found[Key("std", feature=name)] = float(numbers.std())
        found[Key("min", feature=name)] = float(numbers.min())
        found[Key("max", feature=name)] = float(numbers.max())
        for share, value in zip(QUANTILES, np.quantile(numbers, QUANTILES), strict=True):
            found[Key(f"p{int(share * 100):02d}", feature=name)] = float(value)
        if isinstance(known, NumberReference):
            found[Key("psi", feature=name)] = known.psi(numbers)
            found[Key("ks", feature=name)] = known.ks(numbers)
    else:
        counts = values.value_counts()
        found[Key("distinct", feature=name)] = float(len(counts))
        found[Key("top_share", feature=name)] = float(counts.iloc[0] / len(values))
        if isinstance(known, CategoryReference):
            found[Key("psi", feature=name)] = known.psi(values.tolist())
            found[Key("unseen", feature=name)] = known.unseen(values.tolist())


def of_examples(
    pipeline: Pipeline,
    judge: Judge,
    rows: pd.DataFrame,
    segments: Sequence[str],
    least: int,
    reference: Reference | None,
) -> Figures:
    """Return the figures of examples: how good each model was, overall, by segment and by version; and the labels."""
    found: Figures = {}
    label = rows["label"]
    if pipeline.task in ("binary", "regression", "anomaly"):
        found[Key("label_mean")] = float(label.astype(float).mean())
    if reference:
        labels = reference.labels
        found[Key("label_psi")] = (
            labels.psi(label.to_numpy(dtype=float))
            if isinstance(labels, NumberReference)
            else labels.psi(label.tolist())
        )
    waited = (rows["label_time"] - rows["event_time"]).to_numpy(dtype=float) / 1000
    found[Key("label_delay_p50")], found[Key("label_delay_p95")] = map(float, np.quantile(waited, (0.5, 0.95)))
    groups = {segment: _groups(rows[segment], least) for segment in segments}
    answers = {model: _answers(rows, model) for model in pipeline.model_names}
    for model, (said, places) in answers.items():
        if len(said):
            _performance(found, judge, model, said, places, groups, least)
    _gains(found, judge)
    served = rows[SERVED].mode()
    champion = served[0] if len(served) and served[0] in answers else pipeline.champion
    _versions(found, judge, champion, answers[champion][0], least)
    return found


def _groups(column: pd.Series[Any], least: int) -> dict[str, npt.NDArray[Any]]:
    """Return the positions of the rows of each value of a segment that has enough, the most frequent values first."""
    found = column.groupby(column).indices.items()
    places = {str(value): np.asarray(where) for value, where in found if len(where) >= least}
    return dict(sorted(places.items(), key=lambda item: -len(item[1]))[:MOST_SEGMENTS])


def _answers(rows: pd.DataFrame, model: str) -> tuple[Answers, npt.NDArray[Any]]:
    """Return what `model` answered, and for each row its place among those, or -1."""
    there = rows[SCORE + model].notna().to_numpy()
    places = np.where(there, np.cumsum(there) - 1, -1)
    label = rows["label"].to_numpy()[there]
    by_class = rows[PROBABILITIES + model].to_numpy()[there] if PROBABILITIES + model in rows else None
    score, version = (rows[name + model].to_numpy()[there] for name in (SCORE, VERSION))
    return Answers(label, score.astype(float), version.astype(np.int64), by_class), places


def _performance(
    found: Figures, judge: Judge, model: str, said: Answers, places: npt.NDArray[Any],
    groups: Mapping[str, Mapping[str, npt.NDArray[Any]]], least: int,
) -> None:  # fmt: skip
    for name, value in (judge.metrics(said) | judge.calibration(said)).items():
        found[Key(name, model)] = value
    for segment, values in groups.items():
        for shown, rows in values.items():
            answered = places[rows]
            part = said.some(answered[answered >= 0])
            if len(part) >= least:
                for name, measured in judge.metrics(part).items():
                    found[Key(name, model, segment=f"{segment}={shown}")] = measured


def _gains(found: Figures, judge: Judge) -> None:
    """Add how much better than the baseline each model was; above 0 is better."""
    for key, value in list(found.items()):
        if key.name in judge.bigger_is_better and key.model not in ("", "baseline"):
            base = found.get(key._replace(model="baseline"))
            if base is not None:
                found[key._replace(name=f"{key.name}_gain")] = judge.gain(key.name, value, base)


def _versions(found: Figures, judge: Judge, champion: str, said: Answers, least: int) -> None:
    """Add the champion's metrics by version, and how much better than the one before each was."""
    versions, counts = np.unique(said.version, return_counts=True)
    before: Mapping[str, float] = {}
    for version in versions[counts >= least][-MOST_VERSIONS:].tolist():
        now = judge.metrics(said.some(said.version == version))
        for name, value in now.items():
            found[Key(name, champion, version)] = value
            if name in before:
                found[Key(f"{name}_gain", champion, version)] = judge.gain(name, value, before[name])
        before = now
