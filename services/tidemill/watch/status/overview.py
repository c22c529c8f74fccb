"""What ops see first, as one JSON object: services, flow, models, performance, drift, freshness, alerts, dead letters."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from tidemill.declare.monitor import Monitor
from tidemill.declare.pipeline import Pipeline
from tidemill.durations import milliseconds
from tidemill.registry.decisions import ModelRef
from tidemill.watch.status.feed import Feed
from tidemill.watch.status.scrape import Instance, Scraper
from tidemill.wire import topics

SHOWN_WINDOWS, SHOWN_LETTERS, SHOWN_SEGMENTS = 60, 30, 200
PREDICTIONS, EXAMPLES = topics.PREDICTION_LOG.suffix, topics.EXAMPLES.suffix
USUAL = ("psi_usual_least", "psi_usual_most")
QUANTILES = ("p05", "p25", "p50", "p75", "p95")
FRESHNESS = {"p50": "freshness_p50", "p99": "freshness_p99", "stale": "stale", "unknown": "unknown"}
"""Figures by view, and what they are called where freshness is told."""

FLOW = (
    ("producers", "validator", "events, labels", "validator"),
    ("validator", "featurizer", "events.valid", "featurizer"),
    ("featurizer", "redis", "views", "featurizer"),
    ("featurizer", "materializer", "updates", "materializer"),
    ("joiner", "materializer", "updates", "materializer"),
    ("materializer", "redis", "views", "materializer"),
    ("featurizer", "scorer", "features", "scorer"),
    ("scorer", "consumers", "predictions", "scorer"),
    ("scorer", "joiner", "prediction-log", "joiner"),
    ("joiner", "learner", "examples", "learner"),
    ("joiner", "gate", "examples", "gate"),
    ("scorer", "archiver", "prediction-log, examples", "archiver"),
    ("scorer", "monitor", "prediction-log, examples", "monitor"),
)
"""Who hands on what to whom, and whose records are counted for it."""
NOT_EVERYWHERE = ("materializer", "gate")
"""Services that a pipeline runs only where its declaration asks for it."""

Window = Mapping[str, Any]


def figures(window: Window, **of: Any) -> dict[str, dict[Any, float]]:
    """Return a window's figures of what `of` says, by name and then by whatever is left of the key, one field of it.

    `of` gives each of model, version, segment and feature a value that is wanted, or leaves one of them out.
    """
    names = ("model", "version", "segment", "feature")
    (left,) = [name for name in names if name not in of]
    found: dict[str, dict[Any, float]] = {}
    for figure in window["figures"]:
        if all(figure[name] == value for name, value in of.items()):
            found.setdefault(figure["name"], {})[figure[left]] = figure["value"]
    return found


class Overview:
    """Puts together what the feed and the scraper know."""

    def __init__(self, pipeline: Pipeline, feed: Feed, scraper: Scraper, dependencies: Any) -> None:
        self.pipeline, self.feed, self.scraper, self.dependencies = pipeline, feed, scraper, dependencies
        self.declared: Monitor = pipeline.monitor
        self.metrics = [
            {"name": type(metric).__name__, "bigger_is_better": bool(metric.bigger_is_better)}
            for metric in pipeline.metric()
        ]

    def told(self) -> dict[str, Any]:
        """Return all of it."""
        predictions = self.feed.latest(PREDICTIONS, SHOWN_WINDOWS)
        examples = self.feed.latest(EXAMPLES, SHOWN_WINDOWS)
        instances = self.scraper.instances
        return {
            "now": int(time.time() * 1000),
            "pipeline": self.pipeline.name,
            "task": self.pipeline.task,
            "champion": self.feed.champion[0],
            "champion_version": self.feed.champion[1] or None,
            "champion_pinned": self.feed.pinned,
            "gate": self.gate(),
            "model_names": [*self.pipeline.model_names, *self.feed.candidates],
            "metrics": self.metrics,
            "window_ms": milliseconds(self.declared.window),
            "event_time": predictions[-1]["end"] if predictions else None,
            "dependencies": self.dependencies(),
            "services": [instance.told() for instance in instances],
            "flow": flow(instances),
            "models": self.models(),
            "performance": self.performance(examples),
            "drift": self.drift(predictions, examples),
            "freshness": self.freshness(predictions),
            "labels": self._labels(examples),
            **self.alerts(),
            "rules": self.rules(predictions),
            "dead_letters": self.dead_letters(),
            "promotions": self.promotions(),
        }

    def models(self) -> list[dict[str, Any]]:
        """Return each model of the model_names, and each candidate, with its newest version."""
        champion, _ = self.feed.champion
        with self.feed.lock:
            known = dict(self.feed.manifests)
        return [
            {"name": name, "champion": name == champion}
            | {
                field: known[name][field] if name in known else None
                for field in ("version", "examples", "created_at", "metrics", "hyperparameters", "uri")
            }
            for name in (*self.pipeline.model_names, *self.feed.candidates)
        ]

    def performance(self, windows: Sequence[Window]) -> dict[str, Any]:
        """Return the models' metrics by window, and of the last window by segment and by version of the champion."""
        rows = []
        for window in windows:
            by_name = figures(window, version=-1, segment="", feature="")
            rows.append(
                {name: window[name] for name in ("start", "end", "rows", "interrupted")}
                | {"models": {m: {n: v[m] for n, v in by_name.items() if m in v} for m in self.pipeline.model_names}}
            )
        last = windows[-1] if windows else None
        return {"windows": rows, "segments": self._segments(last), "versions": self._versions(last)}

    def _segments(self, window: Window | None) -> list[dict[str, Any]]:
        if window is None:
            return []
        found: dict[str, dict[str, dict[str, float]]] = {}
        for model in self.pipeline.model_names:
            for name, values in figures(window, model=model, version=-1, feature="").items():
                for segment, value in values.items():
                    if segment:
                        found.setdefault(segment, {}).setdefault(model, {})[name] = value
        return [{"segment": segment, "models": found[segment]} for segment in sorted(found)[:SHOWN_SEGMENTS]]

    def _versions(self, window: Window | None) -> list[dict[str, Any]]:
        if window is None:
            return []
        by_name = figures(window, model=self.feed.champion[0], segment="", feature="")
        versions = sorted({v for values in by_name.values() for v in values if v >= 0})
        return [
            {
                "version": version,
                "metrics": {n: v[version] for n, v in by_name.items() if version in v and not n.endswith("_gain")},
                "gain": {n[:-5]: v[version] for n, v in by_name.items() if version in v and n.endswith("_gain")},
            }
            for version in versions
        ]

    def drift(self, windows: Sequence[Window], examples: Sequence[Window]) -> dict[str, Any]:
        """Return the course of each feature's PSI with what is usual, of the scores' and of the labels'."""
        alarmed = {(a["kind"], a["feature"]) for a in self.feed.alerts.copy().values()}
        courses = [figures(window, model="", version=-1, segment="") for window in windows]
        last = courses[-1] if courses else {}
        features = []
        for name, kind in self.pipeline.vector.items():
            features.append(
                {
                    "name": name,
                    "kind": kind,
                    "psi": [course.get("psi", {}).get(name) for course in courses],
                    "ks": last.get("ks", {}).get(name),
                    # What an alert takes: beyond the declared limit and beyond what is usual.
                    "limit": last.get("psi_limit", {}).get(name, self.declared.limit("psi", name)),
                    "usual": [last[n][name] for n in USUAL] if name in last.get(USUAL[0], {}) else None,
                    "missing": last.get("missing", {}).get(name),
                    "unseen": last.get("unseen", {}).get(name),
                    "quantiles": {q: last[q][name] for q in QUANTILES if name in last.get(q, {})},
                    "alert": ("drift", name) in alarmed or ("unseen", name) in alarmed or ("missing", name) in alarmed,
                }
            )
        scores = [figures(window, version=-1, segment="", feature="") for window in windows]
        edge = scores[-1].get("score_psi_limit", {}) if scores else {}
        labels = [figures(window, version=-1, segment="", feature="") for window in examples]
        return {
            "compared": bool(windows and windows[-1]["compared"]),
            "windows": [window["end"] for window in windows],
            "features": features,
            "scores": [
                {
                    "model": m,
                    "psi": [course.get("score_psi", {}).get(m) for course in scores],
                    "limit": edge.get(m, self.declared.limit("score_psi")),
                }
                for m in self.pipeline.model_names
            ],
            "labels": {
                "mean": [course.get("label_mean", {}).get("") for course in labels],
                "psi": [course.get("label_psi", {}).get("") for course in labels],
                "limit": labels[-1].get("label_psi_limit", {}).get("") if labels else None,
            },
        }

    def freshness(self, windows: Sequence[Window]) -> dict[str, Any]:
        """Return of each view, by window: how old its features were, in s of event time, and the shares without them."""
        alarmed = {(a["kind"], a["feature"]) for a in self.feed.alerts.copy().values()}
        courses = [figures(window, model="", version=-1, segment="") for window in windows]
        own = self.pipeline.inline_views
        views = []
        for view in self.pipeline.views:
            name = view.label
            by = {
                shown: [course.get(figure, {}).get(name) for course in courses] for shown, figure in FRESHNESS.items()
            }
            views.append(
                {
                    "view": name,
                    "entity": view.entity,
                    "source": view.source,
                    "kept_by": "featurizer" if view in own else "materializer",
                    "objective": view.objective,
                    "stale_limit": self.declared.limit("stale", name),
                    "alert": ("freshness", name) in alarmed or ("stale", name) in alarmed,
                }
                | by
            )
        return {"windows": [window["end"] for window in windows], "views": views}

    @staticmethod
    def _labels(examples: Sequence[Window]) -> dict[str, Any]:
        last = figures(examples[-1], version=-1, segment="", feature="") if examples else {}
        names = {"delay_p50": "label_delay_p50", "delay_p95": "label_delay_p95", "coverage": "label_coverage"}
        return {shown: last.get(name, {}).get("") for shown, name in names.items()}

    def alerts(self) -> dict[str, Any]:
        """Return the alerts that are open, the oldest first, and those that were resolved last."""
        with self.feed.lock:
            found = sorted(self.feed.alerts.values(), key=lambda alert: (alert["acknowledged"], alert["since"]))
            return {"alerts": [dict(alert) for alert in found], "resolved": list(self.feed.resolved)}

    def dead_letters(self) -> dict[str, Any]:
        """Return dead letters by reason, and the latest."""
        with self.feed.lock:
            reasons = sorted(self.feed.reasons.values(), key=lambda said: -said["count"])
            return {
                "total": self.feed.counts["dead_letters"],
                "by_reason": [dict(said) for said in reasons],
                "latest": list(self.feed.letters)[:SHOWN_LETTERS],
            }

    @staticmethod
    def rules(windows: Sequence[Window]) -> dict[str, Any]:
        """Return, by rule and field, the share of records that it refused and that it warned of, window by window."""
        found: dict[tuple[str, str], dict[str, list[float | None]]] = {}
        for index, window in enumerate(windows):
            for figure in window["figures"]:
                if figure["name"] in ("rejected", "warned"):
                    row = found.setdefault((figure["segment"], figure["feature"]), {})
                    course = row.setdefault(figure["name"], [0.0] * len(windows))
                    course[index] = figure["value"]
        rules = []
        for (segment, field), shares in sorted(found.items()):
            reason, _, rule = segment.partition(":")
            rules.append({"reason": reason, "rule": rule, "field": field,
                          "refused": shares.get("rejected", []), "warned": shares.get("warned", [])})  # fmt: skip
        return {"windows": [window["end"] for window in windows], "rules": rules}

    def gate(self) -> dict[str, Any] | None:
        """Return what the declared gate asks of a challenger; None where people alone decide."""
        declared = self.pipeline.gate
        names = ("margin", "examples", "worse", "least", "automatic", "watch")
        return {name: getattr(declared, name) for name in names} if declared else None

    def promotions(self) -> list[dict[str, Any]]:
        """Return every decision about who serves, the latest first; the last is the declaration's own.

        `compared`: whom the evidence holds against each other, who served first.
        """
        with self.feed.lock:
            found = list(reversed(self.feed.decisions))
        declared: dict[str, Any] = {
            "kind": "declared", "at": None, "model": self.pipeline.champion, "version": None, "by": "declaration",
            "why": "the declared champion", "compared": [],
        }  # fmt: skip
        shown = [
            {
                "kind": one["kind"],
                "at": one["time"],
                "model": one["subject"]["model"],
                "version": one["subject"]["version"] or None,
                "by": one["by"],
                "why": one["why"],
                "compared": compared(one, before) if one["evidence"] else [],
                "decision": one,
            }
            for one, before in zip_longest(found, found[1:])
        ]
        return [*shown, declared]


def compared(decision: Mapping[str, Any], previous: Mapping[str, Any] | None) -> list[str]:
    """Return whom the evidence of a decision compares: who served then, and the other; `previous`: the decision before it."""
    served, subject, after = (ModelRef(**decision[name]) for name in ("before", "subject", "champion"))
    watched = ModelRef(**previous["watched"]) if previous else ModelRef()
    if subject != served and not (decision["kind"] == "refused" and subject.model == served.model):
        return [str(served), str(subject)]  # a challenger, or whom a person asked for
    # About the champion itself: against the one that it replaced while that is watched, else against the baseline.
    against_watched = watched and (decision["kind"] == "kept" or after == watched)
    return [str(served), str(watched) if against_watched else "baseline"]


def flow(instances: Sequence[Instance]) -> list[dict[str, Any]]:
    """Return the edges of the river with the rates of their readers; what reads updates has the rate of all of them."""
    found = []
    for source, target, topic, counted in FLOW:
        readers = [i for i in instances if i.name == counted or i.name.startswith(f"{counted}-")]
        if counted in NOT_EVERYWHERE and not readers:
            continue
        rates = [i.rate for i in readers if i.rate is not None]
        totals = [t for t in (i.total("tidemill_records_total") for i in readers) if t is not None]
        # Learners each read all examples; instances of another service share what there is.
        joined = max if target == "learner" else sum
        found.append(
            {
                "from": source, "to": target, "topic": topic,
                "rate": joined(rates) if rates else None, "total": joined(totals) if totals else None,
            }
        )  # fmt: skip
    return found
