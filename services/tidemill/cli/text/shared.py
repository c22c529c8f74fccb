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
#: Columns of a table where no terminal says how wide it is, and columns at least.
WIDTH, MIN_WIDTH = 118, 80


def render(*parts: Any) -> str:
    """Return rich tables and text as plain text."""
    width = WIDTH
    if sys.stdout.isatty():
        width = max(MIN_WIDTH, shutil.get_terminal_size((WIDTH, 0)).columns)
    out = io.StringIO()
    # What users and data say is printed as it is: [a-z] is a pattern, and no markup; :x: is no picture.
    console = Console(file=out, width=width, highlight=False, markup=False, emoji=False)
    for part in parts:
        console.print(part)
    text = "".join(f"{printable(line.rstrip())}\n" for line in out.getvalue().removesuffix("\n").split("\n"))
    return (
        text
        if "utf" in (sys.stdout.encoding or "utf").lower()
        else text.replace("\N{BOX DRAWINGS LIGHT HORIZONTAL}", "-")
    )


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
