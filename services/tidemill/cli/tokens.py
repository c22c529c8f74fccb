"""`tidemill tokens new`."""

from __future__ import annotations

import click

from tidemill.errors import SettingsError
from tidemill.tokens import Permission, Role, new_token, parse_holders, role_name, token_hash

#: Roles at the gateway: each of them, and several.
_PERMISSIONS = tuple(role_name(Permission(several)) for several in range(1, 2 ** len(Permission)))


@click.group()
def tokens() -> None:
    """Make tokens for the status service, and keys for the gateway."""


@tokens.command()
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice([*(role.name.lower() for role in Role), *_PERMISSIONS]),
    default=Role.OPERATOR.name.lower(),
    show_default=True,
    help="viewer reads; operator also gives commands and acknowledges alerts; admin may do everything. "
    "At the gateway: produce sends, and has the predictions of what it sent; read reads any prediction, and features; "
    "command gives commands to the gate.",
)
@click.option("--personal", is_flag=True, help="It also shows the fields that are declared personal.")
@click.option("--forget", is_flag=True, help="It also asks for entities to be forgotten, at the status service.")
def new(name: str, role: str, *, personal: bool, forget: bool) -> None:
    """Make a token for NAME; print it, and its entry for the service.

    NAME is written into each decision and acknowledgement that the token is used for. The first line is for the
    holder, and is shown only now. The second is for the service, which keeps the hash alone: add it to the others.
    """
    if forget and role in _PERMISSIONS:
        raise SettingsError(f"--forget is for the status service, and {role} is a role at the gateway")
    token = new_token()
    entry = f"{name}:{role}{'+personal' * personal}{'+forget' * forget}:{token_hash(token)}"
    try:
        parse_holders(entry, Permission if role in _PERMISSIONS else Role)
    except ValueError:
        raise SettingsError(
            f"NAME {name!r}: expected 1 to 64 letters, digits and ._@-, the first a letter or digit; not gate, monitor "
            f"or declaration"
        ) from None
    one, several = ("GATEWAY_KEY", "GATEWAY_KEYS") if role in _PERMISSIONS else ("STATUS_TOKEN", "STATUS_TOKENS")
    click.echo(f"TIDEMILL_{one}={token}\nTIDEMILL_{several}={entry}")
