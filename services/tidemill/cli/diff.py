"""`tidemill diff`: what a change of a declaration does."""

from __future__ import annotations

import click

import tidemill
from tidemill.cli.shared import AS_JSON, PIPELINE, print_report


@click.command()
@PIPELINE
@click.option(
    "--against",
    default="git:HEAD",
    show_default=True,
    metavar="PIPELINE|git:REVISION",
    help="The declaration that runs now.",
)
@AS_JSON
def diff(pipeline: str, against: str, *, as_json: bool) -> None:
    """Say what a change of a declaration does to what runs.

    Prints each change, what services do with it when they start again, and what you have to do.
    """
    from tidemill.cli.text.declaration import diff_text
    from tidemill.offline.diff import diff as compare

    print_report(compare(pipeline, tidemill.load(pipeline), against), diff_text, as_json=as_json)
