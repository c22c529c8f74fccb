"""`tidemill check`: is a declaration fine, and what will it run."""

from __future__ import annotations

import json

import click

import tidemill
from tidemill.cli.shared import PIPELINE


@click.command()
@PIPELINE
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(pipeline: str, *, as_json: bool) -> None:
    """Check a declaration, and print what it runs.

    Prints the features of the vector, the views, rules, models and topics.
    """
    from tidemill.cli import text as describe

    declared = tidemill.load(pipeline)
    describe.check_models(declared)
    click.echo(json.dumps(describe.as_json(declared), indent=2) if as_json else describe.as_text(declared), nl=as_json)
