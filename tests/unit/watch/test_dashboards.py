"""Dashboards, alert rules and the scrape configuration speak of metrics, labels and values that exist; no server is needed."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from test_deployment import COMPOSE, OURS

from tidemill import Pipeline, load, metrics
from tidemill.watch.monitor import core
from tidemill.watch.monitor.figures import Columns, Reference, example_figures, prediction_figures
from tidemill.watch.monitor.performance import WindowMetrics
from tidemill.wire.topics import ALL

OPS = Path(__file__).parents[3] / "ops"
SCRAPE = yaml.safe_load((OPS / "prometheus" / "prometheus.yml").read_text())
(JOB,) = SCRAPE["scrape_configs"]
GROUPS = yaml.safe_load((OPS / "prometheus" / "rules.yml").read_text())["groups"]
RULES = {rule["alert"]: rule for group in GROUPS for rule in group["rules"]}
DASHBOARDS = {
    path.name: json.loads(path.read_text()) for path in sorted((OPS / "grafana" / "dashboards").glob("*.json"))
}
(SOURCE,) = yaml.safe_load((OPS / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
(PROVIDER,) = yaml.safe_load((OPS / "grafana/provisioning/dashboards/tidemill.yml").read_text())["providers"]

WITH_UNITS, WITHOUT = {"timeseries", "stat", "bargauge"}, {"table", "text", "row"}
"""Types of panels that are not deprecated, and that we use."""


# The metrics, as a service would show them.


def shown(metric: Counter | Gauge | Histogram) -> dict[str, frozenset[str]]:
    """Return the labels of each sample that a metric shows, by the sample's name."""
    values = ["x"] * len(metric._labelnames)
    metric.labels(*values)
    try:
        samples = [sample for family in metric.collect() for sample in family.samples]
    finally:
        metric.remove(*values)
    return {sample.name: frozenset(sample.labels) for sample in samples}


def collectors() -> Iterator[Counter | Gauge | Histogram]:
    for value in vars(metrics).values():
        for found in value.values() if isinstance(value, Mapping) else (value,):
            if isinstance(found, Counter | Gauge | Histogram):
                yield found


TARGET = frozenset({"job", "instance"}).union(*(config.get("labels", {}) for config in JOB["static_configs"]))
"""Labels that Prometheus adds to all that it scrapes."""
OF_PIPELINE = frozenset({"namespace"})
"""Labels that targets have where several pipelines are scraped."""
METRICS = {name: labels for metric in collectors() for name, labels in shown(metric).items()} | {"up": frozenset()}


def figures(pipeline: Pipeline) -> set[str]:
    """Return the names of the figures that the monitor has of a pipeline."""
    vector = {"number": [1.0, 2.0, 3.0, 4.0], "category": list("aabb"), "flag": [True, False] * 2}
    columns: dict[str, Any] = {name: vector[kind] for name, kind in pipeline.vector.items()}
    for model in pipeline.model_names:
        columns |= {f"score:{model}": [0.1, 0.4, 0.6, 0.9], f"version:{model}": [1, 1, 2, 2]}
    columns |= {"event_time": [0, 1, 2, 3], "partial": False, "delay": 0.1, "stale": None, "served:": pipeline.champion}
    columns |= {f"as_of:{view.label}": [None, 0, 1, 2] for view in pipeline.views}
    columns |= {"label": [False, True, False, True], "label_time": [5, 6, 7, 8]}
    rows, names = pd.DataFrame(columns), Columns(pipeline)
    reference = Reference(pipeline, rows[list(names.example)])
    of = prediction_figures(pipeline, rows[list(names.prediction)], reference)
    of |= example_figures(
        pipeline, WindowMetrics(pipeline), rows[list(names.example)], pipeline.monitor.segments, 1, reference
    )
    told = {key.name for key in of if key.version < 0}
    return told | set(re.findall(r'FigureKey\("(\w+)"', Path(core.__file__).read_text()))


PIPELINE = load("flights")
FIGURES = figures(PIPELINE)
VALUES: Mapping[str, set[str]] = {
    "job": {JOB["job_name"]},
    "service": {*ALL, *(f"learner-{model}" for model in PIPELINE.model_names)} - {"learner"},
    "figure": FIGURES,
    "source": {core.PREDICTIONS, core.EXAMPLES},
    "state": {"complete", "interrupted"},
    "outcome": {"refused", "loaded"},
}
"""Values of labels that queries ask for, where they are known."""
VARIABLES = {"metric": WindowMetrics(PIPELINE).names[0]}
"""What a variable of a dashboard stands for, where that is a part of a value."""


# The checker: as much of PromQL as we use. Of each expression it knows the labels that its result has.


class WrongError(Exception):
    """What is wrong with an expression."""


@dataclass(frozen=True)
class Vector:
    """What an expression results in. `labels` None: a scalar. `counts`: it only ever grows. `ranged`: over some time."""

    labels: frozenset[str] | None = None
    counts: bool = False
    ranged: bool = False


TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:\\.|[^"\\])*")|(?P<range>\[[^\]]*\])|(?P<duration>\d+[smhdw]\b)|(?P<number>\d+(?:\.\d+)?)"""
    r"""|(?P<name>[A-Za-z_]\w*)|(?P<sign>=~|!~|!=|==|<=|>=|[-+*/<>=(){},]))"""
)
LEVELS = (("or",), ("and", "unless"), ("==", "!=", "<=", ">=", "<", ">"), ("+", "-"), ("*", "/"))
SETS = {"or", "and", "unless"}
AGGREGATES = {"sum", "min", "max", "avg", "count"}
GROWTH = {"rate", "increase", "irate"}
OVER_TIME = GROWTH | {"deriv", "delta", "changes", "last_over_time", "max_over_time", "min_over_time"}
OF_VECTORS = {"abs", "sort", "sort_desc", "histogram_quantile"}


class Query:
    """One PromQL expression."""

    def __init__(self, text: str, metrics: Mapping[str, frozenset[str]] = METRICS) -> None:
        self.metrics = metrics
        self.tokens: list[tuple[str, str]] = []
        at = 0
        while at < len(text.rstrip()):
            found = TOKEN.match(text, at)
            if found is None:
                raise WrongError(f"can't be read from {text[at:]!r} on")
            self.tokens.append((str(found.lastgroup), found[str(found.lastgroup)]))
            at = found.end()
        self.tokens.append(("end", ""))

    def result(self) -> Vector:
        """Return what it results in. Raises WrongError."""
        found = self._binary(0)
        if self.tokens[0][0] != "end":
            raise WrongError(f"{self.tokens[0][1]!r} was not expected")
        if found.ranged:
            raise WrongError("it is a range, of which nothing is made")
        return found

    def _take(self, *wanted: str) -> str:
        """Take the next token, which has to be one of these texts or kinds."""
        kind, text = self.tokens.pop(0)
        if text not in wanted and kind not in wanted:
            raise WrongError(f"{text!r} where {' or '.join(wanted)} was expected")
        return text

    def _is(self, *texts: str) -> bool:
        return self.tokens[0][1] in texts and self.tokens[0][0] in ("name", "sign")

    def _binary(self, level: int) -> Vector:
        if level == len(LEVELS):
            return self._ranged()
        left = self._binary(level + 1)
        while self._is(*LEVELS[level]):
            operator, on = self._take(*LEVELS[level]), None
            if self._is("on"):
                self._take("on")
                on = self._names()
            left = self._matched(operator, left, self._binary(level + 1), on)
        return left

    @staticmethod
    def _matched(operator: str, left: Vector, right: Vector, on: frozenset[str] | None) -> Vector:
        if left.ranged or right.ranged:
            raise WrongError(f"{operator} of a range")
        if left.labels is None or right.labels is None:
            if operator in SETS:
                raise WrongError(f"{operator} of a number")
            return Vector(right.labels if left.labels is None else left.labels)
        if on is not None:
            if missing := on - (left.labels & right.labels):
                raise WrongError(f"on {', '.join(missing)}, which not both sides have")
            return Vector(left.labels if operator in SETS else on)
        if operator != "or" and left.labels != right.labels:
            raise WrongError(f"sides of {operator} that never match: {sorted(left.labels)} and {sorted(right.labels)}")
        return Vector(left.labels | right.labels if operator == "or" else left.labels)

    def _ranged(self) -> Vector:
        found = self._operand()
        if self.tokens[0][0] == "range":
            span = self._take("range")
            if not re.fullmatch(r"\[(\d+[smhdw]|\$__rate_interval|\$__range)\]", span) or found.labels is None:
                raise WrongError(f"{span} is no span of time, or of nothing that has one")
            found = replace(found, ranged=True)
        if self._is("offset"):
            self._take("offset")
            self._take("duration")
        return found

    def _operand(self) -> Vector:
        if self.tokens[0][0] == "number":
            self._take("number")
            return Vector()
        if self._is("("):
            self._take("(")
            found = self._binary(0)
            self._take(")")
            return found
        name = self._take("name")
        if name in AGGREGATES:
            return self._aggregate()
        if self._is("("):
            return self._call(name)
        return self._selected(name)

    def _names(self) -> frozenset[str]:
        self._take("(")
        found = set()
        while not self._is(")"):
            found.add(self._take("name"))
            if not self._is(")"):
                self._take(",")
        self._take(")")
        return frozenset(found)

    def _aggregate(self) -> Vector:
        by = self._by()
        (of,) = self._arguments()
        by = by or self._by()
        if of.labels is None or of.ranged:
            raise WrongError("an aggregate of a number or a range")
        if unknown := by - of.labels - OF_PIPELINE:
            raise WrongError(f"by {', '.join(unknown)}, which is no label there: {sorted(of.labels)}")
        return Vector(by)

    def _by(self) -> frozenset[str]:
        if not self._is("by"):
            return frozenset()
        self._take("by")
        return self._names()

    def _arguments(self) -> list[Vector]:
        self._take("(")
        found = []
        while not self._is(")"):
            found.append(self._binary(0))
            if not self._is(")"):
                self._take(",")
        self._take(")")
        return found

    def _call(self, name: str) -> Vector:
        given = self._arguments()
        if name == "time" and not given:
            return Vector()
        if name == "vector" and [g.labels for g in given] == [None]:
            return Vector(frozenset())
        if name not in OVER_TIME | OF_VECTORS or not given or given[-1].labels is None:
            raise WrongError(f"no function {name!r} of these")
        of = given[-1]
        if of.ranged != (name in OVER_TIME):
            raise WrongError(f"{name} of {'a' if of.ranged else 'no'} range")
        if name in GROWTH and not of.counts:
            raise WrongError(f"{name} of what is no counter")
        if name == "histogram_quantile" and ("le" not in of.labels or [g.labels for g in given[:-1]] != [None]):
            raise WrongError("histogram_quantile without le, or without a share")
        return Vector(of.labels - {"le"} if name == "histogram_quantile" else of.labels)

    def _selected(self, name: str) -> Vector:
        if name not in self.metrics:
            raise WrongError(f"no metric {name!r}")
        labels = self.metrics[name] | TARGET
        if self._is("{"):
            self._take("{")
            while not self._is("}"):
                label, sign, text = self._take("name"), self._take("=", "!=", "=~", "!~"), self._take("string")
                if label not in labels:
                    raise WrongError(f"no label {label!r} of {name}: {sorted(labels)}")
                check_value(label, sign, text[1:-1])
                if not self._is("}"):
                    self._take(",")
            self._take("}")
        return Vector(labels, counts=name.endswith(("_total", "_bucket", "_sum", "_count")))


def check_value(label: str, sign: str, text: str) -> None:
    """Raise WrongError where a label, whose values are known, never has what is asked for."""
    for name, value in VARIABLES.items():
        text = text.replace(f"${{{name}}}", value).replace(f"${name}", value)
    if label not in VALUES or "$" in text or not text:
        return
    for part in text.split("|") if "~" in sign else [re.escape(text)]:
        if not any(re.fullmatch(part, value) for value in VALUES[label]):
            raise WrongError(f"{label} is never {part!r}")


def overlapping(panels: list[dict[str, Any]]) -> list[str]:
    """Return the pairs of panels that lie on each other, and those that reach beyond the 24 columns."""
    places = [(panel["title"], panel["gridPos"]) for panel in panels]
    wrong = [f"{title} is too wide" for title, at in places if at["x"] < 0 or at["x"] + at["w"] > 24]
    for (one, a), (other, b) in itertools.combinations(places, 2):
        across = a["x"] < b["x"] + b["w"] and b["x"] < a["x"] + a["w"]
        if across and a["y"] < b["y"] + b["h"] and b["y"] < a["y"] + a["h"]:
            wrong.append(f"{one} and {other}")
    return wrong


def unshown(panel: Mapping[str, Any]) -> list[str]:
    """Return what a panel lacks to be understood: a title, a unit; or a type that has not gone out of use."""
    wrong = [] if panel.get("title") else ["title"]
    if panel["type"] not in WITH_UNITS | WITHOUT:
        wrong.append(f"type {panel['type']}")
    if panel["type"] not in WITHOUT and not panel.get("fieldConfig", {}).get("defaults", {}).get("unit"):
        wrong.append("unit")
    return wrong


def legend_of(text: str) -> set[str]:
    return set(re.findall(r"{{\s*(\w+)\s*}}", text))


PANELS = [(name, panel) for name, board in DASHBOARDS.items() for panel in board["panels"]]
TARGETS = [(f"{name}: {panel['title']}", target) for name, panel in PANELS for target in panel.get("targets", [])]


# That the checkers find what is wrong.


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tidemill_record_total", "no metric 'tidemill_record_total'"),
        ("rate(tidemill_records[1m])", "no metric 'tidemill_records'"),
        ("tidemill_step_seconds", "no metric 'tidemill_step_seconds'"),
        ('tidemill_records_total{topic="x"}', "no label 'topic'"),
        ("sum by (topic) (rate(tidemill_records_total[1m]))", "by topic"),
        ("sum(rate(tidemill_records_total[1m])) by (topic)", "by topic"),
        ("sum by (le) (sum by (service) (rate(tidemill_step_seconds_bucket[1m])))", "by le"),
        ("histogram_quantile(0.5, sum by (service) (rate(tidemill_step_seconds_bucket[1m])))", "without le"),
        ("histogram_quantile(0.5, rate(tidemill_step_seconds_sum[1m]))", "without le"),
        ("tidemill_pending / tidemill_records_total", "never match"),
        ("sum by (service) (tidemill_pending) and sum(tidemill_pending)", "never match"),
        ("tidemill_pending * on (topic) tidemill_pending", "on topic"),
        ("rate(tidemill_lag_records[1m])", "no counter"),
        ("rate(tidemill_records_total)", "no range"),
        ("sum(tidemill_records_total[1m])", "or a range"),
        ("tidemill_records_total[1m]", "nothing is made"),
        ("rate(tidemill_records_total[$__interval_])", "no span of time"),
        ("rates(tidemill_records_total[1m])", "no function 'rates'"),
        ('tidemill_records_total{service="validator2"}', "service is never 'validator2'"),
        ('tidemill_records_total{service=~"scorer|learners"}', "service is never 'learners'"),
        ('tidemill_window_figure{figure="psy"}', "figure is never 'psy'"),
        ('tidemill_window_figure{figure="${metric}_gains"}', "figure is never"),
        ('tidemill_window_figure{source="predictions"}', "source is never"),
        ("sum(tidemill_pending", "expected"),
        ("tidemill_pending tidemill_pending", "not expected"),
        ("tidemill_pending > ?", "can't be read"),
    ],
)
def test_a_wrong_expression_is_found(text: str, said: str) -> None:
    with pytest.raises(WrongError, match=said):
        Query(text).result()


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("time() - tidemill_heartbeat_seconds > 60", {"service", "job", "instance"}),
        ("sum(up == 0) or vector(0)", set()),
        ("histogram_quantile(0.9, sum by (le, service) (rate(tidemill_step_seconds_bucket[5m])))", {"service"}),
        ("max by (topic) (tidemill_lag_records offset 1h) - on (topic) sum by (topic) (tidemill_lag_records)", {"topic"}),
        ('tidemill_window_figure{figure="${metric}_gain", model=~"$model"}',
         {"source", "figure", "model", "feature", "job", "instance"}),
    ],
)  # fmt: skip
def test_what_is_right_is_understood(text: str, labels: set[str]) -> None:
    assert Query(text).result().labels == labels


def test_the_checker_knows_every_metric_of_ours_and_its_suffixes() -> None:
    registered = {family.name for family in REGISTRY.collect() if family.name.startswith("tidemill_")}
    assert {family.name for metric in collectors() for family in metric.describe()} == registered
    assert METRICS["tidemill_dead_letters_total"] == {"service", "reason"}
    assert METRICS["tidemill_step_seconds_bucket"] == {"service", "le"}
    assert {"tidemill_step_seconds_sum", "tidemill_step_seconds_count", "tidemill_pending"} <= METRICS.keys()


def test_a_metric_that_is_renamed_is_missed() -> None:
    """Each name that is used is needed: without it, some query or rule is wrong."""
    texts = [target["expr"] for _, target in TARGETS] + [rule["expr"] for rule in RULES.values()]
    used = {name for name in METRICS if any(re.search(rf"\b{name}\b", text) for text in texts)}
    assert len(used) > 30
    for name in used:
        others = {other: labels for other, labels in METRICS.items() if other != name}
        (text, *_) = (text for text in texts if re.search(rf"\b{name}\b", text))
        with pytest.raises(WrongError, match=f"no metric '{name}'"):
            Query(text, others).result()


def test_panels_that_lie_on_each_other_or_say_too_little_are_found() -> None:
    places = [{"x": 0, "y": 0, "w": 12, "h": 8}, {"x": 11, "y": 7, "w": 12, "h": 8}, {"x": 23, "y": 0, "w": 2, "h": 1}]
    panels = [{"title": name, "gridPos": at} for name, at in zip("abc", places, strict=True)]
    assert overlapping(panels) == ["c is too wide", "a and b"]
    assert unshown({"type": "graph"}) == ["title", "type graph", "unit"]
    assert unshown({"type": "stat", "title": "x", "fieldConfig": {"defaults": {}}}) == ["unit"]


# Dashboards.


@pytest.mark.parametrize(("where", "target"), TARGETS, ids=[f"{where} {t['refId']}" for where, t in TARGETS])
def test_a_panel_asks_for_what_there_is(where: str, target: dict[str, Any]) -> None:
    labels = Query(target["expr"]).result().labels
    assert labels is not None
    assert legend_of(target["legendFormat"]) <= labels
    assert target["datasource"] == {"type": SOURCE["type"], "uid": SOURCE["uid"]}


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_is_readable(name: str) -> None:
    board = DASHBOARDS[name]
    panels = board["panels"]
    assert [wrong for panel in panels for wrong in unshown(panel)] == []
    assert overlapping(panels) == []
    for field in ("id", "title"):
        assert len({panel[field] for panel in panels}) == len(panels), f"two panels with one {field}"
    assert all(panel["targets"] for panel in panels if panel["type"] not in ("text", "row"))
    assert board["schemaVersion"] >= 39
    assert len({other["uid"] for other in DASHBOARDS.values()}) == len(DASHBOARDS)


@pytest.mark.parametrize("name", DASHBOARDS)
def test_variables_of_a_dashboard_are_declared_and_used_and_ask_for_what_there_is(name: str) -> None:
    board = DASHBOARDS[name]
    declared = {variable["name"]: variable for variable in board["templating"]["list"]}
    used = set(re.findall(r"\$\{?(?!__)(\w+)", json.dumps(board["panels"])))
    assert used == declared.keys()
    for variable in declared.values():
        found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
        assert found
        assert found[2] in (Query(found[1]).result().labels or ())
        assert variable["datasource"] == {"type": SOURCE["type"], "uid": SOURCE["uid"]}


def test_the_metric_of_a_dashboard_may_be_every_metric_and_nothing_else() -> None:
    (variable,) = (v for v in DASHBOARDS["models.json"]["templating"]["list"] if v["name"] == "metric")
    of_models = {name for name in FIGURES if not name.startswith(("label", "expired"))}
    shown = {name for name in of_models if re.search(variable["regex"].strip("/"), name)}
    assert shown >= set(WindowMetrics(PIPELINE).names)
    assert not {name for name in shown if name.endswith("_gain")} | shown & {"bias", "calibration_error"}


BY_VIEW = ("freshness_p50", "freshness_p99", "stale", "unknown")
"""Figures that have a view where others have a feature."""


@pytest.mark.parametrize("figure", BY_VIEW)
def test_what_is_told_by_view_is_shown_by_view(figure: str) -> None:
    assert figure in FIGURES
    shown = [target for where, target in TARGETS if f'figure="{figure}"' in target["expr"]]
    assert shown
    assert all(legend_of(target["legendFormat"]) == {"feature"} for target in shown)


def test_the_feature_of_a_dashboard_is_never_a_view() -> None:
    (variable,) = (v for v in DASHBOARDS["models.json"]["templating"]["list"] if v["name"] == "feature")
    (figure,) = re.findall(r'figure="(\w+)"', variable["query"]["query"])
    assert figure not in BY_VIEW
    assert figure in FIGURES


@pytest.mark.parametrize(
    "name", ["feature_age_seconds_bucket", "stale_vectors_total", "view_event_time_seconds", "view_behind"]
)
def test_what_services_say_of_their_views_is_shown_by_view(name: str) -> None:
    (target,) = (target for where, target in TARGETS if f"tidemill_{name}" in target["expr"])
    assert legend_of(target["legendFormat"]) == {"view"}


# Thresholds.


@pytest.mark.parametrize("name", RULES)
def test_a_rule_asks_for_what_there_is_and_says_what_to_look_at(name: str) -> None:
    rule = RULES[name]
    labels = Query(rule["expr"]).result().labels
    said = rule["annotations"]
    assert labels is not None
    assert all(said[which].strip() for which in ("summary", "look_at"))
    assert set(re.findall(r"\$labels\.(\w+)", " ".join(said.values()))) <= labels
    assert set(re.findall(r"\$(\w+)", " ".join(said.values()))) <= {"labels", "value"}
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert re.fullmatch(r"\d+[smhd]", rule.get("for", "0s"))


def test_vectors_without_a_view_are_alerted_by_view() -> None:
    rule = RULES["TidemillStaleVectors"]
    assert "tidemill_stale_vectors_total" in rule["expr"]
    assert Query(rule["expr"]).result().labels == {"namespace", "view"}


def test_no_two_rules_have_one_name() -> None:
    assert len(RULES) == sum(len(group["rules"]) for group in GROUPS)


# What is provisioned.


def test_prometheus_scrapes_every_service_of_compose() -> None:
    port = OURS["scorer"]["environment"]["TIDEMILL_HTTP_PORT"]
    targets = [target for config in JOB["static_configs"] for target in config["targets"]]
    assert sorted(targets) == sorted(f"{name}:{port}" for name in OURS if name not in ("keys", "topics"))
    assert JOB.get("metrics_path", "/metrics") == "/metrics"


def test_compose_gives_prometheus_and_grafana_their_files() -> None:
    mounts = {
        place.split(":")[1]: place.split(":")[0].removeprefix("./ops/")
        for name in ("prometheus", "grafana")
        for place in COMPOSE["services"][name]["volumes"]
    }
    assert all((OPS / mounts["/etc/prometheus"] / name).is_file() for name in ("prometheus.yml", *SCRAPE["rule_files"]))
    assert (OPS / mounts["/etc/grafana/provisioning"] / "datasources").is_dir()
    assert (OPS / mounts["/etc/grafana/provisioning"] / "dashboards").is_dir()
    home = Path(COMPOSE["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == PROVIDER["options"]["path"]
    assert (OPS / mounts[PROVIDER["options"]["path"]] / home.name).is_file()
    assert SOURCE["url"] == "http://prometheus:9090"
    assert SOURCE["jsonData"]["timeInterval"] == SCRAPE["global"]["scrape_interval"]
