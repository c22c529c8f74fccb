"""`tidemill backtest` and `tidemill report`: a pipeline over history, without Kafka, as text and as a page."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import click

import tidemill
from tidemill.cli.shared import AS_JSON, PIPELINE, print_report, progress, with_source
from tidemill.errors import SettingsError

if TYPE_CHECKING:
    from tidemill.declare.pipeline import Pipeline
    from tidemill.offline.backtest import BacktestReport
    from tidemill.offline.source import ArchiveSource, FileSource

MODEL_DELAY = click.option(
    "--model-delay",
    default=None,
    metavar="DURATION",
    help="Time a learned label takes to reach the scorer, as 5m. Default: none.",
)
PAGE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@PIPELINE
@with_source(kafka=False)
@MODEL_DELAY
@click.option(
    "--every",
    metavar="DURATION",
    help="Event time between rows of metrics. Default: a day, less where that would be fewer than a dozen rows.",
)
@AS_JSON
@click.option(
    "--predictions", type=click.Path(path_type=Path), help="Also write every prediction: .parquet, or JSON lines."
)
@click.option("--report", "page", type=PAGE, help="Also write a page with pictures, as HTML.")
@click.option("--plot", is_flag=True, help="Also draw how the models did over time, in the terminal.")
@click.option(
    "--against",
    metavar="PIPELINE|git:REVISION",
    help="Compare with another declaration, as of git's main branch: git:main.",
)
@click.option(
    "--segment",
    "segments",
    multiple=True,
    metavar="FIELD",
    help="With --against: a category of the vector; may be repeated. Default: Monitor(segments=...).",
)
@click.option("--markdown", type=PAGE, help="With --against: also write the comparison for a pull request.")
@click.option("--fail-if-worse", is_flag=True, help="With --against: exit with 1 where it is worse in any line.")
def backtest(
    pipeline: str,
    source: ArchiveSource | FileSource | None,
    model_delay: str | None,
    every: str | None,
    *,
    as_json: bool,
    predictions: Path | None,
    page: Path | None,
    plot: bool,
    against: str | None,
    segments: tuple[str, ...],
    markdown: Path | None,
    fail_if_worse: bool,
) -> None:
    """Run a pipeline over history, without Kafka.

    The report shows what production would have predicted and learned. Where there are two cores, one process makes
    vectors, and in another models learn. With --against, the other declaration runs beside it, and what each would have
    served is compared question by question.
    """
    from tidemill.cli.text.reports import backtest_plot, backtest_text

    if plot and as_json:
        raise SettingsError("--plot draws in a terminal, and --json is for programs: give one of them")
    if plot:
        _need("plotext")
    if against is not None:
        if predictions or page or plot or every:
            raise SettingsError("--against prints a comparison: give no --predictions, --report, --plot or --every")
        _against(pipeline, source, model_delay, against, segments, markdown, as_json=as_json, fails=fail_if_worse)
        return
    if segments or markdown or fail_if_worse:
        raise SettingsError("--segment, --markdown and --fail-if-worse go with --against: name what to compare with")
    run = _run(tidemill.load(pipeline), source, model_delay, every, predictions, page)
    print_report(run, backtest_text, as_json=as_json)
    if plot:
        click.echo(backtest_plot(run), nl=False)


@click.command()
@PIPELINE
@with_source(kafka=False)
@MODEL_DELAY
@click.option("--output", "-o", type=PAGE, help="The page. Default: PIPELINE-report.html.")
def report(
    pipeline: str, source: ArchiveSource | FileSource | None, model_delay: str | None, output: Path | None
) -> None:
    """Write a backtest as one HTML page, with pictures.

    It shows how good each model was over time and by segment, calibration, scores, what the delay of labels costs,
    drift with its alerts, which features count, and dead letters. It is one file, which also prints.
    """
    declared = tidemill.load(pipeline)
    page = output or Path(f"{declared.name}-report.html")
    result = _run(declared, source, model_delay, "1d", None, page)
    for text in result.warnings:
        click.echo(f"WARNING: {text}", err=True)
    click.echo(page)


def _run(
    declared: Pipeline,
    source: ArchiveSource | FileSource | None,
    model_delay: str | None,
    every: str | None,
    predictions: Path | None,
    page: Path | None,
) -> BacktestReport:
    """Run the backtest, and write what is asked for beside its report."""
    from tidemill.durations import milliseconds
    from tidemill.offline import history
    from tidemill.offline.backtest import Backtest
    from tidemill.offline.source import past_of

    delay, source = _delay(model_delay), _given(source)
    if every:
        try:
            milliseconds(every)
        except ValueError as error:
            raise SettingsError(f"--every: {error}") from None
    if page is not None:
        _need("jinja2", "matplotlib")
        if not page.absolute().parent.is_dir():
            raise SettingsError(f"{page}: there is no folder {page.absolute().parent}: make it, or name another file")
    with progress("reading", None) as advance:
        past = past_of(source, declared, advance)
    if page is not None:
        from tidemill.report.recording import Recorder, with_window

        declared = with_window(declared, past.times)
    run = Backtest(declared, model_delay_ms=delay, checkpoint_every_ms=past.step_ms(every))
    recorder = Recorder(run) if page is not None else None
    with history.prediction_writer(predictions, declared) as write, progress("backtest", len(past.times)) as advance:
        run.predictions = write
        result = past.run(run, advance)
    if page is not None and recorder is not None:
        from tidemill.report import page as pages

        with progress("labels at once", result.predictions) as advance:
            recording = recorder.finish(result, advance)
        pages.write(recording, page)
    return result


def _against(
    pipeline: str,
    source: ArchiveSource | FileSource | None,
    model_delay: str | None,
    against: str,
    segments: tuple[str, ...],
    markdown: Path | None,
    *,
    as_json: bool,
    fails: bool,
) -> None:
    """Compare with another declaration; exit with 1 where that is asked for and this one is worse."""
    from tidemill.cli.text.models import against_markdown, against_text
    from tidemill.offline.against import compare_with

    with progress("backtests", None) as advance:
        report = compare_with(
            pipeline,
            tidemill.load(pipeline),
            against,
            _given(source),
            segments=tuple(dict.fromkeys(segments)),
            model_delay_ms=_delay(model_delay),
            progress=advance,
        )
    print_report(report, against_text, as_json=as_json)
    if markdown is not None:
        from tidemill.files import open_output

        with open_output(markdown) as out:
            out.write(against_markdown(report).encode())
    if fails and report.is_worse:
        raise SystemExit(1)


def _given(source: ArchiveSource | FileSource | None) -> ArchiveSource | FileSource:
    if source is None:
        raise SettingsError(
            "a backtest runs over --events and --labels, or over an --archive: name the two, or the one"
        )
    return source


def _delay(model_delay: str | None) -> int:
    from tidemill.durations import milliseconds

    try:
        return milliseconds(model_delay) if model_delay else 0
    except ValueError as error:
        raise SettingsError(f"--model-delay: {error}") from None


def _need(*modules: str) -> None:
    """Raise SettingsError where a module that draws is not installed."""
    for name in modules:
        if importlib.util.find_spec(name) is None:
            raise SettingsError(f"drawing needs {name}: pip install 'tidemill[plot]'")
