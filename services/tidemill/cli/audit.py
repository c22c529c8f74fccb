"""`tidemill audit`: who served and why over a period, whether the log proves it, and how good the answers were."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import tidemill
from tidemill import settings
from tidemill.cli.shared import connected, moment_of, progress, with_settings
from tidemill.durations import minute
from tidemill.errors import SettingsError
from tidemill.wire import topics

if TYPE_CHECKING:
    from tidemill.keys import Keyring


@click.command()
@click.argument("pipeline", required=False)
@click.option("--from", "begin", metavar="TIME", help="ISO 8601, as 2026-11-01; without a zone UTC.")
@click.option("--to", "end", metavar="TIME", help="Not included; default: now.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="The folder to write.")
@click.option(
    "--sample", type=click.IntRange(0, 100_000), default=100, show_default=True, help="Predictions to make again."
)
@click.option("--seed", type=int, help="The same seed and the same log give the same sample; default: a random one.")
@click.option("--rebuild", is_flag=True, help="Rebuild the models of the sample, instead of loading artifacts.")
@click.option("--unsigned", is_flag=True, help="Write it without a signature, where there is no key for it.")
@click.option("--force", is_flag=True, help="Write over an audit in that folder.")
@click.option(
    "--earlier",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="An earlier audit of the same pipeline: what was signed last then must still be in the log.",
)
@click.option(
    "--verify",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Instead: say whether the audit in this folder is as it was written.",
)
@with_settings("brokers", "store_url")
def audit(
    pipeline: str | None,
    begin: str | None,
    end: str | None,
    out: Path | None,
    sample: int,
    seed: int | None,
    earlier: Path | None,
    verify: Path | None,
    *,
    rebuild: bool,
    unsigned: bool,
    force: bool,
    **options: str | None,
) -> None:
    """Write who served when, why, and on what evidence; signed.

    It is a page, and the same as JSON. Every signed record is verified, and a sample of predictions is made again. Exit
    code 1 where something is not in order, or with --verify where the audit was changed. The JSON is signed with the
    key of `tidemill keys new audit`.
    """
    chosen = settings.load(**options)
    if verify is not None:
        content = _verified(verify, chosen)
        period = f"{minute(content['from'])} to {minute(content['to'])} UTC"
        made, key = minute(content["made_at"]), content["signature"]["key_id"]
        click.echo(f"audit of {content['pipeline']}, {period}, made {made} UTC, signed with key {key}")
        click.echo("it is as it was written")
        return
    if pipeline is None or begin is None or out is None:
        raise SettingsError("an audit needs PIPELINE, --from and --out; --verify FOLDER looks at one that was written")
    if importlib.util.find_spec("jinja2") is None:
        raise SettingsError("the page of an audit needs jinja2: pip install 'tidemill[plot]'")
    import time

    from tidemill.offline import audit_files
    from tidemill.offline.audit import Audit, AuditRequest, is_in_order, summary_of
    from tidemill.report import audit_page
    from tidemill.runtime import run as running

    until = moment_of("--to", end) if end else int(time.time() * 1000)
    before = {} if earlier is None else _verified(earlier, chosen)
    request = AuditRequest(moment_of("--from", begin), until, sample, seed, rebuild, before)
    audit_files.check_out(out, force=force)
    keys = None if unsigned else _signing_keys(chosen)
    declared = tidemill.load(pipeline)
    if before and before["pipeline"] != declared.name:
        raise SettingsError(f"--earlier {earlier} is of pipeline {before['pipeline']!r}, and this is {declared.name!r}")
    registry = running.registry_of(declared, chosen)
    broker = connected(declared, chosen, topics.PROMOTIONS, topics.MODELS, topics.COMMANDS, topics.ALERTS)
    content = Audit(declared, broker, registry, request).run(progress)
    page = audit_page.render(content, keys.signs_with if keys else "")
    audit_files.write(out, content, page, keys)
    for finding in content["findings"]:
        click.echo(f"{finding['level']}: {finding['text']}")
    for sentence in summary_of(content):
        click.echo(sentence)
    click.echo(f"written: {out / audit_files.PAGE_FILE}, {out / audit_files.DATA_FILE}")
    if not is_in_order(content):
        sys.exit(1)


def _signing_keys(chosen: settings.Settings) -> Keyring:
    try:
        return chosen.keyring("audit")
    except SettingsError as error:
        raise SettingsError(
            f"{error}; `tidemill keys new audit` makes the key that audits are signed with, --unsigned does without"
        ) from None


def _verified(folder: Path, chosen: settings.Settings) -> dict[str, Any]:
    """Return an audit that is as it was written. Raises SettingsError for any other."""
    from tidemill.offline import audit_files

    content, problems = audit_files.verify(folder, chosen.keyring())
    if problems:
        raise SettingsError(f"{folder}: {'; '.join(problems)}")
    return content
