"""`tidemill features`: read views, and fill those that were declared later."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import click

import tidemill
from tidemill import settings
from tidemill.cli.shared import AS_JSON, PIPELINE, moment_of, print_report, progress, with_settings
from tidemill.errors import StoreError


@click.group()
def features() -> None:
    """Read online features, and fill views that were declared later."""


@features.command()
@PIPELINE
@click.argument("entity")
@click.argument("entity_id", metavar="ID")
@click.option("--at", metavar="TIME", help="Event time, ISO 8601, or `now`. Default: the entity's own latest event.")
@AS_JSON
@with_settings("redis_url")
def get(pipeline: str, entity: str, entity_id: str, at: str | None, *, as_json: bool, **options: Any) -> None:
    """Print the features of one entity.

    ENTITY is an event field that views are keyed by, as dest; ID is its value, as BOS.
    """
    from tidemill.cli.text.reports import known_text
    from tidemill.features.store import Store, now

    chosen, declared = settings.load(**options), tidemill.load(pipeline)
    time = None if at is None else now() if at == "now" else moment_of("--at", at)
    known = Store(declared, chosen.redis_url.get_secret_value()).get(entity, entity_id, time)
    if all(view.event_time is None for view in known):
        raise StoreError(f"no view of {declared.name!r} has seen {entity} {entity_id!r}")
    print_report(known, known_text, as_json=as_json)


@features.command()
@PIPELINE
@click.option(
    "--view", "views", multiple=True, help="Only this view; may be repeated. Default: all views of the materializer."
)
@with_settings("brokers")
def backfill(pipeline: str, views: tuple[str, ...], **options: Any) -> None:
    """Fill views from the log. Deploy the declaration first."""
    _fill(pipeline, views, None, **options)


@features.command()
@PIPELINE
@click.option(
    "--events", "events_path", type=click.Path(path_type=Path), required=True, help="CSV, JSON lines or Parquet."
)
@click.option(
    "--labels", "labels_path", type=click.Path(path_type=Path), required=True, help="CSV, JSON lines or Parquet."
)
@click.option(
    "--view", "views", multiple=True, help="Only this view; may be repeated. Default: all views of the materializer."
)
@with_settings("brokers")
def materialize(pipeline: str, views: tuple[str, ...], events_path: Path, labels_path: Path, **options: Any) -> None:
    """Fill views from files, with history older than the log."""
    _fill(pipeline, views, (events_path, labels_path), **options)


def _fill(pipeline: str, views: tuple[str, ...], files: tuple[Path, Path] | None, **options: Any) -> None:
    from tidemill.offline import history
    from tidemill.offline.backfill import Backfill, routes_of
    from tidemill.runtime import run as running

    chosen, declared = settings.load(**options), tidemill.load(pipeline)
    routes = routes_of(declared, views)
    broker = running.broker_of(chosen)
    broker.connect()
    running.check_topics(declared, broker, tuple(name for _, name, _ in running.topic_table(declared)))
    filling = Backfill(declared, broker, routes)
    streams = (declared.events, declared.labels)
    with contextlib.ExitStack() as held:
        events, labels = (
            filling.rows(held) if files is None else [history.read(*of) for of in zip(files, streams, strict=True)]
        )
        filling.run(events, labels, held.enter_context(progress("history", None)))
    for source, entity in routes:
        sent, existing = filling.told[source, entity], filling.there[source, entity]
        click.echo(f"{entity} from {source}: {sent:,} updates sent, {existing:,} existed already")
