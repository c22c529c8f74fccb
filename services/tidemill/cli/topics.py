"""`tidemill topics`: the topics of a pipeline, printed, compared or created."""

from __future__ import annotations

import contextlib
from typing import Any

import click

import tidemill
from tidemill.cli.shared import PIPELINE, with_settings
from tidemill.errors import BrokerError


@click.command()
@PIPELINE
@click.option("--create", is_flag=True, help="Create those that are missing.")
@with_settings("brokers", "replication")
def topics(pipeline: str, *, create: bool, **options: Any) -> None:
    """Print, compare or create a pipeline's topics."""
    from tidemill import settings
    from tidemill.cli.text.declaration import topics_text
    from tidemill.cli.text.doctor import differences_text
    from tidemill.runtime import run as running
    from tidemill.runtime.doctor import differences

    chosen, declared = settings.load(**options), tidemill.load(pipeline)
    broker = running.broker_of(chosen)
    if not create:
        click.echo(topics_text(declared), nl=False)
        try:
            broker.connect()
            click.echo(differences_text(broker.servers, differences(declared, broker)), nl=False)
        except BrokerError as error:
            click.echo(f"how the cluster's topics differ is not known: {error}", err=True)
        return
    broker.connect()
    created = broker.create(running.topic_table(declared), chosen.replication)
    click.echo(f"created {', '.join(created)}" if created else "all topics exist already")
    if len(created) == len(running.topic_table(declared)):
        return
    with contextlib.suppress(BrokerError):  # who creates topics may not read their settings
        if findings := differences(declared, broker):
            click.echo(differences_text(broker.servers, findings), nl=False)
