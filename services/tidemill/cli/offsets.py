"""`tidemill offsets`: from where each service of a pipeline goes on."""

from __future__ import annotations

from typing import Any

import click

import tidemill
from tidemill import settings
from tidemill.cli.shared import AS_JSON, PIPELINE, connected, print_report, with_settings
from tidemill.errors import SettingsError
from tidemill.wire import topics


@click.group()
def offsets() -> None:
    """List and decide from where services go on."""


@offsets.command("list")
@PIPELINE
@AS_JSON
@with_settings("brokers")
def list_(pipeline: str, *, as_json: bool, **options: Any) -> None:
    """List committed offsets, the groups' own progress, and the logs."""
    from tidemill.cli.text.offsets import offsets_text
    from tidemill.offline.offsets import all_offsets

    declared, chosen = tidemill.load(pipeline), settings.load(**options)
    broker = connected(declared, chosen, topics.PROGRESS)
    print_report(list(all_offsets(broker, declared)), offsets_text, as_json=as_json)


@offsets.command("set")
@PIPELINE
@click.argument("service", type=click.Choice(topics.KEEPING_PROGRESS))
@click.option("--to", required=True, metavar="PLACE", help="begin, end, progress, committed, or an offset.")
@click.option("--topic", help="Only this topic, as events.valid.")
@click.option("--partition", type=click.IntRange(min=0), help="Only this partition.")
@click.option("--model", help="Only for the learner: the model that it trains, by default the champion.")
@click.option("--yes", is_flag=True, help="Do it; without it only what would be done is printed.")
@with_settings("brokers")
def set_(
    pipeline: str,
    service: str,
    *,
    to: str,
    topic: str | None,
    partition: int | None,
    model: str | None,
    yes: bool,
    **options: Any,
) -> None:
    """Decide from where a service goes on; it must not be running."""
    from tidemill.cli.text.offsets import decisions_text
    from tidemill.offline.offsets import carry_out, decide, group_offsets, matching, service_of

    declared, chosen = tidemill.load(pipeline), settings.load(**options)
    wanted = service_of(declared, service, model)
    broker = connected(declared, chosen, topics.PROGRESS, *topics.consumes(service))
    decisions = decide(broker, matching(group_offsets(broker, wanted), topic, partition), to)
    click.echo(decisions_text(decisions), nl=False)
    if not yes:
        raise SettingsError("nothing was set; add --yes to do it")
    carry_out(broker, wanted, decisions)
    click.echo(f"set; start the {service} again")
