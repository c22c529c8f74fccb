"""The page of a report: one HTML file without scripts, with everything in it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from tidemill.durations import approximate, minute
from tidemill.errors import printable
from tidemill.files import open_output
from tidemill.models.evidence import LOSSES
from tidemill.offline.backtest import BacktestReport
from tidemill.report.recording import Recording
from tidemill.watch.monitor.performance import WindowMetrics


def render(recording: Recording) -> str:
    """Return the page."""
    from tidemill.report import charts  # matplotlib takes half a second

    report, pipeline = recording.backtest, recording.pipeline
    environment = template_environment()
    images = {name: base64.b64encode(text.encode()).decode() for name, text in charts.pictures(recording).items()}
    return environment.get_template("page.html").render(
        r=recording,
        report=report,
        pipeline=pipeline,
        images=images,
        shown=charts.shown_models(recording),
        metrics=report.metric_names,
        main=report.main_metric,
        better=_better(recording),
        loss=LOSSES[pipeline.task][0] if pipeline.task in LOSSES else "",
        letters=sorted(report.dead_letters.items(), key=lambda item: -item[1]),
        delay_quantiles=_delay_quantiles(report),
    )


def template_environment() -> Environment:
    """Return what renders this package's pages."""
    environment = Environment(
        loader=PackageLoader("tidemill.report", "."),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        finalize=lambda value: printable(value, keeps="\n\t") if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"minute": minute, "figure": figure, "count": "{:,}".format, "span": approximate}
    return environment


def write(recording: Recording, path: Path) -> None:
    """Write the page to a file. Raises SettingsError where it can't be written."""
    page = render(recording).encode()
    with open_output(path) as out:
        out.write(page)


def figure(value: Any) -> str:
    """Return a metric's value with four digits after the point, or of large ones six in all."""
    if value is None:
        return ""
    return f"{value:z.4f}" if abs(value) < 1_000 else f"{value:,.6g}"


def _better(recording: Recording) -> dict[str, str]:
    """Return the best model by each metric."""
    is_bigger, values = WindowMetrics(recording.pipeline).bigger_is_better, recording.backtest.metrics
    best = {}
    for name in recording.backtest.metric_names:
        of = {model: by_name[name] for model, by_name in values.items() if name in by_name}
        if len(of) > 1:
            best[name] = (max if is_bigger[name] else min)(of, key=of.__getitem__)
    return best


def _delay_quantiles(report: BacktestReport) -> list[tuple[str, str]]:
    delays = report.label_delays
    return [(f"{p}%", approximate(ms)) for p, ms in delays.quantiles.items()] if delays else []
