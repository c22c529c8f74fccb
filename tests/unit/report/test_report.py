"""A report shows what a backtest measured: the same figures, for every task, in one file that asks nobody for anything."""

from __future__ import annotations

import html
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small
from click.testing import CliRunner
from examples import data
from river import metrics

from tidemill import Monitor, category, number
from tidemill.cli.main import cli
from tidemill.declare.pipeline import Pipeline
from tidemill.durations import milliseconds
from tidemill.errors import SettingsError
from tidemill.offline.backtest import Backtest, BacktestReport
from tidemill.offline.history import write
from tidemill.offline.source import Past
from tidemill.report import charts, page
from tidemill.report.recording import MAX_WINDOWS, Importance, Recorder, Recording, importance, with_window

pytestmark = pytest.mark.slow


def recorded(
    pipeline: Pipeline, events: list[Any], labels: list[Any], **options: Any
) -> tuple[BacktestReport, Recording]:
    run = Backtest(pipeline)
    recorder = Recorder(run)
    report = run.run(events, labels)
    return report, recorder.finish(report, **options)


@pytest.mark.parametrize("name", ["phishing", "approval", "segments", "shuttle"])
def test_every_task_has_a_page_with_the_report_s_own_figures(name: str) -> None:
    events, labels = data.rows(name, "1h")
    events, labels = events[:600], labels[:600]
    pipeline = data.declared(name)
    pipeline = with_window(pipeline, [event[pipeline.events.time] for event in events])
    plain = Backtest(pipeline).run(events, labels)
    report, recording = recorded(pipeline, events, labels)
    assert report.metrics == plain.metrics, "recording changes nothing"
    assert sum(w.window.records for w in recording.windows if w.source == "prediction-log") == report.predictions
    assert sum(w.window.records for w in recording.windows if w.source == "examples") == report.joined
    assert len(recording.delays) == report.joined
    text = page.render(recording)
    for model, values in report.metrics.items():
        assert model in text
        for value in values.values():
            assert page.figure(value) in text
    assert f"<b>{report.joined:,}</b>joined" in text
    assert text.count("<img ") >= 3
    assert not re.search(r"<script|<link|@import|(src|href)=\"(?!data:)", text), "it asks nobody for anything"


def test_labels_at_once_are_what_a_backtest_without_delays_measures() -> None:
    """Without views the vectors are the same, so the whole backtest must come to the same figures."""
    events, labels = data.rows("phishing", "6h")
    _, recording = recorded(data.declared("phishing"), events, labels)
    undelayed = Backtest(data.declared("phishing")).run(*data.rows("phishing"))
    assert recording.at_once == undelayed.metrics
    assert recording.at_once != recording.backtest.metrics, "the delay costs something here"


class _LooksAtDistance:
    def learn_one(self, x: Mapping[str, Any], y: Any) -> None: ...

    def predict_one(self, x: Mapping[str, Any]) -> float:
        return 2.0 * x["distance"]


def test_a_feature_that_a_model_looks_at_is_important_and_one_that_it_does_not_is_worth_nothing() -> None:
    pipeline = small.make(request={"distance": number("distance"), "hour": number("sched_hour")}, views=[])
    examples = [({"distance": float(n % 10), "hour": float(n)}, 2.0 * (n % 10)) for n in range(200)]
    first, second = importance(pipeline, _LooksAtDistance(), examples)
    assert first.feature == "distance"
    assert first.increase > 10 * first.error > 0
    assert second == Importance("hour", 0.0, 0.0)


def test_windows_are_as_declared_or_so_long_that_a_picture_has_room_for_them() -> None:
    pipeline = small.make(monitor=Monitor(window="1h", reference="1d"))
    assert with_window(pipeline, range(0, 24 * small.HOUR, small.MINUTE)) is pipeline
    longer = with_window(pipeline, range(0, 365 * 24 * small.HOUR, small.HOUR)).monitor
    assert longer.window == "7d"
    assert longer.reference == f"{21 * 24 * small.HOUR}ms", "three windows at least"
    one_far_away = [0, *range(10**12, 10**12 + 1_000 * small.MINUTE, small.MINUTE)]
    assert with_window(pipeline, one_far_away).monitor.window == "1h"
    assert MAX_WINDOWS * 7 >= 365


def test_where_the_reference_was_not_complete_the_page_says_what_there_was() -> None:
    pipeline = small.make(monitor=Monitor(window="6h", reference="30h"))
    events = [small.event(f"f{n}", n * small.HOUR) for n in range(19)]
    _, recording = recorded(pipeline, events, [])
    text = page.render(recording)
    assert "the first 30h of examples, was not complete" in text
    assert "The events span 18h: declare a shorter one" in text


def test_text_of_producers_is_text_on_the_page() -> None:
    hostile = "<script>alert(1)</script>"
    pipeline = small.make(
        request={"distance": number("distance"), "dest": category("dest")},
        monitor=Monitor(segments=["dest"]),
        views=[],
    )
    events = [small.event(f"f{n}", n * small.MINUTE, dest=hostile) for n in range(30)]
    events.append(small.event("<b>", 31 * small.MINUTE, sched_hour=77))
    labels = [small.label(f"f{n}", n * small.MINUTE + small.MINUTE) for n in range(30)]
    text = page.render(recorded(pipeline, events, labels)[1])
    assert hostile not in text
    assert html.escape(hostile) in text
    assert "out_of_range" in text


def pictures_of(recording: Recording) -> dict[str, str]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return charts.pictures(recording)


def test_names_in_pictures_are_text_as_it_stands_and_as_long_as_there_is_room() -> None:
    odd = ("$\\frac$ a", "_under", "x" * 300, "<b>&")
    pipeline = small.make(
        request={"distance": number("distance"), "dest": category("dest")},
        monitor=Monitor(segments=["dest"], window="1h", reference="3h", least=10),
        views=[],
    )
    events = [small.event(f"f{n}", n * small.MINUTE, dest=odd[n % 4]) for n in range(600)]
    labels = [small.label(f"f{n}", (n + 1) * small.MINUTE) for n in range(600)]
    picture = pictures_of(recorded(pipeline, events, labels)[1])["segments"]
    for shown in ("$\\frac$ a", "_under", f"{'x' * 39}…", "&lt;b&gt;&amp;"):
        assert f"{shown}</text>" in picture
    assert "x" * 40 not in picture


def test_pictures_show_as_many_models_as_can_be_told_apart_and_the_page_says_so() -> None:
    models = {f"m{n}": small.linear(0.0001 * (n + 1)) for n in range(30)}
    pipeline = small.make(models=models, champion="m9", views=[], request={"distance": number("distance")})
    events = [small.event(f"f{n}", n * small.MINUTE, distance=float(n % 7)) for n in range(100)]
    labels = [small.label(f"f{n}", (n + 1) * small.MINUTE, arr_delay=float(n % 7)) for n in range(100)]
    report, recording = recorded(pipeline, events, labels)
    shown = charts.shown_models(recording)
    name = report.main_metric
    best = sorted(models.keys() - {"m9"}, key=lambda model: report.metrics[model][name])[: charts.MAX_MODELS - 1]
    assert name == "RMSE", "less is better"
    assert set(shown) == {"m9", *best, "baseline"}
    assert set(re.findall(r">(m\d+|baseline)</text>", pictures_of(recording)["performance"])) == set(shown)
    assert "Pictures show 7 of 31 models" in page.render(recording)


def test_the_picture_of_delays_has_a_unit_that_fits_them() -> None:
    events = [small.event(f"f{n}", n * small.MINUTE) for n in range(30)]
    labels = [small.label(f"f{n}", (n + 1) * small.MINUTE) for n in range(30)]
    _, recording = recorded(small.make(views=[], label_timeout="5d"), events, labels)
    assert "seconds from event to label" in pictures_of(recording)["delays"]


@pytest.mark.parametrize("times", [[0], [0, 0], [-(10**12), 10**12], [10**17, 10**17 + 1]])
def test_few_events_and_times_that_no_calendar_has_make_a_page_too(times: list[int]) -> None:
    pipeline = replace(small.make(views=[]), rules=[], monitor=Monitor())
    events = [small.event(f"f{n}", at) for n, at in enumerate(times)]
    labels = [small.label(f"f{n}", at + 1) for n, at in enumerate(times)]
    report, recording = recorded(pipeline, events, labels)
    assert f"<b>{report.events}</b>events" in page.render(recording)


@pytest.mark.parametrize("dropped", [0, 1, 2])
def test_the_best_by_each_metric_is_told_by_its_own_sense_though_another_was_left_out(dropped: int) -> None:
    declared = [metrics.Accuracy(), metrics.LogLoss(), metrics.ROCAUC()]
    pipeline = replace(data.declared("phishing"), metrics=declared)
    events, labels = data.rows("phishing", "1h")
    report, recording = recorded(pipeline, events[:300], labels[:300], at_once=False)
    for values in report.metrics.values():
        del values[type(declared[dropped]).__name__]
    best = page._better(recording)
    assert list(best) == report.metric_names
    for name, model in best.items():
        values = [of[name] for of in report.metrics.values()]
        assert report.metrics[model][name] == (min(values) if name == "LogLoss" else max(values))


def files(folder: Path) -> list[str]:
    events, labels = data.rows("phishing", "1h")
    write(folder / "events.csv", events[:300])
    write(folder / "labels.csv", labels[:300])
    return ["--events", str(folder / "events.csv"), "--labels", str(folder / "labels.csv")]


PHISHING = str(Path(data.__file__).parent / "phishing.py")


def test_the_commands_write_the_page_and_draw(tmp_path: Path) -> None:
    given = files(tmp_path)
    result = CliRunner().invoke(cli, ["report", PHISHING, *given, "--output", str(tmp_path / "a.html")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "a.html").read_text().startswith("<!doctype html>")
    result = CliRunner().invoke(
        cli, ["backtest", PHISHING, *given, "--report", str(tmp_path / "b.html"), "--plot", "--every", "30m"]
    )
    assert result.exit_code == 0, result.output
    assert "ROCAUC so far" in result.output
    assert (tmp_path / "b.html").read_text() == (tmp_path / "a.html").read_text(), "the same data, the same page"


@pytest.mark.parametrize(
    ("apart", "step"), [("3h", "1d"), ("20m", "6h"), ("2m", "15m"), ("30s", "5m"), ("10s", "1m"), ("1ms", "1m")]
)
def test_there_is_a_dozen_rows_of_metrics_however_short_the_history_is(apart: str, step: str) -> None:
    between = 1 if apart == "1ms" else milliseconds(apart)
    past = Past([n * between for n in range(300)], lambda *_: BacktestReport("", "", "", 0))
    assert past.step_ms(None) == milliseconds(step)
    assert past.step_ms("2h") == milliseconds("2h")
    assert Past([], past.run).step_ms("") == milliseconds("1m")


def test_a_plot_of_less_than_a_day_is_one(tmp_path: Path) -> None:
    events, labels = data.rows("phishing", "30s")
    write(tmp_path / "events.csv", events[:300])
    write(tmp_path / "labels.csv", labels[:300])
    given = ["--events", str(tmp_path / "events.csv"), "--labels", str(tmp_path / "labels.csv"), "--plot"]
    result = CliRunner().invoke(cli, ["backtest", PHISHING, *given])
    assert result.exit_code == 0, result.output
    assert result.output.count("ROCAUC so far") == 2, "the table and the plot"


def test_what_can_t_be_written_or_drawn_is_one_line_before_anything_runs(tmp_path: Path, monkeypatch: Any) -> None:
    given = files(tmp_path)
    result = CliRunner().invoke(cli, ["report", PHISHING, *given, "-o", str(tmp_path / "none" / "a.html")])
    assert isinstance(result.exception, SettingsError)
    assert "there is no folder" in str(result.exception)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = CliRunner().invoke(cli, ["report", PHISHING, *given, "-o", str(tmp_path / "a.html")])
    assert isinstance(result.exception, SettingsError)
    assert "pip install 'tidemill[plot]'" in str(result.exception)
