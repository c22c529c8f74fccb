"""Each kind of task: its example's figures are River's own, to the last digit, by backtest and through the whole river."""

from __future__ import annotations

import datetime as dt
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from examples import data
from river import compose, datasets, evaluate, linear_model
from river_in_memory import River

from tidemill.cli.main import cli
from tidemill.declare.tasks import TASKS
from tidemill.offline.backtest import Backtest, BacktestReport
from tidemill.offline.model_trial import check_models
from tidemill.registry.manifests import Manifest
from tidemill.wire import topics

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NAMES = list(data.DATASETS)
DELAYS = {"phishing": "30m", "segments": "2h", "approval": "7d", "shuttle": "45m"}
FEW = 2_500
"""Rows of those that are run more than once."""


@cache
def backtest(name: str, delay: str | None = None, most: int = data.MOST) -> BacktestReport:
    events, labels = data.rows(name, delay)
    return Backtest(data.declared(name)).run(events[:most], labels[:most])


def stream(name: str, most: int = data.MOST) -> Iterator[tuple[dict[str, Any], Any]]:
    """The data set as River's evaluation takes it, with a feature `at` for its time."""
    for number, (x, y) in enumerate(itertools.islice(data.DATASETS[name], min(most, data.MOST))):
        yield {**x, "at": data.moment(number, x)}, y


def by_river(name: str, most: int = data.MOST, **how: Any) -> dict[str, float]:
    """Every metric of the pipeline, as River finds it with the declared model."""
    pipeline, found = data.declared(name), {}
    for metric in pipeline.metric():
        model = compose.Discard("at") | pipeline.model(pipeline.champion)
        evaluate.progressive_val_score(stream(name, most), model, metric, **how)
        found[type(metric).__name__] = metric.get()
    return found


def delta(text: str) -> dt.timedelta:
    return dt.timedelta(**{{"m": "minutes", "h": "hours", "d": "days"}[text[-1]]: int(text[:-1])})


def test_there_is_an_example_of_each_kind_and_each_file_is_one() -> None:
    assert sorted(data.declared(name).task for name in NAMES) == sorted(TASKS)
    files = {path.stem for path in (ROOT / "examples").glob("*.py")} - {"__init__", "data"}
    assert files == {data.declared(name).name for name in NAMES} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_backtest_finds_what_river_does(name: str) -> None:
    report = backtest(name, None, FEW)
    assert report.dead_letters == {}
    assert report.joined == report.events == min(FEW, sum(1 for _ in data.DATASETS[name]))
    assert report.metrics[report.champion] == by_river(name, FEW)


@pytest.mark.parametrize("name", NAMES)
def test_so_it_does_where_labels_come_later(name: str) -> None:
    report = backtest(name, DELAYS[name], FEW)
    assert report.joined == report.events
    assert report.metrics[report.champion] == by_river(name, FEW, moment="at", delay=delta(DELAYS[name]))
    assert report.metrics[report.champion] != backtest(name, None, FEW).metrics[report.champion]


PUBLISHED: Mapping[str, tuple[Any, str]] = {
    "phishing": (linear_model.LogisticRegression, r"\n +Accuracy: ([\d.]+)%"),
    "segments": (linear_model.SoftmaxRegression, r"\n +MacroF1: ([\d.]+)%"),
    "approval": (linear_model.LinearRegression, r"\n +MAE: ([\d.]+)"),
    "shuttle": (datasets.Shuttle, r"\n +HalfSpaceTrees RollingROCAUC: ([\d.]+)%"),
}
"""What River's own documentation says of the same model on the same data set, and where."""


def published_figure(name: str) -> tuple[str, str]:
    """The metric, and its value as River has it in its documentation."""
    where, form = PUBLISHED[name]
    return re.search(r"(\w+): \(", form)[1], re.search(form, where.__doc__)[1]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_figure_that_river_publishes(name: str) -> None:
    metric, figure = published_figure(name)
    value = backtest(name).metrics[data.declared(name).champion][metric]
    in_hundred = 100 if PUBLISHED[name][1].endswith("%") else 1
    assert f"{value * in_hundred:.{len(figure.partition('.')[2])}f}" == figure


ROUND = 100
"""Events that are asked about, until all of their labels come: as long a time as it takes to learn."""
ROUNDS = 10


@cache
def through_the_river(name: str, folder: Path) -> River:
    """Events and labels in turn, and all services after each; one partition, so that there is one order of all."""
    river = River(replace(data.declared(name), partitions=1), folder)
    events, labels = data.rows(name)
    for begin in range(0, ROUND * ROUNDS, ROUND):
        for event in events[begin : begin + ROUND]:
            river.event(event)
        river.run()
        for label in labels[begin : begin + ROUND]:
            river.label(label)
        river.run()
    return river


@pytest.fixture(params=NAMES)
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> River:
    return through_the_river(request.param, tmp_path_factory.getbasetemp() / f"tasks-{request.param}")


def newest(river: River) -> Manifest:
    assert river.registry
    found = [river.registry.decode(record.value() or b"") for record in river.of(topics.MODELS)]
    return max(found, key=lambda manifest: manifest.version)


def test_the_whole_river_finds_what_river_does(ran: River) -> None:
    """A round of events is one moment, and its labels are known at the next one: that is a delay, and River has it."""
    number = {x["at"]: number for number, (x, _) in enumerate(stream(ran.pipeline.name, ROUND * ROUNDS))}
    expected = by_river(ran.pipeline.name, ROUND * ROUNDS, moment=lambda x: number[x["at"]] // ROUND, delay=1)
    assert ran.letters() == []
    assert len(ran.decoded(topics.PREDICTIONS)) == len(ran.decoded(topics.EXAMPLES)) == ROUND * ROUNDS
    learned = newest(ran)
    assert (learned.version, learned.examples) == (ROUND * ROUNDS, ROUND * ROUNDS)
    assert learned.metrics == expected


def test_a_prediction_is_of_its_kind(ran: River) -> None:
    kind, vary = ran.pipeline.kind, set()
    for prediction in ran.decoded(topics.PREDICTIONS)[3 * ROUND :]:
        answer = prediction["champion"]
        vary.add(answer["score"])
        assert answer["version"] > 0
        if kind.name == "multiclass":
            assert answer["score"] == max(answer["probabilities"].values())
            assert sum(answer["probabilities"].values()) == pytest.approx(1)
        else:
            assert answer["probabilities"] == {}
    assert len(vary) > 100
    labels = {type(example["label"]) for example in ran.decoded(topics.EXAMPLES)}
    assert labels == {{"boolean": bool, "double": float, "string": str}[kind.label_type]}


def test_what_is_unsupervised_learns_the_same_from_other_labels(tmp_path: Path) -> None:
    """Its scores are made without labels, so the labels can't change them; the metrics they do."""
    events, labels = data.rows("shuttle", "1m")
    turned = [{**label, "anomaly": not label["anomaly"]} for label in labels]
    scores: list[list[float]] = []
    found = []
    for given in (labels, turned):
        run, said = Backtest(data.declared("shuttle")), []
        run.predictions = lambda log, said=said: said.append(log["champion"]["score"])
        found.append(run.run(events[:FEW], given[:FEW]).metrics["trees"]["RollingROCAUC"])
        scores.append(said)
    assert scores[0] == scores[1]
    assert found[0] == pytest.approx(1 - found[1], abs=1e-3)  # equal scores are counted to one side


@pytest.mark.parametrize("name", NAMES)
def test_the_commands_of_the_docs_say_it(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.data", name, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    declaration = str(ROOT / "examples" / f"{name}.py")
    said = CliRunner().invoke(cli, ["check", declaration], catch_exceptions=False).stdout
    assert f"pipeline {name}: {data.declared(name).task}" in said
    command = [
        "backtest",
        declaration,
        "--events",
        str(tmp_path / "events.csv"),
        "--labels",
        str(tmp_path / "labels.csv"),
    ]
    said = CliRunner().invoke(cli, command, catch_exceptions=False).stdout
    for value in backtest(name).metrics[data.declared(name).champion].values():
        assert f"{value:.6f}" in said


LATE = dict.fromkeys(NAMES, "1h") | {"approval": "7d"}
TABLE = {
    row.split("|")[1].strip(): [cell.strip() for cell in row.split("|")[2:6]]
    for row in (ROOT / "docs" / "how-to" / "tasks.md").read_text().splitlines()
    if row.startswith(tuple(f"| {name} |" for name in NAMES))
}


@pytest.mark.parametrize("name", NAMES)
def test_the_figures_in_the_docs_are_what_is_found(name: str) -> None:
    published, at_once, late, baseline = TABLE[name]
    assert published.rstrip("%").split() == [*published_figure(name)]
    champion = data.declared(name).champion
    for said, found in (
        (at_once, backtest(name).metrics[champion]),
        (late, backtest(name, LATE[name]).metrics[champion]),
        (baseline, backtest(name).metrics.get("baseline", {})),
    ):
        for figure in filter(None, said.split(", ")):
            metric, value = figure.split()
            assert f"{found[metric]:.4f}" == value
    assert bool(baseline) == ("baseline" in data.declared(name).model_names)


@pytest.mark.parametrize("name", NAMES)
def test_its_models_can_be_saved(name: str) -> None:
    check_models(data.declared(name))


def test_a_wrong_delay_is_named(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "examples.data", "phishing", str(tmp_path), "--delay", "soon"], cwd=ROOT,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 2
    assert "--delay: 'soon' is not a duration" in done.stderr
    assert "Traceback" not in done.stderr
