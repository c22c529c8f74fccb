"""A pipeline as it is declared."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidemill.cli.text.shared import count_of, new_table, pairs_table, printable, render
from tidemill.declare.pipeline import Pipeline
from tidemill.declare.stable_repr import model_text
from tidemill.encoding import schema_files
from tidemill.stream.topic import DAY
from tidemill.tables import Lookup
from tidemill.wire import topics
from tidemill.wire.records import Records

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidemill.offline.diff import DiffReport
    from tidemill.runtime.topic_settings import SettingChange


def topics_text(pipeline: Pipeline) -> str:
    """Return the table of the pipeline's topics."""
    table = new_table("topic", "key", "record", "partitions", "retention", "written by", "read by")
    for topic in topics.TOPICS:
        kept = topic.kept_ms(pipeline)
        retention = "forever" if kept < 0 else f"{kept // DAY} days"
        partitions = str(topic.partitions or pipeline.partitions)
        table.add_row(
            topic.name(pipeline),
            topic.key,
            topic.record,
            partitions,
            retention,
            ", ".join(topic.writers),
            ", ".join(topic.readers),
        )
    return render(table)


def setting_changes_text(changes: Sequence[SettingChange]) -> str:
    """Return what of topics becomes what."""
    if not changes:
        return "the settings of all topics are as declared\n"
    table = new_table("topic", "setting", "is", "becomes", "")
    for one in changes:
        table.add_row(one.topic, one.setting, one.value, one.becomes, "deletes records" if one.deletes else "")
    return render(table)


def diff_text(report: DiffReport) -> str:
    """Return what a change of a declaration does."""
    head = f"{report.pipeline} against {report.against}: {count_of(len(report.changes), 'change')}\n"
    blocks = []
    for change in report.changes:
        lines = [("", change.what), ("then", change.effect), ("do", change.action)]
        blocks.append(f"{printable(change.part)}\n{render(pairs_table((f'  {k}', v) for k, v in lines if v))}")
    return "\n".join([head, *blocks])


def pipeline_text(pipeline: Pipeline) -> str:
    """Return what a pipeline runs."""
    vector = new_table("feature", "kind", "from")
    for name, feature in pipeline.request_features.items():
        plain = isinstance(feature.source, (str, Lookup))
        vector.add_row(name, feature.kind, str(feature.source) if plain else "a function of the event")
    for view in pipeline.views:
        for name in view.features:
            vector.add_row(name, "number", f"view {view.label}")
    views = new_table("view", "entity", "source", "tile", "expires", "fresh within", "kept by")
    for view in pipeline.views:
        by = "featurizer" if view in pipeline.inline_views else "materializer"
        views.add_row(view.label, view.entity, view.source, view.every, view.expires or "never", view.fresh, by)
    rules = new_table("rule", "field", "expects")
    for rule in (*pipeline.event_checks, *pipeline.label_checks):
        rules.add_row(rule.name, rule.field, rule.description)
    models = new_table("model", "role", "declared as")
    for name in pipeline.model_names:
        models.add_row(name, pipeline.role(name), model_text(pipeline.stable_repr(name)))
    entity = f"entity {pipeline.entity}" if pipeline.entity else "no entity: events are keyed by their id"
    head = (
        f"pipeline {pipeline.name}: {pipeline.task}, {entity}, "
        f"label within {pipeline.label_timeout}\n"
        f"events {pipeline.events.schema_name} (id {Records(pipeline).sent_event.id}), "
        f"labels {pipeline.labels.schema_name} (id {Records(pipeline).sent_label.id})\n"
        f"their schemas: {pipeline.events.schema_source}, {pipeline.labels.schema_source}\n"
    )
    for name, stream in (("events", pipeline.events), ("labels", pipeline.labels)):
        others = [f"{other} (id {schema_files.fingerprint(avro)})" for other, avro in stream.others.items()]
        head += f"{name} are also taken by {', '.join(others)}\n" if others else ""
        if by_default := [name for name in ("id", "time") if name in stream.chosen]:
            fields = " and ".join(f"{name}={getattr(stream, name)!r}" for name in by_default)
            head += f"of {name}, {fields} is not declared: the schema leaves no other choice\n"
        if stream.as_millis:
            head += (
                f"the time of {name}, {stream.time}, is in {stream.unit}; from the validator on it is in milliseconds\n"
            )
    head += "predictions are JSON\n" if pipeline.predictions_encoding == "json" else ""
    watched = pipeline.monitor
    by = f", performance by {', '.join(watched.segments)}" if watched.segments else ""
    head += f"monitored in windows of {watched.window}, against the first {watched.reference} of examples{by}\n"
    if (protect := pipeline.protect) is not None:
        head += f"of the last {protect.of:,} examples learned, at most {protect.share:.4g} of one {protect.source}\n"
    parts = ["rules", rules, f"\nvector, {len(pipeline.vector)} features", vector]
    if pipeline.views:
        parts += ["\nviews", views]
    if pipeline.tables:
        tables = new_table("table", "key", "rows", "sha256", numbers=2)
        for table in pipeline.tables:
            tables.add_row(table.name, table.key, f"{len(table):,}", table.sha256[:12])
        parts += ["\ntables", tables]
    if hashed := pipeline.hashed():
        parts.append(
            f"WARNING: {', '.join(hashed)}: a function that calls hash(), which is another number for a text in each "
            f"process, so that models are asked something else than they have learned: take zlib.crc32(text.encode())"
        )
    parts += ["\nmodels", models]
    for name in pipeline.model_names:
        if drawing := dict.fromkeys(pipeline.unseeded(name)):
            parts.append(
                f"model {name}: {', '.join(drawing)} draws at random, and is declared without a seed: it gets one of "
                f"the pipeline's, so that its versions can be made again"
            )
    if pipeline.search:
        searched = new_table("search", "parameter", "values")
        for name, search in pipeline.search.items():
            for parameter, values in search.over.items():
                searched.add_row(name, parameter, values.description)
        parts += ["\nsearched by `tidemill tune`", searched]
    return head + "\n" + render(*parts) + "\ntopics\n" + topics_text(pipeline)
