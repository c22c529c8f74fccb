"""Commands of applications for the gate: the status service signs them, and the gateway passes them on to it."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

import msgspec

from tidemill.errors import SettingsError, UnknownOutcome

#: As long as commands of `tidemill models` wait: longer than the status service tries to reach Kafka.
ANSWER_SECONDS = 30.0
#: What takes away what a model has learned is left to people.
LEFT_TO_PEOPLE = ("reset",)
#: Refusals of the gateway itself: its token, its role, the host name that it asks.
NOT_THE_CLIENTS = (401, 403, 421)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the token is for the service that the settings name, and no other."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Commands:
    """Asks the status service.

    Parameters
    ----------
    url, token
        Of the status service; without a token no command is given here.
    context
        What it is known by over https; by default whom this machine trusts.
    """

    def __init__(self, url: str, token: str, context: ssl.SSLContext | None = None) -> None:
        self.url, self.token = url.rstrip("/"), token
        self._open = urllib.request.build_opener(_NoRedirect, urllib.request.HTTPSHandler(context=context)).open

    def send(self, command: dict[str, Any], by: str) -> tuple[int, bytes]:
        """Send a command of a key's holder; returns the status service's answer. Raises as `ask`."""
        if isinstance(command.get("why"), str):  # who holds the token is in the decision already
            command = {**command, "why": f"{by}: {command['why']}"}
        return self._ask("/api/commands", msgspec.json.encode(command))

    def decision(self, command_id: str) -> tuple[int, bytes]:
        """Return the status service's answer about a command. Raises as `ask`."""
        return self._ask(f"/api/commands/{urllib.parse.quote(command_id, safe='')}")

    def _ask(self, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Return status and body.

        Raises SettingsError where it can't be asked, UnknownOutcome where it may have heard.
        """
        if not self.token:
            raise SettingsError("no commands are given here: the gateway has no TIDEMILL_STATUS_TOKEN")
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, body, headers)  # noqa: S310  the setting allows http(s) alone
        try:
            with self._open(request, timeout=ANSWER_SECONDS) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            if error.code in NOT_THE_CLIENTS:
                raise SettingsError(
                    f"the status service refuses the gateway's TIDEMILL_STATUS_TOKEN ({error.code})"
                ) from None
            return error.code, error.read() or json.dumps({"detail": str(error.reason)}).encode()
        except (OSError, http.client.HTTPException) as error:
            if isinstance(reason := getattr(error, "reason", None), ConnectionRefusedError | socket.gaierror):
                raise SettingsError(f"no status service at {self.url}: {reason}") from None
            raise UnknownOutcome(
                f"the status service has not answered ({error}): send it again with the same id"
            ) from None
