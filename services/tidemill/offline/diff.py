"""What a change of a declaration does to what runs: topics, producers, views, models and their versions.

Each effect is what services do by themselves when they start with the changed declaration; each action is what a person
has to do besides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tidemill.declare.load import load
from tidemill.declare.pipeline import Pipeline
from tidemill.declare.scorecard import metric_names
from tidemill.declare.stable_repr import model_text
from tidemill.declare.view import View
from tidemill.encoding import compatibility, schema_files
from tidemill.features.tiles import Plan
from tidemill.offline.against import in_other_process, other_declaration

Facts = dict[str, Any]


@dataclass(frozen=True)
class Change:
    """One change: what of the declaration, what it is instead, what happens, and what to do; nothing, if empty."""

    part: str
    what: str
    effect: str
    action: str = ""


@dataclass(frozen=True)
class DiffReport:
    """The changes between two declarations."""

    pipeline: str
    against: str
    changes: Sequence[Change]

    def as_dict(self) -> dict[str, Any]:
        """Return the report for programs."""
        return dataclasses.asdict(self)


def diff(reference: str, pipeline: Pipeline, against: str) -> DiffReport:
    """Compare a pipeline with another declaration of it. Raises SettingsError where that can't be loaded."""
    with other_declaration(against, reference) as other:
        before = in_other_process(against, _facts_of, other)
    return DiffReport(pipeline.name, against, list(changes(before, facts(pipeline))))


def _facts_of(reference: str) -> Facts:
    return facts(load(reference))


def facts(pipeline: Pipeline) -> Facts:
    """Return what of a declaration matters to what runs, as plain values."""
    return {
        "name": pipeline.name,
        "task": pipeline.task,
        "champion": pipeline.champion,
        "partitions": pipeline.partitions,
        "label timeout": pipeline.label_timeout,
        "corrections": pipeline.labels.corrections or "none",
        "predictions": f"{pipeline.predictions_encoding} {pipeline.predictions_headers}".strip(),
        "schemas": {"events": pipeline.events.avro, "labels": pipeline.labels.avro},
        "streams": {
            name: {
                "topic": stream.topic or f"{pipeline.name}.{name}",
                "id": stream.id,
                "time": stream.time,
                "key": stream.key or stream.id,
                "unit of time": stream.time_unit or "the schema's",
                "encoding": stream.encoding or "Avro or JSON",
                "unwrap": stream.unwrap or "nothing",
            }
            for name, stream in (("events", pipeline.events), ("labels", pipeline.labels))
        },
        "rules": {
            "events": [f"{rule.name} {rule.field}: {rule.description}" for rule in pipeline.event_checks],
            "labels": [f"{rule.name} {rule.field}: {rule.description}" for rule in pipeline.label_checks],
        },
        "vector": dict(pipeline.vector),
        "views": {view.label: _view(view, pipeline) for view in pipeline.views},
        "models": {name: pipeline.declaration_hash(name) for name in pipeline.model_names},
        "texts": {name: model_text(pipeline.stable_repr(name)) for name in pipeline.model_names},
        "label": pipeline.labels.value if isinstance(pipeline.labels.value, str) else "a function",
        "metrics": ", ".join(metric_names(pipeline.metric())),
        **{name: repr(getattr(pipeline, name)) for name in _AS_TEXT},
    }


#: Parts that services go by from their next start, and of which nothing is kept anywhere.
_AS_TEXT = ("gate", "training", "retention", "forgetting", "monitor", "fuse", "shares", "protect")


def _view(view: View, pipeline: Pipeline) -> Facts:
    return {
        "entity": view.entity,
        "source": view.source,
        "shape": Plan(view).shape,
        "columns": sorted(column.name for column in Plan(view).columns),
        "expires": view.expires or "never",
        "inline": view in pipeline.inline_views,
    }


def changes(before: Facts, now: Facts) -> Iterator[Change]:
    """Yield the changes from one declaration's facts to another's."""
    if before["name"] != now["name"]:
        yield Change(
            "name",
            _to(before["name"], now["name"]),
            "It is another pipeline: other topics, groups, views and models, which begin with nothing. The earlier one "
            "stays as it is.",
            f"`tidemill topics {now['name']} --create`; `tidemill models train` learns from history",
        )
        return
    for part in (_streams, _partitions, _rules, _views, _vector, _models, _others):
        yield from part(before, now)


def _to(before: object, now: object) -> str:
    return f"{before} -> {now}"


def _streams(before: Facts, now: Facts) -> Iterator[Change]:
    for name in ("events", "labels"):
        for what, value in now["streams"][name].items():
            if before["streams"][name][what] != value:
                yield Change(
                    f"{name}.{what}",
                    _to(before["streams"][name][what], value),
                    *_STREAM_EFFECTS.get(
                        what, ("Records of before are read by the new declaration where they still wait.", "")
                    ),
                )
        then, schema = before["schemas"][name], now["schemas"][name]
        if schema_files.fingerprint(then) != schema_files.fingerprint(schema):
            verdict = compatibility.check(schema, schema, {"before": then}, "FULL")
            wrong = "; ".join(f"{p.direction}: {p.field} {p.why}" for p in verdict.problems)
            yield Change(
                f"{name} schema",
                wrong or "compatible in both directions",
                "Records that producers write with the earlier schema are read by the new one."
                if not any(p.direction == "backward" for p in verdict.problems)
                else "Records that producers write with the earlier schema, and those that wait, become dead letters.",
                "register it (`tidemill schema register`), then move producers"
                if not wrong
                else "give new fields a default, or begin with another pipeline name",
            )


_STREAM_EFFECTS = {
    "topic": (
        "The validator begins at the new topic's start; what is left on the earlier one is not read.",
        "drain it",
    ),
    "key": (
        "Events go to other partitions, and views are of another entity: views of before are rebuilt from the log.",
        "drain the pipeline first, so that no entity is in two partitions",
    ),
}


def _partitions(before: Facts, now: Facts) -> Iterator[Change]:
    if before["partitions"] != now["partitions"]:
        yield Change(
            "partitions",
            _to(before["partitions"], now["partitions"]),
            "Services do not start: topics have another number of partitions than is declared.",
            "`tidemill grow`, which keeps keys, views and joins right",
        )


def _rules(before: Facts, now: Facts) -> Iterator[Change]:
    for name in ("events", "labels"):
        then, rules = before["rules"][name], now["rules"][name]
        what = [f"+ {rule}" for rule in rules if rule not in then] + [f"- {rule}" for rule in then if rule not in rules]
        if what:
            yield Change(
                f"rules of {name}",
                "; ".join(what),
                "What comes from now on is judged by them. Dead letters stay where they are.",
                "`tidemill dlq redrive` sends back what would pass now" if any(w[0] == "-" for w in what) else "",
            )


def _views(before: Facts, now: Facts) -> Iterator[Change]:
    then, views = before["views"], now["views"]
    for name in then.keys() - views.keys():
        yield Change(f"view {name}", "removed", "Nobody writes it any more. Its keys stay in Redis.", "")
    for name, view in views.items():
        if name not in then:
            yield Change(
                f"view {name}",
                "added",
                "Its features are missing, or marked as partial, until its windows are full."
                if view["inline"]
                else "Its features are missing, and it is stale in each vector, until it has been filled.",
                "" if view["inline"] else "`tidemill features backfill`",
            )
        elif view != then[name]:
            what = "; ".join(
                f"{key}: {_to(then[name][key], view[key])}" for key in view if view[key] != then[name][key]
            )
            yield Change(
                f"view {name}",
                what,
                "It is rebuilt from the log, as far as that reaches (30 days)." if then[name]["shape"] != view["shape"]
                or then[name]["columns"] != view["columns"] else "It goes on as it is.",
            )  # fmt: skip


def _vector(before: Facts, now: Facts) -> Iterator[Change]:
    then, vector = before["vector"], now["vector"]
    what = [f"+ {name} ({kind})" for name, kind in vector.items() if name not in then]
    what += [f"- {name}" for name in then if name not in vector]
    what += [
        f"{name}: {_to(then[name], vector[name])}" for name in vector if then.get(name, vector[name]) != vector[name]
    ]
    if not what and list(then) != list(vector):
        what = ["another order"]
    if what:
        yield Change(
            "vector",
            "; ".join(what),
            "Every version of every model is of another vector. Predictions that wait for labels, and examples, have "
            "the earlier one: models do not learn from them. A vector that was not scored yet is a dead letter of the "
            "scorer.",
            "let every event have its prediction before services are started again; `tidemill dataset --recompute` "
            "makes a training set of history with the new vector",
        )


def _models(before: Facts, now: Facts) -> Iterator[Change]:
    then, models = before["models"], now["models"]
    if before["task"] != now["task"]:
        yield Change("task", _to(before["task"], now["task"]), "No version of any model can be used.", "")
    for name in then.keys() - models.keys():
        yield Change(
            f"model {name}", "removed", "It is not asked any more. Its versions stay, and can be replayed.", ""
        )
    for name in models:
        if name not in then:
            yield Change(
                f"model {name}",
                "added",
                "It is a challenger that has learned nothing, and learns all examples of this vector that the log has.",
            )
        elif models[name] != then[name]:
            text = _to(before["texts"][name], now["texts"][name])
            yield Change(
                f"model {name}",
                text if before["texts"][name] != now["texts"][name] else "the same, of another vector, task or label",
                "Its versions are refused: its learner stops, and where it should serve a scorer is not ready.",
                ("" if name == "baseline" else "give it another name, or ")
                + f"`tidemill models reset {now['name']} {name}` and begin with nothing",
            )
    if before["champion"] != now["champion"]:
        yield Change(
            "champion",
            _to(before["champion"], now["champion"]),
            "It serves only where no decision was made yet: the newest decision on the log counts.",
            f"`tidemill models promote {now['name']} {now['champion']}`",
        )


_OTHERS: Mapping[str, tuple[str, str]] = {
    "label": ("Labels of before were taken by the earlier value, and stay as they were learned.", ""),
    "label timeout": ("Predictions that wait expire by the new one.", ""),
    "corrections": (
        "Labels of events that the joiner still remembers are corrected for as long as is declared now; where none are "
        "declared, reports and training sets have first labels again.",
        "`tidemill topics` says for how long predictions and labels are kept; `--apply` has topics that exist do so",
    ),
    "predictions": ("Consumers get another encoding from the next prediction on.", "move consumers first"),
}


def _others(before: Facts, now: Facts) -> Iterator[Change]:
    for what, (effect, action) in _OTHERS.items():
        if before[what] != now[what]:
            yield Change(what, _to(before[what], now[what]), effect, action)
    for what in ("metrics", *_AS_TEXT):
        if before[what] != now[what]:
            is_of_topics = what == "retention"
            action = f"`tidemill topics {now['name']} --apply` gives it to topics that exist" if is_of_topics else ""
            yield Change(what, _to(before[what], now[what]), "Services go by it from their next start.", action)
