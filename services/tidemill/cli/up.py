"""`tidemill up`: a whole pipeline on this machine."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from tidemill import settings
from tidemill.cli.shared import PIPELINE, with_settings
from tidemill.wire.topics import ALL

_SERVICE = click.Choice(ALL)


@click.command()
@PIPELINE
@click.option("--only", multiple=True, type=_SERVICE, help="Start only this service; may be repeated.")
@click.option("--without", multiple=True, type=_SERVICE, help="Start all services but this one; may be repeated.")
@click.option(
    "--processes",
    type=click.Choice(["each", "1"]),
    default="each",
    show_default=True,
    help="A process for each service, or 1 for all: that takes the least memory, and ends when one service fails.",
)
@click.option("--apart", is_flag=True, help="A process for each service, also where several share one; see `run`.")
@click.option(
    "--replay",
    nargs=2,
    type=click.Path(path_type=Path),
    metavar="EVENTS LABELS",
    help="Once all is ready, send these files' rows at their times: CSV, JSON or Parquet, folders, or patterns.",
)
@click.option(
    "--speed",
    type=click.FloatRange(min=0, min_open=True),
    default=3600.0,
    show_default=True,
    help="With --replay: event time per time; 1 is as it was, 3600 an hour a second.",
)
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Port of the page.")
@with_settings(
    "brokers",
    "redis_url",
    "store_url",
    "archive_url",
    "verify_keys",
    "delivery",
    "snapshot_seconds",
    "snapshot_examples",
    "log_level",
)
def up(
    pipeline: str,
    only: tuple[str, ...],
    without: tuple[str, ...],
    processes: str,
    apart: bool,
    replay: tuple[Path, Path] | None,
    speed: float,
    port: int,
    **options: Any,
) -> None:
    """Run a whole pipeline on this machine, until Ctrl-C.

    A broker and a Redis are started where none is named; what they hold ends with them.
    """
    import tidemill
    from tidemill.local.console import Console
    from tidemill.local.up import One, Options, Up

    chosen = settings.load(**options)
    declared = tidemill.load(pipeline)
    messages = None
    if replay:
        from tidemill.local.replay import Reading, from_files

        messages = Reading(partial(from_files, declared, *replay))
    kind = One if processes == "1" else Up
    local = kind(pipeline, declared, chosen, Options(only, without, port, apart), Console(), messages, speed)
    sys.exit(local.run())
