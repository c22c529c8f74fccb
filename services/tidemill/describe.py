"""What people are shown of a pipeline and of a backtest: as text for a terminal, and as JSON."""

from __future__ import annotations

import dataclasses
import datetime as dt
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import river
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tidemill import schemas, topics
from tidemill.backtest import Report
from tidemill.comparison import LEAST, Interval
from tidemill.comparison import Report as Comparison
from tidemill.dlq import Content, Letters, Stats
from tidemill.errors import ArtifactError, DeclarationError
from tidemill.features import Known, schema
from tidemill.pipeline import Pipeline
from tidemill.records import Records
from tidemill.redrive import Found
from tidemill.registry import snapshots
from tidemill.registry.manifests import Manifest
from tidemill.registry.store import ArtifactStore
from tidemill.registry.versions import Version, Versions
from tidemill.tables import Lookup
from tidemill.validator.letters import Letter, shown

if TYPE_CHECKING:
    from tidemill import replay
    from tidemill.dataset import Summary  # it needs pyarrow, which is an extra
    from tidemill.suggest.core import Field, Suggestion, Suggestions


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


def role(pipeline: Pipeline, model: str) -> str:
    """Return what a model is declared as."""
    if model not in pipeline.roster:
        return "not declared"
    return "champion" if model == pipeline.champion else "baseline" if model == "baseline" else "challenger"


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
        rules.add_row(rule.name, rule.field, rule.said)
    models = _table("model", "role", "is")
    for name in pipeline.roster:
        models.add_row(name, role(pipeline, name), " ".join(pipeline.printed(name).split()))
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
        "rules": [{"rule": r.name, "field": r.field, "expects": r.said} for r in (*pipeline.event_checks, *pipeline.label_checks)],
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
            "redrive": records.redrive.id,
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


def suggestions_text(found: Suggestions) -> str:
    """Return what history suggests for a stream: a table of its fields, and Python for its declaration."""
    from tidemill.suggest.core import code

    table = _table("field", "nulls", "history", "suggested", "status", "refuses", "leaves out")
    for column in table.columns[2:4]:
        column.overflow = "fold"
    times = {one.name: (one.lowest, one.highest) for one in found.fields if one.is_time}
    for one in found.fields:
        row = [one.name, f"{one.nulls:,}" if one.nulls else "", _seen(one)]
        if not one.suggestions:
            table.add_row(*row, f"[dim]{one.note}[/dim]" if one.note else "")
        for suggestion in one.suggestions:
            table.add_row(*row, *_suggested(suggestion, is_time=one.name in times))
            row = [""] * 3
    head = f"{found.argument}: {found.records:,} records of {found.schema}"
    head += f", {found.skipped:,} of an earlier schema passed over" if found.skipped else ""
    broken = "".join(
        f"declared: {bad.rule} on {bad.field} ({bad.expects}) refuses {bad.refused:,} ({bad.share:.2g}): "
        f"{_counted(bad.values, is_time=bad.field in times)}\n"
        for bad in found.violated
    )
    pasted = code(found) if found.missing else "nothing to add: what is declared is as tight or tighter"
    return "\n".join(part for part in (_render(head, table), broken, pasted + "\n") if part)


def _seen(one: Field) -> str:
    if one.lowest is not None and one.highest is not None:
        if one.is_time:
            return f"{_time(one.lowest)[:10]} to {_time(one.highest)[:10]}"
        return f"{one.lowest:,.10g} to {one.highest:,.10g}"
    return "" if one.distinct == 0 else "many values" if one.distinct is None else f"{one.distinct:,} values"


def _time(ms: float) -> str:
    try:
        return _moment(int(ms))
    except (ValueError, OverflowError, OSError):  # a time that no calendar has
        return str(ms)


def _suggested(one: Suggestion, *, is_time: bool) -> tuple[str, ...]:
    refused = "none" if not one.refused else f"{'' if one.is_counted else '~'}{one.refused:,} ({one.share:.2g})"
    short = one.code.removeprefix("rules.").replace(f'"{one.field}", ', "").replace(f'"{one.field}"', "")
    status = f"{one.status}, warn" if one.warn else one.status
    return short, status, refused, _counted(one.left_out, is_time=is_time)


def _counted(values: Sequence[tuple[Any, int]], *, is_time: bool) -> str:
    named = [(_time(value) if is_time and value is not None else repr(value), times) for value, times in values]
    return ", ".join(name + (f" ({times:,} times)" if times > 1 else "") for name, times in named)


def printable(text: str) -> str:
    """Return text that a terminal shows and does not obey: a producer's bytes may be in it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _given(text: str, longest: int = 120) -> Text:
    """Return what somebody outside has written, for a table: no markup, no control characters, not too long."""
    return Text(printable(shown(text, longest)))


def _second(ms: int) -> str:
    try:
        return dt.datetime.fromtimestamp(ms / 1000, dt.UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):  # a producer's clock may say anything
        return f"{ms} ms"


def _source(letter: Letter) -> str:
    known = letter.partition is not None and letter.offset is not None
    return f"{letter.topic}[{letter.partition}]@{letter.offset}" if known else letter.topic


def letter_json(letter: Letter, state: str) -> dict[str, Any]:
    """Return what a dead letter says, for programs. Times are ms since the epoch."""
    said = dataclasses.asdict(letter)
    del said["place"]
    return {"letter": str(letter.place), "state": state} | said


def letters_text(there: Letters, found: Sequence[Letter]) -> str:
    """Return dead letters as a table, the newest at the end."""
    if not found:
        return f"no such letter in {there.topic}\n"
    table = _table("letter", "refused at", "from", "reason", "why", "state")
    for letter in found:
        source = _source(letter).removeprefix(f"{there.pipeline.name}.")
        state = there.state(letter) + (f", attempt {letter.attempt}" if letter.attempt > 1 else "")
        table.add_row(
            str(letter.place), _second(letter.refused_at), _given(source), _given(letter.reason), _given(letter.message), state,
        )  # fmt: skip
    return _render(table)


def letter_text(
    letter: Letter, there: Letters, own: Sequence[tuple[str, bytes]], went: Sequence[Mapping[str, Any]], held: Content
) -> str:
    """Return everything about one dead letter: why, where from, its producer's headers, when it went back, what is in it."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    rows = [
        ("why", letter.message), ("reason", letter.reason), ("rule", letter.rule), ("field", letter.field),
        ("value", letter.value), ("refused by", letter.stage), ("refused at", f"{_second(letter.refused_at)} UTC"),
        ("attempt", f"{letter.attempt}" + (f", redriven from {letter.redriven_from}" if letter.redriven_from else "")),
        ("from", _source(letter)), ("sent at", f"{_second(letter.sent_at)} UTC"), ("key", letter.key),
        ("bytes", f"{letter.size:,}"),
    ]  # fmt: skip
    rows += [(f"header {name}", (data or b"").decode(errors="replace")) for name, data in own]
    rows += [("went back", f"{_second(one['time'])} UTC to {one['to']}, attempt {one['attempt']}") for one in went]
    for name, text in rows:
        if text:
            table.add_row(_given(name), _given(text, 2000))
    if held.record is not None:
        inside = json.dumps(held.record, indent=2, default=str)
    else:
        inside = "\n".join(printable(line) for line in held.text.splitlines())
    head = f"letter {letter.place} of {there.topic}, {there.state(letter)}\n\n"
    more = "the first bytes" if held.form == "bytes" else held.form
    return head + _render(table) + (f"\n{more}\n{inside}\n" if inside else "")


def stats_text(there: Letters, stats: Stats) -> str:
    """Return how many dead letters there are of each kind."""
    if not stats.total.letters:
        return f"no such letter in {there.topic}\n"
    table = _table(
        "reason", "rule", "field", "first", "last", "letters", "share", "open", "redriven", "again", numbers=5
    )
    for kind in (*stats.most(), stats.total):
        if kind is stats.total:
            table.add_section()
        table.add_row(
            _given(kind.reason), _given(kind.rule), _given(kind.field, 30), _second(kind.first)[5:16], _second(kind.last)[5:16],
            f"{kind.letters:,}", f"{kind.letters / stats.total.letters:.1%}", f"{kind.open:,}", f"{kind.redriven:,}",
            f"{kind.again:,}",
        )  # fmt: skip
    return _render(table)


def stats_json(stats: Stats) -> dict[str, Any]:
    """Return the same for programs."""
    kinds = [dataclasses.asdict(kind) | {"open": kind.open} for kind in (stats.total, *stats.most())]
    return {"total": kinds[0], "kinds": kinds[1:]}


def redrive_text(found: Found) -> str:
    """Return what a redrive would send, and what it leaves where it is, and why."""
    text = ""
    if found.going:
        table = _table("to", "reason", "letters", numbers=1)
        for (to, reason), count in sorted(found.going.items(), key=lambda item: (item[0][0], -item[1])):
            table.add_row(to, _given(reason), f"{count:,}")
        text = _render(table) + "\n"
    if found.there:
        text += f"{found.there:,} went back already and stay (--again sends them once more)\n"
    return text + "".join(f"{n:,} can't go back: {printable(why)}\n" for why, n in found.cannot.most_common())


def prediction_text(pipeline: Pipeline, told: Mapping[str, Any]) -> str:
    """Return everything about one prediction that was done again: event, vector, versions, scores then and now, label."""
    states = {score["state"] for score in told["scores"]}
    state = "different" if "different" in states else "can't be done again" if "gone" in states else "equal"
    head = printable(f"prediction {told['event_id']} of {_at(told['log'])}: {state}") + "\n\n"
    event, missing = told["event"], told["event"].get("why", "")
    named = {pipeline.events.key: told["entity_id"]} | told["entities"]
    rows = [
        ("event", _at(event) + (f", schema {_schema(pipeline, event['schema_id'])}" if "schema_id" in event else "")),
        ("", f"not shown: {missing}" if missing else ""),
        ("event time", f"{_second(told['event_time'])} UTC"),
        ("entities", ", ".join(f"{field} {name}" for field, name in named.items())),
        ("windows", "partial: the log did not reach back to all of them" if told["log"]["partial"] else "whole"),
        ("stale views", ", ".join(told["stale"]) or "none"),
        ("label", _outcome(told["outcome"])),
    ]
    record = event["record"]
    parts = ["\nevent", _pairs(record.items())] if record else []
    parts += ["\nvector, as served", _vector(pipeline, told), "\nscores", _scores(told["scores"])]
    whys = "".join(f"{printable(why)}\n" for why in dict.fromkeys(score["why"] for score in told["scores"]) if why)
    made: list[Any] = []
    for score in told["scores"]:
        made += ["", _given(f"{score['model']} version {score['version']}"), _version(pipeline, score)]
    return head + _render(_pairs(rows), *parts) + (f"\n{whys}" if whys else "") + _render(*made)


def _at(place: Mapping[str, Any]) -> str:
    return f"{place['topic']}[{place['partition']}]@{place['offset']}"


def _schema(pipeline: Pipeline, number: int) -> str:
    known = {schemas.fingerprint(avro): name for name, avro in pipeline.events.others.items()}
    known[Records(pipeline).event.id] = pipeline.events.schema
    return f"{known[number]} (id {number})" if number in known else f"id {number}"


def _pairs(rows: Iterable[tuple[str, Any]]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        if value != "":
            table.add_row(_given(name), _given("missing" if value is None else str(value), 2000))
    return table


def _outcome(outcome: Mapping[str, Any]) -> str:
    state = outcome["state"]
    if state == "pending":
        return "not known yet"
    where = _at(outcome)
    if state == "other":
        return f"{outcome['why']}: {where}"
    if state == "expired":
        return f"never came in time: {where}"
    if "label" not in outcome:
        return f"known, under another declaration: {where}"
    return f"{outcome['label']}, known {_second(outcome['label_time'])} UTC: {where}"


def _vector(pipeline: Pipeline, told: Mapping[str, Any]) -> Table:
    """Return the features with where each came from, and as of when."""
    table = _table("feature", "value", "from", "of", "as of", "age")
    views = {feature: view for view in pipeline.views for feature in view.features}
    known = {view["view"]: view for view in told["views"]}
    for name, value in told["vector"].items():
        row = [
            _given(name),
            _given("missing" if value is None else str(value).removesuffix(".0")),
        ]
        if name not in views:
            table.add_row(*row, "the event", "", "", "")
            continue
        of = known[views[name].label]
        as_of = "stale" if of["stale"] else "never" if of["as_of"] is None else _second(of["as_of"])
        age = "" if of["age"] is None else str(dt.timedelta(seconds=round(of["age"])))
        table.add_row(*row, f"view {of['view']}", _given(f"{of['entity']} {of['entity_id'] or 'missing'}"), as_of, age)
    return table


def _scores(scores: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("model", "role", "version", "score then", "score now", "")
    for score in scores:
        now = "" if score["score_now"] is None else repr(score["score_now"])
        state = {"gone": "can't be done again"}.get(score["state"], score["state"])
        if state == "different" and score["score_now"] == score["score"]:
            state = "different probabilities"
        table.add_row(_given(score["model"]), score["role"], str(score["version"]), repr(score["score"]), now, state)
        classes = score["probabilities"].keys() | (score["probabilities_now"] or {}).keys()
        for name in sorted(classes):
            both = [(p or {}).get(name) for p in (score["probabilities"], score["probabilities_now"])]
            table.add_row("", "", _given(name), *("" if p is None else repr(p) for p in both), "")
    return table


def _version(pipeline: Pipeline, score: Mapping[str, Any]) -> Table:
    """Return what made a score: the version's manifest; of version 0, which has none, what is declared."""
    made = score["manifest"]
    if made is None:
        declared = score["model"] in pipeline.roster and not score["version"]
        printed = " ".join(pipeline.printed(score["model"]).split()) if declared else ""
        why = "" if score["version"] else "the declared model, before it had learned anything"
        return _pairs([("is", why or "there is no manifest that can be trusted"), ("hyperparameters", printed)])
    now = f" (this is {river.__version__})" if made["river"] != river.__version__ else ""
    return _pairs(
        [
            ("learned", f"{made['examples']:,} examples, labels until {_second(made['learned_until'])} UTC"),
            ("published", f"{_second(made['created_at'])} UTC"),
            ("artifact", made["uri"]),
            ("made by", f"tidemill {made['tidemill']}, River {made['river']}{now}, Python {made['python']}"),
            ("declaration", made["declaration"]),
            ("metrics", ", ".join(f"{name} {value:.6f}" for name, value in made["metrics"].items())),
            ("hyperparameters", " ".join(made["hyperparameters"].split())),
        ]
    )


MOST_UNEQUAL = 100
"""How many scores of a sample, and reasons why some are gone, are shown at most; JSON has all."""


def unequal_text(unequal: Sequence[replay.Done]) -> str:
    """Return those scores of a sample that came out otherwise, and why others could not be done again."""
    scores = [(one.prediction.event_id, again) for one in unequal for again in one.scores]
    different = [(event_id, again) for event_id, again in scores if again.now is not None and again.state != "equal"]
    table = _table("prediction", "model", "version", "score then", "score now")
    for event_id, again in different[:MOST_UNEQUAL]:
        now = "" if again.now is None else repr(again.now["score"])
        then = again.then
        table.add_row(_given(event_id), _given(then["model"]), str(then["version"]), repr(then["score"]), now)
    text = _render(table) + _more(len(different)) + "\n" if different else ""
    gone = Counter(again.why for _, again in scores if again.state == "gone")
    lines = [
        f"{_many(n, 'score')} can't be done again: {printable(why)}\n" for why, n in gone.most_common(MOST_UNEQUAL)
    ]
    return text + ("".join(lines) + _more(len(gone)) + "\n" if gone else "")


def _more(count: int) -> str:
    return f"and {count - MOST_UNEQUAL:,} more: --json has all\n" if count > MOST_UNEQUAL else ""


def again_text(topic: str, summary: replay.Summary) -> str:
    """Return what came of doing predictions again, in a few lines."""
    by = "folded again from the examples" if summary.rebuilt else "from their artifacts"
    drawn = "" if summary.seed is None else f" drawn (--seed {summary.seed})"
    states = [f"{summary.equal:,} equal"]
    states += [f"{summary.different:,} different"] if summary.different else []
    states += [f"{summary.gone:,} can't be done again"] if summary.gone else []
    return (
        f"{_many(summary.predictions, 'prediction')} of {topic}{drawn} done again by {_many(summary.versions, 'version')}, {by}\n"
        f"{_many(summary.scores, 'score')}: {', '.join(states)}\n"
        + (f"{_many(summary.skipped, 'record')} of an earlier declaration passed over\n" if summary.skipped else "")
        + f"{summary.seconds:.1f} s\n"
    )


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def _notes(there: Versions, version: Version) -> list[str]:
    """Return what is to be known of a version beside its figures."""
    found = ["newest"] if version.is_newest else []
    if version.refused:
        found.append(f"refused: {version.refused}")
    elif version.manifest and not _is_declared(there.pipeline, version.manifest):
        found.append("another declaration")
    return found


def _is_declared(pipeline: Pipeline, manifest: Manifest) -> bool:
    return manifest.model in pipeline.roster and manifest.declaration == pipeline.declaration_hash(manifest.model)


def version_json(there: Versions, store: ArtifactStore, version: Version) -> dict[str, Any]:
    """Return what is known of a version, for programs. Times are ms since the epoch; nothing but `offset`, `model` and
    `refused` is known of a record that is no manifest."""
    found = {"offset": version.offset, "model": version.key, "refused": version.refused, "newest": version.is_newest}
    manifest = version.manifest
    if manifest is None:
        return found
    told = dataclasses.asdict(manifest)
    del told["golden"], told["signature"], told["model"]
    return found | told | {
        "role": role(there.pipeline, manifest.model),
        "declared": _is_declared(there.pipeline, manifest),
        "artifact": "there" if store.holds(manifest.sha256) else "gone",
        "signature": _signature(there, manifest),
    }  # fmt: skip


def _signature(there: Versions, manifest: Manifest) -> str:
    if there.registry is None:
        return "not checked"
    return "valid" if there.registry.is_signed(manifest) else "wrong"


def versions_text(there: Versions, store: ArtifactStore, found: Sequence[Version]) -> str:
    """Return versions as a table, the newest first."""
    if not found:
        return f"no such version in {there.topic}\n"
    names = list(dict.fromkeys(name for one in found if one.manifest for name in one.manifest.metrics))[:4]
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for column in ("model", "version", "examples", "created", "role", *names, "River", "artifact", ""):
        table.add_column(
            _given(column, 20),
            justify="right" if column in ("version", "examples", *names) else "left",
            no_wrap=bool(column),
        )
    for one in found:
        manifest, notes = one.manifest, _given(", ".join(_notes(there, one)))
        if manifest is None:
            table.add_row(_given(one.key, 40), *[""] * (len(names) + 6), notes)
            continue
        metrics = (f"{manifest.metrics[name]:.4f}" if name in manifest.metrics else "" for name in names)
        table.add_row(
            _given(one.key, 40), f"{manifest.version}", f"{manifest.examples:,}", _time(manifest.created_at),
            role(there.pipeline, manifest.model), *metrics, _given(manifest.river, 20),
            "there" if store.holds(manifest.sha256) else "gone", notes,
        )  # fmt: skip
    signed = "checked" if there.registry else "not checked: TIDEMILL_SIGNING_KEY is not set"
    return _render(table) + f"\nartifacts in {store.url}; signatures {signed}\n"


def version_text(there: Versions, store: ArtifactStore, version: Version, refused: int) -> str:
    """Return everything about one version; `refused`: how many newer records of its model no service takes."""
    manifest, pipeline = version.manifest, there.pipeline
    assert manifest is not None  # noqa: S101  `find` returns no other
    artifact = {
        "there": "there, and its hash is right",
        "damaged": "DAMAGED: its bytes have another hash; no service opens it",
        "gone": f"gone: nothing of that name is in {store.url}",
    }[store.state(manifest.sha256)]
    signature = {
        "valid": "valid",
        "wrong": "WRONG: damaged, forged, or signed with another TIDEMILL_SIGNING_KEY; no service takes it",
        "not checked": "not checked: TIDEMILL_SIGNING_KEY is not set",
    }[_signature(there, manifest)]
    same = _is_declared(pipeline, manifest)
    declared = "as declared now" if same else "NOT as declared now: another model, vector or task"
    river_now = f", this is {river.__version__}: no service opens it" if manifest.river != river.__version__ else ""
    metrics = [(name, f"{value:.6f}") for name, value in manifest.metrics.items()]
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    rows = [
        ("role", role(pipeline, manifest.model)),
        ("examples", f"{manifest.examples:,}: {pipeline.name}.examples[0..{manifest.version})"),
        ("learned until", f"{_second(manifest.learned_until)} UTC, event time of a label"),
        ("created", f"{_second(manifest.created_at)} UTC"),
        *metrics, ("", ""), ("signature", signature), ("declaration", f"{manifest.declaration}\n{declared}"),
        ("artifact", f"{manifest.uri}\n{artifact}"), ("sha256", manifest.sha256), ("golden vectors", f"{len(manifest.golden)}"), ("", ""),
        ("River", f"{manifest.river}{river_now}"), ("Python", manifest.python), ("Tidemill", manifest.tidemill),
        ("model", " ".join(manifest.hyperparameters.split())),
    ]  # fmt: skip
    for name, text in rows:
        table.add_row(_given(name), Text("\n").join(_given(line, 4000) for line in text.split("\n")))
    notes = ", ".join(_notes(there, version))
    head = f"{_given(version.key)}@{manifest.version} of {there.topic}, offset {version.offset}" + (
        f": {printable(notes)}" if notes else ""
    )
    newer = f"newer records of this model that no service takes: {refused:,}; `models list --model` shows why\n"
    return head + "\n\n" + _render(table) + (f"\n{newer}" if refused else "")


def comparison_json(report: Comparison) -> dict[str, Any]:
    """Return a comparison, for programs. Times are ms since the epoch; a segment with neither field nor value is all."""
    lines = [
        line.segment._asdict() | {
            "questions": line.questions, "a": line.a, "b": line.b,
            "difference": line.difference._asdict() if line.difference else None, "verdict": line.verdict,
        }
        for line in report.lines
    ]  # fmt: skip
    return {field.name: getattr(report, field.name) for field in dataclasses.fields(report)} | {"lines": lines}


def _figure(value: float | None) -> str:
    """Return a number with four digits that say something."""
    return (
        ""
        if value is None
        else f"{value:.4f}"
        if abs(value) < 1
        else f"{value:,.{max(0, 4 - len(str(int(abs(value)))))}f}"
    )


def _margin(found: Interval | None) -> str:
    """Return a mean and half of its interval, with two digits of that."""
    if found is None:
        return "too few"
    half = found.high - found.mean
    digits = min(12, max(0, 1 - math.floor(math.log10(half)))) if half > 0 else 4
    return f"{found.mean:+,.{digits}f} ± {half:,.{digits}f}" if half < 1e6 else f"{found.mean:+.2g} ± {half:.2g}"


def _lines(report: Comparison) -> Table:
    sides = [f"{name} A / B" for name in report.metrics]
    loss = [f"{report.loss}, A - B"] if report.loss else []
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("segment", overflow="fold")
    for column in ("questions", *sides, *loss):
        table.add_column(column, justify="right", no_wrap=column in loss)
    table.add_column("verdict" if loss else "", no_wrap=True)
    before = ""
    for line in report.lines:
        if line.segment.field != before:
            table.add_section()
            before = line.segment.field
        both = ((_figure(line.a.get(name)), _figure(line.b.get(name))) for name in report.metrics)
        table.add_row(
            _given(str(line.segment), 30), f"{line.questions:,}", *(f"{a} / {b}" if a or b else "" for a, b in both),
            *([_margin(line.difference)] if loss else []), line.verdict if loss else "",
        )  # fmt: skip
    return table


def comparison_text(report: Comparison) -> str:
    """Return which of two models is better, in which segment."""
    left = [
        (report.only_a, f"only {report.a} answered"), (report.only_b, f"only {report.b} answered"), (report.neither, "neither answered"),
        (report.skipped, "are of an earlier declaration, with other vectors"),
    ]  # fmt: skip
    others = "".join(f"left out: {n:,} that {what}\n" for n, what in left if n)
    same = f"in {report.same:,} of them A and B were the same model\n" if report.same else ""
    sides = "".join(
        f"{side.upper()}  {name}, versions {report.versions[side][0]} to {report.versions[side][1]}\n"
        for side, name in (("a", report.a), ("b", report.b))
    )
    head = (
        f"{report.pipeline}: {report.questions:,} questions that both answered, asked {_moment(report.first_event)} to "
        f"{_moment(report.last_event)} UTC\n{sides}{same}{others}"
    )
    return head + "\n" + _render(_lines(report)) + "\n" + _told(report)


def _told(report: Comparison) -> str:
    if not report.loss:
        return "an anomaly score costs nothing by itself, so there is no interval, and no verdict\n"
    return (
        f"{report.loss}, A - B: below 0, A is better; after ± half of the 95% interval (paired, normal, by batch means; none under\n"
        f"{LEAST} questions). The verdict is what all of the interval speaks for. It is for one look at one line: of 20 lines of equal\n"
        f"models about one shows a difference, and who looks again every day until one does will see it.\n"
    )
