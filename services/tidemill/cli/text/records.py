"""Records as they come, and what became of messages, one line each."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from rich.cells import cell_len

from tidemill.cli.text.shared import NO_ANSWER, printable, second
from tidemill.offline.send import Outcome
from tidemill.registry.decisions import ModelRef
from tidemill.wire.dead_letters import shorten

#: Of a value, and of a part of a line.
MAX_CHARACTERS, MAX_LINE_CHARACTERS = 100, 300


def outcome_line(outcome: Outcome, pipeline: str) -> str:
    """Return what became of one message."""
    id_ = _text(outcome.id or "(no id)")
    took = "" if outcome.ms is None else f" in {outcome.ms:,.0f} ms"
    model, score = _model(outcome.model, outcome.version), _answer(outcome.score, outcome.probabilities)
    if outcome.state == "predicted":
        answer = f"predicted {score} by" if outcome.answered else f"{NO_ANSWER} of"
        return f"{id_}  {answer} {model}{took}"
    if outcome.state == "joined":
        answer = f"predicted was {score} by" if outcome.answered else f"{NO_ANSWER} of"
        return f"{id_}  joined: {_text(outcome.label)}, {answer} {model}{took}"
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
    if outcome.state == "not sent":
        return f"{id_}  not sent: {_text(outcome.message, 200)}"
    return f"{id_}  nothing was heard of it in time: do its services run? `tidemill doctor {pipeline}`"


def outcomes_line(outcomes: Sequence[Outcome], what: str, *, waited: bool = True) -> str:
    """Return how many messages became what; without `waited` nobody knows of those that were sent."""
    counts = Counter(outcome.state for outcome in outcomes)
    not_sent = counts.pop("not sent", 0)
    sent = counts.total()
    states = ", ".join(f"{count:,} {state}" for state, count in counts.most_common())
    became = f": {states}" if states and waited else ", and not waited for" if states else ""
    rest = f"; {not_sent:,} not sent" if not_sent else ""
    return f"{sent:,} {what[:-1] if sent == 1 else what} sent{became}{rest}"


class RecordTable:
    """Rows of `tidemill tail`, as they come, under headings: a column is as wide as its longest value so far.

    Parameters
    ----------
    entity
        The field that names the entity; empty for none, and no column shows it.
    width
        Of the terminal: what is longer goes on below. None: each row is one line.
    """

    def __init__(self, what: str, entity: str = "", width: int | None = None) -> None:
        self._columns, self._width = _COLUMNS[what], width
        if not entity:
            self._columns = [column for column in self._columns if column.name != "entity"]
        self._names = [entity if column.name == "entity" else column.name for column in self._columns]
        self._widths = [
            max(cell_len(name), column.width) for name, column in zip(self._names, self._columns, strict=True)
        ]

    def headings(self) -> str:
        """Return the names of the columns."""
        return self._line(self._names)

    def line(self, row: Mapping[str, Any]) -> str:
        """Return a row, for which the columns become as wide as it needs."""
        cells = [_text(column.of(row), MAX_LINE_CHARACTERS) for column in self._columns]
        self._widths = [max(pair) for pair in zip(self._widths, map(cell_len, cells), strict=True)]
        return self._line(cells)

    def _line(self, cells: Sequence[str]) -> str:
        padded = [cell + " " * (width - cell_len(cell)) for cell, width in zip(cells, self._widths, strict=True)]
        line = "  ".join(padded).rstrip()
        if self._width is None:
            return line
        below = " " * (self._widths[0] + 2)
        return textwrap.fill(line, self._width, subsequent_indent=below, break_on_hyphens=False)


class _Column(NamedTuple):
    """A column of `tidemill tail`, at least so wide: what most values need."""

    name: str
    of: Callable[[Mapping[str, Any]], Any]
    width: int = 0


def _time(name: str, of: str) -> _Column:
    return _Column(f"{name} (UTC)", lambda row: second(row[of]))


def _value(row: Mapping[str, Any]) -> str:
    """Return the field of a dead letter with its value, where its message does not name it."""
    is_named = not row["field"] or repr(row["field"]) in row["message"]
    return "" if is_named else f"{row['field']}={shorten(row['value'], 40)}: "


_EVENT = _Column("event", itemgetter("event_id"))
_MODEL = _Column("model", lambda row: _model(row["model"], row["version"]))
_PREDICTED = _Column(
    "predicted", lambda row: _answer(row["score"], row["probabilities"]) if row.get("answered", True) else NO_ANSWER
)
_COLUMNS: Mapping[str, list[_Column]] = {
    "predictions": [
        _time("event time", "event_time"),
        _EVENT,
        _Column("entity", itemgetter("entity_id")),
        _PREDICTED,
        _MODEL,
    ],
    "examples": [_time("label time", "label_time"), _EVENT, _Column("label", itemgetter("label")), _PREDICTED, _MODEL],
    "dlq": [
        _time("refused at", "refused_at"),
        _Column("letter", itemgetter("place"), len("0:1000")),
        _Column("by", itemgetter("stage"), len("validator")),
        _Column("reason", itemgetter("reason"), len("missing_field")),
        _Column("why", lambda row: _value(row) + row["message"]),
    ],
    "alerts": [
        _time("window's end", "end"),
        _Column("state", itemgetter("state"), len("resolved")),
        _Column("alert", itemgetter("message")),
    ],
    "decisions": [
        _Column("examples", lambda row: f"{row['examples']:,}"),
        _Column("decision", lambda row: f"{row['kind'].replace('_', ' ')} {_ref(row['subject'])}", 20),
        _Column("serves", lambda row: _ref(row["champion"]), 10),
        _Column("why", itemgetter("why")),
    ],
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
