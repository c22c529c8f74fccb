"""What the README says works: its pipeline loads, its commands parse."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_deployment import accepts

from tidemill import Monitor, aggregates, load
from tidemill.offline.check import check_models

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", TEXT, re.S)
COMMANDS = [
    line.partition("  #")[0].strip()
    for _, block in BLOCKS
    for line in block.splitlines()
    if line.startswith("tidemill ")
]


def test_the_pipeline_in_the_readme_loads(tmp_path: Path) -> None:
    whole, monitor, gate = [text for language, text in BLOCKS if language == "python"]
    (tmp_path / "flights.py").write_text(whole)
    pipeline = load(str(tmp_path / "flights.py"))
    check_models(pipeline)
    assert pipeline.model_names == ("logreg", "baseline")
    names: dict[str, Any] = {"Monitor": Monitor}
    exec(monitor, names)
    assert replace(pipeline, monitor=replace(names["monitor"], limits={})).monitor.window == "1d"
    assert replace(load("flights"), monitor=names["monitor"]).monitor.limit("psi", "distance") == 0.3
    exec(gate, names)
    assert replace(load("flights"), gate=names["gate"]).gate.rate == 0.05


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_in_the_readme_parse(command: str) -> None:
    accepts(shlex.split(command)[1:])


def test_there_are_commands_in_the_readme() -> None:
    assert len(COMMANDS) >= 8


def test_the_readme_names_every_aggregate() -> None:
    assert [name for name in aggregates.__all__ if f"`{name}" not in TEXT] == []


@pytest.mark.parametrize("link", re.findall(r"\]\(((?!http)[^)#]+)\)", TEXT))
def test_links_lead_to_files(link: str) -> None:
    assert (ROOT / link).exists()


def test_make_help_names_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    described = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.M))
    phony = set(re.search(r"^\.PHONY: (.*)$", makefile, re.M)[1].split())
    assert described == phony
