"""`tidemill run`: one service of a pipeline."""

from __future__ import annotations

from typing import Any

import click

import tidemill
from tidemill import logs, settings
from tidemill.cli.shared import PIPELINE, with_settings
from tidemill.errors import SettingsError
from tidemill.wire.topics import ALL


class ServiceType(click.ParamType):
    """A service, or several that can run in one process, as `validator+featurizer+scorer`."""

    name = "service"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name. Fails where there is no such service, or these can't run together."""
        from tidemill.wire.services import check_chain

        names = value.split("+")
        if unknown := [name for name in names if name not in ALL]:
            self.fail(f"{unknown[0]!r} is not one of {', '.join(ALL)}", param, ctx)
        if len(names) > 1:
            try:
                check_chain(names)
            except SettingsError as error:
                self.fail(str(error), param, ctx)
        return value


@click.command()
@click.argument("service", type=ServiceType(), metavar="SERVICE[+SERVICE...]")
@PIPELINE
@click.option(
    "--model", help="Only for the learner: the model to train; by default the champion, in a chain all of them."
)
@with_settings(
    "brokers",
    "redis_url",
    "registry_url",
    "registry_seconds",
    "store_url",
    "delivery",
    "instance",
    "http_port",
    "max_delay_ms",
    "state_dir",
    "snapshot_seconds",
    "snapshot_examples",
    "archive_url",
    "archive_format",
    "archive_seconds",
    "fuse",
    "log_level",
)
def run(service: str, pipeline: str, model: str | None, **options: Any) -> None:
    """Run one service of a pipeline until SIGTERM or Ctrl-C.

    SERVICE is one of validator, featurizer, materializer, scorer, joiner, learner, gate, archiver, monitor, status,
    notifier, gateway.
    Neighbours such as validator+featurizer+scorer share one process and one transaction: that takes less time and CPU.
    """
    from tidemill.runtime import run as running
    from tidemill.runtime import worker

    chosen = settings.load(**options)
    logs.setup(service if model is None else f"{service}-{model}", chosen.log_level)
    if model is not None and "learner" not in service.split("+"):
        raise SettingsError(f"--model is an option of the learner, not of the {service}")
    declared = tidemill.load(pipeline)
    for name in service.split("+"):
        running.load(name)
    worker.become_worker()
    running.run(service, declared, chosen, model)
