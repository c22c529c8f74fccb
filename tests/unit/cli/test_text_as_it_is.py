"""What users and data say is printed as it is: brackets are no markup, colons no pictures."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import pytest
import small
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from tidemill import rules
from tidemill.cli.shared import print_report
from tidemill.cli.text import shared
from tidemill.cli.text.declaration import pipeline_text
from tidemill.local.console import Console
from tidemill.report.page import template_environment

ODD = ["[a-z]{4}", "[/a-z]", "[bold]x[/bold]", ":smile:", "[link=http://x]y[/link]", r"\[x]", "[]", "[red]", "a[1:2]"]


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["[a-z]{4}", "[/a-z]", "[red]x", ":x:"])
def test_a_rules_pattern_keeps_its_brackets(pattern: str) -> None:
    pipeline = small.make(rules=[rules.matches("carrier", pattern)])
    assert pattern in pipeline_text(pipeline)


@pytest.mark.slow
@given(st.lists(st.sampled_from(ODD) | st.text("[]/:abc\\{}=@", max_size=12), min_size=1, max_size=4))
def test_every_cell_and_line_comes_out_as_it_went_in(texts: list[str]) -> None:
    table: Table = shared.new_table(*(f"c{index}" for index in range(len(texts))))
    table.add_row(*texts)
    printed: Any = shared.render(table, *texts)
    for text in texts:
        assert re.sub(r"\s", "", text) in re.sub(r"\s", "", printed)


#: What a terminal obeys, and what turns a line around; one of each kind.
OBEYED = ["\x1b[31mred", "\x1b]0;title\x07", "\x9b2J", "\u202ereversed", "\u200bnothing", "a\u2028b", "a\x85b", "a\rb"]


@pytest.mark.slow
@given(st.lists(st.sampled_from(OBEYED) | st.text(max_size=8), min_size=1, max_size=3))
def test_no_table_has_what_a_terminal_obeys(texts: list[str]) -> None:
    table: Table = shared.new_table(*(f"c{index}" for index in range(len(texts))))
    table.add_row(*texts)
    assert all(character.isprintable() or character == "\n" for character in shared.render(table, *texts))


@pytest.mark.parametrize("obeyed", OBEYED)
def test_no_report_has_what_a_terminal_obeys(obeyed: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_report(obeyed, lambda text: f"{text}\nnext line\n", as_json=False)
    printed = capsys.readouterr().out
    assert printed.endswith("\nnext line\n")
    assert printed.count("\n") == 2
    assert printed.replace("\n", "").isprintable()


@pytest.mark.parametrize("obeyed", OBEYED)
def test_no_page_has_it_either(obeyed: str) -> None:
    page = template_environment().from_string("<p>{{ text }}</p>").render(text=f"{obeyed}\nnext")
    assert page.replace("\n", "").isprintable()
    assert page.endswith("\nnext</p>")


@pytest.mark.parametrize("obeyed", OBEYED)
def test_no_line_of_a_service_has_it(obeyed: str) -> None:
    out = io.StringIO()
    console = Console(out, colours=False)
    console.line("scorer", json.dumps({"message": obeyed, "cause": obeyed, "traceback": obeyed}))
    console.line("scorer", obeyed)
    assert out.getvalue().replace("\n", "").isprintable()
