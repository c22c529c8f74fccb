"""`tidemill check`: check a declaration, and print what it runs."""

from __future__ import annotations

import click

import tidemill
from tidemill.cli.shared import AS_JSON, PIPELINE, print_report


@click.command()
@PIPELINE
@AS_JSON
def check(pipeline: str, *, as_json: bool) -> None:
    """Check a declaration, and print what it runs.

    Prints the features of the vector, the views, rules, models and topics.
    """
    from tidemill.cli.text.declaration import pipeline_text
    from tidemill.offline.check import CheckReport
    from tidemill.offline.model_trial import check_models

    declared = tidemill.load(pipeline)
    check_models(declared)
    print_report(CheckReport(declared), lambda report: pipeline_text(report.pipeline), as_json=as_json)
