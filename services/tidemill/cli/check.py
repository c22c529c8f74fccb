"""`tidemill check`: check a declaration, and print what it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import tidemill
from tidemill.cli.shared import AS_JSON, PIPELINE, print_report, progress, with_source

if TYPE_CHECKING:
    from tidemill.offline.source import FileSource


@click.command()
@PIPELINE
@with_source(kafka=False, archive=False, may_lack_labels=True)
@AS_JSON
def check(pipeline: str, source: FileSource | None, *, as_json: bool) -> None:
    """Check a declaration, and print what it runs.

    Prints the features of the vector, the views, rules, models and topics. With --events, prints instead what the files
    hold: types, missing values, times, delays of labels, what would be refused, and what to know before a backtest.
    """
    from tidemill.cli.text.declaration import pipeline_text
    from tidemill.offline.check import CheckReport
    from tidemill.offline.model_trial import check_in_other_process, check_models

    declared = tidemill.load(pipeline)
    check_models(declared)
    check_in_other_process(declared, pipeline)
    if source is not None:
        from tidemill.cli.text.files import files_text
        from tidemill.offline.file_check import check_files

        with progress("reading", None) as advance:
            report = check_files(declared, source, advance)
        print_report(report, files_text, as_json=as_json)
        if any(files.error for files in report.streams):
            raise SystemExit(1)
        return
    print_report(CheckReport(declared), lambda report: pipeline_text(report.pipeline), as_json=as_json)
