"""`tidemill run`: one service of a pipeline."""

from __future__ import annotations

from typing import Any

import click

import tidemill
from tidemill import logs, settings
from tidemill.cli.shared import PIPELINE, with_settings
from tidemill.errors import SettingsError
from tidemill.wire.topics import SERVICES, WATCHING


@click.command()
@click.argument("service", type=click.Choice((*SERVICES, *WATCHING)))
@PIPELINE
@click.option("--model", help="Only for the learner: the model to train, by default the champion.")
@with_settings(
    "brokers",
    "redis_url",
    "registry_url",
    "registry_seconds",
    "store_url",
    "delivery",
    "instance",
    "http_port",
    "interval_ms",
    "max_batch",
    "snapshot_seconds",
    "snapshot_examples",
    "archive_url",
    "archive_seconds",
    "fuse",
    "log_level",
)
def run(service: str, pipeline: str, model: str | None, **options: Any) -> None:
    """Run one service of a pipeline until SIGTERM or Ctrl-C."""
    from tidemill.runtime import run as running
    from tidemill.runtime import worker

    chosen = settings.load(**options)
    logs.setup(service if model is None else f"{service}-{model}", chosen.log_level)
    if model is not None and service != "learner":
        raise SettingsError(f"--model is an option of the learner, not of the {service}")
    declared = tidemill.load(pipeline)
    running.load(service)
    worker.become_worker()
    running.run(service, declared, chosen, model)
