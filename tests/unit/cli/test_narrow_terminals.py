"""What commands print on narrow terminals: no number is cut, and no word broken."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest

from tidemill.cli import init
from tidemill.cli.text.shared import new_table, pairs_table, render
from tidemill.local.console import Console

NAMES = ("Accuracy", "ROCAUC", "LogLoss")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(params=[20, 40, 60, 79, 80, 120])
def columns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("COLUMNS", str(request.param))
    return int(request.param)


def test_tables_that_have_no_room_are_printed_a_value_a_line(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    table = new_table("model", *NAMES, numbers=3)
    table.add_row("linear (champion)", "0.510000", "0.491700", "0.699599")
    table.add_row("tree", "0.491228", "", "1.015342")
    text = render(table)
    assert all(number in text for number in ("0.510000", "0.491700", "0.699599", "0.491228", "1.015342"))
    assert "…" not in text
    if columns >= 60:
        assert re.search(r"^tree +0\.491228 +1\.015342$", text, re.M)
    else:
        assert "model  tree\n  Accuracy  0.491228\n  LogLoss  1.015342\n" in text
    assert "a  1" in render(pairs_table([("a", "1")]))


def test_notes_and_the_greeting_of_up_are_broken_between_words(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    text = "the ports are  " + "  ".join(f"service-{number} :{20_000 + number}" for number in range(12))
    assert init._fitted(text).split() == text.split()
    console = Console(out := Terminal(), colours=False)
    console.say(text)
    _, name, *rest = out.getvalue().split()
    assert (name, rest) == ("up", text.split())
    if columns >= 60:
        assert all(len(line) <= columns for line in (init._fitted(text) + "\n" + out.getvalue()).splitlines())


def test_what_is_no_terminal_gets_one_line(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        Console(file, colours=False).say("word " * 90)
    assert len((tmp_path / "log").read_text().splitlines()) == 1
