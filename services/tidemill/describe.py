"""What people are shown of a pipeline and of a backtest: as text for a terminal, and as JSON."""

from __future__ import annotations

import dataclasses
import datetime as dt
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tidemill import schemas, topics
from tidemill.backtest import Report
from tidemill.errors import ArtifactError, DeclarationError
from tidemill.features import Known, schema
from tidemill.pipeline import Pipeline
from tidemill.records import Records
from tidemill.registry import snapshots
from tidemill.tables import Lookup

if TYPE_CHECKING:
    from tidemill.dataset import Summary  # it needs pyarrow, which is an extra


def check_models(pipeline: Pipeline) -> None:
    """Raise DeclarationError where a model could not be saved and loaded again, as every version must be."""
    for name in pipeline.roster:
        try:
            snapshots.load(snapshots.dump(pipeline.model(name)))
        except ArtifactError as error:
            raise DeclarationError(f"pipeline {pipeline.name!r}: models[{name!r}]: {error}") from error


def _render(*parts: Any) -> str:
    out = io.StringIO()
    console = Console(file=out, width=118, highlight=False)
    for part in parts:
        console.print(part)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _table(*columns: str, numbers: int = 0) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for index, column in enumerate(columns):
        # What a row is called stays whole; the rest may wrap.
        table.add_column(column, justify="right" if index >= len(columns) - numbers else "left", no_wrap=index == 0)
    return table


def topics_text(pipeline: Pipeline) -> str:
    """Return the table of the pipeline's topics."""
    table = _table("topic", "key", "record", "partitions", "kept", "written by", "read by")
    for topic in topics.TOPICS:
        kept = "for ever" if topic.retention_ms < 0 else f"{topic.retention_ms // topics.DAY} days"
        partitions = str(topic.partitions or pipeline.partitions)
        table.add_row(topic.name(pipeline.name), topic.key, topic.record, partitions, kept,
                      ", ".join(topic.writers), ", ".join(topic.readers))  # fmt: skip
    return _render(table)


def as_text(pipeline: Pipeline) -> str:
    """Return what a pipeline will run."""
    vector = _table("feature", "kind", "from")
    for name, feature in pipeline.request_features.items():
        plain = isinstance(feature.source, (str, Lookup))
        vector.add_row(name, feature.kind, str(feature.source) if plain else "a function of the event")
    for view in pipeline.views:
        for name in view.features:
            vector.add_row(name, "number", f"view {view.label}")
    views = _table("view", "of", "from", "tiles of", "expires", "fresh", "kept by")
    for view in pipeline.views:
        by = "featurizer" if view in pipeline.own_views else "materializer"
        views.add_row(view.label, view.entity, view.source, view.every, view.expires or "never", view.fresh, by)
    rules = _table("rule", "field", "expects")
    for rule in (*pipeline.event_checks, *pipeline.label_checks):
        rules.add_row(rule.name, rule.field, rule.text)
    models = _table("model", "role", "is")
    for name in pipeline.roster:
        role = "champion" if name == pipeline.champion else "baseline" if name == "baseline" else "challenger"
        models.add_row(name, role, " ".join(pipeline.printed(name).split()))
    head = (
        f"pipeline {pipeline.name}: {pipeline.task}, entity {pipeline.events.key}, label within {pipeline.label_timeout}\n"
        f"events {pipeline.events.schema} (id {Records(pipeline).event.id}), "
        f"labels {pipeline.labels.schema} (id {Records(pipeline).label.id})\n"
    )
    for name, stream in (("events", pipeline.events), ("labels", pipeline.labels)):
        others = [f"{other} (id {schemas.fingerprint(avro)})" for other, avro in stream.others.items()]
        head += f"{name} are also taken by {', '.join(others)}\n" if others else ""
    watched = pipeline.monitor
    by = f", performance by {', '.join(watched.segments)}" if watched.segments else ""
    head += f"watched in windows of {watched.window}, against the first {watched.reference} of examples{by}\n"
    parts = ["rules", rules, f"vector, {len(pipeline.vector)} features", vector]
    if pipeline.views:
        parts += ["views", views]
    if pipeline.tables:
        tables = _table("table", "key", "rows", "sha256", numbers=2)
        for table in pipeline.tables:
            tables.add_row(table.name, table.key, f"{len(table):,}", table.sha256[:12])
        parts += ["tables", tables]
    parts += ["models", models]
    return head + "\n" + _render(*parts) + "topics\n" + topics_text(pipeline)


def as_json(pipeline: Pipeline) -> dict[str, Any]:
    """Return what a pipeline will run, for programs."""
    records = Records(pipeline)
    return {
        "name": pipeline.name,
        "task": pipeline.task,
        "entity": pipeline.events.key,
        "champion": pipeline.champion,
        "models": {name: pipeline.printed(name) for name in pipeline.roster},
        "vector": pipeline.vector,
        "views": [schema(pipeline, view) for view in pipeline.views],
        "tables": [{"table": t.name, "key": t.key, "rows": len(t), "sha256": t.sha256} for t in pipeline.tables],
        "rules": [{"rule": r.name, "field": r.field, "expects": r.text} for r in (*pipeline.event_checks, *pipeline.label_checks)],
        "monitor": dataclasses.asdict(pipeline.monitor),
        "schema_ids": {
            "event": records.event.id,
            "label": records.label.id,
            "features": records.features.id,
            "prediction": records.prediction.id,
            "prediction-log": records.prediction_log.id,
            "example": records.example.id,
            "manifest": records.manifest.id,
            "update": records.update.id,
            "window": records.window.id,
            "alert": records.alert.id,
        },
        "topics": [
            {"name": t.name(pipeline.name), "partitions": t.partitions or pipeline.partitions, "key": t.key,
             "record": t.record, "retention_ms": t.retention_ms, "writers": t.writers, "readers": t.readers}
            for t in topics.TOPICS
        ],
    }  # fmt: skip


def _moment(ms: int) -> str:
    return dt.datetime.fromtimestamp(ms / 1000, dt.UTC).strftime("%Y-%m-%d %H:%M")


def known_text(known: Sequence[Known]) -> str:
    """Return what views know of one entity."""
    table = _table("feature", "value", "view", "as of", "latest event", "age", numbers=0)
    for view in known:
        for name, value in view.features.items():
            table.add_row(
                name, "missing" if value is None else f"{value:g}", view.view if view.whole else f"{view.view} (not whole)",
                "" if view.at is None else _moment(view.at), "never" if view.event_time is None else _moment(view.event_time),
                "" if view.age_seconds is None else f"{dt.timedelta(seconds=round(view.age_seconds))}",
            )  # fmt: skip
    return _render(table)


def report_json(report: Report) -> dict[str, Any]:
    """Return a backtest's report, for programs."""
    return dataclasses.asdict(report) | {"events_per_second": report.events_per_second}


def report_text(report: Report) -> str:
    """Return a backtest's report."""
    names = list(next(iter(report.metrics.values()), {}))
    final = _table("model", *names, numbers=len(names))
    for model, values in report.metrics.items():
        shown = f"{model} (champion)" if model == report.champion else model
        final.add_row(shown, *(f"{values[name]:.6f}" if name in values else "" for name in names))
    main = names[min(1, len(names) - 1)] if names else ""
    steps = report.over_time[:: max(1, len(report.over_time) // 12)]
    if report.over_time and steps[-1] is not report.over_time[-1]:
        steps.append(report.over_time[-1])
    course = _table("event time", "examples", *report.metrics, numbers=len(report.metrics) + 1)
    for row in steps:
        course_values = [row["metrics"][m].get(main) for m in report.metrics]
        course.add_row(
            _moment(row["time"]), f"{row['examples']:,}", *("" if v is None else f"{v:.4f}" for v in course_values)
        )
    dead = ", ".join(f"{reason} {n:,}" for reason, n in sorted(report.dead_letters.items())) or "none"
    head = (
        f"pipeline {report.pipeline}: {report.task}, {report.events:,} events from {_moment(report.first_event)} "
        f"to {_moment(report.last_event)} UTC, {report.labels:,} labels\n"
        f"predictions {report.predictions:,} = joined {report.joined:,} + expired {report.expired:,} + pending {report.pending:,}\n"
        f"dead letters: {dead}\n"
        f"{report.seconds:.1f} s, {report.events_per_second:,.0f} events/s\n"
    )
    return head + "\n" + _render(final, f"\n{main} so far", course)


def dataset_text(found: Summary) -> str:
    """Return what a data set holds."""
    if found.label_mean is None:
        labels = ", ".join(f"{label} {n:,}" for label, n in found.labels.items())
    elif found.labels:
        labels = f"{found.labels.get('true', 0):,} true ({found.label_mean:.2%})"
    else:
        labels = f"mean {found.label_mean:.6g}"
    left = [
        (found.partial, "with windows that reach back before what is known (partial)"),
        (found.stale, "with views that could not be read when they were served (stale)"),
        (found.skipped, "records of an earlier declaration were passed over"),
        *((n, f"records were refused: {reason}") for reason, n in sorted(found.dead_letters.items())),
    ]
    return (
        f"{found.file}: {found.rows:,} rows, events from {_moment(found.first_event)} to {_moment(found.last_event)} UTC\n"
        f"labels: {labels}\n"
        + "".join(f"{n:,} {what}\n" for n, what in left if n)
        + f"{found.seconds:.1f} s, {found.rows / max(found.seconds, 1e-9):,.0f} rows/s\n"
    )
