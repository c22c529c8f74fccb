"""What the commands share: the pipeline's argument, options for settings, a time as people write it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from tidemill import settings
from tidemill.durations import moment
from tidemill.errors import SettingsError

PIPELINE = click.argument("pipeline")


def with_settings(*names: str) -> Callable[[Any], Any]:
    """Add an option for each of these settings; unset ones are left to TIDEMILL_* and the defaults."""

    def decorate(command: Any) -> Any:
        for name in reversed(names):
            field = settings.Settings.model_fields[name]
            text = f"{field.description} [TIDEMILL_{name.upper()}]"
            command = click.option(f"--{name.replace('_', '-')}", name, default=None, help=text)(command)
        return command

    return decorate


def moment_of(option: str, text: str) -> int:
    """Return a time that was given as `option`, in ms. Raises SettingsError that names the option."""
    try:
        return moment(text)
    except ValueError as error:
        raise SettingsError(f"{option} {error}") from None
