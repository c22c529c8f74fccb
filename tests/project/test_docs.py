"""What README and docs say works: pipelines load, commands parse, examples run, links lead somewhere."""

from __future__ import annotations

import doctest
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_deployment import accepts

from tidemill import Monitor, aggregates, load
from tidemill.cli.main import cli
from tidemill.offline.model_trial import check_models
from tidemill.settings import Settings

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
HOW_TO = ROOT / "docs" / "how-to"
PAGES = [README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"```(\w*)(?: title=\"(.*?)\")?\n(.*?)```", re.S)
PAGE_NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, _, text in BLOCK.findall(page.read_text()) if kind == language]


def commands(page: Path) -> list[str]:
    """Return the commands that a page shows; what a shell or a page prints, and an ellipsis, is none."""
    lines = [line.removeprefix("$ ") for _, _, block in BLOCK.findall(page.read_text()) for line in block.splitlines()]
    return [line.partition("  #")[0].partition(" # ")[0].strip() for line in lines if line.startswith("tidemill ")]


COMMANDS = sorted({command for page in PAGES for command in commands(page)})


def written(page: Path, folder: Path) -> None:
    """Write the files that a page shows, by their titles."""
    for _, title, text in BLOCK.findall(page.read_text()):
        if title:
            (folder / title).write_text(text)


def test_the_pipeline_in_the_readme_loads(tmp_path: Path) -> None:
    written(README, tmp_path)
    pipeline = load(str(tmp_path / "orders.py"))
    check_models(pipeline)
    assert pipeline.model_names == ("logreg", "baseline")


def test_monitor_and_gate_in_the_docs_load() -> None:
    [monitor] = blocks(HOW_TO / "watch.md", "python")
    names: dict[str, Any] = {}
    exec(monitor, names)
    assert replace(load("flights"), monitor=replace(names["monitor"], limits={})).monitor.window == "1d"
    assert replace(load("flights"), monitor=names["monitor"]).monitor.limit("psi", "distance") == 0.3
    assert isinstance(names["monitor"], Monitor)
    gate = next(text for text in blocks(HOW_TO / "gate.md", "python") if text.startswith("from tidemill import Gate\n"))
    exec(gate, names)
    assert replace(load("flights"), gate=names["gate"]).gate.rate == 0.05


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_in_the_docs_parse(command: str) -> None:
    given = shlex.split(re.sub(r" \.\.\.$", " text", command))[1:]
    accepts(given)


def test_there_are_commands_in_the_docs() -> None:
    assert len(COMMANDS) >= 40


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGE_NAMES)
def test_examples_in_the_docs_are_right(name: str) -> None:
    """Blocks with >>> are run, one page in one namespace; the others are Python at least."""
    examples = "\n".join(text for text in blocks(ROOT / name, "python") if ">>>" in text)
    test = doctest.DocTestParser().get_doctest(examples, {}, name, name, 0)
    assert doctest.DocTestRunner().run(test).failed == 0
    for text in blocks(ROOT / name, "python"):
        if ">>>" not in text:
            compile(text, name, "exec")


@pytest.mark.parametrize("name", ["rules", "aggregates", "models", "metrics"])
def test_pages_on_writing_a_plug_in_have_an_example_that_runs(name: str) -> None:
    assert any(">>>" in text for text in blocks(HOW_TO / f"{name}.md", "python"))


def test_the_docs_name_every_aggregate() -> None:
    text = (HOW_TO / "aggregates.md").read_text()
    assert [name for name in aggregates.__all__ if f"`{name}" not in text] == []


@pytest.mark.parametrize("name", PAGE_NAMES)
def test_links_lead_to_files(name: str) -> None:
    links = re.findall(r"\]\(((?!http)[^)#]+)\)", (ROOT / name).read_text())
    made = [link for link in links if "reference/" in link]  # `make docs` makes these pages, and checks these links
    assert [link for link in links if link not in made and not ((ROOT / name).parent / link).exists()] == []


@pytest.mark.parametrize("name", [name for name in PAGE_NAMES if name != "CHANGELOG.md"])
def test_files_of_the_project_that_pages_name_exist(name: str) -> None:
    paths = re.findall(r"`((?:tests|services|examples|schemas|k8s|benchmarks)/[\w./-]+)", (ROOT / name).read_text())
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    """Strictly: every link and anchor of every page leads somewhere, also to what is generated from the code."""
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    ended = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout + ended.stderr) == (0, "")
    pages = {str(page.relative_to(tmp_path)): page.read_text() for page in tmp_path.rglob("*.html")}
    assert len(pages) > 40
    assert [
        name for name, text in pages.items() if re.search(r"<(script|link|img)[^>]*(src|href)=\"?(https?:)?//", text)
    ] == []
    for name in Settings.model_fields:
        assert f"TIDEMILL_{name.upper()}" in pages["reference/settings.html"]
    for command in cli.commands:
        assert f"tidemill {command}" in pages["reference/cli.html"]


def test_every_alert_rule_has_a_runbook_and_every_runbook_a_rule() -> None:
    groups = yaml.safe_load((ROOT / "ops/prometheus/rules.yml").read_text())["groups"]
    pages = {rule["alert"]: rule["annotations"]["runbook_url"] for group in groups for rule in group["rules"]}
    text = (HOW_TO / "runbooks.md").read_text()
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", text, re.M | re.S))
    assert pages == {name: f"docs/how-to/runbooks.md#{name.lower()}" for name in sections}
    assert [name for name, section in sections.items() if "\n1. " not in section] == [], "each says what to do"


def test_make_help_names_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    described = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.M))
    phony = set(re.search(r"^\.PHONY: (.*)$", makefile, re.M)[1].split())
    assert described == phony
