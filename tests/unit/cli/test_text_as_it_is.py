"""What users and data say is printed as it is: brackets are no markup, colons no pictures."""

from __future__ import annotations

import re
from typing import Any

import pytest
import small
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from tidemill import rules
from tidemill.cli.text import shared
from tidemill.cli.text.declaration import pipeline_text

ODD = ["[a-z]{4}", "[/a-z]", "[bold]x[/bold]", ":smile:", "[link=http://x]y[/link]", r"\[x]", "[]", "[red]", "a[1:2]"]


@pytest.mark.parametrize("pattern", ["[a-z]{4}", "[/a-z]", "[red]x", ":x:"])
def test_a_rules_pattern_keeps_its_brackets(pattern: str) -> None:
    pipeline = small.make(rules=[rules.matches("carrier", pattern)])
    assert pattern in pipeline_text(pipeline)


@given(st.lists(st.sampled_from(ODD) | st.text("[]/:abc\\{}=@", max_size=12), min_size=1, max_size=4))
def test_every_cell_and_line_comes_out_as_it_went_in(texts: list[str]) -> None:
    table: Table = shared.new_table(*(f"c{index}" for index in range(len(texts))))
    table.add_row(*texts)
    printed: Any = shared.render(table, *texts)
    for text in texts:
        assert re.sub(r"\s", "", text) in re.sub(r"\s", "", printed)
