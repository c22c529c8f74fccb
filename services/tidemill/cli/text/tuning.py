"""A search for models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from tidemill.cli.text.shared import count_of, format_value, new_table, render
from tidemill.offline.tuning.successive_halving import Candidate, TuningReport

#: Candidates that are printed; --json prints all.
MAX_CANDIDATES = 20


def tuning_text(report: TuningReport) -> str:
    """Return how the best of the candidates did, and which beat the champion."""
    names = [report.metric, *(name for name in report.champion.metrics if name != report.metric)]
    table = new_table("model", "parameters", *names, "examples", "seconds", "ended", numbers=len(names) + 3)
    table.columns[-1].justify = "left"
    table.columns[1].overflow = "fold"
    table.add_row(*_row(report.champion, names, "champion"))
    table.add_section()
    winners = {one.name for one in report.winners}
    for one in report.candidates[:MAX_CANDIDATES]:
        table.add_row(*_row(one, names, "won" if one.name in winners else ""))
    left = count_of(len(report.candidates) - MAX_CANDIDATES, "candidate")
    more = f"and {left} more, all behind these; --json prints them\n"
    skipped = f", {report.skipped:,} of an earlier declaration skipped" if report.skipped else ""
    head = "".join(f"WARNING: {text}\n" for text in report.warnings) + (
        f"{report.pipeline}: {count_of(len(report.candidates), 'candidate')} (--seed {report.seed}) on "
        f"{count_of(report.examples, 'example')}{skipped}; the best by {report.metric}; {report.seconds:.1f} s\n"
    )
    return (
        head
        + "\n"
        + render(table)
        + (more if len(report.candidates) > MAX_CANDIDATES else "")
        + "\n"
        + _result(report)
        + _failed(report)
    )


def _row(one: Candidate, names: list[str], won: str) -> list[Any]:
    parameters = ", ".join(f"{name}={value!r}" for name, value in one.parameters.items()) or "as declared"
    figures = [_figure(one.metrics[name]) if name in one.metrics else "" for name in names]
    ended = won or _ENDS.get(one.ended, "failed")
    return [one.name, format_value(parameters), *figures, f"{one.examples:,}", f"{one.seconds:.1f}", ended]


def _figure(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 10_000 else f"{value:.3g}"


_ENDS: Mapping[str, str] = {"": "saw all", "out": "out", "time": "time was up"}


def _result(report: TuningReport) -> str:
    if not report.champion.is_complete:
        return (
            "the time was up before the champion itself had seen all examples: "
            "give more --seconds, or fewer --examples\n"
        )
    early = "the time was up before all trials were done\n" if report.stopped else ""
    if not report.winners:
        return early + f"none was better than the champion, {report.champion.name}, on all examples\n"
    return early + (
        f"won: {', '.join(one.name for one in report.winners)}. The best of many looks better than it is: "
        f"let them shadow, and\n"
        f"hold them to the champion on what is new with `tidemill models compare`.\n"
    )


def _failed(report: TuningReport) -> str:
    whys = Counter(one.ended for one in report.candidates if one.ended not in _ENDS)
    return "".join(f"{count_of(n, 'candidate')} failed: {format_value(why)}\n" for why, n in whys.most_common(5))
