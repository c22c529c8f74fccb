"""`tidemill features`: read views, and fill those that were declared later."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import click

import tidemill
from tidemill import settings
from tidemill.cli.shared import (
    AS_JSON,
    PIPELINE,
    SHOW_PERSONAL,
    connected,
    moment_of,
    print_report,
    progress,
    with_settings,
    with_source,
)
from tidemill.errors import StoreError

if TYPE_CHECKING:
    from tidemill.offline.source import FileSource


@click.group()
def features() -> None:
    """Read online features, and fill views that were declared later."""


@features.command()
@PIPELINE
@click.argument("entity")
@click.argument("entity_id", metavar="ID")
@click.option("--at", metavar="TIME", help="Event time, ISO 8601, or `now`. Default: the entity's own latest event.")
@SHOW_PERSONAL
@AS_JSON
@with_settings("redis_url", "brokers")
def get(
    pipeline: str,
    entity: str,
    entity_id: str,
    at: str | None,
    *,
    show_personal: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Print the features of one entity.

    ENTITY is an event field that views are keyed by, as dest; ID is its value, as BOS.
    """
    from tidemill.cli.text.reports import known_text
    from tidemill.features.store import Store, now
    from tidemill.wire.personal import Mask

    chosen, declared = settings.load(**options), tidemill.load(pipeline)
    time = None if at is None else now() if at == "now" else moment_of("--at", at)
    known = Store(declared, chosen.redis_address()).get(entity, entity_id, time)
    if all(view.event_time is None for view in known):
        raise StoreError(f"no view of {declared.name!r} has seen {entity} {entity_id!r}")
    mask = Mask(declared)
    shown = known if show_personal else [view.masked(mask.vector) for view in known]
    print_report(shown, known_text, as_json=as_json)


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
@with_source(kafka=False, archive=False, required=True)
@click.option(
    "--view", "views", multiple=True, help="Only this view; may be repeated. Default: all views of the materializer."
)
@with_settings("brokers")
def materialize(pipeline: str, views: tuple[str, ...], source: FileSource, **options: Any) -> None:
    """Fill views from files, with history older than the log."""
    _fill(pipeline, views, source, **options)


def _fill(pipeline: str, views: tuple[str, ...], source: FileSource | None, **options: Any) -> None:
    from tidemill.offline.backfill import Backfill, routes_of
    from tidemill.wire import topics

    chosen, declared = settings.load(**options), tidemill.load(pipeline)
    routes = routes_of(declared, views)
    filling = Backfill(declared, connected(declared, chosen, *topics.TOPICS), routes)
    with contextlib.ExitStack() as stack:
        advance = stack.enter_context(progress("history", None))
        events, labels = filling.rows(stack, advance) if source is None else source.rows(declared, advance)
        warnings = filling.run(events, labels, advance)
    for text in warnings:
        click.echo(f"WARNING: {text}", err=True)
    for route in routes:
        origin, entity = route
        written, present = filling.written[route], filling.present[route]
        click.echo(f"{entity} from {origin}: {written:,} updates written, {present:,} were there already")
