"""`tidemill down`: a pipeline is retired."""

from __future__ import annotations

from typing import Any

import click

import tidemill
from tidemill import settings
from tidemill.cli.shared import AS_JSON, PIPELINE, keys_to_verify, print_report, with_settings
from tidemill.errors import SettingsError


@click.command()
@PIPELINE
@click.option("--delete", is_flag=True, help="Delete it all, for good. Asks twice.")
@click.option("--confirm", metavar="NAME", help="With --delete: the pipeline's name, instead of being asked.")
@AS_JSON
@with_settings("brokers", "redis_url", "store_url")
def down(pipeline: str, *, delete: bool, confirm: str | None, as_json: bool, **options: Any) -> None:
    """Say what a pipeline has, and delete it all.

    Prints its topics, consumer groups, keys in Redis and artifacts; with --delete they are deleted, once no service of
    it runs. Topics of producers that were there before it, and the archive, stay. Artifacts are those of manifests that
    TIDEMILL_VERIFY_KEYS verifies. A run that breaks off is done again from the beginning.
    """
    from tidemill.cli.text.retirement import retirement_text
    from tidemill.runtime import down as retiring
    from tidemill.runtime import run as running

    chosen, declared = settings.load(**options), tidemill.load(pipeline)
    broker = running.broker_of(chosen)
    broker.connect()
    registry = running.registry_of(declared, chosen) if keys_to_verify(chosen) is not None else None
    plan = retiring.plan(declared, broker, registry, chosen)
    if confirm is not None and confirm != declared.name:
        raise SettingsError(f"--confirm {confirm!r}: expected the pipeline's name, {declared.name!r}")
    if not delete:
        print_report(plan, retirement_text, as_json=as_json)
        return
    plan.check_stopped()
    if confirm is None:
        click.echo(retirement_text(plan), nl=False)
        if click.prompt("all of this is deleted for good. The pipeline's name", default="", show_default=False) != (
            declared.name
        ):
            raise SettingsError("that is another name: nothing was deleted")
        click.confirm(f"really delete {declared.name}, {sum(plan.topics.values()):,} records?", abort=True)
    retiring.retire(plan, broker, registry, chosen, lambda what: None if as_json else click.echo(f"deleted {what}"))
    if as_json:
        print_report(plan, retirement_text, as_json=True)
