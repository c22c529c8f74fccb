"""`tidemill backtest`: a pipeline over history, in one process."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

import tidemill
from tidemill.cli.shared import AS_JSON, PIPELINE, print_report, progress
from tidemill.errors import SettingsError


@click.command()
@PIPELINE
@click.option("--events", "events_path", type=click.Path(path_type=Path), help="CSV, JSON lines or Parquet.")
@click.option("--labels", "labels_path", type=click.Path(path_type=Path), help="CSV, JSON lines or Parquet.")
@click.option("--archive", metavar="URL", help="Served vectors and their labels from an archive, instead of files.")
@click.option(
    "--model-delay",
    default=None,
    metavar="DURATION",
    help="Time a learned label takes to reach the scorer, as 5m. Default: none.",
)
@click.option(
    "--every", default="1d", show_default=True, metavar="DURATION", help="Event time between rows of metrics."
)
@AS_JSON
@click.option("--predictions", type=click.Path(path_type=Path), help="Also write every prediction, as JSON lines.")
def backtest(
    pipeline: str,
    events_path: Path | None,
    labels_path: Path | None,
    archive: str | None,
    model_delay: str | None,
    every: str,
    *,
    as_json: bool,
    predictions: Path | None,
) -> None:
    """Run a pipeline over history in one process.

    The report shows what production would have predicted and learned.
    """
    from tidemill.cli.text.reports import backtest_text
    from tidemill.durations import milliseconds
    from tidemill.offline import history
    from tidemill.offline.backtest import Backtest

    declared = tidemill.load(pipeline)
    try:
        delay, step = milliseconds(model_delay) if model_delay else 0, milliseconds(every)
    except ValueError as error:
        raise SettingsError(f"--model-delay or --every: {error}") from None
    run = Backtest(declared, model_delay_ms=delay, checkpoint_every_ms=step)
    if archive is not None and events_path is None and labels_path is None:
        questions, outcomes = history.archived(declared, archive)
        total, begin = len(questions), partial(run.replay, questions, outcomes)
    elif archive is None and events_path is not None and labels_path is not None:
        events, labels = history.read(events_path, declared.events), history.read(labels_path, declared.labels)
        total, begin = len(events), partial(run.run, events, labels)
    else:
        raise SettingsError("a backtest reads --events and --labels, or --archive: name the two files, or the archive")
    with history.prediction_writer(predictions) as write, progress("backtest", total) as advance:
        run.predictions = write
        report = begin(advance)
    print_report(report, backtest_text, as_json=as_json)
