"""Who may ask for what: a route's role, the token that a request has, and the back-off of those that guess.

A right token is accepted at once, whatever else came from the same address: nobody can lock an operator out. Wrong
ones can't be guessed at 128 bits; the back-off keeps them from filling logs, and shows them in the metrics.
"""

from __future__ import annotations

import ipaddress
import logging
import math
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from tidemill.limits import STATUS_GUESSERS
from tidemill.tokens import Holder, Needed, Permission, Role, Tokens, role_name

log = logging.getLogger(__name__)

#: Wrong tokens that a client may send before it is told to wait.
FREE_FAILURES = 5
MAX_WAIT_SECONDS = 60.0

#: A request that was refused for who sent it.
REFUSED = (401, 403, 429)
#: What is noted of a request whose sender did not wait for the answer.
GONE = 499
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,100}", re.ASCII)

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


class Backoff:
    """How long a client has to wait after wrong tokens: longer with each, in bounded memory."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._clients: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._clients)

    def failed(self, address: str) -> float:
        """Take note of a wrong token; returns the s that its sender has to wait from now on, 0 for the first ones.

        What comes while a client should wait is not counted, so that the wait ends for those who share an address.
        """
        client, now = _network(address), self.clock()
        failures, until = self._clients.get(client, (0, 0.0))
        if now < until:
            return until - now
        failures += 1
        wait = min(2.0 ** (failures - FREE_FAILURES - 1), MAX_WAIT_SECONDS) if failures > FREE_FAILURES else 0.0
        self._clients[client] = failures, now + wait
        self._clients.move_to_end(client)
        if len(self._clients) > STATUS_GUESSERS.max:
            self._clients.popitem(last=False)
        log.warning("wrong token", extra={"client": client, "count": failures})
        return wait


def _network(address: str) -> str:
    """Return what counts as one client: an IPv4 address, or the 64 bits of IPv6 that one host has to itself."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:100]
    return address if parsed.version == 4 else str(ipaddress.ip_network((parsed, 64), strict=False))


class Access:
    """Decides who may use a route.

    Parameters
    ----------
    reading_is_free
        Whether a viewer needs no token.
    count_refused
        Called with the reason of each refusal.
    setting
        Where the service has its tokens from.
    on_access
        Called with what was read or commanded, once it is answered; see schemas/tidemill/access.v1.avsc.
    """

    def __init__(
        self,
        tokens: Tokens,
        *,
        reading_is_free: bool,
        count_refused: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        setting: str = "TIDEMILL_STATUS_TOKENS",
        on_access: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:
        self.tokens, self.reading_is_free, self.count_refused = tokens, reading_is_free, count_refused
        self._setting, self.on_access = setting, on_access
        self.backoff = Backoff(clock)

    def identify(self, needed: Needed, authorizations: Sequence[str], client: str) -> Holder | None:
        """Return the holder of a request's token; None where it has none and needs none. Raises HTTPException.

        What the holder may do is not looked at: see `require`.
        """
        if not authorizations and needed is Role.VIEWER and self.reading_is_free:
            return None
        if not self.tokens:
            raise self._refusal(403, "no_tokens", f"nothing can be changed here: no token is set; set {self._setting}")
        if not authorizations:
            raise self._refusal(401, "no_token", "a token is needed: Authorization: Bearer ...")
        scheme, _, token = authorizations[0].partition(" ")
        is_one = len(authorizations) == 1 and scheme.lower() == "bearer"
        holder = self.tokens.holder(token.strip(" ")) if is_one else None
        if holder is None:
            raise self._wrong_token(client)
        return holder

    def require(self, holder: Holder, needed: Needed) -> None:
        """Raise HTTPException where a holder may not do what needs this role."""
        if not holder.may(needed):
            raise self._refusal(403, "role", f"{holder.name} is {holder.role_name}, and this needs {role_name(needed)}")

    def _wrong_token(self, client: str) -> HTTPException:
        wait = math.ceil(self.backoff.failed(client))
        if wait:
            detail = f"too many wrong tokens from this address: try again in {wait} s, or with the right one at once"
            return self._refusal(429, "wrong_token", detail, {"Retry-After": str(wait)})
        return self._refusal(401, "wrong_token", "one token that is known here was expected: Authorization: Bearer ...")

    def _refusal(self, status: int, reason: str, detail: str, headers: dict[str, str] | None = None) -> HTTPException:
        self.count_refused(reason)
        return HTTPException(status, detail, headers or ({"WWW-Authenticate": "Bearer"} if status == 401 else None))


def needs(role: Needed) -> Callable[[Endpoint], Endpoint]:
    """Declare who may use a route: decorates its function, below the router's own decorator."""

    def declare(endpoint: Endpoint) -> Endpoint:
        endpoint.needed_role = role  # type: ignore[attr-defined]
        return endpoint

    return declare


class GuardedRoute(APIRoute):
    """A route that asks for the role that its function declares before it reads a request's body."""

    @property
    def needed_role(self) -> Needed:
        """Return who may use it. Raises TypeError where that is not declared."""
        role: Needed | None = getattr(self.endpoint, "needed_role", None)
        if role is None:
            raise TypeError(f"route {self.path}: declare who may use it by @needs(Role...)")
        return role

    def get_route_handler(self) -> Callable[[Request], Any]:
        return self.guard(super().get_route_handler())

    def guard(self, handle: Callable[[Request], Any]) -> Callable[[Request], Any]:
        """Return what answers a request as `handle` does, once it has the role."""
        needed = self.needed_role

        async def guarded(request: Request) -> Response:
            access: Access = request.app.state.parts.access
            client = request.client.host if request.client else ""
            authorizations, id_ = request.headers.getlist("authorization"), request_id(request)
            request.state.holder, code = None, GONE
            try:
                request.state.holder = holder = access.identify(needed, authorizations, client)
                if holder:
                    access.require(holder, needed)
                response: Response = await handle(request)
                code = response.status_code
                response.headers["X-Request-Id"] = id_
                return response
            except Exception as error:
                code = status_of(error)
                if isinstance(error, HTTPException):
                    error.headers = {"X-Request-Id": id_, **(error.headers or {})}
                raise
            finally:
                # What is sent is on the topics of events and labels; whoever has no token at all is nobody.
                is_sent = needed is Permission.PRODUCE and code not in REFUSED
                if not is_sent and (code not in REFUSED or authorizations):
                    access.on_access(_accessed(request, self.path, id_, code))

        return guarded


def request_id(request: Request) -> str:
    """Return the id that a request came with, or that was made for it."""
    known: str | None = getattr(request.state, "request_id", None)
    if known is None:
        given = request.headers.get("x-request-id", "")
        known = request.state.request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
    return known


def sees_personal(request: Request) -> bool:
    """Whether who sent a request may see personal fields."""
    holder: Holder | None = request.state.holder
    return holder is not None and holder.sees_personal


def as_shown(request: Request, known: Any, mask: Callable[[Any], Any]) -> Any:
    """Return what was found as who asks may see it; `mask` hides what is personal."""
    return known if sees_personal(request) else mask(known)


def status_of(error: Exception) -> int:
    """Return the status with which an error is answered."""
    if isinstance(error, HTTPException):
        return error.status_code
    return 422 if isinstance(error, RequestValidationError) else getattr(error, "http_status", 500)


def _accessed(request: Request, route: str, id_: str, code: int) -> dict[str, Any]:
    holder: Holder | None = request.state.holder
    asked = [*map(str, request.path_params.values()), *([request.url.query] if request.url.query else ())]
    return {
        "time": int(time.time() * 1000),
        "request_id": id_,
        "by": holder.name if holder else "",
        "role": holder.role_name if holder else "",
        "method": request.method,
        "route": route,
        "subject": getattr(request.state, "subject", " ".join(asked)),
        "status": code,
    }
