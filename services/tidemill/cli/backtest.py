"""`tidemill backtest`: a pipeline over history, in one process."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

import tidemill
from tidemill.cli.shared import AS_JSON, PIPELINE, print_report, progress, with_source
from tidemill.errors import SettingsError

if TYPE_CHECKING:
    from tidemill.offline.source import ArchiveSource, FileSource


@click.command()
@PIPELINE
@with_source(kafka=False)
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
    source: ArchiveSource | FileSource | None,
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
    from tidemill.offline.source import ArchiveSource

    declared = tidemill.load(pipeline)
    try:
        delay, step = milliseconds(model_delay) if model_delay else 0, milliseconds(every)
    except ValueError as error:
        raise SettingsError(f"--model-delay or --every: {error}") from None
    run = Backtest(declared, model_delay_ms=delay, checkpoint_every_ms=step)
    if source is None:
        raise SettingsError(
            "a backtest runs over --events and --labels, or over an --archive: name the two, or the one"
        )
    if isinstance(source, ArchiveSource):
        vectors, known_labels = source.vectors_and_labels(declared)
        total, start = len(vectors), partial(run.replay, vectors, known_labels)
    else:
        events, labels = source.rows(declared)
        total, start = len(events), partial(run.run, events, labels)
    with history.prediction_writer(predictions) as write, progress("backtest", total) as advance:
        run.predictions = write
        report = start(advance)
    print_report(report, backtest_text, as_json=as_json)
