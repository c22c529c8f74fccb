"""The page's data as one JSON object: services, flow, models, performance, drift, freshness, alerts, dead letters."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from tidemill.declare.monitor import Monitor
from tidemill.declare.pipeline import Pipeline
from tidemill.declare.scorecard import Scorecard
from tidemill.durations import milliseconds
from tidemill.registry.decisions import ModelRef
from tidemill.watch.status.follower import TopicFollower
from tidemill.watch.status.scrape import Instance, Scraper
from tidemill.wire import topics

MAX_WINDOWS, MAX_LETTERS, MAX_SEGMENTS = 60, 30, 200
PREDICTIONS, EXAMPLES = topics.PREDICTION_LOG.suffix, topics.EXAMPLES.suffix
USUAL = ("psi_usual_low", "psi_usual_high")
QUANTILES = ("p05", "p25", "p50", "p75", "p95")
#: Figures by view, by their name in the overview's freshness.
FRESHNESS = {"p50": "freshness_p50", "p99": "freshness_p99", "stale": "stale", "unknown": "unknown"}

#: The edges of the river: from, to, topics, and the service whose records are counted for it.
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
    ("monitor", "notifier", "alerts", "notifier"),
)
#: Services that a pipeline runs only where its declaration needs them, or somebody is to be told.
OPTIONAL_SERVICES = ("materializer", "gate", "notifier")

Window = Mapping[str, Any]


def figures(window: Window, **selected: Any) -> dict[str, dict[Any, float]]:
    """Return the figures that match `selected`, by name and then by the one field of their key that it leaves out.

    `selected` has the value of three of model, version, segment and feature.
    """
    (free,) = {"model", "version", "segment", "feature"} - selected.keys()
    values: dict[str, dict[Any, float]] = {}
    for figure in window["figures"]:
        if all(figure[name] == value for name, value in selected.items()):
            values.setdefault(figure["name"], {})[figure[free]] = figure["value"]
    return values


class Overview:
    """Puts together what the follower and the scraper know."""

    def __init__(
        self,
        pipeline: Pipeline,
        follower: TopicFollower,
        scraper: Scraper,
        dependencies: Any,
        others: Scraper | None = None,
    ) -> None:
        self.pipeline, self.follower, self.scraper, self.dependencies = pipeline, follower, scraper, dependencies
        #: Of the status services of other pipelines.
        self.others = others
        self.monitor: Monitor = pipeline.monitor
        self.metrics = [
            {"name": name, "bigger_is_better": bool(metric.bigger_is_better)}
            for name, metric in Scorecard(pipeline.metric())
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return all of it."""
        predictions = self.follower.latest(PREDICTIONS, MAX_WINDOWS)
        examples = self.follower.latest(EXAMPLES, MAX_WINDOWS)
        instances = self.scraper.instances
        return {
            "now": int(time.time() * 1000),
            "pipeline": self.pipeline.name,
            "task": self.pipeline.task,
            "champion": self.follower.champion[0],
            "champion_version": self.follower.champion[1] or None,
            "champion_pinned": self.follower.pinned,
            "gate": self.gate(),
            "model_names": [*self.pipeline.model_names, *self.follower.candidates],
            "metrics": self.metrics,
            "window_ms": milliseconds(self.monitor.window),
            "event_time": predictions[-1]["end"] if predictions else None,
            "pipelines": self.pipelines(),
            "dependencies": self.dependencies(),
            "services": [instance.as_dict() for instance in instances],
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
            "refused": self.refused(),
        }

    def pipelines(self) -> list[dict[str, Any]]:
        """Return each other pipeline with its page, and whether its status service answers and finds all it needs."""
        if self.others is None:
            return []
        first = {instance.name: instance for instance in reversed(self.others.instances)}
        return [
            {"name": name, "url": url, "state": first[name].state, "why": first[name].why}
            for name, url in self.others.services.items()
            if name in first
        ]

    def refused(self) -> list[dict[str, Any]]:
        """Return the latest signed records that were not believed, so that nothing of them is shown elsewhere."""
        with self.follower.lock:
            return list(self.follower.refused)

    def models(self) -> list[dict[str, Any]]:
        """Return each declared model, and each candidate, with its newest version."""
        champion, _ = self.follower.champion
        with self.follower.lock:
            known = dict(self.follower.manifests)
        return [
            {"name": name, "champion": name == champion}
            | {
                field: known[name][field] if name in known else None
                for field in ("version", "examples", "created_at", "metrics", "hyperparameters", "uri", "verified")
            }
            for name in (*self.pipeline.model_names, *self.follower.candidates)
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
        metrics: dict[str, dict[str, dict[str, float]]] = {}
        for model in self.pipeline.model_names:
            for name, values in figures(window, model=model, version=-1, feature="").items():
                for segment, value in values.items():
                    if segment:
                        metrics.setdefault(segment, {}).setdefault(model, {})[name] = value
        return [{"segment": segment, "models": metrics[segment]} for segment in sorted(metrics)[:MAX_SEGMENTS]]

    def _versions(self, window: Window | None) -> list[dict[str, Any]]:
        if window is None:
            return []
        by_name = figures(window, model=self.follower.champion[0], segment="", feature="")
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
        """Return the PSI of each feature, of the scores and of the labels by window, with what is usual."""
        alerting = {(a["kind"], a["feature"]) for a in self.follower.alerts.copy().values()}
        by_window = [figures(window, model="", version=-1, segment="") for window in windows]
        last = by_window[-1] if by_window else {}
        features = []
        for name, kind in self.pipeline.vector.items():
            features.append(
                {
                    "name": name,
                    "kind": kind,
                    "psi": [values.get("psi", {}).get(name) for values in by_window],
                    "ks": last.get("ks", {}).get(name),
                    # An alert opens beyond both the declared limit and what is usual.
                    "limit": last.get("psi_limit", {}).get(name, self.monitor.limit("psi", name)),
                    "usual": [last[n][name] for n in USUAL] if name in last.get(USUAL[0], {}) else None,
                    "missing": last.get("missing", {}).get(name),
                    "unseen": last.get("unseen", {}).get(name),
                    "quantiles": {q: last[q][name] for q in QUANTILES if name in last.get(q, {})},
                    "alert": ("drift", name) in alerting
                    or ("unseen", name) in alerting
                    or ("missing", name) in alerting,
                }
            )
        scores = [figures(window, version=-1, segment="", feature="") for window in windows]
        limits = scores[-1].get("score_psi_limit", {}) if scores else {}
        labels = [figures(window, version=-1, segment="", feature="") for window in examples]
        return {
            "compared": bool(windows and windows[-1]["compared"]),
            "windows": [window["end"] for window in windows],
            "features": features,
            "scores": [
                {
                    "model": m,
                    "psi": [values.get("score_psi", {}).get(m) for values in scores],
                    "limit": limits.get(m, self.monitor.limit("score_psi")),
                }
                for m in self.pipeline.model_names
            ],
            "labels": {
                "mean": [values.get("label_mean", {}).get("") for values in labels],
                "psi": [values.get("label_psi", {}).get("") for values in labels],
                "limit": labels[-1].get("label_psi_limit", {}).get("") if labels else None,
            },
        }

    def freshness(self, windows: Sequence[Window]) -> dict[str, Any]:
        """Return each view's age of features by window, in s of event time, and the shares of vectors without them."""
        alerting = {(a["kind"], a["feature"]) for a in self.follower.alerts.copy().values()}
        by_window = [figures(window, model="", version=-1, segment="") for window in windows]
        inline = self.pipeline.inline_views
        views = []
        for view in self.pipeline.views:
            name = view.label
            ages = {
                key: [values.get(figure, {}).get(name) for values in by_window] for key, figure in FRESHNESS.items()
            }
            views.append(
                {
                    "view": name,
                    "entity": view.entity,
                    "source": view.source,
                    "kept_by": "featurizer" if view in inline else "materializer",
                    "objective": view.objective,
                    "stale_limit": self.monitor.limit("stale", name),
                    "alert": ("freshness", name) in alerting or ("stale", name) in alerting,
                }
                | ages
            )
        return {"windows": [window["end"] for window in windows], "views": views}

    @staticmethod
    def _labels(examples: Sequence[Window]) -> dict[str, Any]:
        last = figures(examples[-1], version=-1, segment="", feature="") if examples else {}
        names = {"delay_p50": "label_delay_p50", "delay_p95": "label_delay_p95", "coverage": "label_coverage"}
        return {key: last.get(name, {}).get("") for key, name in names.items()}

    def alerts(self) -> dict[str, Any]:
        """Return the open alerts, the oldest first, and the ones resolved last."""
        with self.follower.lock:
            alerts = sorted(self.follower.alerts.values(), key=lambda alert: (alert["acknowledged"], alert["since"]))
            return {"alerts": [dict(alert) for alert in alerts], "resolved": list(self.follower.resolved)}

    def dead_letters(self) -> dict[str, Any]:
        """Return dead letters by reason, and the latest."""
        with self.follower.lock:
            reasons = sorted(self.follower.reasons.values(), key=lambda reason: -reason["count"])
            return {
                "total": self.follower.letter_count,
                "by_reason": [dict(reason) for reason in reasons],
                "latest": list(self.follower.letters)[:MAX_LETTERS],
            }

    @staticmethod
    def rules(windows: Sequence[Window]) -> dict[str, Any]:
        """Return, by rule and field, the share of records that it refused and that it warned of, window by window."""
        rows: dict[tuple[str, str], dict[str, list[float | None]]] = {}
        for index, window in enumerate(windows):
            for figure in window["figures"]:
                if figure["name"] in ("rejected", "warned"):
                    row = rows.setdefault((figure["segment"], figure["feature"]), {})
                    row.setdefault(figure["name"], [0.0] * len(windows))[index] = figure["value"]
        rules = []
        for (segment, field), shares in sorted(rows.items()):
            reason, _, rule = segment.partition(":")
            refused, warned = shares.get("rejected", []), shares.get("warned", [])
            rules.append({"reason": reason, "rule": rule, "field": field, "refused": refused, "warned": warned})
        return {"windows": [window["end"] for window in windows], "rules": rules}

    def gate(self) -> dict[str, Any] | None:
        """Return what the declared gate demands of a challenger; None where only people decide."""
        declared = self.pipeline.gate
        names = ("margin", "examples", "worse", "least", "automatic", "watch")
        return {name: getattr(declared, name) for name in names} if declared else None

    def promotions(self) -> list[dict[str, Any]]:
        """Return every decision about which model serves, the latest first; the last row is the declaration itself.

        `compared`: the two models that the evidence is about, the serving one first.
        """
        with self.follower.lock:
            decisions = list(reversed(self.follower.decisions))
        declared: dict[str, Any] = {
            "kind": "declared",
            "at": None,
            "model": self.pipeline.champion,
            "version": None,
            "by": "declaration",
            "why": "the declared champion",
            "verified": True,
            "compared": [],
        }
        rows = [
            {
                "kind": decision["kind"],
                "at": decision["time"],
                "model": decision["subject"]["model"],
                "version": decision["subject"]["version"] or None,
                "by": decision["by"],
                "why": decision["why"],
                "verified": decision["verified"],
                "compared": compared(decision, previous) if decision["evidence"] else [],
                "decision": decision,
            }
            for decision, previous in zip_longest(decisions, decisions[1:])
        ]
        return [*rows, declared]


def compared(decision: Mapping[str, Any], previous: Mapping[str, Any] | None) -> list[str]:
    """Return the two models that a decision's evidence compares, the one that served first.

    `previous`: the decision before it.
    """
    served, subject, after = (ModelRef(**decision[name]) for name in ("before", "subject", "champion"))
    watched = ModelRef(**previous["on_probation_against"]) if previous else ModelRef()
    if subject != served and not (decision["kind"] == "refused" and subject.model == served.model):
        return [str(served), str(subject)]  # a challenger, or the model that a person asked for
    # About the champion itself: against its predecessor during probation, else against the baseline.
    against_watched = watched and (decision["kind"] == "kept" or after == watched)
    return [str(served), str(watched) if against_watched else "baseline"]


def flow(instances: Sequence[Instance]) -> list[dict[str, Any]]:
    """Return the edges of the river with the rates of the services that read them."""
    edges = []
    for source, target, topic, counted in FLOW:
        readers = [i for i in instances if i.name == counted or i.name.startswith(f"{counted}-")]
        if counted in OPTIONAL_SERVICES and not readers:
            continue
        rates = [i.rate for i in readers if i.rate is not None]
        totals = [t for t in (i.total("tidemill_records_total") for i in readers) if t is not None]
        # Each learner reads all examples; the instances of another service share their records.
        combine = max if target == "learner" else sum
        edges.append(
            {
                "from": source,
                "to": target,
                "topic": topic,
                "rate": combine(rates) if rates else None,
                "total": combine(totals) if totals else None,
            }
        )
    return edges
