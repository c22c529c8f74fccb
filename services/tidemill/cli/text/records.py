"""Records as they come, and what became of messages, one line each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tidemill.cli.text.shared import printable, second
from tidemill.offline.send import Outcome
from tidemill.registry.decisions import ModelRef
from tidemill.wire.dead_letters import shorten

#: Of a value, and of a part of a line.
MAX_CHARACTERS, MAX_LINE_CHARACTERS = 100, 300


def outcome_line(outcome: Outcome, pipeline: str) -> str:
    """Return what became of one message."""
    id_ = _text(outcome.id or "(no id)")
    took = "" if outcome.ms is None else f" in {outcome.ms:,.0f} ms"
    answer = f"{_answer(outcome.score, outcome.probabilities)} by {_model(outcome.model, outcome.version)}"
    if outcome.state == "predicted":
        return f"{id_}  predicted {answer}{took}"
    if outcome.state == "joined":
        return f"{id_}  joined: {_text(outcome.label)}, predicted was {answer}{took}"
    if outcome.state == "corrected":
        return f"{id_}  corrected: {_text(outcome.label)}{took}"
    if outcome.state == "dead letter":
        why = _text(outcome.message, 200)
        return (
            f"{id_}  dead letter {_text(outcome.reason)} of the {_text(outcome.service)}: {why}"
            f"  (tidemill dlq show {pipeline} {outcome.letter})"
        )
    if outcome.state == "waits":
        return f"{id_}  valid; it waits for the prediction of its event"
    return f"{id_}  nothing was heard of it in time: do its services run? `tidemill doctor {pipeline}`"


def outcomes_line(outcomes: Sequence[Outcome], what: str) -> str:
    """Return how many messages became what."""
    counts = Counter(outcome.state for outcome in outcomes)
    states = ", ".join(f"{count:,} {state}" for state, count in counts.most_common())
    return f"{len(outcomes):,} {what[:-1] if len(outcomes) == 1 else what} sent" + (f": {states}" if states else "")


def record_line(what: str, row: Mapping[str, Any]) -> str:
    """Return a row of `tidemill tail` as one line."""
    return _LINES[what](row)


def _prediction(row: Mapping[str, Any]) -> str:
    answer = _answer(row["score"], row["probabilities"])
    return _line(second(row["event_time"]), row["event_id"], row["entity_id"], answer, _of(row))


def _example(row: Mapping[str, Any]) -> str:
    answer = _answer(row["score"], row["probabilities"])
    return _line(second(row["label_time"]), row["event_id"], row["label"], f"predicted {answer}", _of(row))


def _letter(row: Mapping[str, Any]) -> str:
    value = f"{row['field']}={shorten(row['value'], 40)}" if row["field"] else ""
    return _line(second(row["refused_at"]), row["place"], row["stage"], row["reason"], value, row["message"])


def _alert(row: Mapping[str, Any]) -> str:
    return _line(second(row["end"]), row["state"], row["message"])


def _decision(row: Mapping[str, Any]) -> str:
    kind = f"{row['kind'].replace('_', ' ')} {_ref(row['subject'])}"
    return _line(f"after {row['examples']:,} examples", kind, f"{_ref(row['champion'])} serves", row["why"])


def _line(*parts: Any) -> str:
    return "  ".join(_text(part, MAX_LINE_CHARACTERS) for part in parts if part != "")


def _of(row: Mapping[str, Any]) -> str:
    return _model(row["model"], row["version"])


_LINES = {
    "predictions": _prediction,
    "examples": _example,
    "dlq": _letter,
    "alerts": _alert,
    "decisions": _decision,
}


def _ref(value: Any) -> str:
    return str(ModelRef(**value)) if isinstance(value, Mapping) else str(value)


def _model(model: str, version: int) -> str:
    return f"{_text(model)}@{version:,}"


def _answer(score: float | None, probabilities: Mapping[str, float] | None) -> str:
    """Return a score as text; of several classes after the one that it is of."""
    if score is None:
        return "?"
    if not probabilities:
        return f"{score:.4g}"
    return f"{_text(max(probabilities, key=probabilities.__getitem__))} ({score:.4g})"


def _text(value: Any, longest: int = MAX_CHARACTERS) -> str:
    return printable(shorten(value, longest))
