"""`tidemill notify test`."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

import tidemill
from tidemill import settings
from tidemill.cli.shared import PIPELINE, with_settings
from tidemill.errors import SettingsError


@click.group()
def notify() -> None:
    """Try who is told of alerts and decisions."""


@notify.command()
@PIPELINE
@click.option("--to", "names", multiple=True, metavar="NAME", help="Only this receiver; may be repeated.")
@with_settings("notify")
def test(pipeline: str, names: tuple[str, ...], **options: Any) -> None:
    """Send each receiver a test, and print whether it was taken.

    It says that nothing has happened, is sent once, and signed as every notice is; its type is `test`. The exit
    code is 1 where one has not taken it.
    """
    from tidemill.watch.notifier.delivery import DeliveryError, sender
    from tidemill.watch.notifier.notices import Notices

    declared, receivers = tidemill.load(pipeline), settings.load(**options).receivers()
    if not receivers:
        raise SettingsError("setting notify: nobody is to be told; set TIDEMILL_NOTIFY to receivers, or a file of them")
    if unknown := [name for name in names if name not in receivers]:
        raise SettingsError(f"--to {unknown[0]}: no such receiver; expected one of {', '.join(receivers)}")
    senders = {name: sender(receivers[name]) for name in names or receivers}
    failed = False
    for name, send in senders.items():
        notice = Notices(declared, None).test(time.time())
        try:
            send(notice)
            click.echo(f"{name}: taken, {notice.id}")
        except DeliveryError as error:
            failed = True
            click.echo(f"{name}: not taken, {error}")
    sys.exit(failed)
