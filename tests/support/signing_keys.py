"""Keys for tests, and the settings that name them."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from tidemill.keys import Keyring, private_text


def settings_of(keys: Keyring) -> dict[str, str]:
    """Return the environment variables that give a process these keys."""
    public = json.dumps([key.as_dict() for key in keys.keys.values()])
    return {"TIDEMILL_VERIFY_KEYS": public} | (
        {"TIDEMILL_SIGNING_KEY": private_text(keys._signing[0])} if keys.can_sign else {}
    )


def set_keys(monkeypatch: pytest.MonkeyPatch, keys: Keyring) -> None:
    """Give this process these keys."""
    for name, value in settings_of(keys).items():
        monkeypatch.setenv(name, value)


def forged(content: Any) -> Any:
    """Return a signed content with another signature."""
    return dataclasses.replace(content, signature=dataclasses.replace(content.signature, value="00" * 64))


#: One key that may sign everything.
KEY = Keyring.generate()
#: The settings that name it.
SETTINGS = settings_of(KEY)
