"""Dead letters."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from tidemill.cli.text.shared import given_text, new_table, printable, render, second
from tidemill.offline.dead_letters import Content, Letters, Stats
from tidemill.offline.redrive import Found
from tidemill.wire.dead_letters import DeadLetter


def _source(letter: DeadLetter) -> str:
    known = letter.partition is not None and letter.offset is not None
    return f"{letter.topic}[{letter.partition}]@{letter.offset}" if known else letter.topic


def letter_json(letter: DeadLetter, state: str) -> dict[str, Any]:
    """Return what a dead letter says, for programs. Times are ms since the epoch."""
    said = dataclasses.asdict(letter)
    del said["place"]
    return {"letter": str(letter.place), "state": state} | said


def letters_text(there: Letters, found: Sequence[DeadLetter]) -> str:
    """Return dead letters as a table, the newest at the end."""
    if not found:
        return f"no such letter in {there.topic}\n"
    table = new_table("letter", "refused at", "from", "reason", "why", "state")
    for letter in found:
        source = _source(letter).removeprefix(f"{there.pipeline.name}.")
        state = there.state(letter) + (f", attempt {letter.attempt}" if letter.attempt > 1 else "")
        table.add_row(
            str(letter.place), second(letter.refused_at), given_text(source), given_text(letter.reason), given_text(letter.message), state,
        )  # fmt: skip
    return render(table)


def letter_text(
    letter: DeadLetter,
    there: Letters,
    own: Sequence[tuple[str, bytes]],
    went: Sequence[Mapping[str, Any]],
    held: Content,
) -> str:
    """Return everything about one dead letter: why, where from, its producer's headers, when it went back, what is in it."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    rows = [
        ("why", letter.message), ("reason", letter.reason), ("rule", letter.rule), ("field", letter.field),
        ("value", letter.value), ("entity", letter.entity), ("refused by", letter.stage),
        ("refused at", f"{second(letter.refused_at)} UTC"),
        ("attempt", f"{letter.attempt}" + (f", redriven from {letter.redriven_from}" if letter.redriven_from else "")),
        ("from", _source(letter)), ("sent at", f"{second(letter.sent_at)} UTC"), ("key", letter.key),
        ("bytes", f"{letter.size:,}"),
    ]  # fmt: skip
    rows += [(f"header {name}", (data or b"").decode(errors="replace")) for name, data in own]
    rows += [("went back", f"{second(one['time'])} UTC to {one['to']}, attempt {one['attempt']}") for one in went]
    for name, text in rows:
        if text:
            table.add_row(given_text(name), given_text(text, 2000))
    if held.record is not None:
        inside = json.dumps(held.record, indent=2, default=str)
    else:
        inside = "\n".join(printable(line) for line in held.text.splitlines())
    head = f"letter {letter.place} of {there.topic}, {there.state(letter)}\n\n"
    more = "the first bytes" if held.form == "bytes" else held.form
    return head + render(table) + (f"\n{more}\n{inside}\n" if inside else "")


def stats_text(there: Letters, stats: Stats) -> str:
    """Return how many dead letters there are of each kind."""
    if not stats.total.letters:
        return f"no such letter in {there.topic}\n"
    entity = ["entity"] if stats.by_entity else []
    table = new_table(
        "reason", "rule", "field", *entity, "first", "last", "letters", "share", "open", "redriven", "again", numbers=5
    )
    for kind in (*stats.most(), stats.total):
        if kind is stats.total:
            table.add_section()
        table.add_row(
            given_text(kind.reason), given_text(kind.rule), given_text(kind.field, 30),
            *(given_text(kind.entity, 30) for _ in entity), second(kind.first)[5:16], second(kind.last)[5:16],
            f"{kind.letters:,}", f"{kind.letters / stats.total.letters:.1%}", f"{kind.open:,}", f"{kind.redriven:,}",
            f"{kind.again:,}",
        )  # fmt: skip
    return render(table)


def stats_json(stats: Stats) -> dict[str, Any]:
    """Return the same for programs."""
    kinds = [dataclasses.asdict(kind) | {"open": kind.open} for kind in (stats.total, *stats.most())]
    return {"total": kinds[0], "kinds": kinds[1:]}


def redrive_text(found: Found) -> str:
    """Return what a redrive would send, and what it leaves where it is, and why."""
    text = ""
    if found.going:
        table = new_table("to", "reason", "letters", numbers=1)
        for (to, reason), count in sorted(found.going.items(), key=lambda item: (item[0][0], -item[1])):
            table.add_row(to, given_text(reason), f"{count:,}")
        text = render(table) + "\n"
    if found.there:
        text += f"{found.there:,} went back already and stay (--again sends them once more)\n"
    return text + "".join(f"{n:,} can't go back: {printable(why)}\n" for why, n in found.cannot.most_common())
