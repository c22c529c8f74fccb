"""`tidemill backup` and `tidemill restore`: a pipeline as files, and from files again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import tidemill
from tidemill import settings
from tidemill.cli.shared import AS_JSON, PIPELINE, keys_to_verify, print_report, with_settings

FOLDER = click.argument("folder", type=click.Path(path_type=Path, file_okay=False))


@click.command()
@PIPELINE
@FOLDER
@click.option("--dry-run", is_flag=True, help="Print what there is to copy, and copy nothing.")
@AS_JSON
@with_settings("brokers", "redis_url", "store_url")
def backup(pipeline: str, folder: Path, *, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Copy a pipeline, with its offsets, to a folder.

    That is its log, what its groups have committed, its features in Redis, its artifacts and public keys. Services have
    to stand still until the cut is made, which is printed, and may run again while the logs are copied; producers go
    on. Artifacts are those of manifests that TIDEMILL_VERIFY_KEYS verifies. Private keys are not copied.
    """
    from tidemill.cli.text.backup import backup_text
    from tidemill.runtime import backup as backing
    from tidemill.runtime import run as running

    chosen, declared = settings.load(**options), tidemill.load(pipeline)
    broker = running.broker_of(chosen)
    broker.connect()
    registry = running.registry_of(declared, chosen) if keys_to_verify(chosen) is not None else None
    if dry_run:
        print_report(backing.plan(declared, broker, registry, chosen), backup_text, as_json=as_json)
        return
    made = backing.back_up(declared, broker, registry, chosen, folder, lambda what: click.echo(what, err=as_json))
    if as_json:
        print_report(made, backup_text, as_json=True)


@click.command()
@PIPELINE
@FOLDER
@click.option("--dry-run", is_flag=True, help="Print what the backup has and whether it can be restored here.")
@AS_JSON
@with_settings("brokers", "redis_url", "store_url", "replication")
def restore(pipeline: str, folder: Path, *, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Make a pipeline again from a backup, where it has nothing.

    Every record has the offset that it had, so offsets, versions and replays are those of before. Kafka must have no
    record of the pipeline, and no service of it may run. Restore before anybody produces.
    """
    from tidemill.cli.text.backup import backup_text
    from tidemill.runtime import backup as backing
    from tidemill.runtime import run as running

    made = backing.read(folder)
    chosen, declared = settings.load(**options), tidemill.load(pipeline)
    broker = running.broker_of(chosen)
    broker.connect()
    if dry_run:
        print_report(made, backup_text, as_json=as_json)
        backing.check_restorable(made, declared, broker)
        return
    backing.put_back(made, declared, broker, chosen, folder, lambda what: click.echo(what, err=as_json))
    if as_json:
        print_report(made, backup_text, as_json=True)
