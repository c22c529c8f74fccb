"""`tidemill grow`: a pipeline moves to new topics with another number of partitions."""

from __future__ import annotations

from typing import Any

import click

import tidemill
from tidemill import logs, settings
from tidemill.cli.shared import PIPELINE, with_settings


@click.command()
@PIPELINE
@click.argument("new")
@click.option("--finish", is_flag=True, help="End when all that the old raw topics hold is validated and copied.")
@with_settings("brokers", "replication", "instance", "log_level")
def grow(pipeline: str, new: str, *, finish: bool, **options: Any) -> None:
    """Move a pipeline to new topics with other partitions.

    Copies the valid events and labels of PIPELINE to the raw topics of NEW, each exactly once, and follows them. NEW is
    the same pipeline, declared with another name and number of partitions. Its topics are created. The old pipeline
    goes on serving until the producers write to the new topics.
    """
    from tidemill.runtime import grow as growing

    chosen = settings.load(**options, delivery="exactly_once")
    logs.setup("grow", chosen.log_level)
    copied = growing.run(tidemill.load(pipeline), tidemill.load(new), chosen, finish=finish)
    click.echo(f"copied {copied:,} records")
