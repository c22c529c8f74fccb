"""Delivery: one attempt to tell a receiver, bounded in time and in what is read of its answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from tidemill.errors import SettingsError
from tidemill.limits import NOTICE_ANSWER_BYTES
from tidemill.watch.notifier.notices import Notice
from tidemill.webhooks import Receiver, signed_headers

#: How long one attempt may take in all, whatever the receiver does.
ATTEMPT_SECONDS = 10.0
#: Of an answer's body so much is read, for what it says.
MAX_SHOWN_CHARACTERS = 200
#: Answers to what is in a notice: it would be answered so tomorrow as well.
REFUSED_CODES = (400, 413, 415, 422)

#: Tells a receiver of a notice. Raises DeliveryError where it has not taken it.
Send = Callable[[Notice], None]


class DeliveryError(Exception):
    """A receiver has not taken a notice. `is_final`: it refuses the notice's content."""

    def __init__(self, why: str, *, is_final: bool = False) -> None:
        super().__init__(why)
        self.is_final = is_final


def sender(receiver: Receiver) -> Send:
    """Return what tells a receiver. Raises SettingsError where its URL is none, or a package is missing."""
    for name in ("httpx", "httpcore"):  # their lines have the address, which may be the secret
        logging.getLogger(name).setLevel(logging.WARNING)
    return _webhook(receiver) if receiver.is_webhook else _by_apprise(receiver)


def _webhook(receiver: Receiver) -> Send:
    try:
        import httpx
    except ModuleNotFoundError as error:
        raise SettingsError("webhooks need httpx: pip install 'tidemill[notify]'") from error

    certificates = httpx.create_ssl_context()  # read once: that takes as long as all else

    async def post(notice: Notice) -> None:
        body = notice.body
        headers = signed_headers(notice.id, body, receiver.secrets, time.time())
        headers |= {"content-type": "application/json", "user-agent": "tidemill"}
        async with (
            asyncio.timeout(ATTEMPT_SECONDS),
            httpx.AsyncClient(verify=certificates, timeout=ATTEMPT_SECONDS, follow_redirects=False) as client,
            client.stream("POST", receiver.url, content=body, headers=headers) as answer,
        ):
            if not answer.is_success:
                why = f"it answered {answer.status_code}{await _said(answer)}"
                raise DeliveryError(why, is_final=answer.status_code in REFUSED_CODES)

    def send(notice: Notice) -> None:
        try:
            asyncio.run(post(notice))
        except TimeoutError:
            raise DeliveryError(f"no answer in {ATTEMPT_SECONDS:.0f} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, UnicodeError) as error:
            raise DeliveryError(f"{type(error).__name__}: {str(error).replace(receiver.url, 'its url')}") from None

    return send


async def _said(answer: Any) -> str:
    """Return the beginning of an answer's body as it came; nothing is unpacked."""
    read = b""
    async for part in answer.aiter_raw():
        read += part[: NOTICE_ANSWER_BYTES.max - len(read)]
        if len(read) >= NOTICE_ANSWER_BYTES.max:
            break
    text = " ".join(read.decode(errors="replace").split())[:MAX_SHOWN_CHARACTERS]
    return f": {text}" if text.isprintable() and text else ""


def _by_apprise(receiver: Receiver) -> Send:
    try:
        import apprise
    except ModuleNotFoundError as error:
        raise SettingsError(f"receiver {receiver.name} needs apprise: pip install 'tidemill[notify]'") from error
    logging.getLogger("apprise").setLevel(logging.CRITICAL)
    service = apprise.Apprise()
    if not service.add(receiver.url):
        raise SettingsError(f"notify: the url of receiver {receiver.name} is none that apprise knows, as slack://...")

    def send(notice: Notice) -> None:
        try:
            is_sent = service.notify(title=notice.title, body=notice.text)
        except Exception as error:  # a plug-in may raise anything, with the address in it
            raise DeliveryError(f"apprise raised {type(error).__name__}") from None
        if not is_sent:
            raise DeliveryError("apprise could not send it")

    return send
