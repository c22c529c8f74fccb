"""`tidemill topics`: the topics of a pipeline, printed, compared, created or changed."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import click

import tidemill
from tidemill.cli.shared import PIPELINE, with_settings
from tidemill.errors import BrokerError, SettingsError

if TYPE_CHECKING:
    from tidemill.declare.pipeline import Pipeline
    from tidemill.stream.kafka.broker import KafkaBroker


@click.command()
@PIPELINE
@click.option("--create", is_flag=True, help="Create those that are missing.")
@click.option("--apply", is_flag=True, help="Create those that are missing, and give the others the declared settings.")
@click.option("--dry-run", is_flag=True, help="With --create or --apply: print what would be done.")
@click.option("--yes", is_flag=True, help="With --apply: do not ask where Kafka would delete records.")
@with_settings("brokers", "replication")
def topics(pipeline: str, *, create: bool, apply: bool, dry_run: bool, yes: bool, **options: Any) -> None:
    """Print, compare, create or change a pipeline's topics.

    --apply changes retention, cleanup policy and limits, never the number of partitions: `tidemill grow` does that.
    Topics of producers that were there before the pipeline stay as they are.
    """
    from tidemill import settings
    from tidemill.cli.text.declaration import topics_text
    from tidemill.cli.text.doctor import differences_text
    from tidemill.runtime import run as running
    from tidemill.runtime.doctor import differences

    if (dry_run and not (create or apply)) or (yes and not apply):
        raise SettingsError("--dry-run goes with --create or --apply, and --yes with --apply")
    chosen, declared = settings.load(**options), tidemill.load(pipeline)
    broker = running.broker_of(chosen)
    if not (create or apply):
        click.echo(topics_text(declared), nl=False)
        try:
            broker.connect()
            click.echo(differences_text(broker.servers, differences(declared, broker)), nl=False)
        except BrokerError as error:
            click.echo(f"how the cluster's topics differ is not known: {error}", err=True)
        return
    broker.connect()
    _create(declared, broker, chosen.replication, dry_run=dry_run)
    if apply:
        _apply(declared, broker, dry_run=dry_run, yes=yes)


def _create(declared: Pipeline, broker: KafkaBroker, replication: int, *, dry_run: bool) -> None:
    from tidemill.cli.text.doctor import differences_text
    from tidemill.runtime import run as running
    from tidemill.runtime.doctor import differences

    table = running.topic_table(declared)
    if dry_run:
        existing = broker.settings([name for _, name, _ in table]).topics
        missing = [name for _, name, _ in table if name not in existing]
        click.echo(f"would create {', '.join(missing)}" if missing else "all topics exist already")
        return
    created = broker.create(table, replication)
    click.echo(f"created {', '.join(created)}" if created else "all topics exist already")
    if len(created) == len(table):
        return
    with contextlib.suppress(BrokerError):  # who creates topics may not read their settings
        if findings := differences(declared, broker):
            click.echo(differences_text(broker.servers, findings), nl=False)


def _apply(declared: Pipeline, broker: KafkaBroker, *, dry_run: bool, yes: bool) -> None:
    from tidemill.cli.text.declaration import setting_changes_text
    from tidemill.cli.text.shared import count_of
    from tidemill.runtime import topic_settings

    changes = topic_settings.plan(declared, broker)
    click.echo(setting_changes_text(changes), nl=False)
    if dry_run or not changes:
        return
    if any(change.deletes for change in changes) and not yes:
        click.confirm("Kafka then deletes records, for good. Really?", abort=True)
    topic_settings.apply(broker, changes)
    click.echo(f"changed {count_of(len(changes), 'setting')}")
