"""What `tidemill up` prints: the log lines of all processes as one log, for people."""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
import shutil
import sys
import textwrap
from collections.abc import Collection, Mapping
from typing import Any, TextIO

from tidemill import logs
from tidemill.errors import printable

#: ANSI colours of the services, in turn: those that can be read on black and on white.
COLOURS = (36, 35, 34, 32, 33, 96, 95, 94, 92, 93)
LEVEL_COLOURS = {"warning": 33, "error": 31, "critical": 31}
#: Where a terminal has fewer columns than these for a line, it breaks the line itself.
MIN_ROOM = 20
#: Fields of a line that have a place of their own, or say nothing here.
PLACED = frozenset({"time", "level", "service", "message", "traceback", "taskName", "pipeline", "instance"})


class Console:
    """Prints lines of processes, each with its name in front, coloured on a terminal.

    While it `is_quiet`, only warnings and errors of theirs are printed.
    """

    def __init__(self, out: TextIO | None = None, *, colours: bool | None = None) -> None:
        self.out = out or sys.stdout
        self.colours = self.out.isatty() and not os.environ.get("NO_COLOR") if colours is None else colours
        self.width = 10
        self.is_quiet = False
        self._by_name: dict[str, int] = {}

    def names(self, names: list[str]) -> None:
        """Make room for these names."""
        self.width = max([self.width, *map(len, names)])

    def line(self, name: str, text: str) -> None:
        """Print one line of a process: a record of its log, or whatever else it has printed."""
        try:
            record = json.loads(text)
            message = str(record["message"])
        except (ValueError, TypeError, KeyError):
            record, message = {}, text
        if not isinstance(record, dict):
            record, message = {}, text
        if self.is_quiet and record.get("level") in ("info", "debug"):
            return
        self._print(record.get("service", name), record.get("level", "info"), message, record)

    def say(self, message: str, level: str = "info") -> None:
        """Print a line of our own; what a terminal has no room for goes on below, as far in."""
        self._print("up", level, message, {})

    def plain(self, text: str = "") -> None:
        """Print text as it is."""
        self._write(text + "\n")

    def _print(self, name: str, level: str, message: str, record: Mapping[str, Any]) -> None:
        moment = _clock(record.get("time"))
        prefix = self._paint(f"{name:<{self.width}}", self._colour(name))
        shown = self._paint(
            self._fitted(printable(message), len(moment)) if name == "up" else printable(message),
            LEVEL_COLOURS.get(level, 0),
        )
        more = printable("  ".join(f"{key}={value}" for key, value in record.items() if key not in PLACED))
        lines = [f"{self._paint(moment, 2)} {prefix} {shown}" + (f"  {self._paint(more, 2)}" if more else "")]
        lines += [
            f"{' ' * len(moment)} {prefix} {printable(line)}"
            for line in str(record.get("traceback") or "").splitlines()
        ]
        self._write("".join(line + "\n" for line in lines))

    def _fitted(self, text: str, moment: int) -> str:
        indent = moment + self.width + 2
        room = shutil.get_terminal_size().columns - indent if self.out.isatty() else 0
        lines = (
            textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) if room >= MIN_ROOM else [text]
        )
        return f"\n{' ' * indent}".join(lines)

    def _write(self, text: str) -> None:
        self.out.write(text)
        self.out.flush()

    def _colour(self, name: str) -> int:
        return self._by_name.setdefault(name, COLOURS[len(self._by_name) % len(COLOURS)])

    def _paint(self, text: str, colour: int) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self.colours and colour else text


class ConsoleHandler(logging.Handler):
    """Prints the log of a process that has several services."""

    def __init__(self, console: Console, services: Collection[str]) -> None:
        super().__init__()
        self.console = console
        self.setFormatter(logs.JsonFormatter("up", services))

    def emit(self, record: logging.LogRecord) -> None:
        """Print a line."""
        self.console.line("up", self.format(record))


def _clock(time: str | None) -> str:
    """Return the local time of day of a line, or now."""
    try:
        moment = dt.datetime.fromisoformat(time or "").astimezone()
    except ValueError:
        moment = dt.datetime.now().astimezone()
    return moment.strftime("%H:%M:%S")
