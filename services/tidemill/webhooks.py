"""Webhooks as Standard Webhooks has them: who receives them, how they are signed, and how a receiver verifies them.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tidemill.errors import TidemillError

#: What begins a secret's text; the rest is base64.
SECRET_PREFIX = "whsec_"  # noqa: S105  no secret
MIN_SECRET_BYTES, MAX_SECRET_BYTES = 24, 64
#: How far the time of an attempt may be from a receiver's clock: what is older may be somebody's repetition.
TOLERANCE_SECONDS = 300.0
#: What receivers can be told of.
SUBJECTS = ("alert", "decision", "circuit_breaker")
#: How far each receiver has come is kept beside committed offsets, where there is little room.
MAX_RECEIVERS = 20

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_ENTRY = {"url", "secret", "about"}


class WebhookError(TidemillError):
    """What came is not signed with the secret, too old, or no notice."""


@dataclass(frozen=True)
class Receiver:
    """Who is told. `secrets` sign what goes over http(s); other URLs are apprise's, and have none."""

    name: str
    url: str = field(repr=False)
    secrets: tuple[bytes, ...] = field(default=(), repr=False)
    about: tuple[str, ...] = SUBJECTS

    @property
    def is_webhook(self) -> bool:
        """Whether it is told by a signed request, and not by apprise."""
        return urlsplit(self.url).scheme in ("http", "https")

    def wants(self, kind: str) -> bool:
        """Whether it is told of notices of this kind, as `alert.opened`."""
        return kind in self.about or kind.partition(".")[0] in self.about


def read_receivers(text: str) -> dict[str, Receiver]:
    """Return the receivers in JSON, or in the file that `text` names. Raises ValueError, without what was in it."""
    if text and not text.lstrip().startswith("{"):
        try:
            text = Path(text).read_text()
        except (OSError, ValueError):  # without what it was: it may be a secret
            raise ValueError("neither JSON nor a file that can be read") from None
    try:
        entries = json.loads(text or "{}")
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, dict):
        raise ValueError("not a JSON object of receivers by name")
    if len(entries) > MAX_RECEIVERS:
        raise ValueError(f"{len(entries)} receivers where {MAX_RECEIVERS} are allowed")
    return {name: _receiver(name, entry) for name, entry in entries.items()}


def _receiver(name: str, entry: Any) -> Receiver:
    if not _NAME.fullmatch(name):
        raise ValueError("a receiver's name is not 1 to 32 small letters, digits and _-")
    if not isinstance(entry, dict) or not {"url"} <= entry.keys() <= _ENTRY:
        raise ValueError(f"receiver {name} is no object with url, secret and about, or has other fields")
    url, about = entry["url"], entry.get("about", list(SUBJECTS))
    if not isinstance(about, list) or not about or not all(str(one).partition(".")[0] in SUBJECTS for one in about):
        raise ValueError(f"receiver {name}: about is no list of {', '.join(SUBJECTS)}, or of one kind as alert.opened")
    try:
        parts = urlsplit(url)
        is_address = bool(parts.scheme and (parts.netloc or parts.path))
        _ = parts.port if parts.scheme in ("http", "https") else None  # raises where it is no number
    except (ValueError, TypeError, AttributeError):
        is_address = False
    if not is_address:
        raise ValueError(
            f"receiver {name}: its url is neither http(s)://host/path nor one of apprise's, as slack://..."
        )
    secret = entry.get("secret", "")
    if parts.scheme not in ("http", "https"):
        if secret:
            raise ValueError(f"receiver {name} has a secret, and what apprise sends is not signed: leave it out")
        return Receiver(name, url, (), tuple(about))
    if not parts.hostname:
        raise ValueError(f"receiver {name}: its url names no host")
    try:
        secrets = tuple(secret_bytes(one) for one in secret.split())
    except (ValueError, AttributeError):
        secrets = ()
    if not secrets:
        raise ValueError(
            f"receiver {name}: expected a secret, {SECRET_PREFIX} and {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} bytes "
            f'in base64: make one by echo "{SECRET_PREFIX}$(openssl rand -base64 32)"'
        )
    return Receiver(name, url, secrets, tuple(about))


def secret_bytes(text: str) -> bytes:
    """Return the key in a secret's text. Raises ValueError, without the text."""
    try:
        key = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if not MIN_SECRET_BYTES <= len(key) <= MAX_SECRET_BYTES:
        raise ValueError(f"no secret of {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} bytes in base64")
    return key


def signed_headers(id_: str, body: bytes, secrets: Sequence[bytes], now: float) -> dict[str, str]:
    """Return the headers of one attempt at `now`, in s; several secrets sign while one takes another's place."""
    sent = str(int(now))
    signatures = " ".join(f"v1,{_signature(id_, sent, body, secret)}" for secret in secrets)
    return {"webhook-id": id_, "webhook-timestamp": sent, "webhook-signature": signatures}


def _signature(id_: str, sent: str, body: bytes, secret: bytes) -> str:
    message = f"{id_}.{sent}.".encode() + body
    return base64.b64encode(hmac.digest(secret, message, hashlib.sha256)).decode()


def verify(
    headers: Mapping[str, str],
    body: bytes,
    secret: str,
    *,
    tolerance: float = TOLERANCE_SECONDS,
    now: float | None = None,
) -> dict[str, Any]:
    """Return the notice in a webhook that came; its `id` is the same however often it is sent.

    Parameters
    ----------
    headers, body
        Of the request, the body as it came: parsed and written again, it would have another signature.
    secret
        The receiver's, as it is set; several, divided by blanks, while one takes another's place.
    tolerance
        How far the attempt's time may be from `now`, in s.
    now
        Unix time, in s; by default of this machine's clock.

    Raises
    ------
    WebhookError
        Answer 401 then, and believe nothing of it.
    ValueError
        The secret is none.

    Examples
    --------
    >>> secret = "whsec_" + "c2VjcmV0LW9mLTI0LWJ5dGVzLWFuZC1tb3Jl"
    >>> body = b'{"id": "flights-alerts-0-17-18f", "type": "alert.opened"}'
    >>> headers = signed_headers("flights-alerts-0-17-18f", body, [secret_bytes(secret)], now=1000.0)
    >>> verify(headers, body, secret, now=1010.0)["type"]
    'alert.opened'
    >>> verify(headers, body + b" ", secret, now=1010.0)
    Traceback (most recent call last):
    ...
    tidemill.webhooks.WebhookError: no signature of the webhook is by this secret
    """
    secrets = [secret_bytes(one) for one in secret.split()]
    given = {name.lower(): value for name, value in headers.items()}
    id_, sent = given.get("webhook-id", ""), given.get("webhook-timestamp", "")
    if not id_ or not re.fullmatch(r"[0-9]{1,12}", sent, re.ASCII):
        raise WebhookError("the webhook has no webhook-id, or no webhook-timestamp in seconds")
    signatures = [one.removeprefix("v1,") for one in given.get("webhook-signature", "").split() if one[:3] == "v1,"]
    expected = [_signature(id_, sent, body, one) for one in secrets]
    if not any(hmac.compare_digest(a.encode(), b.encode()) for a in signatures for b in expected):
        raise WebhookError("no signature of the webhook is by this secret")
    if abs((time.time() if now is None else now) - int(sent)) > tolerance:
        raise WebhookError(f"the webhook was sent more than {tolerance:.0f} s from now, by this clock")
    try:
        notice = json.loads(body)
    except (ValueError, RecursionError):
        notice = None
    if not isinstance(notice, dict) or notice.get("id") != id_:
        raise WebhookError("the webhook's body is no JSON object with its id")
    return notice
