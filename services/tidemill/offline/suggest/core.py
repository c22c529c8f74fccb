"""Value rules learned from history: what may be declared, what it would have refused, and what is declared already.

A suggestion refuses at most `max_share` of history, or warns that it refuses more. What did not happen once in 3 /
`max_share` values happens, with 95 % confidence, to at most that share of all values to come (the rule of three: Hanley
and Lippman-Hand, If nothing goes wrong, is everything all right?, JAMA 249, 1983). So a field with fewer values gets no
suggestion. Each suggestion is also learned again from a first part of history and tried on the rest, which shows a
field that moves with time.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tidemill import rules
from tidemill.declare.pipeline import Pipeline
from tidemill.durations import milliseconds
from tidemill.offline.suggest import fences
from tidemill.offline.suggest.profiles import TYPE_LIMITS, Array, Profile, StreamProfile
from tidemill.offline.suggest.shapes import pattern_of, shape_of
from tidemill.rules import Rule

#: The share of history that a suggestion may refuse.
MAX_REFUSED_SHARE = 0.001
#: `one_of` is suggested for no more values.
MAX_ONE_OF_VALUES = 50
#: How many of the refused values are shown.
SHOWN_VALUES = 5
#: First parts of history from which suggestions are learned again, and tried on the rest.
FIRST_PARTS = (0.25, 0.5)
#: A field whose rank correlation with time is higher moves with it, as dates and counters do: it has no bounds.
MIN_TIME_CORRELATION = 0.9
#: Tolerances and ages that are suggested.
SUGGESTED_DURATIONS = ("5m", "15m", "1h", "6h", "1d", "2d", "7d", "14d", "30d", "90d", "365d")


@dataclass
class Suggestion:
    """One rule: its code, how much of history it refuses, and how it compares with the declared rules.

    `status` is "declared" where a declared rule is as tight or tighter, "tighter" where this one is, "suggested" where
    none is declared. `later`: learned from a first part of history alone, the rule refuses this share of the rest.
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
    """What a field is like. `lowest`, `highest`: of all values, None without numbers. Times are ms since the epoch."""

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
    """All suggestions for one stream, by the declaration's `argument`.

    `skipped`: records of an earlier schema. `refused`: rows of a file that can't be decoded, by reason.
    """

    argument: str
    schema: str
    records: int
    skipped: int
    fields: list[Field]
    violated: list[Violated]
    refused: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def missing(self) -> list[Suggestion]:
        """Suggestions that add to what is declared."""
        return [s for one in self.fields for s in one.suggestions if s.status != "declared"]

    def as_dict(self) -> dict[str, Any]:
        """Return the suggestions, and the code to declare them, for programs."""
        return dataclasses.asdict(self) | {"code": code(self)}


def suggest(
    pipeline: Pipeline, argument: str, history: StreamProfile, max_share: float = MAX_REFUSED_SHARE
) -> Suggestions:
    """Return what history suggests for a stream; `argument` is "rules" or "label_rules"."""
    stream = history.stream
    result = Suggestions(argument, stream.schema_name, history.records, history.skipped, [], [], history.refused)
    for name, profile in history.fields.items():
        if name in stream.personal_fields:
            nulls, note = profile.nulls, "it is personal: nothing of its values is shown or suggested"
            result.fields.append(Field(name, profile.kind, profile.count, nulls, None, None, None, [], note))
            continue
        suggestions, note = _of_field(profile, history, max_share)
        if name == history.stream.time:
            suggestions += _of_time(history, max_share)
        if name == history.stream.id:
            suggestions += _of_id(history, pipeline.label_timeout, max_share)
        suggestions += _of_order(history, name)
        for suggestion in suggestions:
            suggestion.warn = suggestion.share > max_share or (suggestion.later or 0) > 2 * max_share
        low, high = profile.ends
        result.fields.append(
            Field(
                name,
                profile.kind,
                profile.count,
                profile.nulls,
                None if profile.counts is None else len(profile.counts),
                low,
                high,
                suggestions,
                note,
                name == history.stream.time or profile.logical == "timestamp-millis",
            )
        )
        for tally in profile.declared:
            if tally.refused:
                result.violated.append(
                    Violated(
                        name,
                        tally.rule.name,
                        tally.rule.description,
                        tally.refused,
                        tally.refused / profile.count,
                        sorted(tally.values.items(), key=lambda pair: (-pair[1], str(pair[0])))[:SHOWN_VALUES],
                    )
                )
    return result


def _of_field(profile: Profile, history: StreamProfile, max_share: float) -> tuple[list[Suggestion], str]:
    stream, min_values = history.stream, math.ceil(3 / max_share)
    declared = [tally.rule for tally in profile.declared]
    if not profile.values:
        return [], "no value in all of history" if profile.nulls else ""
    if profile.values < min_values:
        return (
            [],
            f"{profile.values:,} values are too few: from {min_values:,} on a share of {max_share:g} can be estimated",
        )
    suggestions, note = [], ""
    if profile.nullable and not profile.nulls and profile.count >= min_values:
        suggestions.append(
            Suggestion(
                profile.name,
                "not_null",
                _code("not_null", profile.name),
                "declared" if any(not rule.nullable for rule in declared) else "suggested",
            )
        )
    if profile.name == stream.id or profile.name == stream.time or profile.kind == "boolean":
        rule = _matches(profile, max_share) if profile.name == stream.id and profile.is_text else None
        return [*suggestions, *([rule] if rule else [])], note
    rule = _one_of(profile, max_share)
    if rule is None and profile.is_number:
        rule, note = _between(profile, max_share)
    if rule is None and profile.is_text:
        rule = _matches(profile, max_share)
    return [*suggestions, *([rule] if rule else [])], note


def _code(name: str, *arguments: Any) -> str:
    return f"rules.{name}({', '.join(map(_written, arguments))})"


def _written(value: Any) -> str:
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' if value.isprintable() else repr(value)
    if isinstance(value, tuple):
        return f"({', '.join(map(_written, value))}{',' if len(value) == 1 else ''})"
    return f"{value:_}" if isinstance(value, int) and abs(value) >= 10_000 else repr(value)


def _status(name: str, profile: Profile, probes: Sequence[Any]) -> str:
    """Return how a suggestion that refuses all `probes` compares with the declared rules: do they refuse them too?"""
    declared = [tally.rule for tally in profile.declared]
    if all(any(_refuses(rule, probe) for rule in declared) for probe in probes):
        return "declared"
    return "tighter" if any(rule.name == name for rule in declared) else "suggested"


def _refuses(rule: Rule, value: Any) -> bool:
    try:
        return not rule.passes(value)
    except TypeError:  # a pattern that is given a number
        return True


def _later(profile: Profile, max_share: float, learned: Callable[[Array], Callable[[Any], bool]]) -> float | None:
    """Return the worst share of the rest that a rule refuses when it is learned from a first part of history.

    None where the first parts have too few values to learn from.
    """
    values, times = profile.sample.values, profile.sample.times
    shares = []
    for share in FIRST_PARTS:
        cut = np.sort(times)[math.floor(share * len(times))]
        before, after = values[times < cut], values[times >= cut]
        if len(before) >= 3 / max_share:
            passes = learned(before)
            shares.append(sum(n for value, n in Counter(after.tolist()).items() if not passes(value)) / len(after))
    return max(shares, default=None)


def _one_of(profile: Profile, max_share: float) -> Suggestion | None:
    """Suggest `one_of`, where history seems to have shown every value."""
    if profile.counts is None:
        return None
    known = {v for v in profile.counts for j in profile.declared if j.rule.name == "one_of" and not _refuses(j.rule, v)}
    allowed = _frequent(profile.counts, known, max_share)
    if not 1 < len(allowed) <= MAX_ONE_OF_VALUES or (profile.is_number and not _is_code(profile, allowed)):
        return None
    if profile.symbols and len(allowed) >= len(profile.symbols):
        return None  # its schema says so
    rule = rules.one_of(profile.name, allowed)
    refused, is_counted, bad = profile.refused(rule.passes)
    if refused > 2 * max_share * profile.values or sum(n == 1 for _, n in bad) > 2 * max_share * profile.values:
        return None
    probes = [value for value, _ in bad] or ([max(allowed) + 1, min(allowed) - 1] if profile.is_number else ["\0"])
    ordered = tuple(sorted(allowed))
    return Suggestion(
        profile.name,
        "one_of",
        _code("one_of", profile.name, ordered),
        _status("one_of", profile, probes),
        refused,
        refused / profile.values,
        is_counted,
        bad[:SHOWN_VALUES],
        _later(profile, max_share, lambda before: _frequent(Counter(before.tolist()), known, max_share).__contains__),
    )


def _frequent(counts: Counter[Any], known: set[Any], max_share: float) -> set[Any]:
    """Return the values that are no slips: frequent, and not rare and written unlike nearly all others.

    What a declared `one_of` allows is `known`: it may be as rare as it is.
    """
    often = {value for value, times in counts.items() if times >= fences.MIN_OCCURRENCES}
    total, rare = sum(counts.values()), 2 * max_share * sum(counts.values())
    if all(isinstance(value, str) for value in counts):
        shapes: Counter[str] = Counter()
        for value in often:
            shapes[shape_of(value)] += counts[value]
        folded: Counter[str] = Counter()
        for value, times in counts.items():
            folded[value.strip().casefold()] = max(times, folded[value.strip().casefold()])
        common = {shape for shape, times in shapes.items() if times > rare} if total else set()
        often = {
            value
            for value in often
            if counts[value] > rare or (shape_of(value) in common and counts[value] == folded[value.strip().casefold()])
        }
    return often | known


def _is_code(profile: Profile, allowed: set[Any]) -> bool:
    """Return whether whole numbers are codes and not amounts: few, often seen each, with gaps between."""
    if not profile.is_integer or len(allowed) > 20 or profile.counts is None:
        return False
    return max(allowed) - min(allowed) + 1 > 2 * len(allowed) and len(profile.counts) < 2 * len(allowed) + 100


def _between(profile: Profile, max_share: float) -> tuple[Suggestion | None, str]:
    values = np.sort(profile.sample.values)
    if values[0] == values[-1]:
        return None, f"always {_written(values[0].item())}"
    if profile.logical in ("date", "timestamp-millis", "timestamp-micros") or _moves_with_time(profile):
        return None, "moves with time: it has no bounds"
    low, high = fences.bounds(profile, values, max_share)
    if low == high:
        return None, f"nearly always {_written(low)}"
    refused, is_counted = profile.outside(low, high)
    lowest, highest = profile.tails.lowest, profile.tails.highest
    bad = Counter([*lowest[lowest < low].tolist(), *highest[highest > high].tolist()])
    extremes = sorted(bad.items(), key=lambda pair: -max(low - pair[0], pair[0] - high))
    is_integer = profile.is_integer
    beside = (low - 1, high + 1) if is_integer else (math.nextafter(low, -math.inf), math.nextafter(high, math.inf))

    def learned(before: Array) -> Callable[[Any], bool]:
        begin, end = fences.bounds(profile, np.sort(before), max_share)
        return lambda value: begin <= value <= end

    return Suggestion(
        profile.name,
        "between",
        _code("between", profile.name, low, high),
        _status("between", profile, beside),
        refused,
        refused / profile.values,
        is_counted,
        extremes[:SHOWN_VALUES],
        _later(profile, max_share, learned),
    ), ""


def _moves_with_time(profile: Profile) -> bool:
    values, times = profile.sample.values, profile.sample.times
    if len(np.unique(times)) < 2:
        return False
    ranks = np.array([np.unique(of, return_inverse=True)[1] for of in (values, times)], float)
    return abs(float(np.corrcoef(ranks)[0, 1])) > MIN_TIME_CORRELATION


def _matches(profile: Profile, max_share: float) -> Suggestion | None:
    """Suggest a pattern, where nearly all texts have one length and the same kind of character at each place."""
    pattern = pattern_of(profile.sample.values.tolist(), max_share)
    if pattern is None:
        return None
    try:
        rule = rules.matches(profile.name, pattern)
    except ValueError:  # of characters that no pattern has, as half of a surrogate pair
        return None
    refused, is_counted, bad = profile.refused(rule.passes)
    if refused > 2 * max_share * profile.values:
        return None

    def learned(before: Array) -> Callable[[Any], bool]:
        earlier = pattern_of(before.tolist(), max_share)
        return rules.matches(profile.name, earlier).passes if earlier else lambda _: False

    return Suggestion(
        profile.name,
        "matches",
        _code("matches", profile.name, pattern),
        _status("matches", profile, [v for v, _ in bad] or ["\0"]),
        refused,
        refused / profile.values,
        is_counted,
        bad[:SHOWN_VALUES],
        _later(profile, max_share, learned),
    )


def _of_time(history: StreamProfile, max_share: float) -> list[Suggestion]:
    """Suggest how early a stream's time may be, and, where arrivals are known, how late and how far ahead."""
    name = history.stream.time
    suggestions: list[Suggestion] = []
    profile, delay = history.fields[name], history.delay
    declared = {tally.rule.name: tally.rule for tally in profile.declared}
    if profile.values < 3 / max_share:
        return suggestions
    values = np.sort(profile.sample.values)
    try:
        earliest = dt.datetime.fromtimestamp(int(values[int(2 * max_share * len(values))]) / 1000, dt.UTC).replace(
            month=1, day=1, hour=0, minute=0, second=0, microsecond=0
        )
    except (ValueError, OverflowError, OSError):
        return suggestions
    begin = int(earliest.timestamp() * 1000)
    refused, is_counted = profile.outside(begin, TYPE_LIMITS["long"][1])
    is_covered = "not_before" in declared and _refuses(declared["not_before"], begin - 1)
    before = Counter(value for value in profile.tails.lowest.tolist() if value < begin)
    suggestions.append(
        Suggestion(
            name,
            "not_before",
            _code("not_before", name, f"{earliest:%Y-%m-%d}"),
            "declared" if is_covered else "tighter" if "not_before" in declared else "suggested",
            refused,
            refused / profile.values,
            is_counted,
            before.most_common(SHOWN_VALUES),
        )
    )
    if not len(delay.tails.lowest) or delay.tails.lowest[0] == delay.tails.highest[-1]:
        return suggestions  # files; or producers that give Kafka the event's own time
    low, high = fences.bounds(delay, np.sort(delay.sample.values), max_share)
    for rule, reach, begins in (("not_after_now", -low, -1), ("not_older_than", high, 1)):
        span = next((text for text in SUGGESTED_DURATIONS if milliseconds(text) >= reach), None)
        if span is None:
            continue
        least, largest = TYPE_LIMITS["long"]
        ends = (-milliseconds(span), largest) if begins < 0 else (least, milliseconds(span))
        refused, is_counted = delay.outside(*ends)
        suggestions.append(
            Suggestion(
                name,
                rule,
                _code(rule, name, span),
                "declared" if any(r.name == rule and r.field == name for r in history.rules) else "suggested",
                refused,
                refused / delay.values,
                is_counted,
            )
        )
    return suggestions


def _of_id(history: StreamProfile, within: str, max_share: float) -> list[Suggestion]:
    """Suggest unique ids, for as long as a label is waited for: of two equal ids one would get the other's label."""
    name, ids = history.stream.id, history.ids
    if history.records < 3 / max_share or ids.repeated > max_share:
        return []
    status = "declared" if any(r.name == "unique" and r.field == name for r in history.rules) else "suggested"
    return [
        Suggestion(
            name,
            "unique",
            _code("unique", name, within),
            status,
            round(ids.repeated * history.records),
            ids.repeated,
            ids.every == 1,
        )
    ]


def _of_order(history: StreamProfile, name: str) -> list[Suggestion]:
    rising = history.rising.get(name)
    if name == history.stream.time:  # files are sorted by it, and late events are no mistake
        return []
    if rising is None or rising.falls or rising.steps < 1000:
        return []
    status = "declared" if any(r.name == "monotonic" and r.field == name for r in history.rules) else "suggested"
    by = history.stream.key
    return [Suggestion(name, "monotonic", f'rules.monotonic("{name}", by="{by}")', status)]


def code(suggestions: Suggestions) -> str:
    """Return the suggestions that add to what is declared, as Python for the declaration."""
    lines = []
    for one in suggestions.missing:
        text = f"{one.code[:-1]}, warn=True)" if one.warn else one.code
        lines.append(f"    {text},  # {refusals_text(one)}")
    return "\n".join([f"{suggestions.argument}=[", *lines, "],"])


def refusals_text(one: Suggestion) -> str:
    """Return what a suggestion would have refused, in words."""
    about = "" if one.is_counted else "about "
    text = f"would have refused {about}{one.refused:,} ({one.share:.2g})" if one.refused else "would have refused none"
    if one.warn and (one.later or 0) > one.share:
        text += f"; learned from a first part of history, {one.later:.2g} of what came after"
    return text
