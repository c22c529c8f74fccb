"""The edge of the status service: which requests reach the routes at all.

A page of another site may make a browser send requests here: by DNS rebinding under its own host name, or across
origins. So the host must be one of ours, and what a browser says of the sender must not be another site. Programs send
no such headers, and are asked for their token by the routes.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tidemill.limits import STATUS_BODY_BYTES

#: Orchestrators ask these by the address of a pod; they show nothing of the pipeline's data.
PROBES = frozenset({"/livez", "/readyz"})
#: What a browser calls the sender of a request of our own page, or of somebody who typed the address.
OWN_SITES = ("same-origin", "none")
SAFE_METHODS = frozenset({"GET", "HEAD"})
MAX_SHOWN_CHARACTERS = 100
POLICY = (
    "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; "
    "object-src 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
#: A name, perhaps with the dot of its root, or an IPv6 address in brackets; perhaps a port.
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9_][a-z0-9_.-]*?)\.?)(?::[0-9]{1,5})?", re.ASCII | re.IGNORECASE)


def host_name(header: str) -> str | None:
    """Return the name or address in a Host header, without port, in one spelling; None where it is malformed."""
    match = _HOST.fullmatch(header)
    if match is None:
        return None
    in_brackets, name = match.groups()
    try:
        return str(ipaddress.ip_address(in_brackets or name))
    except ValueError:
        return None if in_brackets else name.lower()


class Hosts:
    """The host names that this service answers to.

    Those are `localhost`, addresses of this machine itself, the address that the connection came to, and `names`. No
    page can be loaded under an address that is not its server's own, so only names can be rebound.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = {"localhost", *(name.lower().rstrip(".") for name in names)}

    def trusts(self, name: str, local_address: str) -> bool:
        """Return whether a request for host `name` is for this service."""
        if name in self.names:
            return True
        try:
            address = ipaddress.ip_address(name)
            return address.is_loopback or address == ipaddress.ip_address(local_address)
        except ValueError:
            return False


class Edge:
    """Refuses what is too large, malformed, for another host, or sent by another site's page; counts it by reason."""

    def __init__(self, app: ASGIApp, hosts: Hosts, count_refused: Callable[[str], None]) -> None:
        self.app, self.hosts, self.count_refused = app, hosts, count_refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] == "websocket":  # no route has one
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if problem := self._problem(scope):
            status, reason, detail = problem
            self.count_refused(reason)
            answer = Response(json.dumps({"detail": detail}), status, HEADERS, "application/json")
            await answer(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                _add_headers(message, scope["path"])
            await send(message)

        await self.app(scope, receive, send_with_headers)

    def _problem(self, scope: Scope) -> tuple[int, str, str] | None:
        """Return status, reason and sentence where a request is refused."""
        headers = Headers(scope=scope)
        if (size := _body_bytes(headers)) > STATUS_BODY_BYTES.max:
            return 413, "body", f"{STATUS_BODY_BYTES.excess(size)}, or its length is not stated"
        if scope["path"] in PROBES and scope["method"] in SAFE_METHODS:
            return None
        hosts = headers.getlist("host")
        name = host_name(hosts[0]) if len(hosts) == 1 else None
        if name is None:
            return 400, "host", "exactly one Host header with a name or address, and perhaps a port, was expected"
        if not self.hosts.trusts(name, (scope.get("server") or ("",))[0]):
            shown = hosts[0][:MAX_SHOWN_CHARACTERS]
            detail = f"{shown!r} is no name of this service: ask it by localhost, or add this to TIDEMILL_STATUS_HOSTS"
            return 421, "host", detail
        if sender := _foreign_sender(scope, headers, hosts[0]):
            return 403, "origin", f"{sender} sent this request: open the page of this service itself"
        return None


def _foreign_sender(scope: Scope, headers: Headers, host: str) -> str:
    """Return what a browser says of the page that sent a request, where that is not a page of ours; else ''."""
    for origin in headers.getlist("origin"):
        if not _is_own(origin, host):
            return f"a page of {origin[:MAX_SHOWN_CHARACTERS]!r}"
    is_link = scope["method"] in SAFE_METHODS and headers.get("sec-fetch-mode") == "navigate"
    if not is_link and any(site not in OWN_SITES for site in headers.getlist("sec-fetch-site")):
        return "a page of another site"
    return ""


def _is_own(origin: str, host: str) -> bool:
    """Return whether an origin is the host that was asked. Schemes may differ: a proxy before us may speak TLS."""
    try:
        parts = urlsplit(origin)
        return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()
    except ValueError:
        return False


def _body_bytes(headers: Headers) -> int:
    """Return the length that a body declares. A body without one counts as too long."""
    if "chunked" in headers.get("transfer-encoding", "").lower():
        return STATUS_BODY_BYTES.max + 1
    length = headers.get("content-length", "0")
    return int(length) if length.isascii() and length.isdigit() and len(length) < 10 else STATUS_BODY_BYTES.max + 1


def _add_headers(message: MutableMapping[str, Any], path: str) -> None:
    headers = MutableHeaders(scope=message)
    headers.update(HEADERS)
    if path.startswith("/api/"):
        headers["Cache-Control"] = "no-store"
