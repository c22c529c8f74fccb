"""The runner of the fault suite: what a case raises is a row that is not met, and the others run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import report
import run as runner
from harness import Row
from ledger import Verdict


class Nothing:
    """Stands for a broker and a Redis."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def stop(self) -> None:
        pass


def good(bench: Any) -> Row:
    """Harm that is survived."""
    return Row("harm", "survived", bench.seed, Verdict())


def asserts(bench: Any) -> Row:
    """Harm whose case waits in vain."""
    raise AssertionError("after 60 s: the featurizer is not ready")


def raises(bench: Any) -> Row:
    """Harm whose case ends in an error."""
    raise ConnectionError("no Redis\nat all")


def also_good(bench: Any) -> Row:
    """More harm that is survived."""
    return good(bench)


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(runner, "RealKafka", Nothing)
    monkeypatch.setattr(runner, "Redis", Nothing)
    monkeypatch.setattr(runner.cases, "CASES", (asserts, good, raises, also_good))
    monkeypatch.setattr(runner, "keep_logs", lambda name, folder: None)
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(report, "REPORT", tmp_path / "faults.md")
    return tmp_path


def test_a_case_that_fails_is_a_row_with_the_reason_and_the_others_run(suite: Path) -> None:
    rows = runner.run([], 731)
    assert [(row.promise, row.met) for row in rows] == [
        ("Harm whose case waits in vain", False),
        ("harm", True),
        ("Harm whose case ends in an error", False),
        ("harm", True),
    ]
    assert "AssertionError: after 60 s: the featurizer is not ready" in str(rows[0])
    assert "ConnectionError: no Redis at all" in str(rows[2])


def test_the_report_shows_it_and_the_command_ends_with_code_1(suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "run_small", lambda: (suite / "small.xml").write_text("<testsuites/>") > 0)
    monkeypatch.setattr(report, "run_mutants", lambda: (suite / "mutants.json").write_text("[]"))
    monkeypatch.setattr(sys, "argv", ["run.py", "--seed", "731"])
    with pytest.raises(SystemExit) as ended:
        runner.main()
    assert ended.value.code == 1
    lines = (suite / "faults.md").read_text().splitlines()
    (row,) = [line for line in lines if line.startswith("| Harm whose case waits in vain")]
    assert "**no**" in row
    assert any("the featurizer is not ready" in line for line in lines)
    monkeypatch.setattr(runner.cases, "CASES", (good, also_good))
    with pytest.raises(SystemExit) as ended:
        runner.main()
    assert ended.value.code == 0


def test_with_several_seeds_each_case_has_a_row_of_each(suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "run_small", lambda: (suite / "small.xml").write_text("<testsuites/>") > 0)
    monkeypatch.setattr(report, "run_mutants", lambda: (suite / "mutants.json").write_text("[]"))
    monkeypatch.setattr(runner.cases, "CASES", (good,))
    monkeypatch.setattr(sys, "argv", ["run.py", "--seed", "731", "--seed", "1"])
    with pytest.raises(SystemExit):
        runner.main()
    rows = [line for line in (suite / "faults.md").read_text().splitlines() if line.startswith("| harm |")]
    assert ["731" in rows[0], "| 1," in rows[0]] != ["731" in rows[1], "| 1," in rows[1]]


def test_what_is_not_run_again_stays_in_the_report_with_its_day(suite: Path) -> None:
    (suite / "faults.md").write_text(
        "# Faults\n\n## Under load\n\n| promise | goal |\n|---|---|\n| harm | old |\n| other harm | old, 2026-11-21 |\n\n"
        "- *harm*: old\n- *other harm*: of before\n\n## One by one\n\nsmall of before\n\n"
        "## Mutation check\n\n| broken | caught by |\n|---|---|\n"
        f"| {report.MUTANTS[0].says} | `by_this` |\n| {report.MUTANTS[1].says} | not run yet |\n| of before | `long_gone` |\n"
    )
    report.keep("good", good(type("Bench", (), {"seed": 7})))
    assert report.write(["good"])
    text = (suite / "faults.md").read_text()
    assert "| harm | survived | yes |" in text
    assert "| harm | old |" not in text
    assert "- *harm*: old" not in text
    assert text.count("| other harm | old, 2026-11-21 |") == 1
    assert text.count("- *other harm*: of before") == 1
    assert "small of before" in text
    assert f"| {report.MUTANTS[0].says} | `by_this` |" in text
    assert f"| {report.MUTANTS[1].says} | not run yet |" in text
    assert "of the 1 that were run the suite catches 1" in text
    assert "long_gone" not in text
    assert report.write(["good"])
    assert (suite / "faults.md").read_text() == text
