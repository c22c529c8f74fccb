"""Dead letters."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from tidemill.cli.text.shared import format_value, new_table, printable, render, second

if TYPE_CHECKING:
    from tidemill.offline.dead_letters import Content, DeadLetters, LetterStats
    from tidemill.offline.redrive import RedriveCounts
    from tidemill.wire.dead_letters import DeadLetter


def _source(letter: DeadLetter) -> str:
    known = letter.partition is not None and letter.offset is not None
    return f"{letter.topic}[{letter.partition}]@{letter.offset}" if known else letter.topic


def _none(dead_letters: DeadLetters) -> str:
    if dead_letters.seen:
        return f"no such dead letter in {dead_letters.topic}\n"
    if any(begin for begin, _ in dead_letters.ranges.values()):
        return (
            f"{dead_letters.topic} is empty: the dead letters that it had are deleted, by its retention or somebody\n"
        )
    return f"{dead_letters.topic} is empty: nothing was refused\n"


def letters_text(dead_letters: DeadLetters, letters: Sequence[DeadLetter]) -> str:
    """Return dead letters as a table, the newest at the end."""
    if not letters:
        return _none(dead_letters)
    table = new_table("letter", "refused at", "from", "reason", "why", "state")
    for letter in letters:
        source = _source(letter).removeprefix(f"{dead_letters.pipeline.name}.")
        state = dead_letters.state(letter) + (f", attempt {letter.attempt}" if letter.attempt > 1 else "")
        table.add_row(
            str(letter.place),
            second(letter.refused_at),
            format_value(source),
            format_value(letter.reason),
            format_value(letter.message),
            state,
        )
    return render(table)


def letter_text(
    letter: DeadLetter,
    dead_letters: DeadLetters,
    own: Sequence[tuple[str, bytes]],
    redrives: Sequence[Mapping[str, Any]],
    content: Content,
) -> str:
    """Return everything about one dead letter.

    `own`: its producer's headers; `redrives`: the records of its redrives.
    """
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    rows = [
        ("why", letter.message),
        ("reason", letter.reason),
        ("rule", letter.rule),
        ("field", letter.field),
        ("value", letter.value),
        ("entity", letter.entity),
        ("refused by", letter.stage),
        ("refused at", f"{second(letter.refused_at)} UTC"),
        ("attempt", f"{letter.attempt}" + (f", redriven from {letter.redriven_from}" if letter.redriven_from else "")),
        ("from", _source(letter)),
        ("sent at", f"{second(letter.sent_at)} UTC"),
        ("key", letter.key),
        ("bytes", f"{letter.size:,}"),
    ]
    rows += [(f"header {name}", (data or b"").decode(errors="replace")) for name, data in own]
    rows += [("went back", f"{second(one['time'])} UTC to {one['to']}, attempt {one['attempt']}") for one in redrives]
    for name, text in rows:
        if text:
            table.add_row(format_value(name), format_value(text, 2000))
    if content.record is not None:
        inside = json.dumps(content.record, indent=2, default=str)
    else:
        inside = "\n".join(printable(line) for line in content.text.splitlines())
    head = f"letter {letter.place} of {dead_letters.topic}, {dead_letters.state(letter)}\n\n"
    more = "the first bytes" if content.form == "bytes" else content.form
    return head + render(table) + (f"\n{more}\n{inside}\n" if inside else "")


def stats_text(dead_letters: DeadLetters, stats: LetterStats) -> str:
    """Return the counts of dead letters by kind."""
    if not stats.total.letters:
        return _none(dead_letters)
    entity = ["entity"] if stats.by_entity else []
    table = new_table(
        "reason", "rule", "field", *entity, "first", "last", "letters", "share", "open", "redriven", "again", numbers=5
    )
    for kind in (*stats.most(), stats.total):
        if kind is stats.total:
            table.add_section()
        table.add_row(
            format_value(kind.reason),
            format_value(kind.rule),
            format_value(kind.field, 30),
            *(format_value(kind.entity, 30) for _ in entity),
            second(kind.first)[5:16],
            second(kind.last)[5:16],
            f"{kind.letters:,}",
            f"{kind.letters / stats.total.letters:.1%}",
            f"{kind.open:,}",
            f"{kind.redriven:,}",
            f"{kind.again:,}",
        )
    return render(table)


def redrive_text(plan: RedriveCounts) -> str:
    """Return what a redrive would send, what it would leave, and why."""
    text = ""
    if plan.going:
        table = new_table("to", "reason", "letters", numbers=1)
        for (to, reason), count in sorted(plan.going.items(), key=lambda item: (item[0][0], -item[1])):
            table.add_row(to, format_value(reason), f"{count:,}")
        text = render(table) + "\n"
    if plan.redriven_before:
        text += f"{plan.redriven_before:,} went back already and stay (--again sends them once more)\n"
    return text + "".join(f"{n:,} can't go back: {printable(why)}\n" for why, n in plan.unsendable.most_common())
