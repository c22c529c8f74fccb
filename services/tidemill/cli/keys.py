"""`tidemill keys new`, `list` and `rotate`: the keys that signed records are signed and verified with."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import time
from pathlib import Path

import click

from tidemill.cli.shared import AS_JSON
from tidemill.durations import milliseconds, moment
from tidemill.errors import SettingsError

FOLDER = click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".tidemill/keys"),
    show_default=True,
    help="Where the keys are.",
)
SERVICES = ("learner", "gate", "status", "monitor")
OWNERS = (*SERVICES, "audit", "forget")


@click.group()
def keys() -> None:
    """Make, list and rotate the keys that records are signed with.

    Learner, gate, status and monitor each sign with a private key of their own. All others verify, with the public keys
    in public/verify.json, and can't sign.
    """


@keys.command()
@FOLDER
@click.argument("owner", type=click.Choice(["audit", "forget"]), required=False)
@click.option("--if-missing", is_flag=True, help="Leave a folder that has keys as it is.")
def new(folder: Path, owner: str | None, *, if_missing: bool) -> None:
    """Make the first keys: one for each service that signs.

    With `audit` or `forget`: the key that audits, or requests to forget, are signed with. No service needs it.
    """
    from tidemill import keys as keyring

    known = keyring.read_keys(folder)
    if known and owner and owner not in {key.name for key in known}:
        keyring.make_keys(folder, (owner,))
        _print(folder)
        return
    if known:
        if if_missing:
            return
        raise SettingsError(f"{folder} has keys already: replace them with `tidemill keys rotate --folder {folder}`")
    keyring.make_keys(folder, (*SERVICES, *((owner,) if owner else ())))
    _print(folder)
    click.echo(
        f"\nTIDEMILL_VERIFY_KEYS={folder / keyring.VERIFY_FILE} for every process; TIDEMILL_SIGNING_KEY={folder} for "
        f"those that sign, or the one file that is theirs"
    )


@keys.command("list")
@FOLDER
@AS_JSON
def list_(folder: Path, *, as_json: bool) -> None:
    """Print the public keys: what each may sign, until when."""
    _print(folder, as_json=as_json)


@keys.command()
@FOLDER
@click.argument("services", nargs=-1, type=click.Choice(OWNERS), metavar="[SERVICE|audit|forget]...")
@click.option(
    "--until", default="7d", show_default=True, metavar="DURATION|TIME", help="The old keys are accepted until then."
)
def rotate(folder: Path, services: tuple[str, ...], until: str) -> None:
    """Make new keys, for all services or some, and end the old.

    Both are valid until the old ones end. Processes that read the folder take up the new keys by themselves; others
    need the files. The first record that is signed with a new key vouches for all records before it in its chain.
    """
    from tidemill import keys as keyring

    if not keyring.read_keys(folder):
        raise SettingsError(f"{folder} has no keys: make the first ones with `tidemill keys new --folder {folder}`")
    keyring.make_keys(folder, services or SERVICES, until=_moment(until))
    _print(folder)


def _moment(text: str) -> int:
    with contextlib.suppress(ValueError):
        return int(time.time() * 1000) + milliseconds(text)
    with contextlib.suppress(ValueError):
        return moment(text)
    raise SettingsError(f"--until {text!r}: expected a duration, as 7d, or a time, as 2026-12-31T18:00Z")


def _print(folder: Path, *, as_json: bool = False) -> None:
    from tidemill import keys as keyring

    now, known = time.time(), keyring.read_keys(folder)
    if not known:
        raise SettingsError(f"{folder} has no keys: make some with `tidemill keys new --folder {folder}`")
    signing = {keyring.signing_id(folder, owner) for owner in OWNERS}
    listed = [key.as_dict() | {"signs": key.id in signing, "ended": key.is_over(now)} for key in known]
    if as_json:
        click.echo(json.dumps(listed, indent=2))
        return
    for key in known:
        until = "" if key.until is None else f"{dt.datetime.fromtimestamp(key.until / 1000, dt.UTC):%Y-%m-%d %H:%M:%S}"
        state = f"ended {until}" if key.is_over(now) else f"accepted until {until}" if until else "valid"
        signs = ", signs now" if key.id in signing else ""
        click.echo(f"{key.id}  {key.name:<8} {', '.join(key.kinds) or 'everything':<24} {state}{signs}")
