"""`tidemill topics`: the topics of a pipeline, printed or created."""

from __future__ import annotations

from typing import Any

import click

import tidemill
from tidemill.cli.shared import PIPELINE, with_settings


@click.command()
@PIPELINE
@click.option("--create", is_flag=True, help="Create those that are missing.")
@with_settings("brokers", "replication")
def topics(pipeline: str, *, create: bool, **options: Any) -> None:
    """Print a pipeline's topics, or create the missing ones."""
    from tidemill import settings
    from tidemill.cli.text.declaration import topics_text
    from tidemill.runtime import run as running

    chosen, declared = settings.load(**options), tidemill.load(pipeline)
    if not create:
        click.echo(topics_text(declared), nl=False)
        return
    broker = running.broker_of(chosen)
    broker.connect()
    created = broker.create(running.topic_table(declared), chosen.replication)
    click.echo(f"created {', '.join(created)}" if created else "all topics exist already")
