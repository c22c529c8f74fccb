"""Faust's credentials, from librdkafka's properties for every other client."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

import faust
from aiokafka.abc import AbstractTokenProvider

from tidemill.errors import BrokerError, SettingsError, described

PASSWORDS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
TOKEN_SECONDS = 10.0


class _Tokens(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka has no types
    """Tokens of OAUTHBEARER by a client's id and secret (OIDC's client credentials), as librdkafka asks for them."""

    def __init__(self, given: Mapping[str, str]) -> None:
        name = "sasl.oauthbearer."
        self._url = given[f"{name}token.endpoint.url"]
        client = f"{given.get(f'{name}client.id', '')}:{given.get(f'{name}client.secret', '')}"
        self._basic = base64.b64encode(client.encode()).decode()
        self._form = {"grant_type": "client_credentials"}
        if scope := given.get(f"{name}scope"):
            self._form["scope"] = scope

    async def token(self) -> str:
        return await asyncio.get_running_loop().run_in_executor(None, self._fetch)

    def _fetch(self) -> str:
        form = urllib.parse.urlencode(self._form).encode()
        request = urllib.request.Request(self._url, form, {"Authorization": f"Basic {self._basic}"})  # noqa: S310  by settings
        try:
            with urllib.request.urlopen(request, timeout=TOKEN_SECONDS) as answer:  # noqa: S310
                return str(json.load(answer)["access_token"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise BrokerError(
                f"no token for Kafka from {self._url} ({described(error)}): set TIDEMILL_KAFKA_TOKEN_URL"
            ) from None


def credentials(kafka: Mapping[str, Any]) -> Any:
    """Return Faust's credentials for librdkafka's security properties; None without any.

    Raises SettingsError where Faust's client can't do what they ask for.
    """
    given = {name: str(value) for name, value in kafka.items()}
    protocol = given.get("security.protocol", "plaintext").upper()
    context = None
    if protocol in ("SSL", "SASL_SSL"):
        context = ssl.create_default_context(cafile=given.get("ssl.ca.location"))
        if "ssl.certificate.location" in given:
            password = given.get("ssl.key.password", "")
            context.load_cert_chain(given["ssl.certificate.location"], given.get("ssl.key.location"), password)
    if protocol == "SSL":
        return faust.SSLCredentials(context)
    if protocol not in ("SASL_PLAINTEXT", "SASL_SSL"):
        return None
    mechanism = given.get("sasl.mechanism", given.get("sasl.mechanisms", "PLAIN")).upper()
    if mechanism == "OAUTHBEARER" and "sasl.oauthbearer.token.endpoint.url" in given:
        return faust.OAuthCredentials(oauth_cb=_Tokens(given), ssl_context=context)
    if mechanism not in PASSWORDS:
        raise SettingsError(
            f"setting kafka: the monitor's client can't do sasl.mechanism {mechanism!r}; expected "
            f"{', '.join(PASSWORDS)}, or OAUTHBEARER with sasl.oauthbearer.token.endpoint.url"
        )
    return faust.SASLCredentials(
        username=given.get("sasl.username"),
        password=given.get("sasl.password"),
        mechanism=mechanism,
        ssl_context=context,
    )
