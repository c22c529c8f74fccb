"""Tables, times, and text from outside, for all reports."""

from __future__ import annotations

import datetime as dt
import io
import shutil
import sys
from collections.abc import Iterable
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tidemill.durations import minute
from tidemill.errors import printable
from tidemill.wire.dead_letters import shorten

__all__ = ["NO_ANSWER", "format_value", "minute", "new_table", "pairs_table", "printable", "render", "second"]

#: Where a score would stand: that of a model that had no answer yet is the task's neutral one, and looks like one.
NO_ANSWER = "no answer yet"
#: Columns of a table where no terminal says how wide it is, columns that a terminal needs for tables side by side, and
#: columns at least.
WIDTH, TABLE_WIDTH, MIN_WIDTH = 118, 80, 20
#: As wide as no table is.
WIDEST = 10_000


def render(*parts: Any) -> str:
    """Return rich tables and text as plain text."""
    width = WIDTH
    if sys.stdout.isatty():
        width = max(MIN_WIDTH, shutil.get_terminal_size((WIDTH, 0)).columns)
    out = io.StringIO()
    # What users and data say is printed as it is: [a-z] is a pattern, and no markup; :x: is no picture.
    console = Console(file=out, width=width, highlight=False, markup=False, emoji=False)
    for part in parts:
        is_too_wide = width < TABLE_WIDTH and isinstance(part, Table) and _needed(part) > width
        console.print(_stacked(part) if is_too_wide else part)
    text = "".join(f"{printable(line.rstrip())}\n" for line in out.getvalue().removesuffix("\n").split("\n"))
    return (
        text
        if "utf" in (sys.stdout.encoding or "utf").lower()
        else text.replace("\N{BOX DRAWINGS LIGHT HORIZONTAL}", "-")
    )


def _needed(table: Table) -> int:
    """Return how wide a table is of which nothing goes on below."""
    return Console(file=io.StringIO(), width=WIDEST, markup=False, emoji=False).measure(table).maximum


def _stacked(table: Table) -> Table | Text:
    """Return a table's rows one below the other, a value a line: side by side, numbers would be cut."""
    if not table.show_header:
        return table
    headers = [str(column.header) for column in table.columns]
    blocks = []
    for first, *rest in zip(*(column.cells for column in table.columns), strict=True):
        values = [f"  {header}  {value}" for header, value in zip(headers[1:], map(str, rest), strict=True) if value]
        blocks.append("\n".join([f"{headers[0]}  {first}", *values]))
    return Text("\n".join(blocks))


def new_table(*columns: str, numbers: int = 0) -> Table:
    """Return a table; its last `numbers` columns are numbers."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for index, column in enumerate(columns):
        # The name of a row does not wrap; the rest may.
        table.add_column(column, justify="right" if index >= len(columns) - numbers else "left", no_wrap=index == 0)
    return table


def format_value(text: str, longest: int = 120) -> Text:
    """Return text from outside for a table: without markup and control characters, not too long."""
    return Text(printable(shorten(text, longest)))


def second(ms: int) -> str:
    """Return a time to the second; the number itself where no calendar has such a time."""
    try:
        return dt.datetime.fromtimestamp(ms / 1000, dt.UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):  # a producer's clock may say anything
        return f"{ms} ms"


def pairs_table(rows: Iterable[tuple[str, Any]]) -> Table:
    """Return a table of names and values."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        if value != "":
            table.add_row(format_value(name), format_value("missing" if value is None else str(value), 2000))
    return table


def count_of(count: int, what: str) -> str:
    """Return a count with its noun, as `2 artifacts`."""
    return f"{count:,} {what}" + ("" if count == 1 else "s")
