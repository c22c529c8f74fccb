"""Replayed predictions, with everything that made them."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import river
from rich.table import Table

from tidemill.cli.text.shared import (
    NO_ANSWER,
    count_of,
    format_value,
    new_table,
    pairs_table,
    printable,
    render,
    second,
)
from tidemill.declare.stable_repr import model_text
from tidemill.encoding import schema_files
from tidemill.wire.records import Records

if TYPE_CHECKING:
    from tidemill.declare.pipeline import Pipeline
    from tidemill.offline import replay


def prediction_text(pipeline: Pipeline, prediction: Mapping[str, Any]) -> str:
    """Return everything about one replayed prediction: event, vector, versions, scores then and now, label."""
    states = {score["state"] for score in prediction["scores"]}
    state = "different" if "different" in states else "can't be repeated" if "gone" in states else "equal"
    head = printable(f"prediction {prediction['event_id']} of {_at(prediction['log'])}: {state}") + "\n\n"
    event, missing = prediction["event"], prediction["event"].get("why", "")
    named = ({pipeline.entity: prediction["entity_id"]} if pipeline.entity else {}) | prediction["entities"]
    rows = [
        ("event", _at(event) + (f", schema {_schema(pipeline, event['schema_id'])}" if "schema_id" in event else "")),
        ("", f"not shown: {missing}" if missing else ""),
        ("event time", f"{second(prediction['event_time'])} UTC"),
        ("entities", ", ".join(f"{field} {name}" for field, name in named.items()) or "none"),
        (
            "windows",
            "partial: the log did not reach back to all of them" if prediction["log"]["partial"] else "complete",
        ),
        ("stale views", ", ".join(prediction["stale"]) or "none"),
        ("label", _outcome(prediction["outcome"])),
    ]
    record = event["record"]
    parts = ["\nevent", pairs_table(record.items())] if record else []
    parts += ["\nvector, as served", _vector(pipeline, prediction), "\nscores", _scores(prediction["scores"])]
    whys = "".join(
        f"{printable(why)}\n" for why in dict.fromkeys(score["why"] for score in prediction["scores"]) if why
    )
    made: list[Any] = []
    for score in prediction["scores"]:
        made += ["", format_value(f"{score['model']} version {score['version']}"), _version(pipeline, score)]
    return head + render(pairs_table(rows), *parts) + (f"\n{whys}" if whys else "") + render(*made)


def _at(place: Mapping[str, Any]) -> str:
    return f"{place['topic']}[{place['partition']}]@{place['offset']}"


def _schema(pipeline: Pipeline, number: int) -> str:
    known = {schema_files.fingerprint(avro): name for name, avro in pipeline.events.others.items()}
    records = Records(pipeline)
    known |= {records.event.id: pipeline.events.schema_name, records.sent_event.id: pipeline.events.schema_name}
    return f"{known[number]} (id {number})" if number in known else f"id {number}"


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
    known = f"{outcome['label']}, known {second(outcome['label_time'])} UTC"
    if "first_label" in outcome:
        known = (
            f"{outcome['label']}, corrected {second(outcome['corrected_time'])} UTC; at first "
            f"{outcome['first_label']}, known {second(outcome['label_time'])} UTC"
        )
    return f"{known}: {where}"


def _vector(pipeline: Pipeline, prediction: Mapping[str, Any]) -> Table:
    """Return the features with where each came from, and as of when."""
    table = new_table("feature", "value", "from", "of", "as of", "age")
    views = {feature: view for view in pipeline.views for feature in view.features}
    known = {view["view"]: view for view in prediction["views"]}
    for name, value in prediction["vector"].items():
        row = [
            format_value(name),
            format_value("missing" if value is None else str(value).removesuffix(".0")),
        ]
        if name not in views:
            table.add_row(*row, "the event", "", "", "")
            continue
        of = known[views[name].label]
        as_of = "stale" if of["stale"] else "never" if of["as_of"] is None else second(of["as_of"])
        age = "" if of["age"] is None else str(dt.timedelta(seconds=round(of["age"])))
        table.add_row(
            *row, f"view {of['view']}", format_value(f"{of['entity']} {of['entity_id'] or 'missing'}"), as_of, age
        )
    return table


def _scores(scores: Sequence[Mapping[str, Any]]) -> Table:
    table = new_table("model", "role", "version", "score then", "score now", "")
    for score in scores:
        before = repr(score["score"]) if score.get("answered", True) else NO_ANSWER
        now = "" if score["score_now"] is None else repr(score["score_now"])
        if before is NO_ANSWER and score["state"] == "equal":
            now = NO_ANSWER
        state = {"gone": "can't be repeated"}.get(score["state"], score["state"])
        if state == "different" and score["score_now"] == score["score"]:
            state = "different probabilities"
        table.add_row(format_value(score["model"]), score["role"], str(score["version"]), before, now, state)
        classes = score["probabilities"].keys() | (score["probabilities_now"] or {}).keys()
        for name in sorted(classes):
            both = [(p or {}).get(name) for p in (score["probabilities"], score["probabilities_now"])]
            table.add_row("", "", format_value(name), *("" if p is None else repr(p) for p in both), "")
    return table


def _version(pipeline: Pipeline, score: Mapping[str, Any]) -> Table:
    """Return what made a score: the version's manifest; of version 0, which has none, what is declared."""
    made = score["manifest"]
    if made is None:
        declared = pipeline.knows(score["model"]) and not score["version"]
        printed = model_text(pipeline.stable_repr(score["model"])) if declared else ""
        why = "" if score["version"] else "the declared model, before it learned anything"
        return pairs_table([("is", why or "there is no manifest that can be trusted"), ("hyperparameters", printed)])
    now = f" (this is {river.__version__})" if made["river"] != river.__version__ else ""
    return pairs_table(
        [
            ("learned", f"{count_of(made['examples'], 'example')}, labels until {second(made['learned_until'])} UTC"),
            ("published", f"{second(made['created_at'])} UTC"),
            ("artifact", made["uri"]),
            ("made by", f"tidemill {made['tidemill']}, River {made['river']}{now}, Python {made['python']}"),
            ("declaration", made["declaration"]),
            ("metrics", ", ".join(f"{name} {value:z.6f}" for name, value in made["metrics"].items())),
            ("hyperparameters", model_text(made["hyperparameters"])),
        ]
    )


#: How many scores of a sample, and reasons why some are gone, are printed; --json prints all.
MAX_UNEQUAL = 100


def unequal_text(unequal: Sequence[replay.ReplayedPrediction]) -> str:
    """Return the scores of a sample that differ, and why others can't be repeated."""
    scores = [(one.prediction.event_id, again) for one in unequal for again in one.scores]
    different = [(event_id, again) for event_id, again in scores if again.now is not None and again.state != "equal"]
    table = new_table("prediction", "model", "version", "score then", "score now")
    for event_id, again in different[:MAX_UNEQUAL]:
        now = "" if again.now is None else repr(again.now["score"])
        then = again.then
        table.add_row(
            format_value(event_id), format_value(then["model"]), str(then["version"]), repr(then["score"]), now
        )
    text = render(table) + _more(len(different)) + "\n" if different else ""
    gone = Counter(again.why for _, again in scores if again.state == "gone")
    lines = [
        f"{count_of(n, 'score')} can't be repeated: {printable(why)}\n" for why, n in gone.most_common(MAX_UNEQUAL)
    ]
    return text + ("".join(lines) + _more(len(gone)) + "\n" if gone else "")


def _more(count: int) -> str:
    return f"and {count - MAX_UNEQUAL:,} more: --json prints all\n" if count > MAX_UNEQUAL else ""


def replay_text(topic: str, summary: replay.Summary) -> str:
    """Return what came of doing predictions again, in a few lines."""
    by = "rebuilt from the examples" if summary.rebuilt else "from their artifacts"
    drawn = "" if summary.seed is None else f" drawn (--seed {summary.seed})"
    states = [f"{summary.equal:,} equal"]
    states += [f"{summary.different:,} different"] if summary.different else []
    states += [f"{summary.gone:,} can't be repeated"] if summary.gone else []
    return (
        f"{count_of(summary.predictions, 'prediction')} of {topic}{drawn} repeated by "
        f"{count_of(summary.versions, 'version')}, {by}\n"
        f"{count_of(summary.scores, 'score')}: {', '.join(states)}\n"
        + (f"{count_of(summary.skipped, 'record')} of an earlier declaration skipped\n" if summary.skipped else "")
        + f"{summary.seconds:.1f} s\n"
    )
