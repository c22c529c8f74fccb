"""What make installs is locked: every requirement of pyproject.toml, by its hashes, and from no place that is named."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def required(extra: str) -> list[Requirement]:
    """Return what an extra needs, and the extras that it names, and the project itself."""
    needed = []
    for requirement in map(Requirement, EXTRAS[extra]):
        needed += (
            [one for name in requirement.extras for one in required(name)]
            if requirement.name == "tidemill"
            else [requirement]
        )
    return [*needed, *map(Requirement, PROJECT["dependencies"])]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.slow
@pytest.mark.parametrize("extra", ["demo", "dev"])
def test_every_requirement_is_locked_at_a_version_that_it_allows(extra: str) -> None:
    lock = (ROOT / "requirements" / f"{extra}.lock").read_text()
    pins = re.findall(r"^([\w.-]+)(?:\[[^]]*\])?==(\S+)", lock, re.M)
    for requirement in required(extra):
        versions = [version for name, version in pins if normal(name) == normal(requirement.name)]
        assert any(requirement.specifier.contains(version) for version in versions), f"{requirement}: run make lock"
    for pin in re.split(r"\n(?=\S)", lock.strip()):
        assert "--hash=sha256:" in pin, pin


def test_the_demo_is_locked_at_the_versions_that_are_tested() -> None:
    demo, dev = (
        set(re.findall(r"^([\w.-]+==\S+)", (ROOT / "requirements" / f"{name}.lock").read_text(), re.M))
        for name in ("demo", "dev")
    )
    assert demo <= dev


def parts(extra: str) -> set[str]:
    """Return the extras that an extra is made of; itself where it names packages."""
    named = {part for one in map(Requirement, EXTRAS[extra]) if one.name == "tidemill" for part in one.extras}
    return {part for name in named for part in parts(name)} or {extra}


def test_the_readme_names_the_extras_of_users_and_those_that_all_is() -> None:
    (line,) = re.findall(r"^`all` is .*(?:\n.+)*", (ROOT / "README.md").read_text(), re.M)
    all_, further = (set(re.findall(r"`(\w+)`", part)) for part in line.split("Further extras"))
    assert all_ == {"all"} | parts("all")
    assert "plot" in all_, "the tutorial draws a report"
    assert further == EXTRAS.keys() - all_ - {"services", "demo", "docs", "testing", "dev"}


@pytest.mark.parametrize("extra", ["demo", "dev"])
def test_a_lock_names_no_registry(extra: str) -> None:
    lock = (ROOT / "requirements" / f"{extra}.lock").read_text()
    assert "://" not in lock
    assert "--index" not in lock
