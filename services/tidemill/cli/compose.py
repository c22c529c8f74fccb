"""`tidemill compose`: a pipeline's services for Docker Compose."""

from __future__ import annotations

import click

import tidemill
from tidemill.cli.shared import PIPELINE


@click.command()
@PIPELINE
@click.option("--http-tls", is_flag=True, help="Serve HTTP by TLS, with the certificate in ./tls.")
def compose(pipeline: str, *, http_tls: bool) -> None:
    """Print a pipeline's docker-compose.yml.

    Put it beside the pipeline's file, whose folder its containers read; a module (package.flights) is in an image of
    your own. It has Kafka and Redis, a container for each service and for each model's learner, and the status page and
    the gateway, open to this machine alone. `tidemill acl --format compose` prints a second file, for a Kafka and a
    Redis of yours.
    """
    from tidemill.offline.scaffold import files

    click.echo(files.compose(tidemill.load(pipeline), pipeline, http_tls=http_tls), nl=False)
