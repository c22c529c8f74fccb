"""Suggested rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.text import Text

from tidemill.cli.text.shared import minute, new_table, render

if TYPE_CHECKING:
    from tidemill.offline.suggest.core import Field, Suggestion, Suggestions


def suggestions_text(suggestions: Suggestions) -> str:
    """Return what history suggests for a stream: a table of its fields, and Python for its declaration."""
    from tidemill.offline.suggest.core import code

    table = new_table("field", "nulls", "history", "suggested", "status", "refuses", "leaves out")
    for column in table.columns[2:4]:
        column.overflow = "fold"
    times = {one.name: (one.lowest, one.highest) for one in suggestions.fields if one.is_time}
    for one in suggestions.fields:
        row = [one.name, f"{one.nulls:,}" if one.nulls else "", _seen(one)]
        if not one.suggestions:
            table.add_row(*row, Text(one.note, style="dim"))
        for suggestion in one.suggestions:
            table.add_row(*row, *_suggested(suggestion, is_time=one.name in times))
            row = [""] * 3
    head = f"{suggestions.argument}: {suggestions.records:,} records of {suggestions.schema}"
    head += f", {suggestions.skipped:,} of an earlier schema skipped" if suggestions.skipped else ""
    if refused := suggestions.refused:
        reasons = ", ".join(f"{reason} {n:,}" for reason, n in sorted(refused.items()))
        head += f", {sum(refused.values()):,} that can't be decoded left out ({reasons})"
    broken = "".join(
        f"declared: {bad.rule} on {bad.field} ({bad.expects}) refuses {bad.refused:,} ({bad.share:.2g}): "
        f"{_counted(bad.values, is_time=bad.field in times)}\n"
        for bad in suggestions.violated
    )
    pasted = code(suggestions) if suggestions.missing else "nothing to add: what is declared is as tight or tighter"
    return "\n".join(part for part in (render(head, table), broken, pasted + "\n") if part)


def _seen(one: Field) -> str:
    if one.lowest is not None and one.highest is not None:
        if one.is_time:
            return f"{minute(one.lowest)[:10]} to {minute(one.highest)[:10]}"
        return f"{one.lowest:,.10g} to {one.highest:,.10g}"
    return "" if one.distinct == 0 else "many values" if one.distinct is None else f"{one.distinct:,} values"


def _suggested(one: Suggestion, *, is_time: bool) -> tuple[str, ...]:
    refused = "none" if not one.refused else f"{'' if one.is_counted else '~'}{one.refused:,} ({one.share:.2g})"
    short = one.code.removeprefix("rules.").replace(f'"{one.field}", ', "").replace(f'"{one.field}"', "")
    status = f"{one.status}, warn" if one.warn else one.status
    return short, status, refused, _counted(one.left_out, is_time=is_time)


def _counted(values: Sequence[tuple[Any, int]], *, is_time: bool) -> str:
    named = [(minute(value) if is_time and value is not None else repr(value), times) for value, times in values]
    return ", ".join(name + (f" ({times:,} times)" if times > 1 else "") for name, times in named)
