"""Value rules learned from history: what may be declared, what it would have refused, and what is declared already.

A suggestion refuses at most the share `most` of history, or says that it does not. What none of 3 / `most` values has
shown happens, with 95 % confidence, to at most that share of those to come (the rule of three: Hanley and Lippman-Hand, If
nothing goes wrong, is everything all right?, JAMA 249, 1983): a field with fewer values gets no suggestion. Each is also
learned anew from a first part of history and tried on what came after: a field that moves with time shows there.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tidemill import rules
from tidemill.declare.pipeline import Pipeline
from tidemill.durations import milliseconds
from tidemill.offline.suggest import fences
from tidemill.offline.suggest.profiles import LIMITS, Array, History, Profile
from tidemill.offline.suggest.shapes import pattern_of, shape_of
from tidemill.rules import Rule

MOST = 0.001
"""The share of history that a suggestion may refuse."""
SET = 50
"""The most values that `one_of` is suggested for."""
SHOWN = 5
"""Values that are shown of those refused."""
CUTS = (0.25, 0.5)
"""First parts of history from which suggestions are learned anew, to be tried on all that came after."""
MOVES = 0.9
"""The rank correlation with time from which on a field moves with it, as dates and counters do: it has no bounds."""
LADDER = ("5m", "15m", "1h", "6h", "1d", "2d", "7d", "14d", "30d", "90d", "365d")
"""Tolerances and ages that are suggested."""


@dataclass
class Suggestion:
    """One rule: its code, what of history it refuses, and how it stands to what is declared.

    `status` is "declared" where a declared rule is as tight or tighter, "tighter" where this one is, "suggested" where none
    is declared. `later` is the share that would be refused by what is learned from a first part of history, of all after it.
    """

    field: str
    rule: str
    code: str
    status: str = "suggested"
    refused: int = 0
    share: float = 0.0
    is_counted: bool = True
    left_out: list[tuple[Any, int]] = dataclasses.field(default_factory=list)
    later: float | None = None
    warn: bool = False


@dataclass
class Violated:
    """A declared rule that refuses some of history."""

    field: str
    rule: str
    expects: str
    refused: int
    share: float
    values: list[tuple[Any, int]]


@dataclass
class Field:
    """What a field is like. `lowest`, `highest`: of all its values; None where it has no numbers. Times are ms since the epoch."""

    name: str
    kind: str
    records: int
    nulls: int
    distinct: int | None
    lowest: float | None
    highest: float | None
    suggestions: list[Suggestion]
    note: str = ""
    is_time: bool = False


@dataclass
class Suggestions:
    """All of one stream. `argument` is the declaration's, `skipped` counts records of an earlier schema."""

    argument: str
    schema: str
    records: int
    skipped: int
    fields: list[Field]
    violated: list[Violated]

    @property
    def missing(self) -> list[Suggestion]:
        """Suggestions that say more than what is declared."""
        return [s for one in self.fields for s in one.suggestions if s.status != "declared"]

    def as_dict(self) -> dict[str, Any]:
        """Return the suggestions, and the code to declare them, for programs."""
        return dataclasses.asdict(self) | {"code": code(self)}


def suggest(pipeline: Pipeline, argument: str, history: History, most: float = MOST) -> Suggestions:
    """Return what history suggests for a stream; `argument` is "rules" or "label_rules"."""
    found = Suggestions(argument, history.stream.schema, history.records, history.skipped, [], [])
    for name, profile in history.fields.items():
        suggestions, note = _of_field(profile, history, most)
        if name == history.stream.time:
            suggestions += _of_time(history, most)
        if name == history.stream.id:
            suggestions += _of_id(history, pipeline.label_timeout, most)
        suggestions += _of_order(history, name)
        for suggestion in suggestions:
            suggestion.warn = suggestion.share > most or (suggestion.later or 0) > 2 * most
        low, high = profile.ends
        found.fields.append(
            Field(name, profile.kind, profile.count, profile.nulls, None if profile.counts is None else len(profile.counts),
                  low, high, suggestions, note, name == history.stream.time or profile.logical == "timestamp-millis")
        )  # fmt: skip
        for judged in profile.declared:
            if judged.refused:
                found.violated.append(Violated(
                    name, judged.rule.name, judged.rule.description, judged.refused, judged.refused / profile.count,
                    sorted(judged.values.items(), key=lambda pair: (-pair[1], str(pair[0])))[:SHOWN],
                ))  # fmt: skip
    return found


def _of_field(profile: Profile, history: History, most: float) -> tuple[list[Suggestion], str]:
    stream, least = history.stream, math.ceil(3 / most)
    declared = [judged.rule for judged in profile.declared]
    if not profile.values:
        return [], "no value in all of history" if profile.nulls else ""
    if profile.values < least:
        return [], f"{profile.values:,} values are too few: from {least:,} on a share of {most:g} can be told"
    found, note = [], ""
    if profile.nullable and not profile.nulls and profile.count >= least:
        found.append(Suggestion(profile.name, "not_null", _code("not_null", profile.name),
                                "declared" if any(not rule.nullable for rule in declared) else "suggested"))  # fmt: skip
    if profile.name == stream.id or profile.name == stream.time or profile.kind == "boolean":
        rule = _matches(profile, most) if profile.name == stream.id and profile.is_text else None
        return [*found, *([rule] if rule else [])], note
    rule = _set(profile, most)
    if rule is None and profile.is_number:
        rule, note = _range(profile, most)
    if rule is None and profile.is_text:
        rule = _matches(profile, most)
    return [*found, *([rule] if rule else [])], note


def _code(name: str, *arguments: Any) -> str:
    return f"rules.{name}({', '.join(map(_written, arguments))})"


def _written(value: Any) -> str:
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' if value.isprintable() else repr(value)
    if isinstance(value, tuple):
        return f"({', '.join(map(_written, value))}{',' if len(value) == 1 else ''})"
    return f"{value:_}" if isinstance(value, int) and abs(value) >= 10_000 else repr(value)


def _status(name: str, profile: Profile, probes: Sequence[Any]) -> str:
    """Return how a suggestion that refuses all `probes` stands to the declared rules, by asking them."""
    declared = [judged.rule for judged in profile.declared]
    if all(any(_refuses(rule, probe) for rule in declared) for probe in probes):
        return "declared"
    return "tighter" if any(rule.name == name for rule in declared) else "suggested"


def _refuses(rule: Rule, value: Any) -> bool:
    try:
        return not rule.passes(value)
    except TypeError:  # a pattern that is given a number
        return True


def _later(profile: Profile, most: float, learned: Callable[[Array], Callable[[Any], bool]]) -> float | None:
    """Return which share of what came later is refused by what was learned from a first part of history, the worst of CUTS.

    None where the first parts are too little to learn from.
    """
    values, times = profile.sample.values, profile.sample.times
    found = []
    for share in CUTS:
        cut = np.sort(times)[math.floor(share * len(times))]
        before, after = values[times < cut], values[times >= cut]
        if len(before) >= 3 / most:
            passes = learned(before)
            found.append(sum(n for value, n in Counter(after.tolist()).items() if not passes(value)) / len(after))
    return max(found, default=None)


def _set(profile: Profile, most: float) -> Suggestion | None:
    """Suggest a set, where what was seen is all that there is, as far as can be told."""
    if profile.counts is None:
        return None
    known = {v for v in profile.counts for j in profile.declared if j.rule.name == "one_of" and not _refuses(j.rule, v)}
    allowed = _often(profile.counts, known, most)
    if not 1 < len(allowed) <= SET or (profile.is_number and not _is_code(profile, allowed)):
        return None
    if profile.symbols and len(allowed) >= len(profile.symbols):
        return None  # its schema says so
    rule = rules.one_of(profile.name, allowed)
    refused, is_counted, bad = profile.refused(rule.passes)
    if refused > 2 * most * profile.values or sum(n == 1 for _, n in bad) > 2 * most * profile.values:
        return None
    probes = [value for value, _ in bad] or ([max(allowed) + 1, min(allowed) - 1] if profile.is_number else ["\0"])
    ordered = tuple(sorted(allowed))
    return Suggestion(
        profile.name, "one_of", _code("one_of", profile.name, ordered), _status("one_of", profile, probes),
        refused, refused / profile.values, is_counted, bad[:SHOWN],
        _later(profile, most, lambda before: _often(Counter(before.tolist()), known, most).__contains__),
    )  # fmt: skip


def _often(counts: Counter[Any], known: set[Any], most: float) -> set[Any]:
    """Return the values that are no slips: seen often, and not a rare one that is written unlike nearly all others.

    What a declared `one_of` allows is `known`: it may be as rare as it is.
    """
    often = {value for value, times in counts.items() if times >= fences.SEEN_OFTEN}
    total, rare = sum(counts.values()), 2 * most * sum(counts.values())
    if all(isinstance(value, str) for value in counts):
        shapes: Counter[str] = Counter()
        for value in often:
            shapes[shape_of(value)] += counts[value]
        folded: Counter[str] = Counter()
        for value, times in counts.items():
            folded[value.strip().casefold()] = max(times, folded[value.strip().casefold()])
        common = {shape for shape, times in shapes.items() if times > rare} if total else set()
        often = {
            value for value in often
            if counts[value] > rare or (shape_of(value) in common and counts[value] == folded[value.strip().casefold()])
        }  # fmt: skip
    return often | known


def _is_code(profile: Profile, allowed: set[Any]) -> bool:
    """Return whether whole numbers are codes and not amounts: few, often seen each, with gaps between."""
    if not profile.is_whole or len(allowed) > 20 or profile.counts is None:
        return False
    return max(allowed) - min(allowed) + 1 > 2 * len(allowed) and len(profile.counts) < 2 * len(allowed) + 100


def _range(profile: Profile, most: float) -> tuple[Suggestion | None, str]:
    values = np.sort(profile.sample.values)
    if values[0] == values[-1]:
        return None, f"always {_written(values[0].item())}"
    if profile.logical in ("date", "timestamp-millis", "timestamp-micros") or _moves(profile):
        return None, "moves with time: it has no bounds"
    low, high = fences.bounds(profile, values, most)
    if low == high:
        return None, f"nearly always {_written(low)}"
    refused, is_counted = profile.outside(low, high)
    lowest, highest = profile.tails.lowest, profile.tails.highest
    bad = Counter([*lowest[lowest < low].tolist(), *highest[highest > high].tolist()])
    extremes = sorted(bad.items(), key=lambda pair: -max(low - pair[0], pair[0] - high))
    is_whole = profile.is_whole
    beside = (low - 1, high + 1) if is_whole else (math.nextafter(low, -math.inf), math.nextafter(high, math.inf))

    def learned(before: Array) -> Callable[[Any], bool]:
        begin, end = fences.bounds(profile, np.sort(before), most)
        return lambda value: begin <= value <= end

    return Suggestion(
        profile.name, "between", _code("between", profile.name, low, high), _status("between", profile, beside),
        refused, refused / profile.values, is_counted, extremes[:SHOWN], _later(profile, most, learned),
    ), ""  # fmt: skip


def _moves(profile: Profile) -> bool:
    values, times = profile.sample.values, profile.sample.times
    if len(np.unique(times)) < 2:
        return False
    ranks = np.array([np.unique(of, return_inverse=True)[1] for of in (values, times)], float)
    return abs(float(np.corrcoef(ranks)[0, 1])) > MOVES


def _matches(profile: Profile, most: float) -> Suggestion | None:
    """Suggest a pattern, where nearly all texts have one length and the same kind of character at each place."""
    pattern = pattern_of(profile.sample.values.tolist(), most)
    if pattern is None:
        return None
    rule = rules.matches(profile.name, pattern)
    refused, is_counted, bad = profile.refused(rule.passes)
    if refused > 2 * most * profile.values:
        return None

    def learned(before: Array) -> Callable[[Any], bool]:
        earlier = pattern_of(before.tolist(), most)
        return lambda value: earlier is not None and re.fullmatch(earlier, value) is not None

    return Suggestion(
        profile.name, "matches", _code("matches", profile.name, pattern), _status("matches", profile, [v for v, _ in bad] or ["\0"]),
        refused, refused / profile.values, is_counted, bad[:SHOWN], _later(profile, most, learned),
    )  # fmt: skip


def _of_time(history: History, most: float) -> list[Suggestion]:
    """Suggest how early a stream's time may be, and, where it is known when records came, how late and how far ahead."""
    name = history.stream.time
    found: list[Suggestion] = []
    profile, lag = history.fields[name], history.lag
    declared = {judged.rule.name: judged.rule for judged in profile.declared}
    if profile.values < 3 / most:
        return found
    values = np.sort(profile.sample.values)
    try:
        earliest = dt.datetime.fromtimestamp(int(values[int(2 * most * len(values))]) / 1000, dt.UTC).replace(
            month=1, day=1, hour=0, minute=0, second=0, microsecond=0
        )
    except (ValueError, OverflowError, OSError):
        return found
    begin = int(earliest.timestamp() * 1000)
    refused, is_counted = profile.outside(begin, LIMITS["long"][1])
    is_covered = "not_before" in declared and _refuses(declared["not_before"], begin - 1)
    found.append(Suggestion(
        name, "not_before", _code("not_before", name, f"{earliest:%Y-%m-%d}"),
        "declared" if is_covered else "tighter" if "not_before" in declared else "suggested",
        refused, refused / profile.values, is_counted, Counter(v for v in profile.tails.lowest.tolist() if v < begin).most_common(SHOWN),
    ))  # fmt: skip
    if not len(lag.tails.lowest) or lag.tails.lowest[0] == lag.tails.highest[-1]:
        return found  # files; or producers that give Kafka the event's own time, which tells nothing
    low, high = fences.bounds(lag, np.sort(lag.sample.values), most)
    for rule, reach, begins in (("not_after_now", -low, -1), ("not_older_than", high, 1)):
        span = next((text for text in LADDER if milliseconds(text) >= reach), None)
        if span is None:
            continue
        least, largest = LIMITS["long"]
        ends = (-milliseconds(span), largest) if begins < 0 else (least, milliseconds(span))
        refused, is_counted = lag.outside(*ends)
        found.append(Suggestion(
            name, rule, _code(rule, name, span),
            "declared" if any(r.name == rule and r.field == name for r in history.rules) else "suggested",
            refused, refused / lag.values, is_counted,
        ))  # fmt: skip
    return found


def _of_id(history: History, within: str, most: float) -> list[Suggestion]:
    """Suggest that ids are unique for as long as a label is waited for: one that comes again would get the other's label."""
    name, ids = history.stream.id, history.ids
    if history.records < 3 / most or ids.repeated > most:
        return []
    status = "declared" if any(r.name == "unique" and r.field == name for r in history.rules) else "suggested"
    return [Suggestion(name, "unique", _code("unique", name, within), status, round(ids.repeated * history.records),
                       ids.repeated, ids.every == 1)]  # fmt: skip


def _of_order(history: History, name: str) -> list[Suggestion]:
    rising = history.rising.get(name)
    if name == history.stream.time:  # files are sorted by it, and late events are no mistake
        return []
    if rising is None or rising.falls or rising.steps < 1000:
        return []
    status = "declared" if any(r.name == "monotonic" and r.field == name for r in history.rules) else "suggested"
    by = history.stream.key
    return [Suggestion(name, "monotonic", f'rules.monotonic("{name}", by="{by}")', status)]


def code(found: Suggestions) -> str:
    """Return the suggestions that say more than what is declared, as the declaration's own Python."""
    lines = []
    for one in found.missing:
        text = f"{one.code[:-1]}, warn=True)" if one.warn else one.code
        lines.append(f"    {text},  # {told(one)}")
    return "\n".join([f"{found.argument}=[", *lines, "],"])


def told(one: Suggestion) -> str:
    """Return in words what a suggestion would have refused."""
    about = "" if one.is_counted else "about "
    said = f"would have refused {about}{one.refused:,} ({one.share:.2g})" if one.refused else "would have refused none"
    if one.warn and (one.later or 0) > one.share:
        said += f"; learned from a first part of history, {one.later:.2g} of what came after"
    return said
