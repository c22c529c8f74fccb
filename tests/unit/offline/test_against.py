"""A changed declaration beside the one that git has: the same history, question by question."""

from __future__ import annotations

import csv
import json
import random
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from tidemill.cli.main import cli

pytestmark = pytest.mark.slow

DECLARED = """
from dataclasses import dataclass

from parts import GOOD, RULES
from river import compose, linear_model, preprocessing
from tidemill import Monitor, Pipeline, Stream, category, number


@dataclass
class Sale:
    id: str
    at: int
    shop: str
    amount: float


@dataclass
class Fraud:
    id: str
    at: int
    fraud: bool


shop = Pipeline(
    name="shop",
    events=Stream(Sale, id="id", time="at", time_unit="millis"),
    labels=Stream(Fraud, id="id", time="at", time_unit="millis", value="fraud"),
    task="binary",
    rules=RULES,
    request={"shop": category("shop"), "amount": number("amount")},
    models={"linear": GOOD | linear_model.LogisticRegression()},
    champion="linear",
    label_timeout="1d",
    monitor=Monitor(segments=["shop"]),
)
"""
PARTS = """
from river import compose, preprocessing
from tidemill import rules

GOOD = compose.SelectType(float) | preprocessing.StandardScaler()
RULES = []
"""
BLIND = PARTS.replace("compose.SelectType(float) | preprocessing.StandardScaler()", (
    "compose.SelectType(str) | preprocessing.OneHotEncoder()"
))  # fmt: skip
MANY = 1_500


def git(folder: Path, *arguments: str) -> None:
    who = ("-c", "user.name=n", "-c", "user.email=n@example.org")
    subprocess.run(["git", "-C", folder, *who, *arguments], check=True, capture_output=True)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    draw, begin = random.Random(5), 1_735_689_600_000
    with (tmp_path / "events.csv").open("w") as events, (tmp_path / "labels.csv").open("w") as labels:
        event, label = csv.writer(events), csv.writer(labels)
        event.writerow(["id", "at", "shop", "amount"])
        label.writerow(["id", "at", "fraud"])
        for number in range(MANY):
            amount, at = round(draw.random() * 100, 2), begin + number * 60_000
            event.writerow([f"e{number}", at, draw.choice(["a|b", "c"]), amount])
            label.writerow([f"e{number}", at + 600_000, str(draw.random() < (0.8 if amount > 60 else 0.2)).lower()])
    (tmp_path / "pipeline.py").write_text(
        "import sys, pathlib\nsys.path.insert(0, str(pathlib.Path(__file__).parent))\n" + DECLARED
    )
    (tmp_path / "parts.py").write_text(PARTS)
    git(tmp_path, "init", "-q", ".")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "as deployed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "parts", raising=False)
    return tmp_path


def against(*more: str) -> tuple[int, str]:
    files = ("--events", "events.csv", "--labels", "labels.csv")
    result = CliRunner().invoke(cli, ["backtest", "pipeline.py", *files, *more])
    return result.exit_code, result.output if result.exception is None else f"{result.output}{result.exception}"


def test_a_worse_one_is_worse_in_each_segment_and_fails_where_that_is_asked_for(project: Path) -> None:
    (project / "parts.py").write_text(BLIND)
    code, text = against("--against", "git:HEAD", "--markdown", "m.md", "--fail-if-worse", "--json")
    report = json.loads(text[text.index("{") : text.rindex("}") + 1])
    lines = {(line["field"], line["value"]): line for line in report["comparison"]["lines"]}
    assert code == 1
    assert report["is_worse"]
    assert set(lines) == {("", None), ("shop", "a|b"), ("shop", "c")}
    assert {line["verdict"] for line in lines.values()} == {"A better"}
    assert lines["", None]["questions"] == report["comparison"]["questions"] == MANY
    # Each side is what its own backtest says.
    for side, key in (("deployed", "a"), ("changed", "b")):
        assert lines["", None][key] == pytest.approx(report[side]["metrics"]["linear"], rel=1e-12)
    page = (project / "m.md").read_text()
    assert page.startswith("### Worse than git:HEAD: shop\n")
    assert "| shop a\\|b |" in page
    assert git_is_as_before(project)


def git_is_as_before(project: Path) -> bool:
    ended = subprocess.run(["git", "-C", project, "worktree", "list"], capture_output=True, text=True, check=True)
    return len(ended.stdout.splitlines()) == 1


def test_the_same_declaration_shows_no_difference_and_is_not_worse(project: Path) -> None:
    code, text = against("--against", "git:HEAD", "--fail-if-worse", "--segment", "shop")
    assert code == 0
    assert "A better" not in text
    assert "B better" not in text
    assert f"{MANY:,} questions that both answered" in text


def test_what_one_refuses_or_labels_otherwise_is_counted(project: Path) -> None:
    (project / "parts.py").write_text(PARTS.replace("RULES = []", 'RULES = [rules.between("amount", 0, 50)]'))
    declared = (project / "pipeline.py").read_text()
    (project / "pipeline.py").write_text(
        declared.replace('value="fraud"', 'value=lambda label: label["fraud"] or label["id"] == "e1"')
    )
    _, text = against("--against", "git:HEAD", "--json")
    report = json.loads(text[text.index("{") : text.rindex("}") + 1])
    refused = sum(report["changed"]["refused"].values())
    assert 600 < refused < 900
    assert report["comparison"]["only_a"] == refused
    assert report["comparison"]["questions"] == MANY - refused
    rows = {row["id"]: row for row in csv.DictReader((project / "events.csv").open())}
    labels = {row["id"]: row["fraud"] for row in csv.DictReader((project / "labels.csv").open())}
    assert report["labels_differ"] == (labels["e1"] == "false" and float(rows["e1"]["amount"]) <= 50)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--against", "git:nothing"], "git:nothing: git knows no such revision"),
        (["--against", "git:--help"], "git knows no such revision"),
        (["--against", "git:HEAD", "--segment", "amount"], "--segment 'amount' is no category of the vector"),
        (["--against", "other.py"], "--against other.py: pipeline file other.py does not exist"),
        (["--against", "git:HEAD", "--plot"], "give no --predictions, --report, --plot or --every"),
        (["--fail-if-worse"], "go with --against"),
    ],
)
def test_what_can_not_be_compared_is_one_line(project: Path, arguments: list[str], words: str) -> None:
    code, text = against(*arguments)
    assert code
    assert words in text


def test_a_file_that_the_revision_has_not_and_another_task_are_said(project: Path) -> None:
    (project / "new.py").write_text((project / "pipeline.py").read_text())
    files = ("--events", "events.csv", "--labels", "labels.csv")
    result = CliRunner().invoke(cli, ["backtest", "new.py", *files, "--against", "git:HEAD"])
    assert "new.py is not in that revision" in str(result.exception)
    (project / "new.py").write_text(
        (project / "pipeline.py").read_text()
        .replace('task="binary"', 'task="anomaly"')
        .replace("linear_model.LogisticRegression()", "__import__('river.anomaly').anomaly.HalfSpaceTrees(seed=1)")
    )  # fmt: skip
    result = CliRunner().invoke(cli, ["backtest", "pipeline.py", *files, "--against", "new.py"])
    assert "its task is 'anomaly' and this one's 'binary'" in str(result.exception)


def test_labels_of_nobody_are_said_where_nothing_can_be_compared(project: Path) -> None:
    text = (project / "labels.csv").read_text()
    (project / "labels.csv").write_text(text.replace("\ne", "\nx"))
    code, text = against("--against", "git:HEAD")
    assert code
    assert "nothing to compare by: the figures leave out 100% of the predictions" in text
    assert f"{MANY:,} labels match no event" in text
