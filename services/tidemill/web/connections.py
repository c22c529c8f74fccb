"""The connections of an HTTP service: so many at once, and so long to send a request and to take its answer.

uvicorn closes a connection that idles between two requests, but one that never sends its first, or a byte a second, or
never reads, stays for ever; and at its own limit of connections it answers probes as well with 503.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from tidemill.limits import STATUS_CONNECTIONS, STATUS_HEAD_BYTES, STATUS_SECONDS

CHECK_SECONDS = 1.0


class Connection(H11Protocol):
    """One connection. Of too many, a new one takes the place of the one that has kept us waiting longest."""

    def __init__(self, *arguments: Any, max_connections: int = 0, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._max_connections = max_connections

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if len(self.connections) >= (self._max_connections or STATUS_CONNECTIONS.max):
            waiting = [one for one in self.connections if isinstance(one, Connection) and one.is_waiting]
            oldest = min(waiting, key=lambda one: one.waiting_since, default=None)
            if oldest is None:
                transport.abort()
            else:
                oldest.transport.abort()
                self.connections.discard(oldest)
        super().connection_made(transport)
        self.waiting_since = self.loop.time()
        self.loop.call_later(CHECK_SECONDS, self._check)

    @property
    def is_waiting(self) -> bool:
        """Whether it is the other side's turn: to send its request, or to read the answer."""
        cycle = self.cycle
        return cycle is None or cycle.response_complete or cycle.more_body or self.flow.write_paused

    def handle_events(self) -> None:
        cycle = self.cycle
        super().handle_events()
        if self.cycle is not cycle:  # from its head on a request has its time, however long nobody had asked
            self.waiting_since = self.loop.time()

    def on_response_complete(self) -> None:
        self.waiting_since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        self.waiting_since = self.loop.time()
        super().pause_writing()

    def _check(self) -> None:
        if self.transport.is_closing():
            return
        if self.is_waiting and self.loop.time() - self.waiting_since >= STATUS_SECONDS.max:
            self.transport.abort()
        else:
            self.loop.call_later(CHECK_SECONDS, self._check)


def server_config(
    app: FastAPI,
    host: str,
    port: int,
    drain_seconds: int = 2,
    max_connections: int = 0,
    tls: ssl.SSLContext | None = None,
) -> uvicorn.Config:
    """Return how the application is served. At its end it waits so long for answers that are on their way.

    `max_connections` is by default the status service's.
    """
    protocol: Any = partial(Connection, max_connections=max_connections)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=protocol,
        ws="none",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=drain_seconds,
        timeout_keep_alive=STATUS_SECONDS.max,
        server_header=False,
        proxy_headers=False,  # else whoever asks from this machine chooses the address that it is known by
        backlog=1024,  # a connection that finds the queue full tries again only after a second
        h11_max_incomplete_event_size=STATUS_HEAD_BYTES.max,
    )
    if tls is not None:
        config.load()
        config.ssl = tls
    return config


class Server(uvicorn.Server):
    """Ends with code 0 when its host says so; uvicorn's own server raises the signal again at its end."""

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[Callable[..., None]], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        self._on_stop(self._stop)
        yield

    def _stop(self, *_: object) -> None:
        self.should_exit = True
